"""Keeping third-party remarks that users can do nothing about off their terminals."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator


def hide_gym_notice() -> None:
    """Keep ``gym`` from printing its end-of-life notice when something imports it.

    Nothing here uses ``gym``, but it is installed along with ``distracting_control``, and Shimmy
    and Stable-Baselines3 import whatever is installed. The notice comes from a table in a package
    of its own, which is emptied.
    """
    with contextlib.suppress(Exception):
        importlib.import_module("gym_notices.notices").notices.clear()


@contextlib.contextmanager
def quiet_model_compiler() -> Iterator[None]:
    """Hide MuJoCo's remarks on deprecated attributes in dm_control's own models."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
