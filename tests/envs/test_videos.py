"""Where clips come from, how they are split, and what is said when one is damaged."""

from __future__ import annotations

import shutil

import av
import gymnasium
import numpy as np
import pytest
from PIL import Image

from distracting_envs import builtin_videos
from distracting_envs.davis import DAVIS_NAMES
from distracting_envs.videos import VideoError, open_clips


def write_video(path, n_frames, size=(64, 48)):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(n_frames):
            picture = np.full((size[1], size[0], 3), 4 * i, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_davis_is_found_and_split_as_the_benchmark_splits_it(davis_root, monkeypatch):
    for path in (davis_root, davis_root.parent, davis_root / "JPEGImages" / "480p"):
        names = [clip.name for clip in open_clips(path, "train", 60)]
        assert names == list(DAVIS_NAMES["train"])
        assert names[:4] == ["bear", "bmx-bumps", "boat", "boxing-fisheye"]
    assert [clip.name for clip in open_clips(davis_root, "val", 30)] == list(DAVIS_NAMES["val"])
    monkeypatch.setenv("DCS_VIDEOS", str(davis_root))
    assert open_clips(None, "train", 1)[0].name == "bear"
    assert open_clips("builtin", "val", 1)[0].name == "builtin-val-00"


def test_train_and_val_folders_are_taken_at_their_word(tmp_path, write_clip):
    for split, names in {"train": "abc", "val": "de"}.items():
        for seed, name in enumerate(names):
            write_clip(tmp_path / split / name, n_frames=2, seed=seed)
    assert [clip.name for clip in open_clips(tmp_path, "train", None)] == ["a", "b", "c"]
    assert [clip.name for clip in open_clips(tmp_path, "val", 1)] == ["d"]


def test_any_other_folder_is_split_without_overlap(tmp_path, write_clip):
    for seed, name in enumerate("abcdefg"):
        write_clip(tmp_path / name, n_frames=2, seed=seed)
    train = [clip.name for clip in open_clips(tmp_path, "train", None)]
    val = [clip.name for clip in open_clips(tmp_path, "val", None)]
    assert (train, val) == (["a", "b", "d", "e", "g"], ["c", "f"])


def test_frames_play_in_the_order_of_their_numbers_and_16_bits_become_8(tmp_path):
    (tmp_path / "a").mkdir()
    for index in range(1, 13):
        picture = Image.fromarray(np.full((3, 4), 257 * index, np.uint16))
        picture.save(tmp_path / "a" / f"frame{index}.png")
    (clip,) = open_clips(tmp_path, "train", None)
    frames = list(clip.frames())
    assert [frame[0, 0].tolist() for frame in frames] == [[index] * 3 for index in range(1, 13)]
    (tmp_path / "a" / "frame3.png").unlink()
    (tmp_path / "a" / "frame3.png").symlink_to("missing.png")
    with pytest.raises(VideoError, match=r"frame .*frame3.png is damaged \(there is no such file"):
        open_clips(tmp_path, "train", None)


def test_video_files_are_clips(tmp_path):
    write_video(tmp_path / "ramp.mp4", n_frames=20)
    (clip,) = open_clips(tmp_path, "train", None)
    frames = list(clip.frames())
    assert clip.n_frames == len(frames) == 20
    assert frames[0].shape == (48, 64, 3)
    brightness = [float(frame.mean()) for frame in frames]
    np.testing.assert_allclose(brightness, 4 * np.arange(20), atol=6)
    np.testing.assert_array_equal(clip.frame(13), frames[13])


def test_an_environment_plays_video_files(tmp_path):
    for name in ("one.mp4", "two.mp4"):
        write_video(tmp_path / name, n_frames=8)
    env = gymnasium.make("DCS-cheetah-run-hard-dynamic", video_path=tmp_path, render_quality="fast")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()


# What is wrong with a folder is said when the environment is made, and names the culprit.


@pytest.fixture
def own_davis(davis_root, tmp_path):
    """A copy of the first clips of DAVIS, to be damaged."""
    for name in DAVIS_NAMES["train"][:4]:
        shutil.copytree(davis_root / "JPEGImages" / "480p" / name, tmp_path / name)
    return tmp_path


def make_easy(folder):
    return gymnasium.make("DCS-cheetah-run-easy-static", video_path=folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (None, None, r"'boat'.*missing.*download"),
        ("", None, r"'boat'.*at least one"),
        ("00001.jpg", b"cut", r"'boat'.*00001\.jpg is damaged"),
        ("00002.jpg", b"not a picture", r"00002\.jpg is damaged"),
        ("00002.jpg", Image.new("RGB", (32, 32)), r"one size.*00002\.jpg has 32x32.*64x48"),
    ],
)
def test_a_clip_that_is_missing_or_damaged_is_named(own_davis, file, content, message):
    clip = own_davis / "boat"
    if not file:
        shutil.rmtree(clip)
        if file == "":
            clip.mkdir()
    elif isinstance(content, bytes):
        original = (clip / file).read_bytes()
        (clip / file).write_bytes(original[:-100] if content == b"cut" else content)
    else:
        content.save(clip / file)
    with pytest.raises(VideoError, match=message):
        make_easy(own_davis)


def test_a_folder_that_does_not_exist_or_is_empty_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"video_path must be an existing folder.*nowhere"):
        make_easy(tmp_path / "nowhere")
    with pytest.raises(VideoError, match=r"must hold clips.*'train'"):
        make_easy(tmp_path)


@pytest.mark.parametrize(("there", "missing"), [("train", "val"), ("val", "train")])
def test_a_folder_with_one_split_alone_says_what_to_do(tmp_path, write_clip, there, missing):
    for number in range(4):
        write_clip(tmp_path / there / f"clip{number}", n_frames=2, seed=number)
    assert len(open_clips(tmp_path, there, None)) == 4
    with pytest.raises(
        VideoError, match=rf"must hold a sub-folder '{missing}' .* next to '{there}'"
    ):
        open_clips(tmp_path, missing, None)


def test_too_few_clips_say_how_many_there_are_and_which_are_for_validation(tmp_path, write_clip):
    write_clip(tmp_path / "only", n_frames=2, seed=0)
    with pytest.raises(VideoError, match="every third clip by name is for validation"):
        open_clips(tmp_path, "val", None)
    with pytest.raises(VideoError, match=r"4 train clips.*has 1.*n_clips=1"):
        make_easy(tmp_path)


def test_a_damaged_video_file_is_named(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, n_frames=20)
    original = path.read_bytes()
    for content in (b"", b"not a video", b"\0" * 4096, original[: len(original) // 2]):
        path.write_bytes(content)
        with pytest.raises(VideoError, match=r"'clip\.mp4'"):
            open_clips(tmp_path, "train", None)
    # Where the size of a frame is wrong, a decoder finds no frame after it and says nothing.
    content = bytearray(original)
    sizes = content.index(b"stsz") + 16  # behind the name, the version, a common size and the count
    content[sizes + 4 * 10 : sizes + 4 * 11] = len(content).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"'clip\.mp4'.* of the frames that it declares"):
        open_clips(tmp_path, "train", None)


# The built-in clips.


def test_builtin_clips_are_the_same_every_time():
    first, second = (builtin_videos.ClipScene("train", 3).frame(17) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_builtin_clips_all_differ_and_all_move():
    scenes = [builtin_videos.ClipScene("train", i) for i in range(8)]
    scenes += [builtin_videos.ClipScene("val", i) for i in range(4)]
    firsts = [scene.frame(0).astype(float) for scene in scenes]
    lasts = [scene.frame(30).astype(float) for scene in scenes]
    for i, first in enumerate(firsts):
        assert np.abs(first - lasts[i]).mean() > 3
        assert all(np.abs(first - other).mean() > 15 for other in firsts[:i])
