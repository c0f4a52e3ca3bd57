"""Options that depart from the paper: each does what it says, and is off by default."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from core_agent import CoRe, RecurrentSAC
from core_agent.networks.augmentations import overlay
from core_agent.networks.layers import ImageEncoder
from core_agent.networks.rssm import RSSM
from core_agent.networks.world_model import ModelLossOptions, WorldModel
from tests.fakes import TINY, TINY_MODEL, TINY_POLICY, FakeEnv, random_batch

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


def test_a_padded_window_counts_the_actions_with_enough_frames_after_them():
    torch.manual_seed(0)
    model = WorldModel(IMAGE_FIRST, 2, **TINY_MODEL, inverse_frames=2)
    latents, features = torch.randn(4, 1, model.latent_dim), torch.randn(4, 1, 5)
    actions, mask = torch.rand(3, 1, 2), torch.tensor([[1.0], [1.0], [0.0]])  # three frames
    loss = model.inverse_loss(latents, features, actions, mask)
    alone = model.inverse_loss(latents[:3], features[:3], actions[:2], mask[:2])
    torch.testing.assert_close(loss, alone)


@pytest.mark.parametrize(("white", "dtype"), [(255, torch.uint8), (1, torch.float32)])
def test_an_overlay_mixes_each_sequence_with_another_one_recoloured(white, dtype):
    torch.manual_seed(0)
    # Two frames of 64 sequences, all of one colour: no red, full green, no blue.
    images = torch.zeros(2, 64, 3, 8, 8, dtype=dtype)
    images[:, :, 1] = white
    mixed = overlay(images, 0.5)
    assert mixed.shape == images.shape
    assert torch.equal(mixed, mixed[:1, :, :, :1, :1].expand_as(mixed))  # one change a sequence
    change = (mixed - images)[0, :, :, 0, 0].abs() / white
    assert change.max() <= 0.5
    changed = change > 0.01
    # A channel keeps its value in half of the sequences, and all combinations of three occur.
    assert len(changed.unique(dim=0)) == 8
    torch.testing.assert_close(overlay(images, 0.0), images.float())


def test_an_overlay_comes_from_another_sequence_mirrored():
    torch.manual_seed(0)
    images = torch.full((1, 2, 1, 4, 4), 128, dtype=torch.uint8)
    images[:, 0, :, :, 0] = 255  # a line on the left of the first sequence alone
    # Inverted or not, the line is the only place that changes by more than 1.
    lines = [overlay(images, 0.5)[0, 1, 0, 0].sub(128).abs().gt(1) for _ in range(50)]
    seen = {tuple(line.tolist()) for line in lines}
    assert seen == {(False, False, False, False), (False, False, False, True)}


@pytest.mark.parametrize("algorithm", [CoRe, RecurrentSAC])
def test_agents_learn_with_an_overlay(algorithm):
    model = algorithm("CnnPolicy", FakeEnv(), **TINY, overlay=0.4)
    model.learn(40)
    assert model._n_updates > 0


def test_a_joint_update_moves_everything_once():
    model = make_core(joint_update=True)
    batch = random_batch(image_size=8)
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


def test_a_joint_update_bounds_the_gradient_of_large_critic_losses():
    """Of values a hundred times as large, the gradient into the critics stays of order 1."""
    norms, critic_losses = [], []
    for factor in (1.0, 100.0):
        model, batch = make_core(joint_update=True), random_batch(image_size=8)
        metrics = model.update(batch._replace(rewards=2.0 + factor * batch.rewards))
        norms.append(metrics["critic_grad_norm"].item())
        critic_losses.append(metrics["critic_loss"].item())
    assert critic_losses[1] > 1_000 * critic_losses[0] > 1_000
    # The gradient of a square grows with its root, so after the division it falls.
    assert norms[1] < norms[0]


def test_a_joint_update_needs_the_critics_gradient():
    with pytest.raises(ValueError, match="joint_update must be False with train_model"):
        make_core(joint_update=True, train_model_with_critic=False)


def test_the_inverse_head_needs_longer_sequences_than_frames():
    options = dict(sequence_length=4, policy_kwargs=dict(inverse_frames=4))
    with pytest.raises(
        ValueError, match=r"^inverse_frames must be below sequence_length, 4, got 4"
    ):
        make_core(**options)
    assert make_core(**options, inverse_coef=0.0).policy.world_model.inverse_frames == 4


def test_a_model_that_was_saved_with_shorter_sequences_can_be_loaded(tmp_path):
    make_core(sequence_length=5, policy_kwargs=dict(inverse_frames=4)).save(tmp_path / "model")
    assert CoRe.load(tmp_path / "model", sequence_length=4).sequence_length == 4


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
