"""The time that runs take, estimated from some of their steps and updates on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.table import Table
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from core_agent.agents.arguments import as_train_freq
from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.loop import PAPER_SIMULATOR_STEPS
from core_agent.agents.presets import preset
from core_agent.agents.registry import get_agent
from core_agent.runs.training import Run, training_environment
from core_agent.table5.grid import EPISODE_STEPS, Job, read_job_status

N_TIMED_STEPS = 40
SHORT_RUN = 2_000
"""No time is estimated for a run of fewer agent steps: the estimate takes half a minute."""


class Estimate(NamedTuple):
    """Estimated times of a run on this machine, in seconds."""

    step: float
    """One agent step."""
    update: float
    run: float
    """All steps, updates and evaluations."""
    agent_steps: float = 0.0
    per_step: float = 0.0
    """One agent step with its share of updates."""


def estimate_run(job: Job, n_updates: int = 2) -> Estimate:
    """The time that a run takes, from some of its steps and updates on this machine.

    :param n_updates: number of updates to time, after one more for warming up
    """
    with closing(training_environment(job.run, "train")) as env:
        arguments = preset(
            job.run.preset,
            job.run.agent,
            env_id=job.run.env_id,
            # An environment in this process is all that is tried.
            **{**job.run.arguments, "collect": "sequential"},
        )
        model = get_agent(job.run.agent)(policy="auto", env=env, seed=job.run.seed, **arguments)
        n_updates_per_step = updates_per_step(model)
        model.learning_starts, model.gradient_steps = 0, 0
        model.train_freq = TrainFreq(N_TIMED_STEPS, TrainFrequencyUnit.STEP)  # type: ignore[assignment]
        model.learn(N_TIMED_STEPS)
        step = seconds(lambda: model.learn(N_TIMED_STEPS, reset_num_timesteps=False))
        step /= N_TIMED_STEPS
        model.train(1, model.batch_size)
        update = seconds(lambda: model.train(n_updates, model.batch_size)) / n_updates
        n_steps = job.simulator_steps / model.action_repeat
        n_evaluations = -(-job.simulator_steps // job.evaluate_every)
        n_played = n_evaluations * job.n_episodes * EPISODE_STEPS / model.action_repeat
        run = (n_steps + n_played) * step + n_steps * n_updates_per_step * update
    return Estimate(step, update, run, n_steps, step + n_updates_per_step * update)


def updates_per_step(model: SequenceOffPolicyAlgorithm) -> float:
    """Updates for each agent step of a Distracting Control task, on average."""
    if model.gradient_steps is None:
        return model.update_ratio
    if model.gradient_steps < 0:
        return 1.0
    count, unit = as_train_freq(model.train_freq)
    in_episodes = unit is TrainFrequencyUnit.EPISODE
    steps = count * EPISODE_STEPS / model.action_repeat if in_episodes else count
    return model.gradient_steps / steps


def seconds(action: Callable[[], object]) -> float:
    """Time that ``action`` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def draw_estimate(jobs: Sequence[Job], root: Path, price: float = 0.0, at_once: int = 1) -> Table:
    """A table of the time that the unfinished runs take, from timing each agent on each task here.

    :param price: price of an hour of one run; 0 leaves the cost out
    :param at_once: number of runs at once; each is assumed to be as fast as a single run here
    """
    left = []
    for job in jobs:
        status = read_job_status(job, root)
        if status["state"] != "finished":
            done = status.get("simulator_steps") or 0
            left.append((job, max(job.simulator_steps - done, 0)))
    at_once = min(at_once, max(len(left), 1))
    pace = "one at a time" if at_once == 1 else f"{at_once} at once"
    table = Table(title=f"{len(left)} of {len(jobs)} runs to do, {pace}; measured on this machine")
    table.add_column("agent")
    columns = ("runs", "simulator steps", "ms a step", "ms an update", "hours a run")
    for column in (*columns, "hours", "cost"):
        table.add_column(column, justify="right")
    total, longest = 0.0, []

    def name(entry: tuple[Job, int]) -> str:
        return entry[0].run.agent

    for agent, group in groupby(sorted(left, key=name), name):
        runs = list(group)
        steps = [n_steps for _, n_steps in runs]
        # Steps differ in cost, and tasks in steps: one run of each task is tried.
        tried = {job.run.env_id.rsplit("-", 2)[0]: job for job, _ in runs}.values()
        estimates = [estimate_run(job) for job in tried]
        estimate = Estimate(*np.mean(estimates, axis=0).tolist())
        hours = estimate.run / 3600
        # Of a run that was begun, the rest.
        shares = [n_steps / job.simulator_steps for job, n_steps in runs]
        total += hours * sum(shares)
        longest.append(hours * max(shares))
        table.add_row(
            agent,
            str(len(runs)),
            f"{sum(steps):,}",
            f"{1e3 * estimate.step:.0f}",
            f"{1e3 * estimate.update:.0f}",
            f"{hours:.2f}",
            f"{hours * sum(shares):.1f}",
            f"{hours * sum(shares) * price:.2f}" if price else "–",
        )
    table.add_section()
    cost = f"{total * price:.2f}" if price else "–"
    table.add_row("all", str(len(left)), "", "", "", "", f"{total:.1f}", cost)
    if at_once > 1:
        elapsed = max([total / at_once, *longest])
        table.add_row(f"all, {at_once} at once", "", "", "", "", "", f"{elapsed:.1f}", "")
    return table


def announce(run: Run, agent_steps: int | None) -> str:
    """A message about the time that a run at the paper's sizes takes on a CPU; empty for others.

    :param agent_steps: length of the run; ``None``: the paper's
    """
    names = run.preset.split("+")
    device = str(run.arguments.get("device", "auto"))
    on_gpu = torch.cuda.is_available() and device != "cpu"
    is_small = not {"small", "vector", "debug"}.isdisjoint(names)
    if on_gpu or is_small or (agent_steps or SHORT_RUN) < SHORT_RUN:
        return ""
    small = "+".join(["small", *(name for name in names if name != "paper")])

    def estimate(preset: str) -> tuple[float, float]:
        """Hours, and seconds of an update."""
        job = Job(replace(run, preset=preset), PAPER_SIMULATOR_STEPS, 10**9, 1, 1)
        found = estimate_run(job, 1)
        return (agent_steps or found.agent_steps) * found.per_step / 3600, found.update

    hours, update = estimate(run.preset)
    smaller = ""
    with suppress(ValueError):  # The run's own arguments may not go with that preset.
        smaller = f"; with --preset {small}, {estimate(small)[0]:.1f} hours"
    return (
        f"This run will take about {hours:.1f} hours on this CPU ({update:.1f} s an update)"
        f"{smaller}. Ctrl-C stops it with a checkpoint, and the same command with --resume auto "
        "continues it."
    )
