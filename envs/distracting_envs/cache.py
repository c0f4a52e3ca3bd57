"""A cache of clips decoded to textures: in memory per process, and on disk for all processes.

The disk cache consists of memory-mapped ``.npy`` files, so that the workers of one machine share
their pages. Files are written under another name and renamed, so a reader sees only complete ones.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import platformdirs

Image = npt.NDArray[np.uint8]

_LOG = logging.getLogger("distracting_envs")
_GIGABYTE = 10**9
_PARTIAL = "partial-"
_ABANDONED_SECONDS = 3600
_SPARED_BYTES = _GIGABYTE  # left free on the disk for others


class Clip(Protocol):
    """Interface of a video clip."""

    @property
    def name(self) -> str:
        """Name of the clip in messages."""

    @property
    def identity(self) -> str:
        """A text that changes whenever the clip's frames change."""

    @property
    def n_frames(self) -> int:
        """Number of frames, at least 1."""

    def frames(self) -> Iterator[Image]:
        """Return the frames in order, each (height, width, 3) uint8 RGB."""

    def frame(self, index: int) -> Image:
        """Return one frame, (height, width, 3) uint8 RGB."""


def cache_folder() -> Path:
    """Return the cache folder: ``DCS_CACHE``, or the user's cache."""
    return Path(os.environ.get("DCS_CACHE") or platformdirs.user_cache_dir("distracting_envs"))


def to_texture(frame: Image, size: int) -> Image:
    """Return a frame as a square texture, (size, size, 3) uint8.

    The interpolation equals that of ``distracting_control`` bit for bit.
    """
    if frame.shape[:2] == (size, size):
        return frame
    return np.asarray(cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)


class ClipCache:
    """Textures of clips, in memory and on disk.

    :param memory_gb: limit of this process, in 10^9 bytes; the least recently used are dropped
    :param disk_gb: limit of ``folder``, in 10^9 bytes; 0 disables the disk cache
    :param folder: folder of the files; created if needed
    """

    def __init__(self, memory_gb: float, disk_gb: float, folder: Path) -> None:
        self._memory_bytes = int(memory_gb * _GIGABYTE)
        self._disk_bytes = int(disk_gb * _GIGABYTE)
        self._folder = folder
        self._kept: OrderedDict[str, Image] = OrderedDict()
        self._pending: dict[str, Future[Image]] = {}
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None

    def clip(self, clip: Clip, size: int) -> Image:
        """Return all frames of a clip as textures, (n_frames, size, size, 3) uint8, read-only."""
        key = _key(clip, size)
        return self._get(key, lambda: self._load_clip(clip, size, key))

    def frame(self, clip: Clip, index: int, size: int) -> Image:
        """Return one frame of a clip as a texture, (size, size, 3) uint8, read-only.

        The rest of the clip is not decoded.
        """
        return self._get(f"{_key(clip, size)}-{index}", lambda: _load_frame(clip, index, size))

    def prefetch_clip(self, clip: Clip, size: int) -> None:
        """Load :meth:`clip` in a thread, for the next call."""
        self._in_background(lambda: self.clip(clip, size))

    def prefetch_frame(self, clip: Clip, index: int, size: int) -> None:
        """Load :meth:`frame` in a thread, for the next call."""
        self._in_background(lambda: self.frame(clip, index, size))

    def _in_background(self, load: Callable[[], Image]) -> None:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="distracting_envs-prefetch")
        self._worker.submit(load)  # an error shows when the caller asks for the clip itself

    def _get(self, key: str, load: Callable[[], Image]) -> Image:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            pending = self._pending.get(key)
            if pending is None:
                mine: Future[Image] = Future()
                self._pending[key] = mine
        if pending is not None:
            return pending.result()
        try:
            textures = load()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            self._keep(key, textures)
        mine.set_result(textures)
        return textures

    def _keep(self, key: str, textures: Image) -> None:
        self._kept[key] = textures
        held = sum(kept.nbytes for kept in self._kept.values())
        while held > self._memory_bytes and self._kept:
            _, dropped = self._kept.popitem(last=False)
            held -= dropped.nbytes

    def _load_clip(self, clip: Clip, size: int, key: str) -> Image:
        path = self._folder / f"{key}.npy"
        expected = (clip.n_frames, size, size, 3)
        if self._disk_bytes > 0:
            on_disk = _open_file(path, expected)
            if on_disk is not None:
                return on_disk
        textures = np.empty(expected, np.uint8)
        for texture, frame in zip(textures, clip.frames(), strict=True):
            texture[:] = to_texture(frame, size)
        textures.flags.writeable = False
        if textures.nbytes <= self._disk_bytes and self._write_file(path, textures):
            on_disk = _open_file(path, expected)
            if on_disk is not None:
                return on_disk
        return textures

    def _write_file(self, path: Path, textures: Image) -> bool:
        """Write a clip to disk and return whether it succeeded; a full disk is not an error."""
        partial = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(textures.nbytes)
            if shutil.disk_usage(self._folder).free < textures.nbytes + _SPARED_BYTES:
                raise OSError(errno.ENOSPC, "the disk is nearly full")
            with tempfile.NamedTemporaryFile(
                dir=self._folder, prefix=_PARTIAL, delete=False
            ) as file:
                partial = Path(file.name)
                np.save(file, textures)
            partial.chmod(0o644)  # a temporary file is for its owner alone; this one is shared
            partial.replace(path)
        except OSError as error:
            if partial is not None:
                partial.unlink(missing_ok=True)
            _LOG.warning(
                "clips are kept in memory only: cannot write to %s (%s)", path.parent, error
            )
            self._disk_bytes = 0
            return False
        return True

    def _make_room(self, n_bytes: int) -> None:
        """Delete the least recently used files until ``n_bytes`` more fit under the limit.

        Incomplete files of killed processes are deleted too, once they are old enough.
        """
        files = []
        for path in self._folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:  # another worker deleted or renamed it
                continue
            if (
                path.name.startswith(_PARTIAL)
                and status.st_mtime < time.time() - _ABANDONED_SECONDS
            ):
                path.unlink(missing_ok=True)
            elif path.suffix == ".npy":
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files, key=lambda entry: entry[0]):
            if total + n_bytes <= self._disk_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def _key(clip: Clip, size: int) -> str:
    digest = hashlib.sha256(clip.identity.encode()).hexdigest()
    return f"{digest[:24]}-{size}"


def _load_frame(clip: Clip, index: int, size: int) -> Image:
    return to_texture(clip.frame(index), size)


def _open_file(path: Path, shape: tuple[int, ...]) -> Image | None:
    """Return a cached clip as a memory map, or None if there is no intact file."""
    try:
        textures = np.load(path, mmap_mode="r", allow_pickle=False)
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    if textures.shape != shape or textures.dtype != np.uint8:
        return None
    return textures


_SHARED: dict[tuple[object, ...], ClipCache] = {}


def shared_cache(memory_gb: float = 1.0, disk_gb: float = 10.0) -> ClipCache:
    """Return the cache that all environments of this process with these limits share.

    A forked child gets its own, because the parent's prefetching thread does not exist in it.
    """
    folder = cache_folder() / "clips"
    key = (os.getpid(), memory_gb, disk_gb, folder)
    if key not in _SHARED:
        _SHARED[key] = ClipCache(memory_gb, disk_gb, folder)
    return _SHARED[key]
