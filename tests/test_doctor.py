"""The findings on OpenGL."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from core_agent import doctor
from core_agent.doctor import Finding


@pytest.mark.parametrize(
    ("renderer", "kind"),
    [("llvmpipe (LLVM 15.0.6, 256 bits)", "software"), ("NVIDIA H100/PCIe/SSE2", "hardware")],
)
def test_rendering_names_the_renderer_and_the_device(monkeypatch, renderer, kind):
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, f"{renderer}\n", "")
    )
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "1")
    detail = doctor.check_rendering("egl").detail
    assert f"renders on {renderer} ({kind}" in detail
    assert "MUJOCO_EGL_DEVICE_ID=1" in detail


@pytest.mark.parametrize(
    ("version", "works"), [((3, 9), False), ((3, 10), True), ((3, 12, 9), True), ((3, 13), False)]
)
def test_pythons_that_dm_control_does_not_support_are_found(monkeypatch, version, works):
    monkeypatch.setattr("sys.version_info", version)
    finding = doctor.check_python()
    assert finding.works == works and "3.10 to 3.12" in finding.remedy


def test_the_remedy_for_egl_installs_what_make_gl_installs():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    (packages,) = re.findall(r"^GL_PACKAGES := (.*)$", makefile, re.MULTILINE)
    assert doctor.GL_REMEDIES["egl"].endswith(f" install -y {packages}")


def test_a_driver_that_hangs_is_found(monkeypatch):
    def hang(command, **arguments):
        raise subprocess.TimeoutExpired(command, arguments["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    finding = doctor.check_rendering("egl")
    assert not finding.works
    assert "within 120 seconds" in finding.detail and "MUJOCO_GL=osmesa" in finding.remedy


@pytest.mark.parametrize(
    ("working", "in_use", "fails"),
    [
        ("egl", "egl", set()),
        ("egl", "osmesa", {"osmesa"}),
        ("osmesa", "", set()),
        ("", "egl", {"egl", "osmesa"}),
    ],
)
def test_one_way_of_rendering_is_enough(monkeypatch, working, in_use, fails):
    monkeypatch.setenv("MUJOCO_GL", in_use)
    monkeypatch.setattr(doctor, "check_rendering", lambda name: Finding(name, name == working, ""))
    findings = list(doctor.check_backends())
    assert {finding.subject for finding in findings if not finding.works} == fails
    assert doctor.is_healthy(findings) == (not fails)
