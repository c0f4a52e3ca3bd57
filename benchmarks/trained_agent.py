"""Evaluate the agent of a finished run, and write it as one that comes with the package.

    python benchmarks/trained_agent.py runs/ball
    python benchmarks/trained_agent.py runs/cheetah --commit 94edc69

Writes ``NAME.npz`` and the model card ``NAME.md``, the name being the environment's id. The agent
and random actions play the same episodes on validation videos, the agent deterministically.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from measuring import cpu_name

from core_agent import trained
from core_agent.agents.registry import load_agent
from core_agent.hub import evaluate
from core_agent.runs.training import evaluation_environment
from core_agent.trained import ModelCard, save_trained


def commit() -> str:
    """The short hash of the commit that is checked out."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def describe(folder: Path, model: Any, n_episodes: int, made_at: str) -> ModelCard:
    """Play the episodes, and describe the agent.

    :param folder: of the run
    :param model: its agent
    :param made_at: commit that the run was made at
    """
    run = json.loads((folder / "run.json").read_text())
    with closing(evaluation_environment(model.origin, None, None, "val", {})) as env:
        played = evaluate(model, env, n_episodes, seed=0)
        repeat = env.get_wrapper_attr("action_repeat")
    return ModelCard(
        env_id=run["env_id"],
        agent=run["agent"],
        preset=run["preset"],
        seed=run["seed"],
        agent_steps=model.num_timesteps,
        simulator_steps=model.num_timesteps * repeat,
        updates=model._n_updates,
        returns=[round(value, 2) for value in played.returns],
        random_return=sum(played.random_returns) / n_episodes,
        videos=played.videos,
        processor=cpu_name(),
        commit=made_at,
        arguments=run["arguments"],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("--output", type=Path, default=trained.FOLDER, help="default: the package")
    parser.add_argument("--episodes", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--commit", help="that the run was made at; default: what is checked out")
    options = parser.parse_args(arguments)
    model = load_agent(options.folder)
    card = describe(options.folder, model, options.episodes, options.commit or commit())
    save_trained(model, card, options.output)
    print(f"{card.mean:.1f} ± {card.standard_error:.1f}, random {card.random_return:.1f}")
    print(f"written: {options.output / card.env_id}.npz and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
