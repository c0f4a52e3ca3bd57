"""Pictures and videos of the environments are written as asked."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

from distracting_envs import gallery


def test_the_gallery_shows_each_task_in_four_settings(tmp_path):
    path = gallery.draw_gallery(
        tmp_path / "gallery.png",
        tasks=["reacher-easy", "walker-walk"],
        video_path="builtin",
        tile_width=80,
        render_quality="fast",
    )
    with Image.open(path) as picture:
        sheet = np.asarray(picture.convert("RGB"))
    assert sheet.shape == (28 + 4 * 64 - 4, 28 + 2 * 84 - 4, 3)
    tiles = [
        sheet[28 + 64 * row :][:60, 28 + 84 * column :][:, :80]
        for row in range(4)
        for column in range(2)
    ]
    assert all(tile.std() > 5 for tile in tiles)
    assert len({tile.tobytes() for tile in tiles}) == 8


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_the_video_shows_moving_distractions(tmp_path, suffix):
    path = gallery.draw_video(
        tmp_path / f"video{suffix}", video_path="builtin", n_frames=5, tile_width=80
    )
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 5
    assert frames[0].shape == (124, 248, 3)
    assert np.abs(frames[0].astype(float) - frames[4]).mean() > 1


def test_an_unknown_video_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'\.gif', '\.mp4', got '\.avi'"):
        gallery.draw_video(tmp_path / "video.avi")
