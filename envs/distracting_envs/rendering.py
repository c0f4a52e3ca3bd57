"""Selection of an OpenGL backend, and rendering of one camera of a model.

Import this module before anything of dm_control: dm_control fixes its OpenGL backend when it is
imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib
import importlib.util
import os
import sys
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from distracting_envs.settings import FRAME_HEIGHT, FRAME_WIDTH, RENDER_QUALITIES

FAST_TEXTURE_SIZE = 256
"""Pixels per side of the sky's texture in "fast" quality: it spans 90 degrees, a frame 45."""

_INSTALL = (
    "On Debian or Ubuntu: `sudo apt-get install libegl1 libgl1 libopengl0 libgl1-mesa-dri` for "
    "MUJOCO_GL=egl (with or without a GPU); on systems before Mesa 25.1 also "
    "`sudo apt-get install libosmesa6` for MUJOCO_GL=osmesa"
)


_gl_process: int | None = None  # the process that has made an OpenGL context


class RenderingUnavailableError(RuntimeError):
    """OpenGL is missing; the message says what to install."""


def prepare_rendering() -> None:
    """Choose the OpenGL backend and import what must come first; a second call does nothing.

    Without ``MUJOCO_GL``, and without a display, ``egl`` is used if it works, otherwise ``osmesa``
    if it is installed.

    :raises RenderingUnavailableError: if no backend can be loaded
    """
    # Importing Triton (as the first torch optimiser does) after a software OpenGL context exists
    # crashes the process, since both bring an LLVM. The other way round it works.
    if "triton" not in sys.modules and importlib.util.find_spec("triton") is not None:
        with contextlib.suppress(Exception):  # a broken Triton concerns those who use it
            importlib.import_module("triton")
    if "dm_control._render" in sys.modules:
        return
    if "MUJOCO_GL" not in os.environ and sys.platform == "linux" and not _has_display():
        os.environ["MUJOCO_GL"] = _headless_backend()
    # One thread renders an environment. Handing each call to another thread, as dm_control does for
    # OSMesa, costs time and ends in tracebacks when an environment is still open at exit.
    os.environ.setdefault("DISABLE_RENDER_THREAD_OFFLOADING", "1")
    try:
        importlib.import_module("dm_control._render")
    except Exception as error:
        backend = os.environ.get("MUJOCO_GL", "")
        raise RenderingUnavailableError(
            f"OpenGL backend MUJOCO_GL={backend} cannot be loaded ({error}). {_INSTALL}."
        ) from error


def _has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def check_window() -> None:
    """Make sure that pygame can open a window.

    :raises gymnasium.error.DependencyNotInstalled: without pygame
    :raises RenderingUnavailableError: without a display
    """
    chosen = "SDL_VIDEODRIVER" in os.environ
    driver = "offscreen"  # pygame's silent fallback, which shows nothing
    if chosen or _has_display() or sys.platform != "linux":
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        # An accelerated window makes its own OpenGL context current, unnoticed by dm_control.
        os.environ["SDL_FRAMEBUFFER_ACCELERATION"] = "0"
        try:
            pygame = importlib.import_module("pygame")
        except ModuleNotFoundError:
            raise gymnasium.error.DependencyNotInstalled(
                "a window needs pygame, which is not installed: pip install pygame"
            ) from None
        with contextlib.suppress(pygame.error):
            pygame.display.init()
            driver = pygame.display.get_driver()
    if driver == "offscreen" and not chosen:
        raise RenderingUnavailableError(
            f"a window needs a display, but DISPLAY={os.environ.get('DISPLAY', '')!r} gives none; "
            'write a video with render_mode="rgb_array" instead, or run the program under xvfb-run'
        )


def _headless_backend() -> str:
    # PyOpenGL settles on a platform at its first import; afterwards only that one can work.
    platform = os.environ.get("PYOPENGL_PLATFORM")
    if platform in {"egl", "osmesa"}:
        return platform
    if _egl_works():
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    raise RenderingUnavailableError(f"no OpenGL found for rendering without a display. {_INSTALL}.")


def _egl_works() -> bool:
    """Whether EGL has a device that can be initialised, without selecting it for PyOpenGL."""
    library = ctypes.util.find_library("EGL")
    if library is None:
        return False
    try:
        egl = ctypes.CDLL(library)
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
        display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    except (OSError, AttributeError):
        return False
    if not query_address or not display_address:
        return False
    query_devices = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    )(query_address)
    platform_display = ctypes.CFUNCTYPE(
        ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p
    )(display_address)
    devices = (ctypes.c_void_p * 16)()
    count = ctypes.c_int(0)
    if not query_devices(16, devices, ctypes.byref(count)):
        return False
    egl.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    egl_platform_device = 0x313F
    for device in devices[: count.value]:
        display = platform_display(egl_platform_device, device, None)
        if display and egl.eglInitialize(display, None, None):
            return True
    return False


def apply_quality(physics: Any, quality: str) -> None:
    """Set a model's rendering quality; must precede its first render.

    "paper" keeps the suite's settings: 2048x2048 shadow map, 4 samples per pixel, a floor that
    reflects. "fast" disables all three, which take most of the time of software OpenGL.

    :param physics: a dm_control ``Physics``
    :param quality: "paper" or "fast"
    """
    if quality not in RENDER_QUALITIES:
        raise ValueError(f"render_quality must be one of {RENDER_QUALITIES}, got {quality!r}")
    if quality == "fast":
        physics.model.vis.quality.shadowsize = 0
        physics.model.vis.quality.offsamples = 0
        physics.model.mat_reflectance[:] = 0.0


def check_open(renderer: FrameRenderer | None) -> FrameRenderer:
    """Return the renderer of an environment that is not closed.

    :raises gymnasium.error.ClosedEnvironmentError: if there is none
    """
    if renderer is None:
        raise gymnasium.error.ClosedEnvironmentError("make a new environment after close()")
    return renderer


class FrameRenderer:
    """Renders one camera of a model into buffers that are created once.

    :param physics: a dm_control ``Physics``; its rendering context is made by the first render
    :param camera_id: number of a camera of the model
    """

    def __init__(self, physics: Any, camera_id: int) -> None:
        self._physics = physics
        self._camera_id = camera_id
        self._camera: Any = None

    def render(self) -> npt.NDArray[np.uint8]:
        """Return the frame, (240, 320, 3) uint8 RGB.

        It is a view into a buffer that the next call overwrites.

        :raises RenderingUnavailableError: if no OpenGL context can be made
        """
        self.prepare()
        frame: npt.NDArray[np.uint8] = self._camera.render()
        return frame

    def prepare(self) -> None:
        """Create the OpenGL context if there is none.

        It is created with the first frame, because a process that makes environments only to read
        their spaces and then forks must not have a context.

        :raises RenderingUnavailableError: if no OpenGL context can be made
        """
        global _gl_process
        if _gl_process is not None and _gl_process != os.getpid():
            raise RenderingUnavailableError(
                "OpenGL was used by a process that then forked this one, where it would hang; "
                "start worker processes by spawning: AsyncVectorEnv(env_fns, context='spawn'), "
                "SubprocVecEnv(env_fns, start_method='spawn') or "
                "core_agent.environments.make.make_vec_env(env_id, n_envs)"
            )
        if self._camera is None:
            self._camera = self._make_camera()
            _gl_process = os.getpid()

    def upload_terrain(self) -> None:
        """Copy the model's height fields to the GPU, where rendering reads them."""
        import mujoco

        model = self._physics.model
        if not model.nhfield:  # making the context current takes time at each frame
            return
        self.prepare()
        contexts = self._physics.contexts
        with contexts.gl.make_current() as call:
            for index in range(model.nhfield):
                call.call(mujoco.mjr_uploadHField, model.ptr, contexts.mujoco.ptr, index)

    def _make_camera(self) -> Any:
        from dm_control.mujoco import engine

        try:
            return engine.Camera(self._physics, FRAME_HEIGHT, FRAME_WIDTH, self._camera_id)
        except Exception as error:
            backend = os.environ.get("MUJOCO_GL", "")
            raise RenderingUnavailableError(
                f"cannot make an OpenGL context with MUJOCO_GL={backend} ({error}). {_INSTALL}."
            ) from error

    def close(self) -> None:
        """Free the scene."""
        if self._camera is not None:
            self._camera.scene.free()
            self._camera = None
