"""The environments give what ``distracting_control`` gives, to the last bit.

``distracting_control`` renders at every simulator step, so these tests keep episodes short.
"""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest

from distracting_envs.original import load_original, patched_original
from distracting_envs.settings import DIFFICULTIES, TASKS

SETTINGS = list(itertools.product(TASKS, DIFFICULTIES, ["static", "dynamic"]))
FAST_SETTINGS = [
    ("cartpole-swingup", "medium", "dynamic"),
    ("reacher-easy", "hard", "static"),
    ("walker-walk", "easy", "dynamic"),
]


class Recorder:
    """Stands between an environment and its dm_control stack, and notes every simulator step."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.trace: list[dict[str, Any]] = []

    def reset(self) -> Any:
        time_step = self._env.reset()
        self._note(time_step)
        return time_step

    def step(self, action: Any) -> Any:
        time_step = self._env.step(action)
        self._note(time_step)
        return time_step

    def _note(self, time_step: Any) -> None:
        physics = self._env.physics
        camera = wrapper_of(self._env, "DistractingCameraEnv")
        self.trace.append(
            {
                "reward": time_step.reward,
                "qpos": physics.data.qpos.copy(),
                "qvel": physics.data.qvel.copy(),
                "target or other geometry": physics.model.geom_pos.copy(),
                "camera position": physics.data.cam_xpos.copy(),
                "camera orientation": physics.data.cam_xmat.copy(),
                "camera velocity": camera._camera_vel.copy(),
                "colours": physics.model.mat_rgba.copy(),
                "picture": self._picture(),
            }
        )

    def _picture(self) -> tuple[str, int]:
        stack = self._env
        while not hasattr(type(stack), "_reset_background") and not hasattr(type(stack), "upload"):
            stack = stack._env
        if hasattr(type(stack), "upload"):
            return len(stack._frames), stack._frame_index
        return len(stack._background.textures), stack._current_img_index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


def wrapper_of(env: Any, class_name: str) -> Any:
    """Return the wrapper of that class in a stack of dm_control wrappers."""
    while type(env).__name__ != class_name:
        env = env._env
    return env


@pytest.fixture(scope="module")
def original_suite():
    with patched_original() as suite:
        yield suite


def check_agreement(original_suite, davis_root, setting, seed, agent_steps, split="train") -> None:
    task, difficulty, motion = setting
    ours = gymnasium.make(
        f"DCS-{task}-{difficulty}-{motion}", video_path=davis_root, split=split
    ).unwrapped
    theirs = load_original(
        original_suite,
        TASKS[task].domain,
        TASKS[task].task,
        difficulty,
        dynamic=motion == "dynamic",
        frames_folder=davis_root / "JPEGImages" / "480p",
        seed=seed,
        split=split,
    )
    our_trace = Recorder(ours._env)
    their_trace = Recorder(theirs._env)
    ours._env, theirs._env = our_trace, their_trace

    ours.reset(seed=seed)
    time_step = theirs.reset()
    np.testing.assert_array_equal(ours.render(), time_step.observation["pixels"])
    rng = np.random.default_rng(seed)
    for agent_step in range(agent_steps):
        action = rng.uniform(-1, 1, ours.action_space.shape).astype(np.float32)
        _, reward, *_ = ours.step(action)
        expected_reward = 0.0
        for _ in range(ours.action_repeat):
            time_step = theirs.step(action)
            expected_reward += time_step.reward
        assert reward == expected_reward
        np.testing.assert_array_equal(
            ours.render(), time_step.observation["pixels"], err_msg=f"frame {agent_step}"
        )
    assert len(our_trace.trace) == len(their_trace.trace) == 1 + agent_steps * ours.action_repeat
    for step, (our, their) in enumerate(zip(our_trace.trace, their_trace.trace, strict=True)):
        for name, value in their.items():
            np.testing.assert_array_equal(our[name], value, err_msg=f"{name}, step {step}")
    ours._env, theirs._env = our_trace._env, their_trace._env
    ours.close()
    theirs.physics.free()


@pytest.mark.parametrize("setting", FAST_SETTINGS, ids="-".join)
def test_frames_states_and_distractions_equal_the_original(original_suite, davis_root, setting):
    check_agreement(original_suite, davis_root, setting, seed=7, agent_steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_every_setting_equals_the_original(original_suite, davis_root, setting, split):
    check_agreement(original_suite, davis_root, setting, seed=123, agent_steps=5, split=split)
