"""Learning curves as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure


def running_mean(values: Sequence[float], window: int = 10) -> np.ndarray:
    """Mean of each value and up to ``window - 1`` before it."""
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(values, dtype=float)]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def plot_learning_curve(
    path: str | Path,
    title: str,
    steps: Sequence[float],
    returns: Sequence[float],
    random_return: float,
    validations: Sequence[tuple[float, float, float]] = (),
) -> None:
    """Draw training returns over agent steps, with the random policy and validations beside them.

    :param path: PNG to write
    :param title: of the picture
    :param steps: agent steps at the end of each episode
    :param returns: return of each episode
    :param random_return: mean return of random actions, drawn as a line
    :param validations: ``(agent steps, mean return, standard error)`` of each validation
    """
    with matplotlib.rc_context(
        {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    ):
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
