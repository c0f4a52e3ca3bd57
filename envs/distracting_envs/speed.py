# ruff: noqa: T201 - a command-line program
"""Time per step, compared with the package that these environments replace.

``python -m distracting_envs.speed`` prints one table for the six tasks, static and dynamic:

- *bare*: a lower bound, which is one render, one texture upload (dynamic only) and the physics of
  the simulator steps;
- *ours*: a step at both qualities, and a reset;
- *original*: ``distracting_control``, patched to run, with the same action repeat.

A second table has the agent steps per second of several environments in parallel processes.
Variants take turns, and ratios are medians of ratios within a round, so that other work on the
machine affects both sides equally.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image as PillowImage

import distracting_envs  # noqa: F401 - registers the environments
from distracting_envs.builtin_videos import CLIP_FRAMES, ClipScene
from distracting_envs.davis import DAVIS_NAMES
from distracting_envs.settings import DIFFICULTIES, TASKS

_DIFFICULTY = "easy"
_TURN = {"bare": 3, "ours": 3, "fast": 3}  # steps in a row; the first one after a reset is unlike


class Timings:
    """Seconds of each variant in every round."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self._seconds = {name: np.array(values) for name, values in seconds.items()}

    def ms(self, name: str) -> float:
        """Median of a variant in milliseconds."""
        return 1e3 * float(np.median(self._seconds[name]))

    def ratio(self, name: str, other: str) -> float:
        """Median over rounds of one variant's time divided by another's in the same round."""
        return float(np.median(self._seconds[name] / self._seconds[other]))


def write_clips(folder: Path) -> None:
    """Write built-in clips as JPEG files, with the names and folders of DAVIS."""
    for index in range(DIFFICULTIES[_DIFFICULTY].n_clips("train") or 0):
        scene = ClipScene("train", index)
        clip = folder / DAVIS_NAMES["train"][index]
        clip.mkdir(parents=True)
        for number in range(CLIP_FRAMES):
            picture = PillowImage.fromarray(scene.frame(number)).resize((854, 480))
            picture.save(clip / f"{number:05d}.jpg", quality=90)


def measure(task: str, *, dynamic: bool, frames_folder: Path, rounds: int) -> Timings:
    """Timings of one setting.

    :param task: one of ``TASKS``
    :param dynamic: whether the distractions move
    :param frames_folder: folder written by :func:`write_clips`
    :param rounds: turns of each variant
    """
    from distracting_envs.original import load_original, patched_original

    env_id = f"DCS-{task}-{_DIFFICULTY}-{'dynamic' if dynamic else 'static'}"
    envs: list[Any] = [
        gymnasium.make(env_id, video_path=frames_folder, render_quality=quality).unwrapped
        for quality in ("paper", "fast")
    ]
    ours, fast = envs
    with patched_original() as suite:
        settings = TASKS[task]
        original = load_original(
            suite,
            settings.domain,
            settings.task,
            _DIFFICULTY,
            dynamic=dynamic,
            frames_folder=frames_folder,
            seed=0,
        )
        action = np.zeros(ours.action_space.shape, np.float32)

        def original_step() -> None:
            for _ in range(ours.action_repeat):
                original.step(action)

        variants: dict[str, Callable[[], object]] = {
            "bare": lambda: bare_step(ours, action, upload=dynamic),
            "ours": lambda: ours.step(action),
            "fast": lambda: fast.step(action),
            "reset": ours.reset,
            "original": original_step,
            "original_reset": original.reset,
        }
        for env in (*envs, original):
            env.reset()
        for _ in range(6):  # until every clip is cached
            ours.reset()
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, run in variants.items():
                turn = [_seconds(run) for _ in range(_TURN.get(name, 1))]
                times[name].append(float(np.median(turn)))
        original.physics.free()
    for env in envs:
        env.close()
    return Timings(times)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bare_step(env: Any, action: Any, *, upload: bool) -> None:
    """One agent step's physics, upload (if ``upload``) and render, without anything else."""
    simulation = env._base
    for _ in range(env.action_repeat):
        simulation.step(action)
    if upload:
        background = env._distractors["background"]
        background.forget_upload()
        background.upload()
    env._renderer.render()


def parallel_rate(n_envs: int, quality: str, seconds: float) -> float:
    """Agent steps per second of ``n_envs`` environments, each in its own process."""
    envs = gymnasium.make_vec(
        f"distracting_envs:DCS-cheetah-run-{_DIFFICULTY}-dynamic",
        num_envs=n_envs,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
        video_path="builtin",
        render_quality=quality,
    )
    envs.reset(seed=0)
    actions = envs.action_space.sample()
    for _ in range(3):
        envs.step(actions)
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        envs.step(actions)
        steps += 1
    rate = n_envs * steps / (time.perf_counter() - start)
    envs.close()
    return rate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m distracting_envs.speed``; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m distracting_envs.speed")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=8, help="turns of each variant")
    parser.add_argument("--envs", nargs="*", type=int, default=[1, 2, 4], help="parallel processes")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each parallel measurement")
    options = parser.parse_args(arguments)
    print_steps(options.tasks, options.rounds)
    if options.envs:
        print_parallel(options.envs, options.seconds)
    return 0


def print_steps(tasks: Sequence[str], rounds: int) -> None:
    """Print the table of agent steps and resets."""
    print(f"Milliseconds (medians of {rounds} rounds) and ratios, MuJoCo rendering 320x240")
    columns = ("bare", "ours", "/bare", "reset", "/ours", "fast", "ours/", "original", "/ours")
    print(f"{'':34}" + "".join(f"{column:>9}" for column in columns) + "  original reset")
    with tempfile.TemporaryDirectory() as folder:
        write_clips(Path(folder))
        for task in tasks:
            for dynamic in (False, True):
                t = measure(task, dynamic=dynamic, frames_folder=Path(folder), rounds=rounds)
                repeat = TASKS[task].action_repeat
                name = f"{task} {'dynamic' if dynamic else 'static'} (repeat {repeat})"
                print(
                    f"{name:34}{t.ms('bare'):9.1f}"
                    f"{t.ms('ours'):9.1f}{t.ratio('ours', 'bare'):9.2f}"
                    f"{t.ms('reset'):9.1f}{t.ratio('reset', 'ours'):9.2f}"
                    f"{t.ms('fast'):9.1f}{t.ratio('ours', 'fast'):9.1f}"
                    f"{t.ms('original'):9.1f}{t.ratio('original', 'ours'):9.1f}"
                    f"{t.ms('original_reset'):16.1f}",
                    flush=True,
                )


def print_parallel(counts: Sequence[int], seconds: float) -> None:
    """Print the table of parallel environments."""
    print("\nAgent steps per second, cheetah-run dynamic, one process per environment")
    for quality in ("paper", "fast"):
        rates = [parallel_rate(count, quality, seconds) for count in counts]
        cells = ", ".join(
            f"{count} env{'s' if count > 1 else ''}: {rate:.1f} ({rate / rates[0]:.2f}x)"
            for count, rate in zip(counts, rates, strict=True)
        )
        print(f"{quality:6} {cells}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
