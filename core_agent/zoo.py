"""The agents in rl-zoo: training, playing, resuming and tuning with its commands.

    python -m core_agent.zoo train --algo core --env DCS-cheetah-run-easy-dynamic
    python -m core_agent.zoo train --algo core --env DCS-cheetah-run-easy-dynamic -i model.zip
    python -m core_agent.zoo enjoy --algo core --env DCS-cheetah-run-easy-dynamic -f logs
    python -m core_agent.zoo record_video --algo core --env DCS-cheetah-run-easy-dynamic -f logs
    python -m core_agent.zoo train --algo core --env Pendulum-v1 --optimize --n-trials 20

The options are those of rl-zoo. This module adds the algorithms ``core``, ``recurrent_sac``,
``sacrad``, ``curl``, ``qtopt_rad`` and ``qtopt_drq``; their configurations, which are used unless
``-conf`` names another; the ids of the Distracting Control Suite, with validation videos in
evaluations and without a window in ``enjoy``; and evaluation seeds that training never uses.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from core_agent.agents.registry import AGENTS
from core_agent.environments.make import seed_environments
from core_agent.environments.suite import first_seed, is_in_suite
from core_agent.validation import check

CONFIGS = Path(__file__).parent / "configs"
COMMANDS = ("train", "enjoy", "record_video")


Range = tuple[float, float]
COMMON: dict[str, Range] = {
    "one_minus_gamma": (0.002, 0.05),
    "tau": (0.002, 0.05),
    "learning_rate": (5e-5, 2e-3),
}
ACTOR: dict[str, Range] = {"actor_learning_rate": (1e-4, 3e-3)}
RECURRENT: dict[str, Range] = {
    **COMMON,
    "critic_learning_rate": (1e-4, 3e-3),
    **ACTOR,
    "batch_size_pow": (3, 6),
    "sequence_length_pow": (3, 6),
    "update_ratio": (0.1, 1.0),
}
CORE: dict[str, Range] = {
    **RECURRENT,
    "kl_coef": (1e-3, 1.0),
    "reward_coef": (0.1, 10.0),
    "inverse_coef": (0.1, 10.0),
}
FRAME_STACK: dict[str, Range] = {**COMMON, "encoder_tau": (0.005, 0.1), "batch_size_pow": (6, 9)}
SEARCH_SPACES: dict[str, dict[str, Range]] = {
    "core": CORE,
    "recurrent_sac": RECURRENT,
    "sacrad": {**FRAME_STACK, **ACTOR},
    "curl": {**FRAME_STACK, **ACTOR},
    "qtopt_rad": FRAME_STACK,
    "qtopt_drq": FRAME_STACK,
}
"""Ranges of what Optuna samples, by agent: exponents of 2 for ``…_pow``, others on a log scale."""


def convert_parameters(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Parameters as Optuna stores them to constructor arguments."""
    arguments = dict(sampled_params)
    arguments["gamma"] = 1.0 - arguments.pop("one_minus_gamma")
    for name in [name for name in arguments if name.endswith("_pow")]:
        arguments[name.removesuffix("_pow")] = 2 ** arguments.pop(name)
    return arguments


def make_sampler(space: dict[str, Range]) -> Callable[..., dict[str, Any]]:
    """A function in rl-zoo's form: constructor arguments for one Optuna trial."""

    def sample(
        trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]
    ) -> dict[str, Any]:
        sampled = {
            name: trial.suggest_int(name, low, high)
            if name.endswith("_pow")
            else trial.suggest_float(name, low, high, log=True)
            for name, (low, high) in space.items()
        }
        return convert_parameters(sampled)

    return sample


SAMPLERS = {name: make_sampler(space) for name, space in SEARCH_SPACES.items()}


def with_own_seeds(create_envs: Callable[..., VecEnv]) -> Callable[..., VecEnv]:
    """rl-zoo's ``create_envs``, changed so that training and evaluation have different seeds."""

    def create(manager: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        env = create_envs(manager, n_envs, eval_env, no_log)
        seed_environments(env, manager.seed, "val" if eval_env else "train")
        return env

    return create


def register() -> None:
    """Make the algorithms known to rl-zoo, in this process.

    :raises ModuleNotFoundError: if rl-zoo is not installed, saying how to install it
    """
    try:
        import rl_zoo3
        from rl_zoo3 import hyperparams_opt
        from rl_zoo3.exp_manager import ExperimentManager
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"rl-zoo cannot be imported ({error}); install it with: pip install 'core-agent[zoo]'"
        ) from error
    # Changed in place: rl-zoo's modules have imported these tables by name.
    rl_zoo3.ALGOS.update(AGENTS)
    hyperparams_opt.HYPERPARAMS_SAMPLER.update(SAMPLERS)
    hyperparams_opt.HYPERPARAMS_CONVERTER.update(dict.fromkeys(AGENTS, convert_parameters))
    manager: Any = ExperimentManager
    manager.create_envs = with_own_seeds(manager.create_envs)


def with_defaults(command: str, arguments: list[str]) -> list[str]:
    """The user's arguments, and those that these algorithms and environments need in addition.

    :param command: one of :data:`COMMANDS`
    :param arguments: what the user typed after the command
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo")
    parser.add_argument("--env", default="")
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("--env-kwargs", nargs="+", default=[])
    parser.add_argument("--eval-env-kwargs", nargs="+", default=[])
    parser.add_argument("--no-render", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given, _ = parser.parse_known_args(arguments)
    added: list[str] = []
    if command == "train" and given.conf_file is None and given.algo in AGENTS:
        added += ["--conf-file", str(CONFIGS / f"{given.algo}.yml")]
    if command != "train":
        added += ["--seed", str(first_seed(given.seed, split="val"))]
    if is_in_suite(given.env):
        if command == "train" and not given.eval_env_kwargs:
            kept = [entry for entry in given.env_kwargs if not entry.startswith("split:")]
            added += ["--eval-env-kwargs", *kept, "split:'val'"]
        if command == "enjoy" and not given.no_render:
            added += ["--no-render"]
    return [*arguments, *added]


def main(arguments: list[str] | None = None) -> None:
    """Run a command of rl-zoo with the algorithms of this package.

    :param arguments: ``["train", …]`` and the like; by default the process's own
    :raises ValueError: for another command
    """
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    check(command in COMMANDS, "command", f"be one of {COMMANDS}", command)
    register()
    from rl_zoo3.enjoy import enjoy
    from rl_zoo3.train import train

    def record_video() -> None:
        # A script, without a function to call.
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")

    own = sys.argv
    sys.argv = [f"core_agent.zoo {command}", *with_defaults(command, rest)]
    try:
        {"train": train, "enjoy": enjoy, "record_video": record_video}[command]()
    finally:
        sys.argv = own


if __name__ == "__main__":
    try:
        main()
    except (ValueError, TypeError, AssertionError, ModuleNotFoundError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}")
