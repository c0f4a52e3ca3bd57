"""Checks of this machine, with the command that fixes what does not work."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from core_agent.environments.suite import find_videos
from core_agent.networks.hardware import auto_precision

PACKAGES = (
    "torch",
    "stable-baselines3",
    "gymnasium",
    "mujoco",
    "dm-control",
    "shimmy",
    "distracting-control",
    "tensorboard",
)
RENDER = """
import mujoco
from OpenGL import GL
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().any()
    print(GL.glGetString(GL.GL_RENDERER).decode())
"""
SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast")
"""Prefixes of the names of Mesa's renderers that use no GPU."""
GL_REMEDIES = {
    "egl": "sudo apt-get update && "
    "sudo apt-get install -y libegl1 libgl1 libopengl0 libgl1-mesa-dri",
    "osmesa": "export MUJOCO_GL=egl; or, on systems before Mesa 25.1: "
    "sudo apt-get update && sudo apt-get install -y libosmesa6",
}


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    works: bool
    detail: str
    remedy: str = ""
    """The command that fixes it."""


def check_python() -> Finding:
    """The interpreter and the system."""
    works = (3, 10) <= sys.version_info < (3, 13)
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", works, detail, "use Python 3.10 to 3.12")


def check_packages() -> Iterator[Finding]:
    """The packages that the agents and environments depend on."""
    for name in PACKAGES:
        try:
            yield Finding(name, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", f"pip install {name}")


def check_rendering(backend: str) -> Finding:
    """Whether MuJoCo renders with ``MUJOCO_GL=backend``, and on what; in a process of its own."""
    chosen = " (in use)" if os.environ.get("MUJOCO_GL") == backend else ""
    subject = f"OpenGL, {backend}{chosen}"
    try:
        result = subprocess.run(
            [sys.executable, "-c", RENDER],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        other = "osmesa" if backend == "egl" else "egl"
        remedy = f"update the graphics driver, or export MUJOCO_GL={other}"
        return Finding(subject, False, "does not render within 120 seconds", remedy)
    if result.returncode != 0:
        last_line = (result.stderr.strip().splitlines() or ["crashed"])[-1]
        return Finding(subject, False, last_line, GL_REMEDIES[backend])
    renderer = (result.stdout.strip().splitlines() or ["unknown"])[-1]
    kind = "software, no GPU" if renderer.startswith(SOFTWARE_RENDERERS) else "hardware"
    detail = f"renders on {renderer} ({kind})"
    if backend == "egl":
        device = os.environ.get("MUJOCO_EGL_DEVICE_ID")
        detail += ", device " + (
            "the first that works" if device is None else f"MUJOCO_EGL_DEVICE_ID={device}"
        )
    return Finding(subject, True, detail)


def check_backends() -> Iterator[Finding]:
    """EGL and OSMesa; a failure does not count if that one is not in use and the other works."""
    both = {name: check_rendering(name) for name in ("egl", "osmesa")}
    for name, finding in both.items():
        other = next(each for each in both if each != name)
        is_needed = os.environ.get("MUJOCO_GL") == name or not both[other].works
        if not finding.works and not is_needed:
            detail = f"does not render, and is not needed: {other} works"
            finding = Finding(finding.subject, True, detail)
        yield finding


def check_gpu() -> Finding:
    """The GPU that ``device="auto"`` takes, if there is one."""
    if torch.cuda.is_available():
        return Finding("GPU", True, torch.cuda.get_device_name())
    return Finding("GPU", True, 'none: device="auto" is the CPU; preset("small") is made for it')


def check_precision() -> Finding:
    """The number format that ``precision="auto"`` chooses, and why."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision, reason = auto_precision(device)
    return Finding("precision", True, f'"auto" is {precision} on {device.type}: {reason}')


def check_videos() -> Finding:
    """Which background videos the environments show."""
    try:
        path = find_videos()
    except ValueError as error:
        return Finding("videos", False, str(error), "unset DCS_VIDEOS or correct it")
    if path is None:
        detail = "built-in clips; for the paper's DAVIS: core-agent videos download"
        return Finding("videos", True, detail)
    return Finding("videos", True, str(path))


def examine() -> Iterator[Finding]:
    """Check everything, one finding after the other."""
    yield check_python()
    yield from check_packages()
    yield from check_backends()
    others: tuple[Callable[[], Finding], ...] = (check_gpu, check_precision, check_videos)
    for check_one in others:
        yield check_one()


def is_healthy(findings: list[Finding]) -> bool:
    """Whether everything needed works: the chosen way of rendering, or one if none is chosen."""
    return all(finding.works for finding in findings)
