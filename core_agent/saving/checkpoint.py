"""Checkpoints that a run resumes from as if it had never stopped.

A folder of checkpoints holds::

    checkpoint-000007-<sum>.npz   model, random states, environments, running episodes
    replay/episode-<sum>.npz      an episode that has ended, written once

Every file is written under a temporary name, synced, read again and renamed. Its SHA-256 sum is
part of its name, so damage is detected and an intact file is never overwritten. Nothing older is
removed before the new checkpoint is complete, so the last checkpoint survives a crash at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import platform
import random
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple
from weakref import WeakKeyDictionary

import gymnasium
import numpy as np
import stable_baselines3
import torch

from core_agent.replay.buffer import SequenceReplayBuffer
from core_agent.replay.episode import Episode
from core_agent.saving.archive import DamagedFileError, Tree, read_archive, write_archive
from core_agent.saving.replay import as_episode, fill_buffer, get_episode, get_layout
from core_agent.saving.resumable import get_env_state, set_env_state
from core_agent.validation import check

N_KEPT = 2
"""Checkpoints that are kept: the newest, and the one before it."""
LIBRARIES = (torch, stable_baselines3, gymnasium, np)


class NoCheckpointError(ValueError):
    """There is no checkpoint to resume from."""


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results depend on, by name."""
    versions = {library.__name__: library.__version__ for library in LIBRARIES}
    return {"python": platform.python_version(), **versions}


# ---- what a run is besides its networks ----


def get_random_states(model: Any) -> Tree:
    """The states of all generators that a run draws from, other than the buffer's."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "torch": torch.get_rng_state().numpy(),
        "cuda": [state.numpy() for state in cuda],
        "action_space": model.action_space.np_random.bit_generator.state,
    }


def set_random_states(model: Any, states: Tree) -> None:
    """Set all generators to what :func:`get_random_states` gave."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.from_numpy(state) for state in states["cuda"]])
    model.action_space.np_random.bit_generator.state = states["action_space"]


# ---- files ----


def _written(write: Callable[[IO[bytes]], None]) -> bytes:
    """The bytes that a function writes into a file, for a checksum before they are on disk."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _store(folder: Path, kind: str, content: bytes) -> str:
    """Write a file that gets its final name only when it is complete.

    :return: its name: the kind and the sum of the content
    :raises OSError: if it cannot be written, or if reading it back gives other content
    """
    path = folder / f"{kind}-{hashlib.sha256(content).hexdigest()}.npz"
    if _read(path) is not None:
        return path.name
    # Not a name from ``random``: its state belongs to the run.
    temporary = folder / f".unfinished-{secrets.token_hex(4)}"
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        if temporary.read_bytes() != content:
            raise OSError(f"{path} is not what was written to it; is the disk failing?")
        temporary.rename(path)
        _sync(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return path.name


def _read(path: Path) -> Tree | None:
    """The archive in a file that :func:`_store` wrote; ``None`` if it is missing or changed."""
    try:
        content = path.read_bytes()
        intact = path.stem.rpartition("-")[2] == hashlib.sha256(content).hexdigest()
        return read_archive(io.BytesIO(content)) if intact else None
    except (OSError, DamagedFileError):
        return None


class Checkpoint(NamedTuple):
    """A complete checkpoint without the episodes that have files of their own."""

    path: Path
    tree: Tree

    @property
    def manifest(self) -> Tree:
        """Agent, step, versions and the like."""
        return dict(self.tree["manifest"])

    @property
    def step(self) -> int:
        """Agent steps taken."""
        return int(self.manifest["step"])

    @property
    def model(self) -> io.BytesIO:
        """The model file, as Stable-Baselines3 saves it."""
        return io.BytesIO(self.tree["model"].tobytes())

    def episode_names(self) -> set[str]:
        """Names of the files of its replay buffer."""
        return {entry["file"] for entry in self.tree["episodes"] if "file" in entry}

    def damaged_episodes(self) -> list[str]:
        """Names of the files of its replay buffer that are missing or changed."""
        folder = self.path.parent / "replay"
        return [name for name in self.episode_names() if _read(folder / name) is None]


class CheckpointFolder:
    """The checkpoints of one run, and which episodes of its replay buffer they hold already.

    :param path: folder; made when something is written
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._replay = self.path / "replay"
        self._files: WeakKeyDictionary[Episode, str] = WeakKeyDictionary()
        self._needed: dict[Path, set[str]] = {}
        self._passed_over: set[Path] = set()
        self._latest: int | None = None

    def _paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.path.glob("checkpoint-[0-9]*-*.npz"))

    def _latest_number(self) -> int:
        return max((int(path.name.split("-")[1]) for path in self._paths()), default=0)

    # ---- reading ----

    def checkpoints(self) -> Iterator[Checkpoint]:
        """Undamaged checkpoints, newest first; episodes may be missing. Warns of damaged ones."""
        for path in reversed(self._paths()):
            tree = _read(path)
            if tree is None:
                self._passed_over.add(path)
                warnings.warn(f"{path} is passed over: it is damaged", stacklevel=3)
            else:
                checkpoint = Checkpoint(path, tree)
                self._needed[path] = checkpoint.episode_names()
                yield checkpoint

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint; if there is none, the newest that lacks only episodes.

        Reads every file that belongs to it. Damage is reported by a warning.
        """
        self._latest = self._latest_number()
        incomplete: list[Checkpoint] = []
        for checkpoint in self.checkpoints():
            if not checkpoint.damaged_episodes():
                for each in incomplete:
                    text = f"{each.path} is passed over: episodes of it are damaged or missing"
                    warnings.warn(text, stacklevel=2)
                    self._passed_over.add(each.path)
                return checkpoint
            incomplete.append(checkpoint)
        return incomplete[0] if incomplete else None

    def restore(self, model: Any, checkpoint: Checkpoint) -> None:
        """Restore a model, loaded from the checkpoint's ``model``, to its state at the checkpoint.

        :raises ValueError: if the number of environments or their wrappers differ
        """
        state = checkpoint.tree
        n_envs = len(state["replay"]["running"])
        check(
            model.env.num_envs == n_envs,
            "env",
            f"hold {n_envs} environment(s), as at the checkpoint",
            model.env.num_envs,
            "to use another number of environments, load the model with load()",
        )
        self._restore_replay(model.replay_buffer, state)
        set_env_state(model.env, state["envs"])
        if not state["envs"]["exact"]:
            warnings.warn(
                "the environments cannot resume in the middle of an episode, so they are reset, "
                "and the run is not exactly what it would have been; see Resumable",
                stacklevel=2,
            )
            model._last_obs = None
        # No reset is due, and a later one must not start from the seeds of the run's start.
        model.env.unwrapped._reset_seeds()
        if state["acting_policy"] is not None and model.collect != "sequential":
            parameters = {k: torch.from_numpy(v) for k, v in state["acting_policy"].items()}
            model.acting_policy.load_state_dict(parameters)
        set_random_states(model, state["random"])

    def _restore_replay(self, buffer: SequenceReplayBuffer, state: Tree) -> None:
        episodes, n_lost, n_files = [], 0, 0
        for entry in state["episodes"]:
            tree = _read(self._replay / entry["file"]) if "file" in entry else entry
            if tree is None:
                n_lost, n_files = n_lost + entry["steps"], n_files + 1
                continue
            episodes.append(as_episode(tree, buffer))
            if "file" in entry:
                self._files[episodes[-1]] = entry["file"]
        fill_buffer(buffer, state["replay"], episodes)
        if n_files:
            warnings.warn(
                f"{n_lost} of the replay buffer's steps are lost, as {n_files} file(s) in "
                f"{self._replay} are damaged or missing: the run resumes, but not exactly as it "
                "would have",
                stacklevel=3,
            )

    # ---- writing ----

    def write(self, model: Any) -> Path:
        """Write a checkpoint, read it again and remove all but the last two.

        :param model: the agent, which must be between two steps or updates
        :return: file of the checkpoint
        :raises OSError: if it cannot be written; earlier ones are unchanged
        :raises ValueError: if a parameter is not finite
        """
        for name, parameter in model.policy.named_parameters():
            way_out = "the checkpoint was not written; the one before it is kept"
            finite = bool(torch.isfinite(parameter).all())
            check(finite, name, "be finite", "NaN or infinity", way_out)
        self._replay.mkdir(parents=True, exist_ok=True)
        number = self._next_number()
        for unfinished in self.path.rglob(".unfinished-*"):
            unfinished.unlink()
        manifest = {
            "algorithm": type(model).__name__,
            "collect": model.collect,
            "step": model.num_timesteps,
            "updates": model._n_updates,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": library_versions(),
        }
        acting = None if model.collect == "sequential" else model.acting_policy.state_dict()
        tree = {
            "manifest": manifest,
            "model": np.frombuffer(_written(model.save), np.uint8),
            "acting_policy": acting
            and {name: value.cpu().numpy() for name, value in acting.items()},
            "random": get_random_states(model),
            "envs": get_env_state(model.env, trusted=model._last_obs is not None),
            "replay": get_layout(model.replay_buffer),
            "episodes": self._write_episodes(model.replay_buffer),
        }
        content = _written(lambda file: write_archive(file, tree))
        path = self.path / _store(self.path, f"checkpoint-{number:06}", content)
        self._needed[path] = Checkpoint(path, tree).episode_names()
        with contextlib.suppress(OSError):  # What cannot be removed now is removed next time.
            self._prune()
        return path

    def _next_number(self) -> int:
        """The number of the next checkpoint.

        :raises OSError: if another process has written one since this object's last
        """
        latest = self._latest_number()
        if self._latest is not None and latest > self._latest:
            raise OSError(
                f"another process has written checkpoint {latest} into {self.path}; only one run "
                "can write checkpoints into a folder: stop one of the two"
            )
        self._latest = latest + 1
        return self._latest

    def _write_episodes(self, buffer: SequenceReplayBuffer) -> list[Tree]:
        """Write the episodes that have ended since the last checkpoint.

        :return: an entry for each episode: its file, or the episode itself if it is still running
        """
        running = {id(episode) for episode in buffer.running}
        entries: list[Tree] = []
        for episode in buffer.episodes:
            if id(episode) in running:
                entries.append(get_episode(episode))
                continue
            name = self._files.get(episode)
            if name is None or not (self._replay / name).exists():
                content = _written(partial(write_archive, tree=get_episode(episode)))
                name = self._files[episode] = _store(self._replay, "episode", content)
            entries.append({"file": name, "steps": episode.n_steps})
        return entries

    def _prune(self) -> None:
        """Remove all but the last checkpoints, and episodes that none of those needs."""
        paths = self._paths()
        kept = [path for path in paths if path not in self._passed_over][-N_KEPT:]
        for path in kept:
            if path not in self._needed and (tree := _read(path)) is not None:
                self._needed[path] = Checkpoint(path, tree).episode_names()
        self._needed = {path: names for path, names in self._needed.items() if path in kept}
        needed = set().union(*self._needed.values())
        for path in set(paths) - set(kept):
            path.unlink()
        for path in self._replay.iterdir():
            if path.name not in needed:
                path.unlink()
