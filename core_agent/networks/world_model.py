"""The world model: encoder, RSSM and the heads that shape its latent state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from core_agent.networks import losses
from core_agent.networks.encoders import ObservationEncoder, any_entry
from core_agent.networks.layers import MLP
from core_agent.networks.rssm import RSSM
from core_agent.networks.types import Gaussian, Observation, Rollout, SequenceBatch
from core_agent.validation import NUMBER, SIZE, SIZES, Check, check_arguments, sizes, whole

CONTRASTIVE_SOURCES = ("prior", "posterior")


class ModelLossOptions(NamedTuple):
    """What J_M is made of (Eq. 5, arXiv:2112.01163); the defaults are the paper's."""

    contrastive_coef: float = 1.0
    kl_coef: float = 0.01
    reward_coef: float = 1.0
    inverse_coef: float = 1.0
    free_nats: float = 1.0
    kl_balance: float = 0.5
    contrastive_from: str = "prior"
    negatives: losses.Negatives = "all"
    smooth_reward_loss: bool = False
    contrast_first_frame: bool = False


class ModelNoise(NamedTuple):
    """Standard normal draws for one model update, ``(T, B, stoch_dim)`` and ``(T - 1, B, …)``."""

    posterior: torch.Tensor
    prior: torch.Tensor


class ModelLosses(NamedTuple):
    """Scalars of one model update, and the latents."""

    total: torch.Tensor
    contrastive: torch.Tensor
    kl: torch.Tensor
    reward: torch.Tensor
    inverse: torch.Tensor
    contrastive_accuracy: torch.Tensor
    prior_entropy: torch.Tensor
    posterior_entropy: torch.Tensor
    latents: torch.Tensor
    """``(T, B, latent_dim)``: posterior means, as actor and critics read them."""


def flatten_time(observation: Observation) -> Observation:
    """``(T, B, ...)`` to ``(T * B, ...)``."""
    if isinstance(observation, dict):
        return {key: entry.flatten(0, 1) for key, entry in observation.items()}
    return observation.flatten(0, 1)


class WorldModel(nn.Module):
    """CoRe's model of the world (Section 3, arXiv:2112.01163).

    :param observation_space: images (channels first), vectors or a ``Dict`` of both
    :param action_dim: number of actions
    :param deter_dim: size of the deterministic state
    :param stoch_dim: size of the stochastic state
    :param feature_dim: features of each image
    :param embed_dims: layers of the observation MLP, the last one linear and layer-normalised
    :param gru_dims: layers in front of the GRU
    :param prior_dims: hidden layers of the prior
    :param posterior_dims: hidden layers of the posterior
    :param decoder_dims: hidden layers of the feature decoder
    :param head_dims: hidden layers of the reward and the inverse-dynamics head
    :param vector_dims: layers of the MLP for vector observations
    :param cnn_channels: channels of the encoder's convolutions
    :param cnn_strides: strides of the encoder's convolutions
    :param crop_size: side of the crop of images
    :param gating: lay a learned soft mask over images
    :param gate_elu: an ELU before that mask's sigmoid, as in the authors' experiments
    :param center_images: let pixels range from -½ to ½ instead of 0 to 1
    :param initial_log_std: mean log standard deviation of prior and posterior at the start
    :param initial_contrastive_scale: τ at the start; the logits are scaled by ``softplus(τ)``
    :param inverse_frames: 0: the inverse-dynamics head reads the latents ``z_t`` and ``z_{t+1}``,
        as in the paper; otherwise it reads ``z_t`` and the features of this many following frames.
        The recurrence copies the action into ``z_{t+1}``; features only show what the action moved,
        so the encoder has to learn to see such motion (compare arXiv:2207.08229). Sequences have to
        be longer
    :raises ValueError: for a bad argument
    """

    rules: ClassVar[dict[str, Check]] = {
        **ObservationEncoder.rules,
        "action_dim": SIZE,
        "deter_dim": SIZE,
        "stoch_dim": SIZE,
        "embed_dims": sizes(2),
        "gru_dims": SIZES,
        "prior_dims": SIZES,
        "posterior_dims": SIZES,
        "decoder_dims": SIZES,
        "head_dims": SIZES,
        "initial_log_std": NUMBER,
        "initial_contrastive_scale": NUMBER,
        "inverse_frames": whole(0),
    }

    def __init__(
        self,
        observation_space: spaces.Space,
        action_dim: int,
        deter_dim: int = 200,
        stoch_dim: int = 64,
        feature_dim: int = 50,
        embed_dims: Sequence[int] = (256, 256),
        gru_dims: Sequence[int] = (400, 400),
        prior_dims: Sequence[int] = (400, 400, 400),
        posterior_dims: Sequence[int] = (400, 400),
        decoder_dims: Sequence[int] = (256, 256),
        head_dims: Sequence[int] = (128, 128),
        vector_dims: Sequence[int] = (200, 200, 200),
        cnn_channels: Sequence[int] = (32, 32, 32, 32),
        cnn_strides: Sequence[int] = (2, 1, 1, 1),
        crop_size: float | tuple[int, int] | None = None,
        gating: bool = False,
        gate_elu: bool = False,
        center_images: bool = False,
        initial_log_std: float = 0.0,
        initial_contrastive_scale: float = 1.0,
        inverse_frames: int = 0,
    ) -> None:
        check_arguments(self.rules, locals())
        super().__init__()
        self.encoder = ObservationEncoder(
            observation_space,
            crop_size,
            feature_dim,
            vector_dims,
            cnn_channels,
            cnn_strides,
            gating,
            gate_elu,
            center_images,
        )
        self.embed = MLP(self.encoder.out_dim, embed_dims[:-1], embed_dims[-1], output_norm="plain")
        self.rssm = RSSM(
            embed_dims[-1],
            action_dim,
            deter_dim,
            stoch_dim,
            gru_dims,
            prior_dims,
            posterior_dims,
            initial_log_std,
        )
        latent_dim = self.rssm.latent_dim
        self.decoder = MLP(latent_dim, decoder_dims, self.encoder.out_dim, output_norm="plain")
        self.reward_head = MLP(latent_dim, head_dims, 1)
        self.inverse_frames = inverse_frames
        after_dim = inverse_frames * self.encoder.out_dim if inverse_frames else latent_dim
        self.inverse_head = MLP(latent_dim + after_dim, head_dims, action_dim)
        self.contrastive_scale = nn.Parameter(torch.tensor(float(initial_contrastive_scale)))

    @property
    def latent_dim(self) -> int:
        return self.rssm.latent_dim

    def filter_parameters(self) -> Iterator[nn.Parameter]:
        """What turns observations into latents: the parameters that the critic's loss trains."""
        yield from self.encoder.parameters()
        yield from self.embed.parameters()
        yield from self.rssm.gru_mlp.parameters()
        yield from self.rssm.cell.parameters()
        yield from self.rssm.posterior_mlp.parameters()

    def encode(self, observations: Observation) -> torch.Tensor:
        """Features ``(T, B, F)`` of cropped observations ``(T, B, ...)``."""
        leading = any_entry(observations).shape[:2]
        return self.encoder(flatten_time(observations)).unflatten(0, leading)

    def observe(
        self, features: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor
    ) -> Rollout:
        """Filter features ``(T, B, F)``; see :meth:`RSSM.observe`."""
        return self.rssm.observe(self.embed(features), actions, noise)

    def reward(self, latents: torch.Tensor) -> torch.Tensor:
        """Rewards ``(...)`` predicted at latents ``(..., latent_dim)``."""
        return self.reward_head(latents).squeeze(-1)

    def inverse(self, latents: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Actions ``(..., A)`` in (-1, 1) that lead from ``latents`` to what comes ``after``.

        :param latents: ``(..., latent_dim)``
        :param after: the next latents ``(..., latent_dim)``; with ``inverse_frames`` the features
            of the next frames, ``(..., inverse_frames * F)``
        """
        return torch.tanh(self.inverse_head(torch.cat([latents, after], dim=-1)))

    def inverse_loss(
        self,
        latents: torch.Tensor,
        features: torch.Tensor,
        actions: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Loss of the inverse dynamics, over the actions with enough frames after them; a scalar.

        :param latents: ``(T, B, latent_dim)``
        :param features: ``(T, B, F)``
        :param actions: ``(T - 1, B, A)``
        :param mask: ``(T - 1, B)``
        """
        n_frames = self.inverse_frames
        if n_frames == 0:
            return losses.inverse_loss(self.inverse(latents[:-1], latents[1:]), actions, mask)
        n_steps = max(0, len(latents) - n_frames)
        after = torch.cat([features[k : k + n_steps] for k in range(1, n_frames + 1)], dim=-1)
        predicted = self.inverse(latents[:n_steps], after)
        # Padding is at the end of a window: an action counts if its last frame is not padding.
        return losses.inverse_loss(predicted, actions[:n_steps], mask[len(mask) - n_steps :])

    def draw_noise(self, n_steps: int, n_sequences: int) -> ModelNoise:
        """The random numbers of one call of :meth:`compute_losses`."""
        like = self.contrastive_scale
        size = (n_sequences, self.rssm.stoch_dim)
        return ModelNoise(
            torch.randn(n_steps, *size, device=like.device),
            torch.randn(n_steps - 1, *size, device=like.device),
        )

    def compute_losses(
        self, batch: SequenceBatch, noise: ModelNoise, options: ModelLossOptions
    ) -> ModelLosses:
        """J_M and its terms (Eq. 5, arXiv:2112.01163).

        The prior knows nothing at the first frame: every term that uses it starts at ``t = 1``.
        A head whose coefficient is 0 is not computed; its loss is 0.
        """
        features = self.encode(batch.observations)
        rollout = self.observe(features, batch.actions, noise.posterior)
        mask = batch.transition_mask
        latents = rollout.sampled()
        prior = self.rssm.prior(rollout.deter[1:])
        posterior = Gaussian(*(part[1:] for part in rollout.posterior))
        if options.contrastive_from == "prior":
            predicted_from = torch.cat([rollout.deter[1:], prior.sample(noise.prior)], dim=-1)
        else:
            # The posterior knows the first frame too; the experiments contrast it.
            predicted_from = latents[0 if options.contrast_first_frame else 1 :]
        contrastive = self._contrastive(features, predicted_from, batch.mask, options)
        kl = losses.balanced_kl(posterior, prior, mask, options.free_nats, options.kl_balance)
        reward = inverse = kl.new_zeros(())
        if options.reward_coef > 0:
            predicted = self.reward(latents[1:])
            reward = losses.reward_loss(predicted, batch.rewards, mask, options.smooth_reward_loss)
        if options.inverse_coef > 0:
            inverse = self.inverse_loss(latents, features, batch.actions, mask)
        total = (
            options.contrastive_coef * contrastive.loss
            + options.kl_coef * kl
            + options.reward_coef * reward
            + options.inverse_coef * inverse
        )
        with torch.no_grad():
            prior_entropy = losses.masked_mean(losses.gaussian_entropy(prior), mask)
            posterior_entropy = losses.masked_mean(losses.gaussian_entropy(posterior), mask)
        return ModelLosses(
            total=total,
            contrastive=contrastive.loss,
            kl=kl,
            reward=reward,
            inverse=inverse,
            contrastive_accuracy=contrastive.accuracy,
            prior_entropy=prior_entropy,
            posterior_entropy=posterior_entropy,
            latents=rollout.mean(),
        )

    def _contrastive(
        self,
        features: torch.Tensor,
        predicted_from: torch.Tensor,
        mask: torch.Tensor,
        options: ModelLossOptions,
    ) -> losses.InfoNCE:
        """L_c between features ``(T, B, F)`` and what is decoded from latents of the last frames.

        :param predicted_from: ``(T - 1, B, latent_dim)``, or ``(T, B, latent_dim)``
        """
        n_frames = len(predicted_from)
        return losses.info_nce(
            features[-n_frames:],
            self.decoder(predicted_from),
            F.softplus(self.contrastive_scale),
            mask[-n_frames:],
            options.negatives,
        )
