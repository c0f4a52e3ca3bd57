"""Commands that train: ``demo``, ``train``, ``benchmark``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from signal import SIGINT
from typing import Annotated, Any

import typer

from core_agent.cli.options import (
    PRESET_HELP,
    EnvId,
    EnvSettings,
    Presets,
    Seed,
    Settings,
    errors,
    output,
    print_json,
)
from core_agent.validation import at_least, check


class Resume(str, Enum):
    """Whether ``train`` continues the run in its folder."""

    never = "never"
    auto = "auto"


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/demo"),
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1_000, help="Agent steps.")] = 12_500,
    time_limit: Annotated[
        float, typer.Option(help="Minutes after which training stops, at the next step.")
    ] = 10.0,
) -> None:
    """Learn a distracting task in about ten minutes on two cores, and show it."""
    from core_agent.demo import run_demo

    run_demo(folder, seed, steps, 60.0 * time_limit)


def train(
    env_id: EnvId,
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/train"),
    agent: Annotated[
        str, typer.Option(help="core, recurrent_sac, sacrad, curl, qtopt_rad or qtopt_drq.")
    ] = "core",
    preset: Presets = "paper",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Agent steps; by default 500,000 simulator steps.")
    ] = None,
    seed: Seed = 0,
    config: Annotated[
        Path | None, typer.Option(help="YAML in rl-zoo's format, such as configs/core.yml.")
    ] = None,
    settings: Settings = None,
    env_settings: EnvSettings = None,
    validate_every: Annotated[
        int, typer.Option(min=0, help="Agent steps between validations; 0: none.")
    ] = 10_000,
    checkpoint_every: Annotated[
        int, typer.Option(min=0, help="Agent steps between checkpoints; 0: only at the end.")
    ] = 10_000,
    n_envs: Annotated[
        int, typer.Option(min=1, help="Number of environments; several run in a process each.")
    ] = 1,
    resume: Annotated[
        Resume, typer.Option(help="auto: continue from the folder's newest complete checkpoint.")
    ] = Resume.never,
) -> None:
    """Train an agent; write the model, its log, validations and checkpoints to a folder.

    On SIGTERM or SIGINT (Ctrl-C), training writes a checkpoint and stops.
    """
    from core_agent.runs.settings import parse_settings, read_config
    from core_agent.runs.training import Run, train_run
    from core_agent.table5.estimate import announce

    arguments = {**read_config(config, env_id), **parse_settings(settings, "--set")}
    configured_steps = arguments.pop("n_timesteps", None)
    if configured_steps is not None:
        at_least(1)("n_timesteps", configured_steps)
        configured_steps = int(configured_steps)  # often 1e6, a float
    env_arguments = parse_settings(env_settings, "--env-set")
    run = Run(env_id, agent, preset, seed, arguments, env_arguments, n_envs)
    total = steps or configured_steps
    if not (folder / "run.json").exists() and (cost := announce(run, total)):
        errors.print(cost, highlight=False, soft_wrap=True)
    outcome = train_run(
        run,
        folder,
        total,
        resume=resume is Resume.auto,
        checkpoint_every=checkpoint_every,
        validate_every=validate_every,
    )
    if outcome.interrupted_by is not None:
        errors.print(
            f"Stopped by {outcome.interrupted_by.name} at step {outcome.agent_steps}; the same "
            "command with --resume auto continues.",
            soft_wrap=True,
        )
        raise typer.Exit(128 + outcome.interrupted_by)
    errors.print(f"{outcome.agent_steps} agent steps; the model is {folder / 'model.zip'}")


def benchmark(
    folder: Annotated[Path, typer.Argument(help="Where the runs are; shared by all machines.")],
    suite: Annotated[str, typer.Option(help="easy, medium, hard, all or smoke.")] = "smoke",
    agent: Annotated[
        list[str] | None, typer.Option(help="Replaces the suite's agents; may be repeated.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Replaces the suite's tasks, such as cheetah-run; may be repeated."),
    ] = None,
    difficulty: Annotated[
        list[str] | None, typer.Option(help="easy, medium or hard; may be repeated.")
    ] = None,
    distraction: Annotated[
        list[str] | None, typer.Option(help="static or dynamic; may be repeated.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="May be repeated; default: 0 to 4; smoke: 0 and 1.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=PRESET_HELP)] = None,
    simulator_steps: Annotated[
        int | None, typer.Option(help="Length of a run; default: 500,000; smoke: 8,000.")
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Simulator steps between evaluations.")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Episodes per evaluation; default: 20; smoke: 5.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster.")] = None,
    cpus: Annotated[float, typer.Option(min=0, help="Processors per run.")] = 1.0,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs per run; 0.25: four runs on each; default: 1 if any."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: run part i of n here, one by one, without Ray.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Estimate the time and cost; run nothing.")] = False,
    price: Annotated[float, typer.Option(min=0, help="Price of an hour of one run.")] = 0.0,
    status: Annotated[bool, typer.Option(help="Show the runs' progress; run nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --status: print JSON instead of a table.")
    ] = False,
) -> None:
    """Run agents × tasks × difficulties × seeds, and continue what is unfinished.

    Every run has a folder of its own; the same command can be given again at any time.
    """
    from core_agent.table5.cluster import count_at_once, start_ray
    from core_agent.table5.estimate import draw_estimate
    from core_agent.table5.grid import get_suite, take_shard
    from core_agent.table5.progress import draw_table, list_runs

    def chosen(values: list[Any] | None) -> tuple[Any, ...] | None:
        return tuple(values) if values else None

    check(status or not as_json, "--json", "come with --status", as_json)
    check(folder.is_dir() or not folder.exists(), "folder", "be a folder", str(folder))
    jobs = get_suite(
        suite,
        agents=chosen(agent),
        tasks=chosen(task),
        difficulties=chosen(difficulty),
        distractions=chosen(distraction),
        seeds=chosen(seed),
        preset=preset,
        simulator_steps=simulator_steps,
        evaluate_every=evaluate_every,
        n_episodes=episodes,
    ).jobs()
    if shard is not None:
        jobs = take_shard(jobs, shard)
    if dry_run:
        at_once = count_at_once(start_ray(address), cpus, gpus) if shard is None else 1
        output.print(draw_estimate(jobs, folder, price, at_once))
    elif status and as_json:
        print_json(list_runs(jobs, folder))
    elif status:
        output.print(draw_table(jobs, folder))
    elif shard is None:
        run_on_cluster(jobs, folder, address, cpus, gpus)
    else:
        run_here(jobs, folder)


def run_on_cluster(
    jobs: list[Any], folder: Path, address: str | None, cpus: float, gpus: float | None
) -> None:
    """Do the jobs by Ray, with a table that follows them."""
    from rich.live import Live

    from core_agent.table5.cluster import run_on_ray
    from core_agent.table5.progress import draw_table

    with Live(draw_table(jobs, folder), console=output, auto_refresh=False) as live:

        def watch() -> None:
            live.update(draw_table(jobs, folder), refresh=True)

        ended = run_on_ray(jobs, folder, address, cpus, gpus, watch)
        watch()
    say_how_they_ended(ended)


def run_here(jobs: list[Any], folder: Path) -> None:
    """Do the jobs one after the other."""
    from core_agent.table5.grid import RunInterruptedError, read_job_status, run_job
    from core_agent.table5.progress import draw_table

    for job in jobs:
        read_job_status(job, folder)
    ended = {}
    for number, job in enumerate(jobs, start=1):
        path = job.folder(folder)
        output.print(f"{number} of {len(jobs)}: {path}", soft_wrap=True)
        try:
            ended[path] = run_job(job, folder, progress=True)
        except RunInterruptedError as error:
            errors.print(f"{error}; to continue, run the same command.", soft_wrap=True)
            raise typer.Exit(128 + error.signal) from None
    output.print(draw_table(jobs, folder))
    say_how_they_ended(ended)


def say_how_they_ended(ended: dict[Path, str]) -> None:
    """Name the runs that failed, and say how to continue those that were stopped."""
    for path, state in ended.items():
        if state == "failed":
            errors.print(f"{path} failed; the reason is in its status.json", soft_wrap=True)
    states = list(ended.values())
    stopped, waiting = states.count("interrupted"), states.count("not started")
    if stopped or waiting:
        errors.print(
            f"{stopped} run(s) interrupted and {waiting} not started; "
            "to continue, run the same command.",
            soft_wrap=True,
        )
        raise typer.Exit(128 + SIGINT)
    if "failed" in states:
        raise typer.Exit(1)
