"""Steps of optimisers and moving averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from core_agent.validation import NonFiniteError


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, gradients flow through ``module`` but its parameters get none."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def descend(
    losses: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    clipped: Iterable[nn.Parameter],
    max_norm: float,
) -> torch.Tensor:
    """One step of ``optimizer`` on a loss; the norm of the clipped gradients before clipping.

    A loss that nothing trainable leads to, as of frozen parts, leaves everything as it is.

    :param losses: scalars by name; the first is the loss, the others are its terms
    :param optimizer: its parameters are changed
    :param clipped: parameters whose gradients are clipped together
    :param max_norm: bound of their norm; ``math.inf``: none
    :raises NonFiniteError: if loss or norm are NaN or infinite, before a parameter is changed
    """
    name, loss = next(iter(losses.items()))
    optimizer.zero_grad()
    if loss.requires_grad:
        loss.backward()
    norm = clip_grad_norm_(clipped, max_norm)
    if not torch.isfinite(loss.detach() + norm):
        refuse_non_finite({**losses, f"gradient of {name}": norm})
    optimizer.step()
    return norm


def refuse_non_finite(values: Mapping[str, torch.Tensor]) -> None:
    """Name those scalars that are NaN or infinite.

    :raises NonFiniteError: always
    """
    culprits = [name for name, value in values.items() if not torch.isfinite(value)]
    raise NonFiniteError(
        f"{', '.join(culprits)} must be finite, got NaN or infinity; the parameters are as they "
        "were before: look at the observations and rewards, or lower the learning rates"
    )


@torch.no_grad()
def move_towards(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the parameters of ``target`` by the share ``rate`` towards those of ``source``."""
    average = get_ema_multi_avg_fn(1.0 - rate)
    average(list(target.parameters()), list(source.parameters()), None)
