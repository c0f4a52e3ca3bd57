"""Rules for the arguments that all agents have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv

from core_agent.agents.policies import StatefulPolicy
from core_agent.agents.sb3_names import NO_HER, translate
from core_agent.networks.hardware import PRECISIONS
from core_agent.replay.buffer import SequenceReplayBuffer
from core_agent.validation import (
    BOOLEAN,
    CROP_SIZE,
    DEVICE,
    FILE,
    FRACTION,
    NAMES,
    OPTIONS,
    PATH,
    POSITIVE,
    SEED,
    SIZE,
    TEXT,
    VERBOSE,
    Check,
    Rule,
    at_least,
    check,
    choice,
    instance,
    is_whole,
    optional,
    whole,
)

Collect = Literal["sequential", "async"]


def as_train_freq(train_freq: int | tuple[int, str] | TrainFreq) -> TrainFreq:
    """SB3's form of ``train_freq``.

    :raises ValueError: if it is neither a whole number nor ``(n, "step")`` nor ``(n, "episode")``
    """
    units = {unit.value: unit for unit in TrainFrequencyUnit}
    pair: tuple[Any, ...] = (
        tuple(train_freq) if isinstance(train_freq, (tuple, list)) else (train_freq, "step")
    )
    unit = getattr(pair[-1], "value", pair[-1]) if pair else None
    fits = len(pair) == 2 and is_whole(pair[0]) and pair[0] >= 1
    rule = "be a whole number >= 1 of steps, (n, 'step') or (n, 'episode')"
    check(fits and isinstance(unit, str) and unit in units, "train_freq", rule, train_freq)
    return TrainFreq(int(pair[0]), units[str(unit)])


def _is_callback(value: Any) -> bool:
    callbacks = value if isinstance(value, list) else [value]
    several = all(isinstance(callback, BaseCallback) for callback in callbacks)
    return several or value is None or callable(value)


def _is_buffer_class(value: Any) -> bool:
    return value is None or (isinstance(value, type) and issubclass(value, SequenceReplayBuffer))


def check_policy(policy: Any, policy_kwargs: Any, aliases: Mapping[str, type[BasePolicy]]) -> Any:
    """The ``policy_kwargs`` with SB3's ``net_arch`` translated, if a policy can be made of them.

    :param aliases: classes of policies by name
    :raises ValueError: if it cannot
    """
    names = ("auto", *aliases)
    is_class = isinstance(policy, type) and issubclass(policy, BasePolicy)
    fits = is_class or (isinstance(policy, str) and policy in names)
    check(fits, "policy", f"be one of {names} or a class of policies", policy)
    policy_class: Any = policy if is_class else next(iter(aliases.values()))
    if issubclass(policy_class, StatefulPolicy):
        policy_kwargs = translate(policy_kwargs, policy_class)
        policy_class.check_arguments(policy_kwargs)
    return policy_kwargs


ENVIRONMENT = instance(
    "be an environment, vectorised environments or the id of one", str, gym.Env, VecEnv
)
CONSTRUCTOR_RULES: Mapping[str, Check] = {
    "env": optional(ENVIRONMENT),
    "learning_rate": lambda name, value: None if callable(value) else POSITIVE(name, value),
    "buffer_size": SIZE,
    "learning_starts": whole(0),
    "batch_size": SIZE,
    "tau": FRACTION,
    "gamma": FRACTION,
    "train_freq": lambda name, value: as_train_freq(value) and None,
    "gradient_steps": optional(whole(-1, "None makes update_ratio updates a step")),
    "update_ratio": at_least(0),
    "max_rollout_steps": SIZE,
    "collect": choice(*get_args(Collect)),
    "crop_size": CROP_SIZE,
    "precision": choice(*PRECISIONS),
    "action_noise": optional(instance("be an ActionNoise or None", ActionNoise)),
    "replay_buffer_class": Rule(
        "be a subclass of SequenceReplayBuffer, or None", _is_buffer_class, NO_HER
    ),
    "policy_kwargs": OPTIONS,
    "stats_window_size": SIZE,
    "tensorboard_log": optional(PATH),
    "verbose": VERBOSE,
    "seed": SEED,
    "device": DEVICE,
    "_init_setup_model": BOOLEAN,
}
"""The rule of each argument of a constructor."""

LEARN_RULES: Mapping[str, Check] = {
    "log_interval": optional(SIZE),
    "callback": Rule("be a callback, a list of them, a function or None", _is_callback),
    "tb_log_name": optional(TEXT),
    "reset_num_timesteps": BOOLEAN,
    "progress_bar": BOOLEAN,
}
"""The rule of each argument of ``learn`` but its length."""

FILE_RULES: Mapping[str, Check] = {
    "path": FILE,
    "folder": PATH,
    "device": DEVICE,
    "custom_objects": OPTIONS,
    **dict.fromkeys(("exclude", "include"), NAMES),
    **dict.fromkeys(("print_system_info", "force_reset", "trusted"), BOOLEAN),
    **dict.fromkeys(("truncate_last_traj", "exact_match"), BOOLEAN),
}
"""The rule of each argument of the methods that read and write files, apart from ``env``."""
LOAD_RULES: Mapping[str, Check] = {
    **FILE_RULES,
    "env": optional(
        instance("be an environment, vectorised environments or None", gym.Env, VecEnv)
    ),
}
RESUME_RULES: Mapping[str, Check] = {**FILE_RULES, "env": ENVIRONMENT}
