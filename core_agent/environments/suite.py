"""The Distracting Control Suite: the one module that imports ``distracting_envs``.

The import registers the suite's ids, and loads neither MuJoCo nor OpenGL.
"""

from __future__ import annotations

from pathlib import Path, PurePath

from distracting_envs import env_seed
from distracting_envs import parse_env_id as parse_env_id
from distracting_envs.rendering import RenderingUnavailableError as RenderingUnavailableError
from distracting_envs.rendering import check_window as check_window
from distracting_envs.settings import DIFFICULTIES as DIFFICULTIES
from distracting_envs.settings import MAX_SEED
from distracting_envs.settings import TASKS as TASKS


def bare_id(env_id: str) -> str:
    """The id of an environment without the package that registers it."""
    return env_id.rpartition(":")[2]


def is_in_suite(env_id: str) -> bool:
    """Whether ``env_id`` is of the Distracting Control Suite."""
    return bare_id(env_id).startswith("DCS-")


def first_seed(seed: int, worker: int = 0, split: str = "train") -> int:
    """The seed of an environment's first episode, whether the environment is in the suite or not.

    Workers, training and validation, and runs with different seeds below ``MAX_SEED`` (about two
    million) all get different seeds; larger seeds of runs wrap around.

    :param seed: seed of the run
    :param worker: number of the environment within its split
    :param split: "train" or "val"
    """
    return env_seed(seed % MAX_SEED, worker, split)


def clips_name(folder: str) -> str:
    """Name of the background's clips: "DAVIS", "builtin", or that of another folder."""
    path = PurePath(folder)
    if "DAVIS" in path.parts:
        return "DAVIS"
    return path.parent.parent.name if path.parts[-2:] == ("JPEGImages", "480p") else path.name


def find_videos() -> Path | None:
    """The folder of the DAVIS videos; ``None`` if environments show the built-in clips.

    :raises ValueError: if ``DCS_VIDEOS`` names no such folder
    """
    from distracting_envs.videos import resolve_video_path

    return resolve_video_path(None)


def draw_gallery(
    picture: Path, video: Path, difficulty: str, video_path: Path | None, seed: int
) -> None:
    """Draw the tasks as a picture, and as a video under dynamic distractions.

    :param picture: the .png file
    :param video: the .gif or .mp4 file
    :param difficulty: of the video, "easy", "medium" or "hard"
    :param video_path: folder of clips; ``None``: DAVIS or the built-in ones
    :param seed: of both
    """
    from distracting_envs import gallery

    for path in (picture, video):
        path.parent.mkdir(parents=True, exist_ok=True)
    gallery.draw_video(video, difficulty=difficulty, video_path=video_path, seed=seed)
    gallery.draw_gallery(picture, video_path=video_path, seed=seed)


def download_videos(folder: Path | None = None) -> Path:
    """Download DAVIS, and return its root.

    :param folder: parent folder; ``None``: the cache folder, which environments search
    :raises ValueError: if that fails, saying how to continue
    """
    from distracting_envs.download import DownloadError, download_davis

    try:
        return download_davis(folder)
    except DownloadError as error:
        raise ValueError(str(error)) from error
