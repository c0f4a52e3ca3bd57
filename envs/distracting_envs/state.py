"""Saving and restoring an environment's exact state.

A state is a flat dict of plain values (numpy arrays, ints, floats, strings), for ``numpy.savez`` or
``pickle``, and to compare key by key. It has everything that the next steps depend on: the physics
with its warm start, the task's changes of the model, all random number generators, the camera's
pose and velocity, the colours, the clip and its frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

State = dict[str, Any]

_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)
_TEXTURE_FIELDS = {"tex_data"}  # megabytes, uploaded by the background
# Derived quantities that rendering or the task read, and that mj_step1 does not restore: the
# camera wrapper overwrites the camera's pose, and some sensors belong to the previous step.
_DERIVED = ("cam_xpos", "cam_xmat", "sensordata")


class ModelFields:
    """The numeric fields of a model at construction.

    :param model: a ``mujoco.MjModel``
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._pristine = {name: value.copy() for name, value in self._fields()}

    def _fields(self) -> list[tuple[str, Any]]:
        names = (
            name for name in dir(self._model) if name[0] != "_" and name not in _TEXTURE_FIELDS
        )
        fields = ((name, getattr(self._model, name)) for name in names)
        return [(name, value) for name, value in fields if isinstance(value, np.ndarray)]

    def changed(self) -> State:
        """Return copies of the fields that have changed."""
        return {
            name: value.copy()
            for name, value in self._fields()
            if not np.array_equal(value, self._pristine[name])
        }

    def restore(self, changed: Mapping[str, Any]) -> None:
        """Set the fields in ``changed``, and every other field to its first value."""
        for name, value in self._fields():
            np.copyto(value, changed.get(name, self._pristine[name]))


def get_physics(physics: Any) -> State:
    """Return the state of a dm_control ``Physics`` (not of its model)."""
    state = {"integration": physics.get_state(_INTEGRATION)}
    return state | {name: getattr(physics.data, name).copy() for name in _DERIVED}


def set_physics(physics: Any, state: Mapping[str, Any]) -> None:
    """Restore a dm_control ``Physics`` from :func:`get_physics`."""
    physics.set_state(state["integration"], _INTEGRATION)
    # dm_control's steps start with mj_step2, which needs computed positions and velocities.
    mujoco.mj_step1(physics.model.ptr, physics.data.ptr)
    for name in _DERIVED:
        np.copyto(getattr(physics.data, name), state[name])


def get_random(random: np.random.RandomState) -> State:
    """Return the state of a legacy random generator as plain values."""
    _, keys, position, has_gauss, gauss = random.get_state(legacy=True)
    return {
        "keys": np.array(keys),
        "position": int(position),
        "has_gauss": int(has_gauss),
        "gauss": float(gauss),
    }


def make_random(state: Mapping[str, Any]) -> np.random.RandomState:
    """Return a legacy random generator in a state from :func:`get_random`."""
    random = np.random.RandomState()
    random.set_state(
        ("MT19937", state["keys"], state["position"], state["has_gauss"], state["gauss"])
    )
    return random


def get_attributes(thing: Any) -> State:
    """Return the attributes of an object that are numbers, strings, arrays or random generators."""
    state: State = {}
    for name, value in vars(thing).items():
        if isinstance(value, np.random.RandomState):
            state |= join(**{name: get_random(value)})
        elif isinstance(value, np.ndarray | np.generic):
            state[name] = np.array(value)
        elif isinstance(value, bool | int | float | str):
            state[name] = value
    return state


def set_attributes(thing: Any, state: Mapping[str, Any]) -> None:
    """Set what :func:`get_attributes` returned."""
    for name, value in state.items():
        if name.endswith("/keys"):
            name = name.removesuffix("/keys")
            setattr(thing, name, make_random(part(state, name)))
        elif "/" not in name:
            setattr(thing, name, _unpacked(value))


def _unpacked(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return value.copy() if value.ndim else value[()]  # a 0-d array becomes a numpy scalar


def join(**parts: Mapping[str, Any]) -> State:
    """Return one flat dict with keys ``part/key``."""
    return {
        f"{part}/{key}": value for part, content in parts.items() for key, value in content.items()
    }


def part(state: Mapping[str, Any], name: str) -> State:
    """Return the entries of one part of a flat dict, without its prefix."""
    prefix = f"{name}/"
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
