"""Commands that draw: ``plot``, ``report``, ``gallery``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core_agent.cli.options import Seed, output


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders that hold runs, at any depth.")],
    picture: Annotated[Path, typer.Option("--output", help="The picture.")] = Path(
        "learning_curves.png"
    ),
    tag: Annotated[
        str, typer.Option(help="TensorBoard tag to draw, or validation for the runs of benchmark.")
    ] = "rollout/ep_rew_mean",
) -> None:
    """Draw a logged value (default: training return), one curve per run and one panel per task."""
    from core_agent.runs.plotting import plot_runs, read_curves

    panels = read_curves(runs, tag)
    plot_runs(picture, tag, panels)
    n_curves = sum(map(len, panels.values()))
    output.print(f"{tag} of {n_curves} run(s): {picture}", soft_wrap=True)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders that hold runs, at any depth.")],
    page: Annotated[Path, typer.Option("--output", help="The page.")] = Path("report.html"),
) -> None:
    """Show runs as one HTML page: curves, the paper's Table 5, statistics, videos."""
    from core_agent.table5.report import write_report

    n_runs = write_report(runs, page)
    output.print(f"{n_runs} run(s): {page}", soft_wrap=True)


def gallery(
    picture: Annotated[Path, typer.Option(help="File to write, .png.")] = Path("gallery.png"),
    video: Annotated[Path, typer.Option(help="File to write, .gif or .mp4.")] = Path(
        "distractions.gif"
    ),
    difficulty: Annotated[
        str, typer.Option(help="easy, medium or hard; for the video.")
    ] = "medium",
    video_path: Annotated[
        Path | None, typer.Option(help="Folder of clips; by default DAVIS or the built-in ones.")
    ] = None,
    seed: Seed = 1,
) -> None:
    """Draw tasks and difficulties as one picture, and a video of dynamic distractions."""
    from core_agent.environments.suite import draw_gallery

    draw_gallery(picture, video, difficulty, video_path, seed)
    output.print(f"wrote {picture} and {video}", soft_wrap=True)
