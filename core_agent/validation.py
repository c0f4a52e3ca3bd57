"""One form for errors about arguments."""

from __future__ import annotations

import math
from typing import Any


class NonFiniteError(ValueError):
    """Something that learning rests on has become NaN or infinite."""


def check(condition: bool, name: str, rule: str, value: Any, way_out: str = "") -> None:
    """Make sure that an argument follows its rule.

    :raises ValueError: ``<name> must <rule>, got <value>; <way_out>``
    """
    if not condition:
        hint = f"; {way_out}" if way_out else ""
        raise ValueError(f"{name} must {rule}, got {value!r}{hint}")


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite real number (no bool)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_at_least(name: str, value: Any, low: float, way_out: str = "") -> None:
    """Make sure that ``value`` is a finite number of at least ``low``."""
    check(is_number(value) and value >= low, name, f"be a number >= {low}", value, way_out)


def check_positive(name: str, value: Any, way_out: str = "") -> None:
    """Make sure that ``value`` is a finite number above 0."""
    check(is_number(value) and value > 0, name, "be a number > 0", value, way_out)


def check_fraction(name: str, value: Any, way_out: str = "") -> None:
    """Make sure that ``value`` lies in [0, 1]."""
    check(is_number(value) and 0 <= value <= 1, name, "lie in [0, 1]", value, way_out)


def check_integer(name: str, value: Any, low: int, way_out: str = "") -> None:
    """Make sure that ``value`` is a whole number of at least ``low``."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    check(is_integer and value >= low, name, f"be a whole number >= {low}", value, way_out)
