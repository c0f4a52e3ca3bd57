"""Presets and what follows from an environment's id."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from core_agent import CoRe
from core_agent.agents.loop import PAPER_SIMULATOR_STEPS
from core_agent.agents.presets import ABLATIONS, AGENT_NAMES, PRESETS, SIZES, get_preset, preset
from core_agent.agents.registry import AGENTS
from core_agent.networks.actor_critic import CLAMP
from core_agent.runs import training
from core_agent.zoo import CONFIGS
from tests.fakes import TINY, VECTOR, FakeEnv

BUILDS = [(name, agent) for name in SIZES for agent in SIZES[name].arguments]


@pytest.mark.parametrize(("name", "agent"), BUILDS)
def test_every_size_builds_every_agent_that_it_is_for(name, agent):
    env_size = PRESETS[name].env_arguments.get("image_size", 40)
    env = FakeEnv(spaces.Box(0, 255, (env_size, env_size, 3), "uint8"))
    arguments = preset(name, agent)
    model = AGENTS[agent]("CnnPolicy", env, **arguments, device="cpu")
    for argument, value in arguments.items():
        if argument == "train_freq":
            assert tuple(model.train_freq) == (value[0], TrainFrequencyUnit(value[1]))
        else:
            assert getattr(model, argument) == value


def test_sizes_are_for_every_agent_and_ablations_for_core():
    for name in ("paper", "small", "debug"):
        assert tuple(PRESETS[name].arguments) == AGENT_NAMES == tuple(AGENTS)
    assert tuple(PRESETS["vector"].arguments) == ("core", "recurrent_sac")
    for ablation in (*ABLATIONS, "release"):
        assert tuple(PRESETS[ablation].arguments) == ("core",)


@pytest.mark.parametrize("agent", ["core", "recurrent_sac"])
def test_networks_for_vectors_have_sacs_layers_and_no_more_frames_than_its_batch(agent):
    arguments = preset("vector", agent, learning_starts=8, buffer_size=100, device="cpu")
    model = AGENTS[agent]("MlpPolicy", FakeEnv(VECTOR), **arguments)
    n_inputs = model.policy.world_model.latent_dim
    layers = [m for m in model.policy.actor.modules() if isinstance(m, torch.nn.Linear)]
    assert [layer.in_features for layer in layers] == [n_inputs, 256, 256]
    assert model.batch_size * model.sequence_length <= 256
    assert model.learn(14)._n_updates == 4


def test_overrides_win_and_policy_kwargs_are_merged():
    arguments = preset("small", batch_size=4, policy_kwargs=dict(stoch_dim=3))
    assert arguments["batch_size"] == 4
    assert arguments["policy_kwargs"]["stoch_dim"] == 3
    assert arguments["policy_kwargs"]["actor_dims"] == (256, 256)
    assert preset("small")["policy_kwargs"]["stoch_dim"] == 32


def test_presets_are_combined_with_a_plus_the_later_ones_winning():
    arguments = preset("small+core-gating+core-posterior")
    assert arguments["batch_size"] == 16
    assert arguments["contrastive_from"] == "posterior"
    assert arguments["policy_kwargs"] == {**preset("small")["policy_kwargs"], "gating": True}
    assert get_preset("core-gating+small").env_arguments["image_size"] == 64
    assert preset("core-beta-0.1+core-beta-0.001")["kl_coef"] == 0.001
    assert preset("small+debug", "curl")["batch_size"] == 2


ABLATED = {
    "core-fwd": dict(reward_coef=0.0, inverse_coef=0.0),
    "core-fwd-inv": dict(reward_coef=0.0, inverse_coef=1.0),
    "core-fwd-reward": dict(reward_coef=1.0, inverse_coef=0.0),
    "core-posterior": dict(contrastive_from="posterior", kl_coef=0.01),
    "core-no-critic-model": dict(train_model_with_critic=False),
    "core-gating": {},
    "core-beta-0.0001": dict(kl_coef=1e-4),
    "core-beta-0.001": dict(kl_coef=1e-3),
    "core-beta-0.01": dict(kl_coef=1e-2),
    "core-beta-0.1": dict(kl_coef=0.1),
    "core-beta-1": dict(kl_coef=1.0),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_it_says_and_learns(name):
    sizes = {key: value for key, value in TINY.items() if key != "policy_kwargs"}
    arguments = preset(name, policy_kwargs=TINY["policy_kwargs"], **sizes)
    model = CoRe("CnnPolicy", FakeEnv(), **arguments)
    for argument, value in ABLATED[name].items():
        assert getattr(model, argument) == value
    (encoder,) = model.policy.observation_encoder.image_encoders.values()
    assert (encoder.gate is not None) == (name == "core-gating")
    assert model.learn(14)._n_updates > 0


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_goes_with_the_sizes_for_cpus(name):
    env = FakeEnv(spaces.Box(0, 255, (64, 64, 3), "uint8"))
    for size in ("small", "vector"):
        CoRe("auto", env, **preset(f"{size}+{name}", device="cpu"))


def test_a_preset_for_another_agent_is_refused():
    with pytest.raises(ValueError, match=r"preset must be one for 'curl', got 'small\+core-fwd'"):
        preset("small+core-fwd", "curl")
    with pytest.raises(ValueError, match=r"agent must be one of .*, got 'ppo'"):
        preset("small", "ppo")


def test_release_follows_the_experiments():
    model = CoRe(
        "CnnPolicy", FakeEnv(), **{**TINY, **preset("release", policy_kwargs=TINY["policy_kwargs"])}
    )
    assert model.smooth_reward_loss
    assert model.policy.sample_when_deterministic
    assert model.policy.actor.net.activation.__name__ == "relu"
    assert model.policy.actor.bound == CLAMP
    assert model.model_loss_options.contrast_first_frame
    assert preset("release+core-posterior")["contrastive_from"] == "posterior"


def test_the_gate_of_release_has_an_elu_before_its_sigmoid():
    for name, expected in (("release+core-gating", True), ("core-gating", False)):
        arguments = preset(name, policy_kwargs=TINY["policy_kwargs"])
        model = CoRe("CnnPolicy", FakeEnv(), **{**TINY, **arguments})
        (encoder,) = model.policy.observation_encoder.image_encoders.values()
        assert encoder.gate.last_elu == expected
        assert model.learn(14)._n_updates > 0


@pytest.mark.parametrize("agent", AGENT_NAMES)
def test_a_task_has_one_learning_rate_in_presets_runs_and_rl_zoo(agent, monkeypatch):
    """The papers of SAC + RAD and CURL learn the cheetah at 2e-4, all else at 1e-3."""
    config = yaml.safe_load((CONFIGS / f"{agent}.yml").read_text())
    made: list[dict] = []
    monkeypatch.setattr(
        training,
        "get_agent",
        lambda name: lambda **kw: made.append(kw) or SimpleNamespace(origin={}),
    )
    for env_id, entry in config.items():
        if not env_id.startswith("DCS-"):
            continue
        lower = agent in ("sacrad", "curl") and "cheetah" in env_id
        training.new_model(training.Run(env_id, agent), None, Path())
        rates = {"learning_rate", "actor_learning_rate"} & made[-1].keys()
        assert len(rates) == 2 * lower
        defaults = inspect.signature(AGENTS[agent]).parameters
        for name in ("learning_rate", "actor_learning_rate"):
            if name in defaults:
                used = made[-1].get(name, defaults[name].default)
                assert entry[name] == used
                assert not lower or used == 2e-4


def test_overrides_win_over_a_tasks_arguments():
    env_id = "DCS-cheetah-run-easy-dynamic"
    assert preset("paper", "curl", env_id=env_id, learning_rate=0.1)["learning_rate"] == 0.1
    assert preset("paper", "qtopt_rad", env_id=env_id) == {}


def test_small_makes_separate_steps_where_rewards_are_rare():
    assert preset("small")["joint_update"]
    for env_id in ("DCS-ball_in_cup-catch-clean", "distracting_envs:DCS-ball_in_cup-catch-clean"):
        ball = preset("small", env_id=env_id)
        assert ball == {**preset("small"), "joint_update": False}


def test_a_tasks_arguments_belong_to_a_preset_and_later_presets_win():
    env_id = "DCS-ball_in_cup-catch-easy-dynamic"
    assert not preset("small", env_id=env_id)["joint_update"]
    assert preset("small+vector", env_id=env_id)["joint_update"]
    assert preset("paper", env_id=env_id) == {}
    assert preset("release", env_id=env_id) == preset("release")
    assert preset("small", env_id="DCS-cartpole-swingup-clean") == preset("small")


def test_net_arch_replaces_the_sizes_of_a_preset():
    arguments = preset("small", policy_kwargs=dict(net_arch=[32, 16]))
    assert not {"actor_dims", "critic_dims"} & arguments["policy_kwargs"].keys()
    assert arguments["policy_kwargs"]["deter_dim"] == 128
    arguments = preset("debug", policy_kwargs=dict(net_arch=[32, 16]))
    model = CoRe("MlpPolicy", FakeEnv(VECTOR), **arguments)
    assert model.policy_kwargs["actor_dims"] == model.policy_kwargs["critic_dims"] == (32, 16)


def test_an_action_repeat_gives_the_papers_length():
    class Repeating(FakeEnv):
        action_repeat = 50_000

    model = CoRe("CnnPolicy", Repeating(), **TINY).learn()
    assert model.action_repeat == 50_000
    assert model.num_timesteps >= PAPER_SIMULATOR_STEPS // 50_000
    assert model.num_timesteps < 20
