"""Episodes and the replay buffer as plain values, for archives; nothing is pickled."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import open_path

from core_agent.networks.encoders import is_image
from core_agent.replay.buffer import SequenceReplayBuffer
from core_agent.replay.episode import Episode
from core_agent.saving.archive import Tree, read_archive, write_archive
from core_agent.saving.safe_loading import opened, reading
from core_agent.validation import BOOLEAN, check, whole

FilePath = str | pathlib.Path | io.BufferedIOBase


def get_episode(episode: Episode) -> Tree:
    """An episode as plain values: frames ``(n + 1, ...)`` by key, ``n`` actions and rewards."""
    return {
        "serial": episode.serial,
        "terminated": episode.terminated,
        "frames": {key: frames.cpu().numpy() for key, frames in episode.frames.items()},
        "actions": episode.actions,
        "rewards": episode.rewards,
    }


def as_episode(tree: Any, buffer: SequenceReplayBuffer) -> Episode:
    """The episode that :func:`get_episode` gave.

    :param tree: from a file
    :param buffer: decides shapes, types and where frames are kept
    :raises ValueError: if the episode does not fit the buffer's spaces
    """
    name = "an episode"
    check(
        isinstance(tree, dict)
        and tree.keys() == {"serial", "terminated", "frames", "actions", "rewards"},
        name,
        "have frames, actions and rewards",
        tree if not isinstance(tree, dict) else sorted(tree),
    )
    whole(0)(f"{name}'s serial", tree["serial"])
    BOOLEAN(f"{name}'s terminated", tree["terminated"])
    n_steps = np.size(tree["rewards"])
    expected: dict[str, Any] = {"actions": ((n_steps, buffer.action_dim), np.dtype(np.float32))}
    for key, space in buffer.spaces.items():
        shape = tuple(space.shape or ())
        shape = (*shape[1:], shape[0]) if is_image(space) else shape
        expected[f"frames of {key}"] = (n_steps + 1, *shape), np.dtype(space.dtype)
    expected["rewards"] = (n_steps,), np.dtype(np.float32)
    arrays = {f"frames of {key}": array for key, array in tree["frames"].items()}
    arrays.update(actions=tree["actions"], rewards=tree["rewards"])
    found = {key: (np.shape(a), getattr(a, "dtype", type(a))) for key, a in arrays.items()}
    check(found.keys() == expected.keys(), name, f"have {sorted(expected)}", sorted(found))
    for key in expected:
        check(found[key] == expected[key], name, f"have {key} of {expected[key]}", found[key])
    return Episode.from_arrays(
        tree["frames"],
        tree["actions"],
        tree["rewards"],
        tree["terminated"],
        buffer.storage_device,
        tree["serial"],
    )


def get_layout(buffer: SequenceReplayBuffer) -> Tree:
    """What a buffer holds next to its episodes."""
    return {
        "running": [-1 if episode is None else episode.serial for episode in buffer.running],
        "n_episodes_begun": buffer.n_episodes_begun,
        "generator": buffer.generator.bit_generator.state,
    }


def fill_buffer(buffer: SequenceReplayBuffer, layout: Tree, episodes: Iterable[Episode]) -> None:
    """Replace what a buffer holds.

    :param layout: from :func:`get_layout`; if it is of another number of environments, no episode
        keeps running
    :param episodes: the episodes, oldest first
    """
    episodes = list(episodes)
    by_serial = {episode.serial: episode for episode in episodes}
    generator = np.random.default_rng()
    generator.bit_generator.state = layout["generator"]
    whole(max(by_serial, default=-1) + 1)("n_episodes_begun", layout["n_episodes_begun"])
    running = [by_serial.pop(serial, None) for serial in layout["running"]]
    buffer.reset()
    buffer.episodes.extend(episodes)
    buffer.n_steps = sum(episode.n_steps for episode in episodes)
    if len(running) == buffer.n_envs:
        buffer.running = running
    buffer.n_episodes_begun = layout["n_episodes_begun"]
    buffer.generator = generator


def save_replay(path: FilePath, buffer: ReplayBuffer | None) -> None:
    """Write all that a buffer holds, as an archive.

    :param path: file to write, by name or open
    """
    assert isinstance(buffer, SequenceReplayBuffer)
    file = open_path(path, "w", suffix="npz")
    episodes = [get_episode(episode) for episode in buffer.episodes]
    write_archive(file, {**get_layout(buffer), "episodes": episodes})
    if isinstance(path, (str, pathlib.Path)):
        file.close()


def load_replay(path: FilePath, buffer: ReplayBuffer | None, ends_episodes: bool) -> None:
    """Put what :func:`save_replay` wrote into a buffer.

    :param path: file, by name or open
    :param ends_episodes: end the episodes that were running; otherwise they continue
    :raises UnsafeFileError: if it holds anything else; the buffer is left as it is
    """
    assert isinstance(buffer, SequenceReplayBuffer)
    with opened(path, "npz") as file, reading(path, "a saved replay buffer"):
        tree = read_archive(file)
        fill_buffer(buffer, tree, [as_episode(each, buffer) for each in tree["episodes"]])
    if ends_episodes:
        buffer.end_episodes()
