"""Checkpoints that a run goes on from as if it had never stopped.

A folder of checkpoints holds::

    checkpoint-000007/model.zip       the model as Stable-Baselines3 saves it
    checkpoint-000007/state.zip       random states, environments, the replay buffer's layout
    checkpoint-000007/manifest.json   what belongs to it, with sizes and SHA-256 sums
    replay/segment-000003.zip         what the buffer got between two checkpoints, written once

Everything is written beside, synced and renamed, and nothing older is removed before the new
checkpoint has been read again; so whatever happens at whatever moment, the last one is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces

from core_agent.replay.buffer import SequenceReplayBuffer
from core_agent.saving.archive import read_archive, write_archive
from core_agent.saving.integrity import check_state_dict
from core_agent.saving.replay_segments import fill_buffer, get_layout, get_segment
from core_agent.saving.resumable import get_env_state, set_env_state
from core_agent.validation import check

FORMAT = 1
MODEL, STATE, MANIFEST = "model.zip", "state.zip", "manifest.json"
N_KEPT = 2
"""Checkpoints that are kept: the newest, and the one before it."""
LIBRARIES = (torch, stable_baselines3, gymnasium, np)

Tree = dict[str, Any]


class NoCheckpointError(ValueError):
    """There is no checkpoint to go on from."""


def library_versions() -> dict[str, str]:
    """What a run runs on: Python and the libraries that its results depend on, by name."""
    versions = {library.__name__: library.__version__ for library in LIBRARIES}
    return {"python": platform.python_version(), **versions}


# ---- what a run is beside its networks ----


def get_random_states(model: Any) -> Tree:
    """The states of all generators that a run of ``model`` draws from, the buffer's apart."""
    _, *python = random.getstate()
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    action_space = model.action_space
    assert isinstance(action_space, spaces.Box)
    return {
        "python": {"words": np.array(python[0], dtype=np.uint32), "gauss": python[1]},
        "numpy": {
            "keys": np.array(keys),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state().numpy(),
        "cuda": [state.numpy() for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
        "action_space": action_space.np_random.bit_generator.state,
    }


def set_random_states(model: Any, states: Tree) -> None:
    """Bring all generators to what :func:`get_random_states` gave."""
    python, legacy = states["python"], states["numpy"]
    random.setstate((3, tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(  # noqa: NPY002
        ("MT19937", legacy["keys"], legacy["position"], legacy["has_gauss"], legacy["gauss"])
    )
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.from_numpy(state) for state in states["cuda"]])
    assert isinstance(model.action_space, spaces.Box)
    model.action_space.np_random.bit_generator.state = states["action_space"]


def get_acting_policy(model: Any) -> Tree:
    """The parameters that collect, by name, where they are not those that learn."""
    if model.collect == "sequential":
        return {}
    state = model.acting_policy.state_dict()
    return {"acting_policy": {name: value.cpu().numpy() for name, value in state.items()}}


def set_acting_policy(model: Any, state: Tree) -> None:
    """Bring the policy that collects to what :func:`get_acting_policy` gave."""
    if model.collect == "sequential" or "acting_policy" not in state:
        return
    found = {name: torch.from_numpy(value) for name, value in state["acting_policy"].items()}
    check_state_dict("acting_policy", model.acting_policy.state_dict(), found)
    model.acting_policy.load_state_dict(found)


def require_finite(model: Any) -> None:
    """Make sure that no parameter is NaN or infinite: a checkpoint of such a model is worthless.

    :raises ValueError: if one is
    """
    for name, parameter in model.policy.named_parameters():
        check(
            bool(torch.isfinite(parameter).all()),
            name,
            "be finite",
            "NaN or infinity",
            "the checkpoint was not written; the one before it is kept",
        )


# ---- files ----


def _sync(path: Path) -> None:
    """Have the file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> Tree:
    """Size and SHA-256 sum of a file."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return {"bytes": path.stat().st_size, "sha256": sha256.hexdigest()}


def _is_whole(path: Path, expected: Tree) -> bool:
    try:
        return _digest(path) == expected
    except OSError:
        return False


def _seal(manifest: Tree) -> str:
    """The sum of a manifest's own content."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    """Remove a folder so that no half of it is ever left under its name."""
    doomed = path.with_name(f".removed-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


class Checkpoint(NamedTuple):
    """A checkpoint whose manifest is whole."""

    path: Path
    manifest: Tree

    @property
    def step(self) -> int:
        """Agent steps taken."""
        return int(self.manifest["step"])

    @property
    def replay(self) -> Path:
        return self.path.parent / "replay"

    def damaged_files(self) -> list[Path]:
        """Its own files that are missing or changed."""
        files = self.manifest["files"].items()
        return [self.path / name for name, sums in files if not _is_whole(self.path / name, sums)]

    def damaged_segments(self) -> list[Path]:
        """Segments of its replay buffer that are missing or changed."""
        segments = self.manifest["segments"].items()
        return [
            self.replay / name for name, sums in segments if not _is_whole(self.replay / name, sums)
        ]


class CheckpointFolder:
    """The checkpoints of one run, and what of its replay buffer they hold already.

    :param path: folder; made when something is written
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._replay = self.path / "replay"
        self._buffer: SequenceReplayBuffer | None = None
        self._n_saved: dict[int, int] = {}
        self._segments: dict[str, Tree] = {}
        self._serials: dict[str, set[int]] = {}
        self._passed_over: set[Path] = set()

    # ---- reading ----

    def checkpoints(self) -> Iterator[Checkpoint]:
        """Those whose manifest is whole, newest first."""
        for path in sorted(self.path.glob("checkpoint-*"), reverse=True):
            manifest = _read_manifest(path / MANIFEST)
            if manifest is None:
                self._pass_over(path, MANIFEST)
            else:
                yield Checkpoint(path, manifest)

    def _pass_over(self, path: Path, damaged: str) -> None:
        self._passed_over.add(path)
        warnings.warn(f"{path} is passed over: damaged or missing: {damaged}", stacklevel=3)

    def newest(self) -> Checkpoint | None:
        """The newest that is whole; failing that, the newest that lacks no more than replay.

        Reads every file that belongs to it. Says by a warning what is damaged.
        """
        fallback = None
        for checkpoint in self.checkpoints():
            if damaged := checkpoint.damaged_files():
                self._pass_over(checkpoint.path, _names(damaged))
            elif not checkpoint.damaged_segments():
                return checkpoint
            elif fallback is None:
                fallback = checkpoint
        return fallback

    def restore(self, model: Any, checkpoint: Checkpoint) -> None:
        """Bring a model, loaded from the checkpoint's ``model.zip``, all the way back.

        :raises DamagedFileError: if a file does not hold what it should
        """
        assert model.replay_buffer is not None and model.env is not None
        state = read_archive(checkpoint.path / STATE)
        n_envs = len(state["replay"]["running"])
        check(
            model.env.num_envs == n_envs,
            "env",
            f"hold {n_envs} environment(s), as at the checkpoint",
            model.env.num_envs,
            "load() takes a model to another number of them",
        )
        damaged = checkpoint.damaged_segments()
        names = [
            name
            for name in sorted(checkpoint.manifest["segments"])
            if checkpoint.replay / name not in damaged
        ]
        segments = (read_archive(checkpoint.replay / name) for name in names)
        n_lost = fill_buffer(model.replay_buffer, state["replay"], segments)
        if damaged:
            warnings.warn(
                f"{n_lost} of the replay buffer's steps are lost, as {_names(damaged)} is damaged "
                "or missing: the run goes on, but not exactly as it would have",
                stacklevel=2,
            )
        set_env_state(model.env, state["envs"])
        if not state["envs"]["exact"]:
            warnings.warn(
                "the environments cannot go on in the middle of an episode: they are reset, and "
                "the run is not exactly what it would have been; see Resumable",
                stacklevel=2,
            )
            model._last_obs = None
        # No reset is due, and none that comes may begin as the run began.
        model.env.unwrapped._reset_seeds()
        set_acting_policy(model, state)
        set_random_states(model, state["random"])
        if not damaged:
            self._remember(model.replay_buffer, checkpoint)

    def _remember(self, buffer: SequenceReplayBuffer, checkpoint: Checkpoint) -> None:
        """Go on adding to the segments that the checkpoint consists of."""
        self._buffer = buffer
        self._n_saved = {episode.serial: episode.n_steps + 1 for episode in buffer.episodes}
        self._segments = dict(checkpoint.manifest["segments"])
        self._serials = {
            name: set(serials) for name, serials in checkpoint.manifest["episodes"].items()
        }

    # ---- writing ----

    def write(self, model: Any) -> Path:
        """Write a checkpoint, prove it and remove those before the last two.

        :param model: between two steps or updates
        :return: folder of the checkpoint
        :raises OSError: if it cannot be written; earlier ones are as they were
        :raises ValueError: if a parameter is not finite
        """
        require_finite(model)
        assert model.replay_buffer is not None and model.env is not None
        self._replay.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._write_segment(model.replay_buffer)
        serial = self._next_number(self.path, "checkpoint")
        path = self.path / f"checkpoint-{serial:06}"
        with self._beside(path) as temporary:
            temporary.mkdir()
            with (temporary / MODEL).open("wb") as file:
                model.save(file)
            state = {
                "random": get_random_states(model),
                "replay": get_layout(model.replay_buffer),
                "envs": get_env_state(model.env, trusted=model._last_obs is not None),
                **get_acting_policy(model),
            }
            write_archive(temporary / STATE, state)
            manifest = self._manifest(model, temporary)
            (temporary / MANIFEST).write_text(
                json.dumps({**manifest, "seal": _seal(manifest)}, indent=1)
            )
            for name in (MODEL, STATE, MANIFEST):
                _sync(temporary / name)
        self._prove(Checkpoint(path, manifest))
        self._prune()
        return path

    def _manifest(self, model: Any, folder: Path) -> Tree:
        return {
            "format": FORMAT,
            "algorithm": type(model).__name__,
            "collect": model.collect,
            "step": model.num_timesteps,
            "updates": model._n_updates,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": library_versions(),
            "files": {name: _digest(folder / name) for name in (MODEL, STATE)},
            "segments": self._segments,
            "episodes": {name: sorted(serials) for name, serials in self._serials.items()},
        }

    def _write_segment(self, buffer: SequenceReplayBuffer) -> None:
        """Write what the buffer got since the last segment; forget segments that it has no use of.

        Only when the segment is whole does this object count on it.
        """
        if buffer is not self._buffer:
            self._buffer, self._n_saved, self._segments, self._serials = buffer, {}, {}, {}
        segment = get_segment(buffer, self._n_saved)
        if segment is not None:
            path = self._replay / f"segment-{self._next_number(self._replay, 'segment'):06}.zip"
            with self._beside(path) as temporary:
                write_archive(temporary, segment)
                _sync(temporary)
            self._segments[path.name] = _digest(path)
            self._serials[path.name] = set(segment["table"][:, 0].tolist())
        self._n_saved = {episode.serial: episode.n_steps + 1 for episode in buffer.episodes}
        for name in list(self._segments):
            if not self._serials[name] & self._n_saved.keys():
                del self._segments[name], self._serials[name]

    @contextmanager
    def _beside(self, path: Path) -> Iterator[Path]:
        """A temporary path that takes the name ``path`` if all goes well, and vanishes if not."""
        temporary = path.with_name(f".unfinished-{path.name}")
        try:
            yield temporary
            if temporary.is_dir():
                _sync(temporary)
            temporary.rename(path)
            _sync(path.parent)
        except BaseException:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
            raise

    @staticmethod
    def _next_number(folder: Path, kind: str) -> int:
        """One more than any that is there, whole or not, so that no file is written over."""
        numbers = [
            int(match[1])
            for path in folder.iterdir()
            if (match := re.fullmatch(rf"{kind}-(\d+)(?:\.zip)?", path.name))
        ]
        return max(numbers, default=0) + 1

    @staticmethod
    def _prove(checkpoint: Checkpoint) -> None:
        """Read the new checkpoint again.

        :raises OSError: if it is not what was written
        """
        if _read_manifest(checkpoint.path / MANIFEST) is None or checkpoint.damaged_files():
            shutil.rmtree(checkpoint.path, ignore_errors=True)
            raise OSError(f"{checkpoint.path} is not what was written to it; is the disk failing?")

    def _prune(self) -> None:
        """Remove all but the last checkpoints, and segments that none of those needs."""
        paths = sorted(self.path.glob("checkpoint-*"))
        kept = [path for path in paths if path not in self._passed_over][-N_KEPT:]
        for path in paths:
            if path not in kept:
                _remove(path)
        manifests = [_read_manifest(path / MANIFEST) or {"segments": {}} for path in kept]
        needed = {name for manifest in manifests for name in manifest["segments"]}
        for path in self._replay.glob("segment-*"):
            if path.name not in needed:
                path.unlink()

    def _sweep(self) -> None:
        """Remove what a run that was killed left half done."""
        for folder in (self.path, self._replay):
            for path in [*folder.glob(".unfinished-*"), *folder.glob(".removed-*")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _read_manifest(path: Path) -> Tree | None:
    """A manifest; ``None`` if it is not whole or not to be trusted."""
    try:
        manifest = json.loads(path.read_bytes())
        seal = manifest.pop("seal")
        names = [*manifest["segments"], *manifest["episodes"]]
        tidy = all(re.fullmatch(r"segment-\d+\.zip", name) for name in names)
        tidy = tidy and set(manifest["files"]) == {MODEL, STATE}
        return manifest if tidy and seal == _seal(manifest) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
