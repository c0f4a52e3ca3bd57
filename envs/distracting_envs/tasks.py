"""Tasks of the dm_control suite, and what the distractions and spaces need to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from distracting_envs import upstream
from distracting_envs.checks import (
    check_boolean,
    check_choice,
    check_number,
    check_path,
    check_subset,
    check_whole,
)
from distracting_envs.quiet import quiet_model_compiler
from distracting_envs.rendering import prepare_rendering
from distracting_envs.settings import (
    DIFFICULTIES,
    DISTRACTIONS,
    RENDER_QUALITIES,
    SPLITS,
)

prepare_rendering()  # before dm_control, which selects its backend when imported

from dm_control import suite  # noqa: E402


def load_task(domain: str, task: str) -> Any:
    """Return a task of the dm_control suite, with a random generator that has no seed yet.

    What a task draws when it is made (the springs of lqr) is the same each time.

    :raises ValueError: if the suite has no such task
    """
    check_task(domain, task)
    with quiet_model_compiler():
        loaded = suite.load(domain, task, task_kwargs={"random": 0})
    loaded.task._random = np.random.RandomState()
    return loaded


def check_task(domain: str, task: str) -> None:
    """Raise a ValueError unless the dm_control suite has such a task."""
    are_names = isinstance(domain, str) and isinstance(task, str)
    if not are_names or (domain, task) not in suite.ALL_TASKS:
        known = [f"{a}-{b}" for a, b in suite.ALL_TASKS if are_names and a == domain]
        raise ValueError(
            f"domain and task must name a task of the dm_control suite, got {domain!r} and "
            f"{task!r}; "
            + (f"tasks of {domain}: {', '.join(known)}" if known else "see dm_control.suite")
        )


def check_arguments(
    domain: Any,
    task: Any,
    difficulty: Any,
    dynamic: Any,
    split: Any,
    video_path: Any,
    distractions: Any,
    scale: Any,
    n_clips: Any,
    action_repeat: Any,
    image_size: Any,
    vector_observations: Any,
    render_mode: Any,
    render_quality: Any,
    memory_cache_gb: Any,
    disk_cache_gb: Any,
) -> None:
    """Check the arguments of :class:`~distracting_envs.env.DistractingControlEnv`.

    :raises ValueError: naming the first one that breaks its rule
    """
    check_task(domain, task)
    check_choice("difficulty", difficulty, (None, *DIFFICULTIES))
    check_boolean("dynamic", dynamic)
    check_path("video_path", video_path)
    check_boolean("vector_observations", vector_observations)
    check_choice("split", split, SPLITS)
    check_choice("render_mode", render_mode, (None, "rgb_array"))
    check_choice("render_quality", render_quality, RENDER_QUALITIES)
    check_subset("distractions", distractions, DISTRACTIONS)
    check_whole("image_size", image_size)
    check_number("memory_cache_gb", memory_cache_gb)
    check_number("disk_cache_gb", disk_cache_gb)
    if action_repeat is not None:
        check_whole("action_repeat", action_repeat)
    if scale is not None:
        check_number("scale", scale, high=1.0)
    if n_clips is not None:
        check_whole("n_clips", n_clips)
    all_or_some = None if set(distractions) == set(DISTRACTIONS) else distractions
    for name, value in (("dynamic", dynamic), ("distractions", all_or_some)):
        if value and difficulty is None and scale is None:
            raise ValueError(f"{name} must come with a difficulty or a scale, got {value!r} alone")


def check_camera_mode(physics: Any, task: str) -> None:
    """Refuse tasks whose first camera the camera wrapper cannot move.

    :raises ValueError: if the camera is neither fixed nor tracking a centre of mass
    """
    mode = upstream.CAMERA_MODES[physics.model.cam_mode[0]]
    if mode not in {"fixed", "trackcom"}:
        raise ValueError(
            f"distractions must not hold 'camera' for {task}, whose camera has the mode {mode!r}; "
            'leave it out, as in distractions=("background", "color")'
        )


def vector_spaces(observation_spec: Mapping[str, Any]) -> dict[str, spaces.Space[Any]]:
    """Return the spaces of a task's own observations as vectors, by name."""
    return {
        name: spaces.Box(-np.inf, np.inf, (int(np.prod(spec.shape)),), np.float32)
        for name, spec in observation_spec.items()
    }


def finite_bounds(spec: Any) -> tuple[Any, Any]:
    """Return the bounds to which actions are scaled, or None twice if they need no scaling.

    All tasks of the paper have actions in [-1, 1]; a few others of the suite do not. Actions of
    unbounded actuators (lqr) are not scaled.
    """
    low, high = spec.minimum, spec.maximum
    unbounded = bool((np.abs(low) >= 1e9).any())
    if unbounded or ((low == -1).all() and (high == 1).all()):
        return None, None
    return low, high
