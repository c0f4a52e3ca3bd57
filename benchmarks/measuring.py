"""Helpers of the benchmarks: models on random frames, statistics, the machine, tables, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import core_agent  # noqa: F401  isort: skip  (before SB3, so that gym's notice is not printed)
import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from core_agent import preset
from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.presets import get_preset
from core_agent.agents.registry import AGENTS
from core_agent.networks.hardware import compute_dtype

IMAGE_SIZE, N_ACTIONS, EPISODE_STEPS = 100, 6, 125
FILLED_EPISODES = 8


class Spread(NamedTuple):
    """Median, quartiles and extremes of repeated measurements."""

    median: float
    lower: float
    upper: float
    minimum: float
    maximum: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, lower, median, upper, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
        return cls(median, lower, upper, low, high, len(values))

    def milliseconds(self) -> str:
        """``median [lower quartile - upper quartile]`` of seconds."""
        return f"{1e3 * self.median:9.1f} [{1e3 * self.lower:.1f} - {1e3 * self.upper:.1f}]"


class MadeUpEnv(gym.Env):
    """Random frames and rewards: the time of an update does not depend on their content."""

    def __init__(self, image_size: int = IMAGE_SIZE, n_actions: int = N_ACTIONS) -> None:
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (n_actions,), np.float32)
        rng = np.random.default_rng(0)
        shape = (16, image_size, image_size, 3)
        self.frames = rng.integers(256, size=shape, dtype=np.uint8)
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self.frames[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.n_steps += 1
        frame = self.frames[self.n_steps % len(self.frames)]
        return frame, self.n_steps % 7 / 7, False, self.n_steps >= EPISODE_STEPS, {}


def made_up_model(
    preset_name: str,
    device: str,
    agent: str = "core",
    n_episodes: int = FILLED_EPISODES,
    **options: Any,
) -> Any:
    """An agent on random frames of the preset's size, with a filled replay buffer.

    CoRe is trained as in the paper: only the sizes of networks and batch come from the preset.

    :param preset_name: see :data:`core_agent.agents.presets.PRESETS`
    :param device: ``"cpu"`` or ``"cuda"``
    :param agent: see :data:`core_agent.agents.registry.AGENTS`
    :param n_episodes: number of episodes in the buffer
    :param options: override the preset's arguments
    """
    image_size = get_preset(preset_name).env_arguments.get("image_size", IMAGE_SIZE)
    env = DummyVecEnv([lambda: MadeUpEnv(image_size)])
    # CoRe's own preset has options that the yardstick lacks; RecurrentSAC's has the same networks.
    sized_for = "recurrent_sac" if agent == "core" else agent
    arguments = preset(preset_name, sized_for, **options)
    model = AGENTS[agent]("CnnPolicy", env, seed=0, device=device, **arguments)
    model.set_logger(Logger(None, []))
    fill(model, n_episodes)
    return model


def fill(model: SequenceOffPolicyAlgorithm, n_episodes: int) -> None:
    """Store episodes of random actions."""
    env, buffer = model.get_env(), model.replay_buffer
    assert env is not None and buffer is not None
    rng = np.random.default_rng(0)
    observation: Any = env.reset()
    for _ in range(n_episodes * EPISODE_STEPS):
        actions = rng.uniform(-1.0, 1.0, (env.num_envs, buffer.action_dim)).astype(np.float32)
        following: Any
        following, rewards, dones, infos = env.step(actions)
        last = following.copy()
        for index in np.flatnonzero(dones):
            last[index] = infos[index]["terminal_observation"]
        buffer.add(observation, last, actions, rewards, dones, infos)
        observation = following


def synchronize(device: str) -> None:
    """Wait for the GPU, if ``device`` is one."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def peak_rss() -> float:
    """Largest main memory of this process so far, in GB."""
    unit = 1024 if platform.system() == "Linux" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def cpu_name() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, GPU, threads, versions, and the dtype of ``precision="auto"``."""
    chosen = compute_dtype("auto", torch.device(device)) or torch.float32
    on_gpu = torch.device(device).type == "cuda"
    return {
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "device": device,
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "auto_precision": str(chosen).removeprefix("torch."),
    }


def print_machine(machine: dict[str, Any]) -> None:
    """Print :func:`describe_machine` in two lines."""
    print(
        f"{machine['gpu'] or machine['cpu']}, {machine['cpu_count']} CPUs, "
        f"{machine['threads']} thread(s), {machine['cpu_capability']}, "
        f"AMX {'yes' if machine['amx'] else 'no'}, load {machine['load_average'][0]:.1f}"
    )
    print(
        f"PyTorch {machine['torch']}, Python {machine['python']}, "
        f"precision 'auto' = {machine['auto_precision']}"
    )


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """``--device``, ``--threads`` and ``--json``."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu or cuda; default: %(default)s")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Set the number of threads, print the machine, and return its description."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    machine = describe_machine(options.device)
    print_machine(machine)
    return machine


def save_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write ``figures`` if a path is given; its folder is created."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """:func:`save_json`, and print the path."""
    save_json(path, figures)
    if path is not None:
        print(f"figures: {path}")


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as aligned lines, the first column to the left, the others to the right."""
    rows = list(rows)
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:])]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
