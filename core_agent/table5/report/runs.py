"""Reading the folders of runs.

These files of a run's folder are read::

    run.json           the run's arguments; a folder without it is not a run
    status.json        progress, machine and speed; missing if the run has not started
    evaluations.jsonl  returns of each evaluation, at fixed steps
    episodes.jsonl     return of each training episode
    losses.jsonl       losses, logged after each rollout
    validation.mp4     an episode on the validation clips
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core_agent.table5.paper import Setting, parse_setting
from core_agent.validation import check

NOT_BEGUN = "not begun"
STATES = ("finished", "running", "failed", NOT_BEGUN)


class Evaluation(NamedTuple):
    """One evaluation of a run: the deterministic policy on the validation clips."""

    agent_steps: int
    simulator_steps: int
    returns: tuple[float, ...]
    """Per 1,000 simulator steps, one for each episode."""

    @property
    def score(self) -> float:
        return float(np.mean(self.returns))


@dataclass(frozen=True)
class RecordedRun:
    """A run as its folder describes it."""

    folder: Path
    env_id: str
    agent: str = "core"
    preset: str = "paper"
    seed: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    env_arguments: dict[str, Any] = field(default_factory=dict)
    n_envs: int = 1
    videos: str | None = None
    """Folder of the background videos, ``"builtin"``, empty for none, or not recorded."""
    status: dict[str, Any] = field(default_factory=dict)
    """The entries of ``status.json`` that are not ``None``."""
    evaluations: tuple[Evaluation, ...] = ()
    episodes: tuple[dict[str, Any], ...] = ()
    losses: tuple[dict[str, Any], ...] = ()

    @functools.cached_property
    def setting(self) -> Setting:
        return parse_setting(self.env_id)

    @property
    def state(self) -> str:
        return self.status.get("state", NOT_BEGUN)

    @functools.cached_property
    def variant(self) -> str:
        """Equal for runs that differ only in setting and seed."""
        parts = [self.agent, self.preset, self.arguments, self.env_arguments, self.n_envs]
        return json.dumps(parts, sort_keys=True)

    @property
    def video(self) -> Path:
        """Path of its video, which may be missing."""
        return self.folder / "validation.mp4"

    def evaluation_at(self, simulator_steps: int) -> Evaluation | None:
        """The evaluation at that step, if there was one."""
        found = (entry for entry in self.evaluations if entry.simulator_steps == simulator_steps)
        return next(found, None)


class UnreadableRun(NamedTuple):
    """A folder of a run with a missing or invalid file."""

    folder: Path
    reason: str


def find_run_folders(paths: Sequence[Path]) -> list[Path]:
    """Folders at or below ``paths`` that hold a ``run.json`` or ``status.json``, each once.

    :raises ValueError: if a path is no folder, or there is no run in any
    """
    for path in paths:
        check(path.is_dir(), "runs", "be folders", str(path))
    files = (path.rglob(name) for path in paths for name in ("run.json", "status.json"))
    folders = sorted({file.parent.resolve() for file in itertools.chain(*files)})
    check(
        bool(folders),
        "runs",
        "hold at least one run, a folder with run.json, at any depth",
        [str(path) for path in paths],
        "core-agent benchmark makes such folders",
    )
    return folders


def read_runs(paths: Sequence[Path]) -> tuple[list[RecordedRun], list[UnreadableRun]]:
    """All runs at or below ``paths``, and those that cannot be read.

    :raises ValueError: if there is none
    """
    runs, unreadable = [], []
    for folder in find_run_folders(paths):
        try:
            runs.append(read_run(folder))
        except (ValueError, TypeError, KeyError) as error:
            unreadable.append(UnreadableRun(folder, f"{type(error).__name__}: {error}"))
    return runs, unreadable


def read_run(folder: Path) -> RecordedRun:
    """The run of a folder.

    :raises ValueError: if a file is no JSON or lacks something; or a TypeError or KeyError
    """
    status = read_status(folder)
    # A run that failed before it started has no other file.
    check((folder / "run.json").is_file(), "folder", "hold run.json", status.get("error"))
    run = json.loads((folder / "run.json").read_text())
    names = ("preset", "arguments", "env_arguments", "n_envs", "videos")
    return RecordedRun(
        folder,
        str(run["env_id"]),
        agent=str(run["agent"]),
        seed=int(run["seed"]),
        status=status,
        evaluations=tuple(map(parse_evaluation, read_lines(folder / "evaluations.jsonl"))),
        episodes=tuple(read_lines(folder / "episodes.jsonl")),
        losses=tuple(read_lines(folder / "losses.jsonl")),
        **{name: run[name] for name in names if name in run},
    )


def read_status(folder: Path) -> dict[str, Any]:
    """The entries of a run's ``status.json``; none if the run has not started.

    :raises ValueError: if it is no JSON, has no known state, or is missing from a run that ended
    """
    path = folder / "status.json"
    if not path.is_file():
        check(
            not (folder / "model.zip").exists(),
            "folder",
            "hold status.json next to model.zip",
            str(folder),
            "core-agent benchmark records what a report shows; core-agent train does not",
        )
        return {}
    status = json.loads(path.read_text())
    state = status.get("state")
    check(state in STATES, "state", f"be one of {STATES}", state)
    return {key: value for key, value in status.items() if value is not None}


def parse_evaluation(entry: dict[str, Any]) -> Evaluation:
    """A line of ``evaluations.jsonl``.

    :raises ValueError: if it has no returns, or some that are no finite numbers
    """
    returns = tuple(float(value) for value in entry["returns"])
    is_usable = bool(returns) and bool(np.isfinite(returns).all())
    check(is_usable, "returns", "be finite numbers, at least one", entry["returns"])
    return Evaluation(int(entry["agent_steps"]), int(entry["simulator_steps"]), returns)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a log in the order of their steps; none if there is no log.

    A killed run may leave an incomplete last line, and a resumed run repeats the lines after its
    last checkpoint: the last complete line of a step counts.
    """
    entries = {}
    if path.is_file():
        for line in path.read_text().split("\n"):
            try:
                entry = json.loads(line)
                entries[int(entry["agent_steps"])] = entry
            except (ValueError, TypeError, KeyError):
                continue
    return [entries[step] for step in sorted(entries)]
