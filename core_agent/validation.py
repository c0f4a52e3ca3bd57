"""Rules for arguments, and one form for the errors about them.

A class or function keeps its rules in a table by argument and checks them in one call::

    RULES = {"every": whole(0), "signals": BOOLEAN, "seed": SEED}
    check_arguments(RULES, locals())

One value alone is checked by calling its rule: ``SIZE("batch_size", batch_size)``.
"""

from __future__ import annotations

import inspect
import io
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Check = Callable[[str, Any], object]
"""Called with an argument's name and value; raises ``ValueError`` for a bad value."""
MAX_SEED = 2**32 - 1
"""The largest seed that NumPy's legacy generator takes, which Stable-Baselines3 seeds as well."""


class NonFiniteError(ValueError):
    """A value that learning depends on has become NaN or infinite."""


def check(condition: bool, name: str, rule: str, value: Any, way_out: str = "") -> None:
    """Make sure that an argument follows its rule.

    :raises ValueError: ``<name> must <rule>, got <value>; <way_out>``
    """
    if not condition:
        hint = f"; {way_out}" if way_out else ""
        raise ValueError(f"{name} must {rule}, got {value!r}{hint}")


@dataclass(frozen=True)
class Rule:
    """A rule that values follow or not; called with a name and a value, it checks the value."""

    text: str
    """Follows "must" in the error."""
    holds: Callable[[Any], Any]
    way_out: str = ""

    def __call__(self, name: str, value: Any) -> None:
        check(bool(self.holds(value)), name, self.text, value, self.way_out)


# ---- tables of rules ----


def rules_of(*classes: type) -> dict[str, Check]:
    """The rules of the arguments of classes and of their bases, from their tables ``rules``."""
    tables = [vars(base).get("rules", {}) for one in classes for base in reversed(one.__mro__)]
    return {name: rule for table in tables for name, rule in table.items()}


def check_arguments(rules: Mapping[str, Check], arguments: Mapping[str, Any]) -> None:
    """Check those arguments that have a rule.

    :param rules: by the argument's name
    :param arguments: such as ``locals()`` at the top of a constructor
    :raises ValueError: naming the first that breaks its rule
    """
    for name, rule in rules.items():
        if name in arguments:
            rule(name, arguments[name])


def argument_names(*classes: type) -> set[str]:
    """The names that the constructors of classes and of their bases take as keywords.

    Those of Stable-Baselines3's own classes are left out: here they are not passed on.
    """
    return {
        name
        for one in classes
        for base in one.__mro__
        if "__init__" in vars(base) and not base.__module__.startswith(("builtins", "stable_"))
        for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    } - {"self"}


def check_keywords(
    name: str,
    given: Any,
    *classes: type,
    without: str = "",
    hidden: Collection[str] = (),
    instead: Mapping[str, str] | None = None,
) -> None:
    """Make sure that a dict holds only arguments of some classes, and that they follow their rules.

    :param name: name of the argument whose value is the dict
    :param given: the dict, or ``None``
    :param classes: the class that takes the arguments, followed by the classes of its parts
    :param without: an argument that the dict may not hold
    :param hidden: arguments that the error does not list, as users do not give them
    :param instead: what to use in place of arguments that users may expect
    :raises ValueError: if it is anything else
    """
    OPTIONS(name, given)
    known = argument_names(*classes) - {without}
    unknown = sorted((given or {}).keys() - known)
    rule = f"hold arguments of {classes[0].__name__}"
    advice = [f"{key}: {instead[key]}" for key in unknown if instead and key in instead]
    way_out = "; ".join(advice) or f"its arguments are {sorted(known.difference(hidden))}"
    check(not unknown, name, rule, unknown, way_out)
    check_arguments(rules_of(*classes), given or {})


def handed_down(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a constructor's ``locals()``, to pass on to another constructor."""
    return {k: v for k, v in arguments.items() if k not in ("self", "__class__")}


# ---- rules ----


def is_whole(value: Any) -> bool:
    """Whether ``value`` is a whole number, NumPy's included (no bool)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite real number, NumPy's included (no bool)."""
    with suppress(OverflowError):
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return real and math.isfinite(value)
    return False


def at_least(low: float) -> Rule:
    """A finite number of at least ``low``."""
    return Rule(f"be a number >= {low}", lambda value: is_number(value) and value >= low)


def whole(low: int, way_out: str = "") -> Rule:
    """A whole number of at least ``low``."""
    text = f"be a whole number >= {low}"
    return Rule(text, lambda value: is_whole(value) and value >= low, way_out)


def choice(*choices: str) -> Rule:
    """One of some words."""
    return Rule(f"be one of {choices}", lambda value: isinstance(value, str) and value in choices)


def sizes(fewest: int) -> Rule:
    """A list or tuple of at least ``fewest`` whole numbers >= 1."""
    return Rule(
        f"be at least {fewest} whole number(s) >= 1",
        lambda value: _is_list_of(SIZE.holds, value) and len(value) >= fewest,
        "for example (64, 64)",
    )


def instance(text: str, *types: type, way_out: str = "") -> Rule:
    """An object of one of some types; ``text`` says so."""
    return Rule(text, lambda value: isinstance(value, types), way_out)


def optional(one: Check) -> Check:
    """A rule that lets ``None`` pass."""
    return lambda name, value: value is None or one(name, value)


def _is_list_of(holds: Callable[[Any], Any], value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(holds, value))


def _is_device(value: Any) -> Any:
    with suppress(RuntimeError):
        return isinstance(value, (str, torch.device)) and (value == "auto" or torch.device(value))


def _are_names(value: Any) -> bool:
    return isinstance(value, Iterable) and all(isinstance(each, str) for each in value)


NUMBER = Rule("be a number", is_number)
POSITIVE = Rule("be a number > 0", lambda value: is_number(value) and value > 0)
FRACTION = Rule("lie in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1)
SIZE = whole(1)
SIZES = sizes(1)
BOOLEAN = instance("be True or False", bool, np.bool_)
TEXT = Rule("be a string", lambda value: isinstance(value, str) and value != "")
CROP_SIZE = Rule(
    "be a whole number >= 1, two of them, a share of the image as a float in (0, 1], or None",
    lambda size: (
        size is None
        or SIZE.holds(size)
        or (SIZES.holds(size) and len(size) == 2)
        or (isinstance(size, float) and 0 < size <= 1)
    ),
)
SEED = Rule(
    f"be None or a whole number in [0, {MAX_SEED}]",
    lambda value: value is None or (is_whole(value) and 0 <= value <= MAX_SEED),
)
DEVICE = Rule("be 'auto' or a device such as 'cpu' or 'cuda:0'", _is_device)
VERBOSE = Rule("be 0, 1 or 2", lambda value: is_whole(value) and 0 <= value <= 2)
PATH = Rule(
    "be a path",
    lambda value: isinstance(value, (str, Path)) and str(value) != "" and "\0" not in str(value),
)
FILE = Rule("be a path", lambda value: isinstance(value, io.BufferedIOBase) or PATH.holds(value))
NAMES = Rule(
    "be a list of names or None",
    lambda value: value is None or (_are_names(value) and not isinstance(value, (str, bytes))),
)
OPTIONS = Rule(
    "be a dict of arguments by name, or None",
    lambda value: value is None or (_are_names(value) and isinstance(value, dict)),
)
FUNCTIONS = Rule("be a list of functions", lambda value: _is_list_of(callable, value) and value)


# ---- values in the form that others take ----


def as_seed(name: str, value: Any) -> int | None:
    """A legal seed as Gymnasium takes it: an ``int`` of Python's, or ``None``."""
    SEED(name, value)
    return None if value is None else int(value)


def as_array(name: str, value: Any) -> np.ndarray:
    """``value`` as an array; a ``ValueError`` if its rows differ in length."""
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be an array, got {value!r}") from None


def finite_array(name: str, value: Any) -> np.ndarray:
    """``value`` as a float32 array; a ``ValueError`` for anything but finite numbers."""
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    check(bool(np.isfinite(array).all()), name, "be an array of finite numbers", value)
    return array
