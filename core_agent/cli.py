"""The ``core-agent`` command."""

from __future__ import annotations

import sys
from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core_agent.validation import check

if TYPE_CHECKING:
    from core_agent.table5.grid import Job


class Resume(str, Enum):
    """Whether ``train`` goes on with what its folder holds."""

    never = "never"
    auto = "auto"


app = typer.Typer(
    help="CoRe: robot control from distracting pixels.", no_args_is_help=True, add_completion=True
)
errors = Console(stderr=True)

EnvId = Annotated[str, typer.Argument(help="Id of the environment, DCS-… or any registered one.")]
ModelPath = Annotated[Path, typer.Argument(help="A saved model (.zip).")]
Episodes = Annotated[int, typer.Option(min=1, help="Number of episodes.")]
Seed = Annotated[int, typer.Option(help="Seed of everything.")]
Split = Annotated[str, typer.Option(help="Videos of a DCS environment: train or val.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A constructor argument as key=value (YAML); may be repeated."),
]
PRESET_HELP = (
    "paper, release, small (CPUs), debug (seconds), or an ablation such as core-gating; "
    "several joined with +, as in small+core-gating."
)
Presets = Annotated[str, typer.Option(help=PRESET_HELP)]
EnvSettings = Annotated[
    list[str] | None,
    typer.Option("--env-set", help="An argument of the environment as key=value (YAML)."),
]


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """``["a=1", "b.c=x"]`` to ``{"a": 1, "b": {"c": "x"}}``, values read as YAML.

    :raises ValueError: for an entry without ``=``
    """
    result: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ValueError(
                f"--set must have the form key=value, got {setting!r}; for example "
                "--set batch_size=16"
            )
        *parents, name = key.split(".")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
        target[name] = yaml.safe_load(value)
    return result


ZOO_ONLY = ("n_envs", "normalize", "frame_stack", "env_wrapper", "callback")


def read_config(path: Path | None, env_id: str) -> dict[str, Any]:
    """Constructor arguments, and ``n_timesteps``, out of a YAML file in rl-zoo's format.

    :param path: the file; ``None``: no arguments
    :param env_id: whose entry is read
    :raises ValueError: if there is no such file or entry, or an entry needs rl-zoo itself
    """
    if path is None:
        return {}
    check(path.is_file(), "--config", "be a YAML file", str(path))
    entries = yaml.safe_load(path.read_text()) or {}
    known = sorted(entries) if isinstance(entries, dict) else entries
    check(
        isinstance(entries, dict) and isinstance(entries.get(env_id), dict),
        "--config",
        f"have an entry for {env_id}",
        str(path),
        f"it has {known}",
    )
    arguments = {key: value for key, value in entries[env_id].items() if key != "policy"}
    needs_zoo = sorted(set(arguments) & set(ZOO_ONLY))
    check(
        not needs_zoo,
        "--config",
        "hold constructor arguments and n_timesteps",
        needs_zoo,
        "python -m core_agent.zoo takes rl-zoo's other settings",
    )
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
    return arguments


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is left.")] = Path("runs/demo"),
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1_000, help="Agent steps.")] = 10_000,
    time_limit: Annotated[float, typer.Option(help="Minutes of training at most.")] = 12.5,
) -> None:
    """Learn a distracting task in a quarter of an hour on two cores, and show it."""
    from core_agent.demo import run_demo

    run_demo(folder, seed, steps, 60.0 * time_limit)


@app.command()
def train(
    env_id: EnvId,
    folder: Annotated[Path, typer.Option(help="Where everything is left.")] = Path("runs/train"),
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
        int, typer.Option(min=0, help="Agent steps between checkpoints; 0: at the end alone.")
    ] = 10_000,
    n_envs: Annotated[
        int, typer.Option(min=1, help="Environments side by side, each in its own process.")
    ] = 1,
    resume: Annotated[
        Resume, typer.Option(help="auto: go on from the folder's newest whole checkpoint.")
    ] = Resume.never,
) -> None:
    """Train an agent; leave the model, its log, validations and checkpoints in a folder.

    SIGTERM and SIGINT (Ctrl-C) write a checkpoint first.
    """
    from core_agent.runs.training import Run, train_run

    arguments = {**read_config(config, env_id), **parse_settings(settings)}
    configured_steps = arguments.pop("n_timesteps", None)
    run = Run(env_id, agent, preset, seed, arguments, parse_settings(env_settings), n_envs)
    outcome = train_run(
        run,
        folder,
        steps or configured_steps,
        resume=resume is Resume.auto,
        checkpoint_every=checkpoint_every,
        validate_every=validate_every,
    )
    if outcome.interrupted_by is not None:
        errors.print(
            f"Stopped by {outcome.interrupted_by.name} at step {outcome.agent_steps}; the same "
            "command with --resume auto goes on.",
            soft_wrap=True,
        )
        raise typer.Exit(128 + outcome.interrupted_by)
    errors.print(f"{outcome.agent_steps} agent steps; the model is {folder / 'model.zip'}")


@app.command()
def benchmark(
    folder: Annotated[Path, typer.Argument(help="Where the runs lie; shared by all machines.")],
    suite: Annotated[str, typer.Option(help="easy, medium, hard, all or smoke.")] = "smoke",
    agent: Annotated[list[str] | None, typer.Option(help="Instead of the suite's.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Such as cheetah-run.")] = None,
    difficulty: Annotated[list[str] | None, typer.Option(help="easy, medium, hard.")] = None,
    distraction: Annotated[list[str] | None, typer.Option(help="static, dynamic.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="By default 0 to 4.")] = None,
    preset: Annotated[str | None, typer.Option(help=PRESET_HELP)] = None,
    simulator_steps: Annotated[int | None, typer.Option(help="By default 500,000.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="In simulator steps.")] = None,
    episodes: Annotated[int | None, typer.Option(help="Of an evaluation; by default 20.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster.")] = None,
    cpus: Annotated[float, typer.Option(min=0, help="Processors for a run.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs for a run; 0.25: four on each.")] = 0.0,
    shard: Annotated[
        str | None, typer.Option(help="i/n: run that slice here, one by one, without Ray.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Tell what it would take; run nothing.")] = False,
    price: Annotated[float, typer.Option(min=0, help="Of an hour of one run.")] = 0.0,
    status: Annotated[bool, typer.Option(help="Show how far the runs are; run nothing.")] = False,
) -> None:
    """Run agents × tasks × difficulties × seeds, and go on with what is unfinished.

    Every run has a folder of its own; the same command can be given again at any time.
    """
    from core_agent.table5.grid import get_suite, take_shard
    from core_agent.table5.status import draw_estimate, draw_table

    def chosen(values: list[Any] | None) -> tuple[Any, ...] | None:
        return tuple(values) if values else None

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
    console = Console()
    if dry_run:
        console.print(draw_estimate(jobs, folder, price))
    elif status:
        console.print(draw_table(jobs, folder))
    else:
        ended = run_benchmark(jobs, folder, shard is None, address, cpus, gpus, console)
        console.print(draw_table(jobs, folder))
        failed = [path for path, end in ended.items() if end == "failed"]
        for path in failed:
            errors.print(f"{path} failed; why is in its status.json", soft_wrap=True)
        if failed:
            raise typer.Exit(1)


def run_benchmark(
    jobs: list[Job],
    folder: Path,
    on_ray: bool,
    address: str | None,
    cpus: float,
    gpus: float,
    console: Console,
) -> dict[Path, str]:
    """Do the jobs, by Ray or here, with a table that follows them; how each ended."""
    from rich.live import Live

    from core_agent.table5.cluster import run_on_ray
    from core_agent.table5.grid import RunInterruptedError, run_job
    from core_agent.table5.status import draw_table

    if on_ray:
        with Live(draw_table(jobs, folder), console=console, auto_refresh=False) as live:

            def watch() -> None:
                live.update(draw_table(jobs, folder), refresh=True)

            return run_on_ray(jobs, folder, address, cpus, gpus, watch)
    ended = {}
    for number, job in enumerate(jobs, start=1):
        path = job.folder(folder)
        console.print(f"{number} of {len(jobs)}: {path}", soft_wrap=True)
        try:
            ended[path] = run_job(job, folder, progress=True)
        except RunInterruptedError as error:
            errors.print(f"{error}; the same command goes on.", soft_wrap=True)
            raise typer.Exit(128 + error.signal) from None
    return ended


@app.command()
def evaluate(
    model_path: ModelPath,
    env_id: EnvId,
    episodes: Episodes = 20,
    seed: Seed = 0,
    split: Split = "val",
    preset: Annotated[str, typer.Option(help="Preset that the model was trained with.")] = "paper",
    env_settings: EnvSettings = None,
    stochastic: Annotated[bool, typer.Option(help="Sample actions.")] = False,
) -> None:
    """Play whole episodes with a saved model and print the mean return."""
    from core_agent import load_agent
    from core_agent.runs.evaluation import play, summarize
    from core_agent.runs.training import make_environment

    path = existing(model_path)
    with closing(make_environment(env_id, preset, split, parse_settings(env_settings))) as env:
        statistics = summarize(play(env, load_agent(path), episodes, not stochastic, seed))
        random_return = summarize(play(env, None, episodes, seed=seed)).mean
    table = Table(title=f"{env_id}, {split} videos, {episodes} episodes")
    for column in ("mean return", "standard error", "random actions"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{statistics.mean:.1f}", f"{statistics.standard_error:.1f}", f"{random_return:.1f}"
    )
    Console().print(table)


@app.command()
def record(
    model_path: ModelPath,
    env_id: EnvId,
    output: Annotated[Path, typer.Option(help="The video.")] = Path("agent.mp4"),
    seed: Seed = 0,
    split: Split = "val",
    preset: Annotated[str, typer.Option(help="Preset that the model was trained with.")] = "paper",
    env_settings: EnvSettings = None,
) -> None:
    """Write a video of one episode."""
    from core_agent import load_agent
    from core_agent.runs.evaluation import play
    from core_agent.runs.training import make_environment
    from core_agent.runs.video import write_mp4

    path = existing(model_path)
    with closing(make_environment(env_id, preset, split, parse_settings(env_settings))) as env:
        result = play(env, load_agent(path), 1, seed=seed, record=True)[0]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(output, result.frames, 15)
    Console().print(f"Return {result.episode_return:.1f}; video: {output}")


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders with TensorBoard logs.")],
    output: Annotated[Path, typer.Option(help="The picture.")] = Path("learning_curves.png"),
    tag: Annotated[str, typer.Option(help="What to draw.")] = "rollout/ep_rew_mean",
) -> None:
    """Draw a logged value of several runs, by default the training return, as one picture."""
    from core_agent.runs.plotting import plot_runs, read_scalars

    curves = {str(run): read_scalars(run, tag) for run in runs}
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_runs(output, tag, curves)
    Console().print(f"{tag} of {len(curves)} run(s): {output}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders that hold runs, at any depth.")],
    output: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
) -> None:
    """Show runs as one HTML page: curves, the paper's Table 5 beside them, statistics, videos."""
    from core_agent.table5.report import write_report

    n_runs = write_report(runs, output)
    Console().print(f"{n_runs} run(s): {output}")


@app.command()
def doctor() -> None:
    """Tell what works on this machine, and what to type where something does not."""
    from core_agent.doctor import examine, is_healthy

    console = Console()
    findings = []
    for finding in examine():
        findings.append(finding)
        mark = "[green]works[/]" if finding.works else "[red]fails[/]"
        console.print(f"{mark}  {finding.subject}: {finding.detail}", highlight=False)
        if not finding.works:
            console.print(f"       to mend it: {finding.remedy}", highlight=False, soft_wrap=True)
    if not is_healthy(findings):
        raise typer.Exit(1)


PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASS_ON)
def gallery(context: typer.Context) -> None:
    """Draw tasks and difficulties as one picture, and a video of dynamic distractions."""
    from core_agent.environments.suite import draw_gallery

    raise typer.Exit(draw_gallery(context.args))


@app.command(context_settings=PASS_ON)
def videos(context: typer.Context) -> None:
    """Get the DAVIS videos: core-agent videos download."""
    from core_agent.environments.suite import manage_videos

    raise typer.Exit(manage_videos(context.args))


def existing(path: Path) -> Path:
    """The path, if there is a file.

    :raises ValueError: if there is none
    """
    for candidate in (path, path.with_suffix(".zip")):
        if candidate.is_file():
            return candidate
    raise ValueError(f"model_path must be a saved model, got {str(path)!r}; there is no such file")


def main() -> None:
    """Run the command; a mistake of the user's ends in one line, not in a traceback."""
    try:
        app()
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
