"""Going on from a saved model with parts frozen or fresh."""

from __future__ import annotations

import pytest
import torch

from core_agent import CURL, CoRe
from core_agent.finetuning import freeze, refresh, unfreeze
from tests.fakes import TINY, TINY_ACTOR_STACKS, FakeEnv

PARTS = ["world_model.encoder", "world_model.rssm", "world_model", "actor", "critic"]


def weights(model: CoRe, part: str) -> torch.Tensor:
    module = model.policy.get_submodule(part)
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


@pytest.fixture
def path(tmp_path):
    CoRe("CnnPolicy", FakeEnv(), **TINY).learn(18).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("part", PARTS)
def test_frozen_parts_stay_and_others_learn(path, part):
    model = CoRe.load(path, env=FakeEnv())
    freeze(model, part)
    others = [other for other in PARTS if not other.startswith(part) and not part.startswith(other)]
    before = {name: weights(model, name) for name in [part, *others]}
    model.learn(18)
    assert torch.equal(weights(model, part), before[part])
    assert not any(torch.equal(weights(model, other), before[other]) for other in others)


def test_unfrozen_parts_learn_again(path):
    model = CoRe.load(path, env=FakeEnv())
    freeze(model, "critic", "actor")
    unfreeze(model, "critic", "actor")
    before = weights(model, "critic")
    target = weights(model, "critic_target")
    model.learn(18)
    assert not torch.equal(weights(model, "critic"), before)
    assert not torch.equal(weights(model, "critic_target"), target)


def test_fresh_parts_are_new_and_the_rest_is_kept(path):
    model = CoRe.load(path, env=FakeEnv())
    before = {part: weights(model, part) for part in PARTS}
    refresh(model, "actor", "critic")
    assert not torch.equal(weights(model, "actor"), before["actor"])
    assert torch.equal(weights(model, "critic"), weights(model, "critic_target"))
    assert torch.equal(weights(model, "world_model"), before["world_model"])
    assert not model.policy.actor_optimizer.state
    assert model.policy.optimizer.state
    model.learn(18)


def test_the_target_encoder_of_a_feed_forward_agent_follows_a_fresh_encoder():
    model = CURL("CnnPolicy", FakeEnv(), **TINY_ACTOR_STACKS).learn(18)
    critic_target = weights(model, "critic_target")
    refresh(model, "encoder")
    assert torch.equal(weights(model, "encoder"), weights(model, "encoder_target"))
    assert torch.equal(weights(model, "critic_target"), critic_target)
    freeze(model, "encoder")
    unfreeze(model, "encoder", "encoder_target")
    assert not any(p.requires_grad for p in model.policy.encoder_target.parameters())
    assert all(p.requires_grad for p in model.policy.encoder.parameters())
    model.learn(18)


@pytest.mark.parametrize("function", [freeze, unfreeze, refresh])
def test_unknown_parts_are_named(path, function):
    model = CoRe.load(path)
    with pytest.raises(ValueError, match=r"parts must be modules of model.policy, got 'encoder'"):
        function(model, "encoder")
    with pytest.raises(ValueError, match="parts must name at least one module"):
        function(model)
