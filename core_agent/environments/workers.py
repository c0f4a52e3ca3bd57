"""Environments in processes of their own, watched over: one that fails is started again.

env = make_vec_env("DCS-cheetah-run-easy-dynamic", n_envs=4, seed=0)
model = CoRe("CnnPolicy", env)
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker as serve_environment

from core_agent.environments.make import make_env, register_suite, unknown_id
from core_agent.saving.resumable import Resumable
from core_agent.validation import (
    argument_names,
    as_seed,
    check,
    check_choice,
    check_integer,
    check_options,
    check_positive,
    check_text,
    optional,
)

CLOSING_SECONDS = 5.0
"""What an environment gets to close itself before its process is killed."""

_LOG = logging.getLogger("core_agent")


class WorkerFailedError(RuntimeError):
    """The process of an environment failed more often than it may be restarted."""


class _Failure(Exception):  # noqa: N818  (told to the user as a restart or a WorkerFailedError)
    """What happened to a process."""


def _serve(*connections_and_env: Any) -> None:
    """SB3's worker, in a process that leaves Ctrl-C, which reaches all, to the main one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve_environment(*connections_and_env)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was killed by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    return f"died (exit code {exit_code}); standard error has its traceback, if it left one"


class Worker:
    """One environment in its process, with the two verbs of a connection: send, then receive.

    :param index: of the environment, for messages and seeds
    :param make_env: makes the environment, in the process
    :param context: of multiprocessing
    :param timeout: seconds for an answer
    :param start_timeout: seconds for the first answer of a process
    :param max_restarts: how often the process may be started again
    :param give_up: called before :class:`WorkerFailedError` is raised
    """

    def __init__(
        self,
        index: int,
        make_env: Callable[[], gym.Env],
        context: Any,
        timeout: float,
        start_timeout: float,
        max_restarts: int,
        give_up: Callable[[], None],
    ) -> None:
        self.index, self.context, self.give_up = index, context, give_up
        self.timeout, self.start_timeout, self.max_restarts = timeout, start_timeout, max_restarts
        self.n_restarts = 0
        self._environment = CloudpickleWrapper(make_env)
        self._attributes: dict[str, Any] = {}
        self._seed: int | None = None
        self._last_observation: Any = None
        self._first_after_loss: tuple[Any, dict[str, Any]] | None = None
        self._start()

    def _start(self) -> None:
        self.remote, work_remote = self.context.Pipe()
        self.process = self.context.Process(
            target=_serve, args=(work_remote, self.remote, self._environment), daemon=True
        )
        self.process.start()
        work_remote.close()
        self._waiting, self._answered = False, False

    # ---- what a connection does ----

    def send(self, message: tuple[str, Any]) -> None:
        """Ask for something; a process that has ended is noticed when the answer is."""
        self._drop_answer()
        self._message = message
        command, data = message
        if command == "set_attr":
            self._attributes[data[0]] = data[1]
        elif command == "reset":
            self._first_after_loss = None
            self._seed = self._seed if data[0] is None else data[0]
        if command != "step" or self._first_after_loss is None:
            self._put(message)

    def recv(self) -> Any:
        """The answer, if need be of a process that was started again.

        :raises WorkerFailedError: if it has been started again often enough
        """
        try:
            command = self._message[0]
            if command == "step" and self._first_after_loss is not None:
                return self._lost_step()
            answer = self._get()
        except _Failure as failure:
            return self._recover(failure)
        if command in ("step", "reset"):
            self._last_observation = answer[0]
        return answer

    def _drop_answer(self) -> None:
        """Read an answer that was asked for and, interrupted, never read."""
        if self._waiting:
            with contextlib.suppress(_Failure):
                self._get()

    def _put(self, message: tuple[str, Any]) -> None:
        allowance = self.timeout if self._answered else self.start_timeout
        self._deadline = time.monotonic() + allowance
        self._waiting = True
        with contextlib.suppress(OSError):
            self.remote.send(message)

    def _get(self) -> Any:
        left = max(0.0, self._deadline - time.monotonic())
        if not wait([self.remote, self.process.sentinel], left):
            seconds = self.timeout if self._answered else self.start_timeout
            raise _Failure(f"gave no answer within {seconds:g} s")
        with contextlib.suppress(EOFError, OSError):
            if self.remote.poll():
                answer = self.remote.recv()
                self._waiting, self._answered = False, True
                return answer
        self.process.join(CLOSING_SECONDS)
        raise _Failure(_how_it_ended(self.process.exitcode))

    # ---- failures ----

    def _recover(self, failure: _Failure) -> Any:
        """Start the process again; the answer to the message at which it failed."""
        interrupted = self._message
        self._kill()
        if self.n_restarts == self.max_restarts:
            self.give_up()
            raise WorkerFailedError(
                f"environment {self.index} {failure}, and it has been restarted "
                f"{self.n_restarts} time(s) already; run it alone, in a DummyVecEnv, to see "
                "what goes wrong, or raise max_restarts or timeout"
            ) from None
        self.n_restarts += 1
        _LOG.warning(
            "environment %d %s; its episode is lost, and it is started again (%d of at most %d)",
            self.index,
            failure,
            self.n_restarts,
            self.max_restarts,
        )
        self._start()
        for attribute in self._attributes.items():
            self._repeat(("set_attr", attribute))
        if interrupted[0] == "reset":
            return self._repeat(("reset", (self._next_seed(), interrupted[1][1])))
        if self._last_observation is not None:
            self._begin_new_episode()
        return self._repeat(interrupted)

    def _repeat(self, message: tuple[str, Any]) -> Any:
        self.send(message)
        return self.recv()

    def _begin_new_episode(self) -> None:
        """Reset, and keep the answer until the next step can tell that an episode was lost."""
        last = self._last_observation
        self._first_after_loss = self._repeat(("reset", (self._next_seed(), None)))
        self._last_observation = last

    def _lost_step(self) -> tuple[Any, float, bool, dict[str, Any], dict[str, Any]]:
        """In place of a step that never happened: the end of the old episode."""
        assert self._first_after_loss is not None
        info = {
            "episode_lost": True,
            "TimeLimit.truncated": True,
            "terminal_observation": self._last_observation,
        }
        self._last_observation, reset_info = self._first_after_loss
        self._first_after_loss = None
        return self._last_observation, 0.0, True, info, reset_info

    def _next_seed(self) -> int | None:
        """Another seed than before, and than any other environment's; none if there was none."""
        if self._seed is None:
            return None
        entropy = (self._seed, self.index, self.n_restarts)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    # ---- the end ----

    def close(self) -> None:
        """End the process: it may close its environment; if that takes long, it is killed."""
        with contextlib.suppress(EOFError, OSError):
            if self._waiting and self.remote.poll(CLOSING_SECONDS):
                self.remote.recv()
            self.remote.send(("close", None))
            self.process.join(CLOSING_SECONDS)
        self._kill()

    def _kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.remote.close()


class SupervisedSubprocVecEnv(SubprocVecEnv):
    """SB3's ``SubprocVecEnv``, which goes on when the process of an environment dies or hangs.

    The process is started again, which is logged as a warning, and its episode is lost: in place
    of the step that failed comes the first observation of a new episode with reward 0, ``done``
    and, in its info, ``"episode_lost": True``, ``"TimeLimit.truncated": True`` and the last
    observation that is known as ``"terminal_observation"``. :class:`SequenceReplayBuffer
    <core_agent.replay.buffer.SequenceReplayBuffer>` ends the episode at its last real step. A
    process that was restarted often enough ends all, with an error and no process left behind.

    A new process knows the attributes that ``set_attr`` set, not what ``env_method`` changed; its
    first episode has a seed of its own. Ctrl-C is left to the main process.

    :param env_fns: make the environments, each in its process
    :param start_method: of multiprocessing; ``None``: ``"forkserver"`` where it is available,
        else ``"spawn"``
    :param timeout: seconds for a step, a reset or any other answer
    :param start_timeout: seconds for a process to start and to make its environment
    :param max_restarts: how often each environment may be restarted
    :raises ValueError: for a bad argument
    :raises WorkerFailedError: now or later, if an environment fails after its last restart
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        start_method: str | None = None,
        timeout: float = 120.0,
        start_timeout: float = 600.0,
        max_restarts: int = 1,
    ) -> None:
        methods = multiprocessing.get_all_start_methods()
        callables = isinstance(env_fns, (list, tuple)) and all(callable(fn) for fn in env_fns)
        check(callables and len(env_fns) >= 1, "env_fns", "be a list of functions", env_fns)
        optional(partial(check_choice, choices=tuple(methods)))("start_method", start_method)
        check_positive("timeout", timeout)
        check_positive("start_timeout", start_timeout)
        check_integer("max_restarts", max_restarts, 0)
        if start_method is None:
            start_method = "forkserver" if "forkserver" in methods else "spawn"
        context = multiprocessing.get_context(start_method)
        self.waiting, self.closed = False, False
        self.remotes: list[Worker] = []
        for index, make in enumerate(env_fns):
            worker = Worker(index, make, context, timeout, start_timeout, max_restarts, self.close)
            self.remotes.append(worker)
        self.remotes[0].send(("get_spaces", None))
        spaces = self.remotes[0].recv()
        # Past SB3's own, which would start processes that nobody watches.
        VecEnv.__init__(self, len(env_fns), *spaces)

    @property
    def processes(self) -> list[Any]:  # type: ignore[override]
        """The processes, in the order of the environments."""
        return [worker.process for worker in self.remotes]

    def close(self) -> None:
        """End every process, whatever state it is in."""
        if self.closed:
            return
        self.closed = True
        for worker in self.remotes:
            worker.close()


def find_spec(env_id: str) -> EnvSpec:
    """What Gymnasium knows of an environment; of a ``DCS-`` id without an import.

    :param env_id: id with its version, or ``package:id``
    :raises ValueError: for an unknown id
    """
    check_text("env_id", env_id)
    register_suite(env_id)
    try:
        return gym.spec(env_id)
    except (gym.error.Error, ImportError) as error:
        raise unknown_id(env_id, error) from error


def _make_monitored(spec: EnvSpec, kwargs: Mapping[str, Any]) -> gym.Env:
    return Resumable(Monitor(gym.make(spec, **{"render_mode": "rgb_array", **kwargs})))


def environment_for(env_id: str, collect: str) -> gym.Env | VecEnv:
    """An environment to learn in: in this process or, to be updated beside, in its own.

    :param env_id: id of a registered environment, or ``package:id``
    :param collect: of the agent
    :raises ValueError: for an unknown id
    """
    return make_vec_env(env_id, vec_env_kwargs={}) if collect == "async" else make_env(env_id)


def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    vec_env_kwargs: Mapping[str, Any] | None = None,
) -> VecEnv:
    """Rendering environments that note their returns, each in a process that is watched over.

    One alone runs in this process, where it costs no transfer, unless ``vec_env_kwargs`` is given.

    :param env_id: id of a registered environment, or ``package:id``; the processes need not
        register it
    :param n_envs: number of environments
    :param seed: the first episode of environment ``i`` has seed ``seed + i``; an algorithm with a
        seed seeds them anew
    :param env_kwargs: passed to each environment
    :param vec_env_kwargs: passed to :class:`SupervisedSubprocVecEnv`
    :raises ValueError: for an unknown id or a bad argument
    """
    check_integer("n_envs", n_envs, 1)
    seed = as_seed("seed", seed)
    check_options("env_kwargs", env_kwargs)
    check_options("vec_env_kwargs", vec_env_kwargs)
    known = argument_names(SupervisedSubprocVecEnv) - {"env_fns"}
    unknown = sorted(set(vec_env_kwargs or {}) - known)
    rule = "hold arguments of SupervisedSubprocVecEnv"
    check(not unknown, "vec_env_kwargs", rule, unknown, f"they are {sorted(known)}")
    make = partial(_make_monitored, find_spec(env_id), dict(env_kwargs or {}))
    env: VecEnv
    if n_envs == 1 and vec_env_kwargs is None:
        env = DummyVecEnv([make])
    else:
        env = SupervisedSubprocVecEnv([make] * n_envs, **(vec_env_kwargs or {}))
    if seed is not None:
        env.seed(seed)
    return env
