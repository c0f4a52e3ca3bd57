"""A replay buffer in pieces: each holds the steps that came since the piece before it.

A segment has a table ``(E, 3)`` of an episode's serial number, the first of its frames here and
how many, and the frames, actions and rewards of all of them in one row each. The first piece of an
episode has one frame more than steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from core_agent.replay.buffer import SequenceReplayBuffer
from core_agent.replay.episode import Episode
from core_agent.saving.archive import Chunks, DamagedFileError

Tree = dict[str, Any]


class Piece(NamedTuple):
    """Consecutive frames of an episode, and the steps that led to them."""

    frames: dict[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray

    @property
    def n_frames(self) -> int:
        return len(next(iter(self.frames.values())))

    def copy(self) -> Piece:
        frames = {key: part.copy() for key, part in self.frames.items()}
        return Piece(frames, self.actions.copy(), self.rewards.copy())


def get_segment(buffer: SequenceReplayBuffer, n_saved: Mapping[int, int]) -> Tree | None:
    """What has come since the last segment, for :func:`~core_agent.saving.archive.write_archive`.

    :param buffer: the replay buffer
    :param n_saved: frames in earlier segments by episode serial
    :return: ``None`` if there is nothing new
    """
    new = [ep for ep in buffer.episodes if ep.n_steps + 1 > n_saved.get(ep.serial, 0)]
    if not new:
        return None
    first = [n_saved.get(episode.serial, 0) for episode in new]
    table = [(ep.serial, start, ep.n_steps + 1 - start) for ep, start in zip(new, first)]
    steps = [max(start - 1, 0) for start in first]
    return {
        "table": np.array(table, dtype=np.int64),
        "frames": {
            key: Chunks([ep.frames[key][start:].cpu().numpy() for ep, start in zip(new, first)])
            for key in buffer.spaces
        },
        "actions": Chunks([episode.actions[start:] for episode, start in zip(new, steps)]),
        "rewards": Chunks([episode.rewards[start:] for episode, start in zip(new, steps)]),
    }


def get_layout(buffer: SequenceReplayBuffer) -> Tree:
    """Which episodes there are and in what order, without what is in them."""
    episodes = [(ep.serial, ep.n_steps, int(ep.terminated)) for ep in buffer.episodes]
    return {
        "episodes": np.array(episodes, dtype=np.int64).reshape(-1, 3),
        "running": [-1 if episode is None else episode.serial for episode in buffer.running],
        "n_episodes_begun": buffer.n_episodes_begun,
        "full": buffer.full,
        "generator": buffer.generator.bit_generator.state,
    }


def cut_segment(segment: Tree) -> Iterable[tuple[int, int, Piece]]:
    """The pieces of a segment, with their episode's serial and their first frame.

    :raises DamagedFileError: if the table and the rest do not fit
    """
    n_frames = int(segment["table"][:, 2].sum())
    n_steps = n_frames - int((segment["table"][:, 1] == 0).sum())
    lengths = {len(frames) for frames in segment["frames"].values()}
    if lengths != {n_frames} or not len(segment["actions"]) == len(segment["rewards"]) == n_steps:
        raise DamagedFileError("the replay segment's table does not fit its arrays")
    frame = step = 0
    for serial, first, count in segment["table"].tolist():
        steps = slice(step, step + count - (first == 0))
        frames = {key: part[frame : frame + count] for key, part in segment["frames"].items()}
        yield serial, first, Piece(frames, segment["actions"][steps], segment["rewards"][steps])
        frame, step = frame + count, steps.stop


def fill_buffer(buffer: SequenceReplayBuffer, layout: Tree, segments: Iterable[Tree]) -> int:
    """Put the episodes of a layout into an empty buffer.

    :param buffer: of the same number of environments
    :param layout: from :func:`get_layout`
    :param segments: in the order in which they were written; some may be missing
    :return: number of steps that were not in the segments; their episodes are left out
    """
    wanted = {serial for serial, _, _ in layout["episodes"].tolist()}
    pieces: dict[int, list[Piece]] = defaultdict(list)
    for segment in segments:
        for serial, first, piece in cut_segment(segment):
            known = sum(each.n_frames for each in pieces[serial])
            if serial in wanted and known == first:
                # Copies: a view would keep the whole segment in memory.
                pieces[serial].append(piece.copy())
    buffer.reset()
    n_lost = 0
    for serial, n_steps, terminated in layout["episodes"].tolist():
        episode = _joined(pieces.pop(serial, []), serial, bool(terminated), buffer)
        if episode is None or episode.n_steps != n_steps:
            n_lost += n_steps
            continue
        buffer.episodes.append(episode)
        buffer.n_steps += n_steps
    by_serial = {episode.serial: episode for episode in buffer.episodes}
    buffer.running = [by_serial.get(serial) for serial in layout["running"]]
    buffer.n_episodes_begun, buffer.full = layout["n_episodes_begun"], layout["full"]
    buffer.generator.bit_generator.state = layout["generator"]
    return n_lost


def _joined(
    pieces: list[Piece], serial: int, terminated: bool, buffer: SequenceReplayBuffer
) -> Episode | None:
    if not pieces:
        return None
    joined = Piece(
        {key: np.concatenate([piece.frames[key] for piece in pieces]) for key in buffer.spaces},
        np.concatenate([piece.actions for piece in pieces]),
        np.concatenate([piece.rewards for piece in pieces]),
    )
    return Episode.from_arrays(*joined, terminated, buffer.storage_device, serial)
