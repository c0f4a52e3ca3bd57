"""Environments are brought back to where they were, wrappers included."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from core_agent.saving.resumable import Resumable, get_env_state, make_resumable, set_env_state
from tests.fakes import VECTOR, FakeEnv, SavableEnv


def make(env_class=SavableEnv, wrap=Monitor):
    return Resumable(wrap(env_class(VECTOR, length=5)))


def play(env, n_steps: int):
    """Rewards, observations and episode statistics, through episodes' ends."""
    trace = []
    for step in range(n_steps):
        action = np.full(2, 0.1 * step, np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        statistics = {key: value for key, value in info.get("episode", {}).items() if key != "t"}
        trace.append((np.asarray(observation).tolist(), reward, truncated, str(statistics)))
        if terminated or truncated:
            trace.append(np.asarray(env.reset()[0]).tolist())
    return trace


@pytest.mark.parametrize("n_steps", [0, 3, 5, 7])
@pytest.mark.parametrize(
    "wrap",
    [
        Monitor,
        lambda env: TimeLimit(env, 4),
        lambda env: FrameStackObservation(Monitor(env), 3),
        lambda env: RecordEpisodeStatistics(env),
        lambda env: gym.wrappers.TransformReward(env, lambda reward: 2 * reward),
    ],
)
def test_an_environment_that_can_save_resumes_from_any_step(wrap, n_steps):
    env, other = make(wrap=wrap), make(wrap=wrap)
    env.reset(seed=1)
    play(env, n_steps)
    state = env.get_state()
    assert state["exact"]
    expected = play(env, 12)
    other.set_state(state)
    assert play(other, 12) == expected


@pytest.mark.parametrize("seed", [3, None])
def test_any_other_resumes_from_an_episode_s_start(seed):
    env, other = make(FakeEnv), make(FakeEnv)
    env.reset(seed=1)
    play(env, 2)
    env.reset(seed=seed)
    state = env.get_state()
    assert state["exact"]
    expected = play(env, 12)
    other.set_state(state)
    assert play(other, 12) == expected


def test_any_other_starts_a_new_episode_when_within_one():
    env, other = make(FakeEnv), make(FakeEnv)
    env.reset(seed=1)
    play(env, 2)
    state = env.get_state()
    assert not state["exact"]
    expected = [np.asarray(env.reset()[0]).tolist(), *play(env, 3)]
    other.set_state(state)
    other.set_state(state)
    assert play(other, 3) == expected[1:]


@pytest.mark.parametrize("thing", [object(), {1: 2.5}, {"a": {object()}}])
def test_a_wrapper_with_something_unknown_is_not_trusted(thing):
    class Opaque(gym.Wrapper):
        def __init__(self, env: gym.Env) -> None:
            super().__init__(env)
            self.thing = thing

    env = make(wrap=Opaque)
    env.reset(seed=1)
    assert env.get_state()["exact"], "an episode's start is known in any case"
    play(env, 1)
    assert not env.get_state()["exact"]


def test_a_state_does_not_change_as_the_environment_continues():
    env = make(wrap=lambda inner: FrameStackObservation(Monitor(inner), 2))
    env.reset(seed=1)
    play(env, 2)
    state = env.get_state()
    rewards = list(state["wrappers"][1]["rewards"])
    play(env, 2)
    assert state["wrappers"][1]["rewards"] == rewards


def test_an_environment_is_wrapped_once():
    env = DummyVecEnv([FakeEnv])
    make_resumable(env)
    make_resumable(VecNormalize(env, norm_obs=False))
    assert isinstance(env.envs[0], Resumable)
    assert not isinstance(env.envs[0].env, Resumable)


def test_statistics_of_normalisation_come_back():
    def vec():
        return VecNormalize(DummyVecEnv([lambda: SavableEnv(VECTOR)] * 2))

    env, other = vec(), vec()
    for each in (env, other):
        make_resumable(each)
        each.reset()
    for step in range(9):
        env.step(np.full((2, 2), 0.1 * step, np.float32))
    set_env_state(other, get_env_state(env))
    np.testing.assert_array_equal(other.obs_rms.var, env.obs_rms.var)
    np.testing.assert_array_equal(other.returns, env.returns)
    actions = np.ones((2, 2), np.float32)
    np.testing.assert_array_equal(other.step(actions)[0], env.step(actions)[0])


def test_environments_out_of_reach_are_told_inexact():
    env = DummyVecEnv([lambda: SavableEnv(VECTOR)])
    env.reset()
    state = get_env_state(env)
    assert not state["exact"] and state["envs"] == []


def test_environments_after_a_fault_are_not_taken_down():
    env = DummyVecEnv([lambda: SavableEnv(VECTOR)])
    make_resumable(env)
    env.reset()
    assert get_env_state(env)["exact"]
    assert not get_env_state(env, trusted=False)["exact"]
