"""What a run survives: being killed, damaged files, a full disk, a long time.

    python benchmarks/survival.py kills --n 50 --json runs/kills.json
    python benchmarks/survival.py flips --n 1000
    python benchmarks/survival.py disk
    python benchmarks/survival.py soak --steps 30000 --picture runs/soak.png

``kills`` trains in a process of its own on a Distracting Control task, writes a checkpoint every
few steps and kills the process (SIGKILL) at random moments, again and again; each time a new
process resumes from what is there. In the end the parameters are compared with those of a run that
was never killed. ``flips`` changes one bit somewhere in a copy of a run's checkpoints. ``disk``
puts them on a disk that is full (a small tmpfs: needs root). ``soak`` watches memory, open files
and speed over a long run.
"""

from __future__ import annotations

# Ahead of everything that renders.
from core_agent import CoRe, preset  # isort: skip

import argparse
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from core_agent.agents.presets import get_preset
from core_agent.environments.make import make_env
from core_agent.runs.callbacks import ExactCheckpointCallback
from core_agent.saving.checkpoint import CheckpointFolder, NoCheckpointError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ENV_ID = "DCS-cartpole-swingup-easy-dynamic"
EVERY = 3
"""Agent steps between two checkpoints: about half the time is spent in writing them."""
Figures = dict[str, Any]


def make_task() -> gym.Env:
    return make_env(ENV_ID, **get_preset("debug").env_arguments)


def start_or_resume(folder: Path) -> CoRe:
    try:
        return CoRe.resume(folder, make_task(), device="cpu")
    except NoCheckpointError:
        return CoRe("CnnPolicy", make_task(), seed=0, device="cpu", **preset("debug"))


def live(folder: Path, until: int, every: int) -> None:
    """Train in ``folder`` until a step; print when a checkpoint is written."""
    torch.set_num_threads(1)
    model = start_or_resume(folder)
    print(f"starts at {model.num_timesteps}", flush=True)
    callback = ExactCheckpointCallback(folder, every, verbose=1)
    n_steps = until - model.num_timesteps
    model.learn(n_steps, callback, reset_num_timesteps=model.num_timesteps == 0)


class Life:
    """A process that trains, and what it says."""

    def __init__(self, folder: Path, until: int, every: int = EVERY) -> None:
        command = [sys.executable, __file__, "live", str(folder), str(until), str(every)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.lines: queue.Queue[str] = queue.Queue()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(line)

    def wait_for_start(self) -> int:
        """The step at which it starts."""
        return int(self.lines.get(timeout=120).split()[-1])

    def last_checkpoint(self) -> int | None:
        """The step of the last checkpoint that it said was written."""
        self.process.wait()
        self.listener.join()
        said = [self.lines.get() for _ in range(self.lines.qsize())]
        steps = [int(line.split()[1].rstrip(":")) for line in said if line.startswith("step")]
        return steps[-1] if steps else None


def kills(n: int, seed: int = 0, longest: float = 2.0) -> Figures:
    """Kill a run ``n`` times; see whether it ends as one that was never killed."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder, unharmed = Path(name, "killed"), Path(name, "never killed")
        reached, lost, in_writing = 0, 0, 0
        for _ in range(n):
            life = Life(folder, until=10**9)
            started = life.wait_for_start()
            lost += started < reached
            time.sleep(rng.uniform(0.0, longest))
            life.process.send_signal(signal.SIGKILL)
            reached = max(life.last_checkpoint() or 0, started)
            in_writing += any(folder.rglob(".unfinished-*"))
        until = reached + 100
        for each, every in ((folder, EVERY), (unharmed, 0)):
            life = Life(each, until, every)
            life.wait_for_start()
            life.last_checkpoint()
        first, second = (start_or_resume(each) for each in (folder, unharmed))
        parameters = second.policy.state_dict()
        equal = all(torch.equal(v, parameters[k]) for k, v in first.policy.state_dict().items())
        return {
            "kills": n,
            "of them while a checkpoint was being written": in_writing,
            "resumed from the last checkpoint": n - lost,
            "steps": first.num_timesteps,
            "updates": first._n_updates,
            "equal to a run never killed, bit for bit": equal,
        }


def flips(n: int, seed: int = 0) -> Figures:
    """Change one bit in a copy of a run's checkpoints, ``n`` times."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        original, copy = Path(name, "original"), Path(name, "copy")
        model = CoRe("CnnPolicy", make_task(), seed=0, device="cpu", **preset("debug"))
        model.learn(130, ExactCheckpointCallback(original, 30))
        newest = next(CheckpointFolder(original).checkpoints())
        detected = fell_back = partial = 0
        for _ in range(n):
            shutil.copytree(original, copy)
            names = [
                newest.path.name,
                *(f"replay/{name}" for name in sorted(newest.episode_names())),
            ]
            flip_bit(copy / rng.choice(names), rng)
            with warnings.catch_warnings(record=True) as reported:
                warnings.simplefilter("always")
                found = CheckpointFolder(copy).newest()
            assert found is not None
            damaged = bool(found.damaged_episodes())
            partial += damaged
            fell_back += found.step != newest.step
            detected += bool(reported) or damaged or found.step != newest.step
            shutil.rmtree(copy)
    return {
        "bits flipped": n,
        "detected": detected,
        "the checkpoint before was used": fell_back,
        "the rest of a damaged replay buffer was used": partial,
    }


def flip_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def disk(megabytes: int = 64) -> Figures:
    """Train with checkpoints on a disk that fills up, then with room again."""
    folder = Path(tempfile.mkdtemp())
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True
    )
    try:
        model = CoRe("CnnPolicy", make_task(), seed=0, device="cpu", **preset("debug"))
        callback = ExactCheckpointCallback(folder / "checkpoints", 10)
        with warnings.catch_warnings(record=True) as reported:
            warnings.simplefilter("always")
            model.learn(125, callback)
            (folder / "rubbish").write_bytes(bytes(free_bytes(folder) - 100_000))
            reported.clear()
            model.learn(125, callback, reset_num_timesteps=False)
            failed = sum("No space left on device" in str(each.message) for each in reported)
            while_full = CheckpointFolder(folder / "checkpoints").newest()
            (folder / "rubbish").unlink()
            model.learn(125, callback, reset_num_timesteps=False)
        assert while_full is not None
        after = CheckpointFolder(folder / "checkpoints").newest()
        return {
            "checkpoints that did not fit, reported as such": failed,
            "steps trained meanwhile": 125,
            "newest complete checkpoint while the disk was full, step": while_full.step,
            "newest complete checkpoint with room again, step": after.step if after else None,
        }
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


class Gauge(BaseCallback):
    """Notes memory, open files and processor time every so many steps."""

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
        return True


def soak(steps: int, picture: Path | None = None) -> Figures:
    """Train for long with checkpoints and a log; watch what may leak."""
    with tempfile.TemporaryDirectory() as name:
        model = CoRe(
            "CnnPolicy",
            make_task(),
            seed=0,
            device="cpu",
            tensorboard_log=name,
            **preset("debug"),
        )
        gauge = Gauge(every=max(1, steps // 60))
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
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    series = (
        (memory, "memory, MiB"),
        (files, "open files"),
        (speed, "agent steps per processor second"),
    )
    for axis, (values, label) in zip(axes, series):
        axis.plot(step[-len(values) :], values)
        axis.set(xlabel="agent steps", title=label, ylim=(0, 1.2 * values.max()))
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(name: str, figures: Figures, path: Path | None) -> None:
    width = max(map(len, figures))
    print(name)
    for key, value in figures.items():
        print(f"  {key:{width}}  {value}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    trials = parser.add_subparsers(dest="trial", required=True)
    for name, default in (("kills", 50), ("flips", 1000)):
        trial = trials.add_parser(name)
        trial.add_argument("--n", type=int, default=default)
        trial.add_argument("--seed", type=int, default=0)
    trials.add_parser("disk")
    trial = trials.add_parser("soak")
    trial.add_argument("--steps", type=int, default=30_000)
    trial.add_argument("--picture", type=Path)
    for trial in trials.choices.values():
        trial.add_argument("--json", type=Path)
    trial = trials.add_parser("live", help="what `kills` starts and kills")
    trial.add_argument("folder", type=Path)
    trial.add_argument("until", type=int)
    trial.add_argument("every", type=int)
    arguments = vars(parser.parse_args())
    name = arguments.pop("trial")
    if name == "live":
        live(**arguments)
        return
    path = arguments.pop("json")
    functions: dict[str, Callable[..., Figures]] = {
        "kills": kills,
        "flips": flips,
        "disk": disk,
        "soak": soak,
    }
    report(name, functions[name](**arguments), path)


if __name__ == "__main__":
    main()
