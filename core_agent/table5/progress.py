"""How far the runs of a grid are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from core_agent.runs.training import read_lines
from core_agent.table5.grid import STATES, Job, read_job_status


def list_runs(jobs: Sequence[Job], root: Path) -> list[dict[str, Any]]:
    """One entry for each run, as plain data.

    ``progress`` is in [0, 1]; ``return`` is the mean of the last evaluation, ``None`` before it. A
    job whose folder has another run is ``"not started"``, and ``error`` says why it cannot be.
    """
    runs = []
    for job in jobs:
        folder = job.folder(root)
        try:
            status = read_job_status(job, root)
            evaluations = read_lines(folder / "evaluations.jsonl")
        except ValueError as error:  # The folder has another run.
            status, evaluations = {"state": "not started", "error": str(error)}, []
        simulator_steps = status.get("simulator_steps") or 0
        runs.append(
            {
                "agent": job.run.agent,
                "env_id": job.run.env_id,
                "seed": job.run.seed,
                "folder": str(folder),
                "state": status["state"],
                "simulator_steps": simulator_steps,
                "progress": min(1.0, simulator_steps / job.simulator_steps),
                "return": float(np.mean(evaluations[-1]["returns"])) if evaluations else None,
                "steps_per_second": status.get("steps_per_second"),
                "error": status.get("error"),
            }
        )
    return runs


def draw_table(jobs: Sequence[Job], root: Path) -> Table:
    """One row for each agent and environment: seeds by state, progress, returns, speed.

    The return is the mean of the seeds' last evaluations, followed by the number of these seeds.
    """
    table = Table("agent", "environment", title=f"{len(jobs)} runs in {root}")
    for column in (*STATES, "progress", "return", "steps/s"):
        table.add_column(column, justify="right")

    def setting(run: dict[str, Any]) -> tuple[str, str]:
        return run["agent"], run["env_id"]

    for names, group in groupby(sorted(list_runs(jobs, root), key=setting), setting):
        seeds = list(group)
        counts = Counter(run["state"] for run in seeds)
        returns = [run["return"] for run in seeds if run["return"] is not None]
        speeds = [run["steps_per_second"] for run in seeds if run["steps_per_second"]]
        table.add_row(
            *names,
            *(str(counts[state] or "") for state in STATES),
            f"{np.mean([run['progress'] for run in seeds]):.0%}",
            f"{np.mean(returns):.0f} ({len(returns)})" if returns else "–",
            f"{np.mean(speeds):.1f}" if speeds else "–",
        )
    return table
