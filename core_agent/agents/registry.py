"""The agents by their names on the command line, in presets and in rl-zoo."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.core import CoRe
from core_agent.agents.curl import CURL
from core_agent.agents.qt_opt import QTOptDrQ, QTOptRAD
from core_agent.agents.recurrent_sac import RecurrentSAC
from core_agent.agents.sac_rad import SACRAD
from core_agent.environments.make import make_described
from core_agent.saving.checkpoint import CheckpointFolder
from core_agent.saving.safe_loading import read_data
from core_agent.validation import FILE, check

AGENTS: dict[str, type[SequenceOffPolicyAlgorithm]] = {
    "core": CoRe,
    "recurrent_sac": RecurrentSAC,
    "sacrad": SACRAD,
    "curl": CURL,
    "qtopt_rad": QTOptRAD,
    "qtopt_drq": QTOptDrQ,
}


def get_agent(name: str) -> type[SequenceOffPolicyAlgorithm]:
    """The agent of that name.

    :raises ValueError: for an unknown name
    """
    check(name in AGENTS, "agent", f"be one of {tuple(AGENTS)}", name)
    return AGENTS[name]


def trained_for(file: pathlib.Path | io.BytesIO) -> tuple[int, int]:
    """Agent steps and updates of a saved model; -1 for each if no model can be read."""
    try:
        data: dict[str, Any] = read_data(file)
        return int(data["num_timesteps"]), int(data["_n_updates"])
    except (OSError, LookupError, TypeError, ValueError):
        return -1, -1


def find_model(path: str | pathlib.Path) -> pathlib.Path | io.BytesIO:
    """The saved model that a path refers to, in a form that ``load`` accepts.

    :param path: a model file or a run's folder: its ``model.zip`` or, if its newest checkpoint
        has been trained further, the model in that checkpoint

    :raises ValueError: if there is none
    """
    path = pathlib.Path(path)
    if path.is_dir():
        # The model alone is of interest: the episodes of a checkpoint are not read.
        checkpoint = next(CheckpointFolder(path / "checkpoints").checkpoints(), None)
        if checkpoint and trained_for(path / "model.zip") < trained_for(checkpoint.model):
            return checkpoint.model
    for candidate in (path / "model.zip", path, path.with_name(f"{path.name}.zip")):
        if candidate.is_file():
            return candidate
    rule = "be a saved model or the folder of a run"
    check(False, "path", rule, str(path), "there is no such file")
    raise AssertionError


def load_agent(
    path: str | pathlib.Path | io.BufferedIOBase, env: Any = None, **arguments: Any
) -> SequenceOffPolicyAlgorithm:
    """Load a saved model of any agent of this package, with the ``load`` of its own class.

    :param path: file, or a run's folder, see :func:`find_model`
    :param env: as in ``load``; ``"auto"`` makes the environment that the model learned in, if its
        id is registered
    :param arguments: passed to :meth:`~core_agent.agents.base.SequenceOffPolicyAlgorithm.load`
    :raises ValueError: for a file that is no saved model, or one of another class
    """
    FILE("path", path)
    auto = isinstance(env, str) and env == "auto"
    fits = auto or env is None or isinstance(env, (gym.Env, VecEnv))
    check(fits, "env", "be an environment, vectorised environments, None or 'auto'", env)
    if not isinstance(path, io.BufferedIOBase):
        path = find_model(path)
    data = read_data(path)
    if auto:
        env = make_described(data.get("origin"))
    name: Any = data.get("agent_class")
    classes = {agent.__name__: agent for agent in AGENTS.values()}
    check(
        name in classes,
        "path",
        f"be a model of one of {tuple(classes)}",
        name,
        "load it with its own class",
    )
    return classes[name].load(path, env=env, **arguments)
