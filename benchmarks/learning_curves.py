"""Learning curves of every agent on one quick task from pixels, as one picture.

    python benchmarks/learning_curves.py --json runs/curves.json --output runs/curves.png
    python benchmarks/learning_curves.py --agents core curl --seeds 0 --env DCS-cheetah-run-clean

The default task takes no simulator: in a 64-pixel picture a white dot must be driven onto a green
one in the middle; 50 steps, the return is at most 50. Each agent has the ``small`` preset and as
many agent steps as the others; a run that takes longer than ``--minutes`` ends early, and says so.
Lines are means over seeds of the return, averaged over the last 10 episodes. The figures are
written after every run.
"""

from __future__ import annotations

# Ahead of Stable-Baselines3, whose import of the old gym would print a notice.
from core_agent import preset  # isort: skip

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from measuring import describe_machine, print_machine, save_json

from core_agent.agents.presets import get_preset
from core_agent.agents.registry import AGENTS
from core_agent.environments.make import make_env
from core_agent.runs.callbacks import EpisodeReturns, TimeLimitCallback
from core_agent.runs.evaluation import play, summarize
from core_agent.runs.plotting import plot_runs, running_mean

DOTS = "dots"
EPISODE_STEPS = 50


class Dots(gym.Env):
    """A white dot to be driven onto a green one in the middle, seen from above."""

    size, dot = 64, 8

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (self.size, self.size, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observe(self) -> np.ndarray:
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        for place, colour in ((np.zeros(2), (0, 255, 0)), (self.place, (255, 255, 255))):
            # Dots keep clear of the border, which crops take away.
            x, y = (12 + (place + 1) / 2 * (self.size - 24 - self.dot)).astype(int)
            picture[y : y + self.dot, x : x + self.dot] = colour
        return picture

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1.0, 1.0, 2)
        self.n_steps = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place = np.clip(self.place + 0.2 * action, -1.0, 1.0)
        self.n_steps += 1
        reward = 1.0 - float(np.abs(self.place).mean())
        return self.observe(), reward, False, self.n_steps >= EPISODE_STEPS, {}


def make_task(env_id: str, preset_name: str, **kwargs: Any) -> gym.Env:
    """The dots, or a Distracting Control task as the preset wants it."""
    if env_id == DOTS:
        return Dots()
    return make_env(env_id, **get_preset(preset_name).env_arguments, **kwargs)


def train(agent: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one run."""
    env = make_task(options.env, options.preset)
    arguments = preset(options.preset, agent, learning_starts=options.learning_starts)
    model = AGENTS[agent](policy="auto", env=env, seed=seed, device=options.device, **arguments)
    returns, started = EpisodeReturns(), time.perf_counter()
    model.learn(
        options.steps,
        callback=[returns, TimeLimitCallback(60.0 * options.minutes)],
        log_interval=None,
    )
    seconds = time.perf_counter() - started
    evaluation = summarize(play(env, model, options.episodes, seed=10_000))
    env.close()
    return {
        "episodes": returns.episodes,
        "agent_steps": model.num_timesteps,
        "updates": model._n_updates,
        "seconds": seconds,
        "return": evaluation.mean,
        "standard_error": evaluation.standard_error,
    }


def mean_curve(runs: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Agent steps, and returns averaged over runs, as far as all of them went."""
    curves = [running_mean([value for *_, value in run["episodes"]]) for run in runs]
    length = min(len(curve) for curve in curves)
    steps = [at for at, *_ in runs[0]["episodes"]][:length]
    return steps, np.mean([curve[:length] for curve in curves], axis=0).tolist()


def draw(path: Path, results: dict[str, dict[str, Any]], random_return: float) -> None:
    """One line for each agent, one for random actions."""
    curves = {
        AGENTS[agent].__name__: mean_curve(list(runs.values())) for agent, runs in results.items()
    }
    last = max(steps[-1] for steps, _ in curves.values())
    curves["random actions"] = ([0, last], [random_return, random_return])
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_runs(path, "return, mean of the last 10 episodes", curves)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, write and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--agents", nargs="+", choices=tuple(AGENTS), default=list(AGENTS))
    parser.add_argument("--env", default=DOTS, help="'dots' or an id; default: %(default)s")
    parser.add_argument("--preset", default="small", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1_500, help="default: %(default)s")
    parser.add_argument("--learning-starts", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=5.0, help="of training in a run at most")
    parser.add_argument("--episodes", type=int, default=20, help="for evaluation at the end")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice")
    parser.add_argument("--output", type=Path, default=Path("learning_curves.png"))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe_machine(options.device)
    print_machine(machine)
    env = make_task(options.env, options.preset)
    random_return = summarize(play(env, None, options.episodes, seed=10_000)).mean
    env.close()
    print(f"random actions on {options.env}: {random_return:.1f}")
    results: dict[str, dict[str, Any]] = {}
    for seed in options.seeds:
        for agent in options.agents:
            run = train(agent, seed, options)
            results.setdefault(agent, {})[str(seed)] = run
            cut = "" if run["agent_steps"] >= options.steps else ", cut by --minutes"
            print(
                f"{agent:13} seed {seed}: {run['return']:6.1f} ± {run['standard_error']:.1f} "
                f"after {run['agent_steps']} steps, {run['updates']} updates, "
                f"{run['seconds']:.0f} s{cut}",
                flush=True,
            )
            figures = {"env": options.env, "preset": options.preset, "machine": machine}
            figures |= {"random_return": random_return, "agents": results}
            save_json(options.json, figures)
    draw(options.output, results, random_return)
    print(f"figure: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
