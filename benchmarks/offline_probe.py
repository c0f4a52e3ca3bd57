"""What the latent state holds after a number of updates on the same recorded episodes.

    python benchmarks/offline_probe.py --save runs/episodes.npz
    python benchmarks/offline_probe.py --load runs/episodes.npz --set crop_size=54

The episodes are those of the agent that comes with the package, in turn with random actions and
with no, some and much noise on its actions. A new agent learns from the episodes on training videos
without acting itself, so that two runs differ in their arguments and not in what their policies
have found. Then the linear map of ``core-agent probe`` is fitted to some of these episodes, and
the table has its R² on held-out episodes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import Logger

from core_agent import CoRe, preset
from core_agent.environments.suite import first_seed
from core_agent.runs.probe import LinearProbe, Played, Recorded, join, play_episodes, state_names
from core_agent.runs.settings import parse_settings
from core_agent.runs.training import evaluation_environment
from core_agent.trained import load_trained

NOISE = (None, 0.0, 0.4, 0.8)
"""Noise of every fourth episode, see :func:`core_agent.runs.probe.play_episodes`."""
N_FITTED = 24


def collect(task: str, n_training: int, n_held_out: int) -> dict[str, np.ndarray]:
    """Episodes to learn from, and held-out ones on training and on validation videos."""
    agent: Any = load_trained(f"DCS-{task}-easy-dynamic")
    arrays: dict[str, np.ndarray] = {}
    for name, split, n_episodes, index in (
        ("learned", "train", n_training, 1),
        ("train", "train", n_held_out, 2),
        ("val", "val", n_held_out, 3),
    ):
        options = (None, None, split, dict(vector_observations=True))
        with closing(evaluation_environment(agent.origin, *options)) as env:
            noise = islice(cycle(NOISE), n_episodes)
            episodes = list(play_episodes(agent, env, noise, first_seed(index, split=split)))
            arrays["names"] = np.array(state_names(env))
        for field, parts in zip(Played._fields, zip(*episodes)):
            arrays[f"{name}/{field}"] = np.stack(parts)
    return arrays


def episodes_of(arrays: dict[str, np.ndarray], name: str) -> list[Played]:
    return [Played(*parts) for parts in zip(*(arrays[f"{name}/{key}"] for key in Played._fields))]


def new_agent(task: str, preset_name: str, options: dict[str, Any], learned: list[Played]) -> CoRe:
    """An untrained agent with the episodes in its replay buffer."""
    env_id = f"DCS-{task}-easy-dynamic"
    arguments = {"behavior_updates": 1, **options}
    origin = {"preset": preset_name, "env_id": env_id, "env_arguments": {}}
    with closing(evaluation_environment(origin, None, preset_name, "train", {})) as env:
        model = CoRe("CnnPolicy", env, seed=0, **preset(preset_name, env_id=env_id, **arguments))
    model.set_logger(Logger(None, []))
    buffer: Any = model.replay_buffer
    for frames, _, actions, rewards in learned:
        frames = frames.transpose(0, 3, 1, 2)
        for step, (action, reward) in enumerate(zip(actions, rewards)):
            last = np.array([step == len(actions) - 1])
            infos = [{"TimeLimit.truncated": last[0]}]
            pair = frames[step][None], frames[step + 1][None]
            buffer.add(*pair, action[None], reward[None], last, infos)
    return model


def r_squared(model: CoRe, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """R² of each coordinate on the held-out episodes with training and validation videos."""

    def recorded(episodes: list[Played]) -> Recorded:
        return join([Recorded(model.encode(e.frames, e.actions), e.states) for e in episodes])

    model.policy.set_training_mode(False)
    fitted = LinearProbe(recorded(episodes_of(arrays, "learned")[:N_FITTED]))
    return {
        split: fitted.r_squared(recorded(episodes_of(arrays, split))) for split in ("train", "val")
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or read the episodes, train, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", default="cartpole-swingup", help="default: %(default)s")
    parser.add_argument("--preset", default="small", help="default: %(default)s")
    parser.add_argument("--updates", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--set", action="append", help="argument of CoRe as key=value")
    parser.add_argument("--episodes", type=int, default=80, help="to learn from")
    parser.add_argument("--held-out", type=int, default=8, help="of each kind of videos")
    parser.add_argument("--save", type=Path, help="file for the episodes")
    parser.add_argument("--load", type=Path, help="file that --save wrote")
    options = parser.parse_args(arguments)
    if options.load:
        with np.load(options.load) as file:
            arrays = dict(file)
    else:
        arrays = collect(options.task, options.episodes, options.held_out)
        if options.save:
            options.save.parent.mkdir(parents=True, exist_ok=True)
            np.savez(options.save, **arrays)  # type: ignore[arg-type]
    settings = parse_settings(options.set, "--set")
    learned = episodes_of(arrays, "learned")
    model = new_agent(options.task, options.preset, settings, learned)
    print("updates | minutes | accuracy | videos |", " | ".join(arrays["names"]))
    started = time.perf_counter()
    for done, updates in zip([0, *options.updates], options.updates):
        model.train(updates - done, model.batch_size)
        minutes = (time.perf_counter() - started) / 60
        accuracy = model.logger.name_to_value["train/contrastive_accuracy"]
        for split, values in r_squared(model, arrays).items():
            figures = " | ".join(f"{value:.2f}" for value in values)
            print(f"{updates} | {minutes:.1f} | {accuracy:.2f} | {split} | {figures}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
