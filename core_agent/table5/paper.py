"""Table 5 of arXiv:2112.01163, and the names of its rows in this package."""

from __future__ import annotations

import csv
import functools
from importlib import resources
from typing import NamedTuple

from core_agent.environments import suite

METHODS = {
    "core": "CoRe",
    "recurrent_sac": "Recurrent SAC+RAD",
    "curl": "CURL",
    "sacrad": "SAC+RAD",
    "qtopt_rad": "QT-Opt+RAD",
    "qtopt_drq": "QT-Opt+DrQ",
}
"""The name that the table has for each of :data:`core_agent.agents.registry.AGENTS`."""
TASKS, DIFFICULTIES = tuple(suite.TASKS), tuple(suite.DIFFICULTIES)
DISTRACTIONS = ("static", "dynamic")
PAPER_STEPS = (500_000, 1_000_000)
"""Simulator steps at which the paper evaluates; the later one only for CoRe."""
N_PAPER_SEEDS = 5


class Setting(NamedTuple):
    """A task and its distractions."""

    task: str
    """For an environment that is not of the suite, its id."""
    difficulty: str = ""
    distraction: str = ""
    """Empty, as the difficulty is, where there is none."""

    @property
    def is_of_suite(self) -> bool:
        """True where an episode has 1,000 simulator steps with rewards of at most 1."""
        return self.task in TASKS

    @property
    def order(self) -> tuple[int, int, str]:
        """Easy before hard, static before dynamic, tasks by name; undistracted settings first."""
        return (
            ("", *DIFFICULTIES).index(self.difficulty),
            ("", *DISTRACTIONS).index(self.distraction),
            self.task,
        )


class PaperResult(NamedTuple):
    """Mean return per 1,000 simulator steps over 5 seeds, and its standard error."""

    mean: float
    standard_error: float


def parse_setting(env_id: str) -> Setting:
    """The setting of an environment's id, such as ``DCS-cheetah-run-easy-dynamic``."""
    try:
        named = suite.parse_env_id(env_id)
    except ValueError:
        return Setting(env_id)
    task = f"{named.domain}-{named.task}"
    if named.difficulty is None:
        return Setting(task)
    return Setting(task, named.difficulty, DISTRACTIONS[named.dynamic])


@functools.cache
def read_table5() -> dict[tuple[Setting, str, int], PaperResult]:
    """Table 5, by setting, method and simulator steps; the task of a row of means is ``"mean"``."""
    file = resources.files("core_agent.table5") / "table5.csv"
    results = {}
    for row in csv.DictReader(file.read_text().splitlines()):
        setting = Setting(row["task"], row["difficulty"], row["distraction"])
        key = (setting, row["method"], int(row["simulator_steps"]))
        results[key] = PaperResult(float(row["mean_return"]), float(row["standard_error"]))
    return results


def find_paper_result(agent: str, setting: Setting, steps: int) -> PaperResult | None:
    """The result of an agent in Table 5; ``None`` if the table has none.

    :param agent: a key of :data:`METHODS`, or any other name
    :param steps: simulator steps
    """
    return read_table5().get((setting, METHODS.get(agent, agent), steps))
