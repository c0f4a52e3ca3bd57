"""The numbers of the report, computed by :mod:`core_agent.table5.statistics`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from core_agent.table5.paper import (
    N_PAPER_SEEDS,
    PAPER_STEPS,
    TASKS,
    PaperResult,
    Setting,
    find_paper_result,
)
from core_agent.table5.report.runs import Study, compared_steps
from core_agent.table5.statistics import (
    MINIMUM_SEEDS,
    MeanError,
    Strata,
    fewest_seeds,
    interquartile_mean,
    mean_and_standard_error,
    mean_over_tasks,
    normalized,
    stratified_bootstrap,
)


class Estimate(NamedTuple):
    """A statistic and its interval, of the statistic's shape."""

    value: np.ndarray
    low: np.ndarray | None = None
    """``None`` where a setting has fewer than 3 seeds."""
    high: np.ndarray | None = None


class Row(NamedTuple):
    """One agent on one setting, or its mean over tasks, and the paper's result."""

    agent: str
    setting: Setting
    steps: int | None
    """Simulator steps; ``None`` if those of the tasks differ."""
    result: MeanError
    iqm: Estimate | None
    """Of the returns; ``None`` for a mean over tasks."""
    paper: PaperResult | None
    paper_steps: int
    n_tasks: int = 1

    @property
    def is_at_paper_steps(self) -> bool:
        return self.steps == self.paper_steps

    @property
    def difference(self) -> MeanError | None:
        """Our mean minus the paper's, and its standard error."""
        if self.paper is None:
            return None
        error = float(np.hypot(self.result.standard_error, self.paper.standard_error))
        return MeanError(self.result.mean - self.paper.mean, error, self.result.n_seeds)


class CurvePoint(NamedTuple):
    """Return of an agent on a setting at one step, over seeds."""

    steps: int
    mean: Estimate
    n_seeds: int


class Aggregate(NamedTuple):
    """Agents over all settings that each of them was evaluated on, at the same steps."""

    steps: int | None
    """Simulator steps; ``None``: those of each setting's last evaluation."""
    settings: list[Setting]
    left_out: list[Setting]
    """Settings on which not every agent was evaluated."""
    scores: dict[str, list[np.ndarray]]
    """By agent: for each setting, returns / 1,000, ``(n_seeds,)``."""

    @property
    def n_seeds(self) -> int:
        """The smallest number of seeds of any agent and setting."""
        return fewest_seeds(*self.scores.values())


def estimate(statistic: Callable[..., np.ndarray], *samples: Strata) -> Estimate:
    """A statistic of scores, with its interval where every setting has at least 3 seeds."""
    value = statistic(*samples)
    if fewest_seeds(*samples) < MINIMUM_SEEDS:
        return Estimate(value)
    return Estimate(value, *stratified_bootstrap(statistic, *samples))


def table_rows(study: Study) -> list[Row]:
    """Every agent on every setting, at the steps at which that setting's runs are compared.

    Other steps than the paper's are compared with its first ones.
    """
    rows = []
    for setting in study.settings:
        for steps in compared_steps(study.select(setting)):
            paper_steps = steps if steps in PAPER_STEPS else PAPER_STEPS[0]
            for agent in study.agents:
                scores = study.scores(agent, setting, steps)
                if scores.size:
                    result = mean_and_standard_error(scores)
                    iqm = estimate(interquartile_mean, [scores])
                    paper = find_paper_result(study.paper_name(agent), setting, paper_steps)
                    rows.append(Row(agent, setting, steps, result, iqm, paper, paper_steps))
    return rows


def mean_rows(study: Study, rows: Sequence[Row]) -> list[Row]:
    """For each agent, difficulty and kind of distraction the mean over the tasks that were run.

    The paper's mean is taken over the same tasks: the table's own where those are all six.
    """
    groups = defaultdict(list)
    for row in rows:
        if row.setting.is_of_suite:
            distractions = row.setting._replace(task="mean")
            groups[row.agent, distractions, row.paper_steps, row.is_at_paper_steps].append(row)
    means = []
    for (agent, setting, paper_steps, _), group in groups.items():
        if len(group) == 1:
            continue
        papers = [MeanError(*row.paper, N_PAPER_SEEDS) for row in group if row.paper is not None]
        paper = None
        if len(papers) == len(TASKS):
            paper = find_paper_result(study.paper_name(agent), setting, paper_steps)
        elif len(papers) == len(group):
            paper = PaperResult(*mean_over_tasks(papers)[:2])
        steps = {row.steps for row in group}
        common = steps.pop() if len(steps) == 1 else None
        result = mean_over_tasks([row.result for row in group])
        means.append(Row(agent, setting, common, result, None, paper, paper_steps, len(group)))
    return means


def learning_curve(study: Study, agent: str, setting: Setting) -> list[CurvePoint]:
    """Mean return over the seeds that were evaluated at each step."""

    def mean(strata: Strata) -> np.ndarray:
        return strata[0].mean(axis=-1)

    points = []
    for steps in sorted({at for run in study.select(setting, agent) for at in run.returns}):
        scores = study.scores(agent, setting, steps)
        points.append(CurvePoint(steps, estimate(mean, [scores]), scores.size))
    return points


def aggregates(study: Study) -> list[Aggregate]:
    """Aggregates over the suite's settings: one for each of the paper's steps, one for other steps.

    Scores are those of the settings on which all agents were evaluated.
    """
    steps_of: dict[int | None, dict[Setting, int]] = {steps: {} for steps in (*PAPER_STEPS, None)}
    for setting in study.settings:
        if setting.is_of_suite:
            for steps in compared_steps(study.select(setting)):
                steps_of[steps if steps in PAPER_STEPS else None][setting] = steps
    result = []
    for at_steps, at in steps_of.items():
        found = {agent: {s: study.scores(agent, s, at[s]) for s in at} for agent in study.agents}
        evaluated = {agent: of for agent, of in found.items() if any(s.size for s in of.values())}
        shared = [setting for setting in at if all(of[setting].size for of in evaluated.values())]
        left_out = [setting for setting in at if setting not in shared]
        scores = {agent: [normalized(of[s]) for s in shared] for agent, of in evaluated.items()}
        if at:
            result.append(Aggregate(at_steps, shared, left_out, scores))
    return result


def binned_means(
    points: Sequence[tuple[float, float]], n_bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean value at each step; if there are too many steps, over groups of neighbouring steps.

    :param points: ``(step, value)`` of all seeds
    :param n_bins: largest number of points to return; the groups have equally many steps
    """
    steps, values = np.array(sorted(points), dtype=float).reshape(-1, 2).T
    distinct, index = np.unique(steps, return_inverse=True)
    group = index * min(n_bins, len(distinct)) // len(distinct)
    counts = np.bincount(group)
    return np.bincount(group, steps) / counts, np.bincount(group, values) / counts


def speeds(study: Study) -> list[dict[str, Any]]:
    """Means over the runs of each agent on each setting that have a speed."""
    keys = ("steps_per_second", "updates_per_second", "wall_clock_seconds")
    result = []
    for setting in study.settings:
        for agent in study.agents:
            statuses = [run.status for run in study.select(setting, agent)]
            timed = [status for status in statuses if keys[0] in status]
            if timed:
                means = {key: np.mean([s.get(key, np.nan) for s in timed]) for key in keys}
                hosts = sorted({str(status["host"]) for status in timed if "host" in status})
                of = dict(agent=agent, setting=setting, n_runs=len(timed), hosts=hosts)
                result.append({**of, **means})
    return result
