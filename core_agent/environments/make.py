"""Environments from their ids."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


def unknown_id(env_id: str, error: Exception) -> ValueError:
    """The error to raise for an id that Gymnasium does not know."""
    return ValueError(
        f"env must be the id of a registered environment, got {env_id!r}; import the package "
        f"that registers it first, or give 'package:id' ({error})"
    )


def register_suite(env_id: str) -> None:
    """Register the ids of the Distracting Control Suite if ``env_id`` is one of them."""
    if env_id.startswith("DCS-"):
        import distracting_envs  # noqa: F401


def make_env(env_id: str, **kwargs: Any) -> gym.Env:
    """A rendering environment from its id.

    The ids of the Distracting Control Suite, ``DCS-…``, are known without an import.

    :param env_id: id of a registered environment, or ``package:id``
    :param kwargs: passed to the environment
    :raises ValueError: for an unknown id
    """
    register_suite(env_id)
    try:
        return gym.make(env_id, **{"render_mode": "rgb_array", **kwargs})
    except gym.error.DependencyNotInstalled:
        raise
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise unknown_id(env_id, error) from error
