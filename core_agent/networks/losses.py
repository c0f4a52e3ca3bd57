"""The losses of all agents: tensors in, tensors out.

``mask`` arguments are float32, 1 for entries that count; every mean is over those alone.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch.nn import functional as F

from core_agent.networks.types import Gaussian

Negatives = Literal["all", "other_sequences", "same_sequence"]
NEGATIVES: tuple[str, ...] = get_args(Negatives)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the ``values`` whose ``mask`` is 1; 0 when there is none."""
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


class InfoNCE(NamedTuple):
    """The contrastive loss and how often it is right."""

    loss: torch.Tensor
    """Scalar: mean of the cross-entropies, in nats."""
    accuracy: torch.Tensor
    """Scalar: share of the frames whose own prediction scores highest among the candidates."""


def info_nce(
    features: torch.Tensor,
    predictions: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor,
    negatives: Negatives = "all",
) -> InfoNCE:
    """Symmetric InfoNCE between features and their predictions (Eq. 3, arXiv:2112.01163).

    :param features: ``(T, B, D)`` features of the observations
    :param predictions: ``(T, B, D)`` features predicted for them from the latent states
    :param scale: scalar > 0 that multiplies the inner products
    :param mask: ``(T, B)``
    :param negatives: which other frames a frame is distinguished from: ``"all"`` of the batch,
        ``"other_sequences"`` only, or the ``"same_sequence"`` only
    """
    n_steps, n_sequences, dim = features.shape
    n_pairs = n_steps * n_sequences
    logits = scale * features.reshape(n_pairs, dim) @ predictions.reshape(n_pairs, dim).t()
    valid = mask.reshape(n_pairs).bool()
    candidates = valid[None, :] & valid[:, None]
    if negatives != "all":
        sequence = torch.arange(n_sequences, device=features.device).repeat(n_steps)
        same = sequence[None, :] == sequence[:, None]
        candidates = candidates & (same if negatives == "same_sequence" else ~same)
    # A pair is always its own positive, which also keeps every row and column finite.
    candidates = candidates | torch.eye(n_pairs, dtype=torch.bool, device=features.device)
    logits = logits.masked_fill(~candidates, -torch.inf)
    positives = logits.diagonal()
    by_row = logits.logsumexp(dim=1) - positives
    by_column = logits.logsumexp(dim=0) - positives
    flat_mask = mask.reshape(n_pairs)
    correct = (positives >= logits.amax(dim=1)).to(flat_mask.dtype)
    return InfoNCE(
        loss=masked_mean(0.5 * (by_row + by_column), flat_mask),
        accuracy=masked_mean(correct, flat_mask).detach(),
    )


def gaussian_kl(p: Gaussian, q: Gaussian) -> torch.Tensor:
    """KL(p ‖ q) in nats, summed over the last dimension: ``(..., S)`` to ``(...)``."""
    variance_ratio = (2.0 * (p.log_std - q.log_std)).exp()
    distance = ((p.mean - q.mean) * (-q.log_std).exp()).square()
    return 0.5 * (variance_ratio + distance - 1.0 - variance_ratio.log()).sum(dim=-1)


def gaussian_entropy(p: Gaussian) -> torch.Tensor:
    """Entropy in nats, summed over the last dimension: ``(..., S)`` to ``(...)``."""
    return (p.log_std + 0.5 * (1.0 + math.log(2.0 * math.pi))).sum(dim=-1)


def balanced_kl(
    posterior: Gaussian,
    prior: Gaussian,
    mask: torch.Tensor,
    free_nats: float = 1.0,
    balance: float = 0.5,
) -> torch.Tensor:
    """Scalar KL(posterior ‖ prior), with separate terms that train the prior and the posterior.

    The paper does not say how the KL term is balanced; the clamp and the halves are this
    project's choice, as in DreamerV2 (arXiv:2010.02193, Algorithm 2).

    :param posterior: ``(T, B, S)``
    :param prior: ``(T, B, S)``
    :param mask: ``(T, B)``
    :param free_nats: each ``(t, b)`` counts with at least this many nats, without a gradient then
    :param balance: weight of the term that trains the prior (posterior detached)
    """
    train_prior = gaussian_kl(posterior.detach(), prior).clamp(min=free_nats)
    train_posterior = gaussian_kl(posterior, prior.detach()).clamp(min=free_nats)
    return masked_mean(balance * train_prior + (1.0 - balance) * train_posterior, mask)


def reward_loss(
    predictions: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor, smooth: bool = False
) -> torch.Tensor:
    """Scalar squared error, or smooth-L1 as in the authors' experiments; all ``(T, B)``."""
    if smooth:
        return masked_mean(F.smooth_l1_loss(predictions, rewards, reduction="none"), mask)
    return masked_mean((predictions - rewards).square(), mask)


def inverse_loss(
    predictions: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Scalar half squared distance, summed over the actions: ``(T, B, A)``, mask ``(T, B)``."""
    return masked_mean(0.5 * (predictions - actions).square().sum(dim=-1), mask)


def twin_critic_loss(
    values: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Scalar sum of both critics' mean squared errors (Eq. 6, arXiv:2112.01163).

    :param values: ``(2, ...)``
    :param targets: ``(...)``, for both
    :param mask: ``(...)``
    """
    return masked_mean((values - targets).square().sum(dim=0), mask)


def bilinear_info_nce(queries: torch.Tensor, keys: torch.Tensor, weight: torch.Tensor) -> InfoNCE:
    """InfoNCE of queries against keys, their similarity being ``q W k`` (CURL, arXiv:2004.04136).

    :param queries: ``(N, D)``
    :param keys: ``(N, D)``; key ``i`` is the positive of query ``i``, the others its negatives
    :param weight: ``(D, D)``
    """
    logits = queries @ weight @ keys.t()
    positives = logits.diagonal()
    correct = (positives >= logits.amax(dim=1)).to(logits.dtype)
    return InfoNCE((logits.logsumexp(dim=1) - positives).mean(), correct.mean().detach())
