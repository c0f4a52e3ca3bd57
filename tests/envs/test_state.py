"""The exact state of an environment can be taken down and put back."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

IDS = [
    "DCS-ball_in_cup-catch-hard-dynamic",
    "DCS-cartpole-swingup-easy-static",
    "DCS-cheetah-run-medium-dynamic",
    "DCS-finger-spin-easy-dynamic",
    "DCS-reacher-easy-hard-dynamic",
    "DCS-walker-walk-clean",
]


def make(env_id, davis_root, **kwargs):
    return gymnasium.make(
        f"distracting_envs:{env_id}", video_path=davis_root, render_quality="fast", **kwargs
    ).unwrapped


def play(env, n_steps, seed):
    """Return observations, rewards and frames of random actions, across ends of episodes."""
    rng = np.random.default_rng(seed)
    trace = []
    for _ in range(n_steps):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        trace += [observation, np.float64(reward), env.render()]
        if terminated or truncated:
            trace.append(env.reset()[0])
    return trace


def assert_same_traces(first, second):
    assert len(first) == len(second)
    for step, (a, b) in enumerate(zip(first, second, strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=f"entry {step}")


def test_terrain_is_restored_and_lqr_is_made_the_same_each_time():
    for env_id in ("DCS-quadruped-escape-clean", "DCS-lqr-lqr_2_1-clean"):
        env, other = (make(env_id, None) for _ in range(2))
        env.reset(seed=0)
        other.reset(seed=1)
        other.set_state(env.get_state())
        np.testing.assert_array_equal(other.render(), env.render())
        assert_same_traces(play(other, 3, seed=0), play(env, 3, seed=0))
        env.close()
        other.close()


def test_a_refused_state_changes_nothing(davis_root):
    env_id = "DCS-cheetah-run-medium-static"
    env, other, untouched = (make(env_id, davis_root, split=s) for s in ("train", "val", "val"))
    for each in (env, other, untouched):
        each.reset(seed=5)
    with pytest.raises(ValueError, match="state must show a clip of this environment"):
        other.set_state(env.get_state())
    np.testing.assert_array_equal(other.reset()[0], untouched.reset()[0])
    for each in (env, other, untouched):
        each.close()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        env.get_state()


@pytest.mark.parametrize("env_id", IDS)
def test_a_fresh_environment_resumes_bit_for_bit(env_id, davis_root):
    env, other = make(env_id, davis_root), make(env_id, davis_root)
    env.reset(seed=5)
    play(env, 7, seed=0)
    state = env.get_state()
    frame = env.render()
    expected = [*play(env, 8, seed=1), env.reset()[0], *play(env, 4, seed=2)]

    other.reset(seed=99)
    play(other, 3, seed=3)
    other.set_state(state)
    np.testing.assert_array_equal(other.render(), frame)
    actual = [*play(other, 8, seed=1), other.reset()[0], *play(other, 4, seed=2)]
    assert_same_traces(actual, expected)
    env.close()
    other.close()


def test_the_state_survives_the_end_of_an_episode(davis_root):
    env = make("DCS-cartpole-swingup-medium-dynamic", davis_root, action_repeat=100)
    env.reset(seed=1)
    play(env, 6, seed=0)
    state = env.get_state()
    expected = play(env, 10, seed=1)
    other = make("DCS-cartpole-swingup-medium-dynamic", davis_root, action_repeat=100)
    other.set_state(state)
    assert_same_traces(play(other, 10, seed=1), expected)
    assert env.simulator_steps == other.simulator_steps == 600
    env.close()
    other.close()


def test_the_state_is_plain_and_small_and_survives_a_file_and_playing_on(davis_root, tmp_path):
    env = make("DCS-walker-walk-hard-dynamic", davis_root)
    env.reset(seed=2)
    play(env, 3, seed=0)
    state = env.get_state()
    assert all(isinstance(value, np.ndarray | int | float | str) for value in state.values())
    assert sum(getattr(value, "nbytes", 8) for value in state.values()) < 50_000
    np.savez(tmp_path / "state.npz", **state)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        loaded = {
            name: file[name].item() if not isinstance(state[name], np.ndarray) else file[name]
            for name in file
        }
    expected = play(env, 4, seed=1)
    env.set_state(state)
    assert_same_traces(play(env, 4, seed=1), expected)
    for name, value in loaded.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)
    env.set_state(loaded)
    assert_same_traces(play(env, 4, seed=1), expected)
    env.close()


def test_a_state_of_another_task_or_of_other_distractions_or_clips_is_refused(davis_root):
    env = make("DCS-walker-walk-hard-dynamic", davis_root)
    env.reset(seed=0)
    for other, message in (
        (make("DCS-walker-walk-easy-dynamic", davis_root), r"scale=0\.1.*scale=0\.3"),
        (
            make("DCS-walker-walk-hard-dynamic", davis_root, split="val"),
            "same video_path and split",
        ),
        (make("DCS-cheetah-run-hard-dynamic", davis_root), r"cheetah-run.*walker-walk"),
    ):
        with pytest.raises(ValueError, match=message):
            other.set_state(env.get_state())
        other.close()
    env.close()
