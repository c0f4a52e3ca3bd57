"""Videos: to a file, and to TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from tensorboard.compat.proto.summary_pb2 import Summary

from core_agent.validation import check

FRAMES_PER_SECOND = 15
"""Of the videos that commands write; slower than the simulation."""


def write_mp4(path: str | Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write frames ``(H, W, 3)``, uint8, even height and width, as an H.264 video.

    :raises ValueError: if there is no frame
    """
    if not len(frames):
        raise ValueError("frames must hold at least one frame, got none")
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=round(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "23"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def prepare_video(name: str, path: str | Path) -> None:
    """Refuse a video file of an unknown format, and make its folder.

    :param name: of the argument, for the error
    :raises ValueError: unless ``path`` ends in .mp4 or .gif
    :raises OSError: if the folder cannot be made
    """
    check(Path(path).suffix.lower() in WRITERS, name, f"end in one of {tuple(WRITERS)}", str(path))
    Path(path).parent.mkdir(parents=True, exist_ok=True)


def write_video(path: str | Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write frames ``(H, W, 3)``, uint8, even height and width, as .mp4 or .gif.

    :param path: its folder is made if missing
    :raises ValueError: if there is no frame, or for another format
    """
    prepare_video("path", path)
    WRITERS[Path(path).suffix.lower()](path, frames, fps)


def captioned(frames: Sequence[np.ndarray], text: str) -> list[np.ndarray]:
    """Copies of frames ``(H, W, 3)``, uint8, with a line of text in the upper left corner."""
    result = []
    for frame in frames:
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image)
        draw.text((8, 6), text, font_size=16, fill="white", stroke_width=2, stroke_fill="black")
        result.append(np.asarray(image))
    return result


def side_by_side(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Frames of two videos of the same height next to each other; the shorter one freezes."""
    length = max(len(left), len(right))
    pairs = ((left[min(i, len(left) - 1)], right[min(i, len(right) - 1)]) for i in range(length))
    return [np.concatenate(pair, axis=1) for pair in pairs]


def encode_gif(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """An endless GIF of frames ``(H, W, 3)``, uint8."""
    images = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    images[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    return file.getvalue()


def write_gif(path: str | Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write frames ``(H, W, 3)``, uint8, as an endless GIF.

    :raises ValueError: if there is no frame
    """
    check(len(frames) > 0, "frames", "hold at least one frame", "none")
    Path(path).write_bytes(encode_gif(frames, fps))


WRITERS = {".mp4": write_mp4, ".gif": write_gif}
"""By the suffix of the file."""


def encode_png(image: np.ndarray) -> bytes:
    """A PNG of an image ``(H, W, 3)``, uint8."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def log_video(
    logger: Logger, tag: str, frames: Sequence[np.ndarray], fps: float, step: int
) -> None:
    """Log a video to TensorBoard, if that is one of the logger's outputs.

    ``SummaryWriter.add_video`` of PyTorch 2.13 looks for ``moviepy.editor``, which moviepy 2 no
    longer has, so the summary is built here.
    """
    _log_image(logger, tag, frames[0].shape, encode_gif(frames, fps), step)


def log_picture(logger: Logger, tag: str, image: np.ndarray, step: int) -> None:
    """Log a picture ``(H, W, 3)``, uint8, to TensorBoard at once, if the logger writes there."""
    _log_image(logger, tag, image.shape, encode_png(image), step)


def _log_image(logger: Logger, tag: str, shape: tuple[int, ...], encoded: bytes, step: int) -> None:
    height, width, channels = shape
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            image = Summary.Image(
                height=height, width=width, colorspace=channels, encoded_image_string=encoded
            )
            summary = Summary(value=[Summary.Value(tag=tag, image=image)])
            output.writer._get_file_writer().add_summary(summary, step)
            output.writer.flush()
