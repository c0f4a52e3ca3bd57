"""CoRe in rl-zoo: train and play with rl-zoo's commands.

    pip install -c constraints.txt -e ".[zoo]"
    python examples/rl_zoo.py

The same from the shell:

    python -m core_agent.zoo train --algo core --env Pendulum-v1
    python -m core_agent.zoo enjoy --algo core --env Pendulum-v1 -f logs --no-render -n 200

`Pendulum-v1` is a quick check in `core_agent/configs/core.yml`, which also has the paper's values
for all Distracting Control environments.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def zoo(command: str, *arguments: str) -> None:
    """rl-zoo patches Gymnasium when it is imported, so each command gets its own process."""
    subprocess.run([sys.executable, "-m", "core_agent.zoo", command, *arguments], check=True)


def main(folder: Path = Path("logs")) -> Path:
    common = ["--algo", "core", "--env", "Pendulum-v1", "--seed", "1"]
    zoo("train", *common, "-f", str(folder), "--eval-freq", "-1")
    zoo("enjoy", *common, "-f", str(folder), "--no-render", "-n", "200")
    return folder / "core" / "Pendulum-v1_1" / "Pendulum-v1.zip"


if __name__ == "__main__":
    main()
