"""Recurrent SAC: soft actor-critic on a latent state that a recurrent model filters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from core_agent.algorithm import Metrics, SequenceOffPolicyAlgorithm
from core_agent.hardware import Precision
from core_agent.latent import OpenLatent
from core_agent.losses import masked_mean
from core_agent.policies import RecurrentPolicy
from core_agent.types import ActingState, SequenceBatch
from core_agent.validation import (
    check,
    check_boolean,
    check_number,
    check_positive,
    is_number,
)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, gradients flow through ``module`` but its parameters get none."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def initial_ent_coef(ent_coef: float | str) -> float | None:
    """The temperature to start with; ``None`` leaves it to the policy.

    :raises ValueError: for anything but ``"auto"``, ``"auto_0.1"`` or a number > 0
    """
    value: Any = ent_coef
    if isinstance(ent_coef, str):
        if ent_coef == "auto":
            return None
        prefix, _, number = ent_coef.partition("_")
        try:
            value = float(number) if prefix == "auto" else None
        except ValueError:
            value = None
    rule = "be 'auto', 'auto_' and a number > 0, or a number > 0"
    check(is_number(value) and value > 0, "ent_coef", rule, ent_coef)
    return float(value)


def descend(
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    clipped: Iterable[nn.Parameter],
    max_norm: float,
) -> torch.Tensor:
    """One step of ``optimizer`` on ``loss``; the norm of the clipped gradients before clipping.

    A loss that nothing trainable leads to, as of frozen parts, leaves everything as it is.
    """
    optimizer.zero_grad()
    if loss.requires_grad:
        loss.backward()
    norm = clip_grad_norm_(clipped, max_norm)
    optimizer.step()
    return norm


class RecurrentSAC(OpenLatent, SequenceOffPolicyAlgorithm):
    """Soft actor-critic whose state is filtered from observations and actions by a recurrent model.

    The model is trained by the critic's loss alone, on random crops where observations are
    images: the 'Recurrent SAC + RAD' of Table 5, arXiv:2112.01163. It needs no images: on vector
    observations it serves partially observable tasks.

    :param policy: ``"CnnPolicy"``, ``"MlpPolicy"`` or ``"MultiInputPolicy"``, or a policy class;
        with ``env=None`` it may be the id of an environment instead
    :param env: environment, its id, or vectorised environments; ``None`` to load a model
    :param learning_rate: of the model, also in the critic's optimiser; a schedule scales all
        learning rates alike
    :param buffer_size: agent steps that are kept, each frame once
    :param learning_starts: uniformly random agent steps before learning
    :param batch_size: sequences in a batch
    :param sequence_length: frames in a sequence
    :param tau: rate of the target critics' moving average
    :param gamma: discount per agent step
    :param train_freq: agent steps, or ``(n, "episode")``, between updates; with several
        environments until each has ended an episode
    :param gradient_steps: updates each time; -1: as many as agent steps were taken; ``None``:
        ``update_ratio`` times as many
    :param update_ratio: updates per agent step
    :param critic_learning_rate: of the critics
    :param actor_learning_rate: of the actor
    :param ent_coef: entropy temperature: ``"auto"`` learns it, ``"auto_0.1"`` from 0.1 on; a number
        fixes it
    :param ent_coef_learning_rate: of the entropy temperature
    :param target_entropy: in nats; ``"auto"``: minus the number of actions
    :param max_log_ent_coef: upper bound of the log temperature
    :param train_model_with_critic: let the critic's loss train encoder and filter too
        (appendix C.2)
    :param crop_size: side of the image crops, random in training, central in acting; ``None``:
        84 % of the image (84 of the paper's 100)
    :param precision: of hidden layers: ``"auto"`` (bfloat16 where the hardware multiplies it),
        ``"float32"`` or ``"bfloat16"``; recurrence and last layers are float32 in any case
    :param action_noise: noise added to the actions in training
    :param replay_buffer_class: a subclass of
        :class:`~core_agent.buffers.SequenceReplayBuffer`
    :param replay_buffer_kwargs: further arguments of the buffer
    :param stats_window_size: episodes that the logged mean return is taken over
    :param tensorboard_log: folder for TensorBoard; ``None``: no log
    :param policy_kwargs: network sizes, see :class:`~core_agent.policies.RecurrentPolicy`
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: of every random generator
    :param device: ``"auto"``: the GPU if there is one
    :param _init_setup_model: make the networks now
    :raises ValueError: for a bad argument, naming it and its rule
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "CnnPolicy": RecurrentPolicy,
        "MlpPolicy": RecurrentPolicy,
        "MultiInputPolicy": RecurrentPolicy,
    }
    optimizer_names: ClassVar[tuple[str, ...]] = (
        "critic_optimizer",
        "actor_optimizer",
        "ent_coef_optimizer",
    )
    max_critic_grad_norm: ClassVar[float] = 100.0
    max_actor_grad_norm: ClassVar[float] = 10.0
    max_ent_coef_grad_norm: ClassVar[float] = 1.0
    policy: RecurrentPolicy

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 100_000,
        learning_starts: int = 1_000,
        batch_size: int = 32,
        sequence_length: int = 32,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = (1, "episode"),
        gradient_steps: int | None = None,
        update_ratio: float = 0.5,
        critic_learning_rate: float = 1e-3,
        actor_learning_rate: float = 1e-3,
        ent_coef: float | str = "auto",
        ent_coef_learning_rate: float = 1e-3,
        target_entropy: float | str = "auto",
        max_log_ent_coef: float = 3.0,
        train_model_with_critic: bool = True,
        crop_size: int | tuple[int, int] | None = None,
        precision: Precision = "auto",
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        check_positive("critic_learning_rate", critic_learning_rate)
        check_positive("actor_learning_rate", actor_learning_rate)
        check_positive("ent_coef_learning_rate", ent_coef_learning_rate)
        initial_ent_coef(ent_coef)
        check(
            is_number(target_entropy)
            or (isinstance(target_entropy, str) and target_entropy == "auto"),
            "target_entropy",
            "be a number or 'auto'",
            target_entropy,
        )
        check_number("max_log_ent_coef", max_log_ent_coef)
        check_boolean("train_model_with_critic", train_model_with_critic)
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            sequence_length=sequence_length,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            update_ratio=update_ratio,
            crop_size=crop_size,
            precision=precision,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
        )
        self.critic_learning_rate = critic_learning_rate
        self.actor_learning_rate = actor_learning_rate
        self.ent_coef = ent_coef
        self.ent_coef_learning_rate = ent_coef_learning_rate
        self.target_entropy = target_entropy
        self.max_log_ent_coef = max_log_ent_coef
        self.train_model_with_critic = train_model_with_critic
        if _init_setup_model:
            self._setup_model()

    def _make_optimizers(self) -> None:
        initial = initial_ent_coef(self.ent_coef)
        if initial is not None:
            self.policy.log_ent_coef.data.fill_(math.log(initial))
        policy, model_rate = self.policy, self.base_learning_rate
        groups = [dict(params=list(policy.critic.parameters()), lr=self.critic_learning_rate)]
        if self.train_model_with_critic:
            groups.append(dict(params=list(policy.world_model.filter_parameters()), lr=model_rate))
        policy.critic_optimizer = self._adam(groups)
        # The name under which SB3's tools look for an optimiser.
        policy.optimizer = policy.critic_optimizer
        policy.actor_optimizer = self._adam(
            [dict(params=list(policy.actor.parameters()), lr=self.actor_learning_rate)]
        )
        policy.ent_coef_optimizer = self._adam(
            [dict(params=[policy.log_ent_coef], lr=self.ent_coef_learning_rate)],
            betas=(0.5, 0.999),
        )
        self._update_target = get_ema_multi_avg_fn(1.0 - self.tau)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_update_target"]

    @property
    def _target_entropy(self) -> float:
        if self.target_entropy == "auto":
            return -float(self.policy.action_dim)
        return float(self.target_entropy)

    # ---- acting ----

    def _explore(
        self, random_actions: np.ndarray | None, action_noise: ActionNoise | None
    ) -> np.ndarray:
        """Filter the last observation, choose actions and remember what was executed."""
        policy = self.policy
        observation, _ = policy.obs_to_tensor(self._last_obs)  # type: ignore[arg-type]
        starts = torch.as_tensor(self._last_episode_starts, device=self.device)
        state = policy.initial_state(len(starts))
        if self._last_states is not None:
            state = ActingState(
                *(torch.as_tensor(part, device=self.device) for part in self._last_states)
            )
        latent, actor_input = policy.step(observation, state, starts, sample_state=True)
        if random_actions is None:
            distribution = policy.actor(actor_input)
            actions, _ = distribution.sample(torch.randn_like(distribution.mean))
            scaled = actions.cpu().numpy()
        else:
            scaled = random_actions.astype(np.float32)
        if action_noise is not None:
            scaled = np.clip(scaled + action_noise(), -1.0, 1.0).astype(np.float32)
        self._last_states = (latent.deter.cpu().numpy(), latent.stoch.cpu().numpy(), scaled)
        return scaled

    # ---- learning ----

    def update(self, batch: SequenceBatch) -> Metrics:
        """One step of critic, actor, temperature and target on the same batch."""
        with torch.set_grad_enabled(self.train_model_with_critic):
            latents = self.filter(batch)
        critic_metrics = self.update_critic(batch, latents)
        actor_metrics, log_prob = self.update_actor(batch, latents.detach()[:-1])
        ent_coef_metrics = self.update_ent_coef(batch, log_prob)
        self.update_target()
        return {**critic_metrics, **actor_metrics, **ent_coef_metrics}

    def filter(self, batch: SequenceBatch, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Latents ``(T, B, latent_dim)`` that actor and critics read: posterior means.

        :param noise: standard normal ``(T, B, stoch_dim)``; drawn if not given
        """
        model = self.policy.world_model
        if noise is None:
            size = (*batch.mask.shape, model.rssm.stoch_dim)
            noise = torch.randn(size, device=self.device)
        return model.observe(model.encode(batch.observations), batch.actions, noise).mean()

    @torch.no_grad()
    def target_values(
        self, batch: SequenceBatch, next_latents: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``r + γ (1 - terminated) (min Q'(z', a') - α log π(a'|z'))``, ``(T - 1, B)``.

        Episodes cut by a time limit are not terminated, so their last value counts.
        """
        policy = self.policy
        distribution = policy.actor(next_latents)
        if noise is None:
            noise = torch.randn_like(distribution.mean)
        actions, log_prob = distribution.sample(noise)
        values = policy.critic_target(next_latents, actions).amin(dim=0)
        soft_values = values - policy.log_ent_coef.exp() * log_prob
        return batch.rewards + self.gamma * (1.0 - batch.terminated) * soft_values

    def critic_loss(
        self, batch: SequenceBatch, latents: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """J_Q: the sum of both critics' mean squared errors (Eq. 6, arXiv:2112.01163)."""
        targets = self.target_values(batch, latents[1:].detach(), noise)
        values = self.policy.critic(latents[:-1], batch.actions)
        errors = (values - targets).square().sum(dim=0)
        return masked_mean(errors, batch.transition_mask)

    def update_critic(self, batch: SequenceBatch, latents: torch.Tensor) -> Metrics:
        policy, loss = self.policy, self.critic_loss(batch, latents)
        clipped = policy.critic.parameters()
        norm = descend(loss, policy.critic_optimizer, clipped, self.max_critic_grad_norm)
        return {"critic_loss": loss, "critic_grad_norm": norm}

    def actor_loss(
        self, batch: SequenceBatch, latents: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """J_π: mean of ``α log π - min Q`` at detached latents, and ``log π`` ``(T - 1, B)``."""
        distribution = self.policy.actor(latents)
        if noise is None:
            noise = torch.randn_like(distribution.mean)
        actions, log_prob = distribution.sample(noise)
        values = self.policy.critic(latents, actions).amin(dim=0)
        ent_coef = self.policy.log_ent_coef.detach().exp()
        return masked_mean(ent_coef * log_prob - values, batch.transition_mask), log_prob

    def update_actor(
        self, batch: SequenceBatch, latents: torch.Tensor
    ) -> tuple[Metrics, torch.Tensor]:
        with frozen(self.policy.critic):
            loss, log_prob = self.actor_loss(batch, latents)
            clipped = self.policy.actor.parameters()
            norm = descend(loss, self.policy.actor_optimizer, clipped, self.max_actor_grad_norm)
        return {"actor_loss": loss, "actor_grad_norm": norm}, log_prob.detach()

    def update_ent_coef(self, batch: SequenceBatch, log_prob: torch.Tensor) -> Metrics:
        """Move the temperature towards the target entropy; ``log_prob`` ``(T - 1, B)``."""
        log_ent_coef = self.policy.log_ent_coef
        mean_log_prob = masked_mean(log_prob, batch.transition_mask)
        if not isinstance(self.ent_coef, str):
            return {"ent_coef": log_ent_coef.detach().exp(), "policy_entropy": -mean_log_prob}
        loss = -log_ent_coef.exp() * (mean_log_prob + self._target_entropy)
        optimizer = self.policy.ent_coef_optimizer
        descend(loss, optimizer, [log_ent_coef], self.max_ent_coef_grad_norm)
        with torch.no_grad():
            log_ent_coef.clamp_(max=self.max_log_ent_coef)
            ent_coef = log_ent_coef.exp()
        return {"ent_coef_loss": loss, "ent_coef": ent_coef, "policy_entropy": -mean_log_prob}

    @torch.no_grad()
    def update_target(self) -> None:
        """Move the target critics towards the critics."""
        self._update_target(
            list(self.policy.critic_target.parameters()),
            list(self.policy.critic.parameters()),
            None,
        )
