"""A window, and wrappers for analysis."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.wrappers import HumanRendering

from distracting_envs.env import DistractingControlEnv
from distracting_envs.rendering import FrameRenderer, apply_quality, check_window
from distracting_envs.settings import default_camera
from distracting_envs.state import ModelFields
from distracting_envs.tasks import load_task

_APPEARANCE_FIELDS = {"mat_rgba", "tex_width", "tex_height"}
"""Fields of the model that the distractions change; the others belong to the task."""


def make(render_mode: str | None = "rgb_array", **arguments: Any) -> gymnasium.Env[Any, Any]:
    """Return an environment, shown in a window if ``render_mode`` is "human".

    ``gymnasium.make`` calls it.

    :param arguments: of :class:`~distracting_envs.env.DistractingControlEnv`
    :raises gymnasium.error.DependencyNotInstalled: for a window without pygame
    :raises RenderingUnavailableError: for a window without a display, or if OpenGL is missing
    """
    if render_mode != "human":
        return DistractingControlEnv(render_mode=render_mode, **arguments)
    check_window()
    return HumanRendering(DistractingControlEnv(**arguments))


class CleanTwin(gymnasium.Wrapper):
    """Adds ``info["clean"]``: the same state without distractions, (240, 320, 3) uint8 RGB.

    A second simulation without distractions is set to the state of the first and rendered; the
    first is not changed. This costs one more render per step.

    :param env: a distracting environment, also a wrapped one
    :raises TypeError: if ``env`` is another environment
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        inner = env.unwrapped
        if not isinstance(inner, DistractingControlEnv):
            raise TypeError(f"env must be a DistractingControlEnv, got {type(inner).__name__}")
        self._inner = inner
        twin = load_task(inner.domain_name, inner.task_name)
        self._physics = twin.physics
        apply_quality(self._physics, inner.render_quality)
        self._fields = ModelFields(self._physics.model.ptr)
        self._renderer = FrameRenderer(self._physics, default_camera(inner.domain_name))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, and add the clean frame to the info."""
        observation, info = super().reset(seed=seed, options=options)
        return observation, info | {"clean": self.clean_frame()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment, and add the clean frame to the info."""
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, info | {"clean": self.clean_frame()}

    def clean_frame(self) -> npt.NDArray[np.uint8]:
        """Return the current state without distractions, (240, 320, 3) uint8 RGB."""
        import mujoco  # where OpenGL is missing, distracting_envs.env has said so first

        changed = self._inner.changed_model_fields()
        self._fields.restore(
            {name: value for name, value in changed.items() if name not in _APPEARANCE_FIELDS}
        )
        everything = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._physics.set_state(self._inner.physics.get_state(everything), everything)
        mujoco.mj_forward(self._physics.model.ptr, self._physics.data.ptr)
        self._renderer.upload_terrain()
        return self._renderer.render().copy()

    def close(self) -> None:
        """Close the environment and its twin."""
        self._renderer.close()
        self._physics.free()
        super().close()
