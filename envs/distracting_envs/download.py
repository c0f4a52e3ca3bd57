"""Download of DAVIS 2017 at 480p, resumable and verified."""

from __future__ import annotations

import logging
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pooch
import requests
from tqdm import tqdm

from distracting_envs.cache import cache_folder
from distracting_envs.davis import DAVIS_NAMES

DAVIS_URL = "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip"
DAVIS_SHA256 = "e3d0b5b77c3d031b000a19e0e25e3e2cac65d183755601bc2cf066df1a2aa492"
DAVIS_BYTES = 832_766_765
"""Size of the archive; unpacked, the frames take about as much again."""

_FRAMES = "JPEGImages/480p"
_CHUNK = 1 << 16
_TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two packets


class DownloadError(RuntimeError):
    """DAVIS could not be downloaded; the message says how to continue."""


def download_davis(
    folder: Path | None = None,
    *,
    url: str = DAVIS_URL,
    sha256: str = DAVIS_SHA256,
    progress: bool = True,
) -> Path:
    """Download and unpack the missing parts of DAVIS, and return its root.

    An interrupted download is resumed. DAVIS is published under the BSD licence;
    see https://davischallenge.org.

    :param folder: parent folder of ``DAVIS``; None for the cache folder, which environments search
    :param url: address of the archive
    :param sha256: checksum of the archive, 64 hexadecimal digits
    :param progress: show a progress bar on stderr
    :raises DownloadError: without a network, without disk space, or for a damaged archive
    """
    folder = cache_folder() if folder is None else Path(folder)
    root = folder / "DAVIS"
    if not missing_clips(root):
        return root
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder)
    archive = _fetch(folder / "downloads", url, sha256, progress)
    _unpack(archive, root)
    absent = missing_clips(root)
    if absent:
        raise DownloadError(
            f"the archive {url} must hold all of DAVIS, but lacks {absent[:3]}; pass the "
            "folder of a complete copy as video_path"
        )
    archive.unlink()
    return root


def missing_clips(root: Path) -> list[str]:
    """Return the names of DAVIS's clips that have no folder under ``root``."""
    names = (*DAVIS_NAMES["train"], *DAVIS_NAMES["val"])
    return [name for name in names if not (root / _FRAMES / name).is_dir()]


def _check_room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < 2 * DAVIS_BYTES:
        raise DownloadError(
            f"{folder} must have {2 * DAVIS_BYTES / 1e9:.1f} GB free for DAVIS, has "
            f"{free / 1e9:.1f} GB; choose another folder with --folder or DCS_CACHE"
        )


def _fetch(folder: Path, url: str, sha256: str, progress: bool) -> Path:
    name = url.rsplit("/", 1)[-1]
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        path = pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=name,
            path=folder,
            downloader=_ResumingDownloader(folder / f"{name}.part", progress),
        )
    except ValueError as error:  # pooch's error for a wrong checksum
        raise DownloadError(
            f"the archive from {url} does not have the checksum {sha256}; try again later, or "
            "download it by other means and pass its folder as video_path"
        ) from error
    finally:
        logger.setLevel(level)
    return Path(path)


class _ResumingDownloader:
    """A pooch downloader that keeps incomplete downloads in a ``.part`` file."""

    def __init__(self, part: Path, progress: bool) -> None:
        self._part = part
        self._progress = progress

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        try:
            self._download(url)
        except requests.RequestException as error:
            got = self._part.stat().st_size if self._part.exists() else 0
            raise DownloadError(
                f"cannot fetch {url} ({error}). Check the network or its proxy and run the command "
                f"again: {got / 1e6:.0f} MB are kept. Without a network, unpack the archive from "
                "elsewhere and pass its folder as video_path or DCS_VIDEOS"
            ) from error
        shutil.move(self._part, output_file)

    def _download(self, url: str) -> None:
        start = self._part.stat().st_size if self._part.exists() else 0
        headers = {"Range": f"bytes={start}-"} if start else {}
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # already complete; the checksum verifies it
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content
            self._append(response, start if resumed else 0)

    def _append(self, response: requests.Response, start: int) -> None:
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar: Any = tqdm(
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=self._part.stem,
            disable=not self._progress,
        )
        with bar, self._part.open("ab" if start else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and self._part.stat().st_size < total:
            raise requests.ConnectionError("the connection was cut")


def _unpack(archive: Path, root: Path) -> None:
    """Add the missing clips, renaming each into place, or all at once if there are none yet."""
    folders = tuple(f"DAVIS/{_FRAMES}/{name}/" for name in missing_clips(root))
    frames = root / _FRAMES
    root.mkdir(exist_ok=True)
    try:
        with (
            zipfile.ZipFile(archive) as file,
            # In the root, so that it is on the same file system.
            tempfile.TemporaryDirectory(dir=root, prefix="unpacking-") as aside,
        ):
            wanted = [name for name in file.namelist() if name.startswith(folders)]
            file.extractall(aside, wanted)
            unpacked = Path(aside) / "DAVIS" / _FRAMES
            if wanted and not frames.exists():
                # Environments take the folder for complete as soon as it is there.
                frames.parent.mkdir(exist_ok=True)
                unpacked.rename(frames)
            elif wanted:
                for clip in unpacked.iterdir():
                    clip.rename(frames / clip.name)
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{archive} must be a zip archive ({error}); delete it") from error
