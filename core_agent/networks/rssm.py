"""The recurrent state-space model: a latent state filtered from features and actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from core_agent.networks.layers import MLP, LayerNormGRUCell
from core_agent.networks.types import Gaussian, Latent, Rollout

LOG_STD_RANGE = (-10.0, 10.0)
"""Of prior and posterior; a choice of this project, as the paper names none."""


def to_gaussian(statistics: torch.Tensor) -> Gaussian:
    """Split ``(..., 2 S)`` into mean and clamped log standard deviation, ``(..., S)`` each."""
    mean, log_std = statistics.chunk(2, dim=-1)
    return Gaussian(mean, log_std.clamp(*LOG_STD_RANGE))


class RSSM(nn.Module):
    """Gaussian state-space model on a GRU (appendix A.1, arXiv:2112.01163).

    ``h_t = GRUCell(h_{t-1}, GRU_MLP([s_{t-1}, a_{t-1}]))``, prior ``p(s_t | h_t)``, posterior
    ``q(s_t | h_t, e_t)``. A sequence starts with ``h = 0`` wherever it was cut.

    :param embed_dim: size of the embedded features ``e_t``
    :param action_dim: number of actions
    :param deter_dim: size of ``h_t``
    :param stoch_dim: size of ``s_t``
    :param gru_dims: hidden layers in front of the GRU
    :param prior_dims: hidden layers of the prior
    :param posterior_dims: hidden layers of the posterior
    :param initial_log_std: mean log standard deviation of prior and posterior at the start: the
        bias of their last layer norm
    """

    def __init__(
        self,
        embed_dim: int,
        action_dim: int,
        deter_dim: int = 200,
        stoch_dim: int = 64,
        gru_dims: Sequence[int] = (400, 400),
        prior_dims: Sequence[int] = (400, 400, 400),
        posterior_dims: Sequence[int] = (400, 400),
        initial_log_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.deter_dim, self.stoch_dim, self.action_dim = deter_dim, stoch_dim, action_dim
        # What recurs stays in float32: rounding errors would grow along the sequence.
        self.gru_mlp = MLP(stoch_dim + action_dim, gru_dims, mixed_precision=False)
        self.cell = LayerNormGRUCell(self.gru_mlp.out_dim, deter_dim)
        self.prior_mlp = MLP(deter_dim, prior_dims, 2 * stoch_dim, output_norm="affine")
        self.posterior_mlp = MLP(
            deter_dim + embed_dim,
            posterior_dims,
            2 * stoch_dim,
            output_norm="affine",
            mixed_precision=False,
        )
        for mlp in (self.prior_mlp, self.posterior_mlp):
            assert isinstance(mlp.norm, nn.LayerNorm)
            nn.init.constant_(mlp.norm.bias[stoch_dim:], initial_log_std)

    @property
    def latent_dim(self) -> int:
        return self.deter_dim + self.stoch_dim

    def initial(self, batch_size: int) -> Latent:
        """The state before the first frame: zeros, ``(batch_size, ...)``."""
        like = self.cell.linear.weight
        return Latent(
            like.new_zeros(batch_size, self.deter_dim), like.new_zeros(batch_size, self.stoch_dim)
        )

    def advance(self, latent: Latent, action: torch.Tensor) -> torch.Tensor:
        """Next ``h``, ``(B, deter_dim)``, after ``action`` ``(B, A)`` in ``latent``."""
        x = self.gru_mlp(torch.cat([latent.stoch, action], dim=-1))
        return self.cell(x, latent.deter)

    def prior(self, deter: torch.Tensor) -> Gaussian:
        """What is expected at ``h`` ``(..., deter_dim)`` before its frame is seen."""
        return to_gaussian(self.prior_mlp(deter))

    def posterior(self, deter: torch.Tensor, embed: torch.Tensor) -> Gaussian:
        """What is known at ``h`` ``(..., deter_dim)`` with its frame ``(..., embed_dim)`` seen."""
        return to_gaussian(self.posterior_mlp(torch.cat([deter, embed], dim=-1)))

    def observe(self, embed: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor) -> Rollout:
        """Filter sequences from their first frame.

        The same as ``advance`` and ``posterior`` step by step. Whatever does not depend on the
        state is computed for all steps at once: the loop holds the recurrence alone, in float32.

        :param embed: ``(T, B, embed_dim)``
        :param actions: ``(T - 1, B, A)``
        :param noise: ``(T, B, stoch_dim)``, standard normal
        """
        posterior_first, *posterior_rest = self.posterior_mlp.hidden
        gru_first, *gru_rest = self.gru_mlp.hidden
        from_deter, from_embed = posterior_first.weight.split(
            [self.deter_dim, embed.shape[-1]], dim=1
        )
        from_stoch, from_action = gru_first.weight.split([self.stoch_dim, self.action_dim], dim=1)
        output, norm = self.posterior_mlp.output, self.posterior_mlp.norm
        assert output is not None
        embed_part = F.linear(embed, from_embed, posterior_first.bias)
        action_part = F.linear(actions, from_action, gru_first.bias)
        deter, stoch = self.initial(embed.shape[1])
        steps: list[tuple[torch.Tensor, ...]] = []
        for t, noise_t in enumerate(noise):
            if t > 0:
                x = F.elu(action_part[t - 1] + F.linear(stoch, from_stoch))
                for layer in gru_rest:
                    x = F.elu(layer(x))
                deter = self.cell(x, deter)
            x = F.elu(embed_part[t] + F.linear(deter, from_deter))
            for layer in posterior_rest:
                x = F.elu(layer(x))
            posterior = to_gaussian(norm(output(x)))
            stoch = posterior.sample(noise_t)
            steps.append((deter, *posterior, stoch))
        deters, means, log_stds, stochs = (torch.stack(part) for part in zip(*steps))
        return Rollout(deters, Gaussian(means, log_stds), stochs)

    def imagine(self, latent: Latent, actions: torch.Tensor, noise: torch.Tensor) -> Latent:
        """Roll the prior forward without observations.

        :param latent: where to start, ``(B, ...)``
        :param actions: ``(T, B, A)``
        :param noise: ``(T, B, stoch_dim)``, standard normal (zeros: the mean)
        :return: the latents after each action, ``(T, B, ...)``
        """
        latents = []
        for action, noise_t in zip(actions, noise):
            deter = self.advance(latent, action)
            latent = Latent(deter, self.prior(deter).sample(noise_t))
            latents.append(latent)
        return Latent(*(torch.stack(part) for part in zip(*latents)))
