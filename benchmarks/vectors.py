"""Time of one update on vector observations, compared with Stable-Baselines3's SAC.

    python benchmarks/vectors.py --json vectors.json

Agents with ``preset("vector")``, with ``preset("small")`` and SAC make updates on the Pendulum, on
one thread of a CPU, in turns, so that other work on the machine affects them equally. Times are
processor time; *times SAC* is the median of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measuring import Spread, columns, start, write_json
from stable_baselines3 import SAC

from core_agent.agents.presets import preset
from core_agent.agents.registry import AGENTS

ROWS = (("core", "vector"), ("recurrent_sac", "vector"), ("core", "small"))


def make(algorithm: Any, **arguments: Any) -> Any:
    """An agent with 1,000 random steps of the Pendulum in its buffer."""
    model = algorithm("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", **arguments)
    model.learning_starts = 1_000
    return model.learn(1_000)


def seconds_per_update(model: Any, n_updates: int) -> float:
    """Processor time per update, averaged over ``n_updates``."""
    started = time.process_time()
    model.train(gradient_steps=n_updates, batch_size=model.batch_size)
    return (time.process_time() - started) / n_updates


def measure(n_repetitions: int, n_updates: int) -> dict[str, dict[str, Any]]:
    """Seconds of an update, and how many times SAC's that is, by the name of a row."""
    models = {"SAC": make(SAC)}
    for agent, name in ROWS:
        models[f"{agent}, {name}"] = make(AGENTS[agent], **preset(name, agent))
    turns: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(n_repetitions + 1):
        for name, model in models.items():
            seconds = seconds_per_update(model, n_updates)
            if turn > 0:  # The first is for warming up.
                turns[name].append(seconds)
    return {
        name: {
            **Spread.of(times)._asdict(),
            "times SAC": median(ours / sac for ours, sac in zip(times, turns["SAC"])),
        }
        for name, times in turns.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--updates", type=int, default=20, help="in a turn")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    machine = start(argparse.Namespace(threads=1, device="cpu"))
    rows = measure(options.repetitions, options.updates)
    cells = [(n, f"{1e3 * r['median']:.1f}", f"{r['times SAC']:.2f}") for n, r in rows.items()]
    print(columns([("", "ms an update", "times SAC"), *cells]))
    write_json(options.json, {"benchmark": "vectors", "machine": machine, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
