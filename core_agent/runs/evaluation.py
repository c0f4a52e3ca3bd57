"""Playing whole episodes, with a model or at random."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from core_agent.validation import as_seed, check, check_boolean, check_size


class EpisodeResult(NamedTuple):
    """One episode."""

    episode_return: float
    n_steps: int
    frames: list[np.ndarray]
    """What ``render()`` gave at the start and after each step; empty unless recorded."""


class ReturnStatistics(NamedTuple):
    """Mean return over episodes and its standard error."""

    mean: float
    standard_error: float
    n_episodes: int


def check_env(name: str, value: Any) -> None:
    """Make sure that ``value`` is one environment."""
    way_out = "vectorised environments have theirs in a list, envs"
    check(isinstance(value, gym.Env), name, "be an environment of Gymnasium", value, way_out)


def check_player(name: str, value: Any) -> None:
    """Make sure that ``value`` chooses actions, or is ``None``."""
    fits = value is None or callable(getattr(value, "predict", None))
    check(fits, name, "be a model, with predict(), or None", value)


def play(
    env: gym.Env,
    model: BaseAlgorithm | None = None,
    n_episodes: int = 1,
    deterministic: bool = True,
    seed: int | None = None,
    record: bool | Literal["first"] = False,
) -> list[EpisodeResult]:
    """Play episodes in one environment, carrying the model's recurrent state.

    :param env: a Gymnasium environment as the model was trained on, channels last
    :param model: the agent; ``None``: uniformly random actions
    :param n_episodes: number of episodes
    :param deterministic: passed to ``model.predict``
    :param seed: of the first reset and of random actions
    :param record: keep the rendered frames of every episode, or of the ``"first"`` alone
    :raises ValueError: for a bad argument
    """
    check_env("env", env)
    check_player("model", model)
    check_size("n_episodes", n_episodes)
    check_boolean("deterministic", deterministic)
    seed = as_seed("seed", seed)
    first = isinstance(record, str) and record == "first"
    check(first or isinstance(record, bool), "record", "be True, False or 'first'", record)
    env.action_space.seed(seed)
    results = []
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        state = None
        recorded = record is True or (first and episode == 0)
        frames = [np.asarray(env.render())] if recorded else []
        total, n_steps, over = 0.0, 0, False
        while not over:
            if model is None:
                action = env.action_space.sample()
            else:
                start = np.array([n_steps == 0])
                action, state = model.predict(observation, state, start, deterministic)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, n_steps, over = total + float(reward), n_steps + 1, terminated or truncated
            if recorded:
                frames.append(np.asarray(env.render()))
        results.append(EpisodeResult(total, n_steps, frames))
    return results


def summarize(results: list[EpisodeResult]) -> ReturnStatistics:
    """Mean return and its standard error (0 for one episode).

    :raises ValueError: for anything but at least one result
    """
    fits = isinstance(results, (list, tuple)) and all(isinstance(r, EpisodeResult) for r in results)
    check(fits and len(results) >= 1, "results", "be at least one EpisodeResult", results)
    returns = np.array([result.episode_return for result in results])
    error = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else 0.0
    return ReturnStatistics(float(returns.mean()), float(error), len(returns))
