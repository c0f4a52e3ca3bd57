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

from core_agent import validation as rules
from core_agent.agents.policies import StatefulPolicy, policy_for
from core_agent.agents.sb3_names import NO_HER, translate
from core_agent.networks.hardware import PRECISIONS
from core_agent.replay.buffer import SequenceReplayBuffer

Collect = Literal["sequential", "async"]


def as_train_freq(train_freq: int | tuple[int, str] | TrainFreq) -> TrainFreq:
    """SB3's form of ``train_freq``.

    :raises ValueError: if it is neither a whole number nor ``(n, "step")`` nor ``(n, "episode")``
    """
    pair: Any = train_freq if isinstance(train_freq, (tuple, list)) else (train_freq, "step")
    unit = getattr(pair[1], "value", pair[1]) if len(pair) == 2 else None
    units = rules.choice(*(each.value for each in TrainFrequencyUnit))
    rule = "be a whole number >= 1 of steps, (n, 'step') or (n, 'episode')"
    rules.check(units.holds(unit) and rules.SIZE.holds(pair[0]), "train_freq", rule, train_freq)
    return TrainFreq(int(pair[0]), TrainFrequencyUnit(unit))


def check_policy(policy: Any, policy_kwargs: Any, aliases: Mapping[str, type[BasePolicy]]) -> Any:
    """Check ``policy`` and ``policy_kwargs``; return the latter with ``net_arch`` translated.

    :param aliases: policy classes by name
    :raises ValueError: if no policy can be made from them
    """
    names = ("auto", *aliases)
    is_class = isinstance(policy, type) and issubclass(policy, BasePolicy)
    fits = is_class or (isinstance(policy, str) and policy in names)
    rules.check(fits, "policy", f"be one of {names} or a class of policies", policy)
    policy_class: Any = policy if is_class else next(iter(aliases.values()))
    if issubclass(policy_class, StatefulPolicy):
        policy_kwargs = translate(policy_kwargs, policy_class)
        policy_class.check_arguments(policy_kwargs)
    return policy_kwargs


def choose_policy(policy: str | type[BasePolicy], env: Any) -> str | type[BasePolicy]:
    """``policy``, or the name of the one that fits the observations in place of ``"auto"``.

    :param env: the environment, if there is one
    :raises ValueError: for a policy for images without images, or ``"auto"`` without ``env``
    """
    rules.check(policy != "auto" or env is not None, "env", "be given with policy='auto'", env)
    if env is None or not isinstance(policy, str):
        return policy
    fitting, space = policy_for(env.observation_space), env.observation_space
    rules.check(
        policy != "CnnPolicy" or fitting != "MlpPolicy",
        "policy",
        f"be 'MlpPolicy' or 'auto' for {space}",
        policy,
        "images have three axes; gymnasium.wrappers.ReshapeObservation adds one",
    )
    return fitting if policy == "auto" else policy


def _is_callback(value: Any) -> bool:
    callbacks = value if isinstance(value, list) else [value]
    several = all(isinstance(callback, BaseCallback) for callback in callbacks)
    return several or value is None or callable(value)


ENVIRONMENT = rules.instance(
    "be an environment, vectorised environments or the id of one", str, gym.Env, VecEnv
)
LOADED_ENVIRONMENT = rules.optional(
    rules.instance("be an environment, vectorised environments or None", gym.Env, VecEnv)
)
RULES: Mapping[str, rules.Check] = {
    "env": rules.optional(ENVIRONMENT),
    "learning_rate": lambda name, value: None if callable(value) else rules.POSITIVE(name, value),
    **dict.fromkeys(("buffer_size", "batch_size", "max_rollout_steps"), rules.SIZE),
    "learning_starts": rules.whole(0),
    **dict.fromkeys(("tau", "gamma"), rules.FRACTION),
    "train_freq": lambda name, value: as_train_freq(value),
    "gradient_steps": rules.optional(rules.whole(-1, "None makes update_ratio updates a step")),
    "update_ratio": rules.at_least(0),
    "collect": rules.choice(*get_args(Collect)),
    "crop_size": rules.CROP_SIZE,
    "precision": rules.choice(*PRECISIONS),
    "action_noise": rules.optional(rules.instance("be an ActionNoise or None", ActionNoise)),
    "replay_buffer_class": rules.Rule(
        "be a subclass of SequenceReplayBuffer, or None",
        lambda value: value is None or SequenceReplayBuffer in getattr(value, "__mro__", ()),
        NO_HER,
    ),
    "stats_window_size": rules.SIZE,
    "tensorboard_log": rules.optional(rules.PATH),
    "verbose": rules.VERBOSE,
    "seed": rules.SEED,
    "log_interval": rules.optional(rules.SIZE),
    "callback": rules.Rule("be a callback, a list of them, a function or None", _is_callback),
    "tb_log_name": rules.optional(rules.TEXT),
    "path": rules.FILE,
    "folder": rules.PATH,
    "device": rules.DEVICE,
    **dict.fromkeys(("policy_kwargs", "custom_objects"), rules.OPTIONS),
    **dict.fromkeys(("exclude", "include"), rules.NAMES),
    **dict.fromkeys(("reset_num_timesteps", "progress_bar", "print_system_info"), rules.BOOLEAN),
    **dict.fromkeys(("force_reset", "truncate_last_traj", "exact_match"), rules.BOOLEAN),
    **dict.fromkeys(("trusted", "_init_setup_model"), rules.BOOLEAN),
}
"""The rule of each argument of an agent's constructor and methods."""
