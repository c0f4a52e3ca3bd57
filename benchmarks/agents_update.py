"""How long one update of each agent takes, side by side.

    python benchmarks/agents_update.py --json runs/agents_update.json
    python benchmarks/agents_update.py --preset paper --device cuda

One update is: sample, augment, every loss and every optimiser step, logging. Actor and targets of
the feed-forward agents have their turn at every second update, so a turn here is an even number of
updates. All agents take turns, so that other work on the machine disturbs them alike. *CPU ms* is
the processor time of all threads: where, on one thread, it is well below the time by the clock, the
machine was busy with other work. Frames are made up: what an update costs does not depend on them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from measuring import (
    Spread,
    add_common_options,
    columns,
    describe_machine,
    made_up_model,
    print_machine,
    synchronize,
    write_json,
)

from core_agent.agents.registry import AGENTS


def time_updates(model: Any, n_updates: int, device: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor that one update takes."""
    synchronize(device)
    started, cpu_started = time.perf_counter(), time.process_time()
    model.train(n_updates, model.batch_size)
    synchronize(device)
    return (
        (time.perf_counter() - started) / n_updates,
        (time.process_time() - cpu_started) / n_updates,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of each agent by name."""
    models = {
        name: made_up_model(options.preset, options.device, agent=name) for name in options.agents
    }
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for model in models.values():
        model.train(2, model.batch_size)
    for _ in range(options.repetitions):
        for name, model in models.items():
            turns[name].append(time_updates(model, options.updates, options.device))
    return {
        name: {
            **Spread.of([wall for wall, _ in turns[name]])._asdict(),
            "seconds": [wall for wall, _ in turns[name]],
            "cpu_seconds": [cpu for _, cpu in turns[name]],
            "batch_size": model.batch_size,
            "parameters": sum(parameter.numel() for parameter in model.policy.parameters()),
        }
        for name, model in models.items()
    }


def print_table(rows: dict[str, Any]) -> None:
    """One line for each agent."""
    lines = [["agent", "batch", "parameters", "ms [quartiles]", "CPU ms", "updates/s"]]
    for name, row in rows.items():
        spread = Spread(*(row[field] for field in Spread._fields))
        lines.append(
            [
                name,
                str(row["batch_size"]),
                f"{row['parameters']:,}",
                spread.milliseconds().strip(),
                f"{1e3 * median(row['cpu_seconds']):.0f}",
                f"{1 / spread.median:.1f}",
            ]
        )
    print(columns(lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser)
    parser.add_argument("--agents", nargs="+", choices=tuple(AGENTS), default=list(AGENTS))
    parser.add_argument("--preset", default="small", help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=7, help="turns of each agent")
    parser.add_argument("--updates", type=int, default=10, help="in a turn; default: %(default)s")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe_machine(options.device)
    print_machine(machine)
    rows = measure(options)
    print_table(rows)
    figures = {"benchmark": "agents_update", "preset": options.preset, "machine": machine}
    write_json(options.json, {**figures, "agents": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
