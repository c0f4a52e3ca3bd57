"""Model files: read without running what is in them, and checked before networks take memory."""

from __future__ import annotations

import inspect
import io
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces

from core_agent.saving.checkpoint import Checkpoint, CheckpointFolder, NoCheckpointError
from core_agent.saving.integrity import (
    check_attributes,
    check_optimizer_state,
    check_state_dict,
)
from core_agent.saving.safe_loading import (
    SavedModel,
    loads_safely,
    opened,
    read_model,
    read_parameters,
    reading,
)
from core_agent.validation import FILE, check

WHAT = "a saved model"


class CheckedFile(NamedTuple):
    """A model file that is safe to load, as arguments of Stable-Baselines3's ``load``."""

    content: io.BytesIO
    env: GymEnv | None
    custom_objects: dict[str, Any]


@contextmanager
def checked_file(
    model_class: Any,
    path: str | pathlib.Path | io.BufferedIOBase,
    env: GymEnv | None,
    custom_objects: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
) -> Iterator[CheckedFile]:
    """A model file once it is checked; errors raised inside are reported as errors of the file.

    :param model_class: the agent that it should hold
    :param env: to be wrapped for the model
    :param custom_objects: take the place of entries of the file, which are not read
    :param arguments: of the constructor, which take the place of the saved ones
    :raises UnsafeFileError: for a file that is not a safe and complete model of this class
    :raises ValueError: for an environment or an argument that does not fit the model
    """
    with opened(path, "zip") as file:
        # The bytes that are checked are those that are loaded, whoever writes the file meanwhile.
        content = io.BytesIO(file.read())
    replaced = dict(custom_objects or {})
    if "learning_rate" in replaced:
        replaced.setdefault("lr_schedule", None)  # made of learning_rate at set-up
    with reading(path, WHAT):
        saved = read_model(content, replaced)
        data = {**saved.data, **replaced}
        _check_saved(model_class, saved, data)
    if arguments:
        _model_without_networks(model_class, data["policy_class"], {**saved.data, **arguments})
    if env is not None:
        env = model_class._wrap_env(env, data["verbose"])
        check_for_correct_spaces(env, data["observation_space"], data["action_space"])
    unpickled = {key: saved.data[key] for key in saved.pickled}
    with reading(path, WHAT):
        yield CheckedFile(content, env, {**unpickled, **replaced})


def _model_without_networks(
    model_class: Any, policy_class: type[BasePolicy], data: Mapping[str, Any]
) -> Any:
    """A model made with those attributes that are the constructor's arguments.

    :raises ValueError: for a bad one
    """
    names = inspect.signature(model_class).parameters.keys() & data.keys()
    fixed = dict(policy=policy_class, env=None, device="cpu", _init_setup_model=False)
    return model_class(**{**{name: data[name] for name in names}, **fixed})


def _check_saved(model_class: Any, saved: SavedModel, data: Mapping[str, Any]) -> None:
    """Make sure that a file holds a model of this class, before networks take memory.

    :param saved: content of the file
    :param data: its attributes, those replaced by the caller included
    :raises ValueError: if it does not
    """
    check_attributes(model_class, data)
    probe = _model_without_networks(model_class, data["policy_class"], saved.data)
    probe.__dict__.update(data)
    names, found = set(probe._get_torch_save_params()[0]), set(saved.parameters)
    check(found == names, "the file", f"hold the parameters of {sorted(names)}", sorted(found))
    if not probe.policy_class.__module__.startswith("core_agent."):
        return  # A policy of the user's may do what tensors without memory cannot.
    with torch.device("meta"):
        own = probe._make_policy().state_dict()
    check_state_dict("policy", own, saved.parameters["policy"])


def checked_parameters(
    model: Any, source: str | pathlib.Path | io.BufferedIOBase | dict[str, Any], exact: bool
) -> dict[str, Any]:
    """State dicts by name, as SB3's ``set_parameters`` takes them, once they are checked.

    :param model: the agent whose networks and optimisers they are for
    :param source: model file, or the state dicts
    :param exact: none may be missing in one of a network, and none too many
    :raises UnsafeFileError: if a file is no saved model
    :raises ValueError: for parameters that do not fit the model
    """
    parameters: Any = source
    if not isinstance(source, dict):
        FILE("load_path_or_dict", source)
        with opened(source, "zip") as file, reading(source, WHAT):
            parameters = read_parameters(file)
    known = model._get_torch_save_params()[0]
    for name, found in parameters.items():
        check(name in known, "parameters", f"be of {known}", name)
        own = recursive_getattr(model, name)
        if isinstance(own, torch.optim.Optimizer):
            check_optimizer_state(name, own, found)
        else:
            check_state_dict(name, own.state_dict(), found, exact)
    return parameters


def find_checkpoint(
    folder: str | pathlib.Path, algorithm: str
) -> tuple[CheckpointFolder, Checkpoint]:
    """A folder of checkpoints and the newest complete one in it.

    :param algorithm: name of the agent's class
    :raises NoCheckpointError: if there is none; a kind of ``ValueError``
    :raises ValueError: for another algorithm's checkpoint
    """
    checkpoints = CheckpointFolder(folder)
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        raise NoCheckpointError(
            f"folder must hold a complete checkpoint, got {str(folder)!r}; start a new run, or "
            "pass the folder that was given to checkpoint() or to ExactCheckpointCallback"
        )
    saved_by = checkpoint.manifest["algorithm"]
    rule, way_out = f"hold checkpoints of {algorithm}", f"use {saved_by}.resume"
    check(saved_by == algorithm, "folder", rule, saved_by, way_out)
    return checkpoints, checkpoint


def warn_of_own_schedule(learning_rate: Any) -> None:
    """Warn of a learning rate that ``load`` would refuse."""
    if callable(learning_rate) and not loads_safely(learning_rate):
        warnings.warn(
            "learning_rate is a function of your own: load() will refuse it unless given "
            "custom_objects={'learning_rate': ...} or trusted=True. "
            "Stable-Baselines3's LinearSchedule loads as it is.",
            stacklevel=3,
        )
