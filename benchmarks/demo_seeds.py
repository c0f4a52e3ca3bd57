"""The demo with several seeds: a table and one picture.

make demo
core-agent demo --folder runs/demo-1 --seed 1
core-agent demo --folder runs/demo-2 --seed 2
python benchmarks/demo_seeds.py runs/demo runs/demo-1 runs/demo-2 --output runs/demo_seeds.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from core_agent.runs.plotting import plot_runs, running_mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demos", type=Path, nargs="+", help="folders written by `core-agent demo`")
    parser.add_argument("--output", type=Path, default=Path("demo_seeds.png"))
    arguments = parser.parse_args()
    curves = {}
    print("seed | random, training | last 10 episodes | random, validation | validation | minutes")
    for folder in arguments.demos:
        run = json.loads((folder / "summary.json").read_text())
        steps, _, returns = zip(*run["episodes"])
        curves[f"seed {run['seed']}"] = (steps, running_mean(returns))
        print(
            f"{run['seed']:4} | {run['random_training_return']:16.1f} | "
            f"{run['last_training_return']:16.1f} | {run['random_validation_return']:18.1f} | "
            f"{run['validation_return']:10.1f} | {run['total_seconds'] / 60:7.1f}"
        )
    plot_runs(arguments.output, "return, mean of the last 10 episodes", {"": curves})
    print(f"figure: {arguments.output}")


if __name__ == "__main__":
    main()
