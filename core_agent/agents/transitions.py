"""Environment steps: checked for NaN, and stored without ``VecNormalize``'s normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from core_agent.networks.encoders import as_dict_space, is_image
from core_agent.validation import NonFiniteError, check

RAW_TERMINAL = "raw_terminal_observation"
"""Key of an info under which an episode's last observation is kept as it is under VecNormalize."""


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


def as_batch(observation: Any) -> Any:
    """One observation as a batch of one."""
    if isinstance(observation, dict):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return np.asarray(observation)[None]


def refuse_non_finite(
    observations: Any, rewards: np.ndarray, infos: list[dict[str, Any]], step: int
) -> None:
    """Make sure that a step's values are finite, before anything learns from them.

    :param step: number of the step, for the error message
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
        f"step {step}; fix the environment, then resume with learn(reset_num_timesteps=False) or "
        "from the last checkpoint: nothing was learned from this step"
    )


def refuse_normalized_images(env: VecEnv) -> VecEnv:
    """Return ``env`` if it has no ``VecNormalize`` over images: these must stay bytes.

    :raises ValueError: if it has one
    """
    normalizer = unwrap_vec_normalize(env)
    if normalizer is None or not normalizer.norm_obs:
        return env
    sub_spaces = as_dict_space(env.observation_space)
    images = [key for key, sub_space in sub_spaces.items() if is_image(sub_space)]
    touched = images if normalizer.norm_obs_keys is None else normalizer.norm_obs_keys
    check(
        not set(images) & set(touched),
        "env",
        "leave images as they are",
        "VecNormalize over images",
        "pass VecNormalize norm_obs=False, or norm_obs_keys=[...] with the vectors only",
    )
    return env


@contextmanager
def raw_terminals_kept(normalizer: VecNormalize) -> Iterator[None]:
    """Context in which infos also hold an episode's last observation before normalisation.

    ``VecNormalize`` overwrites it with the normalised observation, which is clipped.
    """
    venv = normalizer.venv
    step_wait, own = venv.step_wait, vars(venv).get("step_wait")

    def keeping_step_wait() -> Any:
        step = step_wait()
        for info in step[3]:
            if "terminal_observation" in info:
                info[RAW_TERMINAL] = info["terminal_observation"]
        return step

    venv.step_wait = keeping_step_wait  # type: ignore[method-assign]
    try:
        yield
    finally:
        del venv.step_wait
        if own is not None:
            venv.step_wait = own  # type: ignore[method-assign]


def channels_first(space: spaces.Space, observations: Any) -> Any:
    """Observations ``(n, ...)`` of ``space``, its images transposed if they are channels last.

    :raises ValueError: if they have another shape, as under ``VecFrameStack``
    """
    if isinstance(observations, dict):
        sub_spaces = as_dict_space(space)
        return {key: channels_first(sub, observations[key]) for key, sub in sub_spaces.items()}
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


def store_transition(
    model: Any,
    replay_buffer: ReplayBuffer,
    buffer_action: np.ndarray,
    new_obs: Any,
    reward: np.ndarray,
    dones: np.ndarray,
    infos: list[dict[str, Any]],
) -> None:
    """Store one step in the buffer, without the normalisation of ``VecNormalize``.

    SB3's method stores observations from inside ``VecNormalize``, whose images are not transposed
    yet, and recovers an episode's last observation by reversing the normalisation, which is wrong
    where values were clipped.
    """
    normalizer, space = model._vec_normalize_env, model.observation_space
    last, raw_obs, raw_reward = model._last_obs, new_obs, reward
    if normalizer is not None:
        last = channels_first(space, model._last_original_obs)
        raw_obs = channels_first(space, normalizer.get_original_obs())
        raw_reward = normalizer.get_original_reward()
    next_obs = deepcopy(raw_obs)
    for index in np.flatnonzero(dones):
        terminal = infos[index].get("terminal_observation")
        if terminal is None:
            continue
        terminal = as_batch(terminal)
        if RAW_TERMINAL in infos[index]:
            terminal = channels_first(space, as_batch(infos[index][RAW_TERMINAL]))
        elif normalizer is not None:
            terminal = normalizer.unnormalize_obs(terminal)
        if isinstance(next_obs, dict):
            for key in next_obs:
                next_obs[key][index] = terminal[key][0]
        else:
            next_obs[index] = terminal[0]
    replay_buffer.add(last, next_obs, buffer_action, raw_reward, dones, infos)
    model._last_obs, model._last_original_obs = new_obs, raw_obs
    model._last_episode_starts = dones
