"""How updates and collection scale: with the batch, the length, the number of environments.

    python benchmarks/scaling.py                              # small preset
    python benchmarks/scaling.py --preset paper --batches 8 16 32 64 --lengths 8 16 32
    python benchmarks/scaling.py --batches --lengths --envs 1 2 4 8 --json scaling.json

Three tables. *Batch* and *length*: one update on made-up frames, with the other of both as the
preset has it; perfect scaling keeps the time per frame. *Environments*: agent steps per second of
collection without learning, each environment in a process of its own (``SubprocVecEnv``) or all in
one (``DummyVecEnv``), on cheetah-run with moving distractions and the built-in videos; and the time
to choose their actions, which is one pass for all. Settings of one table take turns; medians.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
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
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from core_agent import CoRe, preset
from core_agent.agents.presets import get_preset
from core_agent.environments.make import make_env

ENV_ID = "DCS-cheetah-run-easy-dynamic"


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds that ``run`` takes."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def measure_updates(
    name: str, values: Sequence[int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Updates with one argument of CoRe at several values.

    :param name: ``"batch_size"`` or ``"sequence_length"``
    :param values: of that argument
    """
    arguments: list[dict[str, Any]] = [{name: value} for value in values]
    models = [made_up_model(options.preset, options.device, **chosen) for chosen in arguments]
    seconds: list[list[float]] = [[] for _ in models]
    for model in models:
        model.train(options.warmup, model.batch_size)
    for _ in range(options.repetitions):
        for model, times in zip(models, seconds):
            update = partial(model.train, options.updates, model.batch_size)
            times.append(timed(update, options.device) / options.updates)
    rows = []
    for model, times in zip(models, seconds):
        spread = Spread.of(times)
        n_frames = model.batch_size * model.sequence_length
        rows.append(
            {
                "batch_size": model.batch_size,
                "sequence_length": model.sequence_length,
                **spread._asdict(),
                "frames_per_second": n_frames / spread.median,
            }
        )
    return rows


def make_envs(kind: str, n_envs: int, preset_name: str) -> VecEnv:
    """Environments of the preset, in processes of their own or not."""
    make = partial(make_env, ENV_ID, video_path="builtin", **get_preset(preset_name).env_arguments)
    if kind == "subproc":
        return SubprocVecEnv([make] * n_envs, start_method="spawn")
    return DummyVecEnv([make] * n_envs)


def measure_collection(kind: str, n_envs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Collect with the policy, without learning."""
    envs = make_envs(kind, n_envs, options.preset)
    arguments = preset(options.preset, learning_starts=0, gradient_steps=0)
    model = CoRe("CnnPolicy", envs, seed=0, device=options.device, **arguments)
    model.train_freq = options.collect_steps
    model._convert_train_freq()
    model.learn(n_envs, log_interval=None)
    collect = partial(model.learn, n_envs * options.collect_steps, log_interval=None)
    collected, acting = [], []
    for _ in range(options.repetitions):
        seconds = timed(partial(collect, reset_num_timesteps=False), options.device)
        collected.append(seconds / options.collect_steps)
        choose = partial(model._sample_action, 0, None, n_envs)
        acting.append(timed(choose, options.device))
    envs.close()
    spread = Spread.of(collected)
    return {
        "kind": kind,
        "n_envs": n_envs,
        **spread._asdict(),
        "agent_steps_per_second": n_envs / spread.median,
        "acting": Spread.of(acting)._asdict(),
    }


def print_updates(title: str, key: str, rows: Sequence[dict[str, Any]]) -> None:
    """Times, and time per frame relative to the first row's."""
    print(f"\n{title}: milliseconds per update, median [quartiles] of {rows[0]['n']}")
    table = [[key, "ms", "frames/s", "against the first"]]
    for row in rows:
        spread = Spread(**{field: row[field] for field in Spread._fields})
        relative = row["frames_per_second"] / rows[0]["frames_per_second"]
        table.append(
            [
                str(row[key]),
                spread.milliseconds().strip(),
                f"{row['frames_per_second']:.0f}",
                f"{relative:.2f}",
            ]
        )
    print(columns(table))


def print_collection(rows: Sequence[dict[str, Any]]) -> None:
    """Rates of collection."""
    print(f"\nenvironments: agent steps per second, medians of {rows[0]['n']}")
    table = [["", "agent steps/s", "against the first", "ms to choose actions"]]
    for row in rows:
        relative = row["agent_steps_per_second"] / rows[0]["agent_steps_per_second"]
        table.append(
            [
                f"{row['n_envs']} {row['kind']}",
                f"{row['agent_steps_per_second']:.1f}",
                f"{relative:.2f}",
                f"{1e3 * row['acting']['median']:.1f}",
            ]
        )
    print(columns(table))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser)
    parser.add_argument("--preset", choices=("paper", "small", "debug"), default="small")
    parser.add_argument("--batches", nargs="*", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--lengths", nargs="*", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--envs", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--kinds", nargs="+", choices=("subproc", "dummy"), default=["subproc"])
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each setting")
    parser.add_argument("--updates", type=int, default=2, help="in a turn")
    parser.add_argument("--warmup", type=int, default=2, help="updates before, not counted")
    parser.add_argument("--collect-steps", type=int, default=25, help="of each environment a turn")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    machine = describe_machine(options.device)
    print_machine(machine)
    figures: dict[str, Any] = {"benchmark": "scaling", "machine": machine, "preset": options.preset}
    for title, key, values in (
        ("batch", "batch_size", options.batches),
        ("length", "sequence_length", options.lengths),
    ):
        if values:
            figures[title] = measure_updates(key, values, options)
            print_updates(title, key, figures[title])
    if options.envs:
        figures["environments"] = [
            measure_collection(kind, n_envs, options)
            for kind in options.kinds
            for n_envs in options.envs
        ]
        print_collection(figures["environments"])
    write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
