"""The package as others get it: its wheel, an editable install and its metadata."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import core_agent

ROOT = Path(__file__).parents[1]
PACKAGES = ("core_agent", "distracting_envs")
REPOSITORY = "https://example.org/owner/core-agent"
PICTURES = ("gallery.png", "ball_in_cup.gif", "cartpole_seeds.png")
"""Of the README."""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Return what the command printed; a command that fails fails the test with its own words."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "", **environment},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


def pip(*arguments: object, cwd: Path, **environment: str) -> str:
    command = (sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)
    return run(*command, cwd=cwd, PIP_NO_INDEX="1", PIP_NO_INPUT="1", **environment)


def install(folder: Path, *arguments: object) -> Path:
    """The interpreter of a virtual environment with this one's libraries and what pip adds."""
    venv.create(folder, symlinks=True)
    # A path in a .pth file does not bring that path's own .pth files along, so an editable install
    # of the checkout stays out.
    paths = {"base": str(folder), "platbase": str(folder)}
    purelib = Path(sysconfig.get_path("purelib", vars=paths))
    (purelib / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    options = ("-q", "--no-deps", "--no-build-isolation", "--ignore-installed")
    pip("--python", python, "install", *options, *arguments, cwd=folder)
    return python


def locations(python: object, cwd: Path) -> dict[str, Path]:
    """Where an interpreter would import each package from, and a user's own folder ``envs``."""
    (cwd / "envs").mkdir()
    (cwd / "envs" / "__init__.py").touch()
    program = (
        "from importlib.util import find_spec\n"
        f"for name in {(*PACKAGES, 'envs')}: print(name, find_spec(name).origin)\n"
    )
    lines = run(python, "-c", program, cwd=cwd).splitlines()
    found = {name: Path(origin).resolve() for name, origin in map(str.split, lines)}
    assert found.pop("envs") == (cwd / "envs" / "__init__.py").resolve()
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is made from, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source").resolve()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "core_agent", copy / "core_agent", ignore=ignore)
    shutil.copytree(ROOT / "envs", copy / "envs", ignore=ignore)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = ("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", directory, source)
    pip(*command, cwd=directory, REPOSITORY=f"{REPOSITORY}/")
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_every_source_file_and_nothing_else(wheel: Path, source: Path) -> None:
    roots = {"core_agent": source, "distracting_envs": source / "envs"}
    expected = {
        str(path.relative_to(root))
        for name, root in roots.items()
        for path in (root / name).rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert {"core_agent/py.typed", "distracting_envs/py.typed"} <= packed


def test_editable_install_imports_from_the_sources(source: Path, tmp_path: Path) -> None:
    python = install(tmp_path / "venv", "-e", source)
    assert locations(python, tmp_path) == {
        "core_agent": source / "core_agent" / "__init__.py",
        "distracting_envs": source / "envs" / "distracting_envs" / "__init__.py",
    }


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment into which a user has installed the wheel."""
    return install(tmp_path_factory.mktemp("user") / "venv", wheel).parent


def test_what_the_wheel_requires_is_all_that_it_needs(installed: Path, tmp_path: Path) -> None:
    pip("--python", installed / "python", "check", cwd=tmp_path)
    where = locations(installed / "python", tmp_path)
    assert all(installed.parent.resolve() in path.parents for path in where.values())


DEMO = """
from pathlib import Path
from core_agent import demo
import distracting_envs.env
distracting_envs.env.EPISODE_STEPS = 200
cartpole = "DCS-cartpole-swingup-easy-dynamic"
demo.run_demo(Path("demo"), 0, 50, env_id=cartpole, preset_name="debug", n_random=1, n_validation=1)
"""
DEMO_FILES = {"learning_curve.png", "model.zip", "summary.json", "trained_and_random.mp4"}


def test_a_short_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert "demo" in run(installed / "core-agent", "--help", cwd=tmp_path)
    run(installed / "python", "-c", DEMO, cwd=tmp_path)
    assert {path.name for path in (tmp_path / "demo").iterdir()} >= DEMO_FILES


@pytest.mark.slow
def test_the_demo_command_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    command = (installed / "core-agent", "demo", "--steps", "1000", "--folder", "demo")
    run(*command, cwd=tmp_path)
    assert {path.name for path in (tmp_path / "demo").iterdir()} >= DEMO_FILES


def test_metadata_names_what_users_and_indexes_read(metadata: Message) -> None:
    assert metadata["Name"] == "core-agent"
    # In the metadata's own order.
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.13"}
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"cluster", "dev", "docs", "export", "hub", "report", "window", "zoo"} == set(
        metadata.get_all("Provides-Extra", [])
    )


def rendered(markdown: str) -> tuple[list[str], list[str], str]:
    """Pictures, links and HTML of a description as package indexes show it."""
    html = pytest.importorskip("readme_renderer.markdown").render(markdown)
    assert html is not None
    return re.findall(r'<img[^>]* src="([^"]*)"', html), re.findall(r'href="([^"]*)"', html), html


def test_an_index_shows_the_readme_with_its_pictures(metadata: Message) -> None:
    pictures, links, html = rendered(metadata.get_payload())
    assert pictures == [f"{REPOSITORY}/raw/HEAD/docs/images/{name}" for name in PICTURES]
    assert all(link.startswith(("https://", "#")) for link in links)
    assert f"{REPOSITORY}/blob/HEAD/docs/quickstart.md" in links
    assert "test:" not in html, "a comment for the tests is shown"
    for address in (*pictures, *links):
        path = re.match(f"{REPOSITORY}/(?:raw|blob)/HEAD/([^#]*)", address)
        assert path is None or (ROOT / path[1]).exists(), address


def test_without_an_address_an_index_shows_the_text_alone() -> None:
    for_index = runpy.run_path(str(ROOT / "setup.py"))["for_index"]
    pictures, links, html = rendered(for_index((ROOT / "README.md").read_text(), ""))
    assert not pictures
    assert "https://arxiv.org/abs/2112.01163" in links
    assert all(link.startswith(("https://", "#")) for link in links)
    assert "Quick start" in html


def test_version_is_the_same_everywhere(metadata: Message) -> None:
    version = metadata["Version"]
    assert core_agent.__version__ == version
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_requirements_admit_only_what_works(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist", [])
    assert "mujoco<4,>=3.17" in requirements
    assert "distracting_control==0.1.1rc3" in requirements
    # The two OpenCV packages overwrite each other's files; the headless one needs no window system.
    assert not any(line.startswith(("opencv-python>", "opencv-python=")) for line in requirements)


def test_constraints_name_versions_and_no_place_to_get_them_from() -> None:
    lines = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"
    ]
    assert all("==" in line and "/" not in line and not line.startswith("-") for line in lines)
    (torch,) = (line for line in lines if line.startswith("torch=="))
    assert "+" not in torch, "a local version would exclude every other build of PyTorch"
    assert not any(line.startswith("opencv-python==") for line in lines)


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments, one line each."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, " ".join(rest.split())) for name, rest in (line.split(" ", 1) for line in lines)]


def test_the_image_is_made_by_the_makefile() -> None:
    runs = " && ".join(arguments for name, arguments in instructions() if name == "RUN")
    steps = [step.split("make ", 1)[1].split() for step in runs.split("&&") if " make " in step]
    made = [target for step in steps for target in step]
    makefile = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
    assert {"setup", "gl"} <= set(made)
    assert all(f"\n{target}:" in makefile for target in made), made
    assert "pip install" not in runs


def test_the_image_copies_what_installing_needs_and_no_more() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "runs"} <= set(ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "core_agent", "envs"):
        assert not any(Path(name).match(pattern) for pattern in ignored), name
    for name, arguments in instructions():
        if name == "COPY":
            assert all((ROOT / source).exists() for source in arguments.split()[:-1])
