"""Whether what was loaded fits together: spaces, attributes, parameters and replay.

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

from core_agent.networks.encoders import is_image
from core_agent.replay.buffer import SequenceReplayBuffer
from core_agent.replay.episode import Episode
from core_agent.validation import check, check_integer

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


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + rest


def check_space(name: str, space: Any) -> None:
    """Make sure that a space is whole: its bounds have its shape."""
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
        if name in data:
            check_integer(name, data[name], 0)
    check_integer("n_envs", data.get("n_envs", 1), 1)
    check(data.get("n_envs", 1) <= MAX_ENVS, "n_envs", f"be at most {MAX_ENVS}", data.get("n_envs"))
    policy_class = data.get("policy_class")
    check(
        isinstance(policy_class, type) and issubclass(policy_class, BasePolicy),
        "policy_class",
        "be a class of policies",
        policy_class,
    )
    for name in ("observation_space", "action_space"):
        check_space(name, data.get(name))


def check_state_dict(
    name: str, own: Mapping[str, torch.Tensor], found: Any, exact: bool = True
) -> None:
    """Make sure that the parameters found are those of the model.

    :param name: of the networks, for the error
    :param own: the model's
    :param found: by name
    :param exact: none may be missing and none too many
    """
    check(isinstance(found, Mapping), name, "be parameters by name", type(found).__name__)
    missing, unexpected = (
        sorted(own.keys() - found.keys()),
        sorted(found.keys() - own.keys(), key=str),
    )
    problems = []
    if exact and missing:
        problems.append(f"without {_some(missing)}")
    if exact and unexpected:
        problems.append(f"with {_some([str(key) for key in unexpected])}")
    for key in own.keys() & found.keys():
        shape = getattr(found[key], "shape", None)
        if shape != own[key].shape:
            got = type(found[key]).__name__ if shape is None else tuple(shape)
            problems.append(f"with {key} of shape {got} instead of {tuple(own[key].shape)}")
    if problems:
        raise ValueError(f"{name} must have the model's parameters, got them {_some(problems)}")


def check_optimizer_state(name: str, optimizer: torch.optim.Optimizer, found: Any) -> None:
    """Make sure that an optimiser's state fits the parameters that it belongs to."""
    whole = isinstance(found, Mapping) and {"state", "param_groups"} <= set(found)
    check(whole, name, "be the state of an optimiser", type(found).__name__)
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


def check_replay(buffer: Any, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Make sure that a replay buffer is whole and was filled in environments of these spaces."""
    name = "the replay buffer"
    check(
        isinstance(buffer, SequenceReplayBuffer),
        "path",
        "be a replay buffer of this package",
        type(buffer).__name__,
    )
    check_space(f"{name}'s observation_space", buffer.observation_space)
    check(
        buffer.observation_space == observation_space and buffer.action_space == action_space,
        name,
        f"be of the model's spaces, {observation_space} and {action_space}",
        (buffer.observation_space, buffer.action_space),
    )
    for counter, low in (("buffer_size", 1), ("n_envs", 1), ("sequence_length", 2), ("n_steps", 0)):
        check_integer(f"{name}'s {counter}", getattr(buffer, counter), low)
    check(
        isinstance(buffer.generator, np.random.Generator),
        f"{name}'s generator",
        "be NumPy's",
        type(buffer.generator).__name__,
    )
    fresh = SequenceReplayBuffer(1, buffer.observation_space, buffer.action_space, device="cpu")
    check(buffer.spaces == fresh.spaces, f"{name}'s spaces", "be its own", buffer.spaces)
    check(buffer.action_dim == fresh.action_dim, f"{name}'s action_dim", "fit", buffer.action_dim)
    for episode in buffer.episodes:
        _check_episode(episode, fresh)
    n_steps = sum(episode.n_steps for episode in buffer.episodes)
    check(n_steps == buffer.n_steps, f"{name}'s n_steps", f"be {n_steps}", buffer.n_steps)
    known = [id(episode) for episode in buffer.episodes]
    running = [episode for episode in buffer.running if episode is not None]
    check(
        len(buffer.running) == buffer.n_envs and all(id(episode) in known for episode in running),
        f"{name}'s running",
        "hold an episode or None for each environment",
        len(buffer.running),
    )


def _check_episode(episode: Any, buffer: SequenceReplayBuffer) -> None:
    name = "an episode of the replay buffer"
    check(isinstance(episode, Episode), name, "be an Episode", type(episode).__name__)
    check_integer(f"{name}: n_steps", episode.n_steps, 0)
    check(isinstance(episode.terminated, bool), name, "know if it terminated", episode.terminated)
    frames: dict[str, Any] = {}
    for key, space in buffer.spaces.items():
        shape = tuple(space.shape or ())
        if is_image(space):
            shape = (*shape[1:], shape[0])
        frames[key] = torch.from_numpy(np.zeros((1, *shape), space.dtype))
    check(
        episode._frames.keys() == frames.keys(), name, f"have {set(frames)}", set(episode._frames)
    )
    arrays: list[tuple[Any, Any]] = [(episode._frames[key], frames[key]) for key in frames]
    arrays.append((episode._actions, np.zeros((1, buffer.action_dim), np.float32)))
    arrays.append((episode._rewards, np.zeros(1, np.float32)))
    for array, wanted in arrays:
        fits = array.shape[1:] == wanted.shape[1:] and array.dtype == wanted.dtype
        check(
            fits and len(array) > episode.n_steps,
            name,
            f"hold {episode.n_steps} steps of shape {tuple(wanted.shape[1:])}, {wanted.dtype}",
            (tuple(array.shape), array.dtype),
        )
