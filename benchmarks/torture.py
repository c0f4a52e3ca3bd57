"""Loads files with attacks or random damage, and passes bad input: none may do any harm.

    python benchmarks/torture.py attacks
    python benchmarks/torture.py mutations --n 2000 --seed 0
    python benchmarks/torture.py bad-inputs --n 100

``attacks`` loads files that carry attacks, ``mutations`` files damaged at random: models, replay
buffers, policies, checkpoints, pictures and videos; ``bad-inputs`` passes bad values for every
public argument. Short forms are among the tests, with which they share the code under ``tests``.
The exit status is 1 if something happened that must not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import core_agent  # noqa: F401  isort: skip  (before SB3, so that gym's notice is not printed)
from measuring import columns, write_json

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.agents.bad_input import pairs, registered, try_argument
from tests.saving.attacks import ATTACKS, refusals
from tests.saving.mutations import FILES, fuzz

Figures = dict[str, Any]


@contextlib.contextmanager
def working_in(folder: str) -> Iterator[None]:
    """Inside, ``folder`` is the working folder (``contextlib.chdir`` of Python 3.11)."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_attacks(options: argparse.Namespace) -> Figures:
    """Every attack file: how many were refused, and what ran or was let in."""
    with tempfile.TemporaryDirectory() as folder:
        refused = refusals(Path(folder), list(ATTACKS))
    failures = [name for name, reason in refused.items() if reason is None]
    print(columns([["attacks", "refused"], [str(len(ATTACKS)), str(len(ATTACKS) - len(failures))]]))
    return {"attacks": len(ATTACKS), "refused": len(ATTACKS) - len(failures), "failures": failures}


def run_mutations(options: argparse.Namespace) -> Figures:
    """Files damaged at random: how many loaded, how many were refused, and what else happened."""
    with tempfile.TemporaryDirectory() as folder:
        fuzzed = fuzz(Path(folder), options.n, options.seed)
    rows = {
        name: {outcome: fuzzed.counts[name, outcome] for outcome in ("loaded", "refused")}
        for name in FILES
    }
    cells = [[name, str(row["loaded"]), str(row["refused"])] for name, row in rows.items()]
    print(columns([["mutants of", "loaded", "refused"], *cells]))
    return {"mutants": options.n, "seed": options.seed, **rows, "failures": fuzzed.failures}


def run_bad_inputs(options: argparse.Namespace) -> Figures:
    """Bad values for every public argument: how many were tried, and which got no clear error."""
    tried: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder, working_in(folder), registered():
        for name, argument in pairs():
            n_tried, complaints = try_argument(name, argument, options.n)
            tried[name] += n_tried
            failures += complaints
    n_arguments = Counter(name for name, _ in pairs())
    cells = [[name, str(n_arguments[name]), str(tried[name])] for name in tried]
    total = ["all", str(len(pairs())), str(sum(tried.values()))]
    print(columns([["bad input to", "arguments", "values"], *cells, total]))
    return {"values": dict(tried), "arguments": len(pairs()), "failures": failures}


COMMANDS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "attacks": run_attacks,
    "bad-inputs": run_bad_inputs,
    "mutations": run_mutations,
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """A command and its options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        help_text = (command.__doc__ or "").partition("\n")[0]
        sub_parser = parsers.add_parser(name, help=help_text)
        sub_parser.add_argument("--json", type=Path, help="also write the figures to this file")
        if name == "mutations":
            sub_parser.add_argument("--n", type=int, default=2_000, help="mutants")
            sub_parser.add_argument("--seed", type=int, default=0)
        if name == "bad-inputs":
            sub_parser.add_argument("--n", type=int, default=100, help="values of each argument")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; print and write its figures."""
    options = parse(arguments)
    started = time.perf_counter()
    figures = COMMANDS[options.command](options)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    for failure in figures["failures"]:
        print(f"failed: {failure}")
    print(f"{len(figures['failures'])} failure(s) in {figures['seconds']} s")
    write_json(options.json, {"benchmark": f"torture {options.command}", **figures})
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
