"""SB3's ``SubprocVecEnv`` whose environments are restarted when their processes die or hang."""

from __future__ import annotations

import logging
import multiprocessing
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.subproc_vec_env import CloudpickleWrapper, _worker

from core_agent.validation import FUNCTIONS, POSITIVE, Check, check_arguments, choice, whole

START_SECONDS = 600.0  # to start a process and make its environment, unless timeout is longer
CLOSING_SECONDS = 5.0  # for an environment to close itself; then its process is killed


class WorkerFailedError(RuntimeError):
    """The process of an environment failed after its last restart."""


def _serve(*connections_and_env: Any) -> None:
    """SB3's worker, in a process that ignores Ctrl-C: the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker(*connections_and_env)


class _Worker:
    """In place of SB3's connection to a process: starts the process again if it fails."""

    def __init__(self, index: int, make: Callable[[], gym.Env], env: Any) -> None:
        self.index, self.make, self.env = index, CloudpickleWrapper(make), env
        self.n_restarts, self.attributes = 0, dict[str, Any]()
        self.last_observation: Any = None
        self.lost_step: Any = None  # the answer to the next step, if an episode is lost
        self.start()

    def start(self) -> None:
        self.remote, remote = multiprocessing.Pipe()
        arguments = (remote, self.remote, self.make)
        self.process = self.env.context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        remote.close()
        self.waiting, self.timeout = False, max(self.env.timeout, START_SECONDS)

    def send(self, message: tuple[str, Any]) -> None:
        if self.waiting:  # A restart asks several things; Ctrl-C can come before an answer.
            self.recv()
        self.message = command, data = message
        if command == "set_attr":
            self.attributes[data[0]] = data[1]
        self.waiting = command != "step" or self.lost_step is None
        if self.waiting:
            with suppress(OSError):  # `recv` notices that the process has ended.
                self.remote.send(message)

    def recv(self) -> Any:
        answer = self.lost_step
        with suppress(EOFError, OSError):
            if self.waiting and self.remote.poll(self.timeout):
                answer, self.waiting, self.timeout = self.remote.recv(), False, self.env.timeout
        if self.waiting:
            return self.restart()
        if self.message[0] in ("step", "reset"):
            self.last_observation, self.lost_step = answer[0], None
        return answer

    def restart(self) -> Any:
        """Start the process again, with a new seed; return the answer that is still due."""
        message, last = self.message, self.last_observation
        self.process.join(CLOSING_SECONDS)
        died = f"died with exit code {self.process.exitcode} (-n means killed by signal n)"
        failure = f"gave no answer within {self.timeout:g} s" if self.process.is_alive() else died
        self.process.kill()
        if self.n_restarts == self.env.max_restarts:
            self.env.close()
            raise WorkerFailedError(
                f"environment {self.index} {failure}, and has already been restarted "
                f"{self.n_restarts} time(s); find the fault with a DummyVecEnv, or raise "
                "max_restarts or timeout"
            )
        self.n_restarts += 1
        logging.getLogger("core_agent").warning(
            f"environment {self.index} {failure}; its episode is lost, and it is started again "
            f"({self.n_restarts} of at most {self.env.max_restarts})"
        )
        self.start()
        for attribute in self.attributes.items():
            self.send(("set_attr", attribute))
        self.send(("reset", (random.getrandbits(32), None)))
        first, info = self.recv()
        lost = {"episode_lost": True, "TimeLimit.truncated": True, "terminal_observation": last}
        self.last_observation, self.lost_step = last, (first, 0.0, True, lost, info)
        self.send(message)
        return self.recv()


class SupervisedSubprocVecEnv(SubprocVecEnv):
    """SB3's ``SubprocVecEnv`` that restarts an environment whose process dies or hangs.

    A restart is logged as a warning, and the episode is lost: the step that failed returns the
    first observation of a new episode, reward 0, ``done`` and, in its info,
    ``"episode_lost": True``, ``"TimeLimit.truncated": True`` and the last known observation as
    ``"terminal_observation"``. The replay buffer ends the episode at its last real step. Attributes
    set by ``set_attr`` are set in the new process too; changes by ``env_method`` are lost.

    :param env_fns: functions that make the environments, each called in its own process
    :param start_method: "spawn" (also works if this process has rendered), "forkserver" or "fork"
    :param timeout: seconds to wait for a step, a reset or any other answer
    :param max_restarts: restarts allowed for each environment
    :raises ValueError: for a bad argument
    :raises WorkerFailedError: here or later, if an environment fails after its last restart; all
        environments are closed then
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
        self.timeout, self.max_restarts, self.closed = timeout, max_restarts, False
        self.remotes = [_Worker(*each, self) for each in enumerate(env_fns)]
        # Not SubprocVecEnv's, which would start processes without supervision.
        self.remotes[0].send(("get_spaces", None))
        VecEnv.__init__(self, len(env_fns), *self.remotes[0].recv())

    def close(self) -> None:
        """End every process, whatever state it is in."""
        self.closed = True
        for worker in self.remotes:
            with suppress(OSError):
                worker.remote.send(("close", None))
            worker.process.join(CLOSING_SECONDS)
            worker.process.kill()
            worker.process.join()
            worker.remote.close()
