"""What all agents share: collection, schedule, learning rates, logging, saving."""

from __future__ import annotations

import inspect
import io
import math
import pathlib
import time
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, ClassVar, Literal, TypeVar, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    PyTorchObs,
    RolloutReturn,
    Schedule,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.utils import (
    check_for_correct_spaces,
    should_collect_more_steps,
)
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecNormalize,
    unwrap_vec_normalize,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from core_agent.agents.cuda_graphs import CapturedUpdate
from core_agent.agents.policies import StatefulPolicy
from core_agent.environments.make import describe, environment_for, seed_environments
from core_agent.networks.encoders import as_dict_space, is_image
from core_agent.networks.hardware import (
    PRECISIONS,
    Precision,
    compute_dtype,
    keep_freed_memory,
    memory_advice,
    wants_cuda_graphs,
)
from core_agent.networks.layers import set_compute_dtype
from core_agent.networks.optimization import FiniteGuard, descend
from core_agent.replay.buffer import BUFFER_CHECKS, SequenceReplayBuffer
from core_agent.saving.checkpoint import CheckpointFolder, NoCheckpointError
from core_agent.saving.integrity import (
    check_attributes,
    check_optimizer_state,
    check_state_dict,
)
from core_agent.saving.replay import load_replay, save_replay
from core_agent.saving.resumable import make_resumable
from core_agent.saving.safe_loading import (
    SavedModel,
    loads_safely,
    opened,
    read_model,
    read_parameters,
    reading,
)
from core_agent.validation import (
    NonFiniteError,
    argument_names,
    as_seed,
    check,
    check_at_least,
    check_boolean,
    check_choice,
    check_crop_size,
    check_device,
    check_each,
    check_file,
    check_fraction,
    check_integer,
    check_names,
    check_options,
    check_path,
    check_positive,
    check_size,
    check_text,
    check_verbose,
    is_whole,
    optional,
    rules_of,
)

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="SequenceOffPolicyAlgorithm")
Metrics = Mapping[str, torch.Tensor]

Collect = Literal["sequential", "async"]
COLLECTS: tuple[str, ...] = get_args(Collect)

PAPER_SIMULATOR_STEPS = 500_000
LONGEST_WITHOUT_RENEWAL = 1_000
"""Agent steps after which a policy that acts while another learns is renewed in an episode too."""
POLICY_ALIASES = ("CnnPolicy", "MlpPolicy", "MultiInputPolicy")


def as_train_freq(train_freq: int | tuple[int, str] | TrainFreq) -> TrainFreq:
    """SB3's form of ``train_freq``.

    :raises ValueError: if it is neither a whole number nor ``(n, "step")`` nor ``(n, "episode")``
    """
    units = {unit.value: unit for unit in TrainFrequencyUnit}
    pair: tuple[Any, ...] = (
        tuple(train_freq) if isinstance(train_freq, (tuple, list)) else (train_freq, "step")
    )
    unit = getattr(pair[-1], "value", pair[-1]) if pair else None
    whole = len(pair) == 2 and is_whole(pair[0]) and pair[0] >= 1
    check(
        whole and isinstance(unit, str) and unit in units,
        "train_freq",
        "be a whole number >= 1 of steps, (n, 'step') or (n, 'episode')",
        train_freq,
    )
    return TrainFreq(int(pair[0]), units[str(unit)])


def refuse_normalized_images(space: spaces.Space, normalizer: VecNormalize | None) -> None:
    """Make sure that ``VecNormalize`` leaves images alone: they are stored and cropped as bytes.

    :raises ValueError: if it does not
    """
    if normalizer is None or not normalizer.norm_obs:
        return
    images = [key for key, sub_space in as_dict_space(space).items() if is_image(sub_space)]
    touched = images if normalizer.norm_obs_keys is None else normalizer.norm_obs_keys
    check(
        not set(images) & set(touched),
        "env",
        "leave images as they are",
        "VecNormalize over images",
        "pass VecNormalize norm_obs=False, or norm_obs_keys=[...] with the vectors alone",
    )


def transposed_to(space: spaces.Space, observations: np.ndarray) -> np.ndarray:
    """Observations ``(n, ...)`` of ``space``, images transposed if they are channels last.

    :raises ValueError: if they fit neither way
    """
    if observations.shape[1:] == space.shape:
        return observations
    transposed = observations.transpose(0, 3, 1, 2) if observations.ndim == 4 else observations
    check(
        transposed.shape[1:] == space.shape,
        "env",
        f"give observations of shape {space.shape} under VecNormalize",
        observations.shape[1:],
        "wrap with VecFrameStack first and VecNormalize after it",
    )
    return transposed


def as_batch(observation: Any) -> Any:
    """One observation as a batch of one."""
    if isinstance(observation, dict):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return np.asarray(observation)[None]


def find_non_finite(name: str, values: Any) -> tuple[str, int] | None:
    """The name and the environment of the first value ``(n_envs, ...)`` that is no finite number.

    :param values: an array, or a dict of them, whose key is added to the name
    """
    if isinstance(values, dict):
        found = (find_non_finite(f"{name} {key!r}", value) for key, value in values.items())
        return next((each for each in found if each is not None), None)
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return None
    return name, int(np.argwhere(~np.isfinite(values))[0][0])


def check_buffer_class(buffer_class: Any, buffer_kwargs: Any) -> None:
    """Make sure that a replay buffer can be made of this class with these arguments.

    :raises ValueError: if it cannot
    """
    fits = isinstance(buffer_class, type) and issubclass(buffer_class, SequenceReplayBuffer)
    check(
        fits or buffer_class is None,
        "replay_buffer_class",
        "be a subclass of SequenceReplayBuffer, or None",
        buffer_class,
    )
    check_options("replay_buffer_kwargs", buffer_kwargs)
    known = argument_names(buffer_class or SequenceReplayBuffer)
    unknown = sorted(set(buffer_kwargs or {}) - known)
    rule = f"hold arguments of {(buffer_class or SequenceReplayBuffer).__name__}"
    check(not unknown, "replay_buffer_kwargs", rule, unknown, f"they are {sorted(known)}")
    check_each(buffer_kwargs or {}, BUFFER_CHECKS)


def check_callback(callback: Any) -> None:
    """Make sure that ``callback`` is one of SB3's kinds: a callback, a list, a function or none.

    :raises ValueError: if it is not
    """
    several = isinstance(callback, list) and all(isinstance(c, BaseCallback) for c in callback)
    check(
        several or callback is None or isinstance(callback, BaseCallback) or callable(callback),
        "callback",
        "be a callback, a list of them, a function or None",
        callback,
    )


class MetricMeans:
    """Means of the metrics of many updates, without waiting for the device at each."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, metrics: Metrics) -> None:
        values = {name: value.detach() for name, value in metrics.items()}
        known = [name for name in values if name in self._sums]
        if known:
            sums = torch._foreach_add([self._sums[n] for n in known], [values[n] for n in known])
            values.update(zip(known, sums))
        self._sums.update(values)
        self._counts.update(metrics.keys())

    def compute(self) -> dict[str, float]:
        """One transfer from the device for all of them."""
        if not self._sums:
            return {}
        sums = torch.stack([value.float() for value in self._sums.values()]).tolist()
        return {name: total / self._counts[name] for name, total in zip(self._sums, sums)}


class UpdateLog:
    """What updates since the last entry in the log came to."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.restart()

    def restart(self) -> None:
        self.means, self.n_updates, self._started = MetricMeans(), 0, time.perf_counter()

    def add(self, metrics: Metrics) -> None:
        self.means.add(metrics)
        self.n_updates += 1

    def updates_per_second(self) -> float:
        return self.n_updates / (time.perf_counter() - self._started)


class SequenceOffPolicyAlgorithm(OffPolicyAlgorithm):
    """Off-policy learning from windows of episodes: the common part of every agent here.

    A subclass makes its optimisers (:meth:`_make_optimizers`), draws a batch
    (:meth:`_sample_batch`) and learns from it (:meth:`update`). The arguments are those of
    :class:`~core_agent.agents.core.RecurrentSAC`.

    :param settings: arguments of the subclass, which become attributes
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {}
    optimizer_names: ClassVar[tuple[str, ...]] = ()
    """Attributes of the policy that hold its optimisers, for saving."""
    memory_settings: ClassVar[tuple[str, ...]] = ("batch_size",)
    """Arguments that the memory of an update grows with."""
    max_critic_grad_norm: ClassVar[float] = math.inf
    policy: StatefulPolicy
    replay_buffer: SequenceReplayBuffer | None

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule,
        buffer_size: int,
        learning_starts: int,
        batch_size: int,
        tau: float,
        gamma: float,
        train_freq: int | tuple[int, str],
        gradient_steps: int | None,
        update_ratio: float,
        collect: Collect,
        crop_size: int | tuple[int, int] | None,
        precision: Precision,
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
        **settings: Any,
    ) -> None:
        check_each(settings, rules_of(type(self)))
        check_integer("buffer_size", buffer_size, 1)
        check_integer("learning_starts", learning_starts, 0)
        check_integer("batch_size", batch_size, 1)
        check_fraction("tau", tau)
        check_fraction("gamma", gamma)
        if gradient_steps is not None:
            check_integer(
                "gradient_steps", gradient_steps, -1, "None makes update_ratio updates a step"
            )
        check_at_least("update_ratio", update_ratio, 0)
        check_choice("collect", collect, COLLECTS)
        check_choice("precision", precision, PRECISIONS)
        as_train_freq(train_freq)
        if not callable(learning_rate):
            check_positive("learning_rate", learning_rate)
            learning_rate = float(learning_rate)
        check_crop_size("crop_size", crop_size)
        check(
            action_noise is None or isinstance(action_noise, ActionNoise),
            "action_noise",
            "be an ActionNoise or None",
            action_noise,
        )
        check_buffer_class(replay_buffer_class, replay_buffer_kwargs)
        check_size("stats_window_size", stats_window_size)
        optional(check_path)("tensorboard_log", tensorboard_log)
        check_verbose("verbose", verbose)
        seed = as_seed("seed", seed)
        check_device("device", device)
        check_boolean("_init_setup_model", _init_setup_model)
        if env is None and isinstance(policy, str) and policy not in self.policy_aliases:
            policy, env = "auto", policy
        check(
            env is None or isinstance(env, (str, gym.Env, VecEnv)),
            "env",
            "be an environment, vectorised environments or the id of one",
            env,
        )
        self._check_policy(policy, policy_kwargs)
        if isinstance(env, str):
            env = environment_for(env, collect)
        if policy == "auto":
            check(env is not None, "env", "be given with policy='auto'", env)
            assert env is not None
            policy = self._policy_for(env.observation_space)
        super().__init__(
            policy=policy,
            env=env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,  # type: ignore[arg-type]
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
        )
        if env is not None:
            check(
                isinstance(self.action_space, spaces.Box),
                "env",
                "have a Box action space (continuous actions)",
                self.action_space,
                "for discrete actions use an algorithm such as sb3_contrib's RecurrentPPO",
            )
        vars(self).update(settings)
        self.update_ratio = update_ratio
        self.collect: Collect = collect
        self.crop_size = crop_size
        self.precision: Precision = precision
        self._last_states: tuple[np.ndarray, ...] | None = None
        self._updates_per_second = 0.0
        # How far the rollout and the updates in progress have come, for going on in their midst.
        self._rollout_steps = 0
        self._rollout_episodes: list[int] = []
        self._updates_due = 0
        self._updates_each_step = 0
        self._fraction_due = 0.0
        self._steps_since_renewal = 0
        self._acting_copy: StatefulPolicy | None = None
        self._awaiting: list[Callable[[], bool]] = []
        self._endings: list[Callable[[BaseException | None], None]] = []
        self._stopping = False
        self._checkpoints: CheckpointFolder | None = None
        self._guard = FiniteGuard()
        self._captured_update = CapturedUpdate()
        # Saved, so that a file tells which agent it holds, and what it learned in.
        self.agent_class = type(self).__name__
        self.origin: dict[str, Any] = {}
        self._refuse_environments_in_process()
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def _check_policy(cls, policy: Any, policy_kwargs: Any) -> None:
        names = ("auto", *cls.policy_aliases)
        is_class = isinstance(policy, type) and issubclass(policy, BasePolicy)
        check(
            is_class or (isinstance(policy, str) and policy in names),
            "policy",
            f"be one of {names} or a class of policies",
            policy,
        )
        check_options("policy_kwargs", policy_kwargs)
        policy_class: Any = policy if is_class else next(iter(cls.policy_aliases.values()))
        if issubclass(policy_class, StatefulPolicy):
            policy_class.check_arguments(policy_kwargs or {})

    @staticmethod
    def _policy_for(space: spaces.Space) -> str:
        if isinstance(space, spaces.Dict):
            return "MultiInputPolicy"
        return "CnnPolicy" if is_image(space) else "MlpPolicy"

    # ---- set-up ----

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        refuse_normalized_images(self.observation_space, self._vec_normalize_env)
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
        self.policy = self._make_policy().to(self.device)
        set_compute_dtype(self.policy, compute_dtype(self.precision, self.device))
        self._guard = FiniteGuard(self.device if self._runs_ahead else None)
        if self.collect == "async":
            self._acting_copy = deepcopy(self.policy)
            self._acting_copy.set_training_mode(False)
        self._make_optimizers()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
                if self._runs_ahead:
                    # A CUDA graph would keep a number as it is; this it reads anew.
                    group["lr"] = torch.tensor(group["lr"], device=self.device)
        self.train_freq = as_train_freq(self.train_freq)  # type: ignore[assignment]

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's, with seeds of the environments that validation and other runs never use."""
        seed = as_seed("seed", seed)
        super().set_random_seed(seed)
        if seed is not None and self.env is not None:
            seed_environments(self.env, seed)

    def _refuse_environments_in_process(self) -> None:
        """Make sure that there is something to wait for, where updates are made meanwhile.

        :raises ValueError: for environments in this process
        """
        check(
            self.collect == "sequential"
            or self.env is None
            or not isinstance(self.env.unwrapped, DummyVecEnv),
            "env",
            "run in processes of its own with collect='async'",
            "environments in this process",
            "pass the id of an environment, the result of make_vec_env(id, n_envs=4) of "
            "core_agent.environments.make, or SB3's SubprocVecEnv",
        )

    @property
    def acting_policy(self) -> Any:
        """The policy that collects; with ``collect="async"`` a copy, renewed now and then."""
        return self.policy if self._acting_copy is None else self._acting_copy

    @torch.no_grad()
    def _renew_acting_policy(self) -> None:
        """Let the acting policy be what the learning one has come to."""
        if self._acting_copy is not None:
            self._acting_copy.load_state_dict(self.policy.state_dict())

    def _buffer_arguments(self) -> dict[str, Any]:
        """What the replay buffer is made with, unless ``replay_buffer_kwargs`` say otherwise."""
        return {"seed": self.seed}

    def _policy_arguments(self) -> dict[str, Any]:
        """What the policy is made with, unless ``policy_kwargs`` say otherwise."""
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
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [getattr(self.policy, name) for name in self.optimizer_names]

    @property
    def base_learning_rate(self) -> float:
        """The model's own rate: where the schedule starts, or its peak if it starts at 0."""
        start = self.lr_schedule(1.0)
        return start or max(self.lr_schedule(left) for left in np.linspace(0.0, 1.0, 101).tolist())

    def _update_learning_rate(
        self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer
    ) -> None:
        """Scale each group's own rate by what the schedule has come to since the start."""
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

    # ---- saving and loading ----

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model as SB3 does; warn of a learning rate that :meth:`load` would refuse.

        :param path: file to write, by name or open
        :param exclude: names of attributes to leave out
        :param include: names of attributes to take along that are left out otherwise
        :raises ValueError: for a bad argument, before anything is written
        """
        check_file("path", path)
        check_names("exclude", exclude)
        check_names("include", include)
        if callable(self.learning_rate) and not loads_safely(self.learning_rate):
            warnings.warn(
                "learning_rate is a function of your own: load() will refuse it unless given "
                "custom_objects={'learning_rate': ..., 'lr_schedule': ...} or trusted=True. "
                "Stable-Baselines3's LinearSchedule loads as it is.",
                stacklevel=2,
            )
        self.origin = {**self.origin, **describe(self.env)}
        super().save(path, exclude, include)

    @classmethod
    def load(
        cls: type[SelfAlgorithm],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trusted: bool = False,
        **kwargs: Any,
    ) -> SelfAlgorithm:
        """Load a model, without running anything that the file brings along.

        The arguments are those of SB3's ``load``, and

        :param trusted: unpickle whatever the file holds, as SB3 does
        :raises UnsafeFileError: if the file asks for names that loading does not allow, or is not a
            whole model of this class; a kind of ``ValueError``
        :raises FileNotFoundError: if there is no file
        :raises ValueError: for an environment or an argument that does not fit the model
        """
        check_file("path", path)
        fits = env is None or isinstance(env, (gym.Env, VecEnv))
        check(fits, "env", "be an environment, vectorised environments or None", env)
        check_device("device", device)
        check_options("custom_objects", custom_objects)
        check_boolean("print_system_info", print_system_info)
        check_boolean("force_reset", force_reset)
        check_boolean("trusted", trusted)
        if trusted:
            return super().load(
                path, env, device, custom_objects, print_system_info, force_reset, **kwargs
            )
        what = "a saved model"
        with opened(path, "zip") as file:
            # What is checked is what is loaded, whoever writes the file meanwhile.
            content = io.BytesIO(file.read())
        replaced = custom_objects or {}
        with reading(path, what):
            saved = read_model(content, replaced)
            complete = {**saved.data, **replaced}
            cls._check_saved(saved, complete)
        cls._check_arguments(complete["policy_class"], {**saved.data, **kwargs})
        if env is not None:
            env = cls._fitting_env(env, complete)
        unpickled = {key: saved.data[key] for key in saved.pickled}
        with reading(path, what):
            return super().load(
                content,
                env,
                device,
                {**unpickled, **replaced},
                print_system_info,
                force_reset,
                **kwargs,
            )

    @classmethod
    def _check_arguments(
        cls, policy_class: type[BasePolicy], data: Mapping[str, Any]
    ) -> SequenceOffPolicyAlgorithm:
        """A model without networks, of those attributes that are the constructor's arguments.

        :raises ValueError: for a bad one
        """
        names = inspect.signature(cls).parameters.keys() & data.keys()
        arguments = {name: data[name] for name in names}
        fixed = dict(policy=policy_class, env=None, device="cpu", _init_setup_model=False)
        return cls(**{**arguments, **fixed})

    @classmethod
    def _check_saved(cls, saved: SavedModel, complete: Mapping[str, Any]) -> None:
        """Make sure that a file holds a model of this class, before networks take memory.

        :param saved: what is in the file
        :param complete: its data, and what replaces some of it: that is the caller's business
        :raises ValueError: if it does not
        """
        check_attributes(cls, complete)
        probe = cls._check_arguments(complete["policy_class"], saved.data)
        probe.__dict__.update(complete)
        names, found = set(probe._get_torch_save_params()[0]), set(saved.parameters)
        check(found == names, "the file", f"hold the parameters of {sorted(names)}", sorted(found))
        if not probe.policy_class.__module__.startswith("core_agent."):
            return  # A policy of the user's may do what tensors without memory cannot.
        with torch.device("meta"):
            own = probe._make_policy().state_dict()
        check_state_dict("policy", own, saved.parameters["policy"])

    @classmethod
    def _fitting_env(cls, env: GymEnv, data: Mapping[str, Any]) -> VecEnv:
        """The environment, wrapped for a saved model.

        :raises ValueError: if its spaces are not the model's
        """
        wrapped = cls._wrap_env(env, data["verbose"])
        check_for_correct_spaces(wrapped, data["observation_space"], data["action_space"])
        refuse_normalized_images(wrapped.observation_space, unwrap_vec_normalize(wrapped))
        return wrapped

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Save all that the replay buffer holds, as arrays and JSON: nothing is pickled.

        :param path: file to write, by name (without a suffix ``.npz`` is added) or open
        """
        check_file("path", path)
        save_replay(path, self.replay_buffer)

    def load_replay_buffer(
        self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True
    ) -> None:
        """Fill the replay buffer with what :meth:`save_replay_buffer` wrote.

        :param path: file, by name or open
        :param truncate_last_traj: for SB3's interface
        :raises UnsafeFileError: if the file is no replay buffer of the model's spaces; what the
            buffer holds is left as it is
        """
        check_file("path", path)
        check_boolean("truncate_last_traj", truncate_last_traj)
        load_replay(path, self.replay_buffer)

    def checkpoint(self, folder: str | pathlib.Path) -> pathlib.Path:
        """Write everything from which the run follows; :meth:`resume` goes on from it.

        A checkpoint holds the model as :meth:`save` writes it, random states, the state of the
        environments and the replay buffer, of which only episodes that are new or still running
        are written. The last two checkpoints are kept. While :meth:`learn` runs, let
        :class:`~core_agent.runs.callbacks.ExactCheckpointCallback` call this at the right moments.

        :param folder: made if missing; one for each run
        :return: the checkpoint's own file in it
        :raises OSError: if it cannot be written; the checkpoints there are left as they are
        :raises ValueError: if a parameter is not finite
        :raises NonFiniteError: if an update has failed that was not told of yet
        """
        check_path("folder", folder)
        self._guard.check()
        if self._checkpoints is None or self._checkpoints.path != pathlib.Path(folder):
            self._checkpoints = CheckpointFolder(folder)
        return self._checkpoints.write(self)

    @classmethod
    def resume(
        cls: type[SelfAlgorithm],
        folder: str | pathlib.Path,
        env: GymEnv | str,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        trusted: bool = False,
    ) -> SelfAlgorithm:
        """The model as it was at the newest whole checkpoint in ``folder``, replay and all.

        ``learn(total_timesteps - model.num_timesteps, reset_num_timesteps=False)`` then does what
        the run would have done without stopping: on a CPU the same actions and parameters, bit for
        bit, if the environments can save and set their state (``get_state``, ``set_state``; those
        of ``distracting_envs`` do), or if the checkpoint was written at an episode's start. See
        :mod:`core_agent.saving.resumable`.

        :param folder: what was given to :meth:`checkpoint`
        :param env: made and wrapped as it was; or an id
        :param device: where to
        :param custom_objects: as in :meth:`load`
        :param trusted: as in :meth:`load`
        :raises NoCheckpointError: if nothing there is whole; a kind of ``ValueError``
        :raises ValueError: for another algorithm's checkpoint or other environments
        """
        check_path("folder", folder)
        check_device("device", device)
        check_options("custom_objects", custom_objects)
        check_boolean("trusted", trusted)
        is_env = isinstance(env, (str, gym.Env, VecEnv))
        check(is_env, "env", "be an environment, vectorised environments or an id", env)
        checkpoints = CheckpointFolder(folder)
        checkpoint = checkpoints.newest()
        if checkpoint is None:
            raise NoCheckpointError(
                f"folder must hold a complete checkpoint, got {str(folder)!r}; start a new run, or "
                "pass the folder that was given to checkpoint() or to ExactCheckpointCallback"
            )
        saved_by = checkpoint.manifest["algorithm"]
        rule, way_out = f"hold checkpoints of {cls.__name__}", f"use {saved_by}.resume"
        check(saved_by == cls.__name__, "folder", rule, saved_by, way_out)
        if isinstance(env, str):
            env = environment_for(env, checkpoint.manifest["collect"])
        model = cls.load(
            checkpoint.model,
            env=env,
            device=device,
            custom_objects=custom_objects,
            force_reset=False,
            trusted=trusted,
        )
        checkpoints.restore(model, checkpoint)
        model._checkpoints = checkpoints
        return model

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_awaiting",
            "_endings",
            "_stopping",
            "_checkpoints",
            "_acting_copy",
            "_guard",
            "_captured_update",
        ]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"policy.{name}" for name in self.optimizer_names)], []

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, torch.Tensor],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Load networks and optimisers; learning rates and the like stay those of this model.

        :raises UnsafeFileError: if a file is no saved model
        :raises ValueError: for parameters that do not fit this model, which is left as it is
        """
        check_boolean("exact_match", exact_match)
        check_device("device", device)
        parameters: Any = load_path_or_dict
        if not isinstance(load_path_or_dict, dict):
            check_file("load_path_or_dict", load_path_or_dict)
            with (
                opened(load_path_or_dict, "zip") as file,
                reading(load_path_or_dict, "a saved model"),
            ):
                parameters = read_parameters(file)
        self._check_parameters(parameters, exact_match)
        options = [
            [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            for optimizer in self.optimizers
        ]
        super().set_parameters(parameters, exact_match, device)
        for optimizer, own in zip(self.optimizers, options):
            for group, kept in zip(optimizer.param_groups, own):
                group.update(kept)
        self._renew_acting_policy()

    def _check_parameters(self, parameters: Mapping[str, Any], exact: bool) -> None:
        """Make sure that state dicts by name, as SB3 has them, fit networks and optimisers.

        :raises ValueError: if one does not
        """
        known = self._get_torch_save_params()[0]
        for name, found in parameters.items():
            check(name in known, "parameters", f"be of {known}", name)
            own = recursive_getattr(self, name)
            if isinstance(own, torch.optim.Optimizer):
                check_optimizer_state(name, own, found)
            else:
                check_state_dict(name, own.state_dict(), found, exact)

    # ---- collection ----

    @property
    def action_repeat(self) -> int:
        """Simulator steps that one agent step takes; 1 where the environment does not say."""
        if self.env is None or not self.env.has_attr("action_repeat"):
            return 1
        return int(self.env.get_attr("action_repeat")[0])

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        check(
            self.env is not None,
            "env",
            "be set before learn()",
            None,
            "pass env= to the constructor or to load(), or call set_env()",
        )
        assert self.env is not None and self.replay_buffer is not None
        self._refuse_environments_in_process()
        n_envs = self.env.num_envs
        make_resumable(self.env)
        going_on = not reset_num_timesteps and self._last_obs is not None
        if not going_on:
            # The environments are about to be reset: what runs there ends here.
            self.replay_buffer.end_episodes()
            self._last_states = None
            self._rollout_steps, self._rollout_episodes = 0, [0] * n_envs
            self._renew_acting_policy()
        if reset_num_timesteps or not self.replay_buffer.size():
            self._updates_due, self._updates_each_step, self._fraction_due = 0, 0, 0.0
        if self.replay_buffer.n_envs != n_envs:
            self.replay_buffer.set_n_envs(n_envs)
        noise = self.action_noise
        if isinstance(noise, VectorizedActionNoise) and noise.n_envs != n_envs:
            noise = VectorizedActionNoise(noise.base_noise, n_envs)
        elif noise is not None and n_envs > 1 and not isinstance(noise, VectorizedActionNoise):
            noise = VectorizedActionNoise(noise, n_envs)
        # SB3 would reset the noise, also in the middle of an episode.
        self.action_noise = None if going_on else noise
        result = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self.action_noise = noise
        return result

    def learn(
        self: SelfAlgorithm,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAlgorithm:
        """Collect and learn.

        :param total_timesteps: agent steps, over all environments; by default the paper's 500,000
            simulator steps where the environment has an ``action_repeat``
        :param callback: SB3 callback(s), called after every ``env.step``
        :param log_interval: episodes between two log entries; ``None``: no logging of episodes
        :param tb_log_name: name of the run for TensorBoard; by default the algorithm's
        :param reset_num_timesteps: ``False`` goes on where the last call ended
        :param progress_bar: show SB3's progress bar
        :return: the model itself
        :raises ValueError: without an environment, or without a length where none is known
        """
        if total_timesteps is None:
            check(
                self.env is not None and self.env.has_attr("action_repeat"),
                "total_timesteps",
                "be given for environments other than the Distracting Control Suite",
                None,
                "for example learn(100_000)",
            )
            total_timesteps = PAPER_SIMULATOR_STEPS // self.action_repeat
        # 0 finishes what a run was doing when it was stopped.
        lowest = 0 if self._is_unfinished and not reset_num_timesteps else 1
        check_integer("total_timesteps", total_timesteps, lowest)
        optional(check_size)("log_interval", log_interval)
        check_callback(callback)
        optional(check_text)("tb_log_name", tb_log_name)
        check_boolean("reset_num_timesteps", reset_num_timesteps)
        check_boolean("progress_bar", progress_bar)
        total_timesteps, callback = self._setup_learn(
            total_timesteps,
            callback,
            reset_num_timesteps,
            tb_log_name or type(self).__name__,
            progress_bar,
        )
        callback.on_training_start(locals(), globals())
        error: BaseException | None = None
        try:
            with memory_advice(**{name: getattr(self, name) for name in self.memory_settings}):
                self._alternate(total_timesteps, callback, log_interval)
            callback.on_training_end()
        except BaseException as raised:
            error = raised
            raise
        finally:
            endings, self._endings, self._awaiting = self._endings, [], []
            for ending in reversed(endings):
                ending(error)
        return self

    def _alternate(
        self, total_timesteps: int, callback: BaseCallback, log_interval: int | None
    ) -> None:
        """Collect and update in turn, going on where an earlier call was stopped."""
        assert self.env is not None and isinstance(self.train_freq, TrainFreq)
        self._stopping = False
        while not self._stopping and (self.num_timesteps < total_timesteps or self._is_unfinished):
            all_collected = self.num_timesteps >= total_timesteps and not self._rollout_steps
            if self._updates_due and (all_collected or self.collect == "sequential"):
                self.train(self._updates_due, self.batch_size)
                continue
            rollout = self.collect_rollouts(
                self.env,
                callback,
                self.train_freq,
                self.replay_buffer,
                self.action_noise,
                self.learning_starts,
                log_interval,
            )
            if not rollout.continue_training:
                break
            if self.num_timesteps > self.learning_starts:
                self._updates_due += self._gradient_steps_after(rollout.episode_timesteps)
                n_steps = rollout.episode_timesteps // self.env.num_envs
                self._updates_each_step = -(-self._updates_due // n_steps)
            self._reach_safe_point()
        self._stopping = False

    @property
    def _is_unfinished(self) -> bool:
        """Whether :meth:`learn` was stopped within a rollout or the updates after it."""
        return self._rollout_steps > 0 or self._updates_due > 0

    def at_next_safe_point(self, action: Callable[[], bool]) -> None:
        """Have ``action`` called once, between two steps or updates of :meth:`learn`.

        Everything is in place there: the step is stored, the update is complete. Callbacks and
        signal handlers, which run in the middle of things, ask for a checkpoint in this way.

        :param action: its ``False`` ends :meth:`learn`
        """
        self._awaiting.append(action)

    def when_learning_ends(self, action: Callable[[BaseException | None], None]) -> None:
        """Have ``action`` called when :meth:`learn` ends, with the error that ends it, if any."""
        self._endings.append(action)

    def _reach_safe_point(self) -> None:
        if self._awaiting:
            self._guard.check()
        while self._awaiting:
            if not self._awaiting.pop(0)():
                self._stopping = True

    def _gradient_steps_after(self, n_steps: int) -> int:
        """Updates after ``n_steps`` agent steps of all environments together."""
        if self.gradient_steps is None:
            due = self._fraction_due + self.update_ratio * n_steps
            self._fraction_due = due % 1.0
            return int(due)
        return n_steps if self.gradient_steps < 0 else self.gradient_steps

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Step the environments ``train_freq`` times, or until each has ended that many episodes.

        As SB3's, which allows one environment alone where ``train_freq`` counts episodes, and
        which loses the step at which a callback stops. A rollout that was stopped goes on.
        """
        self.acting_policy.set_training_mode(False)
        n_steps, n_episodes = self._rollout_steps, self._rollout_episodes
        updates = UpdateLog()
        callback.on_rollout_start()
        while should_collect_more_steps(train_freq, n_steps, min(n_episodes)):
            actions, buffer_actions = self._sample_action(
                learning_starts, action_noise, env.num_envs
            )
            new_obs, rewards, dones, infos = self._step_environments(env, actions, updates)
            self.num_timesteps += env.num_envs
            n_steps += 1
            self._rollout_steps = n_steps
            callback.update_locals(locals())
            continue_training = callback.on_step()
            self._update_info_buffer(infos, dones)
            self._store_transition(replay_buffer, buffer_actions, new_obs, rewards, dones, infos)  # type: ignore[arg-type]
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()
            log_is_due = False
            for index in np.flatnonzero(dones):
                n_episodes[index] += 1
                self._episode_num += 1
                if action_noise is not None:
                    action_noise.reset(**({"indices": [index]} if env.num_envs > 1 else {}))
                log_is_due |= log_interval is not None and self._episode_num % log_interval == 0
            self._steps_since_renewal += env.num_envs
            if dones.any() or self._steps_since_renewal >= LONGEST_WITHOUT_RENEWAL:
                self._renew_acting_policy()
                self._steps_since_renewal = 0
            if log_is_due:
                self._log_updates(updates)
                self.dump_logs()
            if updates.error is not None:
                raise updates.error
            self._reach_safe_point()
            if not continue_training or self._stopping:
                return RolloutReturn(
                    n_steps * env.num_envs, sum(n_episodes), continue_training=False
                )
        callback.on_rollout_end()
        self._log_updates(updates)
        self._rollout_steps, self._rollout_episodes = 0, [0] * env.num_envs
        return RolloutReturn(n_steps * env.num_envs, sum(n_episodes), continue_training=True)

    def _step_environments(
        self, env: VecEnv, actions: np.ndarray, updates: UpdateLog
    ) -> VecEnvStepReturn:
        """Step the environments; after a fault of theirs, have them reset before they go on.

        :param updates: takes the updates that are made meanwhile
        :raises NonFiniteError: if they give what is no number
        """
        last_obs, self._last_obs = self._last_obs, None
        if self.collect == "sequential":
            step = env.step(actions)
        else:
            env.step_async(actions)
            self._update_meanwhile(updates)
            step = env.step_wait()
        self._refuse_non_finite(step[0], step[1], step[3])
        self._last_obs = last_obs
        return step

    def _refuse_non_finite(
        self, observations: Any, rewards: np.ndarray, infos: list[dict[str, Any]]
    ) -> None:
        """Make sure that a step brought numbers, before anything learns from it.

        :raises NonFiniteError: naming the environment, and the key of a ``Dict`` observation
        """
        culprit = find_non_finite("observation", observations) or find_non_finite("reward", rewards)
        for index, info in enumerate(infos):
            if culprit is None and "terminal_observation" in info:
                last = as_batch(info["terminal_observation"])
                if (found := find_non_finite("terminal observation", last)) is not None:
                    culprit = found[0], index
        if culprit is None:
            return
        raise NonFiniteError(
            f"the {culprit[0]} of environment {culprit[1]} must be finite, got NaN or infinity at "
            f"step {self.num_timesteps + 1}; mend the environment, then go on with "
            "learn(reset_num_timesteps=False) or from the last checkpoint: nothing was learned "
            "from this step"
        )

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions as the environments take them, and scaled to [-1, 1] for the buffer."""
        random_actions = None
        if self.num_timesteps < learning_starts:
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
        state, features = policy.carry(*self._acting_inputs(), deterministic=False)
        if random_actions is None:
            scaled = policy.act(features, deterministic=False).cpu().numpy()
        else:
            scaled = random_actions.astype(np.float32)
        scaled = self._with_noise(scaled, action_noise)
        state = policy.remember(state, torch.as_tensor(scaled, device=self.device))
        self._last_states = tuple(part.cpu().numpy() for part in state)
        return scaled

    def _acting_inputs(self) -> tuple[PyTorchObs, tuple[torch.Tensor, ...], torch.Tensor]:
        """The last observation, the carried state and which environments begin an episode."""
        observation, _ = self.policy.obs_to_tensor(self._last_obs)  # type: ignore[arg-type]
        starts = torch.as_tensor(self._last_episode_starts, device=self.device)
        if self._last_states is None:
            return observation, self.policy.initial_state(len(starts)), starts
        state = tuple(torch.as_tensor(part, device=self.device) for part in self._last_states)
        return observation, state, starts

    @staticmethod
    def _with_noise(scaled: np.ndarray, action_noise: ActionNoise | None) -> np.ndarray:
        """Actions ``(n_envs, A)`` with noise, clipped to [-1, 1]."""
        if action_noise is None:
            return scaled
        return np.clip(scaled + action_noise(), -1.0, 1.0).astype(np.float32)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Put one step into the buffer, as it is without ``VecNormalize``.

        SB3's takes what lies under ``VecNormalize``, where images have not been transposed yet.
        """
        normalizer = self._vec_normalize_env
        last, raw_obs, raw_reward = self._last_obs, new_obs, reward
        if normalizer is not None:
            last = self._channels_first(self._last_original_obs)
            raw_obs = self._channels_first(normalizer.get_original_obs())
            raw_reward = normalizer.get_original_reward()
        next_obs = deepcopy(raw_obs)
        for index in np.flatnonzero(dones):
            terminal = infos[index].get("terminal_observation")
            if terminal is None:
                continue
            if normalizer is not None:
                terminal = normalizer.unnormalize_obs(terminal)
            if isinstance(next_obs, dict):
                for key in next_obs:
                    next_obs[key][index] = terminal[key]
            else:
                next_obs[index] = terminal
        replay_buffer.add(last, next_obs, buffer_action, raw_reward, dones, infos)  # type: ignore[arg-type]
        self._last_obs, self._last_original_obs = new_obs, raw_obs
        self._last_episode_starts = dones

    def _channels_first(self, observations: Any) -> Any:
        """Observations ``(n_envs, ...)`` from under ``VecTransposeImage`` as the agent sees them.

        :raises ValueError: if they have another shape, as under ``VecFrameStack``
        """
        if not isinstance(observations, dict):
            return transposed_to(self.observation_space, observations)
        sub_spaces = as_dict_space(self.observation_space)
        return {key: transposed_to(space, observations[key]) for key, space in sub_spaces.items()}

    # ---- learning ----

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Make ``gradient_steps`` updates, each on a new batch; log the means of their metrics."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.optimizers)
        updates = UpdateLog()
        self._updates_due = max(gradient_steps, 0)
        while self._updates_due and not self._stopping:
            self._update_once(batch_size, updates)
            self._reach_safe_point()
        self._log_updates(updates)

    def _update_meanwhile(self, updates: UpdateLog) -> None:
        """Make this step's share of the updates that are due, while the environments step.

        An error is kept in ``updates`` until the step is stored.
        """
        n_updates = min(self._updates_each_step, self._updates_due)
        if n_updates == 0:
            return
        try:
            self.policy.set_training_mode(True)
            self._update_learning_rate(self.optimizers)
            for _ in range(n_updates):
                self._update_once(self.batch_size, updates)
        except BaseException as error:
            updates.error = error

    def _update_once(self, batch_size: int, updates: UpdateLog) -> None:
        updates.add(self._update(self._sample_batch(batch_size)))
        self._n_updates += 1
        self._updates_due -= 1

    def _log_updates(self, updates: UpdateLog) -> None:
        """Log the means of the metrics since the last time.

        :raises NonFiniteError: if one of the updates has failed
        """
        if updates.n_updates == 0:
            return
        self._guard.check()
        for name, value in updates.means.compute().items():
            self.logger.record(f"train/{name}", value)
        self._updates_per_second = updates.updates_per_second()
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        updates.restart()

    @abstractmethod
    def _sample_batch(self, batch_size: int) -> Any:
        """What one update learns from."""

    def _update(self, batch: Any) -> Metrics:
        """:meth:`update`, on a GPU as one CUDA graph."""
        if self._runs_ahead and wants_cuda_graphs():
            return self._captured_update(self, batch)
        return self.update(batch)

    @abstractmethod
    def update(self, batch: Any) -> Metrics:
        """Learn from one batch; the metrics are scalars, left on the device.

        On a GPU what this asks the device for is recorded and repeated: it must depend on nothing
        but the batch, public attributes and :attr:`update_kind`.
        """

    @property
    def update_kind(self) -> tuple[bool, ...]:
        """Whether the next update makes each of those steps that not all updates make."""
        return ()

    def _descend_critics(self, loss: torch.Tensor) -> Metrics:
        """One step of the critics' optimiser, their gradients clipped."""
        policy = self.policy
        clipped = policy.critic.parameters()
        norm = descend(
            {"critic_loss": loss},
            policy.critic_optimizer,
            clipped,
            self.max_critic_grad_norm,
            self._guard,
        )
        return {"critic_loss": loss, "critic_grad_norm": norm}

    def dump_logs(self) -> None:
        """Write the log, with simulator steps and updates per second beside SB3's keys."""
        self.logger.record("time/simulator_steps", self.num_timesteps * self.action_repeat)
        self.logger.record("time/updates_per_second", self._updates_per_second)
        super().dump_logs()
