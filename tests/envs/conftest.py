"""Fixtures of the environments' tests: a private cache, and clips in DAVIS's layout."""

from __future__ import annotations

import os
import sys

# Read when dm_control is first imported, so set before any test module is.
if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from distracting_envs.davis import DAVIS_NAMES


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Keep tests out of the user's cache, and the user's videos out of the tests."""
    saved = {name: os.environ.pop(name, None) for name in ("DCS_CACHE", "DCS_VIDEOS")}
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DCS_CACHE"] = str(folder)
    yield folder
    del os.environ["DCS_CACHE"]
    os.environ.update({name: value for name, value in saved.items() if value is not None})


def _write_clip(folder: Path, n_frames: int, seed: int, size: tuple[int, int] = (64, 48)) -> None:
    """Write JPEG frames of coloured blobs, (width, height) as given."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n_frames):
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        frame = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        Image.fromarray(frame).save(folder / f"{i:05d}.jpg", quality=90)


@pytest.fixture(scope="session")
def write_clip():
    """The function that writes a clip as a folder of JPEG frames."""
    return _write_clip


@pytest.fixture(scope="session")
def davis_root(tmp_path_factory) -> Path:
    """A folder laid out as DAVIS is: all 90 clips, each of a few small frames."""
    root = tmp_path_factory.mktemp("davis") / "DAVIS"
    names = [*DAVIS_NAMES["train"], *DAVIS_NAMES["val"]]
    for number, name in enumerate(names):
        _write_clip(root / "JPEGImages" / "480p" / name, n_frames=3 + number % 5, seed=number)
    return root
