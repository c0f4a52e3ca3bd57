"""The arguments and options that several commands share, and where their output goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

output = Console()
errors = Console(stderr=True)

EnvId = Annotated[str, typer.Argument(help="Id of the environment, DCS-… or any registered one.")]
ModelPath = Annotated[Path, typer.Argument(help="A saved model (.zip), or the folder of a run.")]
LearnedIn = Annotated[
    str | None, typer.Argument(help="Environment id; default: the one that the model learned in.")
]
Episodes = Annotated[int, typer.Option(min=1, help="Number of episodes.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random generators.")]
Split = Annotated[str, typer.Option(help="Videos of a DCS environment: train or val.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="An agent argument as key=value (YAML); may be repeated."),
]
PRESET_HELP = (
    "paper, release, small (CPUs), vector (no images), debug (seconds), or an ablation such as "
    "core-gating; several joined with +, as in small+core-gating."
)
Presets = Annotated[str, typer.Option(help=PRESET_HELP)]
LearnedWith = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Preset whose environment arguments are used; default: that of the training.",
    ),
]
EnvSettings = Annotated[
    list[str] | None,
    typer.Option("--env-set", help="An environment argument as key=value (YAML); may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_json(content: Any) -> None:
    """Write JSON, and nothing else, to standard output."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
