"""The Distracting Control Suite: the one module that imports ``distracting_envs``.

That registers the suite's ids, and loads neither MuJoCo nor OpenGL.
"""

from __future__ import annotations

from pathlib import Path

from distracting_envs.seeding import MAX_SEED

from distracting_envs import env_seed


def is_in_suite(env_id: str) -> bool:
    """Whether ``env_id`` is of the Distracting Control Suite."""
    return env_id.removeprefix("distracting_envs:").startswith("DCS-")


def first_seed(seed: int, worker: int = 0, split: str = "train") -> int:
    """The seed of an environment's first episode, of the suite or not.

    No worker shares it with another, training never with validation, nor one run with another
    whose seed is below ``MAX_SEED`` (about two million); larger ones wrap around.

    :param seed: of the run
    :param worker: number of the environment within its split
    :param split: "train" or "val"
    """
    return env_seed(seed % MAX_SEED, worker, split)


def find_videos() -> Path | None:
    """The folder of the DAVIS videos; ``None`` if environments show the built-in clips.

    :raises ValueError: if ``DCS_VIDEOS`` names no such folder
    """
    from distracting_envs.videos import resolve_video_path

    return resolve_video_path(None)


def draw_gallery(arguments: list[str]) -> int:
    """Run ``python -m distracting_envs.gallery``; its exit status."""
    from distracting_envs.gallery import main

    return main(arguments)


def manage_videos(arguments: list[str]) -> int:
    """Run ``python -m distracting_envs.videos``; its exit status."""
    from distracting_envs.videos import main

    return main(arguments)
