"""Tasks of the dm_control suite, and what the distractions and spaces need to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from distracting_envs import upstream
from distracting_envs.quiet import quiet_model_compiler
from distracting_envs.rendering import prepare_rendering

prepare_rendering()  # before dm_control, which selects its backend when imported

from dm_control import suite  # noqa: E402


def load_task(domain: str, task: str) -> Any:
    """Return a task of the dm_control suite.

    :raises ValueError: if the suite has no such task
    """
    check_task(domain, task)
    with quiet_model_compiler():
        return suite.load(domain, task)


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
