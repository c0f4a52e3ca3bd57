"""Your own environment, with pixels and proprioception.

    python examples/custom_environment.py

A dot must be pushed to the middle of the image. The image does not show the velocity of the dot, so
the observation also has a vector with the velocity; CoRe takes both.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from core_agent import CoRe, preset


class Dot(gym.Env):
    """A dot on a 40×40 grey image, pushed by two forces; 50 steps."""

    size = 40

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (self.size, self.size, 1), np.uint8),
                "velocity": spaces.Box(-1.0, 1.0, (2,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observe(self) -> dict[str, np.ndarray]:
        image = np.zeros((self.size, self.size, 1), np.uint8)
        x, y = ((self.position + 1) / 2 * (self.size - 5)).astype(int)
        image[y : y + 4, x : x + 4] = 255
        return {"image": image, "velocity": self.velocity.astype(np.float32)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        self.velocity = np.zeros(2)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        self.velocity = np.clip(0.8 * self.velocity + 0.1 * action, -1, 1)
        self.position = np.clip(self.position + self.velocity, -1, 1)
        self.steps += 1
        reward = 1.0 - float(np.abs(self.position).mean())
        return self.observe(), reward, False, self.steps >= 50, {}


def main(total_timesteps: int = 3_000) -> CoRe:
    arguments = preset(
        "small",
        learning_starts=500,
        policy_kwargs=dict(cnn_channels=(16, 32), cnn_strides=(2, 2)),
    )
    model = CoRe("MultiInputPolicy", Dot(), verbose=1, seed=0, **arguments)
    return model.learn(total_timesteps, log_interval=10)


if __name__ == "__main__":
    main()
