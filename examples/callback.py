"""Your own callback.

    python examples/callback.py

It logs the error of the rewards that the model predicts without observations, and stops training
once the error is small enough.
"""

from __future__ import annotations

# Before Stable-Baselines3, whose import of the old gym would print a notice.
from core_agent import CoRe, preset  # isort: skip

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback


class StopAtPredictionError(BaseCallback):
    """Stop once the mean error of the predicted rewards is at most ``threshold``.

    :param threshold: in units of the reward
    :param every: agent steps between two measurements
    :param horizon: number of predicted steps
    """

    def __init__(self, threshold: float, every: int = 500, horizon: int = 20) -> None:
        super().__init__()
        self.threshold, self.every, self.horizon = threshold, every, horizon
        self.error = np.inf

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self.error = self.measure()
            self.logger.record("eval/reward_prediction_error", self.error)
        return self.error > self.threshold

    def measure(self) -> float:
        model, env = self.model, gym.make("Pendulum-v1")
        observation, _ = env.reset(seed=0)
        env.action_space.seed(0)
        actions = np.stack([env.action_space.sample() for _ in range(self.horizon)])
        rewards = [float(env.step(action)[1]) for action in actions]
        start = model.encode(observation[None], actions[:0])[0]
        return float(np.abs(model.imagine(start, actions).rewards - rewards).mean())


def main(
    total_timesteps: int = 4_000,
    preset_name: str = "small",
    threshold: float = 0.3,
    every: int = 500,
) -> StopAtPredictionError:
    model = CoRe("MlpPolicy", "Pendulum-v1", verbose=1, seed=0, **preset(preset_name))
    callback = StopAtPredictionError(threshold, every)
    model.learn(total_timesteps, callback=callback)
    print(f"error of the predicted rewards after {model.num_timesteps} steps: {callback.error:.2f}")
    return callback


if __name__ == "__main__":
    main()
