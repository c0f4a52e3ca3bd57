"""The environment: a dm_control task behind distractions, as a Gymnasium environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import EzPickle
from PIL import Image as PillowImage

from distracting_envs.quiet import quiet_model_compiler
from distracting_envs.rendering import (
    FAST_TEXTURE_SIZE,
    FrameRenderer,
    apply_quality,
    prepare_rendering,
)
from distracting_envs.settings import (
    DIFFICULTIES,
    DISTRACTIONS,
    EPISODE_STEPS,
    RENDER_QUALITIES,
    SPLITS,
    default_action_repeat,
    ground_plane_alpha,
)

prepare_rendering()  # before dm_control, which settles its backend when imported

from dm_control import suite  # noqa: E402
from shimmy.dm_control_compatibility import DmControlCompatibilityV0  # noqa: E402

from distracting_envs import upstream  # noqa: E402
from distracting_envs.background import PAPER_TEXTURE_SIZE, VideoBackground  # noqa: E402
from distracting_envs.cache import shared_cache  # noqa: E402
from distracting_envs.videos import open_clips  # noqa: E402


class DistractingControlEnv(DmControlCompatibilityV0):
    """A task of the dm_control suite with video background, moving camera and changing colours.

    ``reset(seed=s)`` gives what ``distracting_control`` gives with ``distraction_seed=s`` and
    ``task_kwargs={"random": s}``, on the same clips: pixel for pixel at ``render_quality="paper"``.

    Observations are ``image_size`` x ``image_size`` x 3 uint8 RGB, rendered at 320x240 and resized
    with Pillow's antialiased bilinear filter. Actions are float32 in [-1, 1]. An episode takes 1000
    simulator steps and is then truncated; the reward of an agent step is the sum over its simulator
    steps, each in [0, 1].

    Sources: Stone et al., arXiv:2101.02722; tables 3 and 4 of arXiv:2112.01163.

    :param domain: domain of the dm_control suite, such as "cheetah"
    :param task: task of that domain, such as "run"
    :param difficulty: "easy", "medium", "hard", or None for the clean task
    :param dynamic: let the distractions move within an episode
    :param split: "train" or "val": which clips are shown
    :param video_path: folder of clips or root of DAVIS, "builtin", or None for ``DCS_VIDEOS``, an
        installed DAVIS, or the built-in clips, in this order
    :param distractions: any of "background", "camera" and "color"
    :param action_repeat: simulator steps per agent step, at least 1; None for the task's own
    :param image_size: pixels per side of an observation, at least 1
    :param render_mode: "rgb_array" (``render()`` returns the 240x320x3 frame) or None
    :param render_quality: "paper", or "fast" without shadows, multisampling and large textures, for
        software OpenGL
    :raises ValueError: if an argument breaks its rule, or the clips are missing or damaged
    :raises RenderingUnavailableError: if there is no OpenGL to render with
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        domain: str,
        task: str,
        difficulty: str | None = None,
        dynamic: bool = False,
        *,
        split: str = "train",
        video_path: str | os.PathLike[str] | None = None,
        distractions: Sequence[str] = DISTRACTIONS,
        action_repeat: int | None = None,
        image_size: int = 100,
        render_mode: str | None = "rgb_array",
        render_quality: str = "paper",
    ) -> None:
        arguments = {
            name: value for name, value in locals().items() if name not in {"self", "__class__"}
        }
        _check_choice("split", split, SPLITS)
        _check_choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        _check_choice("render_quality", render_quality, RENDER_QUALITIES)
        _check_choice("difficulty", difficulty, (None, *DIFFICULTIES))
        _check_distractions(distractions)
        _check_positive("image_size", image_size)
        if action_repeat is None:
            action_repeat = default_action_repeat(domain, task)
        _check_positive("action_repeat", action_repeat)

        base = _load_task(domain, task)
        apply_quality(base.physics, render_quality)
        self._camera_id = 2 if domain == "quadruped" else 0  # as distracting_control has it
        self._background: VideoBackground | None = None
        self._distractors: list[Any] = []
        env = base
        if difficulty is not None:
            level = DIFFICULTIES[difficulty]
            if "background" in distractions:
                env = self._background = VideoBackground(
                    env,
                    open_clips(video_path, split, level.n_clips(split)),
                    shared_cache(),
                    dynamic=dynamic,
                    ground_plane_alpha=ground_plane_alpha(domain),
                    texture_size=(
                        PAPER_TEXTURE_SIZE if render_quality == "paper" else FAST_TEXTURE_SIZE
                    ),
                )
                self._distractors.append(env)
            if "camera" in distractions:
                env = upstream.DistractingCameraEnv(
                    env,
                    camera_id=self._camera_id,
                    **upstream.get_camera_kwargs(domain, level.scale, dynamic),
                )
                self._distractors.append(env)
            if "color" in distractions:
                env = upstream.DistractingColorEnv(
                    env, **upstream.get_color_kwargs(level.scale, dynamic)
                )
                self._distractors.append(env)

        super().__init__(env)
        # Shimmy keeps the live dm_control environment for pickling and copying, which cannot be
        # pickled; a copy is made from the arguments instead.
        EzPickle.__init__(self, **arguments)
        self.render_mode = render_mode
        self.metadata = {
            **type(self).metadata,
            "render_fps": round(1 / (base.control_timestep() * action_repeat)),
        }
        self._action_repeat = action_repeat
        self._image_size = image_size
        self._simulator_steps = 0
        self._needs_reset = True
        self._renderer = FrameRenderer(base.physics, self._camera_id)
        self._frame: npt.NDArray[np.uint8] | None = None
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, base.action_spec().shape, np.float32)

    @property
    def action_repeat(self) -> int:
        """Simulator steps per agent step."""
        return self._action_repeat

    @property
    def simulator_steps(self) -> int:
        """Simulator steps since the last reset."""
        return self._simulator_steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Start an episode; return the first observation and an empty dict.

        :param seed: seeds the task and, alike, every distraction; None goes on with the random
            numbers as they stand
        :param options: not used
        """
        if seed is not None:
            for distractor in self._distractors:
                distractor._random_state = np.random.RandomState(seed)
        super().reset(seed=seed, options=options)
        self._simulator_steps = 0
        self._needs_reset = False
        return self._observe(), {}

    def step(
        self, action: npt.NDArray[np.floating[Any]]
    ) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Apply an action for ``action_repeat`` simulator steps, or until the episode ends.

        :param action: float array in [-1, 1], of the action space's shape
        :raises ValueError: if the action has another shape, or is not finite
        :raises gymnasium.error.ResetNeeded: if the episode has ended
        """
        if self._needs_reset:
            raise gymnasium.error.ResetNeeded("call reset() before step(): no episode is running")
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise ValueError(
                f"action must be finite, of shape {self.action_space.shape}, got {action!r}"
            )
        total_reward = 0.0
        terminated = truncated = False
        for _ in range(self._action_repeat):
            _, reward, terminated, truncated, _ = super().step(action)
            total_reward += float(reward)
            self._simulator_steps += 1
            truncated = truncated or (not terminated and self._simulator_steps >= EPISODE_STEPS)
            if terminated or truncated:
                self._needs_reset = True
                break
        return self._observe(), total_reward, terminated, truncated, {}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return the frame of the last observation, (240, 320, 3) uint8 RGB; None without a mode.

        :raises gymnasium.error.ResetNeeded: if there has been no reset yet
        """
        if self.render_mode is None:
            return None
        if self._frame is None:
            raise gymnasium.error.ResetNeeded("call reset() before render(): there is no frame yet")
        return self._frame.copy()

    def close(self) -> None:
        """Free the OpenGL context and the simulation; a second call does nothing."""
        if getattr(self, "_renderer", None) is None:
            return
        self._renderer.close()
        del self._renderer
        self._needs_reset = True
        super().close()

    def _observe(self) -> npt.NDArray[np.uint8]:
        if self._background is not None:
            self._background.upload()
        self._frame = self._renderer.render()
        size = (self._image_size, self._image_size)
        picture = PillowImage.fromarray(np.ascontiguousarray(self._frame))
        return np.array(picture.resize(size, PillowImage.Resampling.BILINEAR))


def _load_task(domain: str, task: str) -> Any:
    """Return a task of the dm_control suite.

    :raises ValueError: if the suite has no such task
    """
    if (domain, task) not in suite.ALL_TASKS:
        known = [f"{a}-{b}" for a, b in suite.ALL_TASKS if a == domain]
        raise ValueError(
            f"domain and task must name a task of the dm_control suite, got {domain!r} and "
            f"{task!r}; "
            + (f"tasks of {domain}: {', '.join(known)}" if known else "see dm_control.suite")
        )
    with quiet_model_compiler():
        return suite.load(domain, task)


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


def _check_distractions(distractions: Sequence[str]) -> None:
    if isinstance(distractions, str) or not set(distractions) <= set(DISTRACTIONS):
        raise ValueError(
            f"distractions must be a sequence out of {DISTRACTIONS}, such as "
            f'("background",); got {distractions!r}'
        )
