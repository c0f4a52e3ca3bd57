"""Model files: read without running what is in them, and checked before networks take memory."""

from __future__ import annotations

import inspect
import io
import pathlib
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import get_system_info

from core_agent.saving.checkpoint import Checkpoint, CheckpointFolder, NoCheckpointError
from core_agent.saving.integrity import (
    check_attributes,
    check_optimizer_state,
    check_state_dict,
)
from core_agent.saving.safe_loading import (
    SavedModel,
    UnsafeFileError,
    loads_safely,
    opened,
    read_json,
    read_model,
    read_parameters,
    reading,
)
from core_agent.validation import FILE, check, check_arguments, rules_of

WHAT = "a saved model"


def load_model(
    model_class: Any,
    path: str | pathlib.Path | io.BufferedIOBase,
    env: GymEnv | None,
    device: torch.device | str,
    custom_objects: Mapping[str, Any] | None,
    print_system_info: bool,
    force_reset: bool,
    arguments: Mapping[str, Any],
) -> Any:
    """A model from a file, which is checked before memory for the networks is allocated.

    The networks are built without memory, which is allocated once the parameters in the file are
    known to fit. Errors in the file name the file; errors in the other arguments do not.

    :param model_class: the agent that the file should hold
    :param custom_objects: replacements for entries of the file, which are then not read
    :param arguments: attributes that replace the saved ones
    :raises UnsafeFileError: for a file that is not a safe and complete model of this class
    :raises ValueError: for an environment or an argument that does not fit the model
    """
    with opened(path, "zip") as file:
        # The bytes that are checked are those that are loaded, even if the file changes meanwhile.
        content = io.BytesIO(file.read())
    replaced = dict(custom_objects or {})
    with reading(path, WHAT):
        plain = read_json(content)
    _check_agent(model_class, path, {**plain, **replaced})
    if "learning_rate" in replaced:
        replaced.setdefault("lr_schedule", None)  # made of learning_rate at set-up
    with reading(path, WHAT):
        saved = read_model(content, plain, replaced)
        model = _without_networks(model_class, device, saved)
    if print_system_info:
        sys.stdout.write("== CURRENT SYSTEM INFO ==\n")
        get_system_info()
        load_from_zip_file(content, load_data=False, device="cpu", print_system_info=True)
    check_arguments(rules_of(model_class), arguments)
    kept = arguments.get("policy_kwargs", model.policy_kwargs) == model.policy_kwargs
    check(kept, "policy_kwargs", f"be {model.policy_kwargs}, as saved", arguments)
    vars(model).update(arguments)
    if env is not None:
        wrapped = model_class._wrap_env(env, model.verbose)
        model.n_envs = wrapped.num_envs
        model.set_env(wrapped, force_reset)
    with reading(path, WHAT):
        model._setup_model(_policy_without_values(model, saved.parameters["policy"]))
        model.set_parameters(saved.parameters, device=device)
    return model


def _check_agent(model_class: type, path: Any, data: Mapping[str, Any]) -> None:
    """Make sure that a file holds this agent, if the file says which agent it holds.

    :param data: attributes of the saved model; pickled ones are not unpickled
    :raises UnsafeFileError: naming the algorithm that the file holds, and what to use
    """
    # A user's subclass may load what its parent has saved.
    ours = [base.__module__.startswith("core_agent.") for base in model_class.__mro__]
    accepted = [base.__name__ for base in model_class.__mro__[: ours.index(True) + 1]]
    saved_by = data.get("agent_class", accepted[0])
    policy_class = data.get("policy_class")
    module = policy_class.get("__module__") if isinstance(policy_class, dict) else None
    library, *names = str(module).split(".")
    if library in ("stable_baselines3", "sb3_contrib") and names:
        # Its modules have the names of algorithms; the on-policy ones share theirs.
        found = "an on-policy algorithm" if names[0] == "common" else names[0].upper()
        found, way_out = f"{found} of {library}", f"load it with {library}; no agent here reads it"
    elif saved_by not in accepted:
        found, way_out = str(saved_by), f"use {saved_by}.load, or load_agent, which finds the class"
    else:
        return
    name = repr(str(path)) if isinstance(path, (str, pathlib.Path)) else "an open file"
    rule = f"be a saved model of {model_class.__name__}"
    raise UnsafeFileError(f"path must {rule}, got {name}, a model of {found}; {way_out}")


def _without_networks(model_class: Any, device: Any, saved: SavedModel) -> Any:
    """A model with the attributes of a file, without its networks.

    The constructor checks the attributes that are also its arguments.

    :raises ValueError: if the file holds no model of this class
    """
    data = {**saved.data, **saved.replaced}
    check_attributes(model_class, data)
    names = inspect.signature(model_class).parameters.keys() & saved.data.keys()
    fixed = dict(policy=data["policy_class"], env=None, device=device, _init_setup_model=False)
    model = model_class(**{**{name: saved.data[name] for name in names}, **fixed})
    vars(model).update(data)
    names, found = set(model._get_torch_save_params()[0]), set(saved.parameters)
    check(found == names, "the file", f"hold the parameters of {sorted(names)}", sorted(found))
    return model


def _policy_without_values(model: Any, parameters: Any) -> BasePolicy | None:
    """The model's policy, with memory allocated but no values yet; ``None`` for a user's class.

    The constructor of a user's class may need operations that tensors without memory do not have.

    :raises ValueError: if the parameters do not fit
    """
    if not model.policy_class.__module__.startswith("core_agent."):
        return None
    with torch.device("meta"):
        policy = model._make_policy()
    check_state_dict("policy", policy.state_dict(), parameters)
    return policy.to_empty(device=model.device)


def checked_parameters(
    model: Any, source: str | pathlib.Path | io.BufferedIOBase | dict[str, Any], exact: bool
) -> dict[str, Any]:
    """State dicts by name, as SB3's ``set_parameters`` takes them, once they are checked.

    :param model: the agent whose networks and optimisers they are for
    :param source: model file, or the state dicts
    :param exact: whether the names in a state dict must be exactly the network's
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
