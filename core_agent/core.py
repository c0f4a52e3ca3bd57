"""CoRe: recurrent SAC on a latent state shaped by contrastive prediction."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from core_agent.algorithm import Collect, Metrics
from core_agent.hardware import Precision
from core_agent.latent import OpenModel
from core_agent.losses import NEGATIVES, Negatives
from core_agent.optimization import descend, descend_together
from core_agent.recurrent_sac import RecurrentSAC
from core_agent.types import SequenceBatch
from core_agent.validation import (
    check,
    check_at_least,
    check_boolean,
    check_choice,
    check_fraction,
    check_positive,
)
from core_agent.world_model import ModelLosses, ModelLossOptions, ModelNoise

CONTRASTIVE_SOURCES = ("prior", "posterior")


class CoRe(OpenModel, RecurrentSAC):
    """Contrastive Recurrent State-Space Model with soft actor-critic.

    Learns a recurrent latent state by predicting the features of the next image contrastively,
    together with the reward and the action that was taken, and trains SAC on that state.
    Paper: Srivastava et al. 2021, https://arxiv.org/abs/2112.01163. The defaults are the paper's.

    The arguments are those of :class:`~core_agent.recurrent_sac.RecurrentSAC`, and

    :param contrastive_scale_learning_rate: of the learned scale τ of the contrastive logits
    :param contrastive_coef: weight of the contrastive loss
    :param kl_coef: weight β of the KL term
    :param reward_coef: weight of the reward prediction; 0 leaves it out (appendix C.1)
    :param inverse_coef: weight of the inverse dynamics; 0 leaves it out (appendix C.1)
    :param contrastive_from: predict from the ``"prior"`` or the ``"posterior"`` (appendix C.3)
    :param negatives: what a frame is told apart from: ``"all"`` pairs of the batch,
        ``"other_sequences"`` or the ``"same_sequence"``
    :param free_nats: KL below this many nats is not reduced further
    :param kl_balance: share of the KL gradient that trains the prior
    :param smooth_reward_loss: smooth-L1 instead of the squared error for rewards
    :param joint_update: one step on J_M + J_Q from one forward pass, in place of a step on each:
        two thirds of the time. Encoder and filter are in the model's optimiser alone then
    :param joint_critic_coef: weight of J_Q in what a joint update teaches encoder and filter; its
        gradient grows with the returns, and drowns that of J_M where they are large
    """

    optimizer_names: ClassVar[tuple[str, ...]] = (
        "optimizer",
        "critic_optimizer",
        "actor_optimizer",
        "ent_coef_optimizer",
    )
    max_model_grad_norm: ClassVar[float] = 10.0

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
        n_step: int = 1,
        overlay: float = 0.0,
        train_freq: int | tuple[int, str] = (1, "episode"),
        gradient_steps: int | None = None,
        update_ratio: float = 0.5,
        collect: Collect = "sequential",
        contrastive_coef: float = 1.0,
        kl_coef: float = 0.01,
        reward_coef: float = 1.0,
        inverse_coef: float = 1.0,
        contrastive_from: str = "prior",
        negatives: Negatives = "all",
        free_nats: float = 1.0,
        kl_balance: float = 0.5,
        smooth_reward_loss: bool = False,
        joint_update: bool = False,
        joint_critic_coef: float = 1.0,
        contrastive_scale_learning_rate: float = 2e-3,
        critic_learning_rate: float = 1e-3,
        actor_learning_rate: float = 1e-3,
        ent_coef: float | str = "auto",
        ent_coef_learning_rate: float = 1e-3,
        target_entropy: float | str = "auto",
        max_log_ent_coef: float = 3.0,
        behavior_updates: int = 1,
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
        check_at_least("contrastive_coef", contrastive_coef, 0)
        check_at_least("kl_coef", kl_coef, 0)
        check_at_least("reward_coef", reward_coef, 0)
        check_at_least("inverse_coef", inverse_coef, 0)
        check_at_least("free_nats", free_nats, 0)
        check_fraction("kl_balance", kl_balance)
        check_choice("contrastive_from", contrastive_from, CONTRASTIVE_SOURCES)
        check_choice("negatives", negatives, NEGATIVES)
        check_boolean("smooth_reward_loss", smooth_reward_loss)
        check_boolean("joint_update", joint_update)
        check_at_least("joint_critic_coef", joint_critic_coef, 0)
        check(
            train_model_with_critic or not joint_update,
            "joint_update",
            "be False where train_model_with_critic is",
            joint_update,
        )
        check_positive("contrastive_scale_learning_rate", contrastive_scale_learning_rate)
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
            n_step=n_step,
            overlay=overlay,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            update_ratio=update_ratio,
            collect=collect,
            critic_learning_rate=critic_learning_rate,
            actor_learning_rate=actor_learning_rate,
            ent_coef=ent_coef,
            ent_coef_learning_rate=ent_coef_learning_rate,
            target_entropy=target_entropy,
            max_log_ent_coef=max_log_ent_coef,
            behavior_updates=behavior_updates,
            train_model_with_critic=train_model_with_critic,
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
            _init_setup_model=False,
        )
        self.contrastive_coef = contrastive_coef
        self.kl_coef = kl_coef
        self.reward_coef = reward_coef
        self.inverse_coef = inverse_coef
        self.contrastive_from = contrastive_from
        self.negatives: Negatives = negatives
        self.free_nats = free_nats
        self.kl_balance = kl_balance
        self.smooth_reward_loss = smooth_reward_loss
        self.joint_update = joint_update
        self.joint_critic_coef = joint_critic_coef
        self.contrastive_scale_learning_rate = contrastive_scale_learning_rate
        if _init_setup_model:
            self._setup_model()

    @property
    def model_loss_options(self) -> ModelLossOptions:
        """What J_M is made of."""
        return ModelLossOptions(
            contrastive_coef=self.contrastive_coef,
            kl_coef=self.kl_coef,
            reward_coef=self.reward_coef,
            inverse_coef=self.inverse_coef,
            free_nats=self.free_nats,
            kl_balance=self.kl_balance,
            contrastive_from=self.contrastive_from,
            negatives=self.negatives,
            smooth_reward_loss=self.smooth_reward_loss,
        )

    def _make_optimizers(self) -> None:
        super()._make_optimizers()
        policy = self.policy
        scale = policy.world_model.contrastive_scale
        others = [p for p in policy.world_model.parameters() if p is not scale]
        policy.optimizer = self._adam(
            [
                dict(params=others, lr=self.base_learning_rate),
                dict(params=[scale], lr=self.contrastive_scale_learning_rate),
            ]
        )

    def _critic_groups(self) -> list[dict[str, Any]]:
        groups = super()._critic_groups()
        return groups[:1] if self.joint_update else groups

    def update(self, batch: SequenceBatch) -> Metrics:
        """One step of the model, then of critic, actor, temperature and target."""
        if self.joint_update:
            metrics, latents = self.update_jointly(batch)
            return {**metrics, **self.update_behavior(batch, latents)}
        return {**self.update_model(batch), **super().update(batch)}

    def update_jointly(self, batch: SequenceBatch) -> tuple[Metrics, torch.Tensor]:
        """One step of model and critics on J_M + J_Q; the latents, detached, that both read."""
        policy = self.policy
        model, critic = policy.world_model, policy.critic
        noise = model.draw_noise(*batch.mask.shape)
        result = model.compute_losses(batch, noise, self.model_loss_options)
        latents = result.latents.detach()
        # The critics' own gradient keeps its size.
        weighted = latents + self.joint_critic_coef * (result.latents - latents)
        critic_loss = self.critic_loss(batch, weighted)
        losses = {"loss": result.total + critic_loss, **self._terms(result)}
        losses["critic_loss"] = critic_loss
        norms = descend_together(
            losses,
            {
                policy.optimizer: (model.parameters(), self.max_model_grad_norm),
                policy.critic_optimizer: (critic.parameters(), self.max_critic_grad_norm),
            },
            self._guard,
        )
        del losses["loss"]
        metrics = {**losses, **self._statistics(result)}
        names = ("model_grad_norm", "critic_grad_norm")
        return {**metrics, **dict(zip(names, norms))}, latents

    def update_model(self, batch: SequenceBatch, noise: ModelNoise | None = None) -> Metrics:
        """One step on J_M (Eq. 5, arXiv:2112.01163)."""
        model, optimizer = self.policy.world_model, self.policy.optimizer
        if noise is None:
            noise = model.draw_noise(*batch.mask.shape)
        result = model.compute_losses(batch, noise, self.model_loss_options)
        losses = self._terms(result)
        clipped = model.parameters()
        norm = descend(losses, optimizer, clipped, self.max_model_grad_norm, self._guard)
        return {**losses, **self._statistics(result), "model_grad_norm": norm}

    @staticmethod
    def _terms(result: ModelLosses) -> Metrics:
        """J_M and what it is made of."""
        return {
            "model_loss": result.total,
            "contrastive_loss": result.contrastive,
            "kl_loss": result.kl,
            "reward_loss": result.reward,
            "inverse_loss": result.inverse,
        }

    @staticmethod
    def _statistics(result: ModelLosses) -> Metrics:
        return {
            "contrastive_accuracy": result.contrastive_accuracy,
            "prior_entropy": result.prior_entropy,
            "posterior_entropy": result.posterior_entropy,
        }
