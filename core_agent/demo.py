"""The demo: CoRe learns a Distracting Control task in about ten minutes on two cores."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from core_agent.agents.core import CoRe
from core_agent.agents.presets import get_preset, preset
from core_agent.environments.make import make_env
from core_agent.environments.suite import first_seed
from core_agent.runs.callbacks import (
    EpisodeReturns,
    RichProgressCallback,
    TimeLimitCallback,
    ValidationCallback,
)
from core_agent.runs.evaluation import play, summarize
from core_agent.runs.plotting import plot_learning_curve
from core_agent.runs.video import FRAMES_PER_SECOND, captioned, side_by_side, write_mp4
from core_agent.trained import read_card, trained_names, watch
from core_agent.validation import check

ENV_ID = "DCS-cartpole-swingup-easy-dynamic"
N_RANDOM_EPISODES = 10
N_VALIDATION_EPISODES = 20
LAST_EPISODES = 10


@dataclass(frozen=True)
class DemoSummary:
    """The figures of one demo run; returns are per episode of 1,000 simulator steps."""

    env_id: str
    seed: int
    agent_steps: int
    updates: int
    training_seconds: float
    total_seconds: float
    random_training_return: float
    random_validation_return: float
    last_training_return: float
    """Mean of the last 10 training episodes."""
    validation_return: float
    """Deterministic policy, validation videos."""


def run_demo(
    folder: Path,
    seed: int = 0,
    total_timesteps: int = 12_500,
    time_limit: float = 600.0,
    env_id: str = ENV_ID,
    preset_name: str = "small",
    n_random: int = N_RANDOM_EPISODES,
    n_validation: int = N_VALIDATION_EPISODES,
    console: Console | None = None,
) -> DemoSummary:
    """Train, validate, and leave model, curve, video, figures and TensorBoard log in ``folder``.

    :param folder: made if missing
    :param seed: seed of all random generators
    :param total_timesteps: agent steps
    :param time_limit: seconds of training after which the demo stops early
    :param env_id: a Distracting Control id
    :param preset_name: see :data:`~core_agent.agents.presets.PRESETS`
    :param n_random: episodes of random actions to compare with, on each set of videos
    :param n_validation: episodes of the trained agent on validation videos
    :param console: where to print
    :raises ValueError: if training ends before its first episode does
    """
    started = time.perf_counter()
    console = console or Console()
    folder.mkdir(parents=True, exist_ok=True)
    if env_id in trained_names():
        show_trained(env_id, folder, console)
    env_arguments = get_preset(preset_name).env_arguments
    with (
        closing(make_env(env_id, **env_arguments)) as env,
        closing(make_env(env_id, split="val", **env_arguments)) as validation_env,
    ):
        console.print(f"[bold]{env_id}[/], seed {seed}: how far do random actions get?")
        at_random = summarize(play(env, None, n_random, seed=first_seed(seed)))
        val_seed = first_seed(seed, split="val")
        random_episodes = play(validation_env, None, n_random, seed=val_seed, record="first")
        console.print(f"Random actions return {at_random.mean:.0f} per episode.")
        log = str(folder / "tensorboard")
        arguments = preset(preset_name, env_id=env_id)
        model = CoRe("CnnPolicy", env, tensorboard_log=log, seed=seed, **arguments)
        model.origin["preset"] = preset_name
        training, every = EpisodeReturns(), total_timesteps + 1
        validation = ValidationCallback(validation_env, every, n_validation, seed=seed)
        stops = [TimeLimitCallback(time_limit), RichProgressCallback(console)]
        model.learn(total_timesteps, callback=[training, validation, *stops], log_interval=1)
        training_seconds = time.perf_counter() - training.started
        names, limits = "total_timesteps and time_limit", (total_timesteps, time_limit)
        check(bool(training.episodes), names, "allow an episode of training", limits, "raise them")
        if not validation.results:
            console.print(
                f"Training stopped after {model.num_timesteps:,} of {total_timesteps:,} steps: the "
                f"limit is {time_limit / 60:g} minutes. `--time-limit` raises it."
            )
            validation.validate()
            model.logger.dump(model.num_timesteps)
        model.save(folder / "model")
    steps, returns = ([episode[column] for episode in training.episodes] for column in (0, 2))
    title, results = f"CoRe on {env_id}", validation.results
    curve = folder / "learning_curve.png"
    plot_learning_curve(curve, title, steps, returns, at_random.mean, results)
    trained = captioned(
        validation.last_episodes[0].frames, f"CoRe after {model.num_timesteps} steps"
    )
    frames = side_by_side(trained, captioned(random_episodes[0].frames, "random actions"))
    write_mp4(folder / "trained_and_random.mp4", frames, FRAMES_PER_SECOND)
    summary = DemoSummary(
        env_id=env_id,
        seed=seed,
        agent_steps=model.num_timesteps,
        updates=model._n_updates,
        training_seconds=training_seconds,
        total_seconds=time.perf_counter() - started,
        random_training_return=at_random.mean,
        random_validation_return=summarize(random_episodes).mean,
        last_training_return=float(np.mean(returns[-LAST_EPISODES:])),
        validation_return=results[-1][1],
    )
    record = {**asdict(summary), "episodes": training.episodes}
    (folder / "summary.json").write_text(json.dumps(record, indent=1))
    print_summary(console, summary, folder)
    return summary


def show_trained(env_id: str, folder: Path, console: Console) -> None:
    """Record an episode of a trained agent that comes with the package, and print its returns."""
    video = folder / f"trained_{env_id}.mp4"
    card, shown = read_card(env_id), watch(env_id, video)
    console.print(
        f"What longer training gives: {env_id} after {card.simulator_steps:,} simulator steps, "
        f"{card.mean:.0f} ± {card.standard_error:.0f} on validation videos (random actions: "
        f"{card.random_return:.0f}). One episode, without distractions next to it: {video} "
        f"(return {shown:.0f}). `core-agent watch` lists the other trained agents.",
        soft_wrap=True,
    )


def print_summary(console: Console, summary: DemoSummary, folder: Path) -> None:
    """Print what was learned, and where the files are."""
    table = Table(title=f"{summary.env_id}, seed {summary.seed}: mean return per episode")
    for column in ("", "random actions", "CoRe"):
        table.add_column(column, justify="right" if column else "left")
    for name, at_random, trained in (
        ("last 10 training episodes", summary.random_training_return, summary.last_training_return),
        ("validation, deterministic", summary.random_validation_return, summary.validation_return),
    ):
        table.add_row(name, f"{at_random:.0f}", f"{trained:.0f}")
    console.print(table)
    console.print(
        f"{summary.agent_steps} agent steps and {summary.updates} updates in "
        f"{summary.training_seconds / 60:.1f} minutes; {summary.total_seconds / 60:.1f} in all."
    )
    for label, name in (
        ("model", "model.zip"),
        ("learning curve", "learning_curve.png"),
        ("video, trained next to random", "trained_and_random.mp4"),
        ("figures", "summary.json"),
        ("TensorBoard", "tensorboard"),
    ):
        console.print(f"  {label}: {folder / name}", soft_wrap=True)
    console.print(
        f"  look at the losses: tensorboard --logdir {folder / 'tensorboard'}", soft_wrap=True
    )
