"""Collecting in turn with learning, or while learning: speed, and what it does to the returns.

    python benchmarks/collect.py --json runs/collect.json
    python benchmarks/collect.py --env DCS-cheetah-run-easy-dynamic --n-envs 2 --seeds 0

``CoRe`` with ``collect="sequential"`` and with ``collect="async"`` on the same task with the same
seeds, environments in processes of their own both times. The default task is that of
``learning_curves.py``, whose simulator takes no time: it shows the returns; a Distracting Control
task shows the speed too. Printed are deterministic returns after training, the mean of the last 10
training episodes, and steps per second over the whole run, random steps included.
"""

from __future__ import annotations

# Ahead of Stable-Baselines3, whose import of the old gym would print a notice.
from core_agent import preset  # isort: skip

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any

import gymnasium as gym
import torch
from learning_curves import DOTS, make_task
from measuring import add_common_options, columns, describe_machine, print_machine, save_json
from stable_baselines3.common.monitor import Monitor

from core_agent.agents.arguments import COLLECTS
from core_agent.agents.registry import AGENTS
from core_agent.environments.workers import SupervisedSubprocVecEnv
from core_agent.runs.callbacks import EpisodeReturns
from core_agent.runs.evaluation import play, summarize


def make_env(options: argparse.Namespace) -> gym.Env:
    """The task, noting its returns."""
    return Monitor(make_task(options.env, options.preset))


def train(collect: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one run."""
    make = partial(make_env, options)
    env = SupervisedSubprocVecEnv([make] * options.n_envs)
    arguments = preset(options.preset, options.agent, learning_starts=options.learning_starts)
    model = AGENTS[options.agent](
        policy="auto", env=env, seed=seed, device=options.device, collect=collect, **arguments
    )
    returns, started = EpisodeReturns(), time.perf_counter()
    model.learn(options.steps, callback=returns, log_interval=None)
    seconds = time.perf_counter() - started
    env.close()
    own = make()
    evaluation = summarize(play(own, model, options.episodes, seed=10_000))
    own.close()
    return {
        "collect": collect,
        "seed": seed,
        "return": evaluation.mean,
        "standard_error": evaluation.standard_error,
        "last_episodes": mean(value for *_, value in returns.episodes[-10:]),
        "agent_steps": model.num_timesteps,
        "updates": model._n_updates,
        "seconds": seconds,
    }


def print_table(runs: Sequence[dict[str, Any]]) -> None:
    """A line for each run."""
    rows = [["", "return", "last 10 episodes", "steps", "updates", "seconds", "steps/s"]]
    for run in runs:
        rows.append(
            [
                f"{run['collect']}, seed {run['seed']}",
                f"{run['return']:.1f} ± {run['standard_error']:.1f}",
                f"{run['last_episodes']:.1f}",
                str(run["agent_steps"]),
                str(run["updates"]),
                f"{run['seconds']:.0f}",
                f"{run['agent_steps'] / run['seconds']:.1f}",
            ]
        )
    print(columns(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser)
    parser.add_argument("--agent", choices=tuple(AGENTS), default="core")
    parser.add_argument("--env", default=DOTS, help="'dots' or an id; default: %(default)s")
    parser.add_argument("--n-envs", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--preset", default="small", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1_500, help="default: %(default)s")
    parser.add_argument("--learning-starts", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=20, help="for evaluation at the end")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe_machine(options.device)
    print_machine(machine)
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        for collect in COLLECTS:
            runs.append(train(collect, seed, options))
            figures = {"benchmark": "collect", "env": options.env, "machine": machine}
            save_json(options.json, {**figures, "runs": runs})
    print_table(runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
