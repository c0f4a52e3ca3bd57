"""SAC + RAD: soft actor-critic on randomly cropped stacks of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn

from core_agent.agents.base import POLICY_ALIASES, Collect, Metrics
from core_agent.agents.frame_stack import FrameStackAlgorithm, FrameStackPolicy
from core_agent.agents.policies import ACTOR_RULES
from core_agent.agents.soft_actor_critic import (
    SAC_RULES,
    make_optimizers,
    soft_targets,
    update_actor,
    update_temperature,
)
from core_agent.networks.actor_critic import Actor
from core_agent.networks.hardware import Precision
from core_agent.networks.layers import Activation
from core_agent.networks.losses import twin_critic_loss
from core_agent.networks.types import TransitionBatch
from core_agent.validation import SIZE, Check, handed_down


class SACRADPolicy(FrameStackPolicy):
    """Encoder, critics and an actor that reads the same features.

    The arguments are those of :class:`~core_agent.agents.frame_stack.FrameStackPolicy`, and

    :param actor_dims: hidden layers of the actor
    :param initial_log_ent_coef: initial log of the entropy temperature
    """

    rules: ClassVar[dict[str, Check]] = ACTOR_RULES
    actor_optimizer: torch.optim.Optimizer
    ent_coef_optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None = None,
        actor_dims: Sequence[int] = (1024, 1024),
        activation: Activation = "relu",
        initial_log_ent_coef: float = math.log(0.1),
        **arguments: Any,
    ) -> None:
        own = dict(actor_dims=actor_dims, initial_log_ent_coef=initial_log_ent_coef)
        self.check_arguments(own)
        super().__init__(
            observation_space, action_space, lr_schedule, activation=activation, **arguments
        )
        self.constructor_kwargs.update(own)
        self.actor = Actor(self.encoder.out_dim, self.action_dim, actor_dims, activation)
        self.log_ent_coef = nn.Parameter(torch.tensor(initial_log_ent_coef))

    def act(self, features: torch.Tensor, deterministic: bool) -> torch.Tensor:
        return self.actor.choose(features, deterministic)


class SACRAD(FrameStackAlgorithm):
    """Soft actor-critic on stacks of frames, with random crops as data augmentation.

    Paper: Laskin et al. 2020, Reinforcement Learning with Augmented Data,
    https://arxiv.org/abs/2004.14990; the defaults are its values. The 'SAC + RAD' of Table 5,
    arXiv:2112.01163. It needs no images; vectors are stacked, not augmented.

    Deviations from the paper: the encoder is CoRe's, whose layer norm has no learned parameters,
    and actor and critics share all of it, while the paper's actor has its own last layer; the actor
    is CoRe's, whose mean is softly bounded. For the cheetah the paper's learning rates are 2e-4:
    ``preset("paper", "sacrad", env_id="DCS-cheetah-run-easy-dynamic")``.

    :param policy: ``"CnnPolicy"``, ``"MlpPolicy"`` or ``"MultiInputPolicy"``, or a policy class;
        with ``env=None`` it may be the id of an environment instead
    :param env: environment, its id, or vectorised environments; ``None`` to load a model. Frames
        are stacked by the agent: no wrapper is needed
    :param learning_rate: learning rate of encoder and critics; a schedule scales all learning rates
        by the same factor
    :param buffer_size: agent steps that are kept; each frame is stored once
    :param learning_starts: agent steps with uniformly random actions before learning starts
    :param batch_size: transitions in a batch
    :param n_stack: frames in a stack
    :param tau: rate of the target critics' moving average
    :param encoder_tau: rate of the target encoder's moving average
    :param gamma: discount per agent step
    :param train_freq: steps of each environment between updates; or ``(n, "episode")``: ``n``
        episodes of each environment
    :param gradient_steps: updates each time; -1: as many as agent steps were taken; ``None``:
        ``update_ratio`` times as many
    :param update_ratio: updates per agent step
    :param max_rollout_steps: steps of each environment after which updates are made even if
        ``train_freq`` counts episodes and they have not ended
    :param collect: ``"sequential"``; or ``"async"``: the updates due after a rollout are made
        during the next one, while the environments step in their own processes; the policy that
        acts is updated when an episode ends, or after 1,000 steps
    :param actor_update_freq: critic updates per update of the actor and the temperature
    :param target_update_freq: critic updates per update of the moving averages
    :param actor_learning_rate: learning rate of the actor
    :param ent_coef: entropy temperature: ``"auto"`` learns it, ``"auto_0.2"`` learns it starting
        from 0.2; a number fixes it
    :param ent_coef_learning_rate: learning rate of the entropy temperature
    :param target_entropy: policy entropy to aim for, in nats; ``"auto"``: minus the number of
        actions
    :param max_log_ent_coef: upper bound of the log temperature
    :param crop_size: side of the image crops, random in training, central when acting; a float:
        share of the image's sides; ``None``: 0.84 (84 of the paper's 100 pixels)
    :param precision: precision of hidden layers: ``"auto"`` (bfloat16 if the hardware can multiply
        it), ``"float32"`` or ``"bfloat16"``; last layers always use float32
    :param action_noise: noise added to the actions in training
    :param replay_buffer_class: a subclass of
        :class:`~core_agent.replay.buffer.SequenceReplayBuffer`
    :param replay_buffer_kwargs: further arguments of the buffer
    :param stats_window_size: number of episodes over which the logged mean return is taken
    :param tensorboard_log: folder for TensorBoard; ``None``: no log
    :param policy_kwargs: network sizes, see :class:`SACRADPolicy`
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: seed of every random generator
    :param device: ``"auto"``: the GPU if there is one
    :param _init_setup_model: create the networks in the constructor
    :raises ValueError: for a bad argument, naming it and its rule
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        POLICY_ALIASES, SACRADPolicy
    )
    rules: ClassVar[dict[str, Check]] = {**SAC_RULES, "actor_update_freq": SIZE}
    optimizer_names: ClassVar[tuple[str, ...]] = (
        "critic_optimizer",
        "actor_optimizer",
        "ent_coef_optimizer",
    )
    max_actor_grad_norm: ClassVar[float] = math.inf
    max_ent_coef_grad_norm: ClassVar[float] = math.inf
    policy: SACRADPolicy
    actor_update_freq: int
    actor_learning_rate: float
    ent_coef: float | str
    ent_coef_learning_rate: float
    target_entropy: float | str
    max_log_ent_coef: float

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 100_000,
        learning_starts: int = 1_000,
        batch_size: int = 512,
        n_stack: int = 3,
        tau: float = 0.01,
        encoder_tau: float = 0.05,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int | None = None,
        update_ratio: float = 1.0,
        max_rollout_steps: int = 1_000,
        collect: Collect = "sequential",
        actor_update_freq: int = 2,
        target_update_freq: int = 2,
        actor_learning_rate: float = 1e-3,
        ent_coef: float | str = "auto",
        ent_coef_learning_rate: float = 1e-4,
        target_entropy: float | str = "auto",
        max_log_ent_coef: float = 3.0,
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
        super().__init__(**handed_down(locals()))

    def _make_optimizers(self) -> None:
        make_optimizers(self, self._critic_groups())

    def update(self, batch: TransitionBatch) -> Metrics:
        """One step of the critics and, when due, of actor, temperature and targets."""
        views = batch._replace(
            observations=self.augment(batch.observations),
            next_observations=self.augment(batch.next_observations),
        )
        metrics = {**self._descend_critics(self.critic_loss(views))}
        if self._actor_is_due:
            with torch.no_grad():
                features = self.policy.encoder(views.observations)
            actor, log_prob = update_actor(self, views, features)
            metrics |= {**actor, **update_temperature(self, views, log_prob)}
        if self._targets_are_due:
            self.update_targets()
        return metrics

    @property
    def _actor_is_due(self) -> bool:
        return self._n_updates % self.actor_update_freq == 0

    @property
    def update_kind(self) -> tuple[bool, ...]:
        return (*super().update_kind, self._actor_is_due)

    def critic_loss(
        self, batch: TransitionBatch, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The sum of both critics' mean squared errors, on augmented observations.

        :param noise: standard normal ``(B, A)`` for the next actions; drawn if not given
        """
        policy = self.policy
        with torch.no_grad():
            next_features = policy.encoder(batch.next_observations)
            target_features = policy.encoder_target(batch.next_observations)
        targets = soft_targets(self, batch, next_features, noise, target_features)
        values = policy.critic(policy.encoder(batch.observations), batch.actions)
        return twin_critic_loss(values, targets, batch.transition_mask)
