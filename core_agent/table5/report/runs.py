"""The runs of a report: read from their folders, each once, with the names of their agents.

:mod:`core_agent.table5.grid` says which files a run's folder holds; without ``run.json`` it is
not one.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from core_agent.runs.training import RUN_FILE, Run, read_lines
from core_agent.table5.grid import STATES, read_status
from core_agent.table5.paper import METHODS, PAPER_STEPS, Setting, parse_setting
from core_agent.validation import check


@dataclass(frozen=True)
class RecordedRun(Run):
    """A run as its folder describes it."""

    folder: Path = Path()
    name: str = ""
    """Of its agent in the report."""
    videos: str | None = None
    """Folder of the background videos, ``"builtin"``, empty for none, or not recorded."""
    status: dict[str, Any] = field(default_factory=dict)
    """The entries of ``status.json`` that are not ``None``."""
    returns: dict[int, list[float]] = field(default_factory=dict)
    """Of each evaluation's episodes, by simulator steps, in ascending order."""
    episodes: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)

    @functools.cached_property
    def setting(self) -> Setting:
        return parse_setting(self.env_id)

    @property
    def state(self) -> str:
        return self.status["state"]

    @functools.cached_property
    def variant(self) -> str:
        """Equal for runs that differ only in setting and seed."""
        parts = [self.agent, self.preset, self.arguments, self.env_arguments, self.n_envs]
        return json.dumps(parts, sort_keys=True)

    @property
    def video(self) -> Path:
        """Path of its video, which may be missing."""
        return self.folder / "validation.mp4"

    @property
    def last_steps(self) -> int:
        """Simulator steps at the last evaluation; 0 if there was none."""
        return max(self.returns, default=0)

    def score(self, steps: int) -> float:
        """Mean return of the evaluation at that simulator step."""
        return float(np.mean(self.returns[steps]))


@dataclass(frozen=True)
class Study:
    """Runs in the order of their settings and seeds, each once."""

    runs: list[RecordedRun]
    agents: list[str]
    """Their names, in the order in which they are shown."""
    n_duplicates: int
    """Folders left out, because another one has the same run with more steps."""

    @functools.cached_property
    def _by_setting(self) -> dict[Setting, list[RecordedRun]]:
        groups = groupby(self.runs, lambda run: run.setting)
        return {setting: list(runs) for setting, runs in groups}

    @property
    def settings(self) -> list[Setting]:
        return list(self._by_setting)

    def select(self, setting: Setting, *agents: str) -> list[RecordedRun]:
        """The runs on a setting, by default those of all agents."""
        return [r for r in self._by_setting[setting] if not agents or r.name in agents]

    def scores(self, agent: str, setting: Setting, steps: int) -> np.ndarray:
        """Mean returns of an agent's seeds that were evaluated at a step, ``(n_seeds,)``."""
        runs = self.select(setting, agent)
        return np.array([run.score(steps) for run in runs if steps in run.returns])

    def paper_name(self, agent: str) -> str:
        """The agent's key in :data:`~core_agent.table5.paper.METHODS`, whatever its arguments."""
        return next(run.agent for run in self.runs if run.name == agent)


# ---- reading ----


def read_runs(paths: Sequence[Path]) -> tuple[list[RecordedRun], list[tuple[Path, str]]]:
    """All runs at or below ``paths``, and the folders that cannot be read, with the reason.

    :raises ValueError: if a path is no folder, or there is no run in any
    """
    for path in paths:
        check(path.is_dir(), "runs", "be folders", str(path))
    files = (
        file for path in paths for name in (RUN_FILE, "status.json") for file in path.rglob(name)
    )
    folders = sorted({file.parent.resolve() for file in files})
    rule = "hold at least one run, a folder with run.json, at any depth"
    way_out = "core-agent benchmark makes such folders"
    check(bool(folders), "runs", rule, [str(path) for path in paths], way_out)
    runs, unreadable = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except (ValueError, TypeError, KeyError) as error:
            unreadable.append((folder, f"{type(error).__name__}: {error}"))
    return runs, unreadable


def read_run(folder: Path) -> RecordedRun:
    """The run of a folder.

    :raises ValueError: if a file is no JSON or lacks something; or a TypeError or KeyError
    """
    status = read_status(folder)
    check(status["state"] in STATES, "state", f"be one of {STATES}", status["state"])
    check(
        status["state"] != "not started" or not (folder / "model.zip").exists(),
        "folder",
        "hold status.json next to model.zip",
        str(folder),
        "core-agent benchmark records what a report shows; core-agent train does not",
    )
    # A run that failed before it started has no other file.
    check((folder / RUN_FILE).is_file(), "folder", "hold run.json", status.get("error"))
    run = json.loads((folder / RUN_FILE).read_text())
    returns = {}
    for entry in read_lines(folder / "evaluations.jsonl"):
        values = [float(value) for value in entry["returns"]]
        is_usable = bool(values) and bool(np.isfinite(values).all())
        check(is_usable, "returns", "be finite numbers, at least one", entry["returns"])
        returns[int(entry["simulator_steps"])] = values
    return RecordedRun(
        folder=folder,
        status={key: value for key, value in status.items() if value is not None},
        returns=dict(sorted(returns.items())),
        episodes=read_lines(folder / "episodes.jsonl"),
        losses=read_lines(folder / "losses.jsonl"),
        **{name: run[name] for name in (*(f.name for f in fields(Run)), "videos") if name in run},
    )


# ---- equal runs, and names ----


def make_study(runs: Sequence[RecordedRun]) -> Study:
    """Name the agents, and keep one of several equal runs: a finished one, with the most steps."""

    def progress(run: RecordedRun) -> tuple[bool, int]:
        return run.state == "finished", run.status.get("agent_steps", 0)

    furthest: dict[tuple[str, str, int], RecordedRun] = {}
    for run in sorted(runs, key=progress, reverse=True):
        furthest.setdefault((run.variant, run.env_id, run.seed), run)
    kept = sorted(furthest.values(), key=lambda run: (run.setting.order, run.seed))
    names = name_agents(kept)
    named = [replace(run, name=names[run.variant]) for run in kept]
    return Study(named, list(names.values()), len(runs) - len(kept))


def name_agents(runs: Sequence[RecordedRun]) -> dict[str, str]:
    """Names by variant: the paper's and, in brackets, settings in which an agent's variants differ.

    Agents come in the order of :data:`METHODS`, CoRe first and unknown ones last; of one agent,
    variants with fewer settings come first.
    """
    variants = {run.variant: run for run in runs}
    words = {variant: settings_of(run) for variant, run in variants.items()}
    known = list(METHODS)

    def order(variant: str) -> tuple[int, int, str]:
        agent = variants[variant].agent
        rank = known.index(agent) if agent in known else len(known)
        return rank, len(words[variant]), variant

    names = {}
    for variant in sorted(variants, key=order):
        agent = variants[variant].agent
        siblings = [words[other] for other, run in variants.items() if run.agent == agent]
        differences = ", ".join(
            text
            for key, text in words[variant].items()
            if any(sibling.get(key) != text for sibling in siblings)
        )
        name = METHODS.get(agent, agent)
        names[variant] = f"{name} ({differences})" if differences else name
    return names


def settings_of(run: RecordedRun) -> dict[str, str]:
    """All settings in which variants of an agent can differ, such as ``kl_coef=0.5``."""
    values = {**run.arguments, **{f"env.{key}": v for key, v in run.env_arguments.items()}}
    words = {key: f"{key}={json.dumps(value)}" for key, value in values.items()}
    return {"preset": run.preset, **words, "n_envs": f"n_envs={run.n_envs}"}


def compared_steps(runs: Sequence[RecordedRun]) -> list[int]:
    """Simulator steps at which runs on one setting are compared.

    These are the paper's steps at which any run was evaluated. If there are none, it is the step at
    which most finished runs (or most runs, while none is finished) were evaluated; of several such
    steps, the last.
    """
    evaluated = [run for run in runs if run.returns]
    of_paper = [steps for steps in PAPER_STEPS if any(steps in run.returns for run in evaluated)]
    if of_paper or not evaluated:
        return of_paper
    finished = [run for run in evaluated if run.state == "finished"]
    counts = Counter(steps for run in finished or evaluated for steps in run.returns)
    return [max(counts, key=lambda steps: (counts[steps], steps))]
