"""The paper's Table 5 as a grid of runs: agents × tasks × difficulties × distractions × seeds.

Each run has a folder of its own, ``agent/environment/seed-n``, and can be begun, killed and gone on
with at any time, by this process or another; a run that is finished is left alone. Beside what
:mod:`core_agent.runs.training` leaves there, the folder holds::

    status.json        state, error, speed, versions
    evaluations.jsonl  returns at fixed steps, deterministic policy, validation videos
    episodes.jsonl     training episodes
    losses.jsonl       means of the losses between two episodes
    validation.mp4     an episode of the last evaluation
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from core_agent.agents.base import (
    PAPER_SIMULATOR_STEPS,
    SequenceOffPolicyAlgorithm,
    as_train_freq,
)
from core_agent.agents.presets import preset
from core_agent.agents.registry import get_agent
from core_agent.runs.callbacks import next_multiple
from core_agent.runs.evaluation import play
from core_agent.runs.training import RUN_FILE, Run, train_run, training_environment
from core_agent.runs.video import write_mp4
from core_agent.saving.checkpoint import library_versions
from core_agent.table5.paper import DIFFICULTIES, DISTRACTIONS, N_PAPER_SEEDS, TASKS
from core_agent.validation import check, check_integer

EPISODE_STEPS = 1_000
"""Simulator steps in an episode of the Distracting Control Suite."""
EVALUATION_SEED = 10_000
FRAMES_PER_SECOND = 15
N_TIMED_STEPS = 40
LOCK_PATIENCE = 300.0
"""Seconds to wait for a process that died on another machine to let go of its run."""


class RunInterruptedError(RuntimeError):
    """A run was told to stop; it goes on from its checkpoint when it is run again.

    :param folder: of the run
    :param signal: what told it to
    """

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
        for name, choices in known.items():
            unknown = [value for value in getattr(self, name) if value not in choices]
            check(not unknown, name, f"be among {choices}", unknown)
        for agent in self.agents:
            get_agent(agent)
            preset(self.preset, agent)
        for name in ("simulator_steps", "evaluate_every", "n_episodes", "checkpoint_every"):
            check_integer(name, getattr(self, name), 1)
        for seed in self.seeds:
            check_integer("seeds", seed, 0)
        for name in ("agents", "tasks", "difficulties", "distractions", "seeds"):
            check(bool(getattr(self, name)), name, "hold at least one", getattr(self, name))

    def jobs(self) -> list[Job]:
        """One for each run, seeds last, so that an unfinished grid has all settings."""
        grid = itertools.product(
            self.seeds, self.agents, self.tasks, self.difficulties, self.distractions
        )
        return [
            Job(
                Run(f"DCS-{task}-{difficulty}-{distraction}", agent, self.preset, seed),
                self.simulator_steps,
                self.evaluate_every,
                self.n_episodes,
                self.checkpoint_every,
            )
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
        """Where the run lies below ``root``."""
        return root / self.run.agent / self.run.env_id / f"seed-{self.run.seed}"


def take_shard(jobs: Sequence[Job], shard: str) -> list[Job]:
    """Every ``n``-th job, beginning with the ``i``-th, of ``"i/n"``.

    :raises ValueError: unless ``1 <= i <= n``
    """
    parts = shard.split("/")
    rule = "have the form i/n with 1 <= i <= n, such as 1/4"
    check(len(parts) == 2 and all(part.isdecimal() for part in parts), "shard", rule, shard)
    index, count = map(int, parts)
    check(1 <= index <= count, "shard", rule, shard)
    return list(jobs[index - 1 :: count])


# ---- the record of a run ----


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a ``.jsonl`` file; one that was cut short by a crash is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody ever reads half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def read_status(folder: Path) -> dict[str, Any]:
    """What ``status.json`` says; ``{"state": "not begun"}`` without one."""
    path = folder / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {"state": "not begun"}


class Recorder(BaseCallback):
    """Writes a run's record; what lies beyond the checkpoint it went on from is written anew.

    :param job: the run
    :param folder: where it lies
    """

    def __init__(self, job: Job, folder: Path) -> None:
        super().__init__()
        self.job, self.folder = job, folder
        self.attempts = read_status(folder).get("attempts", 0) + 1

    def _on_training_start(self) -> None:
        self._action_repeat = self.model.action_repeat  # type: ignore[attr-defined]
        self._clock_before = 0.0
        for name in ("evaluations", "episodes", "losses"):
            self._forget_beyond_checkpoint(self.folder / f"{name}.jsonl")
        self._started = time.perf_counter()
        self._first = self.model.num_timesteps, self.model._n_updates
        self._n_updates = self.model._n_updates
        self._val_env = training_environment(self.job.run, "val")
        self.model.when_learning_ends(lambda _: self._val_env.close())  # type: ignore[attr-defined]
        evaluated = read_lines(self.folder / "evaluations.jsonl")
        last = evaluated[-1]["simulator_steps"] if evaluated else 0
        self._next = next_multiple(self.job.evaluate_every, last)
        self._write_status("running")

    def _forget_beyond_checkpoint(self, path: Path) -> None:
        kept = [e for e in read_lines(path) if e["agent_steps"] <= self.model.num_timesteps]
        clocks = [entry["wall_clock_seconds"] for entry in kept]
        self._clock_before = max([self._clock_before, *clocks])
        write_whole(path, "".join(json.dumps(entry) + "\n" for entry in kept))

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
        if self._simulator_steps >= self._next:
            self._evaluate()
        return True

    def _on_rollout_start(self) -> None:
        if self.model._n_updates > self._n_updates:
            self._n_updates = self.model._n_updates
            values = self.logger.name_to_value.items()
            losses = {key: float(v) for key, v in values if key.startswith("train/")}
            self._append("losses", {"updates": self._n_updates, **losses})
            self._write_status("running")

    def _on_training_end(self) -> None:
        if self._simulator_steps >= self.job.simulator_steps:
            evaluated = read_lines(self.folder / "evaluations.jsonl")
            if not evaluated or evaluated[-1]["agent_steps"] != self.num_timesteps:
                self._evaluate()
        self._write_status("running")

    def _evaluate(self) -> None:
        """Play whole episodes on validation videos, the same each time."""
        seed = EVALUATION_SEED + self.job.run.seed
        episodes = play(self._val_env, self.model, self.job.n_episodes, seed=seed, record="first")
        returns = [episode.episode_return for episode in episodes]
        self._append("evaluations", {"returns": returns})
        write_mp4(self.folder / "validation.mp4", episodes[0].frames, FRAMES_PER_SECOND)
        self._next = next_multiple(self.job.evaluate_every, self._simulator_steps)

    def _write_status(self, state: str) -> None:
        seconds = max(time.perf_counter() - self._started, 1e-9)
        status = {
            "state": state,
            "error": None,
            "attempts": self.attempts,
            "agent_steps": self.num_timesteps,
            "simulator_steps": self._simulator_steps,
            "action_repeat": self._action_repeat,
            "updates": self.model._n_updates,
            "wall_clock_seconds": self._clock,
            "steps_per_second": (self.num_timesteps - self._first[0]) / seconds,
            "updates_per_second": (self.model._n_updates - self._first[1]) / seconds,
            "host": platform.node(),
            "versions": library_versions(),
        }
        write_whole(self.folder / "status.json", json.dumps(status, indent=1))


def run_job(job: Job, root: Path, progress: bool = False) -> str:
    """Do what is left of a run; leave what is finished, unless it is to be longer now.

    An error of the run's own is written into its ``status.json`` and does not go further.

    :param progress: show a progress bar
    :return: ``"finished"`` or ``"failed"``
    :raises RunInterruptedError: if a signal stopped it; run again, it goes on
    """
    folder = job.folder(root)
    status = read_status(folder)
    if status["state"] == "finished" and status["simulator_steps"] >= job.simulator_steps:
        return "finished"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RUN_FILE).exists():
        # A run that fails before it begins is still to tell what it is.
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
    if outcome.interrupted_by is not None:
        raise RunInterruptedError(folder, outcome.interrupted_by)
    update_status(folder, state="finished", error=None)
    return "finished"


def update_status(folder: Path, **changes: Any) -> None:
    """Change some entries of ``status.json``."""
    status = {**read_status(folder), **changes}
    write_whole(folder / "status.json", json.dumps(status, indent=1))


# ---- what it will take ----


class Estimate(NamedTuple):
    """Of the time that a run takes on this machine, in seconds."""

    step: float
    """One agent step."""
    update: float
    run: float


def estimate_run(job: Job, n_updates: int = 2) -> Estimate:
    """Try some steps and updates of a run, here and now.

    :param n_updates: how many are timed, after one that is not
    """
    with closing(training_environment(job.run, "train")) as env:
        arguments = preset(
            job.run.preset, job.run.agent, env_id=job.run.env_id, **job.run.arguments
        )
        model = get_agent(job.run.agent)(policy="auto", env=env, seed=job.run.seed, **arguments)
        n_updates_per_step = updates_per_step(model)
        model.learning_starts, model.gradient_steps = 0, 0
        model.train_freq = TrainFreq(N_TIMED_STEPS, TrainFrequencyUnit.STEP)  # type: ignore[assignment]
        model.learn(N_TIMED_STEPS)
        step = seconds(lambda: model.learn(N_TIMED_STEPS, reset_num_timesteps=False))
        step /= N_TIMED_STEPS
        model.train(1, model.batch_size)
        update = seconds(lambda: model.train(n_updates, model.batch_size)) / n_updates
        n_steps = job.simulator_steps / model.action_repeat
        n_evaluations = -(-job.simulator_steps // job.evaluate_every)
        n_played = n_evaluations * job.n_episodes * EPISODE_STEPS / model.action_repeat
        run = (n_steps + n_played) * step + n_steps * n_updates_per_step * update
    return Estimate(step, update, run)


def updates_per_step(model: SequenceOffPolicyAlgorithm) -> float:
    """Updates for each agent step of a Distracting Control task, on average."""
    if model.gradient_steps is None:
        return model.update_ratio
    if model.gradient_steps < 0:
        return 1.0
    count, unit = as_train_freq(model.train_freq)
    in_episodes = unit is TrainFrequencyUnit.EPISODE
    steps = count * EPISODE_STEPS / model.action_repeat if in_episodes else count
    return model.gradient_steps / steps


def seconds(action: Callable[[], object]) -> float:
    """How long ``action`` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
