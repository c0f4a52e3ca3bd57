"""Environments from their ids, in this process or in processes of their own.

For example:

    env = make_vec_env("DCS-cheetah-run-easy-dynamic", n_envs=4, seed=0)
    model = CoRe("CnnPolicy", env)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from core_agent.environments.suite import first_seed, is_in_suite
from core_agent.environments.workers import SupervisedSubprocVecEnv
from core_agent.saving.resumable import Resumable
from core_agent.validation import (
    OPTIONS,
    SIZE,
    TEXT,
    as_seed,
    check,
    check_arguments,
    check_keywords,
)

NEUTRAL_WRAPPERS = (
    *("Autoreset", "HumanRendering", "Monitor", "OrderEnforcing", "PassiveEnvChecker"),
    *("ClipReward", "NormalizeReward", "TransformReward"),
    *("RecordEpisodeStatistics", "RecordVideo", "RenderCollection", "Resumable", "TimeLimit"),
    *("VecCheckNan", "VecMonitor", "VecTransposeImage", "VecVideoRecorder"),
)
"""Wrappers that change neither observations nor actions; rewards are those of the environment."""
RULES = {"env_id": TEXT, "n_envs": SIZE, "env_kwargs": OPTIONS, "vec_env_kwargs": OPTIONS}


def seed_environments(env: VecEnv, seed: int, split: str = "train") -> None:
    """Give the next episode of each environment a seed that no other environment or run gets.

    SB3's ``seed`` gives ``seed + worker``, so worker 1 gets the seed of the next run's worker 0.

    :param env: vectorised environments
    :param seed: seed of the run
    :param split: "train" or "val"; the two share no seed
    """
    env.seed(seed)
    env.unwrapped._seeds = [first_seed(seed, worker, split) for worker in range(env.num_envs)]


def find_spec(env_id: str) -> EnvSpec:
    """The specification of an environment in Gymnasium's registry.

    :param env_id: id of a registered environment, or ``package:id``
    :raises ValueError: for an unknown id
    """
    check_arguments(RULES, locals())
    package, _, name = env_id.rpartition(":")
    try:
        if package:
            importlib.import_module(package)
        return gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(
            f"env must be the id of a registered environment, got {env_id!r}; import the package "
            f"that registers it first, or give 'package:id' ({error})"
        ) from error


def make_env(env_id: str, **kwargs: Any) -> gym.Env:
    """An environment from its id, with ``render_mode="rgb_array"`` if it takes a render mode.

    :param env_id: id of a registered environment, or ``package:id``
    :param kwargs: passed to the environment
    :raises ValueError: for an unknown id
    """
    return _make(find_spec(env_id), kwargs)


def _make(spec: EnvSpec, kwargs: Mapping[str, Any]) -> gym.Env:
    try:
        return gym.make(spec, **{"render_mode": "rgb_array", **kwargs})
    except TypeError:  # as Stable-Baselines3 does
        return gym.make(spec, **kwargs)


def describe(env: VecEnv | None) -> dict[str, Any]:
    """``env_id``, ``env_arguments`` and ``wrappers`` of environments; nothing where unknown.

    ``wrappers`` has the names of those that change what an agent observes or does.
    """
    if env is None:
        return {}
    wrappers, inner = [], env
    while isinstance(inner, VecEnvWrapper):
        only_scales_rewards = isinstance(inner, VecNormalize) and not inner.norm_obs
        if not only_scales_rewards:
            wrappers.append(type(inner).__name__)
        inner = inner.venv
    origin: Any = getattr(inner, "origin", None)  # set by make_vec_env
    if origin is None:
        spec = inner.envs[0].spec if isinstance(inner, DummyVecEnv) else None
        if spec is None:
            return {}
        known = gym.registry.get(spec.id, EnvSpec(spec.id))
        given = {key: value for key, value in spec.kwargs.items() if known.kwargs.get(key) != value}
        given.pop("render_mode", None)
        if spec.max_episode_steps != known.max_episode_steps and not is_in_suite(spec.id):
            given["max_episode_steps"] = spec.max_episode_steps or -1
        origin = make_origin(spec.id, given)
        added = spec.additional_wrappers[len(known.additional_wrappers) :]
        wrappers += [wrapper.name for wrapper in added]
    return {**origin, "wrappers": [name for name in wrappers if name not in NEUTRAL_WRAPPERS]}


def make_origin(env_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """An environment as plain data; a folder of videos is found from other folders as well."""
    plain = as_plain(arguments)
    videos = plain.get("video_path")
    if is_in_suite(env_id) and videos not in (None, "", "builtin"):
        plain["video_path"] = str(Path(videos).expanduser().absolute())
    return {"env_id": env_id, "env_arguments": plain}


def as_plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that JSON can hold, paths as strings."""
    plain = {}
    for name, value in arguments.items():
        with contextlib.suppress(TypeError, ValueError):
            text = json.dumps(str(value) if isinstance(value, os.PathLike) else value)
            plain[name] = json.loads(text)
    return plain


def make_described(origin: Any, **changes: Any) -> gym.Env:
    """An environment as :func:`describe` described it.

    :param origin: description in a saved model; no package named there is imported
    :param changes: arguments that override those of the description
    :raises ValueError: if no registered environment is described, or one with wrappers
    """
    found = origin if isinstance(origin, dict) else {}
    check(
        not found.get("wrappers"),
        "env",
        "be given for a model that learned in a wrapped environment",
        found.get("wrappers"),
        "pass it with these wrappers, in Python",
    )
    env_id: Any = found.get("env_id")
    arguments = found.get("env_arguments", {})
    check(
        isinstance(env_id, str) and ":" not in env_id and isinstance(arguments, dict),
        "env",
        "be given for a model that does not say which environment it learned in",
        env_id,
        "pass the id of an environment",
    )
    return make_env(env_id, **{**arguments, **changes})


def _make_monitored(spec: EnvSpec, kwargs: Mapping[str, Any]) -> gym.Env:
    return Resumable(Monitor(_make(spec, kwargs)))


def environment_for(env_id: str, collect: str) -> gym.Env | VecEnv:
    """An environment for an agent; with ``collect="async"`` it runs in a process of its own.

    :param env_id: id of a registered environment, or ``package:id``
    :param collect: argument ``collect`` of the agent
    :raises ValueError: for an unknown id
    """
    return make_vec_env(env_id, vec_env_kwargs={}) if collect == "async" else make_env(env_id)


def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    vec_env_kwargs: Mapping[str, Any] | None = None,
) -> VecEnv:
    """Environments with rendering and a monitor, each in a process that is restarted if it fails.

    A single environment runs in this process, to avoid transfers, unless ``vec_env_kwargs`` is
    given.

    :param env_id: id of a registered environment, or ``package:id``; the processes need not
        register it
    :param n_envs: number of environments
    :param seed: see :func:`seed_environments`; an algorithm with a seed replaces it
    :param env_kwargs: passed to each environment
    :param vec_env_kwargs: passed to :class:`SupervisedSubprocVecEnv
        <core_agent.environments.workers.SupervisedSubprocVecEnv>`
    :raises ValueError: for an unknown id or a bad argument
    """
    check_arguments(RULES, locals())
    seed = as_seed("seed", seed)
    check_keywords("vec_env_kwargs", vec_env_kwargs, SupervisedSubprocVecEnv, without="env_fns")
    spec = find_spec(env_id)
    make = partial(_make_monitored, spec, dict(env_kwargs or {}))
    env: Any
    if n_envs == 1 and vec_env_kwargs is None:
        env = DummyVecEnv([make])
    else:
        env = SupervisedSubprocVecEnv([make] * n_envs, **(vec_env_kwargs or {}))
    env.origin = make_origin(spec.id, env_kwargs or {})
    if seed is not None:
        split = (env_kwargs or {}).get("split")
        seed_environments(env, seed, "val" if split == "val" else "train")
    return env
