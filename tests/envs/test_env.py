"""The environments as Gymnasium and Stable-Baselines3 see them."""

from __future__ import annotations

import copy
import itertools
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.wrappers import TimeLimit
from PIL import Image
from stable_baselines3.common.env_checker import check_env as sb3_check

import distracting_envs
from distracting_envs import ENV_IDS, TASKS, env_seed, parse_env_id, tasks
from distracting_envs.env import DistractingControlEnv
from distracting_envs.settings import OTHER_TASKS
from distracting_envs.wrappers import CleanTwin

FRAME = np.zeros((240, 320, 3), np.uint8)


def make(env_id="DCS-cartpole-swingup-easy-static", **kwargs):
    kwargs = {"render_quality": "fast", "video_path": "builtin"} | kwargs
    return gymnasium.make(f"distracting_envs:{env_id}", **kwargs)


def test_every_task_of_the_suite_has_its_ids():
    named = [f"{domain}-{task}" for domain, task in tasks.suite.ALL_TASKS]
    assert sorted([*TASKS, *OTHER_TASKS]) == sorted(named)
    for task in named:
        ids = [f"DCS-{task}-clean", f"DCS-{task}-hard-dynamic"]
        assert all(parse_env_id(each) is not None for each in ids)
        assert set(ids) <= set(gymnasium.registry)
    with pytest.raises(gymnasium.error.NameNotFound, match="Did you mean: `DCS-hopper-hop-clean`"):
        gymnasium.make("DCS-hopper-hops-clean")
    env = make("DCS-hopper-hop-medium-dynamic")
    assert (env.unwrapped.domain_name, env.unwrapped.task_name) == ("hopper", "hop")
    assert env.spec.max_episode_steps == 1000
    assert env.reset(seed=0)[1]["clip"].startswith("builtin-train-0")
    env.close()


def test_the_names_of_the_42_environments_say_what_they_are():
    assert len(set(ENV_IDS)) == 42
    assert set(ENV_IDS) <= set(gymnasium.registry)
    settings = parse_env_id("DCS-ball_in_cup-catch-hard-dynamic")
    assert settings == distracting_envs.EnvSettings("ball_in_cup", "catch", "hard", True)
    assert parse_env_id("DCS-walker-walk-clean").difficulty is None


@pytest.mark.parametrize("name", ["DCS-cheetah-run", "DCS-cheetah-walk-clean", "CartPole-v1", ""])
def test_an_unknown_name_is_refused_with_the_pattern(name):
    with pytest.raises(ValueError, match=r"DCS-\{task\}.*cheetah-run"):
        parse_env_id(name)


@pytest.mark.parametrize("task", TASKS)
def test_the_environments_pass_gymnasium_and_sb3_checks(task):
    env = make(f"DCS-{task}-medium-dynamic")
    gymnasium_check(env.unwrapped)
    sb3_check(env)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_every_id_passes_gymnasiums_check(env_id):
    env = make(env_id)
    gymnasium_check(env.unwrapped)
    env.close()


def test_an_episode_is_1000_simulator_steps_and_then_truncated():
    env = make("DCS-cartpole-swingup-clean").unwrapped
    assert env.action_repeat == TASKS["cartpole-swingup"].action_repeat == 8
    assert env.spec.max_episode_steps == 1000 // 8
    env.reset(seed=0)
    ends = []
    for _ in range(1000 // 8):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        ends.append(truncated)
        assert not terminated
    assert ends == [False] * (len(ends) - 1) + [True]
    assert env.simulator_steps == 1000
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.action_space.sample())
    env.reset()
    assert env.simulator_steps == 0
    env.close()


@pytest.mark.parametrize(("action_repeat", "n_steps"), [(1, 1000), (300, 4)])
def test_the_specification_says_how_many_steps_an_episode_has(action_repeat, n_steps):
    env = make("DCS-cartpole-swingup-clean", action_repeat=action_repeat, render_mode=None)
    assert env.spec.max_episode_steps == n_steps
    assert not isinstance(env, TimeLimit), "an episode is truncated once, by the environment"
    assert gymnasium.make(env.spec, max_episode_steps=3).spec.max_episode_steps == 3
    again = gymnasium.make(env.spec)
    for each in (env, again):
        inner = each.unwrapped
        inner._draw_frame = lambda inner=inner: setattr(inner, "_frame", FRAME)
        each.reset(seed=0)
        ends = [each.step(np.zeros(1, np.float32))[3] for _ in range(n_steps)]
        assert ends == [False] * (n_steps - 1) + [True]
        assert inner.simulator_steps == 1000
        each.close()


def test_the_reward_is_the_sum_over_repeated_steps():
    single, repeated = make(action_repeat=1), make(action_repeat=6)
    single.reset(seed=4)
    repeated.reset(seed=4)
    action = np.array([0.5], np.float32)
    rewards = [single.step(action)[1] for _ in range(6)]
    assert repeated.step(action)[1] == sum(rewards)
    single.close()
    repeated.close()


def test_the_observation_is_the_frame_resized_with_an_antialiased_filter_and_the_callers():
    env = make("DCS-cheetah-run-hard-dynamic", image_size=64)
    observation, info = env.reset(seed=1)
    frame = env.render()
    assert frame.shape == (240, 320, 3)
    assert frame.dtype == observation.dtype == np.uint8
    expected = Image.fromarray(frame).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(observation, np.asarray(expected))
    assert info == {"clip": env.unwrapped.clip_name, "simulator_steps": 0, "action_repeat": 4}
    before = frame.copy()
    assert env.step(env.action_space.sample())[4] == {**info, "simulator_steps": 4}
    env.step(env.action_space.sample())
    np.testing.assert_array_equal(observation, np.asarray(expected))
    np.testing.assert_array_equal(frame, before)
    env.close()


def test_the_same_seed_gives_the_same_episode_whatever_came_before():
    env, other = make("DCS-reacher-easy-hard-dynamic"), make("DCS-reacher-easy-hard-dynamic")
    other.reset(seed=9)
    for _ in range(3):
        other.step(other.action_space.sample())
    action = np.array([0.3, -0.8], np.float32)
    np.testing.assert_array_equal(env.reset(seed=3)[0], other.reset(seed=3)[0])
    for _ in range(3):
        np.testing.assert_array_equal(env.step(action)[0], other.step(action)[0])
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
    env.close()
    other.close()


def test_static_distractions_stand_still_and_dynamic_ones_move():
    for motion, moves in (("static", False), ("dynamic", True)):
        env = make(f"DCS-walker-walk-hard-{motion}").unwrapped
        env.reset(seed=0)
        before = env.get_state()
        for _ in range(3):
            env.step(env.action_space.sample())
        after = env.get_state()
        for key in ("background/frame_index", "camera/_h_angle", "color/_current_rgb"):
            assert np.any(before[key] != after[key]) == moves, key
        env.close()


def test_train_and_val_show_different_clips():
    names = {}
    for split in ("train", "val"):
        env = make(split=split).unwrapped
        names[split] = set()
        for _ in range(12):
            env.reset()
            names[split].add(env.clip_name)
        env.close()
    assert len(names["train"]) > 1
    assert not names["train"] & names["val"]


# More than the paper.


def test_each_distraction_comes_alone_and_without_any_the_task_is_clean():
    clean = make("DCS-cheetah-run-clean")
    observation, _ = clean.reset(seed=0)
    for distraction in ("background", "camera", "color", None):
        chosen = () if distraction is None else (distraction,)
        env = make("DCS-cheetah-run-hard-static", distractions=chosen)
        distracted, _ = env.reset(seed=0)
        changed = env.unwrapped.changed_model_fields()
        assert ("mat_rgba" in changed) == (distraction == "color")
        assert ("tex_height" in changed) == (distraction == "background")
        pose, clean_pose = (e.unwrapped.physics.data.cam_xpos[0] for e in (env, clean))
        assert np.any(pose != clean_pose) == (distraction == "camera")
        assert np.any(distracted != observation) == (distraction is not None)
        env.close()
    clean.close()


def test_the_strength_of_distractions_is_a_number():
    spread = {}
    for scale in (0.0, 0.15):
        env = make("DCS-cheetah-run-easy-static", scale=scale, distractions=("color",)).unwrapped
        env.reset(seed=0)
        color = env.get_state()
        spread[scale] = np.abs(color["color/_current_rgb"] - color["color/_original_rgb"]).max()
        env.close()
    assert spread[0.0] == 0
    assert 0.1 < spread[0.15] <= 0.15 + 1e-6


@pytest.mark.parametrize(("quality", "reflects"), [("fast", False), ("paper", True)])
def test_the_floor_reflects_in_paper_quality_alone(quality, reflects):
    env = gymnasium.make("DCS-cheetah-run-easy-static", render_quality=quality)
    assert bool(env.unwrapped.physics.model.mat_reflectance.any()) == reflects
    env.close()


@pytest.mark.parametrize(
    ("domain", "task"),
    [("hopper", "hop"), ("fish", "swim"), ("quadruped", "walk"), ("lqr", "lqr_2_1")],
)
def test_other_tasks_of_the_suite_work(domain, task):
    env = gymnasium.make(
        "distracting_envs:DCS-custom",
        domain=domain,
        task=task,
        scale=0.2,
        dynamic=True,
        n_clips=2,
        video_path="builtin",
        render_quality="fast",
        action_repeat=2,
    )
    gymnasium_check(env.unwrapped)
    env.reset(seed=0)
    assert env.unwrapped.clip_name.startswith("builtin-train-0")
    assert env.unwrapped.video_folder == "builtin"
    env.close()


def test_actions_span_the_range_of_a_tasks_actuators():
    env = gymnasium.make("DCS-custom", domain="quadruped", task="walk", render_quality="fast")
    env.reset(seed=0)
    env.step(np.ones(env.action_space.shape, np.float32))
    physics = env.unwrapped.physics
    np.testing.assert_allclose(physics.data.ctrl, physics.model.actuator_ctrlrange[:, 1])
    env.close()


def test_vector_observations_come_next_to_the_pixels():
    env = make("DCS-walker-walk-easy-dynamic", vector_observations=True)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    shapes = {name: value.shape for name, value in observation.items()}
    assert shapes == {
        "pixels": (100, 100, 3),
        "orientations": (14,),
        "height": (1,),
        "velocity": (9,),
    }
    env.close()


@pytest.mark.parametrize("task", ["cheetah-run", "reacher-easy"])
def test_the_clean_twin_shows_the_same_state_without_distractions(task):
    env = CleanTwin(make(f"DCS-{task}-hard-dynamic"))
    clean = make(f"DCS-{task}-clean")
    _, info = env.reset(seed=6)
    clean.reset(seed=6)
    np.testing.assert_array_equal(info["clean"], clean.render())
    rng = np.random.default_rng(0)
    for _ in range(3):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        _, reward, _, _, info = env.step(action)
        assert reward == clean.step(action)[1]
        np.testing.assert_array_equal(info["clean"], clean.render())
    env.close()
    clean.close()


# Copies, seeds, ends.


def test_a_copy_is_made_from_the_arguments():
    env = make("DCS-reacher-easy-easy-dynamic", image_size=32)
    for duplicate in (copy.deepcopy(env.unwrapped), pickle.loads(pickle.dumps(env.unwrapped))):
        np.testing.assert_array_equal(duplicate.reset(seed=2)[0], env.reset(seed=2)[0])
        duplicate.close()
    env.close()


def test_seeds_of_workers_splits_and_experiments_never_meet():
    settings = itertools.product([0, 1, 2, 41], range(20), ["train", "val"])
    seeds = [env_seed(*setting) for setting in settings]
    assert len(set(seeds)) == len(seeds)
    assert max(env_seed(2**21 - 1, 1023, split) for split in ("train", "val")) == 2**32 - 1


def test_without_a_mode_nothing_is_rendered_and_a_closed_environment_stays_closed():
    env = make(render_mode=None).unwrapped
    env.reset(seed=0)
    assert env.render() is None
    env.close()
    env.close()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        env.reset()


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("split", "test", "'train', 'val'"),
        ("distractions", "camera", "tuple"),
        ("distractions", ("fog",), "'background', 'camera', 'color'"),
        ("action_repeat", 0, ">= 1"),
        ("image_size", 84.0, "whole number"),
        ("render_quality", "best", "'paper', 'fast'"),
        ("scale", 1.5, r"in \[0, 1\]"),
        ("n_clips", 0, ">= 1"),
        ("n_clips", 61, "has 60"),
        ("memory_cache_gb", -1, ">= 0"),
        ("disk_cache_gb", float("nan"), ">= 0"),
    ],
)
def test_a_bad_argument_is_named_with_its_rule_and_value(argument, value, rule):
    with pytest.raises(ValueError, match=rule) as caught:
        make(**{argument: value})
    assert argument in str(caught.value)
    assert str(value) in str(caught.value)


def test_bad_tasks_and_render_modes_are_named():
    with pytest.raises(ValueError, match=r"render_mode must be .* 'rgb_array', got 'depth'"):
        DistractingControlEnv("cheetah", "run", render_mode="depth")
    with pytest.raises(ValueError, match=r"cheetah.*fly.*run"):
        gymnasium.make("DCS-custom", domain="cheetah", task="fly")
    with pytest.raises(ValueError, match=r"'camera' for dog-fetch.*leave it out"):
        gymnasium.make("DCS-custom", domain="dog", task="fetch", scale=0.1, video_path="builtin")
    with pytest.raises(ValueError, match="dynamic must come with a difficulty or a scale"):
        gymnasium.make("DCS-custom", domain="cheetah", task="run", dynamic=True)
    with pytest.raises(ValueError, match="distractions must come with a difficulty or a scale"):
        gymnasium.make("DCS-custom", domain="cheetah", task="run", distractions=["camera"])


def test_bad_actions_and_seeds_are_refused():
    env = make().unwrapped
    env.reset(seed=0)
    for action in (np.zeros(2), np.array([np.nan]), 0.0):
        with pytest.raises(ValueError, match=r"action must be finite and of shape \(1,\)"):
            env.step(action)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="seed must be"):
            env.reset(seed=seed)
    env.close()


def test_a_large_action_repeat_can_be_rendered(davis_root):
    env = gymnasium.make(
        "distracting_envs:DCS-reacher-easy-easy-static",
        video_path=davis_root,
        render_quality="fast",
        render_mode="rgb_array",
        action_repeat=200,
    )
    env.reset(seed=0)
    assert env.metadata["render_fps"] == 1
    assert env.render().shape == (240, 320, 3)
    env.close()
