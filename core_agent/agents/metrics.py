"""The log: means of the metrics of many updates."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

Metrics = Mapping[str, torch.Tensor]
"""Scalars of one update by name, left on the device."""


@contextmanager
def errors_as_warnings() -> Iterator[None]:
    """A log that cannot be written, for example to a full disk, does not end training."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"the log was not written ({error}); training continues", stacklevel=3)


class MetricMeans:
    """Means of the metrics of many updates, without waiting for the device at each."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, metrics: Metrics) -> None:
        values = {name: value.detach() for name, value in metrics.items()}
        known = [name for name in values if name in self._sums]
        if known:
            sums = torch._foreach_add([self._sums[n] for n in known], [values[n] for n in known])
            values.update(zip(known, sums))
        self._sums.update(values)
        self._counts.update(metrics.keys())

    def compute(self) -> dict[str, float]:
        """The means by name, in one transfer from the device."""
        if not self._sums:
            return {}
        sums = torch.stack([value.float() for value in self._sums.values()]).tolist()
        return {name: total / self._counts[name] for name, total in zip(self._sums, sums)}


class UpdateLog:
    """Metrics and number of the updates since the last entry in the log."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.means, self.n_updates, self._started = MetricMeans(), 0, time.perf_counter()

    def add(self, metrics: Metrics) -> None:
        self.means.add(metrics)
        self.n_updates += 1

    def updates_per_second(self) -> float:
        return self.n_updates / (time.perf_counter() - self._started)
