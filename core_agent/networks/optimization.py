"""Steps of optimisers and moving averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from core_agent.validation import NonFiniteError


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Context in which gradients flow through ``module`` but its parameters get none."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class FiniteGuard:
    """Keeps optimisers from making steps with NaN or infinite values.

    On a CPU such a step is refused immediately, with an error. Reading the values from a GPU would
    mean waiting for it at each step; there, nothing changes any more from the first refused step
    on, and :meth:`check` reports it afterwards.

    :param device: the GPU; ``None``: refuse immediately, with an error
    """

    def __init__(self, device: torch.device | None = None) -> None:
        # As fused optimisers read it: 1 for "leave everything as it is", else 0.
        self._failed = None if device is None else torch.zeros((), device=device)
        self._culprits: dict[tuple[str, ...], torch.Tensor] = {}

    def tensors(self) -> list[torch.Tensor]:
        """The marks of refused steps on the device."""
        return [] if self._failed is None else [self._failed, *self._culprits.values()]

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        losses: Mapping[str, torch.Tensor],
        norm: torch.Tensor,
    ) -> None:
        """Make a step if the loss and the norm of its gradient are finite.

        :param optimizer: its parameters have their gradients already; if it is not fused, it cannot
            skip a step on the device, so the values are waited for
        :param losses: scalars by name, the loss first
        :param norm: norm of the gradient of all parameters that change, a scalar
        :raises NonFiniteError: immediately, without a GPU or if the optimiser is not fused
        """
        name, loss = next(iter(losses.items()))
        values = {**losses, f"gradient of {name}": norm}
        if self._failed is None or not all(g.get("fused") for g in optimizer.param_groups):
            if not torch.isfinite(loss.detach() + norm):
                refuse([name for name, value in values.items() if not torch.isfinite(value)])
            optimizer.step()
            return
        self._note(values, self._failed)
        # The name under which fused optimisers look for it, as GradScaler sets it.
        optimizer.found_inf = self._failed  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]

    def _note(self, values: Mapping[str, torch.Tensor], failed: torch.Tensor) -> None:
        """Remember on the device which values are not finite, unless others were before."""
        names = tuple(values)
        if names not in self._culprits:
            self._culprits[names] = torch.zeros(len(names), dtype=torch.bool, device=failed.device)
        bad = ~torch.isfinite(torch.stack([value.detach() for value in values.values()]))
        self._culprits[names].logical_or_(bad & (failed == 0))
        failed.add_(bad.any()).clamp_(max=1.0)

    def weigh(self, rate: float) -> float | torch.Tensor:
        """``rate`` as long as no step was refused, 0 from then on."""
        return rate if self._failed is None else rate * (1.0 - self._failed)

    def check(self) -> None:
        """Wait for the GPU and report the first step refused since the last call.

        :raises NonFiniteError: if there is one; steps are made again after it
        """
        if self._failed is None or not self._culprits:
            return
        flags = torch.cat([*self._culprits.values()]).tolist()
        names = [name for names in self._culprits for name in names]
        if any(flags):
            # In place, as CUDA graphs write here.
            for flag in (self._failed, *self._culprits.values()):
                flag.zero_()
            refuse([name for name, flag in zip(names, flags) if flag])


AT_ONCE = FiniteGuard()
"""Refuses a step with an error."""


def descend(
    losses: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    clipped: Iterable[nn.Parameter],
    max_norm: float,
    guard: FiniteGuard = AT_ONCE,
) -> torch.Tensor:
    """One step of ``optimizer`` on a loss; returns the gradient norm of ``clipped``, unclipped.

    A loss that depends on no trainable parameter, because all are frozen, changes nothing.

    :param losses: scalars by name; the first is the loss, the others are its terms
    :param optimizer: its parameters are changed
    :param clipped: parameters whose gradients are clipped together
    :param max_norm: bound of their norm; ``math.inf``: none
    :param guard: leaves the step out if loss or norm are NaN or infinite
    :raises NonFiniteError: in that case, before any parameter changes, if the guard waits for the
        values
    """
    return descend_together(losses, {optimizer: (clipped, max_norm)}, guard)[0]


def descend_together(
    losses: Mapping[str, torch.Tensor],
    steps: Mapping[torch.optim.Optimizer, tuple[Iterable[nn.Parameter], float]],
    guard: FiniteGuard = AT_ONCE,
) -> list[torch.Tensor]:
    """One step of several optimisers on one loss, from one backward pass; see :func:`descend`.

    :param steps: parameters to clip together and the bound of their gradients' norm, by optimiser
    :param guard: leaves all steps out if the loss or a norm is NaN or infinite
    :return: the norms before clipping
    """
    loss = next(iter(losses.values()))
    for optimizer in steps:
        optimizer.zero_grad()
    if loss.requires_grad:
        loss.backward()
    clipped = [(list(parameters), bound) for parameters, bound in steps.values()]
    norms = [clip_grad_norm_(*clipping) for clipping in clipped]
    # The optimisers may change more parameters than those that are clipped.
    counted = {id(parameter) for parameters, _ in clipped for parameter in parameters}
    groups = [group for optimizer in steps for group in optimizer.param_groups]
    changed = [p for group in groups for p in group["params"] if id(p) not in counted]
    others = [parameter.grad for parameter in changed if parameter.grad is not None]
    # Where there is no gradient, PyTorch's zero is on the CPU.
    zero = torch.zeros_like(loss.detach())
    norms = [each if each.device == loss.device else zero for each in norms]
    norm = torch.stack([*norms, get_total_norm(others)] if others else norms).sum()
    for optimizer in steps:
        guard.step(optimizer, losses, norm)
    return norms


def refuse(culprits: Sequence[str]) -> NoReturn:
    """Name those scalars that are NaN or infinite.

    :raises NonFiniteError: always
    """
    raise NonFiniteError(
        f"{', '.join(culprits)} must be finite, got NaN or infinity; the parameters are as they "
        "were before: look at the observations and rewards, or lower the learning rates"
    )


@torch.no_grad()
def move_towards(target: nn.Module, source: nn.Module, rate: float | torch.Tensor) -> None:
    """Move the parameters of ``target`` by the share ``rate`` towards those of ``source``."""
    for moved, goal in zip(target.parameters(), source.parameters()):
        moved.lerp_(goal, rate)
