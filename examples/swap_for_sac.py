"""CoRe instead of SAC: the same calls, one name changed.

    python examples/swap_for_sac.py

Trains for about two minutes on Distracting Control with the small preset.
"""

from __future__ import annotations

# Before Stable-Baselines3, whose import of the old gym would print a notice.
from core_agent import CoRe, preset  # isort: skip

import gymnasium as gym
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecTransposeImage

import distracting_envs  # noqa: F401  (registers the DCS ids)

# from stable_baselines3 import SAC


def main(total_timesteps: int = 2_500, preset_name: str = "small") -> float:
    def make_env(split: str = "train") -> gym.Env:
        return gym.make(
            "DCS-cartpole-swingup-easy-static", split=split, image_size=64, render_quality="fast"
        )

    env = make_vec_env(make_env, n_envs=1, seed=0)
    validation_env = VecTransposeImage(make_vec_env(lambda: make_env("val"), n_envs=1, seed=1))

    # model = SAC("CnnPolicy", env, verbose=1, seed=0)
    model = CoRe("CnnPolicy", env, verbose=1, seed=0, **preset(preset_name))
    model.learn(
        total_timesteps,
        callback=EvalCallback(validation_env, eval_freq=max(1, total_timesteps // 2), verbose=0),
    )
    mean, std = evaluate_policy(model, validation_env, n_eval_episodes=2)
    print(f"validation return {mean:.0f} ± {std:.0f}")
    return mean


if __name__ == "__main__":
    main()
