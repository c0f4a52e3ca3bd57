"""CoRe and recurrent SAC: the complete method of arXiv:2112.01163, top to bottom.

``CoRe.update`` is one mini-batch: sample, augment, then one step each of the model, the critic, the
actor, the temperature and the target. The losses are in :mod:`core_agent.networks.losses`, those of
the model in :mod:`core_agent.networks.world_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from core_agent.agents import latent as open_latent
from core_agent.agents.base import POLICY_ALIASES, Collect, Metrics, SequenceOffPolicyAlgorithm
from core_agent.agents.latent import Imagination, RecurrentPolicy
from core_agent.agents.soft_actor_critic import (
    SAC_RULES,
    make_optimizers,
    soft_targets,
    update_actor,
    update_temperature,
)
from core_agent.networks.augmentations import random_crop
from core_agent.networks.hardware import Precision
from core_agent.networks.losses import NEGATIVES, Negatives, twin_critic_loss
from core_agent.networks.optimization import descend, move_towards
from core_agent.networks.types import SequenceBatch
from core_agent.networks.world_model import CONTRASTIVE_SOURCES, ModelLossOptions, ModelNoise
from core_agent.validation import (
    Check,
    check_at_least,
    check_boolean,
    check_choice,
    check_fraction,
    check_integer,
    check_positive,
    handed_down,
)


class RecurrentSAC(SequenceOffPolicyAlgorithm):
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
    :param max_rollout_steps: of each environment, until updates come though no episode has ended
    :param collect: ``"sequential"``, or ``"async"``: the updates that a rollout brings are made
        during the next one, while environments in processes of their own step; the policy that acts
        is renewed when an episode ends, or after 1,000 steps
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
        :class:`~core_agent.replay.buffer.SequenceReplayBuffer`
    :param replay_buffer_kwargs: further arguments of the buffer
    :param stats_window_size: episodes that the logged mean return is taken over
    :param tensorboard_log: folder for TensorBoard; ``None``: no log
    :param policy_kwargs: network sizes, see :class:`~core_agent.agents.latent.RecurrentPolicy`
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: of every random generator
    :param device: ``"auto"``: the GPU if there is one
    :param _init_setup_model: make the networks now
    :raises ValueError: for a bad argument, naming it and its rule
    """

    rules: ClassVar[dict[str, Check]] = {
        **SAC_RULES,
        "sequence_length": partial(check_integer, low=2),
        "critic_learning_rate": check_positive,
        "train_model_with_critic": check_boolean,
    }
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        POLICY_ALIASES, RecurrentPolicy
    )
    optimizer_names: ClassVar[tuple[str, ...]] = (
        "critic_optimizer",
        "actor_optimizer",
        "ent_coef_optimizer",
    )
    memory_settings: ClassVar[tuple[str, ...]] = ("batch_size", "sequence_length")
    # Bounds of the gradients' norms, from the paper's appendix.
    max_critic_grad_norm: ClassVar[float] = 100.0
    max_actor_grad_norm: ClassVar[float] = 10.0
    max_ent_coef_grad_norm: ClassVar[float] = 1.0
    policy: RecurrentPolicy
    sequence_length: int
    critic_learning_rate: float
    actor_learning_rate: float
    ent_coef: float | str
    ent_coef_learning_rate: float
    target_entropy: float | str
    max_log_ent_coef: float
    train_model_with_critic: bool

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
        max_rollout_steps: int = 1_000,
        collect: Collect = "sequential",
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
        SequenceOffPolicyAlgorithm.__init__(self, **handed_down(locals()))

    # ---- the update ----

    def _sample_batch(self, batch_size: int) -> SequenceBatch:
        assert self.replay_buffer is not None
        return self.replay_buffer.sample(batch_size, self._vec_normalize_env)

    def update(self, batch: SequenceBatch) -> Metrics:
        """One mini-batch: augment, then a step of critic, actor, temperature and target."""
        batch = self.augment(batch)
        critic, latents = self.update_critic(batch)
        actor, log_prob = self.update_actor(batch, latents[:-1])
        temperature = self.update_temperature(batch, log_prob)
        self.update_target()
        return {**critic, **actor, **temperature}

    def augment(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch with images cropped: one place for a sequence, drawn once for all steps."""
        crop = self.policy.world_model.encoder.map_images
        return batch._replace(observations=crop(random_crop, batch.observations))

    def update_critic(self, batch: SequenceBatch) -> tuple[Metrics, torch.Tensor]:
        """One step of the critics, encoder and filter on J_Q; the detached latents before it."""
        with torch.set_grad_enabled(self.train_model_with_critic):
            latents = self.filter(batch)
        metrics = self._descend_critics(self.critic_loss(batch, latents))
        return metrics, latents.detach()

    def filter(self, batch: SequenceBatch, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Latents ``(T, B, latent_dim)`` that actor and critics read: posterior means.

        :param noise: standard normal ``(T, B, stoch_dim)``; drawn if not given
        """
        model = self.policy.world_model
        if noise is None:
            size = (*batch.mask.shape, model.rssm.stoch_dim)
            noise = torch.randn(size, device=self.device)
        return model.observe(model.encode(batch.observations), batch.actions, noise).mean()

    def critic_loss(
        self, batch: SequenceBatch, latents: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """J_Q: the sum of both critics' mean squared errors (Eq. 6, arXiv:2112.01163)."""
        next_latents = latents[1:].detach()
        targets = soft_targets(self, batch, next_latents, noise)
        values = self.policy.critic(latents[:-1], batch.actions)
        return twin_critic_loss(values, targets, batch.transition_mask)

    def update_actor(
        self, batch: SequenceBatch, latents: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[Metrics, torch.Tensor]:
        """One step of the actor on J_π, ``α log π - min Q`` at the latents; also the ``log π``."""
        return update_actor(self, batch, latents, noise)

    def update_temperature(self, batch: SequenceBatch, log_prob: torch.Tensor) -> Metrics:
        """One step of the temperature α on ``-α (mean log π + target entropy)``."""
        return update_temperature(self, batch, log_prob)

    def update_target(self) -> None:
        """Move the target critics towards the critics."""
        rate = self._guard.weigh(self.tau)
        move_towards(self.policy.critic_target, self.policy.critic, rate)

    # ---- setting up ----

    def _buffer_arguments(self) -> dict[str, Any]:
        return {**super()._buffer_arguments(), "sequence_length": self.sequence_length}

    def _make_optimizers(self) -> None:
        policy = self.policy
        groups = [dict(params=list(policy.critic.parameters()), lr=self.critic_learning_rate)]
        if self.train_model_with_critic:
            filtering = list(policy.world_model.filter_parameters())
            groups.append(dict(params=filtering, lr=self.base_learning_rate))
        make_optimizers(self, groups)

    # ---- the latent state in the open ----

    def encode(
        self, observations: np.ndarray | Mapping[str, np.ndarray], actions: np.ndarray
    ) -> np.ndarray:
        """Latents of complete episodes: :func:`core_agent.agents.latent.encode`."""
        return open_latent.encode(self.policy, observations, actions)

    def value(self, latent: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The lower of both action values: :func:`core_agent.agents.latent.value`."""
        return open_latent.value(self.policy, latent, action)


class CoRe(RecurrentSAC):
    """Contrastive Recurrent State-Space Model with soft actor-critic.

    Learns a recurrent latent state by predicting the features of the next image contrastively,
    together with the reward and the action that was taken, and trains SAC on that state.
    Paper: Srivastava et al. 2021, https://arxiv.org/abs/2112.01163. The defaults are the paper's.

    The arguments are those of :class:`~core_agent.agents.core.RecurrentSAC`, and

    :param contrastive_scale_learning_rate: of the learned scale τ of the contrastive logits
    :param kl_coef: weight β of the KL term
    :param reward_coef: weight of the reward prediction; 0 leaves it out (appendix C.1)
    :param inverse_coef: weight of the inverse dynamics; 0 leaves it out (appendix C.1)
    :param contrastive_from: predict from the ``"prior"`` or the ``"posterior"`` (appendix C.3)
    :param negatives: what a frame is told apart from: ``"all"`` pairs of the batch,
        ``"other_sequences"`` or the ``"same_sequence"``
    :param free_nats: KL below this many nats is not reduced further
    :param kl_balance: share of the KL gradient that trains the prior
    :param smooth_reward_loss: smooth-L1 instead of the squared error for rewards, as in the
        authors' experiments
    :param contrast_first_frame: with ``contrastive_from="posterior"``, contrast the first frame of
        a window too, as in the authors' experiments; the prior knows nothing there
    """

    rules: ClassVar[dict[str, Check]] = {
        "kl_coef": partial(check_at_least, low=0),
        "reward_coef": partial(check_at_least, low=0),
        "inverse_coef": partial(check_at_least, low=0),
        "free_nats": partial(check_at_least, low=0),
        "kl_balance": check_fraction,
        "contrastive_from": partial(check_choice, choices=CONTRASTIVE_SOURCES),
        "negatives": partial(check_choice, choices=NEGATIVES),
        "smooth_reward_loss": check_boolean,
        "contrast_first_frame": check_boolean,
        "contrastive_scale_learning_rate": check_positive,
    }
    optimizer_names: ClassVar[tuple[str, ...]] = ("optimizer", *RecurrentSAC.optimizer_names)
    max_model_grad_norm: ClassVar[float] = 10.0
    contrastive_scale_learning_rate: float

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
        max_rollout_steps: int = 1_000,
        collect: Collect = "sequential",
        kl_coef: float = 0.01,
        reward_coef: float = 1.0,
        inverse_coef: float = 1.0,
        contrastive_from: str = "prior",
        negatives: Negatives = "all",
        free_nats: float = 1.0,
        kl_balance: float = 0.5,
        smooth_reward_loss: bool = False,
        contrast_first_frame: bool = False,
        contrastive_scale_learning_rate: float = 2e-3,
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
        SequenceOffPolicyAlgorithm.__init__(self, **handed_down(locals()))

    # ---- the update ----

    def update(self, batch: SequenceBatch) -> Metrics:
        """One mini-batch: augment, then a step of model, critic, actor, temperature and target."""
        batch = self.augment(batch)
        model = self.update_model(batch)
        critic, latents = self.update_critic(batch)
        actor, log_prob = self.update_actor(batch, latents[:-1])
        temperature = self.update_temperature(batch, log_prob)
        self.update_target()
        return {**model, **critic, **actor, **temperature}

    def update_model(self, batch: SequenceBatch, noise: ModelNoise | None = None) -> Metrics:
        """One step of the complete model on J_M (Eq. 5, arXiv:2112.01163)."""
        model = self.policy.world_model
        if noise is None:
            noise = model.draw_noise(*batch.mask.shape)
        result = model.compute_losses(batch, noise, self.model_loss_options)
        losses = {
            "model_loss": result.total,
            "contrastive_loss": result.contrastive,
            "kl_loss": result.kl,
            "reward_loss": result.reward,
            "inverse_loss": result.inverse,
        }
        clipped, bound = model.parameters(), self.max_model_grad_norm
        norm = descend(losses, self.policy.optimizer, clipped, bound, self._guard)
        return {
            **losses,
            "contrastive_accuracy": result.contrastive_accuracy,
            "prior_entropy": result.prior_entropy,
            "posterior_entropy": result.posterior_entropy,
            "model_grad_norm": norm,
        }

    @property
    def model_loss_options(self) -> ModelLossOptions:
        """Weights and variants of J_M."""
        return ModelLossOptions(**{name: getattr(self, name) for name in ModelLossOptions._fields})

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

    def imagine(self, latent: np.ndarray, actions: np.ndarray) -> Imagination:
        """Latents and rewards expected to follow: :func:`core_agent.agents.latent.imagine`."""
        return open_latent.imagine(self.policy, latent, actions)
