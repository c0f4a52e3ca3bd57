"""How much memory the replay buffer and a training run take.

    python benchmarks/memory.py --json runs/memory.json
    python benchmarks/memory.py --preset small --steps 10000 --updates 20

A model of the preset's size gets its replay buffer filled with made-up frames, episode by episode,
as a run would fill it, and then makes updates. *Frames* is what the frames in the buffer take,
*resident* what the process holds beyond what it held before the first of them; the second is the
larger by the allocator's gaps. The last line is the whole process, networks, activations and
libraries included, at its peak. Linux on a CPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import (
    EPISODE_STEPS,
    columns,
    describe_machine,
    fill,
    made_up_model,
    peak_rss,
    print_machine,
    write_json,
)

from core_agent import CoRe
from core_agent.agents.presets import PRESETS

GIGABYTE = 1e9
N_ROWS = 5


class Reading(NamedTuple):
    """Memory in GB after that many agent steps were stored."""

    steps: int
    frames: float
    resident: float


def resident_memory() -> float:
    """Main memory that this process holds now, in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / GIGABYTE


def frames_memory(model: CoRe) -> float:
    """What the frames in the replay buffer take, in GB."""
    assert model.replay_buffer is not None
    tensors = [t for episode in model.replay_buffer.episodes for t in episode.frames.values()]
    return sum(tensor.nbytes for tensor in tensors) / GIGABYTE


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Fill a buffer, then train."""
    n_steps = options.steps
    model = made_up_model(options.preset, "cpu", n_episodes=0, buffer_size=n_steps)
    assert model.replay_buffer is not None
    before = resident_memory()
    readings = []
    n_episodes = max(1, n_steps // EPISODE_STEPS // N_ROWS)
    while model.replay_buffer.size() + n_episodes * EPISODE_STEPS <= n_steps:
        fill(model, n_episodes)
        steps = model.replay_buffer.size()
        readings.append(Reading(steps, frames_memory(model), resident_memory() - before))
    model.train(options.updates, model.batch_size)
    return {
        "preset": options.preset,
        "before": before,
        "readings": [reading._asdict() for reading in readings],
        "updates": options.updates,
        "peak": peak_rss(),
    }


def print_table(figures: dict[str, Any]) -> None:
    """Memory over steps, and the peak."""
    table = [["agent steps", "frames, GB", "resident, GB"]]
    for row in figures["readings"]:
        table.append([f"{row['steps']}", f"{row['frames']:.3f}", f"{row['resident']:.3f}"])
    print(f"\n{figures['preset']}: the replay buffer as it fills")
    print(columns(table))
    print(
        f"peak of the process after {figures['updates']} updates: {figures['peak']:.2f} GB, "
        f"of which {figures['before']:.2f} GB were held before the first frame"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="paper")
    parser.add_argument("--steps", type=int, default=100_000, help="agent steps to store")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    machine = describe_machine("cpu")
    figures = {"benchmark": "memory", "machine": machine, **measure(options)}
    print_machine(machine)
    print_table(figures)
    write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
