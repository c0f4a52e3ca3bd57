"""Runs of a report, each of them once, with the names of their agents."""

from __future__ import annotations

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core_agent.table5.paper import METHODS, PAPER_STEPS, Setting
from core_agent.table5.report.runs import RecordedRun


@dataclass(frozen=True)
class Study:
    """Runs, each of them once, and the names of their agents."""

    runs: list[RecordedRun]
    names: dict[str, str]
    """Of the agents, by :attr:`RecordedRun.variant`, in the order in which they are shown."""
    duplicates: list[RecordedRun]
    """Left out, because another folder has the same run with more steps."""

    @property
    def agents(self) -> list[str]:
        return list(self.names.values())

    @property
    def settings(self) -> list[Setting]:
        return sorted({run.setting for run in self.runs}, key=lambda setting: setting.order)

    def name(self, run: RecordedRun) -> str:
        """The name of a run's agent."""
        return self.names[run.variant]

    @functools.cached_property
    def _groups(self) -> dict[tuple[Setting, str], list[RecordedRun]]:
        groups = defaultdict(list)
        for run in self.runs:
            groups[run.setting, self.name(run)].append(run)
        return groups

    def select(self, setting: Setting, *agents: str) -> list[RecordedRun]:
        """The runs on a setting, by default those of all agents."""
        chosen = agents or self.agents
        return [run for agent in chosen for run in self._groups.get((setting, agent), [])]

    def scores(self, agent: str, setting: Setting, steps: int) -> np.ndarray:
        """Mean returns of an agent's seeds that were evaluated at a step, ``(n_seeds,)``."""
        found = (run.evaluation_at(steps) for run in self.select(setting, agent))
        return np.array([evaluation.score for evaluation in found if evaluation is not None])

    def paper_name(self, agent: str) -> str:
        """The agent's key in :data:`~core_agent.table5.paper.METHODS`, whatever its arguments."""
        return next(run.agent for run in self.runs if self.name(run) == agent)


def make_study(runs: Sequence[RecordedRun]) -> Study:
    """Name the agents, and keep one of several equal runs: that with the most steps."""
    furthest: dict[tuple[str, str, int], RecordedRun] = {}
    for run in sorted(runs, key=progress, reverse=True):
        furthest.setdefault((run.variant, run.env_id, run.seed), run)
    kept = sorted(furthest.values(), key=lambda run: (run.setting.order, run.seed))
    folders = {run.folder for run in kept}
    return Study(kept, name_agents(kept), [run for run in runs if run.folder not in folders])


def progress(run: RecordedRun) -> tuple[bool, int]:
    """Finished runs come after others, and those with more steps after those with fewer."""
    return run.state == "finished", run.status.get("agent_steps", 0)


def name_agents(runs: Sequence[RecordedRun]) -> dict[str, str]:
    """Names by variant: the paper's, with the differences of variants in brackets."""
    variants = {run.variant: run for run in runs}
    siblings = defaultdict(list)
    for run in variants.values():
        siblings[run.agent].append(settings_of(run))
    names = {}
    for variant in sorted(variants, key=lambda variant: agent_order(variants[variant])):
        run = variants[variant]
        name = METHODS.get(run.agent, run.agent)
        differences = describe_differences(settings_of(run), siblings[run.agent])
        names[variant] = f"{name} ({differences})" if differences else name
    return names


def agent_order(run: RecordedRun) -> tuple[int, int, str]:
    """CoRe first, the others as :data:`METHODS` has them, then unknown ones; ablations follow."""
    known = list(METHODS)
    rank = known.index(run.agent) if run.agent in known else len(known)
    return rank, len(settings_of(run)), run.variant


def settings_of(run: RecordedRun) -> dict[str, str]:
    """All settings in which variants of an agent can differ, in words."""
    of_env = {f"env.{key}": value for key, value in run.env_arguments.items()}
    words = {
        key: f"{key}={json.dumps(value)}" for key, value in {**run.arguments, **of_env}.items()
    }
    return {"preset": run.preset, **words, "n_envs": f"n_envs={run.n_envs}"}


def describe_differences(settings: dict[str, str], siblings: list[dict[str, str]]) -> str:
    """The settings that not all siblings share, such as ``small, kl_coef=0.5``."""
    return ", ".join(
        words
        for key, words in settings.items()
        if any(sibling.get(key) != words for sibling in siblings)
    )


def compared_steps(runs: Sequence[RecordedRun]) -> list[int]:
    """Simulator steps at which runs on one setting are compared.

    Those of the paper that any run was evaluated at; before that, the last step that most of the
    finished runs (of all runs while none is finished) were evaluated at.
    """
    evaluated = [run for run in runs if run.evaluations]
    finished = [run for run in evaluated if run.state == "finished"]
    counts = Counter(
        entry.simulator_steps for run in finished or evaluated for entry in run.evaluations
    )
    reached = {entry.simulator_steps for run in evaluated for entry in run.evaluations}
    of_paper = [steps for steps in PAPER_STEPS if steps in reached]
    if of_paper or not counts:
        return of_paper
    return [max(counts, key=lambda steps: (counts[steps], steps))]
