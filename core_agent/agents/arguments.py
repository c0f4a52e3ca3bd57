"""Rules for the arguments that all agents have in common."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv

from core_agent.agents.policies import StatefulPolicy
from core_agent.networks.encoders import is_image
from core_agent.networks.hardware import PRECISIONS
from core_agent.replay.buffer import BUFFER_CHECKS, SequenceReplayBuffer
from core_agent.validation import (
    Check,
    argument_names,
    check,
    check_arguments,
    check_at_least,
    check_boolean,
    check_choice,
    check_crop_size,
    check_device,
    check_file,
    check_fraction,
    check_integer,
    check_names,
    check_options,
    check_path,
    check_positive,
    check_seed,
    check_size,
    check_text,
    check_verbose,
    is_whole,
    optional,
)

Collect = Literal["sequential", "async"]
COLLECTS: tuple[str, ...] = get_args(Collect)


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


def instance_of(*types: type, rule: str) -> Check:
    """A check that a value is of one of some types."""
    return lambda name, value: check(isinstance(value, types), name, rule, value)


def check_callback(name: str, value: Any) -> None:
    """Make sure that ``value`` is one of SB3's kinds: a callback, a list, a function or none."""
    several = isinstance(value, list) and all(isinstance(c, BaseCallback) for c in value)
    check(
        several or value is None or isinstance(value, BaseCallback) or callable(value),
        name,
        "be a callback, a list of them, a function or None",
        value,
    )


def check_buffer(buffer_class: Any, buffer_kwargs: Any) -> None:
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
    check_arguments(BUFFER_CHECKS, buffer_kwargs or {})


def check_policy(policy: Any, policy_kwargs: Any, aliases: Mapping[str, type[BasePolicy]]) -> None:
    """Make sure that a policy can be made of these arguments.

    :param aliases: classes of policies by name
    :raises ValueError: if it cannot
    """
    names = ("auto", *aliases)
    is_class = isinstance(policy, type) and issubclass(policy, BasePolicy)
    check(
        is_class or (isinstance(policy, str) and policy in names),
        "policy",
        f"be one of {names} or a class of policies",
        policy,
    )
    check_options("policy_kwargs", policy_kwargs)
    policy_class: Any = policy if is_class else next(iter(aliases.values()))
    if issubclass(policy_class, StatefulPolicy):
        policy_class.check_arguments(policy_kwargs or {})


def policy_for(space: spaces.Space) -> str:
    """The policy that ``"auto"`` stands for."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image(space) else "MlpPolicy"


ENVIRONMENT = instance_of(
    *(str, gym.Env, VecEnv), rule="be an environment, vectorised environments or the id of one"
)
CONSTRUCTOR_RULES: Mapping[str, Check] = {
    "env": optional(ENVIRONMENT),
    "learning_rate": lambda name, value: None if callable(value) else check_positive(name, value),
    "buffer_size": check_size,
    "learning_starts": partial(check_integer, low=0),
    "batch_size": check_size,
    "tau": check_fraction,
    "gamma": check_fraction,
    "train_freq": lambda name, value: as_train_freq(value) and None,
    "gradient_steps": optional(
        partial(check_integer, low=-1, way_out="None makes update_ratio updates a step")
    ),
    "update_ratio": partial(check_at_least, low=0),
    "max_rollout_steps": check_size,
    "collect": partial(check_choice, choices=COLLECTS),
    "crop_size": check_crop_size,
    "precision": partial(check_choice, choices=PRECISIONS),
    "action_noise": optional(instance_of(ActionNoise, rule="be an ActionNoise or None")),
    "stats_window_size": check_size,
    "tensorboard_log": optional(check_path),
    "verbose": check_verbose,
    "seed": check_seed,
    "device": check_device,
    "_init_setup_model": check_boolean,
}
"""The rule of each argument of a constructor."""

LEARN_RULES: Mapping[str, Check] = {
    "log_interval": optional(check_size),
    "callback": check_callback,
    "tb_log_name": optional(check_text),
    "reset_num_timesteps": check_boolean,
    "progress_bar": check_boolean,
}
"""The rule of each argument of ``learn`` but its length."""

FILE_RULES: Mapping[str, Check] = {
    "path": check_file,
    "folder": check_path,
    "device": check_device,
    "custom_objects": check_options,
    "print_system_info": check_boolean,
    "force_reset": check_boolean,
    "trusted": check_boolean,
    "exclude": check_names,
    "include": check_names,
    "truncate_last_traj": check_boolean,
    "exact_match": check_boolean,
}
"""The rule of each argument of the methods that read and write files, apart from ``env``."""
LOAD_RULES: Mapping[str, Check] = {
    **FILE_RULES,
    "env": optional(
        instance_of(gym.Env, VecEnv, rule="be an environment, vectorised environments or None")
    ),
}
RESUME_RULES: Mapping[str, Check] = {**FILE_RULES, "env": ENVIRONMENT}
