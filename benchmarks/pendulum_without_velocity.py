"""RecurrentSAC beside Stable-Baselines3's SAC where one observation does not tell the state.

    python benchmarks/pendulum_without_velocity.py --json runs/pendulum.json

Pendulum-v1 with its angular velocity hidden: the agent sees cosine and sine of the angle alone.
Both agents take the same number of steps; SAC has its own defaults. Random actions return about
-1200 an episode, a pendulum that is swung up and held about -150.
"""

from __future__ import annotations

# Ahead of Stable-Baselines3, whose import of the old gym would print a notice.
from core_agent import RecurrentSAC  # isort: skip

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from core_agent.runs.callbacks import EpisodeReturns
from core_agent.runs.evaluation import play, summarize

RECURRENT: dict[str, Any] = dict(
    update_ratio=1.0,
    gamma=0.98,
    learning_rate=LinearSchedule(3e-4, 0.0, 1.0),
    policy_kwargs=dict(
        deter_dim=64,
        stoch_dim=64,
        embed_dims=(64, 64),
        gru_dims=(64, 64),
        posterior_dims=(64, 64),
        vector_dims=(64, 64),
        actor_dims=(256, 256),
        critic_dims=(256, 256),
    ),
)


class WithoutVelocity(gym.ObservationWrapper):
    """Cosine and sine of the angle, ``(2,)``."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[:2]


def make_env() -> gym.Env:
    return WithoutVelocity(gym.make("Pendulum-v1"))


def train(model: BaseAlgorithm, steps: int, n_episodes: int) -> dict[str, Any]:
    returns = EpisodeReturns()
    started = time.perf_counter()
    model.learn(steps, callback=returns)
    seconds = time.perf_counter() - started
    statistics = summarize(play(make_env(), model, n_episodes, seed=10_000))
    return {
        "return": statistics.mean,
        "standard_error": statistics.standard_error,
        "seconds": seconds,
        "episodes": returns.episodes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=20, help="for evaluation")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, dict[int, Any]] = {"RecurrentSAC": {}, "SAC": {}}
    for seed in arguments.seeds:
        models = {
            "RecurrentSAC": RecurrentSAC("MlpPolicy", make_env(), seed=seed, **RECURRENT),
            "SAC": SAC("MlpPolicy", make_env(), seed=seed, learning_starts=1_000),
        }
        for name, model in models.items():
            result = train(model, arguments.steps, arguments.episodes)
            results[name][seed] = result
            print(
                f"{name:13} seed {seed}: {result['return']:7.0f} ± {result['standard_error']:.0f} "
                f"over {arguments.episodes} episodes after {arguments.steps} steps, "
                f"{result['seconds']:.0f} s",
                flush=True,
            )
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
