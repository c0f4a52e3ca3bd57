"""Procedural video clips that stand in for DAVIS where it is not installed.

Ninety clips, 60 for training and 30 for validation, as many as DAVIS 2017 has. Each has a backdrop
of noise in its own colours and scale that pans, turns and zooms, and a few opaque objects that move
in front of it. Both carry a fine texture that moves with them. A clip depends on nothing but its
split and its number. ``benchmarks/clip_statistics.py`` compares the clips with natural videos.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import numpy.typing as npt

N_CLIPS = {"train": 60, "val": 30}
CLIP_FRAMES = 60
CLIP_SIZE = 256
"""Height and width of the frames in pixels."""

VERSION = 3
"""Part of the name of a cached clip; to be raised with every change of the pictures."""

_GOLDEN_RATIO = 0.6180339887
_Image = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]


def clip_name(split: str, index: int) -> str:
    """Return the name of a clip, such as ``builtin-train-07``."""
    return f"builtin-{split}-{index:02d}"


class ClipScene:
    """One clip as a scene, of which any frame can be drawn by itself.

    :param split: "train" or "val"
    :param index: number of the clip, in [0, N_CLIPS[split])
    """

    def __init__(self, split: str, index: int) -> None:
        rng = np.random.default_rng([VERSION, int(split == "val"), index])
        number = index + (N_CLIPS["train"] if split == "val" else 0)
        hue = (number * _GOLDEN_RATIO) % 1.0  # neighbours in number are far apart in hue
        self._backdrop = _backdrop(rng, hue)
        self._camera = _CameraPath(rng)
        self._objects = [_MovingObject(rng, hue) for _ in range(rng.integers(4, 10))]

    def frame(self, index: int) -> _Image:
        """Return one frame, (CLIP_SIZE, CLIP_SIZE, 3) uint8 RGB.

        :param index: number of the frame, in [0, CLIP_FRAMES)
        """
        time = index / CLIP_FRAMES
        frame = self._camera.view(self._backdrop, time)
        for moving_object in self._objects:
            moving_object.draw(frame, time)
        return frame


def _color(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


def _noise(rng: np.random.Generator, size: int, coarsest: int, weights: list[float]) -> _Floats:
    """Return octaves of smooth noise added up, (size, size) float32.

    :param coarsest: cells along a side in the first octave; each further one has twice as many
    :param weights: of the octaves
    """
    total = np.zeros((size, size), np.float32)
    for octave, weight in enumerate(weights):
        cells = coarsest * 2**octave + 1
        noise = rng.standard_normal((cells, cells)).astype(np.float32)
        total += weight * cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return total


def _textured(picture: _Floats, texture: _Floats) -> _Image:
    """Return ``picture``, (h, w, 3), lighter and darker by the ``texture``, (h, w)."""
    return np.clip(picture * (1.0 + texture[..., None]), 0, 255).astype(np.uint8)


def _backdrop(rng: np.random.Generator, hue: float) -> _Image:
    """Return a picture twice the size of a frame, from octaves of noise and a palette."""
    size = 2 * CLIP_SIZE
    roughness = rng.uniform(0.4, 0.75)
    height = _noise(rng, size, int(rng.integers(2, 7)), [roughness**n for n in range(6)])
    if rng.random() < 0.5:  # half the clips have bands, as fences, waves and roads do
        angle, n_bands = rng.uniform(0, np.pi), rng.uniform(3, 14)
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
        phase = 2 * np.pi * n_bands * (x * np.cos(angle) + y * np.sin(angle))
        height += 0.7 * height.std() * np.sin(phase + height)
    # Stops at quantiles of the noise: every colour of the palette covers a fair share.
    shares = np.array([0.05, 0.35, 0.65, 0.95]) + rng.uniform(-0.1, 0.1, 4) * [0, 1, 1, 0]
    stops = np.quantile(height, shares)
    palette = np.array(
        [
            _color(hue + rng.normal(0, 0.07), rng.uniform(0.05, 0.55), value)
            for value in np.linspace(rng.uniform(0.05, 0.3), rng.uniform(0.7, 1.0), 4)
        ],
        np.float32,
    )
    picture = np.stack([np.interp(height, stops, palette[:, c]) for c in range(3)], axis=-1)
    # Cells of 8 and 4 pixels: what still shows in a picture of 64.
    texture = _noise(rng, size, size // 8, [1.0, 0.7])
    return _textured(picture.astype(np.float32), rng.uniform(0.05, 0.2) * texture)


class _CameraPath:
    """A window that pans, turns and zooms over a backdrop."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._pan = rng.uniform(-0.25, 0.25, 2) * CLIP_SIZE
        self._sway = rng.uniform(0.0, 0.03, 2) * CLIP_SIZE
        self._sway_turns = rng.integers(1, 4)
        self._turn = rng.uniform(-12.0, 12.0)
        self._zoom = rng.uniform(-0.15, 0.15)

    def view(self, backdrop: _Image, time: float) -> _Image:
        """Return the frame at ``time``, a fraction of the clip in [0, 1)."""
        phase = 2 * np.pi * self._sway_turns * time
        center = CLIP_SIZE + self._pan * (time - 0.5)
        center = center + self._sway * np.array([np.sin(phase), np.cos(phase)])
        matrix = cv2.getRotationMatrix2D(
            (float(center[0]), float(center[1])), self._turn * time, 1.2 + self._zoom * (time - 0.5)
        )
        matrix[:, 2] += CLIP_SIZE / 2 - center
        size = (CLIP_SIZE, CLIP_SIZE)
        frame = cv2.warpAffine(backdrop, matrix, size, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(frame, np.uint8)


class _MovingObject:
    """An opaque polygon with a lighter core and a texture, which drifts, swings and spins."""

    def __init__(self, rng: np.random.Generator, hue: float) -> None:
        outline = self._shape(rng) * rng.uniform(0.05, 0.2) * CLIP_SIZE
        self._start = rng.uniform(-0.1, 1.1, 2) * CLIP_SIZE
        self._drift = rng.normal(0, 0.3, 2) * CLIP_SIZE
        self._swing = rng.uniform(0.0, 0.1, 2) * CLIP_SIZE
        self._swing_turns = rng.uniform(0.5, 3.0)
        self._swing_phase = rng.uniform(0, 2 * np.pi)
        self._spin = rng.normal(0, 1.0)
        self._paint(rng, outline, hue + rng.uniform(0.2, 0.8))

    @staticmethod
    def _shape(rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Return the corners of a star, an ellipse or a box about the origin, (n, 2)."""
        kind = rng.integers(3)
        n_corners = (2 * int(rng.integers(3, 8)), 24, 4)[kind]
        angle = 2 * np.pi * np.arange(n_corners) / n_corners
        radius = np.ones(n_corners)
        if kind == 0:
            radius[1::2] = rng.uniform(0.4, 0.8)
        stretch = np.array([1.0, rng.uniform(0.4, 1.0)])
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1) * stretch

    def _paint(
        self, rng: np.random.Generator, outline: npt.NDArray[np.float64], hue: float
    ) -> None:
        """Draw the object once: its picture, and its shape as opacity in [0, 255]."""
        self._radius = int(np.ceil(np.abs(outline).max())) + 2
        size = 2 * self._radius
        saturation = rng.uniform(0.1, 0.6)
        color = _color(hue, saturation, rng.uniform(0.3, 0.8))
        picture = np.full((size, size, 3), color, np.uint8)
        self._opacity = np.zeros((size, size), np.uint8)
        corners, core = (
            np.round((self._radius - 0.5 + scale * outline) * 16).astype(np.int32)
            for scale in (1.0, 0.5)
        )
        core_color = _color(hue, saturation * 0.6, 1.0)
        cv2.fillPoly(self._opacity, [corners], 255, lineType=cv2.LINE_AA, shift=4)
        cv2.fillPoly(picture, [core], core_color, lineType=cv2.LINE_AA, shift=4)
        texture = _noise(rng, size, max(1, size // 8), [1.0, 0.7])
        self._picture = _textured(picture.astype(np.float32), rng.uniform(0.05, 0.2) * texture)

    def draw(self, frame: _Image, time: float) -> None:
        """Draw the object into ``frame`` as it is at ``time``, a fraction of the clip."""
        swing = self._swing * np.sin(2 * np.pi * self._swing_turns * time + self._swing_phase)
        center = self._start + self._drift * time + swing
        reach = int(1.5 * self._radius)
        left, top = np.clip(center.astype(int) - reach, 0, CLIP_SIZE)
        right, bottom = np.clip(center.astype(int) + reach, 0, CLIP_SIZE)
        if left == right or top == bottom:
            return  # out of sight
        middle = self._radius - 0.5
        matrix = cv2.getRotationMatrix2D((middle, middle), 360 * self._spin * time, 1.0)
        matrix[:, 2] += center - middle - [left, top]
        size = (int(right - left), int(bottom - top))
        picture, opacity = (
            cv2.warpAffine(part, matrix, size) for part in (self._picture, self._opacity)
        )
        below = frame[top:bottom, left:right]
        below[:] = cv2.copyTo(picture, (opacity > 127).astype(np.uint8), below.copy())
