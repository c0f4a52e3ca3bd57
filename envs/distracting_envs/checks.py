"""Argument checks, whose errors name the argument, the rule and the value."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence

import numpy as np


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise a ValueError unless ``value`` is one of ``choices``."""
    if not isinstance(value, (str, type(None))) or value not in choices:
        raise ValueError(f"{name} must be one of {_listed(choices)}, got {value!r}")


def check_subset(name: str, values: Sequence[str], choices: Sequence[str]) -> None:
    """Raise a ValueError unless ``values`` is a sequence of some of ``choices``."""
    fits = isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values)
    if not fits or not set(values) <= set(choices):
        raise ValueError(
            f"{name} must be a tuple of any of {_listed(choices)}, such as ({choices[0]!r},); "
            f"got {values!r}"
        )


def check_whole(name: str, value: object, low: int = 1, high: int | None = None) -> None:
    """Raise a ValueError unless ``value`` is an integer in [low, high]."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):  # type: ignore[operator]
        rule = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be a whole number {rule}, got {value!r}")


def check_number(name: str, value: object, high: float = math.inf) -> None:
    """Raise a ValueError unless ``value`` is a number in [0, high]."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= float(value) <= high or math.isinf(float(value)):  # type: ignore[arg-type]
        rule = ">= 0" if high == math.inf else f"in [0, {high:g}]"
        raise ValueError(f"{name} must be a number {rule}, got {value!r}")


def check_boolean(name: str, value: object) -> None:
    """Raise a ValueError unless ``value`` is true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_path(name: str, value: object) -> None:
    """Raise a ValueError unless ``value`` is a path or None."""
    if value is not None and (not isinstance(value, (str, os.PathLike)) or not os.fspath(value)):
        raise ValueError(f"{name} must be a path or None, got {value!r}")


def _listed(choices: Sequence[object]) -> str:
    return ", ".join(repr(choice) for choice in choices)
