"""The ``distracting_control`` package itself, patched to run: for tests and benchmarks only."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distracting_envs.quiet import quiet_model_compiler
from distracting_envs.rendering import prepare_rendering
from distracting_envs.settings import DISTRACTIONS, FRAME_HEIGHT, FRAME_WIDTH


@contextlib.contextmanager
def patched_original() -> Iterator[Any]:
    """Context with the package's ``suite`` module, in which ``MjModel.tex_rgb`` exists.

    MuJoCo 3.2 renamed the field to ``tex_data``.
    """
    prepare_rendering()
    from dm_control.mujoco.wrapper.core import MjModel

    with contextlib.redirect_stderr(io.StringIO()):  # gym's notice
        suite = importlib.import_module("distracting_control.suite")
    MjModel.tex_rgb = property(lambda model: model.tex_data)
    try:
        yield suite
    finally:
        del MjModel.tex_rgb


def load_original(
    suite: Any,
    domain: str,
    task: str,
    difficulty: str,
    *,
    dynamic: bool,
    frames_folder: Path,
    seed: int,
    split: str = "train",
) -> Any:
    """Return the package's environment, with all of its random numbers from one seed.

    :param suite: module from :func:`patched_original`
    :param frames_folder: DAVIS's ``JPEGImages/480p``, or a folder laid out like it
    """
    with quiet_model_compiler():
        return suite.load(
            domain,
            task,
            difficulty=difficulty,
            dynamic=dynamic,
            background_dataset_path=str(frames_folder),
            background_dataset_videos=split,
            distraction_types=DISTRACTIONS,
            distraction_seed=seed,
            task_kwargs={"random": seed},
            render_kwargs={"height": FRAME_HEIGHT, "width": FRAME_WIDTH, "camera_id": 0},
        )
