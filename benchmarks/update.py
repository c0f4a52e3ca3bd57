"""Time of one update, compared with a plain implementation.

    python benchmarks/update.py                       # paper's size and the small preset
    python benchmarks/update.py --sizes small --repetitions 20 --json update.json
    python benchmarks/update.py --sizes small --only recurrent_sac sacrad curl qtopt_rad qtopt_drq
    python benchmarks/update.py --device cuda

One update is: sample, augment, all losses and optimiser steps, logging. Rows:

- *yardstick*: the plain implementation of ``yardstick.py``, float32, eager, with the default
  allocator of the C library; on a CPU also with the tuned allocator;
- *ours*: ``CoRe.train`` as a user runs it;
- *ours, …*: the same with one optimisation removed or one setting changed;
- another agent's name, only if ``--only`` names it.

The columns on the right are a row's time divided by that of *ours*, and its speed divided by that
of each yardstick. On a GPU, updates run as CUDA graphs, except in the row *ours, no CUDA graph*.

The allocator's setting is per process, so rows with and without it run in two processes. All rows
take turns, so that other work on the machine affects them equally; medians over the turns are
compared. *CPU ms* is the processor time of all threads: where, on one thread, it is well below the
elapsed time, the machine was busy with other work. Ratios on one CPU thread are of processor time,
all others of elapsed time. Frames are random (100×100 with six actions;
64×64 for ``small``): the time of an update does not depend on their content. A turn is an even
number of updates where agents update their actor every second time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from statistics import median
from typing import Any, NamedTuple

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
from yardstick import Yardstick

from core_agent import CoRe
from core_agent.agents.cuda_graphs import WARM_UPS
from core_agent.agents.registry import AGENTS

SIZES = ("paper", "small", "debug")

Runner = Callable[[int], None]
"""Makes that many updates."""


class Settings(NamedTuple):
    """Arguments of a measuring process."""

    size: str
    device: str
    threads: int | None
    tuned_allocator: bool
    warmup: int


# ---- one optimisation removed ----


def use_no_graph(model: CoRe) -> None:
    """Launch every kernel separately."""
    model._update = model.update  # type: ignore[method-assign]


class Variant(NamedTuple):
    """One row: an agent with other arguments, or changed after its construction."""

    change: Callable[[CoRe], None] | None = None
    arguments: dict[str, Any] = {}  # noqa: RUF012
    agent: str = "core"


OURS, YARDSTICK, NO_GRAPH = "ours", "yardstick", "ours, no CUDA graph"
VARIANTS: dict[str, Variant] = {
    OURS: Variant(),
    NO_GRAPH: Variant(use_no_graph),
    "ours, precision float32": Variant(arguments=dict(precision="float32")),
    "ours, precision bfloat16": Variant(arguments=dict(precision="bfloat16")),
}
OTHER_AGENTS = {name: Variant(agent=name) for name in AGENTS if name != "core"}


# ---- measuring ----


def make_runner(name: str, settings: Settings) -> Runner:
    """The function that makes updates for one row, warmed up."""
    run = yardstick_runner(settings) if name == YARDSTICK else our_runner(name, settings)
    run(settings.warmup)
    synchronize(settings.device)
    return run


def yardstick_runner(settings: Settings) -> Runner:
    model = made_up_model(settings.size, settings.device, precision="float32")
    yardstick = Yardstick.of(model.policy)

    def run(n_updates: int) -> None:
        for _ in range(n_updates):
            yardstick.update(model.augment(model._sample_batch(model.batch_size)))

    return run


def our_runner(name: str, settings: Settings) -> Runner:
    variant = {**VARIANTS, **OTHER_AGENTS}[name]
    model = made_up_model(settings.size, settings.device, variant.agent, **variant.arguments)
    if variant.change is not None:
        variant.change(model)
    return lambda n_updates: model.train(n_updates, model.batch_size)


class Turn(NamedTuple):
    """Seconds per update: elapsed, and of all threads of this process."""

    wall: float
    cpu: float


def timed(run: Runner, n_updates: int, device: str) -> Turn:
    """Time of updates."""
    synchronize(device)
    started, cpu_started = time.perf_counter(), time.process_time()
    run(n_updates)
    synchronize(device)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    return Turn(wall / n_updates, cpu / n_updates)


RUNNERS: dict[str, Runner] = {}
"""Of a measuring process, by the name of the row."""


def prepare(settings: Settings) -> None:
    """What a measuring process does first."""
    os.environ["CORE_AGENT_KEEP_MEMORY"] = "1" if settings.tuned_allocator else "0"
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


def take_turn(name: str, settings: Settings, n_updates: int) -> Turn:
    """Time of updates of a row, in a measuring process."""
    if name not in RUNNERS:
        RUNNERS[name] = make_runner(name, settings)
    return timed(RUNNERS[name], n_updates, settings.device)


class Row(NamedTuple):
    """One line of the table."""

    name: str
    tuned_allocator: bool

    def label(self, device: str) -> str:
        if torch.device(device).type == "cuda":
            return self.name
        if self.name == YARDSTICK:
            return f"{self.name}, tuned allocator" if self.tuned_allocator else self.name
        return self.name if self.tuned_allocator else f"{self.name}, plain allocator"


def rows_for(device: str, only: Sequence[str]) -> list[Row]:
    """All rows of CoRe; if ``only`` names rows, only these, ours and the yardstick's."""
    rows = [Row(YARDSTICK, True), *(Row(name, True) for name in VARIANTS)]
    if torch.device(device).type == "cpu":
        rows = [row for row in rows if row.name != NO_GRAPH]
        rows = [Row(YARDSTICK, False), rows[0], rows[1], Row(OURS, False), *rows[2:]]
    if only:
        rows = [row for row in rows if row.name in (OURS, YARDSTICK, *only)]
        rows += [Row(name, True) for name in only if name in OTHER_AGENTS]
    return rows


def measure(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of all rows, which take turns."""
    on_gpu = torch.device(options.device).type == "cuda"
    n_updates = options.updates or (1 if size == "paper" and not on_gpu else 10)
    rows = rows_for(options.device, options.only)
    warmup = max(options.warmup, WARM_UPS + 1) if on_gpu else options.warmup
    turns: dict[str, list[Turn]] = {row.label(options.device): [] for row in rows}
    errors: dict[str, str] = {}
    with ExitStack() as stack:
        workers = {}
        for tuned in sorted({row.tuned_allocator for row in rows}):
            settings = Settings(size, options.device, options.threads, tuned, warmup)
            context = multiprocessing.get_context("spawn")
            executor = ProcessPoolExecutor(1, context, prepare, (settings,))
            workers[tuned] = stack.enter_context(executor), settings
        machine = workers[True][0].submit(describe_machine, options.device).result()
        for _ in range(options.repetitions):
            for row in rows:
                label = row.label(options.device)
                executor, settings = workers[row.tuned_allocator]
                if label not in errors:
                    turn = executor.submit(take_turn, row.name, settings, n_updates)
                    try:
                        turns[label].append(turn.result())
                    except RuntimeError as error:  # this row fails, the others continue
                        errors[label] = str(error).splitlines()[0]
    figures = {
        label: {
            **Spread.of([turn.wall for turn in taken])._asdict(),
            "seconds": [turn.wall for turn in taken],
            "cpu_seconds": [turn.cpu for turn in taken],
        }
        for label, taken in turns.items()
        if taken
    }
    return {"machine": machine, "rows": figures, "errors": errors}


def print_table(size: str, measured: dict[str, Any]) -> None:
    """Medians, quartiles and ratios."""
    rows = measured["rows"]
    # On one CPU thread processor time is what updates need, however busy the machine is.
    machine = measured["machine"]
    field = "cpu_seconds" if (machine["device"], machine["threads"]) == ("cpu", 1) else "seconds"
    medians = {label: median(row[field]) for label, row in rows.items()}
    yardsticks = [label for label in rows if label.startswith(YARDSTICK)]
    print(f"\n{size}: milliseconds per update, median [quartiles]")
    ratios = ["time / ours", *(f"speed / {name}" for name in yardsticks)]
    table = [["", "ms", "updates/s", "CPU ms", *ratios]]
    for label, row in rows.items():
        spread = Spread(*(row[name] for name in Spread._fields))
        speeds = [medians[name] / medians[label] for name in yardsticks]
        table.append(
            [
                label,
                spread.milliseconds().strip(),
                f"{1 / spread.median:.2f}",
                f"{1e3 * median(row['cpu_seconds']):.0f}",
                f"{medians[label] / medians[OURS]:.2f}" if OURS in medians else "",
                *(f"{ratio:.2f}" for ratio in speeds),
            ]
        )
    print(columns(table))
    for label, error in measured["errors"].items():
        print(f"{label}: failed: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["paper", "small"])
    parser.add_argument("--repetitions", type=int, default=7, help="turns of each row")
    parser.add_argument("--updates", type=int, help="in a turn; default: 1 or, where fast, 10")
    parser.add_argument(
        "--warmup", type=int, default=3, help="updates before, not counted; with CUDA at least 4"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help="rows in addition to ours and yardstick"
    )
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {"benchmark": "update", "sizes": {}}
    for size in options.sizes:
        measured = measure(size, options)
        if not figures["sizes"]:
            print_machine(measured["machine"])
        print_table(size, measured)
        figures["sizes"][size] = measured
    write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
