"""One form for errors about arguments."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Check = Callable[[str, Any], None]
MAX_SEED = 2**32 - 1
"""The largest seed that NumPy's legacy generator takes, which Stable-Baselines3 seeds as well."""


class NonFiniteError(ValueError):
    """Something that learning rests on has become NaN or infinite."""


def rules_of(*classes: type) -> dict[str, Check]:
    """The rules of the arguments of classes and of their bases, from their tables ``rules``."""
    tables = [vars(base).get("rules", {}) for one in classes for base in reversed(one.__mro__)]
    return {name: rule for table in tables for name, rule in table.items()}


def handed_down(arguments: Mapping[str, Any], *own: str) -> dict[str, Any]:
    """The arguments that a constructor hands to another one: all but its ``own``.

    :param arguments: the constructor's ``locals()``
    """
    return {k: v for k, v in arguments.items() if k not in ("self", "__class__", *own)}


def check(condition: bool, name: str, rule: str, value: Any, way_out: str = "") -> None:
    """Make sure that an argument follows its rule.

    :raises ValueError: ``<name> must <rule>, got <value>; <way_out>``
    """
    if not condition:
        hint = f"; {way_out}" if way_out else ""
        raise ValueError(f"{name} must {rule}, got {value!r}{hint}")


def check_each(arguments: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    """Make sure that those arguments for which there is a check follow it."""
    for name, value in arguments.items():
        if name in checks:
            checks[name](name, value)


def argument_names(*classes: type) -> set[str]:
    """The names that the constructors of classes and of their bases take as keywords.

    Those of Stable-Baselines3's own classes are left out: here they are not passed on.
    """
    return {
        name
        for one in classes
        for base in one.__mro__
        if "__init__" in vars(base)
        and base is not object
        and not base.__module__.startswith("stable_baselines3.")
        for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    } - {"self"}


def is_whole(value: Any) -> bool:
    """Whether ``value`` is a whole number, NumPy's included (no bool)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite real number, NumPy's included (no bool)."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_number(name: str, value: Any) -> None:
    """Make sure that ``value`` is a finite number."""
    check(is_number(value), name, "be a number", value)


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
    check(is_whole(value) and value >= low, name, f"be a whole number >= {low}", value, way_out)


def check_size(name: str, value: Any) -> None:
    """Make sure that ``value`` is a whole number of at least 1."""
    check_integer(name, value, 1)


def check_boolean(name: str, value: Any) -> None:
    """Make sure that ``value`` is true or false."""
    check(isinstance(value, (bool, np.bool_)), name, "be True or False", value)


def check_text(name: str, value: Any) -> None:
    """Make sure that ``value`` is a string that is not empty."""
    check(isinstance(value, str) and bool(value), name, "be a string", value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Make sure that ``value`` is one of some words."""
    check(isinstance(value, str) and value in choices, name, f"be one of {choices}", value)


def check_sizes(name: str, value: Any, fewest: int = 1) -> None:
    """Make sure that ``value`` is a list or tuple of at least ``fewest`` whole numbers >= 1."""
    whole = isinstance(value, (list, tuple)) and all(is_whole(n) and n >= 1 for n in value)
    rule = f"be at least {fewest} whole number(s) >= 1"
    check(whole and len(value) >= fewest, name, rule, value, f"for example {name}=(64, 64)")


def check_crop_size(name: str, value: Any) -> None:
    """Make sure that ``value`` is a side, a height and a width, or ``None``."""
    sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    fits = value is None or all(is_whole(side) and side >= 1 for side in sides)
    check(fits, name, "be a whole number >= 1, two of them, or None", value)


def check_seed(name: str, value: Any) -> None:
    """Make sure that ``value`` seeds random generators, or is ``None``."""
    fits = value is None or (is_whole(value) and 0 <= value <= MAX_SEED)
    check(fits, name, f"be None or a whole number in [0, {MAX_SEED}]", value)


def as_seed(name: str, value: Any) -> int | None:
    """``value`` as Gymnasium takes it, once :func:`check_seed` has let it pass."""
    check_seed(name, value)
    return None if value is None else int(value)


def check_device(name: str, value: Any) -> None:
    """Make sure that ``value`` is a device of PyTorch or ``"auto"``."""
    known = isinstance(value, torch.device) or (isinstance(value, str) and value == "auto")
    if isinstance(value, str) and not known:
        with contextlib.suppress(RuntimeError):
            known = bool(torch.device(value))
    check(known, name, "be 'auto' or a device such as 'cpu' or 'cuda:0'", value)


def check_verbose(name: str, value: Any) -> None:
    """Make sure that ``value`` is a verbosity of Stable-Baselines3's."""
    check(is_whole(value) and 0 <= value <= 2, name, "be 0, 1 or 2", value)


def check_path(name: str, value: Any) -> None:
    """Make sure that ``value`` is a path."""
    fits = isinstance(value, (str, Path)) and str(value) != "" and "\0" not in str(value)
    check(fits, name, "be a path", value)


def check_file(name: str, value: Any) -> None:
    """Make sure that ``value`` is a path or an open binary file."""
    if not isinstance(value, io.BufferedIOBase):
        check_path(name, value)


def check_names(name: str, value: Any) -> None:
    """Make sure that ``value`` holds names, or is ``None``."""
    fits = value is None or (
        isinstance(value, Iterable)
        and not isinstance(value, (str, bytes))
        and all(isinstance(entry, str) for entry in value)
    )
    check(fits, name, "be a list of names or None", value)


def check_options(name: str, value: Any) -> None:
    """Make sure that ``value`` is a dict of keywords, or is ``None``."""
    fits = value is None or (isinstance(value, dict) and all(isinstance(k, str) for k in value))
    check(fits, name, "be a dict of arguments by name, or None", value)


def optional(one: Check) -> Check:
    """A check that lets ``None`` pass."""
    return lambda name, value: None if value is None else one(name, value)


def as_array(name: str, value: Any) -> np.ndarray:
    """``value`` as an array.

    :raises ValueError: if its rows differ in length
    """
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be an array, got {value!r}") from None


def finite_array(name: str, value: Any) -> np.ndarray:
    """``value`` as a float32 array.

    :raises ValueError: if it is anything but finite numbers
    """
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    check(bool(np.isfinite(array).all()), name, "be an array of finite numbers", value)
    return array
