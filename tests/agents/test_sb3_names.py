"""Words of Stable-Baselines3's SAC: translated, or refused with what to use instead."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from core_agent import SACRAD, CoRe, QTOptRAD, RecurrentSAC
from core_agent.agents.registry import AGENTS
from core_agent.agents.sb3_names import ARGUMENTS, POLICY_ARGUMENTS
from tests.fakes import TINY, VECTOR, FakeEnv, tiny

ALGORITHMS = list(AGENTS.values())


def build(algorithm=CoRe, **changes):
    return algorithm("MlpPolicy", FakeEnv(VECTOR), **{**tiny(algorithm), **changes})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_argument_of_sac_is_taken_or_refused_with_advice(algorithm):
    of_sac = inspect.signature(SAC).parameters
    missing = of_sac.keys() - inspect.signature(algorithm).parameters.keys() - ARGUMENTS.keys()
    assert missing <= {"ent_coef", "target_entropy"}  # QT-Opt has no entropy
    for name in ARGUMENTS:
        with pytest.raises(TypeError) as raised:
            build(algorithm, **{name: of_sac[name].default})
        assert f"{name} must be an argument of {algorithm.__name__}, got" in str(raised.value)
        assert ARGUMENTS[name] in str(raised.value)


def test_every_argument_of_sacs_policy_is_translated_or_refused_with_advice():
    of_sac = inspect.signature(SACPolicy).parameters.keys()
    known = {"observation_space", "action_space", "lr_schedule"}
    assert of_sac - known == POLICY_ARGUMENTS.keys()
    for name in POLICY_ARGUMENTS.keys() - {"net_arch"}:
        with pytest.raises(ValueError, match="policy_kwargs must hold arguments of") as raised:
            build(policy_kwargs={name: nn.ReLU})
        assert f"{name}: {POLICY_ARGUMENTS[name]}" in str(raised.value)


def test_an_unknown_argument_is_likened_to_a_known_one_or_all_public_ones_are_named():
    with pytest.raises(TypeError, match=r"batchsize must be .*; did you mean batch_size\?"):
        build(batchsize=3)
    with pytest.raises(TypeError, match="zzz must be an argument of CoRe, got 1") as raised:
        build(zzz=1)
    assert "'sequence_length'" in str(raised.value)
    assert "'_" not in str(raised.value)


def test_lists_of_arguments_leave_out_what_the_agent_gives():
    with pytest.raises(ValueError, match="policy_kwargs must hold") as raised:
        build(policy_kwargs={"zzz": 1})
    assert "'actor_dims'" in str(raised.value)
    assert not any(
        name in str(raised.value) for name in ("_space'", "'lr_schedule'", "'action_dim")
    )
    with pytest.raises(ValueError, match="replay_buffer_kwargs must hold") as raised:
        build(replay_buffer_kwargs={"goal_selection_strategy": "future"})
    assert "'storage_device'" in str(raised.value)
    assert not any(name in str(raised.value) for name in ("'buffer_size'", "'n_envs'", "_space'"))


@pytest.mark.parametrize(
    ("net_arch", "actor", "critic"),
    [([9, 7], [9, 7], [9, 7]), (dict(pi=[5], qf=(9, 7)), [5], [9, 7])],
)
@pytest.mark.parametrize("algorithm", [CoRe, RecurrentSAC, SACRAD])
def test_net_arch_becomes_the_layers_of_actor_and_critics(algorithm, net_arch, actor, critic):
    others = dict(tiny(algorithm)["policy_kwargs"])
    del others["actor_dims"], others["critic_dims"]
    model = build(algorithm, policy_kwargs={**others, "net_arch": net_arch})
    hidden = [m.out_features for m in model.policy.actor.modules() if isinstance(m, nn.Linear)][:-1]
    assert hidden == actor
    assert model.policy_kwargs["critic_dims"] == tuple(critic)
    observation = np.zeros(3, np.float32)
    assert model.predict(observation, deterministic=True)[0].shape == (2,)


def test_net_arch_of_an_agent_without_an_actor():
    assert build(QTOptRAD, policy_kwargs={"net_arch": [9]}).policy_kwargs == {"critic_dims": (9,)}
    with pytest.raises(ValueError, match=r"net_arch must be .* with the keys \('qf',\)"):
        build(QTOptRAD, policy_kwargs={"net_arch": dict(pi=[9], qf=[9])})


@pytest.mark.parametrize("net_arch", [3, "x", None, dict(pi=[8]), dict(pi=[8], vf=[8]), {}])
def test_another_net_arch_is_named(net_arch):
    with pytest.raises(ValueError, match="net_arch must be a list of layer sizes or a dict"):
        build(policy_kwargs={"net_arch": net_arch})


def test_sizes_from_net_arch_are_checked_too():
    with pytest.raises(ValueError, match="_dims must be at least 1 whole number"):
        build(policy_kwargs={"net_arch": [0]})
    with pytest.raises(ValueError, match=r"net_arch must be given without .* \['actor_dims'\]"):
        build(policy_kwargs={"net_arch": [8], "actor_dims": (8,)})


def test_hindsight_replay_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"replay_buffer_class must .* \(HER\) is not"):
        build(replay_buffer_class=HerReplayBuffer)


def test_a_subclass_may_hand_its_arguments_on():
    class Own(CoRe):
        def __init__(self, *args, own: int = 0, **kwargs):
            super().__init__(*args, **kwargs)
            self.own = own

    assert Own("MlpPolicy", FakeEnv(VECTOR), own=3, **TINY).own == 3
    with pytest.raises(TypeError, match="use_sde must be an argument of Own, got True"):
        Own("MlpPolicy", FakeEnv(VECTOR), use_sde=True, **TINY)
