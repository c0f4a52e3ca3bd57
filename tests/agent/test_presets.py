"""Presets and what follows from an environment's id."""

from __future__ import annotations

import pytest
from gymnasium import spaces

from core_agent import CoRe
from core_agent.algorithm import PAPER_SIMULATOR_STEPS
from core_agent.presets import PRESETS, preset
from tests.agent.fakes import TINY, FakeEnv


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name):
    env_size = PRESETS[name].env_arguments.get("image_size", 100)
    env = FakeEnv(spaces.Box(0, 255, (env_size, env_size, 3), "uint8"))
    model = CoRe("CnnPolicy", env, **preset(name), device="cpu")
    assert model.batch_size == preset(name).get("batch_size", 32)


def test_overrides_win_and_policy_kwargs_are_merged():
    arguments = preset("small", batch_size=4, policy_kwargs=dict(stoch_dim=3))
    assert arguments["batch_size"] == 4
    assert arguments["policy_kwargs"]["stoch_dim"] == 3
    assert arguments["policy_kwargs"]["actor_dims"] == (256, 256)
    assert "stoch_dim" in PRESETS["small"].arguments["policy_kwargs"]
    assert PRESETS["small"].arguments["policy_kwargs"]["stoch_dim"] != 3


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be one of .*'small'.*got 'tiny'"):
        preset("tiny")


def test_release_follows_the_experiments():
    model = CoRe(
        "CnnPolicy", FakeEnv(), **{**TINY, **preset("release", policy_kwargs=TINY["policy_kwargs"])}
    )
    assert model.smooth_reward_loss
    assert model.policy.sample_when_deterministic
    assert model.policy.actor.net.activation.__name__ == "relu"


def test_an_action_repeat_gives_the_papers_length():
    class Repeating(FakeEnv):
        action_repeat = 50_000

    model = CoRe("CnnPolicy", Repeating(), **TINY).learn()
    assert model.num_timesteps >= PAPER_SIMULATOR_STEPS // 50_000
    assert model.num_timesteps < 20


def test_simulator_steps_count_the_action_repeat():
    class Repeating(FakeEnv):
        action_repeat = 4

    assert CoRe("CnnPolicy", Repeating(), **TINY).action_repeat == 4
