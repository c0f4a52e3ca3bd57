"""The policy's distribution: a Gaussian squashed by tanh."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F


class SquashedGaussian(NamedTuple):
    """Distribution over actions in (-1, 1); both fields ``(..., A)``, float32."""

    mean: torch.Tensor
    log_std: torch.Tensor

    @property
    def mode(self) -> torch.Tensor:
        """``tanh(mean)``, the deterministic action ``(..., A)``."""
        return torch.tanh(self.mean)

    def sample(self, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reparametrised action ``(..., A)`` and its log-density ``(...)``.

        The density is worked out from the value before tanh, which neither overflows nor loses
        digits near ±1: ``log(1 - tanh(x)²) = 2 (log 2 - x - softplus(-2 x))``.

        :param noise: standard normal, ``(..., A)``
        """
        before_tanh = self.mean + self.log_std.exp() * noise
        log_normal = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)
        log_slope = 2.0 * (math.log(2.0) - before_tanh - F.softplus(-2.0 * before_tanh))
        return torch.tanh(before_tanh), (log_normal - log_slope).sum(dim=-1)
