"""The ``core-agent`` command. Each module has the commands of one kind."""

from __future__ import annotations

import errno
import sys
from typing import Annotated, NoReturn

import typer
from gymnasium.error import DependencyNotInstalled
from rich.markup import escape

import core_agent
from core_agent.cli.machine import doctor, videos
from core_agent.cli.models import evaluate, probe, record, watch
from core_agent.cli.options import errors
from core_agent.cli.pictures import gallery, plot, report
from core_agent.cli.runs import benchmark, demo, train
from core_agent.environments.suite import RenderingUnavailableError

app = typer.Typer(no_args_is_help=True)
TRAINING = (demo, train, benchmark)
OF_A_MODEL = (evaluate, record, watch, probe)
PICTURES = (plot, report, gallery)
for command in (*TRAINING, *OF_A_MODEL, *PICTURES, doctor):
    app.command()(command)
app.add_typer(videos, name="videos")


def say_version(is_asked: bool) -> None:
    """Print the version and end, if that is asked for."""
    if is_asked:
        sys.stdout.write(f"core-agent {core_agent.__version__}\n")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=say_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """CoRe: robot control from distracting pixels."""


USERS_MISTAKES = (
    ValueError,
    TypeError,
    ModuleNotFoundError,
    DependencyNotInstalled,
    RenderingUnavailableError,
)
"""Errors whose message is all that a user needs."""


def main() -> None:
    """Run the command; a mistake of the user's ends in one line, not in a traceback."""
    try:
        app()
    except USERS_MISTAKES as error:
        end(error)
    except OSError as error:
        # A file that cannot be read or written; other errors, such as of a pipe, are ours.
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        end(error)


def end(error: Exception) -> NoReturn:
    """Print an error as one line and end."""
    errors.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    sys.exit(2)
