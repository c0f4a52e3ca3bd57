"""Continuing from a saved model with parts frozen or reinitialised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core_agent import CURL, CoRe, load_agent
from core_agent.finetuning import freeze, reinitialize, unfreeze
from tests.fakes import TINY, TINY_ACTOR_STACKS, FakeEnv, SavableEnv

PARTS = ["world_model.encoder", "world_model.rssm", "world_model", "actor", "critic"]


def weights(model: CoRe, part: str) -> torch.Tensor:
    module = model.policy.get_submodule(part)
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("finetuning") / "model"
    CoRe("CnnPolicy", FakeEnv(), **TINY).learn(18).save(path)
    return path


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
    reinitialize(model, "actor", "critic")
    assert not torch.equal(weights(model, "actor"), before["actor"])
    assert torch.equal(weights(model, "critic"), weights(model, "critic_target"))
    assert torch.equal(weights(model, "world_model"), before["world_model"])
    assert not model.policy.actor_optimizer.state
    assert model.policy.optimizer.state
    model.learn(18)


def test_the_target_encoder_of_a_feed_forward_agent_follows_a_fresh_encoder():
    model = CURL("CnnPolicy", FakeEnv(), **TINY_ACTOR_STACKS).learn(18)
    critic_target = weights(model, "critic_target")
    reinitialize(model, "encoder")
    assert torch.equal(weights(model, "encoder"), weights(model, "encoder_target"))
    assert torch.equal(weights(model, "critic_target"), critic_target)
    freeze(model, "encoder")
    unfreeze(model, "encoder", "encoder_target")
    assert not any(p.requires_grad for p in model.policy.encoder_target.parameters())
    assert all(p.requires_grad for p in model.policy.encoder.parameters())
    model.learn(18)


def test_unknown_parts_are_named(path):
    model = CoRe.load(path)
    for function in (freeze, unfreeze, reinitialize):
        with pytest.raises(
            ValueError, match=r"parts must be modules of model.policy, got 'encoder'"
        ):
            function(model, "encoder")
        with pytest.raises(ValueError, match="parts must name at least one module"):
            function(model)


# ---- acting after loading ----


def n_random(model, n_steps: int = 12, **arguments) -> int:
    """Random actions among so many steps of ``learn``."""
    space, n_drawn = model.action_space, 0
    draw = space.sample

    def sample():
        nonlocal n_drawn
        n_drawn += 1
        return draw()

    space.sample = sample
    model.learn(n_steps, **arguments)
    del space.sample
    return n_drawn


@pytest.mark.parametrize("load", [CoRe.load, load_agent])
def test_a_loaded_model_acts_with_what_it_has_learned(path, load):
    model = load(path, env=FakeEnv())
    assert model.learning_starts == 8
    n_updates = model._n_updates
    assert n_random(model, 8) == 0
    assert model._n_updates == n_updates  # Until there is as much data as at the start.
    assert n_random(model, 4, reset_num_timesteps=False) == 0
    assert model._n_updates > n_updates


def test_random_actions_after_loading_are_there_for_the_asking(path, tmp_path):
    assert n_random(CoRe.load(path, env=FakeEnv(), learning_starts=5)) == 5
    model = CoRe.load(path, env=FakeEnv(), custom_objects={"learning_starts": 3})
    assert n_random(model) == 3
    # One that has not learned yet still starts at random.
    CoRe("CnnPolicy", FakeEnv(), **TINY).save(tmp_path / "new")
    assert n_random(CoRe.load(tmp_path / "new", env=FakeEnv())) == 8


def test_fine_tuning_resumes_exactly_amid_its_first_steps(path, tmp_path):
    def actions(model):
        return torch.from_numpy(np.concatenate([e.actions for e in model.replay_buffer.episodes]))

    model = CoRe.load(path, env=SavableEnv())
    model.learn(4)
    model.checkpoint(tmp_path / "checkpoints")
    expected = actions(model.learn(12, reset_num_timesteps=False))
    resumed = CoRe.resume(tmp_path / "checkpoints", SavableEnv())
    assert n_random(resumed, 12, reset_num_timesteps=False) == 0
    assert torch.equal(actions(resumed), expected)


def test_a_checkpoint_within_the_random_steps_resumes_at_random(path, tmp_path):
    CoRe.load(path, env=SavableEnv(), learning_starts=8).learn(4).checkpoint(tmp_path / "new")
    assert n_random(CoRe.resume(tmp_path / "new", SavableEnv()), reset_num_timesteps=False) == 4
