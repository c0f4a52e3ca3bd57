"""The camera and colour wrappers of the ``distracting_control`` package, without ``gym``.

``import distracting_control`` imports the unmaintained ``gym``, which prints a notice to stderr in
every process, and registers several hundred environments with it. None of that is needed for the
wrappers. This module therefore poses as a package whose submodules lie in the folder of the
installed ``distracting_control``: its files are loaded unchanged, as
``distracting_envs.upstream.camera`` and so on, and its ``__init__`` never runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def _package_folders() -> list[str]:
    spec = importlib.util.find_spec("distracting_control")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(
            "the distracting_control package is missing: pip install distracting_control"
        )
    return list(spec.submodule_search_locations)


__path__ = _package_folders()

_camera: Any = importlib.import_module(f"{__name__}.camera")
_color: Any = importlib.import_module(f"{__name__}.color")
_suite_utils: Any = importlib.import_module(f"{__name__}.suite_utils")

DistractingCameraEnv = _camera.DistractingCameraEnv
DistractingColorEnv = _color.DistractingColorEnv
get_camera_kwargs = _suite_utils.get_camera_kwargs
get_color_kwargs = _suite_utils.get_color_kwargs

CAMERA_MODES: tuple[str, ...] = tuple(_camera.CAMERA_MODES)
"""MuJoCo's camera modes by number; the camera wrapper handles "fixed" and "trackcom"."""
