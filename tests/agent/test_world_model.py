"""J_M and its parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional as F

from core_agent import losses
from core_agent.world_model import ModelLossOptions, WorldModel
from tests.agent.fakes import BOTH, TINY_MODEL, random_batch

IMAGE_FIRST = spaces.Box(0, 255, (3, 8, 8), np.uint8)


def make_model(**kwargs) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(IMAGE_FIRST, 2, **{**TINY_MODEL, **kwargs})


def test_total_is_the_weighted_sum_of_the_terms():
    model, batch = make_model(), random_batch()
    noise = model.draw_noise(4, 3)
    options = ModelLossOptions(kl_coef=0.3, reward_coef=0.7, inverse_coef=1.1)
    result = model.compute_losses(batch, noise, options)
    expected = result.contrastive + 0.3 * result.kl + 0.7 * result.reward + 1.1 * result.inverse
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_each_term_equals_its_definition():
    model, batch = make_model(), random_batch()
    noise = model.draw_noise(4, 3)
    result = model.compute_losses(batch, noise, ModelLossOptions())
    features = torch.stack([model.encoder(frames) for frames in batch.observations])
    rollout = model.observe(features, batch.actions, noise.posterior)
    z = torch.cat([rollout.deter, rollout.stoch], -1)
    prior = model.rssm.prior(rollout.deter[1:])
    z_hat = torch.cat([rollout.deter[1:], prior.mean + prior.std * noise.prior], -1)
    ones = torch.ones(3, 3)
    scale = F.softplus(model.contrastive_scale)
    assert scale.item() == pytest.approx(1.3133, rel=1e-4)  # softplus(1)
    contrastive = losses.info_nce(features[1:], model.decoder(z_hat), scale, ones).loss
    assert result.contrastive.item() == pytest.approx(contrastive.item(), rel=1e-5)
    reward = (model.reward_head(z[1:]).squeeze(-1) - batch.rewards).square().mean()
    assert result.reward.item() == pytest.approx(reward.item(), rel=1e-5)
    predicted = torch.tanh(model.inverse_head(torch.cat([z[:-1], z[1:]], -1)))
    inverse = 0.5 * (predicted - batch.actions).square().sum(-1).mean()
    assert result.inverse.item() == pytest.approx(inverse.item(), rel=1e-5)


def test_the_prior_at_the_first_frame_is_ignored():
    # Whatever the prior says about h = 0 must not matter: the loss of two frames with the second
    # prior known is the same whether or not the prior at t = 0 is disturbed.
    model, batch = make_model(), random_batch(n_steps=2)
    noise = model.draw_noise(2, 3)
    seen = []
    original = model.rssm.prior
    model.rssm.prior = lambda deter: seen.append(deter.detach().clone()) or original(deter)
    model.compute_losses(batch, noise, ModelLossOptions())
    assert len(seen) == 1
    assert seen[0].shape[0] == 1
    assert (seen[0].abs().sum(-1) > 0).all()  # h_0 = 0 was never asked about


@pytest.mark.parametrize(
    ("options", "head", "term"),
    [
        (ModelLossOptions(reward_coef=0), "reward_head", "reward"),
        (ModelLossOptions(inverse_coef=0), "inverse_head", "inverse"),
    ],
)
def test_heads_can_be_left_out(options, head, term):
    model = make_model()
    result = model.compute_losses(random_batch(), model.draw_noise(4, 3), options)
    result.total.backward()
    assert getattr(result, term).item() == 0
    assert all(p.grad is None for p in getattr(model, head).parameters())


def test_contrastive_prediction_from_the_posterior_leaves_the_prior_sample_out():
    model, batch = make_model(), random_batch()
    noise = model.draw_noise(4, 3)
    other = noise._replace(prior=torch.randn_like(noise.prior))
    for source, same in (("posterior", True), ("prior", False)):
        options = ModelLossOptions(contrastive_from=source)
        a, b = (model.compute_losses(batch, n, options).contrastive for n in (noise, other))
        assert torch.equal(a, b) == same


def test_every_parameter_is_trained():
    model = make_model(gating=True)
    model.compute_losses(
        random_batch(), model.draw_noise(4, 3), ModelLossOptions(free_nats=0)
    ).total.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_padding_does_not_change_the_losses():
    model, batch = make_model(), random_batch(n_steps=4)
    noise = model.draw_noise(4, 3)
    mask = batch.mask.clone()
    mask[3] = 0
    padded = model.compute_losses(batch._replace(mask=mask), noise, ModelLossOptions())
    short_batch = batch._replace(
        observations=batch.observations[:3],
        actions=batch.actions[:2],
        rewards=batch.rewards[:2],
        terminated=batch.terminated[:2],
        mask=batch.mask[:3],
    )
    short_noise = noise._replace(posterior=noise.posterior[:3], prior=noise.prior[:2])
    short = model.compute_losses(short_batch, short_noise, ModelLossOptions())
    *scalars, latents = zip(padded, short)
    for a, b in scalars:
        assert a.item() == pytest.approx(b.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(latents[0][:3], latents[1])


def test_filter_parameters_are_what_the_posterior_mean_depends_on():
    model, batch = make_model(), random_batch()
    noise = torch.randn(4, 3, 4)
    model.observe(
        model.encode(batch.observations), batch.actions, noise
    ).mean().square().sum().backward()
    used = {id(p) for p in model.parameters() if p.grad is not None}
    assert used == {id(p) for p in model.filter_parameters()}


def test_dict_observations_join_image_and_vector_features():
    space = spaces.Dict({"image": IMAGE_FIRST, "vector": BOTH["vector"]})
    model = WorldModel(space, 2, **TINY_MODEL)
    batch = random_batch()
    observations = {"image": batch.observations, "vector": torch.randn(4, 3, 3)}
    features = model.encode(observations)
    assert features.shape == (4, 3, 5 + 8)
    assert model.decoder.out_dim == 5 + 8


def test_vector_observations_pass_the_mlp_alone():
    model = WorldModel(BOTH["vector"], 2, **TINY_MODEL)
    assert model.encode(torch.randn(4, 3, 3)).shape == (4, 3, 8)
    assert len(model.encoder.image_encoders) == 0


def test_the_default_sizes_are_the_papers():
    model = WorldModel(spaces.Box(0, 255, (3, 100, 100), np.uint8), 6)
    assert model.encoder.crop_sizes == {"observation": (84, 84)}
    assert model.encoder.out_dim == 50
    assert model.latent_dim == 264
    assert [tuple(c.weight.shape) for c in model.encoder.image_encoders["observation"].convs] == [
        (32, 3, 3, 3),
        *[(32, 32, 3, 3)] * 3,
    ]
    assert [layer.out_features for layer in model.rssm.prior_mlp.hidden] == [400, 400, 400]
    assert [layer.out_features for layer in model.rssm.posterior_mlp.hidden] == [400, 400]
    assert [layer.out_features for layer in model.rssm.gru_mlp.hidden] == [400, 400]
    assert model.embed.out_dim == 256
    assert model.decoder.output.out_features == 50
    assert model.inverse_head.output.out_features == 6
