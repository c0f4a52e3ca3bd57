"""SB3's ``SubprocVecEnv`` whose environments are restarted when their processes die or hang."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker as serve_environment

from core_agent.validation import POSITIVE, Check, Rule, check_arguments, choice, optional, whole

START_SECONDS = 600.0  # to start a process and make its environment, unless timeout is longer
CLOSING_SECONDS = 5.0  # for an environment to close itself; then its process is killed
START_METHODS = tuple(multiprocessing.get_all_start_methods())


def _are_functions(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) >= 1 and all(map(callable, value))


RULES: dict[str, Check] = {
    "env_fns": Rule("be a list of functions", _are_functions),
    "start_method": optional(choice(*START_METHODS)),
    "timeout": POSITIVE,
    "max_restarts": whole(0),
}


class WorkerFailedError(RuntimeError):
    """The process of an environment failed after its last restart."""


def _serve(*connections_and_env: Any) -> None:
    """SB3's worker, in a process that leaves Ctrl-C, which reaches all, to the main one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve_environment(*connections_and_env)


class _Worker:
    """A connection to one environment in its process, which is started again if it fails."""

    def __init__(
        self, index: int, make: Callable[[], gym.Env], env: SupervisedSubprocVecEnv
    ) -> None:
        self.index, self.env, self.make = index, env, CloudpickleWrapper(make)
        self.n_restarts, self.attributes = 0, dict[str, Any]()
        self.seed: int | None = None
        self.last_observation: Any = None
        self.next_episode: Any = None  # after a loss: the answer to reset, until the next step
        self.start()

    def start(self) -> None:
        self.remote, remote = self.env.context.Pipe()
        arguments = (remote, self.remote, self.make)
        self.process = self.env.context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        remote.close()
        self.waiting, self.timeout = False, max(self.env.timeout, START_SECONDS)

    def send(self, message: tuple[str, Any]) -> None:
        if self.waiting:  # Ctrl-C came between a question and its answer.
            with suppress(ConnectionError):
                self.answer()
        self.message = command, data = message
        if command == "set_attr":
            self.attributes[data[0]] = data[1]
        elif command == "reset":
            self.next_episode = None
            self.seed = self.seed if data[0] is None else data[0]
        if command != "step" or self.next_episode is None:
            self.waiting, self.deadline = True, time.monotonic() + self.timeout
            with suppress(OSError):  # `answer` notices that the process has ended.
                self.remote.send(message)

    def recv(self) -> Any:
        command = self.message[0]
        if command == "step" and self.next_episode is not None:
            info = {"episode_lost": True, "TimeLimit.truncated": True}
            info["terminal_observation"] = self.last_observation
            self.last_observation, reset_info = self.next_episode
            self.next_episode = None
            return self.last_observation, 0.0, True, info, reset_info
        try:
            answer = self.answer()
        except ConnectionError as failure:
            return self.restart(failure)
        if command in ("step", "reset"):
            self.last_observation = answer[0]
        return answer

    def answer(self) -> Any:
        left = max(0.0, self.deadline - time.monotonic())
        if not wait([self.remote, self.process.sentinel], left):
            raise ConnectionError(f"gave no answer within {self.timeout:g} s")
        with suppress(EOFError, OSError):
            if self.remote.poll():
                answer = self.remote.recv()
                self.waiting, self.timeout = False, self.env.timeout
                return answer
        self.process.join(CLOSING_SECONDS)
        raise ConnectionError(f"died with exit code {self.process.exitcode} (-n: by signal n)")

    def restart(self, failure: ConnectionError) -> Any:
        """Start the process again; the answer to the message at which it failed."""
        (command, data), last = self.message, self.last_observation
        self.kill()
        if self.n_restarts == self.env.max_restarts:
            self.env.close()
            raise WorkerFailedError(
                f"environment {self.index} {failure}, and was restarted {self.n_restarts} time(s) "
                "already; find the fault with a DummyVecEnv, or raise max_restarts or timeout"
            ) from None
        self.n_restarts += 1
        logging.getLogger("core_agent").warning(
            f"environment {self.index} {failure}; its episode is lost, and it is started again "
            f"({self.n_restarts} of at most {self.env.max_restarts})"
        )
        self.start()
        for attribute in self.attributes.items():
            self.ask("set_attr", attribute)
        entropy = (self.seed or 0, self.index, self.n_restarts)  # unlike any other episode's
        new_seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        seed = None if self.seed is None else new_seed
        if command != "reset" and last is not None:
            self.next_episode = self.ask("reset", (seed, None))
            self.last_observation = last
        return self.ask(command, (seed, data[1]) if command == "reset" else data)

    def ask(self, command: str, data: Any = None) -> Any:
        self.send((command, data))
        return self.recv()

    def close(self) -> None:
        with suppress(EOFError, OSError):
            if self.waiting and self.remote.poll(CLOSING_SECONDS):
                self.remote.recv()
            self.remote.send(("close", None))
            self.process.join(CLOSING_SECONDS)
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.remote.close()


class SupervisedSubprocVecEnv(SubprocVecEnv):
    """SB3's ``SubprocVecEnv`` that restarts an environment whose process dies or hangs.

    A restart is logged as a warning, and the episode is lost: in place of the step that failed
    comes the first observation of a new episode with reward 0, ``done`` and, in its info,
    ``"episode_lost": True``, ``"TimeLimit.truncated": True`` and the last known observation as
    ``"terminal_observation"``; :class:`~core_agent.replay.buffer.SequenceReplayBuffer` ends the
    episode at its last real step. A failure after the last restart ends all environments.

    A new process knows what ``set_attr`` set, not what ``env_method`` changed; its first episode
    has a seed of its own. Ctrl-C is left to the main process.

    :param env_fns: make the environments, each in its process
    :param start_method: of multiprocessing; by default ``"forkserver"`` or else ``"spawn"``
    :param timeout: seconds for a step, a reset or any other answer
    :param max_restarts: restarts allowed for each environment
    :raises ValueError: for a bad argument
    :raises WorkerFailedError: if an environment fails after its last restart, also in later calls
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        start_method: str | None = None,
        timeout: float = 120.0,
        max_restarts: int = 1,
    ) -> None:
        check_arguments(RULES, locals())
        default = "forkserver" if "forkserver" in START_METHODS else "spawn"
        self.context: Any = multiprocessing.get_context(start_method or default)
        self.timeout, self.max_restarts = timeout, max_restarts
        self.waiting, self.closed = False, False
        self.remotes: list[_Worker] = []
        for index, make in enumerate(env_fns):
            self.remotes.append(_Worker(index, make, self))
        # Not SubprocVecEnv's, which would start processes without supervision.
        VecEnv.__init__(self, len(env_fns), *self.remotes[0].ask("get_spaces"))

    @property
    def processes(self) -> list[Any]:  # type: ignore[override]
        """The processes, in the order of the environments."""
        return [worker.process for worker in self.remotes]

    def close(self) -> None:
        """End every process, whatever state it is in."""
        workers, self.closed = [] if self.closed else self.remotes, True
        for worker in workers:
            worker.close()
