"""Whether what was loaded fits together: spaces, attributes and parameters.

Each check raises a ``ValueError`` that names what does not fit.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from core_agent.validation import SIZE, check, whole

COUNTERS = (
    "_stats_window_size",
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_episode_num",
    "_n_updates",
)
NOT_SAVED = ("env", "policy", "device", "_logger", "_vec_normalize_env")
"""Attributes that Stable-Baselines3 never saves; a file that has them could name an environment,
and with it a package, that loading would import."""
MAX_ENVS = 65_536
MOST_LISTED = 3


def check_space(name: str, space: Any) -> None:
    """Make sure that a space is complete: its bounds have its shape."""
    check(isinstance(space, spaces.Space), name, "be a space", space)
    for sub_space in space.spaces.values() if isinstance(space, spaces.Dict) else [space]:
        check(isinstance(sub_space, spaces.Space), name, "hold spaces", sub_space)
        if isinstance(sub_space, spaces.Box):
            shapes = {np.shape(sub_space.low), np.shape(sub_space.high), sub_space.shape}
            check(len(shapes) == 1, name, "have bounds of its shape", shapes)
            np.dtype(sub_space.dtype)


def check_attributes(model_class: type, data: Mapping[str, Any]) -> None:
    """Make sure that attributes of a saved model neither hide methods nor have another type."""
    for name in data:
        inherited = inspect.getattr_static(model_class, name, None)
        hides = callable(inherited) or isinstance(inherited, (property, classmethod, staticmethod))
        check(not hides and name not in NOT_SAVED, "the file", "hold attributes alone", name)
    for name in COUNTERS:
        whole(0)(name, data.get(name, 0))
    SIZE("n_envs", data.get("n_envs", 1))
    check(data.get("n_envs", 1) <= MAX_ENVS, "n_envs", f"be at most {MAX_ENVS}", data.get("n_envs"))
    policy_class = data.get("policy_class")
    is_policy = isinstance(policy_class, type) and issubclass(policy_class, BasePolicy)
    check(is_policy, "policy_class", "be a class of policies", policy_class)
    for name in ("observation_space", "action_space"):
        check_space(name, data.get(name))


def check_state_dict(
    name: str, own: Mapping[str, torch.Tensor], found: Any, exact: bool = True
) -> None:
    """Make sure that the parameters found are those of the model.

    :param name: name of the networks, for the error message
    :param own: the model's parameters, by name
    :param found: the parameters found, by name
    :param exact: whether all names must match; otherwise missing and additional ones are ignored
    """
    check(isinstance(found, Mapping), name, "be parameters by name", type(found).__name__)
    missing = sorted(own.keys() - found.keys()) if exact else []
    unexpected = sorted(map(str, found.keys() - own.keys())) if exact else []
    problems = [f"without {key}" for key in missing] + [f"with {key}" for key in unexpected]
    for key in own.keys() & found.keys():
        shape = getattr(found[key], "shape", None)
        if shape != own[key].shape:
            got = type(found[key]).__name__ if shape is None else tuple(shape)
            problems.append(f"with {key} of shape {got} instead of {tuple(own[key].shape)}")
    more = f" and {len(problems) - MOST_LISTED} more" if len(problems) > MOST_LISTED else ""
    if problems:
        listed = ", ".join(problems[:MOST_LISTED])
        raise ValueError(f"{name} must have the model's parameters, got them {listed}{more}")


def check_optimizer_state(name: str, optimizer: torch.optim.Optimizer, found: Any) -> None:
    """Make sure that an optimiser's state fits the parameters that it belongs to."""
    complete = isinstance(found, Mapping) and {"state", "param_groups"} <= set(found)
    check(complete, name, "be the state of an optimiser", type(found).__name__)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    found_sizes = [len(group["params"]) for group in found["param_groups"]]
    check(found_sizes == sizes, name, f"belong to {sizes} parameters", found_sizes)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [index for group in found["param_groups"] for index in group["params"]]
    by_index = dict(zip(indices, parameters))
    for index, state in found["state"].items():
        check(index in by_index, name, "belong to parameters of this model", index)
        for key, value in state.items():
            shape = getattr(value, "shape", torch.Size())
            wanted = torch.Size() if key == "step" else by_index[index].shape
            check(shape == wanted, name, f"have {key} of shape {tuple(wanted)}", tuple(shape))
