"""A plain implementation of CoRe's update: the reference of ``update.py`` and of the tests.

It computes the same as :class:`core_agent.CoRe` without optimisations: convolutions on contiguous
NCHW images, every network inside the time loop, prior and decoder in the critic's pass too, two
separate critics, ``torch.optim.Adam`` with its defaults, one ``.item()`` for each metric. It
computes in the dtype of its parameters.

It shares only the type of a batch with ``core_agent``; :func:`to_plain` renames and reshapes the
parameters (or gradients) of a ``core_agent`` policy. Random numbers can be given (:class:`Noise`),
so that both use the same. It supports only images, ELU and the default losses.
``pytest tests/benchmarks`` compares it with the package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from core_agent.agents.latent import RecurrentPolicy
from core_agent.networks.types import SequenceBatch

KL_COEF, REWARD_COEF, INVERSE_COEF, FREE_NATS = 0.01, 1.0, 1.0, 1.0
GAMMA, TAU = 0.99, 0.005
MODEL_RATE, SCALE_RATE, CRITIC_RATE, ACTOR_RATE, TEMPERATURE_RATE = 3e-4, 2e-3, 1e-3, 1e-3, 1e-3
MODEL_CLIP, CRITIC_CLIP, ACTOR_CLIP, TEMPERATURE_CLIP = 10.0, 100.0, 10.0, 1.0
MAX_LOG_TEMPERATURE = 3.0


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks; the defaults are the paper's."""

    channels: int = 3
    crop: tuple[int, int] = (84, 84)
    action_dim: int = 6
    deter_dim: int = 200
    stoch_dim: int = 64
    feature_dim: int = 50
    embed_dims: Sequence[int] = (256, 256)
    gru_dims: Sequence[int] = (400, 400)
    prior_dims: Sequence[int] = (400, 400, 400)
    posterior_dims: Sequence[int] = (400, 400)
    decoder_dims: Sequence[int] = (256, 256)
    head_dims: Sequence[int] = (128, 128)
    cnn_channels: Sequence[int] = (32, 32, 32, 32)
    cnn_strides: Sequence[int] = (2, 1, 1, 1)
    actor_dims: Sequence[int] = (1024, 1024, 1024)
    critic_dims: Sequence[int] = (1024, 1024, 1024)

    @classmethod
    def of(cls, policy: RecurrentPolicy) -> Sizes:
        """The sizes of a policy on images, made with the default activation and no gate."""
        (crop,) = policy.world_model.encoder.crop_sizes.values()
        names = {field.name for field in fields(cls)}
        chosen = {key: v for key, v in policy.constructor_kwargs.items() if key in names}
        assert policy.observation_space.shape is not None
        channels = policy.observation_space.shape[0]
        return cls(channels=channels, crop=crop, action_dim=policy.action_dim, **chosen)


class Noise(NamedTuple):
    """Standard normal draws of one update, ``(T, B, S)``; ``T - 1`` of priors and actions."""

    posterior: torch.Tensor
    prior: torch.Tensor
    critic_posterior: torch.Tensor
    critic_prior: torch.Tensor
    target_action: torch.Tensor
    action: torch.Tensor


class PlainMLP(nn.Module):
    """Linear layers with ELU between them.

    :param dims: sizes of the input and of every layer
    :param last_activation: ELU after the last layer too
    :param norm: layer norm of the output
    """

    def __init__(
        self, dims: Sequence[int], last_activation: bool = False, norm: nn.LayerNorm | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(dims, dims[1:]))
        self.last_activation = last_activation
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index + 1 < len(self.layers) or self.last_activation:
                x = F.elu(x)
        return x if self.norm is None else self.norm(x)


class PlainEncoder(nn.Module):
    """Images to features: 3×3 convolutions with ReLU, one linear layer, layer norm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        channels = [sizes.channels, *sizes.cnn_channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=s)
            for i, o, s in zip(channels, channels[1:], sizes.cnn_strides)
        )
        height, width = sizes.crop
        for stride in sizes.cnn_strides:
            height, width = (height - 3) // stride + 1, (width - 3) // stride + 1
        self.map_size = (height, width, channels[-1])
        self.linear = nn.Linear(height * width * channels[-1], sizes.feature_dim)
        self.norm = nn.LayerNorm(sizes.feature_dim, elementwise_affine=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.contiguous().to(self.linear.weight.dtype) / 255.0
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.norm(self.linear(x.flatten(1)))


class PlainGRUCell(nn.Module):
    """One bias-free product, one layer norm over the three gates, the update gate shifted."""

    def __init__(self, in_dim: int, deter_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim + deter_dim, 3 * deter_dim, bias=False)
        self.norm = nn.LayerNorm(3 * deter_dim)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        r, c, u = self.norm(self.linear(torch.cat([x, h], dim=-1))).chunk(3, dim=-1)
        c = torch.tanh(torch.sigmoid(r) * c)
        u = torch.sigmoid(u - 1.0)
        return u * c + (1.0 - u) * h


class Steps(NamedTuple):
    """Results of the time loop; lists have one entry per step, those of the prior ``T - 1``."""

    features: torch.Tensor
    deter: list[torch.Tensor]
    posterior: list[Normal]
    stoch: list[torch.Tensor]
    prior: list[Normal]
    predicted: list[torch.Tensor]


def to_normal(statistics: torch.Tensor) -> Normal:
    """``(..., 2 S)`` means and log standard deviations as a distribution."""
    mean, log_std = statistics.chunk(2, dim=-1)
    return Normal(mean, log_std.clamp(-10.0, 10.0).exp(), validate_args=False)


class Yardstick(nn.Module):
    """Networks, losses and optimisers of CoRe."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        latent_dim = sizes.deter_dim + sizes.stoch_dim
        n_statistics = 2 * sizes.stoch_dim
        embed_dim, action_dim = sizes.embed_dims[-1], sizes.action_dim
        self.encoder = PlainEncoder(sizes)
        self.embed = PlainMLP(
            [sizes.feature_dim, *sizes.embed_dims],
            norm=nn.LayerNorm(embed_dim, elementwise_affine=False),
        )
        self.gru_mlp = PlainMLP([sizes.stoch_dim + action_dim, *sizes.gru_dims], True)
        self.cell = PlainGRUCell(sizes.gru_dims[-1], sizes.deter_dim)
        self.prior_mlp = PlainMLP(
            [sizes.deter_dim, *sizes.prior_dims, n_statistics], norm=nn.LayerNorm(n_statistics)
        )
        self.posterior_mlp = PlainMLP(
            [sizes.deter_dim + embed_dim, *sizes.posterior_dims, n_statistics],
            norm=nn.LayerNorm(n_statistics),
        )
        self.decoder = PlainMLP(
            [latent_dim, *sizes.decoder_dims, sizes.feature_dim],
            norm=nn.LayerNorm(sizes.feature_dim, elementwise_affine=False),
        )
        self.reward_head = PlainMLP([latent_dim, *sizes.head_dims, 1])
        self.inverse_head = PlainMLP([2 * latent_dim, *sizes.head_dims, action_dim])
        self.contrastive_scale = nn.Parameter(torch.ones(()))
        self.actor = PlainMLP([latent_dim, *sizes.actor_dims, 2 * action_dim])
        critic_dims = [latent_dim + action_dim, *sizes.critic_dims, 1]
        self.critics = nn.ModuleList(PlainMLP(critic_dims) for _ in range(2))
        self.target_critics = nn.ModuleList(PlainMLP(critic_dims) for _ in range(2))
        self.log_ent_coef = nn.Parameter(torch.tensor(-2.3))

    @classmethod
    def of(cls, policy: RecurrentPolicy) -> Yardstick:
        """A yardstick with the sizes and the weights of a policy, on its device, in its type."""
        yardstick = cls(Sizes.of(policy)).to(policy.device, policy.log_ent_coef.dtype)
        state = to_plain(policy.state_dict(), yardstick.encoder.map_size)
        yardstick.load_state_dict(state)
        yardstick.make_optimizers()
        return yardstick

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """Θ, without τ."""
        modules = [self.encoder, self.embed, self.gru_mlp, self.cell, self.prior_mlp]
        modules += [self.posterior_mlp, self.decoder, self.reward_head, self.inverse_head]
        for module in modules:
            yield from module.parameters()

    def make_optimizers(self) -> None:
        """Adam for the model, for critics and model, for the actor and for the temperature."""
        model = list(self.model_parameters())
        scale: dict[str, Any] = dict(params=[self.contrastive_scale], lr=SCALE_RATE)
        self.optimizer = torch.optim.Adam([dict(params=model), scale], lr=MODEL_RATE)
        critics = list(self.critics.parameters())
        filtering: dict[str, Any] = dict(params=model, lr=MODEL_RATE)
        self.critic_optimizer = torch.optim.Adam([dict(params=critics), filtering], lr=CRITIC_RATE)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=ACTOR_RATE)
        self.ent_coef_optimizer = torch.optim.Adam(
            [self.log_ent_coef], lr=TEMPERATURE_RATE, betas=(0.5, 0.999)
        )

    def draw_noise(self, n_steps: int, n_sequences: int) -> Noise:
        """The random numbers of one update."""
        like, sizes = self.log_ent_coef, self.sizes

        def draw(steps: int, dim: int) -> torch.Tensor:
            return torch.randn(steps, n_sequences, dim, device=like.device, dtype=like.dtype)

        return Noise(
            posterior=draw(n_steps, sizes.stoch_dim),
            prior=draw(n_steps - 1, sizes.stoch_dim),
            critic_posterior=draw(n_steps, sizes.stoch_dim),
            critic_prior=draw(n_steps - 1, sizes.stoch_dim),
            target_action=draw(n_steps - 1, sizes.action_dim),
            action=draw(n_steps - 1, sizes.action_dim),
        )

    # ---- model ----

    def roll(
        self, batch: SequenceBatch, posterior_noise: torch.Tensor, prior_noise: torch.Tensor
    ) -> Steps:
        """Filter and predict, step by step."""
        assert isinstance(batch.observations, torch.Tensor)
        n_steps, n_sequences = batch.mask.shape
        features = self.encoder(batch.observations.flatten(0, 1))
        features = features.unflatten(0, (n_steps, n_sequences))
        steps = Steps(features, [], [], [], [], [])
        h = features.new_zeros(n_sequences, self.sizes.deter_dim)
        for t in range(n_steps):
            if t > 0:
                s_and_a = torch.cat([steps.stoch[t - 1], batch.actions[t - 1]], dim=-1)
                h = self.cell(self.gru_mlp(s_and_a), h)
                prior = to_normal(self.prior_mlp(h))
                prior_sample = prior.mean + prior.stddev * prior_noise[t - 1]
                steps.prior.append(prior)
                steps.predicted.append(self.decoder(torch.cat([h, prior_sample], dim=-1)))
            embed = self.embed(features[t])
            posterior = to_normal(self.posterior_mlp(torch.cat([h, embed], dim=-1)))
            steps.deter.append(h)
            steps.posterior.append(posterior)
            steps.stoch.append(posterior.mean + posterior.stddev * posterior_noise[t])
        return steps

    def model_loss(
        self, batch: SequenceBatch, noise: Noise
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """J_M and its terms."""
        steps = self.roll(batch, noise.posterior, noise.prior)
        valid = batch.mask[1:].bool()
        kls, rewards, inverses, prior_entropies, posterior_entropies = [], [], [], [], []
        for t in range(1, len(steps.deter)):
            latent = torch.cat([steps.deter[t], steps.stoch[t]], dim=-1)
            previous = torch.cat([steps.deter[t - 1], steps.stoch[t - 1]], dim=-1)
            predicted_reward = self.reward_head(latent).squeeze(-1)
            rewards.append((predicted_reward - batch.rewards[t - 1]).square())
            predicted_action = torch.tanh(self.inverse_head(torch.cat([previous, latent], dim=-1)))
            inverses.append(0.5 * (predicted_action - batch.actions[t - 1]).square().sum(dim=-1))
            posterior, prior = (
                Independent(steps.posterior[t], 1),
                Independent(steps.prior[t - 1], 1),
            )
            kls.append(
                0.5 * kl_divergence(stopped(posterior), prior).clamp(min=FREE_NATS)
                + 0.5 * kl_divergence(posterior, stopped(prior)).clamp(min=FREE_NATS)
            )
            prior_entropies.append(prior.entropy())
            posterior_entropies.append(posterior.entropy())
        contrastive, accuracy = self.contrastive_loss(
            steps.features[1:][valid], torch.stack(steps.predicted)[valid]
        )
        terms = {
            "contrastive_loss": contrastive,
            "kl_loss": torch.stack(kls)[valid].mean(),
            "reward_loss": torch.stack(rewards)[valid].mean(),
            "inverse_loss": torch.stack(inverses)[valid].mean(),
            "contrastive_accuracy": accuracy,
            "prior_entropy": torch.stack(prior_entropies)[valid].mean(),
            "posterior_entropy": torch.stack(posterior_entropies)[valid].mean(),
        }
        total = (
            terms["contrastive_loss"]
            + KL_COEF * terms["kl_loss"]
            + REWARD_COEF * terms["reward_loss"]
            + INVERSE_COEF * terms["inverse_loss"]
        )
        return total, terms

    def contrastive_loss(
        self, features: torch.Tensor, predicted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and accuracy of matching ``N`` predictions with ``N`` features."""
        logits = F.softplus(self.contrastive_scale) * (features @ predicted.t())
        labels = torch.arange(len(logits), device=logits.device)
        loss = 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels))
        return loss, (logits.argmax(dim=1) == labels).to(logits.dtype).mean()

    def update_model(self, batch: SequenceBatch, noise: Noise) -> dict[str, float]:
        """One step on J_M."""
        loss, terms = self.model_loss(batch, noise)
        self.optimizer.zero_grad()
        loss.backward()
        parameters = [*self.model_parameters(), self.contrastive_scale]
        norm = nn.utils.clip_grad_norm_(parameters, MODEL_CLIP)
        self.optimizer.step()
        metrics = {name: term.item() for name, term in terms.items()}
        return {"model_loss": loss.item(), "model_grad_norm": norm.item(), **metrics}

    # ---- critic ----

    def latents(self, batch: SequenceBatch, noise: Noise) -> torch.Tensor:
        """Latents of posterior means, ``(T, B, latent_dim)``, by a fresh pass of the model."""
        steps = self.roll(batch, noise.critic_posterior, noise.critic_prior)
        means = [
            torch.cat([h, posterior.mean], dim=-1)
            for h, posterior in zip(steps.deter, steps.posterior)
        ]
        return torch.stack(means)

    def act(self, latents: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions and their log-densities."""
        mean, log_std = self.actor(latents).chunk(2, dim=-1)
        mean = 5.0 * torch.tanh(mean / 5.0)
        log_std = -10.0 + 12.0 * torch.sigmoid(log_std)
        x = mean + log_std.exp() * noise
        log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2.0 * math.pi)
        log_slope = 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))
        return torch.tanh(x), (log_normal - log_slope).sum(dim=-1)

    def critic_loss(
        self, batch: SequenceBatch, latents: torch.Tensor, noise: Noise
    ) -> torch.Tensor:
        """J_Q: both mean squared errors."""
        with torch.no_grad():
            actions, log_prob = self.act(latents[1:], noise.target_action)
            next_inputs = torch.cat([latents[1:], actions], dim=-1)
            first, second = (critic(next_inputs).squeeze(-1) for critic in self.target_critics)
            soft_value = torch.minimum(first, second) - self.log_ent_coef.exp() * log_prob
            target = batch.rewards + GAMMA * (1.0 - batch.terminated) * soft_value
        inputs = torch.cat([latents[:-1], batch.actions], dim=-1)
        valid = batch.mask[1:].bool()
        first, second = (critic(inputs).squeeze(-1) for critic in self.critics)
        return F.mse_loss(first[valid], target[valid]) + F.mse_loss(second[valid], target[valid])

    def update_critic(
        self, batch: SequenceBatch, noise: Noise
    ) -> tuple[dict[str, float], torch.Tensor]:
        """One step on J_Q; the metrics, and the latents for the actor."""
        latents = self.latents(batch, noise)
        loss = self.critic_loss(batch, latents, noise)
        self.critic_optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.critics.parameters(), CRITIC_CLIP)
        self.critic_optimizer.step()
        return {"critic_loss": loss.item(), "critic_grad_norm": norm.item()}, latents.detach()

    # ---- actor, temperature, target ----

    def actor_loss(
        self, batch: SequenceBatch, latents: torch.Tensor, noise: Noise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """J_π at latents ``(T - 1, B, …)``, and the log-densities of the actions."""
        actions, log_prob = self.act(latents, noise.action)
        inputs = torch.cat([latents, actions], dim=-1)
        first, second = (critic(inputs).squeeze(-1) for critic in self.critics)
        valid = batch.mask[1:].bool()
        loss = self.log_ent_coef.exp().detach() * log_prob - torch.minimum(first, second)
        return loss[valid].mean(), log_prob

    def update_actor(
        self, batch: SequenceBatch, latents: torch.Tensor, noise: Noise
    ) -> tuple[dict[str, float], torch.Tensor]:
        """One step on J_π; the metrics, and the mean log-density."""
        loss, log_prob = self.actor_loss(batch, latents, noise)
        self.actor_optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.actor.parameters(), ACTOR_CLIP)
        self.actor_optimizer.step()
        mean_log_prob = log_prob[batch.mask[1:].bool()].mean().detach()
        return {"actor_loss": loss.item(), "actor_grad_norm": norm.item()}, mean_log_prob

    def update_temperature(self, mean_log_prob: torch.Tensor) -> dict[str, float]:
        """Move the temperature towards an entropy of minus the number of actions."""
        loss = -self.log_ent_coef.exp() * (mean_log_prob - self.sizes.action_dim)
        self.ent_coef_optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([self.log_ent_coef], TEMPERATURE_CLIP)
        self.ent_coef_optimizer.step()
        self.log_ent_coef.data.clamp_(max=MAX_LOG_TEMPERATURE)
        return {
            "ent_coef_loss": loss.item(),
            "ent_coef": self.log_ent_coef.exp().item(),
            "policy_entropy": -mean_log_prob.item(),
        }

    def update_targets(self) -> None:
        """Exponential moving average of the critics."""
        for target, source in zip(self.target_critics.parameters(), self.critics.parameters()):
            target.data.mul_(1.0 - TAU).add_(TAU * source.data)

    def update(self, batch: SequenceBatch, noise: Noise | None = None) -> dict[str, float]:
        """Model, critic, actor, temperature and targets, in this order."""
        if noise is None:
            noise = self.draw_noise(*batch.mask.shape)
        metrics = self.update_model(batch, noise)
        critic_metrics, latents = self.update_critic(batch, noise)
        actor_metrics, mean_log_prob = self.update_actor(batch, latents[:-1], noise)
        temperature_metrics = self.update_temperature(mean_log_prob)
        self.update_targets()
        return {**metrics, **critic_metrics, **actor_metrics, **temperature_metrics}


def stopped(distribution: Independent) -> Independent:
    """The same distribution, without a gradient."""
    base = distribution.base_dist
    return Independent(Normal(base.mean.detach(), base.stddev.detach(), validate_args=False), 1)


# ---- from the package ----

RENAMED = (
    (r"^world_model\.(rssm\.)?", ""),
    (r"^encoder\.image_encoders\.\w+\.", "encoder."),
    (r"^actor\.net\.", "actor."),
    (r"\.hidden\.", ".layers."),
)
TWINS = {"critic": "critics", "critic_target": "target_critics"}


def to_plain(
    tensors: Mapping[str, torch.Tensor], map_size: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    """Parameters or gradients of a ``core_agent`` policy under the yardstick's names and shapes.

    :param tensors: by the names of ``policy.named_parameters()``
    :param map_size: height, width and channels of the encoder's last feature map; the package
        flattens it channels last, the yardstick channels first
    """
    plain = {}
    for name, value in tensors.items():
        twin = re.fullmatch(r"(critic|critic_target)\.net\.(weights|biases)\.(\d+)", name)
        if twin:
            for member in range(2):
                key = f"{TWINS[twin[1]]}.{member}.layers.{twin[3]}"
                if twin[2] == "weights":
                    plain[f"{key}.weight"] = value[member].t()
                else:
                    plain[f"{key}.bias"] = value[member].flatten()
            continue
        if name.endswith("image_encoders.observation.linear.weight"):
            value = value.unflatten(1, map_size).permute(0, 3, 1, 2).flatten(1)
        if ".output." in name:
            network = name.partition(".output.")[0]
            n_hidden = sum(f"{network}.hidden.{i}.weight" in tensors for i in range(len(tensors)))
            name = name.replace(".output.", f".layers.{n_hidden}.")
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        plain[name] = value
    return plain
