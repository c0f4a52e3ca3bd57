"""Kills runs at random moments: each must end in the state of a run that was never killed.

    python benchmarks/kills.py --n 3 --json runs/kills.json

Runs of every agent, in both ways of collecting, with one environment and three, on images, on a
``Dict`` and on vectors in ``VecNormalize``; and CoRe on a Distracting Control task. Each trains in
a process of its own, writes a checkpoint every few steps and is killed (SIGKILL) ``--n`` times,
each time after a random amount of processor time; a new process resumes from what is on disk. At
the end, networks, optimisers, replay buffer, environments and counts are compared with those of a
run that was never killed. The exit status is 1 if any of them differs.
"""

from __future__ import annotations

# Ahead of everything that renders, and of Stable-Baselines3.
from core_agent import preset  # isort: skip

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch._dynamo  # the first optimiser of a process imports it, for a second or two
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import columns, describe_machine, write_json
from core_agent.agents.presets import get_preset
from core_agent.agents.registry import AGENTS
from core_agent.environments.make import make_env
from core_agent.environments.workers import SupervisedSubprocVecEnv
from core_agent.runs.callbacks import ExactCheckpointCallback
from core_agent.saving.checkpoint import NoCheckpointError
from core_agent.saving.resumable import Resumable, get_env_state
from tests.fakes import BOTH, IMAGE, VECTOR, SavableEnv, tiny

SPACES = {"images": IMAGE, "Dict": BOTH, "VecNormalize": VECTOR}
REAL = "DCS-cartpole-swingup-easy-dynamic"
EPISODE_STEPS = 7
EVERY = 3
"""Agent steps between two checkpoints: much of the time is spent in writing them."""
TO_THE_END = 30
"""Agent steps of the last life."""
CONTEXT = multiprocessing.get_context("forkserver")


class Case(NamedTuple):
    """A kind of run."""

    agent: str
    collect: str
    n_envs: int
    observations: str
    """A key of :data:`SPACES`, or :data:`REAL`."""

    def __str__(self) -> str:
        return f"{self.agent}, {self.collect}, {self.n_envs} env(s), {self.observations}"


CASES = [
    *itertools.starmap(Case, itertools.product(AGENTS, ("sequential", "async"), (1, 3), SPACES)),
    Case("core", "sequential", 1, REAL),
]


# ---- a life: what is killed ----


def make_environment(case: Case, index: int) -> gym.Env:
    """One of a case's environments."""
    if case.observations == REAL:
        return Resumable(make_env(REAL, **get_preset("debug").env_arguments, action_repeat=50))
    return Resumable(SavableEnv(SPACES[case.observations], EPISODE_STEPS + index))


def make_environments(case: Case) -> VecEnv:
    """A case's environments; those of ``collect="async"`` in processes of their own."""
    makes: Any = [partial(make_environment, case, index) for index in range(case.n_envs)]
    apart = case.collect == "async"
    env = SupervisedSubprocVecEnv(makes, "fork") if apart else DummyVecEnv(makes)
    return VecNormalize(env) if case.observations == "VecNormalize" else env


def start_or_resume(case: Case, folder: Path) -> Any:
    """The model at the newest checkpoint; a new one without any."""
    agent, env = AGENTS[case.agent], make_environments(case)
    arguments = {**tiny(agent), "collect": case.collect}
    if case.observations == REAL:
        arguments = dict(preset("debug", case.agent), seed=0, device="cpu")
    try:
        return agent.resume(folder, env, device="cpu")
    except NoCheckpointError:
        return agent(policy="auto", env=env, **arguments)


class Reporting(ExactCheckpointCallback):
    """Sends the step of every checkpoint that is complete."""

    def __init__(self, folder: Path, every: int, connection: Connection) -> None:
        super().__init__(folder, every)
        self.connection = connection

    def write(self) -> None:
        super().write()
        self.connection.send(self.written[-1][0])


def as_numbers(value: Any) -> Any:
    """An array or a tensor as JSON can hold it."""
    return np.asarray(value).tolist()


def digest(model: Any) -> str:
    """A hash of everything that makes up the state of a run."""
    hashed = hashlib.sha256()
    networks = model.policy.state_dict()
    for tensor in networks.values():
        hashed.update(tensor.numpy().tobytes())
    for episode in model.replay_buffer.episodes:
        for array in (episode.actions, episode.rewards, *episode.frames.values()):
            hashed.update(np.ascontiguousarray(array).tobytes())
    rest = {
        "counts": [model.num_timesteps, model._n_updates, model._episode_num],
        "optimizers": [optimizer.state_dict()["state"] for optimizer in model.optimizers],
        "environments": get_env_state(model.env),
    }
    hashed.update(json.dumps(rest, default=as_numbers).encode())
    return hashed.hexdigest()


def live(connection: Connection, case: Case, folder: Path, until: int, every: int) -> None:
    """Train until a step. Sends the step of the start, of each checkpoint, and the digest."""
    os.setsid()  # the environments' processes are found by it when this one is gone
    torch.set_num_threads(1)
    model = start_or_resume(case, folder)
    first = model.num_timesteps
    connection.send(first)
    callback = Reporting(folder, every, connection)
    model.learn(until - first, callback, reset_num_timesteps=first == 0)
    connection.send(digest(model))
    model.env.close()


class Life:
    """A process that trains, and what it sends."""

    def __init__(self, case: Case, folder: Path, until: int, every: int = EVERY) -> None:
        self.connection, theirs = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=live, args=(theirs, case, folder, until, every))
        self.process.start()
        theirs.close()
        self.received: list[Any] = []

    def wait_for_start(self) -> None:
        """Return when the model is there."""
        self.received.append(self.connection.recv())

    def wait_for_work(self, seconds: float) -> None:
        """Return when it has used ``seconds`` of further processor time, or has ended."""
        until = self.processor_seconds() + seconds
        while self.process.is_alive() and self.processor_seconds() < until:
            time.sleep(0.001)

    def processor_seconds(self) -> float:
        """Processor time used so far."""
        try:
            return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9
        except OSError:  # it has ended
            return float("inf")

    def end(self, wanted_status: int) -> list[Any]:
        """Everything that it sent.

        :raises RuntimeError: if it ends in another way than is wanted
        """
        self.process.join()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(EOFError):
            while self.connection.poll():
                self.received.append(self.connection.recv())
        if self.process.exitcode != wanted_status:
            raise RuntimeError(f"the process ended with {self.process.exitcode}, see above")
        return self.received


# ---- the trial ----


class Outcome(NamedTuple):
    """What became of a run."""

    in_writing: int
    """Kills while a checkpoint was being written."""
    lost: int
    """Kills after which more than the steps since the last checkpoint was lost."""
    steps: int
    equal: bool
    """Whether it ended as a run that was never killed, bit for bit."""


def kill(case: Case, n: int, longest: float, rng: random.Random) -> Outcome:
    """Kill a run ``n`` times at random moments; see how it ends.

    :param longest: processor seconds between the start of training, or of the process, and the
        kill
    :raises RuntimeError: if it does not resume
    """
    with tempfile.TemporaryDirectory() as name:
        killed, unharmed = Path(name, "killed"), Path(name, "never killed")
        reached, lost, in_writing = 0, 0, 0
        for _ in range(n):
            life = Life(case, killed, until=10**9)
            if rng.random() < 0.75:  # else it may be killed while it resumes
                life.wait_for_start()
            life.wait_for_work(rng.uniform(0.0, longest))
            life.process.kill()
            sent = life.end(-signal.SIGKILL)
            lost += bool(sent) and sent[0] < reached
            reached = max([reached, *sent])
            in_writing += any(killed.rglob(".unfinished-*"))
        until = reached + TO_THE_END
        ends = [
            Life(case, folder, until, every).end(0)
            for folder, every in ((killed, EVERY), (unharmed, 0))
        ]
        lost += ends[0][0] < reached
        return Outcome(in_writing, lost, until, ends[0][-1] == ends[1][-1])


def kills(
    n: int, seed: int = 0, longest: float = 0.5, cases: Sequence[Case] = CASES
) -> dict[str, Any]:
    """Kill a run of each case ``n`` times."""
    # Each life is forked from one process that has imported everything already.
    CONTEXT.set_forkserver_preload(["__main__", "benchmarks.kills"])
    rng = random.Random(seed)
    outcomes: dict[Case, Outcome] = {}
    failures = []
    for case in cases:
        # A real environment takes longer to make and to step.
        patience = 8 * longest if case.observations == REAL else longest
        try:
            outcomes[case] = kill(case, n, patience, rng)
        except (RuntimeError, EOFError) as error:
            failures.append(f"{case}: {error!r}")
            continue
        if outcomes[case].lost or not outcomes[case].equal:
            failures.append(f"{case}: {outcomes[case]}")
        print(f"{case}: {outcomes[case].steps} steps", flush=True)
    ended = outcomes.values()
    return {
        "runs": len(cases),
        "kills": n * len(cases),
        "while a checkpoint was being written": sum(each.in_writing for each in ended),
        "more than the tail lost": sum(each.lost for each in ended),
        "runs equal to one never killed, bit for bit": sum(each.equal for each in ended),
        "failures": failures,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill; print and write what became of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=3, help="kills of each run; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    figures = kills(options.n, options.seed)
    failures = figures["failures"]
    print(columns([[name, str(value)] for name, value in figures.items() if name != "failures"]))
    for failure in failures:
        print(f"failed: {failure}")
    write_json(options.json, {**figures, "machine": describe_machine("cpu")})
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
