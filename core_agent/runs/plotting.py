"""Learning curves as pictures."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from core_agent.runs.training import RUN_FILE, read_lines
from core_agent.validation import check

STYLE: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


def running_mean(values: Sequence[float], window: int = 10) -> np.ndarray:
    """Mean of each value and up to ``window - 1`` before it."""
    ends = range(1, len(values) + 1)
    return np.array([np.mean(values[max(0, end - window) : end]) for end in ends])


Curve = tuple[list[int], list[float]]
"""Agent steps and values."""


VALIDATION = "validation"
"""Given as the tag, it selects the validations of ``core-agent benchmark``."""
EVENTS, EVALUATIONS = "events.out.tfevents.*", "evaluations.jsonl"


def find_logs(folder: Path, pattern: str) -> dict[Path, list[Path]]:
    """Files below a folder, by the folder of their run.

    The run's folder is the closest folder above a file that holds a ``run.json``; if there is none,
    it is the file's own folder.

    :raises ValueError: if there is none
    """
    logs = defaultdict(list)
    files = sorted(folder.rglob(pattern)) if folder.is_dir() else []
    what = "TensorBoard logs" if pattern == EVENTS else pattern
    check(bool(files), "runs", f"be folders with {what}", str(folder))
    for file in files:
        above = file.parents[: len(file.relative_to(folder).parts)]
        run = next((each for each in above if (each / RUN_FILE).is_file()), file.parent)
        logs[run].append(file)
    return logs


def read_curves(folders: Sequence[Path], tag: str) -> dict[str, dict[str, Curve]]:
    """The curves of all runs below ``folders``, by environment and run.

    Runs that have logged nothing of that name yet are left out.

    :param tag: a tag of TensorBoard's, or ``"validation"``
    :raises ValueError: if there is no log, or none with that tag
    """
    pattern = EVALUATIONS if tag == VALIDATION else EVENTS
    logs = {run: files for folder in folders for run, files in find_logs(folder, pattern).items()}
    shared = Path(os.path.commonpath([run.absolute().parent for run in logs]))
    panels: dict[str, dict[str, Curve]] = {}
    tags: set[str] = set()
    for run, files in logs.items():
        record, env_id = run / RUN_FILE, ""
        if record.is_file():
            env_id = json.loads(record.read_text()).get("env_id", "")
            # A run that was started again in the folder of another logs to a folder of its own.
            newest = max(
                files, key=lambda file: (file.name.split(".")[3:4], file.stat().st_mtime_ns)
            )
            files = [file for file in files if file.parent == newest.parent]
        curve = read_validations(*files) if tag == VALIDATION else read_scalars(files, tag, tags)
        if curve[0]:
            parts = [part for part in run.absolute().relative_to(shared).parts if part != env_id]
            panels.setdefault(env_id, {})["/".join(parts) or run.name] = curve
    check(bool(panels), "tag", f"be one of {sorted(tags)}", tag, "some are logged after an episode")
    return dict(sorted(panels.items()))


def read_validations(file: Path) -> Curve:
    """Mean return of each validation."""
    entries = read_lines(file)
    return [each["agent_steps"] for each in entries], [np.mean(each["returns"]) for each in entries]


def read_scalars(files: Sequence[Path], tag: str, tags: set[str]) -> Curve:
    """The values of a tag in a run's files.

    If a step was logged twice, as happens when a run is resumed, the newer value is kept.

    :param tags: all tags found in the files are added to this set
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    entries = []
    for file in files:
        events = EventAccumulator(str(file)).Reload()
        tags.update(events.Tags()["scalars"])
        if tag in events.Tags()["scalars"]:
            entries += events.Scalars(tag)
    values = {entry.step: entry.value for entry in sorted(entries, key=lambda e: e.wall_time)}
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def plot_runs(path: str | Path, label: str, panels: Mapping[str, Mapping[str, Curve]]) -> None:
    """Draw a panel for each environment, with a curve for each run.

    :param path: PNG to write; its folder is made if missing
    :param label: of the vertical axis
    :param panels: see :func:`read_curves`
    """
    n_columns = min(len(panels), 3)
    n_rows = -(-len(panels) // n_columns)
    size = (8, 4.5) if len(panels) == 1 else (5 * n_columns, 3.6 * n_rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for axes, (title, curves) in zip(grid, panels.items()):
            for name, (steps, values) in curves.items():
                marker = "o" if len(steps) == 1 else None  # a line needs two points
                axes.plot(steps, values, lw=2, marker=marker, label=name)
            axes.set(title=title, xlabel="agent steps", ylabel=label)
            axes.legend(frameon=False, fontsize="small")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
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
