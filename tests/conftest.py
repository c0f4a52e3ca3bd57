"""What holds for every test: no screen, no network hub, no window."""

import os
import sys

import pytest

# Read when these libraries are first imported, so set before any test module is.
if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

# Tiny networks are quickest on one thread, and leave the other cores to other tests.
torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than the cores: tests also wait for other processes and for the disk."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="module")
def short_episodes():
    """Distracting Control episodes of 200 simulator steps instead of 1000, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distracting_envs.env.EPISODE_STEPS", 200)
        yield
