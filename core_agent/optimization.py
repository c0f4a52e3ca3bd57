"""Steps of optimisers and moving averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    clipped: Iterable[nn.Parameter],
    max_norm: float,
) -> torch.Tensor:
    """One step of ``optimizer`` on ``loss``; the norm of the clipped gradients before clipping.

    A loss that nothing trainable leads to, as of frozen parts, leaves everything as it is.

    :param loss: scalar
    :param optimizer: its parameters are changed
    :param clipped: parameters whose gradients are clipped together
    :param max_norm: bound of their norm; ``math.inf``: none
    """
    optimizer.zero_grad()
    if loss.requires_grad:
        loss.backward()
    norm = clip_grad_norm_(clipped, max_norm)
    optimizer.step()
    return norm


@torch.no_grad()
def move_towards(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the parameters of ``target`` by the share ``rate`` towards those of ``source``."""
    average = get_ema_multi_avg_fn(1.0 - rate)
    average(list(target.parameters()), list(source.parameters()), None)
