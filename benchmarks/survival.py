"""What a run survives, besides kills (``kills.py``) and damaged files (``torture.py``).

    python benchmarks/survival.py disk
    python benchmarks/survival.py soak --steps 30000 --picture runs/soak.png
    python benchmarks/survival.py soak --env Pendulum-v1 --n-envs 8 --steps 1000000

``disk`` puts checkpoints on a disk (a small tmpfs: needs root) that is full, then read-only, then
without room for one more file. ``soak`` watches memory, open files and speed over a long run.
"""

from __future__ import annotations

# Ahead of everything that renders.
from core_agent import CoRe, preset  # isort: skip

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import columns, write_json
from core_agent.agents.presets import get_preset
from core_agent.environments.make import make_env
from core_agent.environments.suite import is_in_suite
from core_agent.runs.callbacks import ExactCheckpointCallback
from core_agent.saving.checkpoint import CheckpointFolder

ENV_ID = "DCS-cartpole-swingup-easy-dynamic"
MEGABYTES, N_FILES = 64, 200
"""Size of the disk."""
STEPS = 60
"""Agent steps before, during and after each fault of the disk."""
Figures = dict[str, Any]


def make_model(env_id: str, n_envs: int = 1, **arguments: Any) -> CoRe:
    """CoRe of the smallest preset."""
    settings = get_preset("debug").env_arguments if is_in_suite(env_id) else {}
    env = DummyVecEnv([partial(make_env, env_id, **settings) for _ in range(n_envs)])
    return CoRe("auto", env, seed=0, device="cpu", **preset("debug"), **arguments)


# ---- a bad disk ----


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Inside, a disk has next to no room left."""
    rubbish = folder / "rubbish"
    status = os.statvfs(folder)
    rubbish.write_bytes(bytes(status.f_bavail * status.f_frsize - 100_000))
    yield
    rubbish.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside, a disk cannot be written to."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


@contextmanager
def out_of_files(folder: Path) -> Iterator[None]:
    """Inside, a disk can hold no further file, as where a quota is used up."""
    rubbish = [folder / f"rubbish-{number}" for number in range(os.statvfs(folder).f_favail)]
    for path in rubbish:
        path.touch()
    yield
    for path in rubbish:
        path.unlink()


FAULTS = {
    "full": (full, "No space left on device"),
    "read-only": (read_only, "Read-only file system"),
    "out of files": (out_of_files, "No space left on device"),
}


def disk() -> Figures:
    """Train with checkpoints on a disk that fails, then works again."""
    folder = Path(tempfile.mkdtemp())
    size = f"size={MEGABYTES}m,nr_inodes={N_FILES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    figures: Figures = {}
    checkpoints = CheckpointFolder(folder / "checkpoints")
    try:
        model = make_model(ENV_ID)
        callback = ExactCheckpointCallback(checkpoints.path, 10)
        model.learn(STEPS, callback)
        for name, (fault, message) in FAULTS.items():
            with warnings.catch_warnings(record=True) as reported, fault(folder):
                warnings.simplefilter("always")
                before = model.num_timesteps
                model.learn(STEPS, callback, reset_num_timesteps=False)
                meanwhile = checkpoints.newest()
            model.learn(STEPS, callback, reset_num_timesteps=False)
            after = checkpoints.newest()
            figures |= {
                f"{name}: checkpoints not written": sum(
                    message in str(each.message) for each in reported
                ),
                f"{name}: all earlier ones kept": meanwhile is not None
                and meanwhile.step == before,
                f"{name}: written again afterwards": after is not None
                and after.step == model.num_timesteps,
            }
        return figures
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


# ---- a long time ----


class Gauge(BaseCallback):
    """Records memory, open files and processor time every ``every`` steps."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.readings: list[tuple[int, float, int, float]] = []

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            n_files = len(os.listdir("/proc/self/fd"))
            self.readings.append((self.num_timesteps, memory, n_files, time.process_time()))
            print(f"step {self.num_timesteps}: {memory:.1f} MiB, {n_files} files", flush=True)
        return True


def soak(steps: int, env: str = ENV_ID, n_envs: int = 1, picture: Path | None = None) -> Figures:
    """Train for long with checkpoints and a log; watch what may leak."""
    with tempfile.TemporaryDirectory() as name:
        model = make_model(env, n_envs, tensorboard_log=name)
        gauge = Gauge(every=max(1, steps // n_envs // 60) * n_envs)
        model.learn(steps, [gauge, ExactCheckpointCallback(Path(name, "checkpoints"), 2_000)])
    step, memory, files, clock = (np.array(column) for column in zip(*gauge.readings))
    speed = np.diff(step) / np.diff(clock)
    if picture is not None:
        draw(picture, step, memory, files, speed)
    tenth = max(1, len(step) // 10)
    return {
        "steps": int(step[-1]),
        "memory after a tenth, MiB": round(float(memory[tenth]), 1),
        "memory at the end, MiB": round(float(memory[-1]), 1),
        "open files after a tenth": int(files[tenth]),
        "open files at the end": int(files[-1]),
        "steps per processor second, second tenth (median)": round(
            float(np.median(speed[tenth : 2 * tenth])), 1
        ),
        "steps per processor second, last tenth (median)": round(
            float(np.median(speed[-tenth:])), 1
        ),
    }


def draw(
    path: Path, step: np.ndarray, memory: np.ndarray, files: np.ndarray, speed: np.ndarray
) -> None:
    figure = Figure(figsize=(11, 3), layout="constrained")
    series = (
        (memory, "memory, MiB"),
        (files, "open files"),
        (speed, "agent steps per processor second"),
    )
    for axis, (values, label) in zip(figure.subplots(1, 3), series):
        axis.plot(step[-len(values) :], values)
        axis.set(xlabel="agent steps", title=label, ylim=(0, 1.2 * values.max()))
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    trials = parser.add_subparsers(dest="trial", required=True)
    trials.add_parser("disk")
    trial = trials.add_parser("soak")
    trial.add_argument("--steps", type=int, default=30_000)
    trial.add_argument("--env", default=ENV_ID)
    trial.add_argument("--n-envs", type=int, default=1)
    trial.add_argument("--picture", type=Path)
    for trial in trials.choices.values():
        trial.add_argument("--json", type=Path)
    arguments = vars(parser.parse_args())
    name, path = arguments.pop("trial"), arguments.pop("json")
    functions: dict[str, Callable[..., Figures]] = {"disk": disk, "soak": soak}
    figures = functions[name](**arguments)
    print(columns([[key, str(value)] for key, value in figures.items()]))
    write_json(path, figures)


if __name__ == "__main__":
    main()
