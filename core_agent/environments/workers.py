"""SB3's ``SubprocVecEnv`` whose environments are restarted when their processes die or hang."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker as serve_environment

from core_agent.validation import FUNCTIONS, POSITIVE, Check, check_arguments, choice, whole

START_SECONDS = 600.0  # to start a process and make its environment, unless timeout is longer
CLOSING_SECONDS = 5.0  # for an environment to close itself; then its process is killed


class WorkerFailedError(RuntimeError):
    """The process of an environment failed after its last restart."""


def _serve(*connections_and_env: Any) -> None:
    """SB3's worker, in a process that leaves Ctrl-C, which reaches all, to the main one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve_environment(*connections_and_env)


class _Worker:
    """In place of SB3's connection to a process: starts the process again if it fails."""

    def __init__(self, index: int, make: Callable[[], gym.Env], env: Any) -> None:
        self.index, self.env, self.make = index, env, CloudpickleWrapper(make)
        self.n_restarts, self.attributes = 0, dict[str, Any]()
        self.seed: int | None = None
        self.last_observation: Any = None
        self.lost_step: Any = None  # the answer to the next step, if an episode is lost
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
            self.recv()
        self.message = command, data = message
        if command == "set_attr":
            self.attributes[data[0]] = data[1]
        elif command == "reset":
            self.lost_step = None
            self.seed = self.seed if data[0] is None else data[0]
        if command != "step" or self.lost_step is None:
            self.waiting, self.deadline = True, time.monotonic() + self.timeout
            with suppress(OSError):  # `recv` notices that the process has ended.
                self.remote.send(message)

    def recv(self) -> Any:
        answer = self.lost_step
        if self.waiting:
            if not self.remote.poll(max(0.0, self.deadline - time.monotonic())):
                return self.restart(f"gave no answer within {self.timeout:g} s")
            try:
                answer = self.remote.recv()
            except (EOFError, ConnectionResetError):
                self.process.join(CLOSING_SECONDS)
                code = self.process.exitcode
                return self.restart(f"died with exit code {code} (-n: by signal n)")
            self.waiting, self.timeout = False, self.env.timeout
        if self.message[0] in ("step", "reset"):
            self.last_observation, self.lost_step = answer[0], None
        return answer

    def ask(self, *message: Any) -> Any:
        self.send(message)
        return self.recv()

    def restart(self, failure: str) -> Any:
        """Start the process again; the answer to the message at which it failed."""
        (command, data), last = self.message, self.last_observation
        self.end()
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
        if self.seed is not None:  # The new one is unlike any other episode's.
            sequence = np.random.SeedSequence((self.seed, self.index, self.n_restarts))
            self.seed = int(sequence.generate_state(1)[0])
        if command == "reset":
            return self.ask("reset", (self.seed, data[1]))
        if last is not None:
            info = {"episode_lost": True, "TimeLimit.truncated": True, "terminal_observation": last}
            first, reset_info = self.ask("reset", (self.seed, None))
            self.last_observation, self.lost_step = last, (first, 0.0, True, info, reset_info)
        return self.ask(command, data)

    def end(self, seconds: float = 0.0) -> None:
        """End the process, whose environment has some seconds to close itself."""
        with suppress(EOFError, OSError):
            if self.waiting and self.remote.poll(seconds):
                self.remote.recv()
            self.remote.send(("close", None))
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        self.remote.close()


class SupervisedSubprocVecEnv(SubprocVecEnv):
    """SB3's ``SubprocVecEnv`` that restarts an environment whose process dies or hangs.

    A restart is logged as a warning, and the episode is lost: in place of the step that failed
    comes the first observation of a new episode with reward 0, ``done`` and, in its info,
    ``"episode_lost": True``, ``"TimeLimit.truncated": True`` and the last known observation as
    ``"terminal_observation"``. The replay buffer ends the episode at its last real step. A new
    process knows what ``set_attr`` set, not what ``env_method`` changed.

    :param env_fns: make the environments, each in its process
    :param start_method: of multiprocessing: "spawn", which also works where this process has
        rendered already, "forkserver" or "fork"
    :param timeout: seconds for a step, a reset or any other answer
    :param max_restarts: restarts allowed for each environment
    :raises ValueError: for a bad argument
    :raises WorkerFailedError: also later, if an environment fails after its last restart; all end
    """

    rules: ClassVar[dict[str, Check]] = {
        "env_fns": FUNCTIONS,
        "start_method": choice(*multiprocessing.get_all_start_methods()),
        "timeout": POSITIVE,
        "max_restarts": whole(0),
    }

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        start_method: str = "spawn",
        timeout: float = 120.0,
        max_restarts: int = 1,
    ) -> None:
        check_arguments(self.rules, locals())
        self.context: Any = multiprocessing.get_context(start_method)
        self.timeout, self.max_restarts = timeout, max_restarts
        self.waiting = self.closed = False
        self.remotes = [_Worker(*each, self) for each in enumerate(env_fns)]
        # Not SubprocVecEnv's, which would start processes without supervision.
        VecEnv.__init__(self, len(env_fns), *self.remotes[0].ask("get_spaces", None))

    @property
    def processes(self) -> list[Any]:  # type: ignore[override]
        """The processes, in the order of the environments."""
        return [worker.process for worker in self.remotes]

    def close(self) -> None:
        """End every process, whatever state it is in."""
        workers, self.closed = [] if self.closed else self.remotes, True
        for worker in workers:
            worker.end(CLOSING_SECONDS)
