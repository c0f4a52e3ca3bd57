"""The state of a grid of runs as a table on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from core_agent.table5.grid import Estimate, Job, estimate_run, read_lines, read_status

STATES = ("finished", "running", "failed", "not begun")


def draw_table(jobs: Sequence[Job], root: Path) -> Table:
    """One row for each agent and environment: seeds by state, progress, returns, speed."""
    table = Table(title=f"{len(jobs)} runs in {root}")
    for column in ("agent", "environment"):
        table.add_column(column)
    for column in (*STATES, "progress", "return", "steps/s"):
        table.add_column(column, justify="right")
    by_setting = sorted(jobs, key=lambda job: (job.run.agent, job.run.env_id))
    for (agent, env_id), group in groupby(by_setting, lambda j: (j.run.agent, j.run.env_id)):
        seeds = list(group)
        statuses = [read_status(job.folder(root)) for job in seeds]
        counts = Counter(status["state"] for status in statuses)
        cells = [str(counts[state]) if counts[state] else "" for state in STATES]
        cells += [progress(seeds, statuses), returns(seeds, root), speed(statuses)]
        table.add_row(agent, env_id, *cells)
    return table


def draw_estimate(jobs: Sequence[Job], root: Path, price: float = 0.0) -> Table:
    """What the unfinished runs will take, from trying one of each agent on this machine.

    :param price: of an hour of one run; 0 leaves the cost out
    """
    left = [job for job in jobs if read_status(job.folder(root))["state"] != "finished"]
    table = Table(title=f"{len(left)} of {len(jobs)} runs to do, one at a time, on this machine")
    for column in ("agent", "runs", "simulator steps", "ms a step", "ms an update", "hours a run"):
        table.add_column(column, justify="right" if column != "agent" else "left")
    table.add_column("hours", justify="right")
    table.add_column("cost", justify="right")
    total = 0.0
    for agent, group in groupby(sorted(left, key=lambda j: j.run.agent), lambda j: j.run.agent):
        runs = list(group)
        estimates = [estimate_run(job) for job in one_of_each_task(runs)]
        estimate = Estimate(*np.mean(estimates, axis=0).tolist())
        hours = estimate.run / 3600
        total += hours * len(runs)
        table.add_row(
            agent,
            str(len(runs)),
            f"{sum(job.simulator_steps for job in runs):,}",
            f"{1e3 * estimate.step:.0f}",
            f"{1e3 * estimate.update:.0f}",
            f"{hours:.2f}",
            f"{hours * len(runs):.1f}",
            f"{hours * len(runs) * price:.2f}" if price else "–",
        )
    table.add_section()
    cost = f"{total * price:.2f}" if price else "–"
    table.add_row("all", str(len(left)), "", "", "", "", f"{total:.1f}", cost)
    return table


def one_of_each_task(jobs: Sequence[Job]) -> list[Job]:
    """One run of each task: steps differ in cost, and tasks in steps."""
    return list({job.run.env_id.rsplit("-", 2)[0]: job for job in jobs}.values())


def progress(jobs: Sequence[Job], statuses: Sequence[dict[str, Any]]) -> str:
    """Simulator steps made, as a share of those to make."""
    shares = [
        min(1.0, status.get("simulator_steps", 0) / job.simulator_steps)
        for job, status in zip(jobs, statuses)
    ]
    return f"{np.mean(shares):.0%}"


def returns(jobs: Sequence[Job], root: Path) -> str:
    """Mean of the last evaluations, and of how many seeds it is."""
    evaluations = [read_lines(job.folder(root) / "evaluations.jsonl") for job in jobs]
    last = [np.mean(lines[-1]["returns"]) for lines in evaluations if lines]
    return f"{np.mean(last):.0f} ({len(last)})" if last else "–"


def speed(statuses: Sequence[dict[str, Any]]) -> str:
    """Mean of the agent steps per second."""
    speeds = [s["steps_per_second"] for s in statuses if s.get("steps_per_second")]
    return f"{np.mean(speeds):.1f}" if speeds else "–"
