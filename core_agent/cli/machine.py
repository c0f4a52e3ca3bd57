"""Commands about this machine: ``doctor``, ``videos``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core_agent.cli.options import AsJson, output, print_json

videos = typer.Typer(help="The background videos of the paper, DAVIS.", no_args_is_help=True)


def doctor(as_json: AsJson = False) -> None:
    """Check this machine; for everything that fails, print the command that fixes it."""
    from core_agent.doctor import examine, is_healthy

    findings = []
    for finding in examine():
        findings.append(finding)
        if as_json:
            continue
        mark = "[green]works[/]" if finding.works else "[red]fails[/]"
        output.print(f"{mark}  {finding.subject}: {finding.detail}", highlight=False)
        if not finding.works:
            output.print(f"       to fix it: {finding.remedy}", highlight=False, soft_wrap=True)
    if as_json:
        listed = [finding._asdict() for finding in findings]
        print_json({"healthy": is_healthy(findings), "findings": listed})
    if not is_healthy(findings):
        raise typer.Exit(1)


@videos.callback()
def about_videos() -> None:
    """Without a second command, ``download`` would be left out of the command line."""


@videos.command()
def download(
    folder: Annotated[
        Path | None, typer.Option(help="Parent folder; by default where environments look for it.")
    ] = None,
) -> None:
    """Download DAVIS 2017 (480p, 0.8 GB); an interrupted download is resumed."""
    from core_agent.environments.suite import download_videos

    root = download_videos(folder)
    output.print(f"DAVIS is in {root}", soft_wrap=True)
    if folder is not None:
        output.print(f"Use it with video_path={str(root)!r} or DCS_VIDEOS={root}", soft_wrap=True)
