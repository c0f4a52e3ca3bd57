"""Commands that take a saved model: ``evaluate``, ``record``, ``watch``, ``probe``."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from core_agent.cli.options import (
    AsJson,
    EnvSettings,
    Episodes,
    LearnedIn,
    LearnedWith,
    ModelPath,
    Seed,
    Split,
    output,
    print_json,
)
from core_agent.validation import check


def evaluate(
    path: ModelPath,
    env_id: LearnedIn = None,
    episodes: Episodes = 20,
    seed: Seed = 0,
    split: Split = "val",
    preset: LearnedWith = None,
    env_settings: EnvSettings = None,
    stochastic: Annotated[
        bool, typer.Option(help="Sample actions; by default they are deterministic.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Play complete episodes with a saved model and print the mean return."""
    from core_agent.agents.registry import load_agent
    from core_agent.environments.suite import first_seed
    from core_agent.runs.evaluation import play, summarize
    from core_agent.runs.settings import parse_settings
    from core_agent.runs.training import evaluation_environment

    model, first = load_agent(path), first_seed(seed, split=split)
    arguments = (env_id, preset, split, parse_settings(env_settings, "--env-set"))
    with closing(evaluation_environment(model.origin, *arguments)) as env:
        results = play(env, model, episodes, not stochastic, first)
        random_return = summarize(play(env, None, episodes, seed=first)).mean
        name = env.spec.id if env.spec else env_id
    statistics = summarize(results)
    error = statistics.standard_error if episodes > 1 else None
    if as_json:
        returns = [result.episode_return for result in results]
        facts = {"env_id": name, "split": split, "seed": seed, "deterministic": not stochastic}
        figures = {"mean": statistics.mean, "standard_error": error}
        print_json({**facts, **figures, "random_mean": random_return, "returns": returns})
        return
    columns = ("mean return", "standard error", "random actions")
    table = Table(*columns, title=f"{name}, {split} videos, {episodes} episodes")
    row = (statistics.mean, error, random_return)
    table.add_row(*("–" if value is None else f"{value:.1f}" for value in row))
    output.print(table)


VideoPath = Annotated[Path, typer.Option("--output", help="The video, .mp4 or .gif.")]


def record(
    path: ModelPath,
    env_id: LearnedIn = None,
    video: VideoPath = Path("agent.mp4"),
    seed: Seed = 0,
    split: Split = "val",
    preset: LearnedWith = None,
    env_settings: EnvSettings = None,
) -> None:
    """Write a video of one episode."""
    from core_agent.agents.registry import load_agent
    from core_agent.environments.suite import first_seed
    from core_agent.runs.evaluation import play
    from core_agent.runs.settings import parse_settings
    from core_agent.runs.training import evaluation_environment
    from core_agent.runs.video import FRAMES_PER_SECOND, prepare_video, write_video

    prepare_video("--output", video)
    model, first = load_agent(path), first_seed(seed, split=split)
    arguments = (env_id, preset, split, parse_settings(env_settings, "--env-set"))
    with closing(evaluation_environment(model.origin, *arguments)) as env:
        result = play(env, model, 1, seed=first, record=True)[0]
    write_video(video, result.frames, FRAMES_PER_SECOND)
    output.print(f"Return {result.episode_return:.1f}; video: {video}", soft_wrap=True)


def watch(
    agent: Annotated[
        str | None,
        typer.Argument(
            help="The folder of a run, a saved model (.zip), or the id of a trained agent that "
            "comes with the package; without it, these ids are listed."
        ),
    ] = None,
    video: VideoPath = Path("watch.mp4"),
    seed: Seed = 0,
    window: Annotated[
        bool, typer.Option(help="Show it in a window instead, which needs pygame and a display.")
    ] = False,
) -> None:
    """Show one episode of an agent, next to one without distractions."""
    from core_agent import trained

    if agent is None:
        output.print("\n".join(trained.trained_names()) or "no trained agent is installed")
        return
    total = trained.watch(agent, video, seed, window)
    output.print(f"Return {total:.1f}" + ("" if window else f"; video: {video}"), soft_wrap=True)


def probe(
    path: ModelPath,
    env_id: LearnedIn = None,
    episodes: Annotated[int, typer.Option(min=2, help="Episodes to fit the linear map to.")] = 24,
    preset: LearnedWith = None,
    seed: Seed = 0,
) -> None:
    """Print how much of the simulator's state a linear map reads from the latent state (R²)."""
    from core_agent.agents.registry import load_agent
    from core_agent.environments.suite import is_in_suite
    from core_agent.runs.probe import probe as fit
    from core_agent.runs.training import evaluation_environment

    model = load_agent(path)
    played = env_id or model.origin.get("env_id", "")
    rule = "be of the Distracting Control Suite, whose simulator's state is known"
    check(not played or is_in_suite(played), "env_id", rule, played)
    vectors = dict(vector_observations=True)
    with (
        closing(
            evaluation_environment(model.origin, env_id, preset, "train", vectors)
        ) as train_env,
        closing(evaluation_environment(model.origin, env_id, preset, "val", vectors)) as val_env,
    ):
        result = fit(model, train_env, val_env, episodes, max(2, episodes // 3), seed)
    columns = ("coordinate", "training videos", "validation videos")
    table = Table(*columns, title="R² of the simulator's state, held-out episodes")
    for name, value in result.train.items():
        table.add_row(name, f"{value:.2f}", f"{result.val[name]:.2f}")
    output.print(table)
