"""Rollouts: environments are stepped until it is time for updates.

The argument ``collect`` chooses one of two collectors with the same interface. They differ in when
they make the updates that are due after a rollout, and in which policy acts.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from core_agent.agents.metrics import UpdateLog
from core_agent.agents.transitions import raw_terminals_kept, refuse_non_finite
from core_agent.validation import check

LONGEST_WITHOUT_RENEWAL = 1_000
"""Agent steps after which the acting copy of the policy is updated even within an episode."""


@dataclass
class Progress:
    """Progress of the current rollout and of the updates; saved, so that both can be resumed."""

    steps: int = 0
    """Steps of each environment in this rollout."""
    episodes: list[int] = field(default_factory=list)
    """Number of episodes that each environment has ended in this rollout."""
    updates_due: int = 0
    updates_each_step: int = 0
    """Due updates to make during each step of the next rollout, with ``collect="async"``."""
    fraction_due: float = 0.0
    """Fraction of an update that ``update_ratio`` left over, added to the next updates."""
    steps_since_renewal: int = 0
    """Steps of all environments since the learning policy was last copied to the acting one."""

    def begin_rollout(self, n_envs: int) -> None:
        self.steps, self.episodes = 0, [0] * n_envs

    def add_updates(self, n_updates: int, n_steps: int) -> None:
        """Schedule the updates, spread evenly over ``n_steps`` steps."""
        self.updates_due += n_updates
        self.updates_each_step = -(-self.updates_due // n_steps)

    def forget_updates(self) -> None:
        self.updates_due, self.updates_each_step, self.fraction_due = 0, 0, 0.0

    @property
    def is_unfinished(self) -> bool:
        """Whether there is a rollout in progress, or an update due."""
        return self.steps > 0 or self.updates_due > 0


class Collector:
    """Collects rollouts; the updates that are due after a rollout are made before the next one.

    :param policy: the policy that learns
    """

    updates_in_between: ClassVar[bool] = True

    def __init__(self, policy: BasePolicy) -> None:
        pass

    @staticmethod
    def check_environments(env: VecEnv) -> None:
        """Make sure that this collector can step ``env``: it can step any."""

    def acting_policy(self, policy: BasePolicy) -> Any:
        """The policy that acts, where ``policy`` is the one that learns."""
        return policy

    def renew(self, policy: BasePolicy) -> None:
        """Make the acting policy equal to ``policy``, the one that learns."""

    def collect(
        self,
        model: Any,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None,
        learning_starts: int,
        log_interval: int | None,
    ) -> RolloutReturn:
        """Resume or start a rollout of an agent.

        Unlike SB3's ``collect_rollouts``, it allows several environments if ``train_freq`` counts
        episodes, and stores the step at which a callback stops the run.

        :param model: the agent; its ``_progress`` is updated
        """
        progress = model._progress
        # SB3 also collects beyond what learn() was asked for.
        begins_late = not progress.steps and model.num_timesteps >= model._total_timesteps
        end = math.inf if begins_late else model._total_timesteps
        self.acting_policy(model.policy).set_training_mode(False)
        callback.on_rollout_start()
        while model.num_timesteps < end and not is_complete(
            progress, train_freq, model.max_rollout_steps
        ):
            actions, buffer_actions = model._sample_action(
                learning_starts, action_noise, env.num_envs
            )
            new_obs, rewards, dones, infos = self._step(model, env, actions)
            model.num_timesteps += env.num_envs
            progress.steps += 1
            # Callbacks find here what SB3's collect_rollouts would show them.
            callback.update_locals({**locals(), "self": model, "n_steps": progress.steps})
            continue_training = callback.on_step()
            model._update_info_buffer(infos, dones)
            model._store_transition(replay_buffer, buffer_actions, new_obs, rewards, dones, infos)
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
            model._on_step()
            log_is_due = self._end_episodes(model, dones, action_noise, log_interval)
            self._end_step(model, dones, log_is_due)
            model._reach_safe_point()
            if not continue_training or model._stopping:
                n_steps = progress.steps * env.num_envs
                return RolloutReturn(n_steps, sum(progress.episodes), continue_training=False)
        callback.on_rollout_end()
        rollout = RolloutReturn(progress.steps * env.num_envs, sum(progress.episodes), True)
        progress.begin_rollout(env.num_envs)
        return rollout

    def _step(self, model: Any, env: VecEnv, actions: np.ndarray) -> Any:
        """Step the environments; if they fail, they are reset before the run continues.

        :raises NonFiniteError: if they return NaN or infinity
        """
        last_obs, model._last_obs = model._last_obs, None
        env.step_async(actions)
        self._use_the_wait(model)
        normalizer = model._vec_normalize_env
        with nullcontext() if normalizer is None else raw_terminals_kept(normalizer):
            observations, rewards, dones, infos = env.step_wait()
        refuse_non_finite(observations, rewards, infos, model.num_timesteps + 1)
        model._last_obs = last_obs
        return observations, rewards, dones, infos

    def _use_the_wait(self, model: Any) -> None:
        """Called while the environments step."""

    def _end_episodes(
        self,
        model: Any,
        dones: np.ndarray,
        action_noise: ActionNoise | None,
        log_interval: int | None,
    ) -> bool:
        """Count the episodes that have ended; whether one of them is to be logged."""
        log_is_due = False
        for index in np.flatnonzero(dones):
            model._progress.episodes[index] += 1
            model._episode_num += 1
            if action_noise is not None:
                action_noise.reset(**({"indices": [index]} if len(dones) > 1 else {}))
            log_is_due |= log_interval is not None and model._episode_num % log_interval == 0
        return log_is_due

    def _end_step(self, model: Any, dones: np.ndarray, log_is_due: bool) -> None:
        """Called when a step is stored."""
        if log_is_due:
            model.dump_logs()


class AsyncCollector(Collector):
    """Makes the updates due after a rollout during the next one, while the environments step.

    A copy of the policy acts. It is updated when an episode ends, or after
    ``LONGEST_WITHOUT_RENEWAL`` steps. An error in an update is raised once the step is stored.
    """

    updates_in_between: ClassVar[bool] = False

    def __init__(self, policy: BasePolicy) -> None:
        self._copy = deepcopy(policy)
        self._copy.set_training_mode(False)
        self._updates = UpdateLog()
        self._error: BaseException | None = None

    @staticmethod
    def check_environments(env: VecEnv) -> None:
        """Make sure that the environments step in other processes, in parallel with updates.

        :raises ValueError: if they run in this process
        """
        check(
            not isinstance(env.unwrapped, DummyVecEnv),
            "env",
            "run in processes of its own with collect='async'",
            "environments in this process",
            "pass the id of an environment, the result of make_vec_env(id, n_envs=4) of "
            "core_agent.environments.make, or SB3's SubprocVecEnv",
        )

    def acting_policy(self, policy: BasePolicy) -> Any:
        return self._copy

    @torch.no_grad()
    def renew(self, policy: BasePolicy) -> None:
        self._copy.load_state_dict(policy.state_dict())

    def collect(self, model: Any, *args: Any, **kwargs: Any) -> RolloutReturn:
        self._updates.restart()
        self._error = None
        rollout = super().collect(model, *args, **kwargs)
        if rollout.continue_training:
            model._log_updates(self._updates)
        return rollout

    def _use_the_wait(self, model: Any) -> None:
        """Make this step's share of the updates that are due."""
        progress = model._progress
        n_updates = min(progress.updates_each_step, progress.updates_due)
        if n_updates == 0:
            return
        try:
            model.policy.set_training_mode(True)
            model._update_learning_rate(model.optimizers)
            for _ in range(n_updates):
                model._update_once(model.batch_size, self._updates)
        except BaseException as error:
            self._error = error

    def _end_step(self, model: Any, dones: np.ndarray, log_is_due: bool) -> None:
        progress = model._progress
        progress.steps_since_renewal += len(dones)
        if dones.any() or progress.steps_since_renewal >= LONGEST_WITHOUT_RENEWAL:
            self.renew(model.policy)
            progress.steps_since_renewal = 0
        if log_is_due:
            model._log_updates(self._updates)
        super()._end_step(model, dones, log_is_due)
        if self._error is not None:
            error, self._error = self._error, None
            raise error


COLLECTORS: dict[str, type[Collector]] = {"sequential": Collector, "async": AsyncCollector}


def is_complete(progress: Progress, train_freq: TrainFreq, max_steps: int) -> bool:
    """Whether a rollout has all the steps, or episodes of each environment, that it needs.

    :param max_steps: steps after which a rollout is complete even if episodes are still missing
    """
    if train_freq.unit == TrainFrequencyUnit.STEP:
        return progress.steps >= train_freq.frequency
    return progress.steps >= max_steps or min(progress.episodes) >= train_freq.frequency


def vectorized_noise(noise: ActionNoise | None, n_envs: int) -> ActionNoise | None:
    """The action noise for ``n_envs`` environments."""
    if isinstance(noise, VectorizedActionNoise) and noise.n_envs != n_envs:
        return VectorizedActionNoise(noise.base_noise, n_envs)
    if noise is None or n_envs == 1 or isinstance(noise, VectorizedActionNoise):
        return noise
    return VectorizedActionNoise(noise, n_envs)
