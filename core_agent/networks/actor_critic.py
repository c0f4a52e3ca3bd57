"""Actor and critics on a state vector, and the policy's distribution: a Gaussian through tanh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from core_agent.networks.layers import MLP, Activation, TwinMLP

MEAN_SCALE = 5.0
"""Bound of the mean before tanh; at ±5 an action is within 1e-4 of its bound."""
LOG_STD_RANGE = (-10.0, 2.0)
CLAMP = math.atanh(1.0 - 1e-7)
"""Bound before tanh of the samples that the authors' experiments clamp to ±(1 - 1e-7)."""


class SquashedGaussian(NamedTuple):
    """Distribution over actions in (-1, 1); both tensors ``(..., A)``, float32."""

    mean: torch.Tensor
    log_std: torch.Tensor
    bound: float = math.inf
    """Samples are clamped to ± this value before tanh."""

    @property
    def mode(self) -> torch.Tensor:
        """``tanh(mean)``, the deterministic action ``(..., A)``."""
        return torch.tanh(self.mean)

    def sample(self, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reparametrised action ``(..., A)`` and its log-density ``(...)``.

        The density is computed from the value before tanh, which neither overflows nor loses
        digits near ±1: ``log(1 - tanh(x)²) = 2 (log 2 - x - softplus(-2 x))``.

        :param noise: standard normal, ``(..., A)``
        """
        before_tanh = self.mean + self.log_std.exp() * noise
        if self.bound < math.inf:
            before_tanh = before_tanh.clamp(-self.bound, self.bound)
            noise = (before_tanh - self.mean) / self.log_std.exp()
        log_normal = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)
        log_slope = 2.0 * (math.log(2.0) - before_tanh - F.softplus(-2.0 * before_tanh))
        return torch.tanh(before_tanh), (log_normal - log_slope).sum(dim=-1)


class Actor(nn.Module):
    """Policy over actions in (-1, 1) from a state vector.

    The mean passes ``5 tanh(mean / 5)``; a sigmoid maps the log standard deviation to [-10, 2].

    :param in_dim: size of the state vector
    :param action_dim: number of actions
    :param hidden_dims: sizes of the hidden layers
    :param activation: ``"elu"`` or ``"relu"``
    :param clamp_samples: clamp samples to ±(1 - 1e-7) before their log-density is taken
    """

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (1024, 1024, 1024),
        activation: Activation = "elu",
        clamp_samples: bool = False,
    ) -> None:
        super().__init__()
        self.net = MLP(in_dim, hidden_dims, 2 * action_dim, activation)
        self.bound = CLAMP if clamp_samples else math.inf

    def forward(self, states: torch.Tensor) -> SquashedGaussian:
        """The policy at ``states`` ``(..., in_dim)``."""
        mean, log_std = self.net(states).chunk(2, dim=-1)
        low, high = LOG_STD_RANGE
        return SquashedGaussian(
            MEAN_SCALE * torch.tanh(mean / MEAN_SCALE),
            low + (high - low) * torch.sigmoid(log_std),
            self.bound,
        )

    def choose(self, states: torch.Tensor, deterministic: bool) -> torch.Tensor:
        """Actions ``(..., A)``: the policy's mode, or a sample."""
        policy = self(states)
        if deterministic:
            return policy.mode
        action, _ = policy.sample(torch.randn_like(policy.mean))
        return action


class Critic(nn.Module):
    """Two action values from a state vector and an action.

    :param in_dim: size of the state vector
    :param action_dim: number of actions
    :param hidden_dims: sizes of the hidden layers of each
    :param activation: ``"elu"`` or ``"relu"``
    :param layer_norm: normalise what goes into each activation (arXiv:2302.02948)
    """

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (1024, 1024, 1024),
        activation: Activation = "elu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.net = TwinMLP(in_dim + action_dim, hidden_dims, activation, layer_norm)

    def forward(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Both values ``(2, ...)`` of states ``(..., in_dim)`` and actions ``(..., A)``."""
        x = torch.cat([states, actions], dim=-1)
        return self.net(x.flatten(0, -2)).unflatten(1, x.shape[:-1])

    def first(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The first of both values alone, ``(...)``; arguments as in :meth:`forward`."""
        x = torch.cat([states, actions], dim=-1)
        return self.net(x.flatten(0, -2), n_members=1).reshape(x.shape[:-1])
