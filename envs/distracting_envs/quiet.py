"""Suppression of third-party messages that users cannot act on."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator


def hide_gym_notice() -> None:
    """Keep ``gym`` from printing its end-of-life notice when something imports it.

    Nothing here uses ``gym``, but ``distracting_control`` installs it, and Shimmy and
    Stable-Baselines3 import it if it is installed. The notice comes from a table in a separate
    package, which is emptied.
    """
    with contextlib.suppress(Exception):
        importlib.import_module("gym_notices.notices").notices.clear()


@contextlib.contextmanager
def quiet_model_compiler() -> Iterator[None]:
    """Hide MuJoCo's messages about deprecated attributes in dm_control's models."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
