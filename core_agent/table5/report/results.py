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
from core_agent.table5.report.study import Study, compared_steps
from core_agent.table5.statistics import (
    MINIMUM_SEEDS,
    MeanError,
    Strata,
    fewest_seeds,
    interquartile_mean,
    mean_and_standard_error,
    mean_over_tasks,
    normalized,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

THRESHOLDS = np.linspace(0.0, 1.0, 101)


class Estimate(NamedTuple):
    """A statistic and its interval."""

    value: float
    low: float | None
    """``None`` where a setting has fewer than 3 seeds."""
    high: float | None


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

    def iqm(self) -> dict[str, Estimate]:
        """Interquartile mean of each agent."""
        return {
            agent: estimate(interquartile_mean, strata) for agent, strata in self.scores.items()
        }

    def improvements(self) -> dict[str, Estimate]:
        """Probability that the first agent scores higher, by the other agent's name."""
        first, *others = self.scores
        return {
            other: estimate(probability_of_improvement, self.scores[first], self.scores[other])
            for other in others
        }

    def profiles(self) -> dict[str, list[Estimate]]:
        """For each agent the share of runs above each of :data:`THRESHOLDS`."""
        return {agent: profile(strata) for agent, strata in self.scores.items()}


class Speed(NamedTuple):
    """Mean speed of an agent's runs on a setting."""

    agent: str
    setting: Setting
    n_runs: int
    steps_per_second: float
    updates_per_second: float
    hours: float
    hosts: tuple[str, ...]


def estimate(statistic: Callable[..., np.ndarray], *samples: Strata) -> Estimate:
    """A statistic of scores, with its interval where every setting has at least 3 seeds."""
    value = float(statistic(*samples))
    if fewest_seeds(*samples) < MINIMUM_SEEDS:
        return Estimate(value, None, None)
    low, high = stratified_bootstrap(statistic, *samples)
    return Estimate(value, float(low), float(high))


def mean_of_seeds(strata: Strata) -> np.ndarray:
    """Mean over the seeds of all settings."""
    return np.concatenate(strata, axis=-1).mean(axis=-1)


def profile(strata: Strata) -> list[Estimate]:
    """Share of runs above each of :data:`THRESHOLDS`, with bands from 3 seeds on."""

    def statistic(strata: Strata) -> np.ndarray:
        return performance_profile(strata, THRESHOLDS)

    values = statistic(strata)
    if fewest_seeds(strata) < MINIMUM_SEEDS:
        return [Estimate(float(value), None, None) for value in values]
    low, high = stratified_bootstrap(statistic, strata)
    return [Estimate(*map(float, band)) for band in zip(values, low, high)]


def table_rows(study: Study) -> list[Row]:
    """Every agent on every setting, at the steps at which that setting's runs are compared."""
    rows = []
    for setting in study.settings:
        for steps in compared_steps(study.select(setting)):
            for agent in study.agents:
                scores = study.scores(agent, setting, steps)
                if scores.size:
                    rows.append(make_row(study, agent, setting, steps, scores))
    return rows


def make_row(study: Study, agent: str, setting: Setting, steps: int, scores: np.ndarray) -> Row:
    """One line of the table; other steps than the paper's are compared with its first ones."""
    paper_steps = steps if steps in PAPER_STEPS else PAPER_STEPS[0]
    paper = find_paper_result(study.paper_name(agent), setting, paper_steps)
    iqm = estimate(interquartile_mean, [scores])
    return Row(agent, setting, steps, mean_and_standard_error(scores), iqm, paper, paper_steps)


def mean_rows(study: Study, rows: Sequence[Row]) -> list[Row]:
    """For each agent, difficulty and kind of distraction the mean over the tasks that were run.

    The paper's mean is taken over the same tasks: the table's own where those are all six.
    """
    groups = defaultdict(list)
    for row in rows:
        if row.setting.is_of_suite:
            distractions = row.setting._replace(task="mean")
            groups[row.agent, distractions, row.paper_steps, row.is_at_paper_steps].append(row)
    return [
        mean_row(study, agent, distractions, group)
        for (agent, distractions, *_), group in groups.items()
        if len(group) > 1
    ]


def mean_row(study: Study, agent: str, setting: Setting, rows: Sequence[Row]) -> Row:
    """The mean of rows that differ in their task."""
    steps = {row.steps for row in rows}
    papers = [row.paper for row in rows if row.paper is not None]
    paper = None
    if len(papers) == len(TASKS):
        paper = find_paper_result(study.paper_name(agent), setting, rows[0].paper_steps)
    elif len(papers) == len(rows):
        mean = mean_over_tasks([MeanError(*result, N_PAPER_SEEDS) for result in papers])
        paper = PaperResult(mean.mean, mean.standard_error)
    return Row(
        agent,
        setting,
        steps.pop() if len(steps) == 1 else None,
        mean_over_tasks([row.result for row in rows]),
        None,
        paper,
        rows[0].paper_steps,
        len(rows),
    )


def learning_curve(study: Study, agent: str, setting: Setting) -> list[CurvePoint]:
    """Mean return over the seeds that were evaluated at each step."""
    runs = study.select(setting, agent)
    points = []
    for steps in sorted({entry.simulator_steps for run in runs for entry in run.evaluations}):
        scores = study.scores(agent, setting, steps)
        points.append(CurvePoint(steps, estimate(mean_of_seeds, [scores]), scores.size))
    return points


def aggregates(study: Study) -> list[Aggregate]:
    """Over the suite's settings: at each of the paper's steps, and at the others' last ones."""
    suite = [setting for setting in study.settings if setting.is_of_suite]
    steps_of = {setting: compared_steps(study.select(setting)) for setting in suite}
    result = []
    for steps in PAPER_STEPS:
        at = {setting: steps for setting, compared in steps_of.items() if steps in compared}
        result.append(aggregate(study, steps, at))
    last = {
        setting: compared[0]
        for setting, compared in steps_of.items()
        if compared and compared[0] not in PAPER_STEPS
    }
    result.append(aggregate(study, None, last))
    return [entry for entry in result if entry.settings or entry.left_out]


def aggregate(study: Study, steps: int | None, steps_of: dict[Setting, int]) -> Aggregate:
    """The scores of all agents on the settings that they share.

    :param steps: as it is shown
    :param steps_of: simulator steps at which each setting's scores are taken
    """
    scores: dict[str, dict[Setting, np.ndarray]] = {}
    for agent in study.agents:
        found = {s: study.scores(agent, s, at) for s, at in steps_of.items()}
        evaluated = {setting: values for setting, values in found.items() if values.size}
        if evaluated:
            scores[agent] = evaluated
    shared = [s for s in steps_of if all(s in by_setting for by_setting in scores.values())]
    return Aggregate(
        steps,
        shared,
        [setting for setting in steps_of if setting not in shared],
        {
            agent: [normalized(by_setting[setting]) for setting in shared]
            for agent, by_setting in scores.items()
        },
    )


def binned_means(
    points: Sequence[tuple[float, float]], n_bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean value at each step, or within equally many neighbouring steps if those are too many.

    :param points: ``(step, value)`` of all seeds
    :param n_bins: most points that come back
    """
    steps, values = np.array(sorted(points), dtype=float).reshape(-1, 2).T
    distinct, index = np.unique(steps, return_inverse=True)
    group = index * min(n_bins, len(distinct)) // len(distinct)
    counts = np.bincount(group)
    return np.bincount(group, steps) / counts, np.bincount(group, values) / counts


def speeds(study: Study) -> list[Speed]:
    """For each agent and setting, over the runs that have a speed."""
    result = []
    for setting in study.settings:
        for agent in study.agents:
            timed = [
                run.status
                for run in study.select(setting, agent)
                if "steps_per_second" in run.status
            ]
            if timed:
                result.append(mean_speed(agent, setting, timed))
    return result


def mean_speed(agent: str, setting: Setting, statuses: Sequence[dict[str, Any]]) -> Speed:
    """The mean over runs, given their statuses."""

    def mean(key: str) -> float:
        return float(np.mean([status.get(key, np.nan) for status in statuses]))

    return Speed(
        agent,
        setting,
        len(statuses),
        mean("steps_per_second"),
        mean("updates_per_second"),
        mean("wall_clock_seconds") / 3_600,
        tuple(sorted({str(status["host"]) for status in statuses if "host" in status})),
    )
