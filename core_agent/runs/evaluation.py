"""Playing complete episodes, with a model or at random."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed

from core_agent.validation import BOOLEAN, SIZE, Rule, as_seed, check, check_arguments, instance


class EpisodeResult(NamedTuple):
    """One episode."""

    episode_return: float
    n_steps: int
    frames: list[np.ndarray]
    """The results of ``render()`` at the start and after each step; empty unless recorded."""


class ReturnStatistics(NamedTuple):
    """Mean return over episodes and its standard error."""

    mean: float
    standard_error: float
    n_episodes: int


ENV = instance(
    "be an environment of Gymnasium",
    gym.Env,
    way_out="for a vectorised environment, pass one of its environments, such as env.envs[0]",
)
RULES = {
    "env": ENV,
    "model": Rule(
        "be a model, with predict(), or None",
        lambda value: value is None or callable(getattr(value, "predict", None)),
    ),
    "n_episodes": SIZE,
    "deterministic": BOOLEAN,
    "record": Rule(
        "be True, False or 'first'",
        lambda value: isinstance(value, bool) or (isinstance(value, str) and value == "first"),
    ),
}


@contextmanager
def own_randomness(seed: int | None) -> Iterator[None]:
    """Seed the random generators of Python, NumPy and PyTorch; restore their states at the end.

    :param seed: seed to use inside; ``None`` draws one
    """
    on_gpu = torch.cuda.is_initialized()
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002
    gpu = torch.cuda.get_rng_state_all() if on_gpu else []
    drawn = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    set_random_seed(drawn, using_cuda=False)
    if on_gpu:
        torch.cuda.manual_seed_all(drawn)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if on_gpu:
            torch.cuda.set_rng_state_all(gpu)


def check_own_observations(model: BaseAlgorithm, way_out: str) -> None:
    """Refuse a model that learns from normalised observations, which only its training makes.

    :param way_out: what to do instead, for the error
    :raises ValueError: if the model's environment has a ``VecNormalize`` over observations
    """
    normalizer = model.get_vec_normalize_env()
    rule = "see its environment's own observations"
    check(normalizer is None or not normalizer.norm_obs, "model", rule, "VecNormalize", way_out)


def play(
    env: gym.Env,
    model: BaseAlgorithm | None = None,
    n_episodes: int = 1,
    deterministic: bool = True,
    seed: int | None = None,
    record: bool | Literal["first"] = False,
) -> list[EpisodeResult]:
    """Play episodes in one environment, carrying the model's recurrent state.

    Playing uses separate random generators, so it does not change what a training run learns.

    :param env: a Gymnasium environment like the one the model was trained on, channels last
    :param model: the agent; ``None``: uniformly random actions
    :param n_episodes: number of episodes
    :param deterministic: passed to ``model.predict``
    :param seed: seed of the first reset, of random actions and of the actions that a stochastic
        policy samples
    :param record: keep the rendered frames of every episode, or of the ``"first"`` one only
    :raises ValueError: for a bad argument
    """
    check_arguments(RULES, locals())
    seed = as_seed("seed", seed)
    random_actions = deepcopy(env.action_space)
    random_actions.seed(seed)
    results = []
    with own_randomness(seed):
        for episode in range(n_episodes):
            observation, _ = env.reset(seed=seed if episode == 0 else None)
            state = None
            recorded = record is True or (record == "first" and episode == 0)
            frames = [np.asarray(env.render())] if recorded else []
            total, n_steps, over = 0.0, 0, False
            while not over:
                if model is None:
                    action = random_actions.sample()
                else:
                    start = np.array([n_steps == 0])
                    action, state = model.predict(observation, state, start, deterministic)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, n_steps, over = total + float(reward), n_steps + 1, terminated or truncated
                if recorded:
                    frames.append(np.asarray(env.render()))
            results.append(EpisodeResult(total, n_steps, frames))
    return results


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Standard error of the mean: standard deviation (n - 1) over √n; NaN for one value.

    :param values: ``(n,)``
    """
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def summarize(results: list[EpisodeResult]) -> ReturnStatistics:
    """Mean return and its standard error (0 for one episode).

    :raises ValueError: for anything but at least one result
    """
    fits = isinstance(results, (list, tuple)) and all(isinstance(r, EpisodeResult) for r in results)
    check(fits and len(results) >= 1, "results", "be at least one EpisodeResult", results)
    returns = [result.episode_return for result in results]
    error = standard_error(returns) if len(returns) > 1 else 0.0
    return ReturnStatistics(float(np.mean(returns)), error, len(returns))
