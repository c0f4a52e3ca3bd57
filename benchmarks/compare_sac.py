"""CoRe beside Stable-Baselines3's SAC on the demo's environment, in the same wall-clock time.

    core-agent demo --folder runs/demo-0 --seed 0
    python benchmarks/compare_sac.py runs/demo-0 --output runs/compare_sac.png --json runs/sac.json

SAC gets the pixels that CoRe gets, three frames stacked, its own defaults (``CnnPolicy``, one
update per step, batch 256), and as many seconds of training as the demo took.
"""

from __future__ import annotations

# Ahead of Stable-Baselines3, whose import of the old gym would print a notice.
import core_agent  # isort: skip  # noqa: F401

import argparse
import json
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack

import distracting_envs  # noqa: F401  (registers the ids)
from core_agent.agents.presets import get_preset
from core_agent.runs.callbacks import EpisodeReturns, TimeLimitCallback
from core_agent.runs.plotting import STYLE, running_mean

N_STACK = 3


def make_env(env_id: str, **kwargs: object) -> VecFrameStack:
    arguments = {**get_preset("small").env_arguments, **kwargs}
    return VecFrameStack(make_vec_env(lambda: gym.make(env_id, **arguments)), N_STACK)


def train_sac(env_id: str, seconds: float, seed: int) -> dict:
    """Episodes ``(agent steps, seconds, return)`` and the validation return of SAC."""
    env = make_env(env_id)
    model = SAC("CnnPolicy", env, learning_starts=1_000, buffer_size=20_000, seed=seed)
    returns = EpisodeReturns()
    model.learn(10**9, callback=[returns, TimeLimitCallback(seconds)])
    env.close()
    validation_env = make_env(env_id, split="val")
    validation, _ = evaluate_policy(model, validation_env, 5, return_episode_rewards=True)
    validation_env.close()
    return {
        "episodes": returns.episodes,
        "agent_steps": model.num_timesteps,
        "updates": model._n_updates,
        "validation_return": float(np.mean(validation)),
    }


def plot(path: Path, demo: dict, sac: dict) -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        by_steps, by_time = figure.subplots(1, 2, sharey=True)
        for name, run, color in (("CoRe", demo, "#1f5f99"), ("SAC (SB3)", sac, "#c8553d")):
            steps, seconds, returns = (np.array(part) for part in zip(*run["episodes"]))
            smooth = running_mean(returns)
            for axes, x in ((by_steps, steps), (by_time, seconds / 60)):
                axes.scatter(x, returns, s=8, color=color, alpha=0.3, linewidths=0)
                axes.plot(x, smooth, color=color, lw=2, label=name)
        for axes, label in ((by_steps, "agent steps"), (by_time, "minutes of training")):
            axes.axhline(
                demo["random_training_return"], color="#555555", ls="--", lw=1, label="random"
            )
            axes.set(xlabel=label, ylim=(0, None))
        by_steps.set_ylabel("training return (line: mean of the last 10)")
        by_steps.legend(frameon=False, loc="upper left")
        figure.suptitle(f"{demo['env_id']}, seed {demo['seed']}, same wall-clock time")
        figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder that `core-agent demo` left")
    parser.add_argument("--output", type=Path, default=Path("compare_sac.png"))
    parser.add_argument("--json", type=Path, help="also write SAC's figures")
    arguments = parser.parse_args()
    demo = json.loads((arguments.demo / "summary.json").read_text())
    sac = train_sac(demo["env_id"], demo["training_seconds"], demo["seed"])
    plot(arguments.output, demo, sac)
    if arguments.json:
        arguments.json.write_text(json.dumps(sac, indent=1))
    for name, run in (("CoRe", demo), ("SAC (SB3)", sac)):
        last = np.mean([value for *_, value in run["episodes"][-10:]])
        print(
            f"{name:10} {run['agent_steps']:6} steps {run['updates']:6} updates; last 10 episodes "
            f"{last:6.1f}, validation {run['validation_return']:6.1f}"
        )
    print(f"figure: {arguments.output}")


if __name__ == "__main__":
    main()
