"""The texture of the sky, which shows background videos."""

from __future__ import annotations

import importlib
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt


class SkyTexture:
    """Copies pictures to all six sides of the sky's texture.

    :param physics: a dm_control ``Physics``
    :param texture: number of the sky's texture in the model
    :param size: pixels per side
    :param mipmapped: also compute the mipmaps, as MuJoCo does, which takes most of the time. They
        matter only where the texture appears smaller
    """

    def __init__(self, physics: Any, texture: int, size: int, *, mipmapped: bool) -> None:
        self._physics = physics
        self._texture = texture
        self._size = size
        self._gl = None if mipmapped else _opengl()
        self._plain_context: Any = None  # the one in which the texture has no mipmaps

    def upload(self, picture: npt.NDArray[np.uint8]) -> None:
        """Show a picture, (size, size, 3) uint8 RGB."""
        contexts = self._physics.contexts
        with contexts.gl.make_current() as context:
            if self._gl is not None and self._plain_context is contexts.gl:
                context.call(self._replace, self._gl, picture)
                return
            self._fill_model(picture)
            context.call(
                mujoco.mjr_uploadTexture,
                self._physics.model.ptr,
                contexts.mujoco.ptr,
                self._texture,
            )
            if self._gl is not None:
                context.call(self._forget_mipmaps, self._gl)
                self._plain_context = contexts.gl

    def _fill_model(self, picture: npt.NDArray[np.uint8]) -> None:
        model = self._physics.model
        # A square sky is used for all six sides of the cube; the suite's is six squares high.
        model.tex_width[self._texture] = model.tex_height[self._texture] = self._size
        start = model.tex_adr[self._texture]
        model.tex_data[start : start + picture.size] = picture.ravel()

    def _bind(self, gl: Any) -> None:
        name = int(self._physics.contexts.mujoco.ptr.texture[self._texture])
        gl.glBindTexture(gl.GL_TEXTURE_CUBE_MAP, name)

    def _forget_mipmaps(self, gl: Any) -> None:
        self._bind(gl)
        gl.glTexParameteri(gl.GL_TEXTURE_CUBE_MAP, gl.GL_TEXTURE_MAX_LEVEL, 0)

    def _replace(self, gl: Any, picture: npt.NDArray[np.uint8]) -> None:
        self._bind(gl)
        for side in range(6):
            target = gl.GL_TEXTURE_CUBE_MAP_POSITIVE_X + side
            where = (0, 0, 0, self._size, self._size)  # level of detail, corner, width, height
            gl.glTexSubImage2D(target, *where, gl.GL_RGB, gl.GL_UNSIGNED_BYTE, picture)


def _opengl() -> Any:
    """Return PyOpenGL's functions, or None if it finds no libGL, which MuJoCo does not need."""
    try:
        return importlib.import_module("OpenGL.GL")
    except Exception:
        return None


def sky_number(model: Any) -> int:
    """Return the number of the model's sky texture.

    :raises ValueError: if the model has none
    """
    for texture in range(model.ntex):
        if model.tex_type[texture] == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            return texture
    raise ValueError(
        "distractions must not hold 'background' for a task whose model has no sky texture; "
        'leave it out, as in distractions=("camera", "color")'
    )
