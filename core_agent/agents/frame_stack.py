"""What the feed-forward agents share: stacks of frames, their encoder, the critics' targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.policies import StatefulPolicy
from core_agent.networks.augmentations import random_crop
from core_agent.networks.encoders import (
    SINGLE_KEY,
    ObservationEncoder,
    as_dict,
    stack_frames,
    stacked_space,
)
from core_agent.networks.layers import Activation
from core_agent.networks.optimization import move_towards
from core_agent.networks.types import Observation, TransitionBatch
from core_agent.validation import FRACTION, SIZE, Check


class FrameStackPolicy(StatefulPolicy):
    """An encoder of the last frames and two critics, each with a target that follows it.

    ``predict`` takes and returns the stack of the last frames, one numpy array for each key of the
    observation, so that environments need no wrapper. At an episode's start the first frame fills
    the stack.

    :param observation_space: images (channels first), vectors or a ``Dict`` of both
    :param action_space: Box with finite bounds
    :param lr_schedule: for SB3's interface; the algorithm makes the optimisers
    :param n_stack: frames in a stack
    :param critic_dims: hidden layers of each critic
    :param activation: activation of the critics, and of the actor if there is one
    :param encoder_kwargs: passed to :class:`~core_agent.networks.encoders.ObservationEncoder`
    :raises ValueError: for a bad argument
    """

    rules: ClassVar[dict[str, Check]] = {"n_stack": SIZE}
    parts: ClassVar[tuple[type, ...]] = (ObservationEncoder,)

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None = None,
        n_stack: int = 3,
        critic_dims: Sequence[int] = (1024, 1024),
        activation: Activation = "relu",
        **encoder_kwargs: Any,
    ) -> None:
        own = dict(n_stack=n_stack, critic_dims=critic_dims, activation=activation)
        super().__init__(observation_space, action_space, lr_schedule, {**own, **encoder_kwargs})
        self.n_stack = n_stack
        stacked = stacked_space(observation_space, n_stack)
        self.encoder = ObservationEncoder(stacked, **encoder_kwargs)
        self.encoder_target = ObservationEncoder(stacked, **encoder_kwargs)
        self.encoder_target.load_state_dict(self.encoder.state_dict())
        self.encoder_target.requires_grad_(False)
        self._make_critics(self.encoder.out_dim, critic_dims, activation)

    @property
    def observation_encoder(self) -> ObservationEncoder:
        return self.encoder

    @property
    def state_names(self) -> tuple[str, ...]:
        if not isinstance(self.observation_space, spaces.Dict):
            return ("stack",)
        return tuple(f"stack_{key}" for key in self.encoder.spaces)

    def targets(self) -> dict[nn.Module, nn.Module]:
        return {**super().targets(), self.encoder_target: self.encoder}

    def initial_state(self, n_envs: int) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.from_numpy(np.zeros((n_envs, *(space.shape or ())), space.dtype)).to(self.device)
            for space in self.encoder.spaces.values()
        )

    def stack(
        self,
        observation: Observation,
        stacks: tuple[torch.Tensor, ...],
        episode_start: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """The stacks, one for each key, with ``observation`` ``(n, ...)`` as their new last frame.

        :param stacks: the stacks before
        :param episode_start: ``(n,)`` bool: environments whose episode starts; their frame fills
            the stack
        """
        entries, following = as_dict(observation), []
        for key, stack in zip(self.encoder.spaces, stacks):
            filled = stack_frames([entries[key]] * self.n_stack)
            width = filled.shape[1] // self.n_stack
            moved = torch.cat([stack[:, width:], filled[:, :width]], dim=1)
            starts = episode_start.view(-1, *[1] * (filled.ndim - 1))
            following.append(torch.where(starts, filled, moved))
        return tuple(following)

    def _centered(self, stacks: tuple[torch.Tensor, ...]) -> Observation:
        is_dict = isinstance(self.observation_space, spaces.Dict)
        entries = dict(zip(self.encoder.spaces, stacks))
        return self.encoder.center_crop(entries if is_dict else entries[SINGLE_KEY])

    def first_look(self, observation: PyTorchObs) -> Observation:
        entries = as_dict(observation)
        stacks = (stack_frames([entries[key]] * self.n_stack) for key in self.encoder.spaces)
        return self._centered(tuple(stacks))

    def carry(
        self,
        observation: PyTorchObs,
        state: tuple[torch.Tensor, ...],
        episode_start: torch.Tensor,
        deterministic: bool,
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        stacks = self.stack(observation, state, episode_start)
        return stacks, self.encoder(self._centered(stacks))


class FrameStackAlgorithm(SequenceOffPolicyAlgorithm):
    """Off-policy learning from single transitions between stacks of frames."""

    rules: ClassVar[dict[str, Check]] = {
        "n_stack": SIZE,
        "encoder_tau": FRACTION,
        "target_update_freq": SIZE,
    }
    memory_settings: ClassVar[tuple[str, ...]] = ("batch_size", "n_stack")
    policy: FrameStackPolicy
    n_stack: int
    encoder_tau: float
    target_update_freq: int

    def _policy_arguments(self) -> dict[str, Any]:
        return {**super()._policy_arguments(), "n_stack": self.n_stack}

    def _sample_batch(self, batch_size: int) -> TransitionBatch:
        assert self.replay_buffer is not None
        normalizer = self._vec_normalize_env
        return self.replay_buffer.sample_stacks(batch_size, self.n_stack, normalizer)

    def augment(self, observation: Observation) -> Observation:
        """The stacks ``(B, ...)`` with each image cropped at a random place of its own."""
        return self.policy.encoder.map_images(random_crop, observation)

    def update_targets(self) -> None:
        """Move the target critics and encoder towards those that learn."""
        policy, guard = self.policy, self._guard
        move_towards(policy.critic_target, policy.critic, guard.weigh(self.tau))
        move_towards(policy.encoder_target, policy.encoder, guard.weigh(self.encoder_tau))

    @property
    def _targets_are_due(self) -> bool:
        return self._n_updates % self.target_update_freq == 0

    @property
    def update_kind(self) -> tuple[bool, ...]:
        return (*super().update_kind, self._targets_are_due)

    def _critic_groups(self) -> list[dict[str, Any]]:
        policy = self.policy
        parameters = [*policy.critic.parameters(), *policy.encoder.parameters()]
        return [dict(params=parameters, lr=self.base_learning_rate)]
