"""Training from end to end: simulator steps per second, updates and memory.

    python benchmarks/throughput.py                        # the six tasks, small preset
    python benchmarks/throughput.py --tasks cheetah-run --preset paper --steps 1000
    python benchmarks/throughput.py --tasks cheetah-run --collect async --n-envs 2

``CoRe.learn`` on Distracting Control tasks with the built-in videos, one process for each task.
Start-up and the first two episodes of each environment are not counted. Memory is the peak of the
process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, get_args

import torch
from measuring import (
    add_common_options,
    columns,
    describe_machine,
    peak_rss,
    print_machine,
    synchronize,
    write_json,
)
from stable_baselines3.common.callbacks import BaseCallback

from core_agent.agents.arguments import Collect
from core_agent.table5.paper import TASKS

EPISODE_SIMULATOR_STEPS = 1000


class Clock(BaseCallback):
    """Measures some steps of a run, then ends it.

    :param device: waited for before and after, where it is a GPU
    :param first: agent steps before the measurement
    :param n_steps: agent steps to measure
    """

    def __init__(self, device: str, first: int, n_steps: int) -> None:
        super().__init__()
        self.device, self.first, self.last = device, first, first + n_steps
        self.seconds, self.updates = 0.0, 0

    def _on_step(self) -> bool:
        if self.num_timesteps == self.first:
            synchronize(self.device)
            self._started, self.updates = time.perf_counter(), self.model._n_updates
        if self.num_timesteps < self.last:
            return True
        synchronize(self.device)
        self.seconds = time.perf_counter() - self._started
        self.updates = self.model._n_updates - self.updates
        return False


def measure(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train on one task; the figures of its row."""
    from core_agent import CoRe, preset
    from core_agent.agents.presets import get_preset
    from core_agent.environments.make import make_vec_env

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    env_arguments = get_preset(options.preset).env_arguments
    apart = options.n_envs > 1 or options.collect == "async"
    env = make_vec_env(
        f"DCS-{task}-easy-dynamic",
        options.n_envs,
        env_kwargs={"video_path": "builtin", **env_arguments},
        vec_env_kwargs={} if apart else None,
    )
    repeat = env.get_attr("action_repeat")[0]
    episode_steps = EPISODE_SIMULATOR_STEPS // repeat
    model = CoRe(
        "CnnPolicy",
        env,
        seed=0,
        device=options.device,
        collect=options.collect,
        **preset(options.preset, learning_starts=options.n_envs * episode_steps),
    )
    n_episodes = -(-options.steps // (options.n_envs * EPISODE_SIMULATOR_STEPS))
    agent_steps = n_episodes * options.n_envs * episode_steps
    clock = Clock(options.device, 2 * options.n_envs * episode_steps, agent_steps)
    model.learn(clock.first + agent_steps, callback=clock, log_interval=None)
    env.close()
    return {
        "task": task,
        "action_repeat": repeat,
        "collect": options.collect,
        "n_envs": options.n_envs,
        "machine": describe_machine(options.device),
        "seconds": clock.seconds,
        "agent_steps": agent_steps,
        "simulator_steps": agent_steps * repeat,
        "updates": clock.updates,
        "simulator_steps_per_second": agent_steps * repeat / clock.seconds,
        "peak_rss_gb": peak_rss(),
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Rates and memory."""
    table = [["", "simulator steps/s", "updates", "peak RSS"]]
    for row in rows:
        table.append(
            [
                f"{row['task']} (repeat {row['action_repeat']})",
                f"{row['simulator_steps_per_second']:.1f}",
                str(row["updates"]),
                f"{row['peak_rss_gb']:.2f} GB",
            ]
        )
    print(columns(table))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK")
    parser.add_argument("--preset", choices=("paper", "small", "debug"), default="small")
    parser.add_argument("--collect", choices=get_args(Collect), default="sequential")
    parser.add_argument("--n-envs", type=int, default=1, help="each in its own process")
    parser.add_argument(
        "--steps",
        type=int,
        default=2000,
        help="simulator steps for each task, in complete episodes",
    )
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context("spawn")
    rows = []
    for task in options.tasks:
        # Peak memory is per process; this one may start processes.
        with ProcessPoolExecutor(1, context) as executor:
            rows.append(executor.submit(measure, task, options).result())
    print_machine(rows[0]["machine"])
    print(f"preset {options.preset}, {options.collect}, {options.n_envs} environment(s)")
    print_table(rows)
    write_json(options.json, {"benchmark": "throughput", "preset": options.preset, "tasks": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
