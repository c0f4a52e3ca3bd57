"""The cross-entropy method: the best action under a value, for a whole batch of states at once."""

from __future__ import annotations

from collections.abc import Callable

import torch


def best_actions(
    value: Callable[[torch.Tensor], torch.Tensor], noise: torch.Tensor, n_elites: int
) -> torch.Tensor:
    """Actions ``(N, A)`` in [-1, 1] of (nearly) the highest value, one for each of ``N`` states.

    Each iteration draws ``S`` candidates from each state's own Gaussian, clipped to the bounds, and
    fits that Gaussian to the best of them; the best candidate of the last iteration wins. The
    first Gaussian is standard normal, which the paper leaves open: a third of the draws lie on the
    bounds, as the best torques often do. Source: QT-Opt, arXiv:1806.10293.

    :param value: gives values ``(N, S)`` of candidates ``(N, S, A)``
    :param noise: standard normal ``(I, N, S, A)`` for ``I`` iterations
    :param n_elites: candidates that a Gaussian is fitted to, ``1 <= n_elites <= S``
    """
    mean, std = torch.zeros_like(noise[0, :, :1]), torch.ones_like(noise[0, :, :1])
    for draws in noise:
        candidates = (mean + std * draws).clamp(-1.0, 1.0)
        best = value(candidates).topk(n_elites, dim=1).indices
        elites = candidates.gather(1, best.unsqueeze(-1).expand(-1, -1, candidates.shape[-1]))
        mean, std = elites.mean(dim=1, keepdim=True), elites.std(dim=1, keepdim=True, correction=0)
    return elites[:, 0]
