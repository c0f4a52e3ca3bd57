"""Named tuples of values that are passed around together.

Throughout the package ``T`` is the number of time steps, ``B`` the number of sequences and
sequences are time-major, ``(T, B, ...)``.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch

Observation: TypeAlias = "torch.Tensor | dict[str, torch.Tensor]"
"""One tensor, or one tensor per key of a ``Dict`` observation space."""


class SequenceBatch(NamedTuple):
    """``B`` windows of ``T`` consecutive frames, each window out of one episode.

    ``actions[t]`` is taken in the state seen at ``observations[t]``, earns ``rewards[t]`` and
    leads to ``observations[t + 1]``.
    """

    observations: Observation
    """``(T, B, ...)``; images ``(T, B, C, H, W)``, uint8 or float32."""
    actions: torch.Tensor
    """``(T - 1, B, A)``, float32 in [-1, 1]."""
    rewards: torch.Tensor
    """``(T - 1, B)``, float32."""
    terminated: torch.Tensor
    """``(T - 1, B)``, float32: 1 where the episode ended for good, not by a time limit."""
    mask: torch.Tensor
    """``(T, B)``, float32: 1 for frames of the episode, 0 for the padding of short episodes."""

    @property
    def transition_mask(self) -> torch.Tensor:
        """``(T - 1, B)``, float32: 1 where both frames of a transition exist."""
        return self.mask[1:]


class TransitionBatch(NamedTuple):
    """``B`` transitions, each with the stack of the last frames before and after it."""

    observations: Observation
    """``(B, ...)``: see :func:`~core_agent.networks.encoders.stack_frames`."""
    actions: torch.Tensor
    """``(B, A)``, float32 in [-1, 1]."""
    next_observations: Observation
    """``(B, ...)``"""
    rewards: torch.Tensor
    """``(B,)``, float32."""
    terminated: torch.Tensor
    """``(B,)``, float32: 1 where the episode ended for good, not by a time limit."""

    @property
    def transition_mask(self) -> torch.Tensor:
        """``(B,)``, float32: every transition counts."""
        return torch.ones_like(self.rewards)


class Gaussian(NamedTuple):
    """A diagonal Gaussian; both fields have shape ``(..., S)``."""

    mean: torch.Tensor
    log_std: torch.Tensor

    @property
    def std(self) -> torch.Tensor:
        return self.log_std.exp()

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """``mean + std * noise`` for standard normal ``noise`` of the same shape."""
        return self.mean + self.std * noise

    def detach(self) -> Gaussian:
        return Gaussian(self.mean.detach(), self.log_std.detach())


class Latent(NamedTuple):
    """A point of the latent space: deterministic and stochastic part."""

    deter: torch.Tensor
    """``(..., deter_dim)``"""
    stoch: torch.Tensor
    """``(..., stoch_dim)``"""

    def flatten(self) -> torch.Tensor:
        """``(..., deter_dim + stoch_dim)``, what the heads read."""
        return torch.cat([self.deter, self.stoch], dim=-1)


class Rollout(NamedTuple):
    """What filtering a batch of sequences gives, ``(T, B, ...)`` each."""

    deter: torch.Tensor
    posterior: Gaussian
    stoch: torch.Tensor
    """Samples of the posterior."""

    def sampled(self) -> torch.Tensor:
        """``(T, B, latent_dim)``: what the decoder, reward and inverse heads read."""
        return Latent(self.deter, self.stoch).flatten()

    def mean(self) -> torch.Tensor:
        """``(T, B, latent_dim)``: what actor and critics read."""
        return Latent(self.deter, self.posterior.mean).flatten()


class ActingState(NamedTuple):
    """What acting carries from one step to the next, ``(n_envs, ...)`` each."""

    deter: torch.Tensor
    stoch: torch.Tensor
    action: torch.Tensor
    """The action that was executed last, in [-1, 1]."""
