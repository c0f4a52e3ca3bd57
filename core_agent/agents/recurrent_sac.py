"""Recurrent SAC: soft actor-critic on the filtered state of a recurrent model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from core_agent.agents import latent as open_latent
from core_agent.agents.base import POLICY_ALIASES, Collect, Metrics, SequenceOffPolicyAlgorithm
from core_agent.agents.latent import RecurrentPolicy
from core_agent.agents.soft_actor_critic import (
    SAC_RULES,
    make_optimizers,
    soft_targets,
    update_actor,
    update_temperature,
)
from core_agent.networks.augmentations import overlay as overlay_images
from core_agent.networks.augmentations import random_crop
from core_agent.networks.hardware import Precision
from core_agent.networks.losses import twin_critic_loss
from core_agent.networks.optimization import move_towards
from core_agent.networks.types import SequenceBatch
from core_agent.validation import BOOLEAN, FRACTION, POSITIVE, Check, handed_down, whole


class RecurrentSAC(SequenceOffPolicyAlgorithm):
    """Soft actor-critic whose state is filtered from observations and actions by a recurrent model.

    The model is trained by the critic's loss alone, on random crops where observations are
    images: the 'Recurrent SAC + RAD' of Table 5, arXiv:2112.01163. It needs no images: on vector
    observations it serves partially observable tasks.

    :param policy: ``"CnnPolicy"``, ``"MlpPolicy"`` or ``"MultiInputPolicy"``, or a policy class;
        with ``env=None`` it may be the id of an environment instead
    :param env: environment, its id, or vectorised environments; ``None`` to load a model
    :param learning_rate: learning rate of the model, also in the critic's optimiser; a schedule
        scales all learning rates by the same factor
    :param buffer_size: agent steps that are kept; each frame is stored once
    :param learning_starts: agent steps with uniformly random actions before learning starts
    :param batch_size: sequences in a batch
    :param sequence_length: frames in a sequence
    :param tau: rate of the target critics' moving average
    :param gamma: discount per agent step
    :param overlay: largest weight with which another sequence of the batch, in random colours, is
        mixed into each training sequence; helps against moving backgrounds, see
        :func:`~core_agent.networks.augmentations.overlay`; 0, as in the paper: no mixing
    :param train_freq: steps of each environment between updates; or ``(n, "episode")``: ``n``
        episodes of each environment
    :param gradient_steps: updates each time; -1: as many as agent steps were taken; ``None``:
        ``update_ratio`` times as many
    :param update_ratio: updates per agent step (the replay ratio, also UTD ratio)
    :param max_rollout_steps: steps of each environment after which updates are made even if
        ``train_freq`` counts episodes and they have not ended
    :param collect: ``"sequential"``; or ``"async"``: the updates due after a rollout are made
        during the next one, while the environments step in their own processes; the policy that
        acts is updated when an episode ends, or after 1,000 steps
    :param critic_learning_rate: learning rate of the critics
    :param actor_learning_rate: learning rate of the actor
    :param ent_coef: entropy temperature: ``"auto"`` learns it, ``"auto_0.1"`` learns it starting
        from 0.1; a number fixes it
    :param ent_coef_learning_rate: learning rate of the entropy temperature
    :param target_entropy: policy entropy to aim for, in nats; ``"auto"``: minus the number of
        actions
    :param max_log_ent_coef: upper bound of the log temperature
    :param behavior_updates: steps of critics, actor, temperature and targets for each batch; all
        use the latents computed for the first step, so that each further one costs a fraction of
        it; 1 in the paper
    :param train_model_with_critic: let the critic's loss train encoder and filter too
        (appendix C.2)
    :param crop_size: side of the image crops, random in training, central when acting; a float:
        share of the image's sides; ``None``: 0.84 (84 of the paper's 100 pixels)
    :param precision: precision of hidden layers: ``"auto"`` (bfloat16 if the hardware can multiply
        it), ``"float32"`` or ``"bfloat16"``; recurrence and last layers always use float32
    :param action_noise: noise added to the actions in training
    :param replay_buffer_class: a subclass of
        :class:`~core_agent.replay.buffer.SequenceReplayBuffer`
    :param replay_buffer_kwargs: further arguments of the buffer
    :param stats_window_size: number of episodes over which the logged mean return is taken
    :param tensorboard_log: folder for TensorBoard; ``None``: no log
    :param policy_kwargs: network sizes, see :class:`~core_agent.agents.latent.RecurrentPolicy`
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: seed of every random generator
    :param device: ``"auto"``: the GPU if there is one
    :param _init_setup_model: create the networks in the constructor
    :raises ValueError: for a bad argument, naming it and its rule
    """

    rules: ClassVar[dict[str, Check]] = {
        **SAC_RULES,
        "sequence_length": whole(2),
        "overlay": FRACTION,
        "critic_learning_rate": POSITIVE,
        "behavior_updates": whole(1),
        "train_model_with_critic": BOOLEAN,
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
    overlay: float
    critic_learning_rate: float
    actor_learning_rate: float
    ent_coef: float | str
    ent_coef_learning_rate: float
    target_entropy: float | str
    max_log_ent_coef: float
    behavior_updates: int
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
        overlay: float = 0.0,
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

    # ---- the update ----

    def _sample_batch(self, batch_size: int) -> SequenceBatch:
        assert self.replay_buffer is not None
        return self.replay_buffer.sample(batch_size, self._vec_normalize_env)

    def update(self, batch: SequenceBatch) -> Metrics:
        """One mini-batch: augment, then a step of critic, actor, temperature and target."""
        batch = self.augment(batch)
        metrics, latents = self.update_critic(batch)
        return {**metrics, **self.update_behavior(batch, latents)}

    def augment(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch with images cropped, at one place per sequence, and mixed by ``overlay``.

        The random numbers are drawn once and used by all steps of the update.
        """

        def change(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
            images = random_crop(images, size)
            return overlay_images(images, self.overlay) if self.overlay else images

        change_images = self.policy.world_model.encoder.map_images
        return batch._replace(observations=change_images(change, batch.observations))

    def update_critic(self, batch: SequenceBatch) -> tuple[Metrics, torch.Tensor]:
        """One step of the critics, encoder and filter on J_Q; the detached latents before it."""
        with torch.set_grad_enabled(self.train_model_with_critic):
            latents = self.filter(batch)
        metrics = self._descend_critics(self.critic_loss(batch, latents))
        return metrics, latents.detach()

    def update_behavior(self, batch: SequenceBatch, latents: torch.Tensor) -> Metrics:
        """``behavior_updates`` steps of critic, actor, temperature and target.

        The first step of the critic has already been made, when the latents were computed.

        :param latents: detached, ``(T, B, latent_dim)``
        """
        metrics: dict[str, torch.Tensor] = {}
        for index in range(self.behavior_updates):
            if index > 0:
                metrics.update(self._descend_critics(self.critic_loss(batch, latents)))
            actor, log_prob = self.update_actor(batch, latents[:-1])
            metrics.update({**actor, **self.update_temperature(batch, log_prob)})
            self.update_target()
        return metrics

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
        make_optimizers(self, self._critic_groups())

    def _critic_groups(self) -> list[dict[str, Any]]:
        """Parameters and learning rates of the critics' optimiser: the critics, then the filter."""
        policy = self.policy
        groups = [dict(params=list(policy.critic.parameters()), lr=self.critic_learning_rate)]
        if self.train_model_with_critic:
            filtering = list(policy.world_model.filter_parameters())
            groups.append(dict(params=filtering, lr=self.base_learning_rate))
        return groups

    # ---- the latent state ----

    def encode(
        self, observations: np.ndarray | Mapping[str, np.ndarray], actions: np.ndarray
    ) -> np.ndarray:
        """Latents of complete episodes: :func:`core_agent.agents.latent.encode`."""
        return open_latent.encode(self.policy, observations, actions)

    def value(self, latent: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The lower of both action values: :func:`core_agent.agents.latent.value`."""
        return open_latent.value(self.policy, latent, action)
