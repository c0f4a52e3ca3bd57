"""Acting step by step: pass the state that `predict` returns to its next call.

    python examples/predict_loop.py

A recurrent agent that is called without its state starts with an empty memory at every step. It
does not fail, but plays worse. The script does both with the cart-pole agent that comes with the
package.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

import distracting_envs  # noqa: F401  (registers the DCS ids)
from core_agent.trained import load_trained


def play(model: BaseAlgorithm, env: gym.Env, carry_state: bool) -> float:
    observation, _ = env.reset(seed=0)
    state, episode_start, total, over = None, np.array([True]), 0.0, False
    while not over:
        if not carry_state:
            state = None
        action, state = model.predict(observation, state, episode_start, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        episode_start = np.array([False])
        total, over = total + float(reward), terminated or truncated
    return total


def main(env_id: str = "DCS-cartpole-swingup-easy-dynamic") -> tuple[float, float]:
    model = load_trained(env_id)
    env = gym.make(env_id, split="val", image_size=64, render_quality="fast")
    returns = play(model, env, carry_state=True), play(model, env, carry_state=False)
    print("with the state carried: {:.0f}; forgotten at every step: {:.0f}".format(*returns))
    return returns


if __name__ == "__main__":
    main()
