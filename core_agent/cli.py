"""The ``core-agent`` command."""

from __future__ import annotations

import sys
from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Resume(str, Enum):
    """Whether ``train`` continues the run in its folder."""

    never = "never"
    auto = "auto"


app = typer.Typer(
    help="CoRe: robot control from distracting pixels.", no_args_is_help=True, add_completion=True
)
errors = Console(stderr=True)

EnvId = Annotated[str, typer.Argument(help="Id of the environment, DCS-… or any registered one.")]
ModelPath = Annotated[Path, typer.Argument(help="A saved model (.zip), or the folder of a run.")]
LearnedIn = Annotated[
    str | None, typer.Argument(help="Id of the environment; by default where the model learned.")
]
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
LearnedWith = Annotated[
    str | None, typer.Option("--preset", help="By default the one that the model learned with.")
]
EnvSettings = Annotated[
    list[str] | None,
    typer.Option("--env-set", help="An argument of the environment as key=value (YAML)."),
]


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/demo"),
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
        int, typer.Option(min=0, help="Agent steps between checkpoints; 0: at the end alone.")
    ] = 10_000,
    n_envs: Annotated[int, typer.Option(min=1, help="Environments, each in its own process.")] = 1,
    resume: Annotated[
        Resume, typer.Option(help="auto: continue from the folder's newest complete checkpoint.")
    ] = Resume.never,
) -> None:
    """Train an agent; write the model, its log, validations and checkpoints to a folder.

    SIGTERM and SIGINT (Ctrl-C) write a checkpoint first.
    """
    from core_agent.runs.settings import parse_settings, read_config
    from core_agent.runs.training import Run, train_run
    from core_agent.table5.estimate import announce

    arguments = {**read_config(config, env_id), **parse_settings(settings)}
    configured_steps = arguments.pop("n_timesteps", None)
    run = Run(env_id, agent, preset, seed, arguments, parse_settings(env_settings), n_envs)
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


@app.command()
def benchmark(
    folder: Annotated[Path, typer.Argument(help="Where the runs are; shared by all machines.")],
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
    dry_run: Annotated[bool, typer.Option(help="Say what it would take; run nothing.")] = False,
    price: Annotated[float, typer.Option(min=0, help="Of an hour of one run.")] = 0.0,
    status: Annotated[bool, typer.Option(help="Show how far the runs are; run nothing.")] = False,
) -> None:
    """Run agents × tasks × difficulties × seeds, and continue what is unfinished.

    Every run has a folder of its own; the same command can be given again at any time.
    """
    from core_agent.table5.estimate import draw_estimate
    from core_agent.table5.grid import draw_table, get_suite, take_shard

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
    jobs: list[Any],
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
    from core_agent.table5.grid import RunInterruptedError, draw_table, run_job

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
            errors.print(f"{error}; the same command continues.", soft_wrap=True)
            raise typer.Exit(128 + error.signal) from None
    return ended


@app.command()
def evaluate(
    path: ModelPath,
    env_id: LearnedIn = None,
    episodes: Episodes = 20,
    seed: Seed = 0,
    split: Split = "val",
    preset: LearnedWith = None,
    env_settings: EnvSettings = None,
    stochastic: Annotated[bool, typer.Option(help="Sample actions.")] = False,
) -> None:
    """Play complete episodes with a saved model and print the mean return."""
    from core_agent.agents.registry import load_agent
    from core_agent.environments.suite import first_seed
    from core_agent.runs.evaluation import play, summarize
    from core_agent.runs.settings import parse_settings
    from core_agent.runs.training import evaluation_environment

    model, first = load_agent(path), first_seed(seed, split=split)
    arguments = (env_id, preset, split, parse_settings(env_settings))
    with closing(evaluation_environment(model.origin, *arguments)) as env:
        statistics = summarize(play(env, model, episodes, not stochastic, first))
        random_return = summarize(play(env, None, episodes, seed=first)).mean
        name = env.spec.id if env.spec else env_id
    columns = ("mean return", "standard error", "random actions")
    table = Table(*columns, title=f"{name}, {split} videos, {episodes} episodes")
    table.add_row(*(f"{value:.1f}" for value in (*statistics[:2], random_return)))
    Console().print(table)


@app.command()
def record(
    path: ModelPath,
    env_id: LearnedIn = None,
    output: Annotated[Path, typer.Option(help="The video.")] = Path("agent.mp4"),
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
    from core_agent.runs.video import write_mp4

    model, first = load_agent(path), first_seed(seed, split=split)
    arguments = (env_id, preset, split, parse_settings(env_settings))
    with closing(evaluation_environment(model.origin, *arguments)) as env:
        result = play(env, model, 1, seed=first, record=True)[0]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(output, result.frames, 15)
    Console().print(f"Return {result.episode_return:.1f}; video: {output}")


@app.command()
def watch(
    env_id: Annotated[
        str | None, typer.Argument(help="Of a trained agent; none: list them.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The video, without a window.")] = Path("watch.mp4"),
    seed: Seed = 0,
    window: Annotated[bool, typer.Option(help="Show it in a window, which needs pygame.")] = False,
) -> None:
    """Show a trained agent that comes with the package, its clean twin next to it."""
    from core_agent import trained

    if env_id is None:
        Console().print("\n".join(trained.trained_names()) or "no trained agent is installed")
        return
    total = trained.watch(env_id, output, seed, window)
    Console().print(
        f"Return {total:.1f}" + ("" if window else f"; video: {output}"), soft_wrap=True
    )


@app.command()
def probe(
    path: ModelPath,
    env_id: LearnedIn = None,
    episodes: Annotated[int, typer.Option(min=2, help="Episodes that the map is fitted to.")] = 24,
    preset: LearnedWith = None,
    seed: Seed = 0,
) -> None:
    """Print how much of the simulator's state a linear map reads from the latent state (R²)."""
    from core_agent.agents.registry import load_agent
    from core_agent.runs.probe import probe as fit
    from core_agent.runs.training import evaluation_environment

    model = load_agent(path)
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
    Console().print(table)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders with TensorBoard logs.")],
    output: Annotated[Path, typer.Option(help="The picture.")] = Path("learning_curves.png"),
    tag: Annotated[str, typer.Option(help="The value to draw.")] = "rollout/ep_rew_mean",
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
    """Show runs as one HTML page: curves, the paper's Table 5, statistics, videos."""
    from core_agent.table5.report import write_report

    n_runs = write_report(runs, output)
    Console().print(f"{n_runs} run(s): {output}")


@app.command()
def doctor() -> None:
    """Check this machine, and say what to type for what does not work."""
    from core_agent.doctor import examine, is_healthy

    console = Console()
    findings = []
    for finding in examine():
        findings.append(finding)
        mark = "[green]works[/]" if finding.works else "[red]fails[/]"
        console.print(f"{mark}  {finding.subject}: {finding.detail}", highlight=False)
        if not finding.works:
            console.print(f"       to fix it: {finding.remedy}", highlight=False, soft_wrap=True)
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


def main() -> None:
    """Run the command; a mistake of the user's ends in one line, not in a traceback."""
    try:
        app()
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
