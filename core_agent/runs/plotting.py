"""Learning curves as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from core_agent.validation import check

STYLE: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


def running_mean(values: Sequence[float], window: int = 10) -> np.ndarray:
    """Mean of each value and up to ``window - 1`` before it."""
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(values, dtype=float)]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def read_scalars(folder: str | Path, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values that TensorBoard logs anywhere below ``folder`` hold for ``tag``.

    :raises ValueError: if there is no log, or none with that tag
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = sorted(Path(folder).rglob("events.out.tfevents.*"))
    check(bool(files), "runs", "be folders with TensorBoard logs", str(folder))
    tags: set[str] = set()
    points: list[tuple[int, float]] = []
    for file in files:
        events = EventAccumulator(str(file)).Reload()
        tags.update(events.Tags()["scalars"])
        if tag in events.Tags()["scalars"]:
            points += [(event.step, event.value) for event in events.Scalars(tag)]
    check(bool(points), "tag", f"be one of {sorted(tags)} in {folder}", tag)
    steps, values = zip(*sorted(points))
    return list(steps), list(values)


def plot_runs(
    path: str | Path, label: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Draw one curve ``(steps, values)`` for each run.

    :param path: PNG to write
    :param label: of the vertical axis
    :param curves: by the name of the run
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for name, (steps, values) in curves.items():
            axes.plot(steps, values, lw=2, label=name)
        axes.set(xlabel="agent steps", ylabel=label)
        axes.legend(frameon=False)
        figure.savefig(path, dpi=130)


def plot_learning_curve(
    path: str | Path,
    title: str,
    steps: Sequence[float],
    returns: Sequence[float],
    random_return: float,
    validations: Sequence[tuple[float, float, float]] = (),
) -> None:
    """Draw training returns over agent steps, with the random policy and validations.

    :param path: PNG to write
    :param title: of the picture
    :param steps: agent steps at the end of each episode
    :param returns: return of each episode
    :param random_return: mean return of random actions, drawn as a line
    :param validations: ``(agent steps, mean return, standard error)`` of each validation
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.scatter(steps, returns, s=14, color="#9bbcd8", label="training episode", linewidths=0)
        axes.plot(
            steps, running_mean(returns), color="#1f5f99", lw=2.2, label="mean of the last 10"
        )
        if validations:
            at, mean, error = zip(*validations)
            axes.errorbar(
                at,
                mean,
                error,
                fmt="o",
                color="#c8553d",
                capsize=3,
                label="validation, other videos",
            )
        axes.axhline(random_return, color="#555555", ls="--", lw=1.2, label="random actions")
        axes.set(title=title, xlabel="agent steps", ylabel="return", ylim=(0, None))
        axes.legend(frameon=False, loc="upper left")
        figure.savefig(path, dpi=130)
