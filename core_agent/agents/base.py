"""The base class of all agents: constructor, set-up, learning rates, updates and acting."""

from __future__ import annotations

import inspect
import math
import time
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv

from core_agent.agents.arguments import (
    RULES,
    Collect,
    as_train_freq,
    check_policy,
    choose_policy,
)
from core_agent.agents.collection import COLLECTORS, Progress
from core_agent.agents.cuda_graphs import GraphedUpdates
from core_agent.agents.loop import LearningLoop
from core_agent.agents.metrics import Metrics, UpdateLog
from core_agent.agents.policies import StatefulPolicy
from core_agent.agents.sb3_names import GIVEN_BY_THE_AGENT, naming_unknown_arguments
from core_agent.agents.transitions import refuse_normalized_images
from core_agent.environments.make import environment_for, seed_environments
from core_agent.networks.hardware import (
    Precision,
    compute_dtype,
    keep_freed_memory,
    wants_cuda_graphs,
)
from core_agent.networks.layers import set_compute_dtype
from core_agent.networks.optimization import FiniteGuard, descend
from core_agent.replay.buffer import SequenceReplayBuffer
from core_agent.validation import Check, as_seed, check, check_arguments, check_keywords, rules_of

POLICY_ALIASES = ("CnnPolicy", "MlpPolicy", "MultiInputPolicy")
SB3_ARGUMENTS = inspect.signature(OffPolicyAlgorithm.__init__).parameters


class SequenceOffPolicyAlgorithm(LearningLoop):
    """Off-policy learning from windows of episodes: the common part of every agent here.

    A subclass makes its optimisers (:meth:`_make_optimizers`), draws a batch
    (:meth:`_sample_batch`) and learns from it (:meth:`update`). The arguments are those of
    :class:`~core_agent.agents.recurrent_sac.RecurrentSAC`.

    :param arguments: arguments of SB3's ``OffPolicyAlgorithm``; any other becomes an attribute of
        the same name
    """

    rules: ClassVar[dict[str, Check]] = dict(RULES)
    """The rule of each argument."""
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {}
    not_saved: ClassVar[tuple[str, ...]] = (
        *("_awaiting", "_endings", "_stopping", "_checkpoints"),
        *("_collector", "_guard", "_graphed_updates"),
        *("_first_updates", "_cost_is_told", "_updates_per_step"),
    )
    max_critic_grad_norm: ClassVar[float] = math.inf
    policy: StatefulPolicy

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = naming_unknown_arguments(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        *,
        learning_rate: float | Schedule,
        update_ratio: float,
        collect: Collect,
        crop_size: float | tuple[int, int] | None,
        precision: Precision,
        max_rollout_steps: int = 1_000,
        seed: int | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **arguments: Any,
    ) -> None:
        check_arguments(rules_of(type(self)), {**locals(), **arguments})
        buffer_class = replay_buffer_class or SequenceReplayBuffer
        name, hidden = "replay_buffer_kwargs", GIVEN_BY_THE_AGENT
        check_keywords(name, replay_buffer_kwargs, buffer_class, hidden=hidden)
        if env is None and isinstance(policy, str) and policy not in self.policy_aliases:
            policy, env = "auto", policy
        policy_kwargs = check_policy(policy, policy_kwargs, self.policy_aliases)
        if isinstance(env, str):
            env = environment_for(env, collect)
        assert not isinstance(env, str)
        policy = choose_policy(policy, env)
        own = {name: arguments.pop(name) for name in [*arguments] if name not in SB3_ARGUMENTS}
        super().__init__(
            policy=policy,
            env=env,  # type: ignore[arg-type]
            learning_rate=learning_rate if callable(learning_rate) else float(learning_rate),
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=policy_kwargs,
            seed=as_seed("seed", seed),
            support_multi_env=True,
            sde_support=False,
            **arguments,
        )
        if env is not None:
            check(
                isinstance(self.action_space, spaces.Box),
                "env",
                "have a Box action space (continuous actions)",
                self.action_space,
                "for discrete actions use an algorithm such as sb3_contrib's RecurrentPPO",
            )
        vars(self).update(own)
        self.update_ratio = update_ratio
        self.max_rollout_steps = max_rollout_steps
        self.collect = collect
        self.crop_size = crop_size
        self.precision: Precision = precision
        # Saved, so that a file says which agent it holds and in which environment it learned.
        self.origin = {}
        self.agent_class = type(self).__name__
        self.begins_at_random = True
        self._last_states = None
        self._updates_per_second = 0.0
        self._progress = Progress()
        self._awaiting, self._endings, self._stopping = [], [], False
        if self.env is not None:
            COLLECTORS[collect].check_environments(self.env)
        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return refuse_normalized_images(OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper))

    # ---- set-up ----

    def _setup_model(self, policy: StatefulPolicy | None = None) -> None:
        """Create the replay buffer, policy, collector and optimisers from the arguments.

        :param policy: policy of a saved model; by default, one with new parameters is created
        """
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.replay_buffer_class is None:
            self.replay_buffer_class = SequenceReplayBuffer
        if self.replay_buffer is None:
            self.replay_buffer = self.replay_buffer_class(  # type: ignore[assignment]
                self.buffer_size,
                self.observation_space,
                self.action_space,
                device=self.device,
                n_envs=self.n_envs,
                **{**self._buffer_arguments(), **self.replay_buffer_kwargs},
            )
        self.policy = (policy or self._make_policy()).to(self.device)
        set_compute_dtype(self.policy, compute_dtype(self.precision, self.device))
        self._guard = FiniteGuard(self.device if self._runs_ahead else None)
        self._graphed_updates = GraphedUpdates()
        self._collector = COLLECTORS[self.collect](self.policy)
        self._make_optimizers()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
                if self._runs_ahead:
                    # A CUDA graph would keep a number as it is; a tensor is read at each replay.
                    group["lr"] = torch.tensor(group["lr"], device=self.device)
        self.train_freq = as_train_freq(self.train_freq)  # type: ignore[assignment]

    def set_random_seed(self, seed: int | None = None) -> None:
        """Like SB3's, but the environments get seeds that validation and other runs never use."""
        seed = as_seed("seed", seed)
        super().set_random_seed(seed)
        if seed is not None and self.env is not None:
            seed_environments(self.env, seed)

    def _buffer_arguments(self) -> dict[str, Any]:
        """Arguments of the replay buffer, unless ``replay_buffer_kwargs`` say otherwise."""
        return {"seed": self.seed}

    def _policy_arguments(self) -> dict[str, Any]:
        """Arguments of the policy, unless ``policy_kwargs`` say otherwise."""
        size = self.crop_size
        return {"crop_size": tuple(size) if isinstance(size, list) else size}

    def _make_policy(self) -> StatefulPolicy:
        policy_kwargs = {**self._policy_arguments(), **self.policy_kwargs}
        return self.policy_class(  # type: ignore[return-value]
            self.observation_space, self.action_space, self.lr_schedule, **policy_kwargs
        )

    @abstractmethod
    def _make_optimizers(self) -> None:
        """Set the attributes named in ``optimizer_names`` on the policy."""

    def _adam(self, groups: list[dict[str, Any]], **kwargs: Any) -> torch.optim.Adam:
        fused = self._runs_ahead or self.device.type == "cpu"
        optimizer = torch.optim.Adam(groups, fused=fused, capturable=self._runs_ahead, **kwargs)
        # Steps before a CUDA graph is captured are meant; PyTorch would warn of them.
        optimizer._warned_capturable_if_run_uncaptured = True
        return optimizer

    @property
    def _runs_ahead(self) -> bool:
        """Whether Python runs ahead of the device, so that an update should never wait for it."""
        return self.device.type == "cuda"

    @property
    def base_learning_rate(self) -> float:
        """The model's own rate: where the schedule starts, or its peak if it starts at 0."""
        start = self.lr_schedule(1.0)
        return start or max(self.lr_schedule(left) for left in np.linspace(0.0, 1.0, 101).tolist())

    def _update_learning_rate(
        self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer
    ) -> None:
        """Scale each group's own rate by the schedule's current value, relative to its start."""
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        base = self.base_learning_rate
        scale = rate / base if base > 0 else 0.0
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                own_rate = scale * group["initial_lr"]
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(own_rate)
                else:
                    group["lr"] = own_rate

    # ---- learning ----

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Make ``gradient_steps`` updates, each on a new batch; log the means of their metrics."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.optimizers)
        updates = UpdateLog()
        self._progress.updates_due = max(gradient_steps, 0)
        while self._progress.updates_due and not self._stopping:
            self._update_once(batch_size, updates)
            self._reach_safe_point()
        self._log_updates(updates)

    def _update_once(self, batch_size: int, updates: UpdateLog) -> None:
        started = time.perf_counter()
        updates.add(self._update(self._sample_batch(batch_size)))
        self._learned_once(started)

    @abstractmethod
    def _sample_batch(self, batch_size: int) -> Any:
        """The batch that one update learns from."""

    def _update(self, batch: Any) -> Metrics:
        """:meth:`update`, on a GPU as one CUDA graph."""
        if not (self._runs_ahead and wants_cuda_graphs()):
            return self.update(batch)
        return self._graphed_updates(self, batch)

    @abstractmethod
    def update(self, batch: Any) -> Metrics:
        """Learn from one batch; the metrics are scalars, left on the device.

        On a GPU the kernels that this method launches are recorded and replayed: it may depend only
        on the batch, public attributes and :attr:`update_kind`.
        """

    @property
    def update_kind(self) -> tuple[bool, ...]:
        """For each step that only some updates make: whether the next update makes it."""
        return ()

    def _descend_critics(self, loss: torch.Tensor) -> Metrics:
        """One step of the critics' optimiser, their gradients clipped."""
        norm = descend(
            {"critic_loss": loss},
            self.policy.critic_optimizer,
            self.policy.critic.parameters(),
            self.max_critic_grad_norm,
            self._guard,
        )
        return {"critic_loss": loss, "critic_grad_norm": norm}

    # ---- acting ----

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions as the environments take them, and scaled to [-1, 1] for the buffer."""
        random_actions = None
        if self.begins_at_random and self.num_timesteps < learning_starts:
            sampled = np.stack([self.action_space.sample() for _ in range(n_envs)])
            random_actions = self.policy.scale_action(sampled).reshape(n_envs, -1)
        with torch.no_grad():
            scaled = self._explore(random_actions, action_noise)
        return self.policy.to_env_actions(scaled), scaled

    def _explore(
        self, random_actions: np.ndarray | None, action_noise: ActionNoise | None
    ) -> np.ndarray:
        """Actions ``(n_envs, A)`` in [-1, 1] for ``self._last_obs``; the state remembers them.

        :param random_actions: take these instead of the policy's (warm-up)
        :param action_noise: noise to add
        """
        policy: StatefulPolicy = self.acting_policy
        observation, _ = policy.obs_to_tensor(self._last_obs)  # type: ignore[arg-type]
        starts = torch.as_tensor(self._last_episode_starts, device=self.device)
        if self._last_states is None:
            state = policy.initial_state(len(starts))
        else:
            state = tuple(torch.as_tensor(part, device=self.device) for part in self._last_states)
        state, features = policy.carry(observation, state, starts, deterministic=False)
        if random_actions is None:
            scaled = policy.act(features, deterministic=False).cpu().numpy()
        else:
            scaled = random_actions.astype(np.float32)
        if action_noise is not None:
            scaled = np.clip(scaled + action_noise(), -1.0, 1.0).astype(np.float32)
        state = policy.remember(state, torch.as_tensor(scaled, device=self.device))
        self._last_states = tuple(part.cpu().numpy() for part in state)
        return scaled
