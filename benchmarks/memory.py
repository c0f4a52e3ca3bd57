"""Memory of the replay buffer and of a training run.

    python benchmarks/memory.py --json runs/memory.json
    python benchmarks/memory.py --preset small --steps 10000 --updates 20

The replay buffer of a model of the preset's size is filled with random frames, episode by episode,
and then updates are made. *Frames* is the size of the frames in the buffer, *resident* the growth
of the process since before the first frame, which includes the allocator's overhead. *Peak* is the
largest memory of the process, with networks, activations and libraries. Linux on a CPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import (
    EPISODE_STEPS,
    add_common_options,
    columns,
    fill,
    made_up_model,
    peak_rss,
    start,
    write_json,
)

from core_agent.agents.presets import PRESETS


def resident_memory() -> float:
    """Main memory of this process now, in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def measure(preset: str, n_steps: int, n_updates: int) -> dict[str, Any]:
    """Fill a buffer, then train; memory in GB."""
    model = made_up_model(preset, "cpu", n_episodes=0, buffer_size=n_steps)
    before = resident_memory()
    fill(model, n_steps // EPISODE_STEPS)
    resident = resident_memory() - before
    frames = [t for e in model.replay_buffer.episodes for t in e.frames.values()]
    model.train(n_updates, model.batch_size)
    return {
        "preset": preset,
        "agent steps": model.replay_buffer.size(),
        "frames": sum(tensor.nbytes for tensor in frames) / 1e9,
        "resident": resident,
        "peak": peak_rss(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser)
    parser.add_argument("--preset", choices=list(PRESETS), default="paper")
    parser.add_argument("--steps", type=int, default=100_000, help="agent steps to store")
    parser.add_argument("--updates", type=int, default=3)
    options = parser.parse_args(arguments)
    machine = start(options)
    figures = measure(options.preset, options.steps, options.updates)
    shown = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in figures.values()]
    print(columns([list(figures), shown]), "(memory in GB)")
    write_json(options.json, {"benchmark": "memory", "machine": machine, **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
