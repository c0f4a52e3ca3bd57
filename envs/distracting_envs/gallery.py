"""Pictures of the environments: Figure 2 of the paper's appendix, and a video of distractions.

``core-agent gallery`` writes both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

import distracting_envs  # noqa: F401 - registers the environments
from distracting_envs.cache import Image
from distracting_envs.checks import check_choice, check_whole
from distracting_envs.settings import DIFFICULTIES, TASKS

_GAP = 4  # pixels between pictures
_MARGIN = 28  # pixels for a line of text
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_VIDEO_SUFFIXES = (".gif", ".mp4")


def draw_gallery(
    path: str | os.PathLike[str] = "gallery.png",
    *,
    tasks: Sequence[str] = tuple(TASKS),
    video_path: str | os.PathLike[str] | None = None,
    seed: int = 1,
    tile_width: int = 240,
    render_quality: str = "paper",
) -> Path:
    """Write one picture of the tasks, each clean, easy, medium and hard; return its path.

    After Figure 2 of the appendix of arXiv:2112.01163.

    :param path: a .png file
    :param tasks: any of ``TASKS``, one column each
    :param video_path: see :class:`~distracting_envs.env.DistractingControlEnv`
    :param seed: seed of the first task; each following task has the next seed
    :param tile_width: width of one picture in pixels; its height is three quarters of that
    :param render_quality: "paper" or "fast"
    """
    check_whole("tile_width", tile_width)
    rows = ["clean", *DIFFICULTIES]
    size = (tile_width, 3 * tile_width // 4)
    tiles = []
    for row in rows:
        setting = row if row == "clean" else f"{row}-static"
        for column, task in enumerate(tasks):
            env = gymnasium.make(
                f"DCS-{task}-{setting}",
                video_path=video_path,
                render_quality=render_quality,
            )
            env.reset(seed=seed + column)
            frame: Any = env.render()
            env.close()
            picture = PillowImage.fromarray(frame)
            tiles.append(picture.resize(size, PillowImage.Resampling.BICUBIC))
    sheet = _sheet(tiles, n_columns=len(tasks), column_titles=tasks, row_titles=rows)
    path = Path(path)
    sheet.save(path)
    return path


def draw_video(
    path: str | os.PathLike[str] = "distractions.gif",
    *,
    difficulty: str = "medium",
    video_path: str | os.PathLike[str] | None = None,
    seed: int = 1,
    n_frames: int = 60,
    tile_width: int = 160,
) -> Path:
    """Write a video of the six tasks under dynamic distractions; return its path.

    :param path: a .gif or .mp4 file
    :param difficulty: "easy", "medium" or "hard"
    :param video_path: see :class:`~distracting_envs.env.DistractingControlEnv`
    :param seed: seed of every environment and of the random actions
    :param n_frames: agent steps, each one frame
    :param tile_width: width of one task's picture in pixels, an even number; the height is
        three quarters of it
    """
    path = Path(path)
    check_choice("difficulty", difficulty, tuple(DIFFICULTIES))
    check_choice("the suffix of path", path.suffix.lower(), _VIDEO_SUFFIXES)
    check_whole("n_frames", n_frames)
    check_whole("tile_width", tile_width)
    envs = [
        gymnasium.make(
            f"DCS-{task}-{difficulty}-dynamic",
            video_path=video_path,
            render_quality="fast",
            action_repeat=4,  # equal for all, so that the clips play at the same speed
        )
        for task in TASKS
    ]
    size = (tile_width, 3 * tile_width // 4)
    frames = list(_video_frames(envs, size, seed, n_frames))
    for env in envs:
        env.close()
    write_video(path, frames, fps=12)
    return path


def _video_frames(
    envs: Sequence[gymnasium.Env[Any, Any]], size: tuple[int, int], seed: int, n_frames: int
) -> Iterator[Image]:
    rng = np.random.default_rng(seed)
    for env in envs:
        env.reset(seed=seed)
    for _ in range(n_frames):
        tiles = []
        for env in envs:
            env.step(rng.uniform(-1, 1, env.action_space.shape or ()).astype(np.float32))
            frame: Any = env.render()
            tiles.append(PillowImage.fromarray(frame).resize(size))
        yield np.asarray(_sheet(tiles, n_columns=3))


def _sheet(
    tiles: Sequence[PillowImage.Image],
    n_columns: int,
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
) -> PillowImage.Image:
    """Return the tiles as a table, row by row, with titles above and at the left."""
    width, height = tiles[0].size
    left, top = (_MARGIN if row_titles else 0), (_MARGIN if column_titles else 0)
    n_rows = -(-len(tiles) // n_columns)
    sheet = PillowImage.new(
        "RGB",
        (left + n_columns * (width + _GAP) - _GAP, top + n_rows * (height + _GAP) - _GAP),
        _PAPER,
    )
    for i, tile in enumerate(tiles):
        row, column = divmod(i, n_columns)
        sheet.paste(tile, (left + column * (width + _GAP), top + row * (height + _GAP)))
    for column, title in enumerate(column_titles):
        sheet.paste(_text(title, width), (left + column * (width + _GAP), 0))
    for row, title in enumerate(row_titles):
        turned = _text(title, height).transpose(PillowImage.Transpose.ROTATE_90)
        sheet.paste(turned, (0, top + row * (height + _GAP)))
    return sheet


def _text(text: str, width: int) -> PillowImage.Image:
    line = PillowImage.new("RGB", (width, _MARGIN), _PAPER)
    font = ImageFont.load_default(size=16)
    ImageDraw.Draw(line).text((width / 2, _MARGIN / 2), text, _INK, font=font, anchor="mm")
    return line


def write_video(path: Path, frames: Sequence[Image], fps: int) -> None:
    """Write frames, each (height, width, 3) uint8 RGB with even sides, as .gif or .mp4."""
    if path.suffix.lower() == ".gif":
        pictures = [PillowImage.fromarray(frame) for frame in frames]
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0
        )
        return
    with av.open(str(path), "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
