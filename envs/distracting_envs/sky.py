"""The texture of the sky, onto which background videos are painted."""

from __future__ import annotations

import importlib
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt


class SkyTexture:
    """Brings pictures to the texture of the sky, all six sides of it.

    :param physics: a dm_control ``Physics``
    :param texture: number of the sky's texture in the model
    :param size: pixels per side
    :param mipmapped: also make the smaller versions that MuJoCo makes, which takes most of the
        time. They matter only where the texture appears shrunken
    """

    def __init__(self, physics: Any, texture: int, size: int, *, mipmapped: bool) -> None:
        self._physics = physics
        self._texture = texture
        self._size = size
        self._mipmapped = mipmapped
        self._gl_context: Any = None  # the one whose texture has this size and no mipmaps

    def upload(self, picture: npt.NDArray[np.uint8]) -> None:
        """Show a picture, (size, size, 3) uint8 RGB."""
        contexts = self._physics.contexts
        with contexts.gl.make_current() as context:
            if self._mipmapped or self._gl_context is not contexts.gl:
                self._fill_model(picture)
                context.call(
                    mujoco.mjr_uploadTexture,
                    self._physics.model.ptr,
                    contexts.mujoco.ptr,
                    self._texture,
                )
                self._gl_context = contexts.gl
                if not self._mipmapped:
                    context.call(self._forget_mipmaps)
            else:
                context.call(self._replace, picture)

    def _fill_model(self, picture: npt.NDArray[np.uint8]) -> None:
        model = self._physics.model
        # A square sky is used for all six sides of the cube; the suite's is six squares high.
        model.tex_width[self._texture] = model.tex_height[self._texture] = self._size
        start = model.tex_adr[self._texture]
        model.tex_data[start : start + picture.size] = picture.ravel()

    def _bind(self) -> Any:
        gl = importlib.import_module("OpenGL.GL")  # now that dm_control has chosen the platform
        name = int(self._physics.contexts.mujoco.ptr.texture[self._texture])
        gl.glBindTexture(gl.GL_TEXTURE_CUBE_MAP, name)
        return gl

    def _forget_mipmaps(self) -> None:
        gl = self._bind()
        gl.glTexParameteri(gl.GL_TEXTURE_CUBE_MAP, gl.GL_TEXTURE_MAX_LEVEL, 0)

    def _replace(self, picture: npt.NDArray[np.uint8]) -> None:
        gl = self._bind()
        for side in range(6):
            gl.glTexSubImage2D(
                gl.GL_TEXTURE_CUBE_MAP_POSITIVE_X + side,
                0,
                0,
                0,
                self._size,
                self._size,
                gl.GL_RGB,
                gl.GL_UNSIGNED_BYTE,
                picture,
            )


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
