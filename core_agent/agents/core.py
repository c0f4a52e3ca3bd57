"""CoRe: the complete method of arXiv:2112.01163.

``CoRe.update`` is one mini-batch: augment, then one step each of the model, the critic, the actor,
the temperature and the target. The losses are in :mod:`core_agent.networks.losses`, those of the
model in :mod:`core_agent.networks.world_model`; the steps of critic, actor and temperature in
:mod:`core_agent.agents.recurrent_sac`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from core_agent.agents import latent as open_latent
from core_agent.agents.base import Collect, Metrics, SequenceOffPolicyAlgorithm
from core_agent.agents.latent import Imagination
from core_agent.agents.recurrent_sac import RecurrentSAC
from core_agent.networks.hardware import Precision
from core_agent.networks.losses import NEGATIVES, Negatives
from core_agent.networks.optimization import descend, descend_together
from core_agent.networks.types import SequenceBatch
from core_agent.networks.world_model import (
    CONTRASTIVE_SOURCES,
    ModelLosses,
    ModelLossOptions,
    ModelNoise,
)
from core_agent.validation import (
    BOOLEAN,
    FRACTION,
    POSITIVE,
    Check,
    at_least,
    check,
    choice,
    handed_down,
)


class CoRe(RecurrentSAC):
    """Contrastive Recurrent State-Space Model with soft actor-critic.

    Learns a recurrent latent state by predicting the features of the next image contrastively,
    together with the reward and the action that was taken, and trains SAC on that state.
    Paper: Srivastava et al. 2021, https://arxiv.org/abs/2112.01163. The defaults are the paper's.

    The arguments are those of :class:`~core_agent.agents.recurrent_sac.RecurrentSAC` and these:

    :param contrastive_scale_learning_rate: learning rate of the scale τ of the contrastive logits
    :param contrastive_coef: weight of the contrastive loss
    :param kl_coef: weight β of the KL term
    :param reward_coef: weight of the reward prediction; 0 leaves it out (appendix C.1)
    :param inverse_coef: weight of the inverse dynamics; 0 leaves it out (appendix C.1)
    :param contrastive_from: predict from the ``"prior"`` or the ``"posterior"`` (appendix C.3)
    :param negatives: what a frame is distinguished from: ``"all"`` pairs of the batch,
        ``"other_sequences"`` or the ``"same_sequence"``
    :param free_nats: KL below this many nats is not reduced further
    :param kl_balance: share of the KL gradient that trains the prior
    :param smooth_reward_loss: smooth-L1 instead of the squared error for rewards, as in the
        authors' experiments
    :param contrast_first_frame: with ``contrastive_from="posterior"``, contrast the first frame of
        a window too, as in the authors' experiments; the prior knows nothing there
    :param joint_update: train model and critics in one step on J_M + J_Q / max(1, J_Q), from one
        forward pass, instead of one step on each loss as in the paper: an update takes two thirds
        of the time. Encoder and filter are then in the model's optimiser only. Where rewards are
        rare, the gradient of J_Q outweighs that of J_M
    """

    rules: ClassVar[dict[str, Check]] = {
        "contrastive_coef": at_least(0),
        "kl_coef": at_least(0),
        "reward_coef": at_least(0),
        "inverse_coef": at_least(0),
        "free_nats": at_least(0),
        "kl_balance": FRACTION,
        "contrastive_from": choice(*CONTRASTIVE_SOURCES),
        "negatives": choice(*NEGATIVES),
        "smooth_reward_loss": BOOLEAN,
        "contrast_first_frame": BOOLEAN,
        "joint_update": BOOLEAN,
        "contrastive_scale_learning_rate": POSITIVE,
    }
    optimizer_names: ClassVar[tuple[str, ...]] = ("optimizer", *RecurrentSAC.optimizer_names)
    max_model_grad_norm: ClassVar[float] = 10.0
    contrastive_scale_learning_rate: float
    joint_update: bool

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
        overlay: float = 0.0,
        train_freq: int | tuple[int, str] = (1, "episode"),
        gradient_steps: int | None = None,
        update_ratio: float = 0.5,
        max_rollout_steps: int = 1_000,
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
        contrast_first_frame: bool = False,
        joint_update: bool = False,
        contrastive_scale_learning_rate: float = 2e-3,
        critic_learning_rate: float = 1e-3,
        actor_learning_rate: float = 1e-3,
        ent_coef: float | str = "auto",
        ent_coef_learning_rate: float = 1e-3,
        target_entropy: float | str = "auto",
        max_log_ent_coef: float = 3.0,
        behavior_updates: int = 1,
        train_model_with_critic: bool = True,
        crop_size: float | tuple[int, int] | None = None,
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
        SequenceOffPolicyAlgorithm.__init__(self, **handed_down(locals()))
        if _init_setup_model and inverse_coef:
            n_frames = self.policy.world_model.inverse_frames
            rule = f"be below sequence_length, {sequence_length}"
            check(n_frames < sequence_length, "inverse_frames", rule, n_frames)

    # ---- the update ----

    def update(self, batch: SequenceBatch) -> Metrics:
        """One mini-batch: augment, then a step of model, critic, actor, temperature and target."""
        batch = self.augment(batch)
        if self.joint_update:
            metrics, latents = self.update_jointly(batch)
        else:
            metrics = self.update_model(batch)
            critic, latents = self.update_critic(batch)
            metrics = {**metrics, **critic}
        # Actor, temperature and target; with behavior_updates > 1 again, with the critic.
        return {**metrics, **self.update_behavior(batch, latents)}

    def update_model(self, batch: SequenceBatch, noise: ModelNoise | None = None) -> Metrics:
        """One step of the complete model on J_M (Eq. 5, arXiv:2112.01163)."""
        model = self.policy.world_model
        if noise is None:
            noise = model.draw_noise(*batch.mask.shape)
        result = model.compute_losses(batch, noise, self.model_loss_options)
        losses = self._terms(result)
        clipped, bound = model.parameters(), self.max_model_grad_norm
        norm = descend(losses, self.policy.optimizer, clipped, bound, self._guard)
        return {**losses, **self._statistics(result), "model_grad_norm": norm}

    def update_jointly(self, batch: SequenceBatch) -> tuple[Metrics, torch.Tensor]:
        """One step of model and critics on J_M + J_Q / max(1, J_Q).

        The divisor is treated as a constant: it only scales the gradient of J_Q.

        :return: the metrics, and the latents before the step, detached
        """
        policy = self.policy
        model, critic = policy.world_model, policy.critic
        noise = model.draw_noise(*batch.mask.shape)
        result = model.compute_losses(batch, noise, self.model_loss_options)
        critic_loss = self.critic_loss(batch, result.latents)
        losses = {**self._terms(result), "critic_loss": critic_loss}
        # J_Q grows with the square of the values: beyond 1, its gradient would hide that of J_M.
        bounded = critic_loss / critic_loss.detach().clamp(min=1.0)
        norms = descend_together(
            {"joint_loss": result.total + bounded, **losses},
            {
                policy.optimizer: (model.parameters(), self.max_model_grad_norm),
                policy.critic_optimizer: (critic.parameters(), self.max_critic_grad_norm),
            },
            self._guard,
        )
        metrics = {**losses, **self._statistics(result)}
        metrics |= dict(zip(("model_grad_norm", "critic_grad_norm"), norms))
        return metrics, result.latents.detach()

    @staticmethod
    def _terms(result: ModelLosses) -> Metrics:
        """J_M and its terms."""
        return {
            "model_loss": result.total,
            "contrastive_loss": result.contrastive,
            "kl_loss": result.kl,
            "reward_loss": result.reward,
            "inverse_loss": result.inverse,
        }

    @staticmethod
    def _statistics(result: ModelLosses) -> Metrics:
        """Figures of the model that are not part of J_M."""
        return {
            "contrastive_accuracy": result.contrastive_accuracy,
            "prior_entropy": result.prior_entropy,
            "posterior_entropy": result.posterior_entropy,
        }

    @property
    def model_loss_options(self) -> ModelLossOptions:
        """Weights and variants of J_M."""
        return ModelLossOptions(**{name: getattr(self, name) for name in ModelLossOptions._fields})

    def _critic_groups(self) -> list[dict[str, Any]]:
        groups = super()._critic_groups()
        return groups[:1] if self.joint_update else groups

    def _make_optimizers(self) -> None:
        check(
            self.train_model_with_critic or not self.joint_update,
            "joint_update",
            "be False with train_model_with_critic=False",
            self.joint_update,
        )
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

    def imagine(self, latent: np.ndarray, actions: np.ndarray) -> Imagination:
        """Latents and rewards expected to follow: :func:`core_agent.agents.latent.imagine`."""
        return open_latent.imagine(self.policy, latent, actions)
