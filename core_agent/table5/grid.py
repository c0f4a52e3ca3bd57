"""The paper's Table 5 as a grid of runs: agents × tasks × difficulties × distractions × seeds.

Each run has a folder of its own, ``agent/environment/seed-n``, and can be started, killed and
continued at any time, by this process or another; a finished run is left alone. Next to what
:mod:`core_agent.runs.training` leaves there, the folder holds::

    status.json        state, error, speed, precisions used, versions
    evaluations.jsonl  returns at fixed steps, deterministic policy, validation videos
    episodes.jsonl     training episodes
    losses.jsonl       means of the losses between two episodes
    validation.mp4     an episode of the last evaluation
"""

from __future__ import annotations

import itertools
import json
import platform
import re
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from core_agent.agents.loop import PAPER_SIMULATOR_STEPS
from core_agent.agents.presets import preset
from core_agent.agents.registry import get_agent
from core_agent.environments.suite import bare_id, first_seed
from core_agent.networks.hardware import used_precision
from core_agent.runs.callbacks import next_multiple
from core_agent.runs.evaluation import play
from core_agent.runs.training import (
    RUN_FILE,
    Run,
    check_same_run,
    has_checkpoints,
    is_locked,
    read_lines,
    train_run,
    training_environment,
    write_whole,
)
from core_agent.runs.video import FRAMES_PER_SECOND, write_mp4
from core_agent.saving.checkpoint import library_versions
from core_agent.table5.paper import DIFFICULTIES, DISTRACTIONS, N_PAPER_SEEDS, TASKS
from core_agent.validation import SIZE, check, check_arguments, whole

EPISODE_STEPS = 1_000
"""Simulator steps in an episode of the Distracting Control Suite."""
LOCK_PATIENCE = 300.0
"""Seconds to wait for a process that died on another machine to release its run."""


class RunInterruptedError(RuntimeError):
    """A run was stopped by a signal; it continues from its checkpoint when it is run again."""

    def __init__(self, folder: Path, signal: Signals) -> None:
        super().__init__(folder, signal)
        self.folder, self.signal = folder, signal

    def __str__(self) -> str:
        return f"{self.folder} was stopped by {self.signal.name}"


@dataclass(frozen=True)
class Suite:
    """A grid of runs and how each is made."""

    agents: tuple[str, ...] = ("core",)
    tasks: tuple[str, ...] = TASKS
    difficulties: tuple[str, ...] = DIFFICULTIES
    distractions: tuple[str, ...] = DISTRACTIONS
    seeds: tuple[int, ...] = tuple(range(N_PAPER_SEEDS))
    preset: str = "paper"
    simulator_steps: int = PAPER_SIMULATOR_STEPS
    evaluate_every: int = 100_000
    """Simulator steps between two evaluations."""
    n_episodes: int = 20
    """Episodes of an evaluation."""
    checkpoint_every: int = 2_500
    """Agent steps between two checkpoints."""

    def __post_init__(self) -> None:
        known = {"tasks": TASKS, "difficulties": DIFFICULTIES, "distractions": DISTRACTIONS}
        for name in ("agents", *known, "seeds"):
            values = getattr(self, name)
            check(bool(values), name, "hold at least one", values)
            unknown = [value for value in values if value not in known.get(name, values)]
            check(not unknown, name, f"be among {known.get(name)}", unknown)
        for agent in self.agents:
            get_agent(agent)
            preset(self.preset, agent)
        for seed in self.seeds:
            whole(0)("seeds", seed)
        counts = ("simulator_steps", "evaluate_every", "n_episodes", "checkpoint_every")
        check_arguments(dict.fromkeys(counts, SIZE), vars(self))

    def jobs(self) -> list[Job]:
        """One job per run, sorted by seed, so that an unfinished grid already has all settings."""
        grid = itertools.product(
            self.seeds, self.agents, self.tasks, self.difficulties, self.distractions
        )
        plan = (self.simulator_steps, self.evaluate_every, self.n_episodes, self.checkpoint_every)
        return [
            Job(Run(f"DCS-{task}-{difficulty}-{distraction}", agent, self.preset, seed), *plan)
            for seed, agent, task, difficulty, distraction in grid
        ]


SUITES: dict[str, Suite] = {
    "easy": Suite(difficulties=("easy",)),
    "medium": Suite(difficulties=("medium",)),
    "hard": Suite(difficulties=("hard",)),
    "all": Suite(),
    "smoke": Suite(
        agents=("core", "recurrent_sac"),
        tasks=("ball_in_cup-catch", "cheetah-run", "reacher-easy"),
        difficulties=("easy",),
        distractions=("dynamic",),
        seeds=(0, 1),
        preset="small",
        simulator_steps=8_000,
        evaluate_every=4_000,
        n_episodes=5,
        checkpoint_every=1_000,
    ),
}


def get_suite(name: str, **changes: Any) -> Suite:
    """The suite of that name, changed in some fields; ``None`` leaves a field as it is.

    :raises ValueError: for an unknown name or a bad field
    """
    check(name in SUITES, "suite", f"be one of {tuple(SUITES)}", name)
    return replace(SUITES[name], **{k: v for k, v in changes.items() if v is not None})


@dataclass(frozen=True)
class Job:
    """One run of the grid."""

    run: Run
    simulator_steps: int
    evaluate_every: int
    n_episodes: int
    checkpoint_every: int

    def folder(self, root: Path) -> Path:
        """The run's folder below ``root``."""
        return root / self.run.agent / self.run.env_id / f"seed-{self.run.seed}"


def take_shard(jobs: Sequence[Job], shard: str) -> list[Job]:
    """Every ``n``-th job, starting with the ``i``-th, of ``"i/n"``.

    :raises ValueError: unless ``1 <= i <= n``
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    index, count = map(int, match.groups()) if match else (0, 0)
    rule = "have the form i/n with 1 <= i <= n, such as 1/4"
    check(1 <= index <= count, "shard", rule, shard)
    return list(jobs[index - 1 :: count])


# ---- the record of a run ----

STATES = ("finished", "running", "interrupted", "failed", "not started")


def read_status(folder: Path) -> dict[str, Any]:
    """The content of ``status.json``; ``{"state": "not started"}`` without one.

    A run of this machine whose process has died is ``"interrupted"``, not ``"running"``.
    """
    path = folder / "status.json"
    status = json.loads(path.read_text()) if path.is_file() else {"state": "not started"}
    is_here = status["state"] == "running" and status.get("host") == platform.node()
    if is_here and not is_locked(folder):
        status["state"] = "interrupted"
    return status


class Recorder(BaseCallback):
    """Writes a run's record; entries later than the checkpoint it resumes from are replaced.

    :param job: the run
    :param folder: the run's folder
    """

    def __init__(self, job: Job, folder: Path) -> None:
        super().__init__()
        self.job, self.folder = job, folder
        status = read_status(folder)
        self.attempts = status.get("attempts", 0) + 1
        self.precisions: set[str] = set(status.get("precisions", ()))

    def _on_training_start(self) -> None:
        self._action_repeat = self.model.action_repeat  # type: ignore[attr-defined]
        # A run may continue on a machine where "auto" chooses another precision.
        precision = self.model.precision  # type: ignore[attr-defined]
        self.precisions.add(used_precision(precision, self.model.device))
        self._clock_before = 0.0
        for name in ("evaluations", "episodes", "losses"):
            path = self.folder / f"{name}.jsonl"
            kept = [e for e in read_lines(path) if e["agent_steps"] <= self.model.num_timesteps]
            self._clock_before = max([self._clock_before, *(e["wall_clock_seconds"] for e in kept)])
            write_whole(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._started = time.perf_counter()
        self._first = self.model.num_timesteps, self.model._n_updates
        self._n_updates = self.model._n_updates
        self._losses: dict[str, tuple[float, int]] = {}
        # A run may be resumed between an episode and its updates.
        self._episode_ended = bool(self.model._progress.updates_due)  # type: ignore[attr-defined]
        self._val_env = training_environment(self.job.run, "val")
        self.model.when_learning_ends(lambda _: self._val_env.close())  # type: ignore[attr-defined]
        evaluated = read_lines(self.folder / "evaluations.jsonl")
        self._evaluated_at = evaluated[-1]["simulator_steps"] if evaluated else 0
        self._write_status()

    @property
    def _clock(self) -> float:
        """Seconds of training, over all processes that worked on the run."""
        return self._clock_before + time.perf_counter() - self._started

    @property
    def _simulator_steps(self) -> int:
        return self.num_timesteps * self._action_repeat

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        steps = {"agent_steps": self.num_timesteps, "simulator_steps": self._simulator_steps}
        with (self.folder / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps({**steps, **entry, "wall_clock_seconds": self._clock}) + "\n")

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._append("episodes", {"return": float(info["episode"]["r"])})
                self._episode_ended = True
        due = next_multiple(self.job.evaluate_every, self._evaluated_at)
        if due <= self._simulator_steps < self.job.simulator_steps:
            self._evaluate()
        return True

    def _on_rollout_start(self) -> None:
        # Feed-forward agents make an update, and so begin a rollout, at each step.
        n_new = self.model._n_updates - self._n_updates
        if n_new:
            self._n_updates += n_new
            for key, value in self.logger.name_to_value.items():
                if key.startswith("train/") and key != "train/n_updates":
                    total, n_updates = self._losses.get(key, (0.0, 0))
                    self._losses[key] = total + n_new * float(value), n_updates + n_new
        if self._losses and self._episode_ended:
            means = {key: total / n_updates for key, (total, n_updates) in self._losses.items()}
            self._append("losses", {"updates": self._n_updates, **means})
            self._losses, self._episode_ended = {}, False
            self._write_status()

    def _on_training_end(self) -> None:
        # The last evaluation is of the model that is saved: after the last updates.
        is_done = self._simulator_steps >= self.job.simulator_steps
        unfinished = self.model._is_unfinished  # type: ignore[attr-defined]
        if is_done and not unfinished and self._evaluated_at != self._simulator_steps:
            self._evaluate()
        self._write_status()

    def _evaluate(self) -> None:
        """Play complete episodes on validation videos, the same each time."""
        seed = first_seed(self.job.run.seed, split="val")
        episodes = play(self._val_env, self.model, self.job.n_episodes, seed=seed, record="first")
        returns = [episode.episode_return for episode in episodes]
        self._append("evaluations", {"returns": returns})
        write_mp4(self.folder / "validation.mp4", episodes[0].frames, FRAMES_PER_SECOND)
        self._evaluated_at = self._simulator_steps

    def _write_status(self) -> None:
        seconds = max(time.perf_counter() - self._started, 1e-9)
        update_status(
            self.folder,
            state="running",
            error=None,
            attempts=self.attempts,
            agent_steps=self.num_timesteps,
            simulator_steps=self._simulator_steps,
            action_repeat=self._action_repeat,
            updates=self.model._n_updates,
            wall_clock_seconds=self._clock,
            steps_per_second=(self.num_timesteps - self._first[0]) / seconds,
            updates_per_second=(self.model._n_updates - self._first[1]) / seconds,
            precisions=sorted(self.precisions),
            host=platform.node(),
            versions=library_versions(),
        )


def read_job_status(job: Job, root: Path) -> dict[str, Any]:
    """:func:`read_status` of a job's run; ``"interrupted"`` if a finished run is to be longer now.

    :raises ValueError: if the folder has another run, which has begun
    """
    folder = job.folder(root)
    status = read_status(folder)
    if status["state"] == "finished" or has_checkpoints(folder):
        check_same_run(folder / RUN_FILE, replace(job.run, env_id=bare_id(job.run.env_id)))
    if status["state"] == "finished" and status.get("simulator_steps", 0) < job.simulator_steps:
        status["state"] = "interrupted"
    return status


def run_job(job: Job, root: Path, progress: bool = False) -> str:
    """Do what is left of a run; a finished run is only continued if it is to be longer now.

    If the run fails, its error is written to its ``status.json`` and not raised.

    :param progress: show a progress bar
    :return: ``"finished"`` or ``"failed"``
    :raises RunInterruptedError: if a signal stopped the run; call again to continue it
    :raises ValueError: if the folder has another run, which is left as it is
    """
    if read_job_status(job, root)["state"] == "finished":
        return "finished"
    folder = job.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    if not has_checkpoints(folder):
        # A run that fails before it starts still has to say what it is.
        write_whole(folder / RUN_FILE, json.dumps(asdict(job.run), indent=1))
    try:
        outcome = train_run(
            job.run,
            folder,
            simulator_steps=job.simulator_steps,
            resume=True,
            checkpoint_every=job.checkpoint_every,
            validate_every=0,
            callbacks=[Recorder(job, folder)],
            progress=progress,
            patience=LOCK_PATIENCE,
        )
    except Exception:
        update_status(folder, state="failed", error=traceback.format_exc())
        return "failed"
    except KeyboardInterrupt:  # before or after the steps and updates, which end at a checkpoint
        update_status(folder, state="interrupted")
        raise RunInterruptedError(folder, Signals.SIGINT) from None
    if outcome.interrupted_by is not None:
        update_status(folder, state="interrupted")
        raise RunInterruptedError(folder, outcome.interrupted_by)
    update_status(folder, state="finished", error=None)
    return "finished"


def update_status(folder: Path, **changes: Any) -> None:
    """Change some entries of ``status.json``; the folder is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    status = {**read_status(folder), **changes}
    write_whole(folder / "status.json", json.dumps(status, indent=1))
