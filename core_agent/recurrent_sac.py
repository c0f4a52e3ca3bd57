"""Recurrent SAC: soft actor-critic on a latent state that a recurrent model filters."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from core_agent.algorithm import POLICY_ALIASES, Collect, Metrics
from core_agent.augmentations import overlay as overlay_images
from core_agent.hardware import Precision
from core_agent.latent import OpenLatent
from core_agent.losses import twin_critic_loss
from core_agent.optimization import move_towards
from core_agent.policies import RecurrentPolicy
from core_agent.soft_actor_critic import SoftActorCritic
from core_agent.types import ActingState, SequenceBatch
from core_agent.validation import check_boolean, check_fraction, check_integer, check_positive


class RecurrentSAC(OpenLatent, SoftActorCritic):
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
    :param n_step: rewards that a critic's target counts before it trusts a value; fewer where the
        window ends sooner
    :param overlay: lay another sequence of the batch over each one in training, with a weight of
        at most this: a guard against moving backgrounds, see
        :func:`~core_agent.augmentations.overlay`; 0 for none
    :param train_freq: agent steps, or ``(n, "episode")``, between updates; with several
        environments until each has ended an episode
    :param gradient_steps: updates each time; -1: as many as agent steps were taken; ``None``:
        ``update_ratio`` times as many
    :param update_ratio: updates per agent step
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
    :param behavior_updates: steps of critics, actor, temperature and targets for each batch; those
        after the first read the same latents, and cost a fraction of what encoding the batch does
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

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        POLICY_ALIASES, RecurrentPolicy
    )
    memory_settings: ClassVar[tuple[str, ...]] = ("batch_size", "sequence_length")
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
        n_step: int = 1,
        overlay: float = 0.0,
        train_freq: int | tuple[int, str] = (1, "episode"),
        gradient_steps: int | None = None,
        update_ratio: float = 0.5,
        collect: Collect = "sequential",
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
        check_integer("sequence_length", sequence_length, 2)
        check_integer("n_step", n_step, 1)
        check_fraction("overlay", overlay)
        check_positive("critic_learning_rate", critic_learning_rate)
        check_integer("behavior_updates", behavior_updates, 1)
        check_boolean("train_model_with_critic", train_model_with_critic)
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            update_ratio=update_ratio,
            collect=collect,
            actor_learning_rate=actor_learning_rate,
            ent_coef=ent_coef,
            ent_coef_learning_rate=ent_coef_learning_rate,
            target_entropy=target_entropy,
            max_log_ent_coef=max_log_ent_coef,
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
        self.sequence_length = sequence_length
        self.n_step, self.overlay = n_step, overlay
        self.critic_learning_rate = critic_learning_rate
        self.behavior_updates = behavior_updates
        self.train_model_with_critic = train_model_with_critic
        if _init_setup_model:
            self._setup_model()

    def _buffer_arguments(self) -> dict[str, Any]:
        window = {**self._policy_arguments(), "sequence_length": self.sequence_length}
        return {**super()._buffer_arguments(), **window}

    def _critic_groups(self) -> list[dict[str, Any]]:
        policy = self.policy
        groups = [dict(params=list(policy.critic.parameters()), lr=self.critic_learning_rate)]
        if self.train_model_with_critic:
            filtering = list(policy.world_model.filter_parameters())
            groups.append(dict(params=filtering, lr=self.base_learning_rate))
        return groups

    # ---- acting ----

    def _explore(
        self, random_actions: np.ndarray | None, action_noise: ActionNoise | None
    ) -> np.ndarray:
        """Filter the last observation, choose actions and remember what was executed."""
        policy: RecurrentPolicy = self.acting_policy
        observation, state, starts = self._acting_inputs()
        latent, actor_input = policy.step(
            observation, ActingState(*state), starts, sample_state=True
        )
        if random_actions is None:
            scaled = policy.actor.choose(actor_input, deterministic=False).cpu().numpy()
        else:
            scaled = random_actions.astype(np.float32)
        scaled = self._with_noise(scaled, action_noise)
        self._last_states = (latent.deter.cpu().numpy(), latent.stoch.cpu().numpy(), scaled)
        return scaled

    # ---- learning ----

    def _sample_batch(self, batch_size: int) -> SequenceBatch:
        assert self.replay_buffer is not None
        batch = self.replay_buffer.sample(batch_size, self._vec_normalize_env)
        if self.overlay == 0:
            return batch
        encoder = self.policy.observation_encoder
        observations = encoder.map_images(
            lambda images, _: overlay_images(images, self.overlay), batch.observations
        )
        return batch._replace(observations=observations)

    def update(self, batch: SequenceBatch) -> Metrics:
        """One step of critic, actor, temperature and target on the same batch."""
        with torch.set_grad_enabled(self.train_model_with_critic):
            latents = self.filter(batch)
        critic_metrics = self._descend_critics(self.critic_loss(batch, latents))
        return {**critic_metrics, **self.update_behavior(batch, latents.detach())}

    def update_behavior(self, batch: SequenceBatch, latents: torch.Tensor) -> Metrics:
        """What follows a critic's first step on a batch: actor, temperature and targets, then
        ``behavior_updates - 1`` further steps of all, critics included.

        :param latents: detached, ``(T, B, latent_dim)``
        """
        metrics: dict[str, torch.Tensor] = {}
        for index in range(self.behavior_updates):
            if index > 0:
                metrics.update(self._descend_critics(self.critic_loss(batch, latents)))
            actor_metrics, log_prob = self.update_actor(batch, latents[:-1])
            metrics.update(actor_metrics)
            metrics.update(self.update_ent_coef(batch, log_prob))
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
        targets = self.target_values(batch, latents[1:].detach(), noise)
        targets = self._look_ahead(batch, targets)
        values = self.policy.critic(latents[:-1], batch.actions)
        return twin_critic_loss(values, targets, batch.transition_mask)

    def _look_ahead(self, batch: SequenceBatch, targets: torch.Tensor) -> torch.Tensor:
        """Targets ``(T - 1, B)`` of ``n_step`` rewards from those of one."""
        mask, longer = batch.transition_mask[1:], targets
        goes_on = self.gamma * (1.0 - batch.terminated[:-1])
        for _ in range(self.n_step - 1):
            looking_ahead = batch.rewards[:-1] + goes_on * longer[1:]
            longer = torch.cat([torch.where(mask > 0, looking_ahead, targets[:-1]), targets[-1:]])
        return longer

    def update_target(self) -> None:
        """Move the target critics towards the critics."""
        rate = self._guard.weigh(self.tau)
        move_towards(self.policy.critic_target, self.policy.critic, rate)
