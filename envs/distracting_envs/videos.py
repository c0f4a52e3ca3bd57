"""Sources of background clips: DAVIS, a user's folder, or the built-in clips.

A folder has one clip per entry: a sub-folder of JPEG or PNG frames (as DAVIS's
``JPEGImages/480p``) or a video file. All clips are checked when the environment is made, so that no
later episode fails because of a missing clip, an empty folder, a truncated picture or frames of
different sizes.

DAVIS 2017 is by Pont-Tuset et al. (arXiv:1704.00675), published under the BSD licence, and not part
of this package. ``core-agent videos download`` fetches it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image as PillowImage

from distracting_envs import builtin_videos
from distracting_envs.cache import Clip, Image, cache_folder
from distracting_envs.davis import DAVIS_NAMES
from distracting_envs.settings import SPLITS

_LOG = logging.getLogger("distracting_envs")

BUILTIN = "builtin"
"""The ``video_path`` of the built-in clips."""

_FRAME_SUFFIXES = {".jpg", ".jpeg", ".png"}
_FILE_SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi"}
MAX_FILE_FRAMES = 300
"""Frames used of a video file, from its start: ten seconds at 30 frames per second."""

_JPEG_END = b"\xff\xd9"
_JPEG_TAIL = 512  # bytes to search for the end mark: some cameras append padding


class VideoError(ValueError):
    """The background clips are missing or damaged."""


class BuiltinClip:
    """One of the procedural clips."""

    n_frames = builtin_videos.CLIP_FRAMES

    def __init__(self, split: str, index: int) -> None:
        self._split, self._index = split, index
        self.name = builtin_videos.clip_name(split, index)
        self.identity = f"{self.name} version {builtin_videos.VERSION}"

    def frames(self) -> Iterator[Image]:
        """Return the frames in order, each (256, 256, 3) uint8 RGB."""
        scene = builtin_videos.ClipScene(self._split, self._index)
        return (scene.frame(index) for index in range(self.n_frames))

    def frame(self, index: int) -> Image:
        """Return one frame, (256, 256, 3) uint8 RGB."""
        return builtin_videos.ClipScene(self._split, self._index).frame(index)


class FolderClip:
    """A clip that is a folder of pictures, by name: ``2.png`` before ``10.png``.

    :param folder: the folder; other files in it are ignored
    :raises VideoError: if it has no pictures, one is damaged, or they differ in size
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        names = (
            entry.name
            for entry in os.scandir(folder)
            if Path(entry.name).suffix.lower() in _FRAME_SUFFIXES and not entry.name.startswith(".")
        )
        files = sorted(names, key=_by_number)
        if not files:
            raise VideoError(
                f"clip {self.name!r}: the folder {folder} must hold at least one JPEG or PNG frame"
            )
        self._paths = [folder / name for name in files]
        self.n_frames = len(files)
        try:
            statuses = [path.stat() for path in self._paths]
        except FileNotFoundError as error:  # a link to a file that is missing
            reason = FileNotFoundError("there is no such file")
            raise _damaged(self.name, Path(error.filename), reason) from error
        self.identity = repr(
            (
                str(folder.resolve()),
                [
                    (name, status.st_size, status.st_mtime_ns)
                    for name, status in zip(files, statuses, strict=True)
                ],
            )
        )
        _check_pictures(self.identity, self.name, tuple(self._paths))

    def frames(self) -> Iterator[Image]:
        """Return the frames in order, each (height, width, 3) uint8 RGB."""
        return (self.frame(index) for index in range(self.n_frames))

    def frame(self, index: int) -> Image:
        """Return one frame, (height, width, 3) uint8 RGB.

        :raises VideoError: if the picture cannot be decoded
        """
        path = self._paths[index]
        try:
            with PillowImage.open(path) as picture:
                if picture.mode.startswith("I"):  # 16 bits, of which convert() keeps the lowest
                    grey = (np.asarray(picture, np.uint32) // 257).astype(np.uint8)
                    return np.repeat(grey[..., None], 3, axis=-1)
                return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise _damaged(self.name, path, error) from error


def _by_number(name: str) -> list[str | int]:
    """A key that sorts the numbers in names by their value."""
    return [int(each) if each.isdecimal() else each for each in re.split(r"(\d+)", name)]


@functools.cache
def _check_pictures(identity: str, clip: str, paths: tuple[Path, ...]) -> None:
    """Check each picture of a clip, once per process for the same pictures."""
    expected: tuple[int, int] | None = None
    for path in paths:
        size = _picture_size(clip, path)
        if expected is not None and size != expected:
            raise VideoError(
                f"clip {clip!r}: all frames must have one size, but {path} has "
                f"{size[0]}x{size[1]} pixels and the first frame has "
                f"{expected[0]}x{expected[1]}; resize the clip's frames or remove the odd one"
            )
        expected = size


def _picture_size(clip: str, path: Path) -> tuple[int, int]:
    """Return width and height of a picture whose start and end are intact."""
    try:
        with PillowImage.open(path) as picture:
            size = picture.size
        if path.suffix.lower() in {".jpg", ".jpeg"}:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _JPEG_TAIL))
                if _JPEG_END not in file.read():
                    raise OSError("the file ends before the picture does")
    except (OSError, SyntaxError, ValueError) as error:
        raise _damaged(clip, path, error) from error
    return size


def _damaged(clip: str, path: Path, error: Exception) -> VideoError:
    return VideoError(
        f"clip {clip!r}: frame {path} is damaged ({error}); restore it from its source, or remove "
        "the clip"
    )


class FileClip:
    """A clip that is a video file, of which the first MAX_FILE_FRAMES frames are used.

    :param path: the file, in any format that PyAV reads
    :raises VideoError: if it cannot be decoded
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        status = path.stat()
        self.identity = repr((str(path.resolve()), status.st_size, status.st_mtime_ns))
        self.n_frames = _count_frames(self.identity, path)

    def frames(self) -> Iterator[Image]:
        """Return the frames in order, each (height, width, 3) uint8 RGB."""
        return (
            frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
            for frame in itertools.islice(_decode(self._path), self.n_frames)
        )

    def frame(self, index: int) -> Image:
        """Return one frame, (height, width, 3) uint8 RGB."""
        frame = next(itertools.islice(_decode(self._path), index, None))
        return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


@functools.cache
def _count_frames(identity: str, path: Path) -> int:
    """Return the number of frames of a file by decoding them, once per process."""
    n_frames = sum(1 for _ in itertools.islice(_decode(path), MAX_FILE_FRAMES))
    if n_frames == 0:
        raise VideoError(f"clip {path.name!r}: {path} must hold at least one frame of video")
    n_missing = _count_missing(path, n_frames)
    if n_missing:
        raise VideoError(
            f"clip {path.name!r}: {path} is damaged: {n_missing} of the frames that it declares "
            "cannot be decoded; restore it from its source, or encode it again"
        )
    return n_frames


def _count_missing(path: Path, n_frames: int) -> int:
    """Return how many frames a file declares beyond the ``n_frames`` that were decoded.

    A decoder skips frames that it cannot decode. MP4 files declare how many frames they have; other
    formats are not checked, as they may have empty frames.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        n_declared = min(stream.frames, MAX_FILE_FRAMES) if "mp4" in container.format.name else 0
        if n_declared <= n_frames:
            return 0
        # An edit list may leave out some on purpose.
        n_discarded = sum(packet.is_discard for packet in container.demux(stream))
        return max(0, n_declared - n_discarded - n_frames)


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    with _opened(path) as container:
        yield from container.decode(video=0)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a file of video; what fails inside is a VideoError."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(
                    f"clip {path.name!r}: {path} must hold at least one frame of video"
                )
            yield container
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"clip {path.name!r}: {path} cannot be decoded ({error}); restore it from its source, "
            "or remove it"
        ) from error


def resolve_video_path(video_path: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder of the clips, or None for the built-in clips.

    In order: ``video_path``, the environment variable ``DCS_VIDEOS``, DAVIS as downloaded
    by ``core-agent videos download``, the built-in clips.

    :param video_path: a folder of clips, the root of DAVIS, ``"builtin"``, or None
    :raises VideoError: if the folder does not exist
    """
    named = "video_path"
    chosen = video_path
    if chosen is None and os.environ.get("DCS_VIDEOS"):
        named, chosen = "DCS_VIDEOS", os.environ["DCS_VIDEOS"]
    if chosen is None:
        downloaded = cache_folder() / "DAVIS" / "JPEGImages" / "480p"
        return downloaded if downloaded.is_dir() else None
    if chosen == BUILTIN:
        return None
    folder = Path(chosen).expanduser().absolute()
    if not folder.is_dir():
        raise VideoError(
            f"{named} must be an existing folder of clips, the root of DAVIS, or {BUILTIN!r}; "
            f"got {os.fspath(chosen)!r}"
        )
    for inner in ("JPEGImages/480p", "DAVIS/JPEGImages/480p"):
        if (folder / inner).is_dir():
            return folder / inner
    return folder


def open_clips(
    video_path: str | os.PathLike[str] | None, split: str, n_clips: int | None
) -> Sequence[Clip]:
    """Return the checked clips of a split, in the benchmark's order.

    A folder with DAVIS's names is split like DAVIS, and a folder with ``train`` and ``val``
    sub-folders by these; of any other folder, every third clip by name is for validation.

    :param video_path: see :func:`resolve_video_path`
    :param split: "train" or "val"
    :param n_clips: number of clips; None for all
    :raises VideoError: if a clip is missing or damaged, or there are too few
    """
    folder = resolve_video_path(video_path)
    if folder is None:
        _say_builtin_once()
        available = builtin_videos.N_CLIPS[split]
        n_wanted = _checked_count(n_clips, available, "the built-in set", split)
        return [BuiltinClip(split, index) for index in range(n_wanted)]
    paths = _split_paths(folder, split)
    n_wanted = _checked_count(n_clips, len(paths), str(folder), split)
    return [_open_path(path) for path in paths[:n_wanted]]


def _checked_count(n_clips: int | None, available: int, where: str, split: str) -> int:
    if n_clips is None:
        n_clips = max(available, 1)
    if available < n_clips:
        raise VideoError(
            f"{n_clips} {split} clips are needed, but {where} has {available}; "
            f"add clips, or pass n_clips={available}"
            if available
            else f"{where} must hold clips (folders of frames, or video files) for the split "
            f"{split!r}, but has none; without sub-folders 'train' and 'val', every third clip by "
            "name is for validation"
        )
    return n_clips


def _split_paths(folder: Path, split: str) -> list[Path]:
    divided = [name for name in SPLITS if _holds_clips(folder / name)]
    if divided and not _holds_clips(folder / split):
        raise VideoError(
            f"{folder} must hold a sub-folder {split!r} with clips next to {divided[0]!r}; move "
            f"some clips there, or all of them into {folder} itself, where every third one by name "
            "is for validation"
        )
    if divided:
        return _clip_paths(folder / split)
    paths = _clip_paths(folder)
    by_name = {path.name: path for path in paths}
    davis = set(DAVIS_NAMES["train"]) | set(DAVIS_NAMES["val"])
    n_davis = len(davis & by_name.keys())
    if n_davis and (n_davis == len(by_name) or n_davis > len(davis) // 2):
        return [folder / name for name in DAVIS_NAMES[split]]
    return [path for i, path in enumerate(paths) if (i % 3 == 2) == (split == "val")]


def _holds_clips(folder: Path) -> bool:
    """Whether ``folder`` holds clips; DAVIS's clip "train" holds pictures instead."""
    return folder.is_dir() and bool(_clip_paths(folder))


def _clip_paths(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (path.is_dir() or path.suffix.lower() in _FILE_SUFFIXES)
    )


def _open_path(path: Path) -> Clip:
    if not path.exists():
        raise VideoError(
            f"clip {path.name!r} is missing from {path.parent}; for DAVIS, fetch the complete set "
            "with `core-agent videos download`"
        )
    return FolderClip(path) if path.is_dir() else FileClip(path)


@functools.cache
def _say_builtin_once() -> None:
    """Log that the built-in clips are shown, once per cache folder (usually per machine)."""
    if multiprocessing.parent_process() is not None:
        return
    with contextlib.suppress(OSError):  # a folder that cannot be written is no reason to be silent
        cache_folder().mkdir(parents=True, exist_ok=True)
        try:
            (cache_folder() / "said-builtin").touch(exist_ok=False)
        except FileExistsError:
            return
    _LOG.warning(
        "Built-in procedural clips stand in for the DAVIS videos of the paper; "
        "to use the real ones, run `core-agent videos download`, or pass their folder as "
        "video_path or DCS_VIDEOS. This message appears once; `core-agent doctor` says which clips "
        "are shown"
    )
