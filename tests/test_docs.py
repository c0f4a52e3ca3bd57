"""Every block of code in the documentation is run or checked, page by page.

The Python blocks of a page are executed one after the other in an empty folder. Blocks for the
shell go through bash, which lists the commands instead of running them; then each program must
exist and accept the options. A comment before a block gives instructions::

    <!-- test: run; 2_000 => 60; "small" => "debug" -->

``a => b`` replaces one text with another, to make the block small; the text must be there. ``run``
also runs the commands of a block for the shell. ``alone`` leaves a block to a test of its own.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from core_agent import CoRe, cli
from core_agent.runs.settings import read_config
from core_agent.table5.paper import (
    DIFFICULTIES,
    DISTRACTIONS,
    METHODS,
    PAPER_STEPS,
    TASKS,
    PaperResult,
    Setting,
    read_table5,
)
from distracting_envs.env import DistractingControlEnv
from tests.fake_hub import hub  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "envs" / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- test: (?P<remark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
LANGUAGES = {"bash", "math", "python", "yaml"}
ELSEWHERE = {"hf", "mkdir", "rm", "sbatch", "squeue", "srun", "sudo", "tar", "tensorboard"}
"""Programs of others, which are not checked."""
LIST_COMMANDS = """
command_not_found_handle() { printf '%s\\037' "$@" >> "$COMMANDS"; printf '\\036' >> "$COMMANDS"; }
"""
MAKEFILE = (ROOT / "Makefile").read_text()
MAKE_TARGETS = re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.M)

EXTRAS = re.findall(
    r"^(\w+) = \[",
    (ROOT / "pyproject.toml")
    .read_text()
    .split("[project.optional-dependencies]")[1]
    .split("\n[")[0],
    re.M,
)


class Block(NamedTuple):
    """A fenced block and the instructions of the comment before it."""

    page: Path
    line: int
    language: str
    text: str
    replacements: tuple[tuple[str, str], ...] = ()
    runs: bool = False
    alone: bool = False

    def made_tiny(self) -> str:
        """The text with its replacements."""
        text = self.text
        for old, new in self.replacements:
            assert old in text, f"{self.page}:{self.line}: {old!r} is not in the block"
            text = text.replace(old, new)
        return text


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    markdown = page.read_text()
    blocks = []
    for match in BLOCK.finditer(markdown):
        line = markdown[: match.start("text")].count("\n")
        pairs, words = [], set()
        for remark in filter(None, (match["remark"] or "").split("; ")):
            if " => " in remark:
                pairs.append(tuple(remark.split(" => ")))
            else:
                assert remark in ("run", "alone"), f"{page}:{line}: {remark}"
                words.add(remark)
        block = Block(page, line, match["language"], match["text"], tuple(pairs))  # type: ignore[arg-type]
        blocks.append(block._replace(runs="run" in words, alone="alone" in words))
    return blocks


def listed(text: str, folder: Path) -> list[list[str]]:
    """The commands of a block for the shell, split by bash into arguments and not run."""
    home = folder / "home"
    activate = home / "core-agent" / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True, exist_ok=True)
    activate.touch()
    commands = folder / "commands"
    commands.write_text("")
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "70", "SLURM_CPUS_PER_TASK": "4"}
    result = subprocess.run(
        [shutil.which("bash") or "bash", "-c", LIST_COMMANDS + text],
        env={"PATH": str(folder / "empty"), "HOME": str(home), "COMMANDS": str(commands), **slurm},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and not result.stderr, result.stderr
    entries = commands.read_text().split("\036")[:-1]
    return [entry.split("\037")[:-1] for entry in entries]


def without_launcher(command: list[str]) -> list[str]:
    """The command that ``srun`` starts."""
    return command[1:] if command[0] == "srun" else command


def all_commands(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The place of each command of the documentation, and the command."""
    for page in PAGES:
        for block in read_blocks(page):
            if block.language == "bash":
                for command in listed(block.text, folder):
                    yield f"{page.name}:{block.line}", without_launcher(command)


# ---- do these programs take these options? ----


def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every ``argparse`` program exit with code 0 after it has parsed its options."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_leave(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)


def check_core_agent(arguments: list[str]) -> None:
    group: Any = typer.main.get_command(cli.app)
    while True:
        name, *arguments = arguments
        command = group.commands[name]
        if not hasattr(command, "commands"):
            command.make_context(name, arguments).close()
            return
        group = command


def start_module(arguments: list[str]) -> None:
    importlib.import_module(arguments[1]).main(arguments[2:])


def start_script(arguments: list[str]) -> None:
    sys.argv[:] = arguments
    runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


def check_python(arguments: list[str]) -> None:
    """``python -m module …`` and ``python script.py …``; rl-zoo has a separate test."""
    if arguments[:2] == ["-m", "core_agent.zoo"]:
        return
    start = start_module if arguments[0] == "-m" else start_script
    with pytest.raises(SystemExit, match=r"^0$"):
        start(arguments)


def check_make(arguments: list[str]) -> None:
    """Targets exist, and so do variables."""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        assert f"\n{name} " in MAKEFILE if equals else name in MAKE_TARGETS


def check_pip(arguments: list[str]) -> None:
    """Extras exist, and so do files of constraints."""
    for extras in re.findall(r"(?:\.|core-agent)\[([\w,]+)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= set(EXTRAS)
    for option, value in zip(arguments, arguments[1:]):
        assert option != "-c" or (ROOT / value).is_file()


def check_ray(arguments: list[str]) -> None:
    if importlib.util.find_spec("ray") is not None:
        command = importlib.import_module("ray.scripts.scripts").cli.commands[arguments[0]]
        command.make_context(arguments[0], arguments[1:]).close()


def check_docker(arguments: list[str]) -> None:
    """Arguments of a build are those of the Dockerfile; what a container runs is a command."""
    if arguments[0] == "build":
        for option, value in zip(arguments, arguments[1:]):
            name = value.partition("=")[0]
            assert option != "--build-arg" or f"\nARG {name}=" in (ROOT / "Dockerfile").read_text()
    else:
        (image,) = (i for i, value in enumerate(arguments) if value.startswith("core-agent"))
        check_core_agent(arguments[image + 1 :])


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "core-agent": check_core_agent,
    "docker": check_docker,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "ray": check_ray,
}


def test_commands_exist_and_take_their_options(tmp_path, monkeypatch):
    parse_only(monkeypatch)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    # Benchmarks import each other from their own folder.
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for place, (program, *arguments) in all_commands(tmp_path):
        if program not in ELSEWHERE:
            assert program in CHECKS, f"{place}: {program} has no check"
            try:
                CHECKS[program](arguments)
            except BaseException as error:
                pytest.fail(f"{place}: {program} {arguments} fails: {error!r}")


@pytest.mark.skipif(
    importlib.util.find_spec("rl_zoo3") is None, reason="needs rl_zoo3: pip install -e '.[zoo]'"
)
def test_commands_of_rl_zoo_take_their_options(tmp_path):
    prefix = ["python", "-m", "core_agent.zoo"]
    commands = [rest for _, [*rest] in all_commands(tmp_path) if rest[:3] == prefix]
    assert commands
    # rl-zoo patches Gymnasium when it is imported, so it gets its own process.
    program = (
        "import json, sys, pytest; from tests.test_docs import parse_only; "
        "from core_agent.zoo import main; parse_only(pytest.MonkeyPatch())\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as ending: assert ending.code == 0, arguments"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps([command[3:] for command in commands])],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'envs'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


# ---- do these blocks run? ----

RUNNABLE = [
    page
    for page in PAGES
    if any(block.language == "python" or block.runs for block in read_blocks(page))
]


@pytest.fixture
def _environments_closed():
    """Free OpenGL contexts in this thread; the garbage collector may run in another."""
    yield
    for thing in gc.get_objects():
        if issubclass(type(thing), DistractingControlEnv):
            thing.close()


@pytest.mark.usefixtures("_environments_closed")
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run_one_after_the_other(page, tmp_path, monkeypatch, request):
    # Four agent steps with the instructions' action_repeat=10.
    monkeypatch.setattr("distracting_envs.env.EPISODE_STEPS", 40)
    if "core_agent.hub" in page.read_text():
        request.getfixturevalue("hub")
    work, aside = tmp_path / "work", tmp_path / "aside"
    work.mkdir(), aside.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("WANDB_MODE", "offline")
    variables = {"__name__": "__main__"}
    for block in read_blocks(page):
        if block.alone:
            continue
        if block.language == "python":
            place = "\n" * block.line + block.made_tiny()
            exec(compile(place, str(page), "exec"), variables)
        elif block.runs:
            for program, *arguments in listed(block.made_tiny(), aside):
                assert program == "core-agent"
                result = CliRunner().invoke(cli.app, arguments)
                assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_weights_and_biases_gets_what_is_logged(tmp_path):
    (block,) = (block for block in read_blocks(ROOT / "docs" / "training.md") if block.alone)
    # wandb changes TensorBoard's writers, so it gets its own process.
    result = subprocess.run(
        [sys.executable, "-c", block.made_tiny()],
        env={**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": f"{ROOT}:{ROOT / 'envs'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (history,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    logged = history.read_bytes()
    for name in ("rollout/ep_rew_mean", "train/model_loss", "train/critic_loss"):
        assert name.encode() in logged, name


def test_configurations_name_arguments_of_the_agent(tmp_path):
    blocks = [block for page in PAGES for block in read_blocks(page) if block.language == "yaml"]
    assert blocks
    for block in blocks:
        path = tmp_path / "my.yml"
        path.write_text(block.text)
        for env_id in yaml.safe_load(block.text):
            arguments = read_config(path, env_id)
            del arguments["n_timesteps"]
            inspect.signature(CoRe).bind_partial(**arguments)


def read_rows(markdown: str, first: str) -> Iterator[list[list[str]]]:
    """The cells below the headings of each table whose first heading is ``first``."""
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        heading, _, *rows = (
            [c.strip() for c in line.split("|")[1:-1]] for line in table.split("\n")[:-1]
        )
        if heading[0] == first:
            yield rows


def as_written(result: PaperResult | None) -> str:
    return "–" if result is None else f"{result.mean:.0f} ± {result.standard_error:.0f}"


def test_the_papers_figures_are_those_of_table_5():
    page, table = (ROOT / "docs" / "reproduction.md").read_text(), read_table5()
    tasks = ("mean", *TASKS)
    for steps, rows in zip(PAPER_STEPS, read_rows(page, "setting"), strict=True):
        for name, *cells in rows:
            settings = [Setting(task, *name.split(", ")) for task in tasks]
            assert cells == [as_written(table[each, "CoRe", steps]) for each in settings]
    settings = [Setting("mean", *each) for each in itertools.product(DIFFICULTIES, DISTRACTIONS)]
    for name, *cells in next(read_rows(page, "agent")):
        method = name.replace(" + ", "+")
        assert method in METHODS.values()
        assert cells == [as_written(table.get((each, method, 500_000))) for each in settings]


def test_every_block_is_of_a_kind_that_is_tested():
    for page in PAGES:
        for block in read_blocks(page):
            assert block.language in LANGUAGES, f"{page}:{block.line}"
        assert page.read_text().count("\n```") == 2 * len(read_blocks(page)), page


# ---- the website ----


class Loaded(HTMLParser):
    """The addresses that a browser loads with a page, in ``urls``."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.urls.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.urls.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="needs MkDocs: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    # In its own process: MkDocs' libraries emit warnings.
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_the_website_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list(ROOT.glob("docs/**/*.md")))
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.urls
        assert not [url for url in loaded.urls if url.startswith(("http", "//"))], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", sheet.read_text()), sheet


def test_every_picture_of_the_website_is_there(site):
    shown = 0
    for page in site.rglob("*.html"):
        for picture in re.findall(r'<img[^>]* src="([^"]+)"', page.read_text()):
            assert picture.startswith("data:") or (page.parent / picture).is_file(), (page, picture)
            shown += 1
    assert shown > 3


def test_references_in_docstrings_become_links(site):
    pages = [path.read_text() for path in site.glob("api/*.html")]
    assert not re.findall(
        r":(?:class|meth|func|data|mod|attr|param|raises|return)\b", "".join(pages)
    )
    assert any('href="#core_agent.RecurrentSAC"' in page for page in pages)


def test_formulas_and_the_drawing_are_in_the_page(site):
    html = (site / "concepts.html").read_text()
    n_formulas = (ROOT / "docs" / "concepts.md").read_text().count("```math")
    assert html.count('class="formula" role="img"') == n_formulas
    assert '<div class="drawing" role="img" aria-label="How one step of CoRe works"><svg' in html
