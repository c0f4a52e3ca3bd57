"""Rewards that the model predicts without observations, compared with the true ones.

    python examples/latent_rollout.py

CoRe learns Pendulum for a minute or two. Then it plays an episode. From every 40th step its model
predicts the rewards of the next 40 actions without further observations.
"""

from __future__ import annotations

from pathlib import Path

# Before Stable-Baselines3, whose import of the old gym would print a notice.
from core_agent import CoRe, preset  # isort: skip

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure


def play(model: CoRe, env: gym.Env) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames ``(T, ...)``, actions ``(T - 1, A)`` and rewards ``(T - 1,)`` of one episode."""
    observation, _ = env.reset(seed=0)
    observations, actions, rewards = [observation], [], []
    state, over = None, False
    while not over:
        action, state = model.predict(observation, state, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
        over = terminated or truncated
    return np.stack(observations), np.stack(actions), np.array(rewards)


def main(
    total_timesteps: int = 4_000,
    preset_name: str = "small",
    path: Path = Path("runs/latent_rollout.png"),
    horizon: int = 40,
) -> float:
    env = gym.make("Pendulum-v1")
    model = CoRe("MlpPolicy", env, verbose=1, seed=0, **preset(preset_name))
    model.learn(total_timesteps)

    observations, actions, rewards = play(model, env)
    latents = model.encode(observations, actions)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rewards, color="#555555", lw=1.2, label="true rewards")
    errors = []
    for start in range(0, len(actions) - horizon + 1, horizon):
        steps = slice(start, start + horizon)
        predicted = model.imagine(latents[start], actions[steps]).rewards
        errors.append(np.abs(predicted - rewards[steps]).mean())
        label = f"predicted, {horizon} steps without observations" if start == 0 else None
        axes.plot(np.arange(start, start + horizon), predicted, color="#c8553d", lw=2, label=label)
    values = model.value(latents[:-1], actions)
    axes.set(
        xlabel="step",
        ylabel="reward",
        title=f"Pendulum after {total_timesteps} steps; value at the start {values[0]:.0f}",
    )
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"mean error of the predicted rewards {np.mean(errors):.2f}; picture: {path}")
    return float(np.mean(errors))


if __name__ == "__main__":
    main()
