"""Environments whose processes die or hang: restarted once, then a clear error."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from core_agent import RecurrentSAC
from core_agent.environments import workers
from core_agent.environments.make import make_vec_env
from core_agent.environments.workers import SupervisedSubprocVecEnv, WorkerFailedError
from tests.fakes import TINY, FakeEnv

pytestmark = pytest.mark.filterwarnings(
    # Forked workers start in milliseconds; Python 3.12 and later warn of forking with threads.
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


class FailingEnv(FakeEnv):
    """Observes ``[seed of the reset, step]``; fails at a step as often as told, over processes.

    :param folder: where failures are counted, out of reach of the process that dies
    :param way: "die", "hang" or "raise"
    :param at: step to fail at; 0: while it is reset; -1: while it is made
    :param n_failures: how often
    """

    def __init__(
        self, folder: Path, way: str = "die", at: int = 3, n_failures: int = 1, length: int = 6
    ) -> None:
        super().__init__(spaces.Box(0, 2.0**32, (2,), np.float64), length)
        self.folder, self.way, self.at, self.n_failures = folder, way, at, n_failures
        self.seed = 0
        self.speed = 1
        self.fail_at(-1)

    def fail_at(self, step: int) -> None:
        failures = len(list(self.folder.iterdir()))
        if step != self.at or failures >= self.n_failures:
            return
        (self.folder / str(failures)).touch()
        if self.way == "hang":
            time.sleep(1_000)
        if self.way == "raise":
            raise RuntimeError("a mistake in the environment")
        os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, *, seed=None, options=None):
        self.seed = self.seed if seed is None else seed
        self.step_count = 0
        self.fail_at(0)
        return super().reset(seed=seed)

    def step(self, action):
        self.fail_at(self.step_count + 1)
        return super().step(action)

    def observe(self):
        return np.array([self.seed, self.step_count], np.float64)


class RegisteredEnv(FakeEnv):
    def __init__(self, render_mode: str, length: int = 6) -> None:
        super().__init__(spaces.Box(0, 1, (2,), np.float32), length)
        self.render_mode = render_mode


def make_envs(folder: Path, n_envs: int = 2, start_method: str = "fork", **kwargs):
    """Environments of which number 0 fails."""
    folder.mkdir(exist_ok=True)
    supervision = {key: kwargs.pop(key) for key in ("timeout", "max_restarts") if key in kwargs}
    makers = [partial(monitored, folder, **kwargs)]
    makers += [partial(monitored, folder, n_failures=0)] * (n_envs - 1)
    env = SupervisedSubprocVecEnv(makers, start_method, **{"timeout": 30.0, **supervision})
    env.seed(100)
    return env


def monitored(folder: Path, **kwargs) -> gym.Env:
    return Monitor(FailingEnv(folder, **kwargs))


def steps(env, n_steps: int):
    actions = np.zeros((env.num_envs, 2), np.float32)
    return [env.step(actions) for _ in range(n_steps)]


def processes(env) -> list[Any]:
    return [worker.process for worker in env.remotes]


def assert_no_process_is_left(env) -> None:
    assert not any(process.is_alive() for process in processes(env))
    assert not multiprocessing.active_children()
    for process in processes(env):
        # A zombie would still have an entry.
        assert not Path(f"/proc/{process.pid}").exists()


def test_an_answer_that_was_not_waited_for_is_not_taken_for_the_next_one(tmp_path):
    """As after Ctrl-C between asking for a step and its answer."""
    env = make_envs(tmp_path / "failures", n_failures=0)
    env.reset()
    steps(env, 2)
    env.step_async(np.zeros((2, 2), np.float32))
    assert env.reset()[:, 1].tolist() == [0, 0]
    ((observations, *_),) = steps(env, 1)
    assert observations[:, 1].tolist() == [1, 1]
    env.close()


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("die", "environment 0 died with exit code -9"),
        ("raise", "environment 0 died with exit code 1"),
        ("hang", "environment 0 gave no answer within 1 s"),
    ],
)
def test_a_worker_that_fails_is_restarted_with_the_loss_of_its_episode(
    tmp_path, caplog, monkeypatch, way, told
):
    env = make_envs(tmp_path / "failures", way=way)
    assert env.reset().tolist() == [[100, 0], [101, 0]]
    steps(env, 2)
    if way == "hang":
        monkeypatch.setattr(workers, "CLOSING_SECONDS", 0.2)
        env.remotes[0].timeout = 1.0  # for the next answer, and of the one that hangs alone
    with caplog.at_level(logging.WARNING):
        ((observations, rewards, dones, infos),) = steps(env, 1)
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith(told)
    assert "started again (1 of at most 1)" in caplog.messages[0]
    assert observations[:, 1].tolist() == [0, 3]
    assert rewards.tolist() == [0, 0]
    assert dones.tolist() == [True, False]
    assert infos[0].pop("terminal_observation").tolist() == [100, 2]
    assert infos[0] == {"episode_lost": True, "TimeLimit.truncated": True}
    assert "episode_lost" not in infos[1]
    *_, (_, _, dones, infos) = steps(env, 6)
    assert dones.tolist() == [True, False]
    assert infos[0]["episode"]["l"] == 6
    env.close()
    assert_no_process_is_left(env)


def test_a_restarted_environment_has_a_seed_of_its_own(tmp_path):
    seeds = []
    for run in range(2):
        random.seed(0)  # as an agent with a seed does
        env = make_envs(tmp_path / str(run), n_envs=3, at=1, n_failures=2, max_restarts=2)
        env.reset()
        seeds.append([steps(env, 1)[0][0][0, 0] for _ in range(2)])
        env.close()
    first, second = seeds
    assert first == second, "restarts are as random as the run's seed makes them"
    assert len({100, 101, 102, *first}) == 5


@pytest.mark.parametrize("at", [3, 0, -1])
def test_a_second_failure_is_an_error_and_leaves_no_process(tmp_path, at):
    envs = []

    def run() -> None:
        envs.append(make_envs(tmp_path / "failures", at=at, n_failures=2))
        envs[0].reset()
        steps(envs[0], 10)

    with pytest.raises(
        WorkerFailedError, match=r"environment 0 died.*restarted 1 time.*max_restarts"
    ):
        run()
    assert not multiprocessing.active_children()
    for env in envs:
        assert env.closed
        assert_no_process_is_left(env)
        env.close()


@pytest.mark.parametrize("at", [0, -1])
def test_a_worker_that_fails_before_its_first_episode_loses_none(tmp_path, caplog, at):
    env = make_envs(tmp_path / "failures", at=at)
    observations = env.reset()
    assert len(caplog.records) == 1
    assert observations[:, 1].tolist() == [0, 0]
    assert observations[1, 0] == 101
    (_, _, dones, infos), *_ = steps(env, 6)
    assert not dones.any()
    assert "episode_lost" not in infos[0]
    env.close()


def test_a_worker_killed_between_steps_is_noticed_at_the_next_call(tmp_path, caplog):
    env = make_envs(tmp_path / "failures", n_failures=0)
    env.reset()
    steps(env, 2)
    env.set_attr("speed", 7)
    processes(env)[0].kill()
    processes(env)[0].join()
    assert env.get_attr("length") == [6, 6]
    assert env.env_method("get_wrapper_attr", "speed") == [7, 7]
    assert len(caplog.records) == 1
    (_, _, dones, infos), (observations, *_) = steps(env, 2)
    assert dones.tolist() == [True, False]
    assert infos[0]["terminal_observation"].tolist() == [100, 2]
    assert observations[:, 1].tolist() == [1, 4]
    env.close()


def test_a_reset_after_a_loss_starts_a_new_episode(tmp_path):
    env = make_envs(tmp_path / "failures", n_failures=0)
    env.reset()
    processes(env)[0].kill()
    env.get_attr("length")
    assert env.reset()[:, 1].tolist() == [0, 0]
    assert "episode_lost" not in steps(env, 1)[0][3][0]
    env.close()


def test_hanging_workers_do_not_stop_closing(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CLOSING_SECONDS", 0.2)
    env = make_envs(tmp_path / "failures", way="hang", at=1)
    env.reset()
    env.step_async(np.zeros((2, 2), np.float32))
    env.close()
    assert_no_process_is_left(env)


def test_workers_leave_ctrl_c_to_the_main_process(tmp_path):
    env = make_envs(tmp_path / "failures", n_failures=0)
    env.reset()
    for process in processes(env):
        os.kill(process.pid, signal.SIGINT)
    assert not steps(env, 1)[0][2].any()
    env.close()


@pytest.mark.parametrize("normalize", [False, True])
def test_training_continues_through_a_restart(tmp_path, normalize):
    env = make_envs(tmp_path / "failures", at=4)
    wrapped = VecNormalize(env) if normalize else env
    model = RecurrentSAC("MlpPolicy", wrapped, **{**TINY, "learning_starts": 4}).learn(48)
    assert model._n_updates > 0
    assert model.num_timesteps == 48
    # 24 steps each: 4 episodes of 6, and 3 steps, one that never happened, 3 episodes and 2 steps.
    assert [episode["l"] for episode in model.ep_info_buffer] == [6] * 7
    assert sorted(ep.n_steps for ep in model.replay_buffer.episodes) == [2, 3] + [6] * 7
    for episode in model.replay_buffer.episodes:
        frames = episode.frames["observation"].numpy()
        assert np.unique(frames[:, 0]).size == 1, "frames of two episodes in one"
        assert frames[:, 1].tolist() == list(range(episode.n_steps + 1))
        assert not episode.terminated
    env.close()


def test_ids_that_only_this_process_registered_run_in_others():
    gym.register("Failing-v0", entry_point=RegisteredEnv)
    try:
        env = make_vec_env("Failing-v0", env_kwargs={"length": 2}, vec_env_kwargs={})
        assert isinstance(env, SupervisedSubprocVecEnv)
        env.reset()
        assert env.env_is_wrapped(Monitor) == [True]
        _, (_, _, dones, infos) = steps(env, 2)
        assert dones.all()
        assert infos[0]["episode"]["l"] == 2
        env.close()
        assert_no_process_is_left(env)
        assert isinstance(make_vec_env("Failing-v0"), DummyVecEnv)
    finally:
        del gym.registry["Failing-v0"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(env_id="nope:Nope-v0"), "env must be the id of a registered environment"),
        (dict(vec_env_kwargs=dict(timeout=0)), "timeout must be a number > 0, got 0"),
    ],
)
def test_bad_arguments_are_named_before_a_process_starts(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_vec_env(**{"env_id": "Pendulum-v1", **kwargs})
    assert not multiprocessing.active_children()
