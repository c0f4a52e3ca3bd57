"""The package computes what the plain implementation of ``benchmarks/yardstick.py`` computes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from yardstick import Noise, Yardstick, to_plain

from core_agent import CoRe
from core_agent.agents.soft_actor_critic import actor_loss
from core_agent.networks.types import SequenceBatch
from core_agent.networks.world_model import ModelNoise

SMALL: dict[str, Any] = dict(
    deter_dim=7,
    stoch_dim=4,
    feature_dim=5,
    embed_dims=(9, 8),
    gru_dims=(10, 11),
    prior_dims=(8, 9, 10),
    posterior_dims=(12, 8),
    decoder_dims=(8, 9),
    head_dims=(8, 6),
    cnn_channels=(4, 6),
    cnn_strides=(2, 1),
    actor_dims=(16, 16),
    critic_dims=(16, 12),
)
MODERATE: dict[str, Any] = dict(actor_dims=(256, 256), critic_dims=(256, 256))


class ImageEnv(gym.Env):
    """Random images, for the shapes alone."""

    def __init__(self, height: int, width: int, n_actions: int) -> None:
        self.observation_space = spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.action_space = spaces.Box(-1, 1, (n_actions,), np.float32)
        self.rng = np.random.default_rng(0)

    def observe(self) -> np.ndarray:
        return self.rng.integers(256, size=self.observation_space.shape, dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.observe(), float(self.rng.normal()), False, False, {}


class CoReWithNoise(CoRe):
    """CoRe whose updates take the random numbers drawn beforehand."""

    noise: Noise

    def update_model(self, batch, noise=None):
        return super().update_model(batch, ModelNoise(self.noise.posterior, self.noise.prior))

    def filter(self, batch, noise=None):
        return super().filter(batch, self.noise.critic_posterior)

    def critic_loss(self, batch, latents, noise=None):
        return super().critic_loss(batch, latents, self.noise.target_action)

    def update_actor(self, batch, latents, noise=None):
        return super().update_actor(batch, latents, self.noise.action)


def make(
    size: tuple[int, int] = (16, 14),
    batch_size: int = 3,
    sequence_length: int = 5,
    dtype: torch.dtype = torch.float32,
    networks: dict[str, Any] = SMALL,
    uneven: bool = True,
) -> tuple[CoReWithNoise, Yardstick, SequenceBatch]:
    """Both implementations with the same weights, none of them zero, and a batch."""
    env = DummyVecEnv([lambda: ImageEnv(*size, n_actions=2)])
    model = CoReWithNoise(
        "CnnPolicy",
        env,
        batch_size=batch_size,
        sequence_length=sequence_length,
        buffer_size=100,
        policy_kwargs=networks,
        precision="float32",
        seed=0,
        device="cpu",
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    model.policy.to(dtype)
    torch.manual_seed(2)
    images = torch.randint(
        256, (sequence_length, batch_size, *size, 3), dtype=torch.uint8
    )  # channels last, as the buffer's memory lies
    (height, width), *_ = model.policy.world_model.encoder.crop_sizes.values()
    steps = (sequence_length - 1, batch_size)
    mask = torch.ones(sequence_length, batch_size, dtype=dtype)
    terminated = torch.zeros(steps, dtype=dtype)
    if uneven:  # one short episode, and one that ended for good
        mask[3:, 0] = 0.0
        terminated[-1, 1] = 1.0
    batch = SequenceBatch(
        images[:, :, :height, :width].permute(0, 1, 4, 2, 3),
        torch.rand(*steps, 2, dtype=dtype) * 2 - 1,
        torch.randn(steps, dtype=dtype),
        terminated,
        mask,
    )
    yardstick = Yardstick.of(model.policy)
    model.noise = yardstick.draw_noise(sequence_length, batch_size)
    return model, yardstick, batch


def close(ours: torch.Tensor, plain: torch.Tensor, tolerance: float) -> bool:
    """Whether the difference is at most ``tolerance`` times the norm."""
    return bool((ours - plain).norm() <= tolerance * plain.norm().clamp(min=1e-12))


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(model: CoRe, yardstick: Yardstick, tolerance: float) -> set[str]:
    """Compare every tensor; the names of those that have a gradient in both."""
    ours = to_plain(gradients(model.policy), yardstick.encoder.map_size)
    plain = gradients(yardstick)
    different = [name for name in ours if not close(ours[name], plain[name], tolerance)]
    assert not different
    return set(ours)


def networks_of(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


FILTER = {"encoder", "embed", "gru_mlp", "cell", "posterior_mlp"}
MODEL = FILTER | {"prior_mlp", "decoder", "reward_head", "inverse_head", "contrastive_scale"}


def compare_all(model: CoReWithNoise, yardstick: Yardstick, batch, tolerance, grad_tolerance):
    """Losses and gradients of J_M, J_Q and J_π."""
    noise = model.noise
    ours = model.policy.world_model.compute_losses(
        batch, ModelNoise(noise.posterior, noise.prior), model.model_loss_options
    )
    total, terms = yardstick.model_loss(batch, noise)
    assert ours.total.item() == pytest.approx(total.item(), rel=tolerance)
    for name, term in terms.items():
        value = getattr(ours, name.removesuffix("_loss")).item()
        assert value == pytest.approx(term.item(), rel=tolerance), name
    ours.total.backward()
    total.backward()
    assert networks_of(assert_same_gradients(model, yardstick, grad_tolerance)) == MODEL

    model.policy.zero_grad()
    yardstick.zero_grad()
    latents, plain_latents = model.filter(batch), yardstick.latents(batch, noise)
    assert close(latents, plain_latents, grad_tolerance)
    loss, plain = (
        model.critic_loss(batch, latents),
        yardstick.critic_loss(batch, plain_latents, noise),
    )
    assert loss.item() == pytest.approx(plain.item(), rel=tolerance)
    loss.backward()
    plain.backward()
    names = assert_same_gradients(model, yardstick, grad_tolerance)
    assert networks_of(names) == FILTER | {"critics"}

    model.policy.zero_grad()
    yardstick.zero_grad()
    detached, plain_latents = latents.detach()[:-1], plain_latents.detach()[:-1]
    loss, _ = actor_loss(model, batch, detached, noise.action)
    plain, _ = yardstick.actor_loss(batch, plain_latents, noise)
    assert loss.item() == pytest.approx(plain.item(), rel=tolerance)
    loss.backward()
    plain.backward()
    assert "actor" in networks_of(assert_same_gradients(model, yardstick, grad_tolerance))


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerances"), [(torch.float32, (1e-5, 1e-4)), (torch.float64, (1e-9, 1e-9))]
)
def test_losses_and_gradients_agree(dtype, tolerances, uneven):
    model, yardstick, batch = make(dtype=dtype, uneven=uneven)
    compare_all(model, yardstick, batch, *tolerances)


def test_losses_and_gradients_agree_with_the_papers_model():
    model, yardstick, batch = make((60, 60), 4, 12, networks=MODERATE, uneven=False)
    compare_all(model, yardstick, batch, 1e-5, 1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_parameters_agree_after_whole_updates(dtype, tolerance):
    model, yardstick, batch = make(dtype=dtype)
    before = {name: value.clone() for name, value in yardstick.state_dict().items()}
    for _ in range(5):
        model.noise = yardstick.draw_noise(*batch.mask.shape)
        metrics = model.update(batch)
        plain_metrics = yardstick.update(batch, model.noise)
        assert metrics.keys() == plain_metrics.keys()
        for name, value in plain_metrics.items():
            assert metrics[name].item() == pytest.approx(value, rel=tolerance, abs=1e-6), name
    ours = to_plain(model.policy.state_dict(), yardstick.encoder.map_size)
    for name, plain in yardstick.state_dict().items():
        moved = (plain - before[name]).norm()
        assert moved > 0, name
        assert (ours[name] - plain).norm() <= tolerance * moved, name
