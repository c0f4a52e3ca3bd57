"""How much of the simulator's state a linear map reads from the latent state.

An agent whose latent state holds the background and not the robot cannot control the robot, however
low its losses are. The probe shows this within some 2,000 updates, long before returns do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from core_agent.environments.suite import first_seed
from core_agent.runs.evaluation import ENV, own_randomness
from core_agent.validation import SIZE, as_seed, check, check_arguments

PIXELS = "pixels"
"""Key of the image in the observations of ``vector_observations=True``."""
EXPLORATION = 0.3
"""Standard deviation of the noise on the agent's actions, in halves of their range, so that states
differ from one episode to the next."""
RIDGE = 1.0
"""Weight of the squared coefficients, for standardised latents; of the order of one frame."""


class Recorded(NamedTuple):
    """Frames of one or more episodes."""

    latents: np.ndarray
    """``(N, latent_dim)``, float32."""
    states: np.ndarray
    """``(N, S)``, float32: the task's own observation of the simulator."""


class Played(NamedTuple):
    """One episode of ``T`` steps."""

    frames: np.ndarray
    """``(T + 1, H, W, C)``, uint8."""
    states: np.ndarray
    """``(T + 1, S)``: the task's own observation of the simulator."""
    actions: np.ndarray
    """``(T, A)``."""
    rewards: np.ndarray
    """``(T,)``, float32."""


def state_names(env: gym.Env) -> list[str]:
    """Names of the coordinates of the simulator's state, such as ``position[0]``.

    :param env: a Distracting Control environment with ``vector_observations=True``
    """
    sub_spaces = sorted(env.observation_space.spaces.items())  # type: ignore[attr-defined]
    sizes = {key: int(np.prod(space.shape)) for key, space in sub_spaces if key != PIXELS}
    return [
        key if size == 1 else f"{key}[{index}]"
        for key, size in sizes.items()
        for index in range(size)
    ]


def record(
    model: BaseAlgorithm, env: gym.Env, n_episodes: int, seed: int | None = None
) -> list[Recorded]:
    """Play episodes and return the latent and the simulator's state of each frame.

    Every other episode is played with uniformly random actions, the others with the agent's
    deterministic actions plus Gaussian noise. The random generators of the model and of the process
    are restored afterwards, so that training is not influenced.

    :param model: a recurrent agent, trained on the image alone
    :param env: a Distracting Control environment with ``vector_observations=True``
    :param n_episodes: number of episodes
    :param seed: seed of the first reset, of random actions and noise, and of a policy that samples
    :raises ValueError: for a bad argument
    """
    check(
        hasattr(model, "encode"),
        "model",
        "have a latent state",
        type(model).__name__,
        "the probe is for CoRe and RecurrentSAC",
    )
    check(
        not isinstance(model.observation_space, gym.spaces.Dict),
        "model",
        "have learned from the image alone",
        model.observation_space,
    )
    ENV("env", env)
    check(
        env.action_space == model.action_space,
        "env",
        f"have the actions of the model, {model.action_space}",
        env.action_space,
    )
    is_dict = isinstance(env.observation_space, gym.spaces.Dict)
    check(
        is_dict and PIXELS in env.observation_space.spaces,  # type: ignore[attr-defined]
        "env",
        "observe the image and the simulator's state",
        env.observation_space,
        "make it with vector_observations=True",
    )
    SIZE("n_episodes", n_episodes)
    seed = as_seed("seed", seed)
    noise = islice(cycle((EXPLORATION, None)), n_episodes)
    with own_randomness(seed):  # a policy may sample although it is deterministic
        encode = model.encode  # type: ignore[attr-defined]  # checked above
        played = play_episodes(model, env, noise, seed)
        return [Recorded(encode(e.frames, e.actions), e.states) for e in played]


def play_episodes(
    model: Any, env: gym.Env, noise: Iterable[float | None], seed: int | None
) -> Iterator[Played]:
    """Play episodes with the agent's deterministic actions plus Gaussian noise.

    :param model: an agent trained on the image alone
    :param env: a Distracting Control environment with ``vector_observations=True``
    :param noise: of each episode: standard deviation, in halves of the range of each action; None:
        uniformly random actions in place of the agent's
    :param seed: seed of the first reset, of random actions and noise
    """
    generator = np.random.default_rng(seed)
    for episode, scale in enumerate(noise):
        yield _play_episode(model, env, generator, scale, None if episode else seed)


def _play_episode(
    model: Any,
    env: gym.Env,
    generator: np.random.Generator,
    noise: float | None,
    seed: int | None,
) -> Played:
    space = env.action_space
    assert isinstance(space, gym.spaces.Box)
    observation, _ = env.reset(seed=seed)
    frames, states = [observation[PIXELS]], [_flat(observation)]
    actions, rewards = [], []
    state, over = None, False
    while not over:
        if noise is None:
            action = generator.uniform(space.low, space.high)
        else:
            start = np.array([state is None])
            action, state = model.predict(observation[PIXELS], state, start, deterministic=True)
            scale = noise * 0.5 * (space.high - space.low)
            action = np.clip(generator.normal(action, scale), space.low, space.high)
        actions.append(action.astype(space.dtype))
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        over = terminated or truncated
        frames.append(observation[PIXELS])
        states.append(_flat(observation))
        rewards.append(reward)
    return Played(
        np.stack(frames), np.stack(states), np.stack(actions), np.array(rewards, np.float32)
    )


def _flat(observation: Mapping[str, np.ndarray]) -> np.ndarray:
    """The simulator's state ``(S,)`` in an observation, in the order of :func:`state_names`."""
    keys = sorted(set(observation) - {PIXELS})
    return np.concatenate([np.ravel(observation[key]) for key in keys])


def join(episodes: Sequence[Recorded]) -> Recorded:
    """The frames of several episodes as one."""
    return Recorded(*(np.concatenate(part) for part in zip(*episodes)))


class LinearProbe:
    """Ridge regression from latents to states.

    :param frames: what it is fitted to
    """

    def __init__(self, frames: Recorded) -> None:
        latents = frames.latents.astype(np.float64)
        self._mean, self._std = latents.mean(axis=0), latents.std(axis=0) + 1e-8
        x = self._inputs(frames)
        penalty = RIDGE * np.eye(x.shape[1])
        penalty[-1, -1] = 0.0  # the constant is free
        self._weights = np.linalg.solve(x.T @ x + penalty, x.T @ frames.states)

    def _inputs(self, frames: Recorded) -> np.ndarray:
        standardised = (frames.latents - self._mean) / self._std
        return np.concatenate([standardised, np.ones((len(standardised), 1))], axis=1)

    def r_squared(self, frames: Recorded) -> np.ndarray:
        """Share of each coordinate's variance that is explained, ``(S,)``; at most 1.

        Always predicting the mean of ``frames`` gives 0; so does a coordinate that never changes.
        """
        errors = ((frames.states - self._inputs(frames) @ self._weights) ** 2).sum(axis=0)
        totals = ((frames.states - frames.states.mean(axis=0)) ** 2).sum(axis=0)
        return np.where(totals > 1e-8, 1.0 - errors / np.maximum(totals, 1e-8), 0.0)


class ProbeResult(NamedTuple):
    """R² of each coordinate of the simulator's state on held-out episodes."""

    train: dict[str, float]
    """On the clips that the agent was trained with."""
    val: dict[str, float]
    """On validation clips."""


def probe(
    model: BaseAlgorithm,
    train_env: gym.Env,
    val_env: gym.Env,
    n_fitted: int = 24,
    n_held_out: int = 8,
    seed: int = 0,
) -> ProbeResult:
    """Fit a linear map on episodes of ``train_env`` and return its R² on held-out episodes.

    :param model: a recurrent agent, trained on the image alone
    :param train_env: environment with the training clips and ``vector_observations=True``
    :param val_env: the same with the validation clips
    :param n_fitted: episodes of ``train_env`` to fit the map to
    :param n_held_out: other episodes, of each environment, to test the map on
    :param seed: seed of environments and actions; the two environments share no episode
    :raises ValueError: for a bad argument
    """
    check_arguments({"n_fitted": SIZE, "n_held_out": SIZE}, locals())
    episodes = record(model, train_env, n_fitted + n_held_out, first_seed(seed))
    names = state_names(train_env)
    fitted = LinearProbe(join(episodes[:n_fitted]))
    held_out = [
        join(episodes[n_fitted:]),
        join(record(model, val_env, n_held_out, first_seed(seed, split="val"))),
    ]
    return ProbeResult(*(dict(zip(names, fitted.r_squared(each).tolist())) for each in held_out))
