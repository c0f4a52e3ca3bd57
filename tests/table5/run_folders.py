"""Folders of runs with known numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core_agent.runs.video import write_mp4
from core_agent.table5.report.runs import Study, make_study, read_runs

ACTION_REPEAT = 4
STATUS = {
    "state": "finished",
    "error": None,
    "attempts": 1,
    "agent_steps": 125_000,
    "simulator_steps": 500_000,
    "updates": 62_000,
    "wall_clock_seconds": 7_200.0,
    "steps_per_second": 17.5,
    "updates_per_second": 8.5,
    "precisions": ["bfloat16"],
    "host": "node-1",
    "versions": {"python": "3.11.2", "torch": "2.13.0"},
    "action_repeat": ACTION_REPEAT,
}


def write_run(
    folder: Path,
    scores: Mapping[int, float] | None = None,
    losses: Mapping[str, Sequence[float]] | None = None,
    status: dict[str, Any] | None = STATUS,
    video: bool = False,
    n_episodes: int = 20,
    **run: Any,
) -> Path:
    """Write a run's folder.

    :param folder: created
    :param scores: mean return by simulator steps; the episodes' returns lie evenly around it
    :param losses: by key, one for each rollout of 250 agent steps
    :param status: of ``status.json``; ``None``: there is none
    :param video: a short one is written
    :param n_episodes: of each evaluation
    :param run: of ``run.json``, on top of CoRe on an easy cheetah with the built-in videos
    """
    folder.mkdir(parents=True)
    complete_run = {
        "env_id": "DCS-cheetah-run-easy-dynamic",
        "agent": "core",
        "preset": "small",
        "seed": 0,
        "arguments": {},
        "env_arguments": {"video_path": "builtin"},
        **run,
    }
    (folder / "run.json").write_text(json.dumps(complete_run))
    if status is not None:
        (folder / "status.json").write_text(json.dumps(status))
    write_lines(
        folder / "evaluations.jsonl",
        (
            {
                "agent_steps": steps // ACTION_REPEAT,
                "simulator_steps": steps,
                "returns": (score + np.linspace(-5, 5, n_episodes)).tolist(),
                "wall_clock_seconds": 1.0,
            }
            for steps, score in (scores or {}).items()
        ),
    )
    if losses:
        write_losses(folder, losses)
    if video:
        write_mp4(folder / "validation.mp4", list(moving_square(24)), 12)
    return folder


def study_of(folder: Path) -> Study:
    return make_study(read_runs([folder])[0])


def write_losses(folder: Path, losses: Mapping[str, Sequence[float]]) -> None:
    """Losses, and training episodes whose returns are 1, 2, 3, …"""
    logged = [dict(zip(losses, values)) for values in zip(*losses.values())]
    steps = [{"agent_steps": 250 * (i + 1)} for i in range(len(logged))]
    write_lines(folder / "losses.jsonl", ({**at, **entry} for at, entry in zip(steps, logged)))
    episodes = ({**at, "return": i + 1.0} for i, at in enumerate(steps))
    write_lines(folder / "episodes.jsonl", episodes)


def write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


def moving_square(n_frames: int) -> Iterable[np.ndarray]:
    for i in range(n_frames):
        frame = np.full((240, 320, 3), 40, np.uint8)
        frame[100:140, 8 * i : 8 * i + 40] = (240, 180, 60)
        yield frame
