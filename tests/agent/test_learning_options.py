"""Options that depart from the paper: each does what it says, and is off by default."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from core_agent import CoRe, RecurrentSAC
from core_agent.augmentations import overlay
from core_agent.layers import ImageEncoder
from core_agent.rssm import RSSM
from core_agent.world_model import ModelLossOptions, WorldModel
from tests.agent.fakes import TINY, TINY_MODEL, TINY_POLICY, FakeEnv, random_batch

IMAGE_FIRST = spaces.Box(0, 255, (3, 8, 8), np.uint8)


def make_core(**kwargs) -> CoRe:
    policy_kwargs = {**TINY_POLICY, **kwargs.pop("policy_kwargs", {})}
    return CoRe("CnnPolicy", FakeEnv(), **{**TINY, **kwargs, "policy_kwargs": policy_kwargs})


def test_centred_images_lose_half_of_the_range():
    torch.manual_seed(0)
    plain = ImageEncoder(3, (8, 8), 5, (4,), (2,))
    centred = ImageEncoder(3, (8, 8), 5, (4,), (2,), center_images=True)
    centred.load_state_dict(plain.state_dict())
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(centred(images), plain(images.float() - 127.5))


def test_prior_and_posterior_start_with_the_noise_asked_for():
    rssm = RSSM(8, 2, 6, 4, (8,), (8,), (8,), initial_log_std=-2.0)
    for mlp in (rssm.prior_mlp, rssm.posterior_mlp):
        assert mlp.norm.bias.tolist() == [0.0] * 4 + [-2.0] * 4


def test_the_inverse_head_reads_the_features_of_the_frames_that_follow():
    torch.manual_seed(0)
    model = WorldModel(IMAGE_FIRST, 2, **TINY_MODEL, inverse_frames=2)
    batch = random_batch()  # 4 frames: two actions have two frames after them
    noise = model.draw_noise(4, 3)
    result = model.compute_losses(batch, noise, ModelLossOptions())
    features = model.encode(batch.observations)
    z = model.observe(features, batch.actions, noise.posterior).sampled()
    errors = []
    for t in range(2):
        read = torch.cat([z[t], features[t + 1], features[t + 2]], -1)
        errors.append((torch.tanh(model.inverse_head(read)) - batch.actions[t]).square().sum(-1))
    assert result.inverse.item() == pytest.approx(0.5 * torch.stack(errors).mean().item(), rel=1e-5)


def test_a_padded_window_counts_the_actions_with_frames_enough_after_them():
    torch.manual_seed(0)
    model = WorldModel(IMAGE_FIRST, 2, **TINY_MODEL, inverse_frames=2)
    latents, features = torch.randn(4, 1, model.latent_dim), torch.randn(4, 1, 5)
    actions, mask = torch.rand(3, 1, 2), torch.tensor([[1.0], [1.0], [0.0]])  # three frames
    loss = model.inverse_loss(latents, features, actions, mask)
    alone = model.inverse_loss(latents[:3], features[:3], actions[:2], mask[:2])
    torch.testing.assert_close(loss, alone)


def test_targets_count_several_rewards():
    model = make_core(n_step=3, gamma=0.5)
    batch = random_batch()
    values = torch.tensor([[10.0], [20.0], [40.0]])
    batch = batch._replace(
        rewards=torch.tensor([[1.0], [2.0], [3.0]]),
        terminated=torch.zeros(3, 1),
        mask=torch.ones(4, 1),
    )
    targets = batch.rewards + 0.5 * values
    expected = [1 + 0.5 * (2 + 0.5 * 23.0), 2 + 0.5 * 23.0, 23.0]
    assert model._look_ahead(batch, targets).flatten().tolist() == expected
    ended = batch._replace(terminated=torch.tensor([[0.0], [1.0], [0.0]]))
    targets = ended.rewards + 0.5 * (1 - ended.terminated) * values
    assert model._look_ahead(ended, targets).flatten().tolist() == [2.0, 2.0, 23.0]
    padded = batch._replace(mask=torch.tensor([[1.0], [1.0], [1.0], [0.0]]))
    targets = padded.rewards + 0.5 * values
    assert model._look_ahead(padded, targets)[:2].flatten().tolist() == [1 + 0.5 * 12, 12.0]


def test_one_step_is_the_default():
    model, batch = make_core(), random_batch()
    targets = torch.rand(3, 3)
    torch.testing.assert_close(model._look_ahead(batch, targets), targets)


def test_an_overlay_mixes_each_sequence_with_one_other():
    torch.manual_seed(0)
    images = torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8)
    images[:, 0] = 200
    mixed = overlay(images, 0.5)
    assert mixed.shape == images.shape
    means = mixed.mean(dim=(0, 2, 3, 4))
    assert 100 <= means[0] <= 200
    assert all(0 <= mean <= 100 for mean in means[1:])
    torch.testing.assert_close(overlay(images, 0.0), images.float())


@pytest.mark.parametrize("algorithm", [CoRe, RecurrentSAC])
def test_agents_learn_with_an_overlay_and_several_steps(algorithm):
    model = algorithm("CnnPolicy", FakeEnv(), **TINY, overlay=0.4, n_step=2)
    model.learn(40)
    assert model._n_updates > 0


def test_a_joint_update_moves_everything_once():
    model = make_core(joint_update=True)
    batch = random_batch()
    before = {name: value.clone() for name, value in model.policy.named_parameters()}
    metrics = model.update(batch)
    changed = {
        name.split(".")[0]
        for name, value in model.policy.named_parameters()
        if not torch.equal(before[name], value)
    }
    assert changed == {"world_model", "actor", "critic", "critic_target", "log_ent_coef"}
    assert {"model_loss", "critic_loss", "model_grad_norm", "critic_grad_norm"} <= metrics.keys()
    trained = [p for group in model.policy.critic_optimizer.param_groups for p in group["params"]]
    assert len(trained) == len(list(model.policy.critic.parameters()))


def test_a_joint_update_can_leave_the_critics_out_of_what_teaches_the_model():
    batch = random_batch()
    models = [make_core(joint_update=True, joint_critic_coef=coef) for coef in (0.0, 1.0)]
    for model in models:
        torch.manual_seed(1)
        model.update_jointly(batch)
    weights = [model.policy.world_model.rssm.cell.linear.weight.grad for model in models]
    assert not torch.allclose(*weights)
    critics = [model.policy.critic.net.weights[0].grad for model in models]
    torch.testing.assert_close(*critics)


def test_a_joint_update_needs_the_critics_gradient():
    with pytest.raises(ValueError, match="joint_update must be False where train_model"):
        make_core(joint_update=True, train_model_with_critic=False)


@pytest.mark.parametrize("joint_update", [False, True])
def test_behavior_is_updated_several_times_for_each_batch(joint_update):
    model, batch = make_core(joint_update=joint_update, behavior_updates=3), random_batch()
    n_steps = dict.fromkeys(("critic_optimizer", "actor_optimizer", "ent_coef_optimizer"), 0)
    for name in n_steps:
        optimizer = getattr(model.policy, name)

        def count(*_, name=name):
            n_steps[name] += 1

        optimizer.register_step_post_hook(count)
    model.update(batch)
    assert set(n_steps.values()) == {3}
