"""A dm_control wrapper that shows video clips on the sky.

It draws the same random numbers in the same order as the background wrapper of
``distracting_control`` (which no longer works on today's MuJoCo), and so shows the same frames.
Only the time of decoding and uploading differs: each clip is decoded once, in advance, and only the
texture that is rendered is uploaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dm_env
import numpy as np
from dm_control.rl import control

from distracting_envs.cache import Clip, ClipCache, Image
from distracting_envs.sky import SkyTexture, sky_number
from distracting_envs.state import State, get_random, join, make_random, part

PAPER_TEXTURE_SIZE = 800
"""Pixels per side of the texture in ``distracting_control``."""


class VideoBackground(control.Environment):
    """A dm_control environment whose sky shows a video clip.

    The frame index advances at every simulator step; :meth:`upload` copies the frame to the GPU
    and must be called before rendering.

    :param env: the dm_control environment
    :param clips: the clips to draw from, in the order of the benchmark
    :param cache: cache of decoded clips
    :param dynamic: play the clip back and forth; otherwise show one frame for the episode
    :param ground_plane_alpha: opacity of the floor, in [0, 1]
    :param texture_size: pixels per side of the sky's texture
    :param mipmapped: make the smaller versions of the texture, as the original has them
    """

    def __init__(
        self,
        env: Any,
        clips: Sequence[Clip],
        cache: ClipCache,
        *,
        dynamic: bool,
        ground_plane_alpha: float,
        texture_size: int = PAPER_TEXTURE_SIZE,
        mipmapped: bool = True,
    ) -> None:
        self._env = env
        self._clips = list(clips)
        self._cache = cache
        self._dynamic = dynamic
        self._ground_plane_alpha = ground_plane_alpha
        self._texture_size = texture_size
        self._sky = SkyTexture(
            env.physics, sky_number(env.physics.model), texture_size, mipmapped=mipmapped
        )
        self._random_state = np.random.RandomState()
        self._clip_name = ""
        self._next_is_prefetched = False
        self._frames: Image | None = None
        self._n_frames = 0
        self._first_frame = 0
        self._frame_index = 0
        self._direction = 1
        self._uploaded: int | None = None  # the frame on the GPU

    @property
    def clip_name(self) -> str:
        """Name of the current clip; empty before the first reset."""
        return self._clip_name

    def reset(self) -> dm_env.TimeStep:
        """Start an episode with another clip, frame and direction."""
        time_step = self._env.reset()
        self._choose(*self._draw(self._random_state))
        self._env.physics.named.model.mat_rgba["grid", "a"] = self._ground_plane_alpha
        self._next_is_prefetched = False
        return time_step

    def step(self, action: Any) -> dm_env.TimeStep:
        """Advance one simulator step and one frame."""
        time_step = self._env.step(action)
        if not self._next_is_prefetched:  # not in reset, which is slow already
            self._prefetch_next()
        if self._dynamic:
            self._frame_index += self._direction
            if self._frame_index <= 0:
                self._frame_index = 0
                self._direction = 1
            if self._frame_index >= self._n_frames:  # the last frame shows twice, as upstream
                self._frame_index = self._n_frames - 1
                self._direction = -1
        return time_step

    def upload(self) -> None:
        """Copy the current frame to the GPU, unless it is there already."""
        if self._frames is None or self._uploaded == self._frame_index:
            return
        self._sky.upload(self._frames[self._frame_index])
        self._uploaded = self._frame_index

    def forget_upload(self) -> None:
        """Let the next :meth:`upload` copy the current frame even if it is on the GPU."""
        self._uploaded = None

    def get_state(self) -> State:
        """Return clip, frame, direction and random numbers as plain values."""
        return {
            "clip": self._clip_name,
            "n_frames": self._n_frames,
            "first_frame": self._first_frame,
            "frame_index": self._frame_index,
            "direction": self._direction,
        } | join(random=get_random(self._random_state))

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of :meth:`get_state`.

        :raises ValueError: if there is no such clip here, or it has another number of frames
        """
        name = state["clip"]
        if name:  # empty before the first reset
            place = state["first_frame"], state["frame_index"], state["direction"]
            self._choose(self._find(state), *place)
            self._next_is_prefetched = False
        self._random_state = make_random(part(state, "random"))

    def _find(self, state: Mapping[str, Any]) -> Clip:
        """The clip of a state."""
        name = state["clip"]
        clip = next((clip for clip in self._clips if clip.name == name), None)
        if clip is None:
            raise ValueError(
                f"state must show a clip of this environment, got {name!r}; make the environment "
                "with the same video_path and split"
            )
        n_frames = clip.n_frames if self._dynamic else 1
        if n_frames != state["n_frames"] or state["first_frame"] >= clip.n_frames:
            raise ValueError(
                f"state must come from the same clips, but {name!r} has {clip.n_frames} frames, "
                f"and the state shows frame {state['first_frame']} of {state['n_frames']}"
            )
        return clip

    def _draw(self, random: np.random.RandomState) -> tuple[Clip, int, int, int]:
        """Return clip, its one frame (static) or 0, start within the frames, and direction."""
        clip = self._clips[random.choice(len(self._clips))]
        if self._dynamic:
            first, n_frames = 0, clip.n_frames
        else:
            first, n_frames = int(random.choice(clip.n_frames)), 1
        return clip, first, int(random.choice(n_frames)), int(random.choice([-1, 1]))

    def _choose(self, clip: Clip, first: int, index: int, direction: int) -> None:
        self._clip_name, self._first_frame = clip.name, first
        self._frame_index, self._direction = index, direction
        if self._dynamic:
            self._frames = self._cache.clip(clip, self._texture_size)
        else:
            self._frames = self._cache.frame(clip, first, self._texture_size)[None]
        self._n_frames = len(self._frames)
        self._uploaded = None

    def _prefetch_next(self) -> None:
        """Load the frames of the next reset, which are known: nothing else draws before it."""
        self._next_is_prefetched = True
        peek = np.random.RandomState()
        peek.set_state(self._random_state.get_state())
        clip, first, _, _ = self._draw(peek)
        if self._dynamic:
            self._cache.prefetch_clip(clip, self._texture_size)
        else:
            self._cache.prefetch_frame(clip, first, self._texture_size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)
