"""The environment: a dm_control task behind distractions, as a Gymnasium environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle
from PIL import Image as PillowImage

from distracting_envs.checks import check_whole
from distracting_envs.rendering import (
    FAST_TEXTURE_SIZE,
    FrameRenderer,
    apply_quality,
    check_open,
    prepare_rendering,
)
from distracting_envs.settings import (
    DIFFICULTIES,
    DISTRACTIONS,
    EPISODE_STEPS,
    default_action_repeat,
    default_camera,
    ground_plane_alpha,
)

prepare_rendering()  # before dm_control, which selects its backend when imported

from shimmy.dm_control_compatibility import DmControlCompatibilityV0  # noqa: E402

from distracting_envs import upstream  # noqa: E402
from distracting_envs.background import PAPER_TEXTURE_SIZE, VideoBackground  # noqa: E402
from distracting_envs.cache import shared_cache  # noqa: E402
from distracting_envs.state import (  # noqa: E402
    ModelFields,
    State,
    get_attributes,
    get_physics,
    join,
    part,
    set_attributes,
    set_physics,
)
from distracting_envs.tasks import (  # noqa: E402
    check_arguments,
    check_camera_mode,
    finite_bounds,
    load_task,
    vector_spaces,
)
from distracting_envs.videos import BUILTIN, open_clips, resolve_video_path  # noqa: E402


class DistractingControlEnv(DmControlCompatibilityV0):
    """A task of the dm_control suite with video background, moving camera and changing colours.

    ``reset(seed=s)`` returns the same as ``distracting_control`` with ``distraction_seed=s`` and
    ``task_kwargs={"random": s}``, on the same clips: pixel for pixel at ``render_quality="paper"``.

    Observations are ``image_size`` x ``image_size`` x 3 uint8 RGB, rendered at 320x240 and resized
    with Pillow's antialiased bilinear filter. Actions are float32 in [-1, 1]. An episode has 1000
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
    :param scale: strength of camera and colour changes, in [0, 1]; None for the difficulty's.
        May be given without a difficulty, with all clips of the split
    :param n_clips: number of clips, at least 1; None for the difficulty's
    :param action_repeat: simulator steps per agent step, at least 1; None for the task's
    :param image_size: pixels per side of an observation, at least 1
    :param vector_observations: observations are a dict of the image, "pixels", and the task's
        observations as float32 vectors
    :param render_mode: "rgb_array" (``render()`` returns the 240x320x3 frame) or None;
        ``gymnasium.make`` also takes "human", a window
    :param render_quality: "paper", or "fast" without shadows, multisampling, reflections and large
        textures, for software OpenGL
    :param memory_cache_gb: limit of the decoded clips in this process's memory, in 10^9 bytes;
        shared by its environments
    :param disk_cache_gb: limit of the decoded clips in ``DCS_CACHE`` or the user's cache folder, in
        10^9 bytes; shared by all processes
    :raises ValueError: if an argument breaks its rule, or the clips are missing or damaged
    :raises RenderingUnavailableError: if OpenGL is missing
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium's
    _spec: EnvSpec | None = None

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
        scale: float | None = None,
        n_clips: int | None = None,
        action_repeat: int | None = None,
        image_size: int = 100,
        vector_observations: bool = False,
        render_mode: str | None = "rgb_array",
        render_quality: str = "paper",
        memory_cache_gb: float = 1.0,
        disk_cache_gb: float = 10.0,
    ) -> None:
        arguments = {
            name: value for name, value in locals().items() if name not in {"self", "__class__"}
        }
        check_arguments(**arguments)
        if action_repeat is None:
            action_repeat = default_action_repeat(domain, task)

        self._base = load_task(domain, task)
        apply_quality(self._base.physics, render_quality)
        self._camera_id = default_camera(domain)
        self._distractors: dict[str, Any] = {}
        self._video_folder = ""
        if difficulty is not None and n_clips is None:
            n_clips = DIFFICULTIES[difficulty].n_clips(split)
        if difficulty is not None and scale is None:
            scale = DIFFICULTIES[difficulty].scale
        present = set(distractions) if scale is not None else set()
        if "background" in present:
            paper = render_quality == "paper"
            self._video_folder = str(resolve_video_path(video_path) or BUILTIN)
            self._distractors["background"] = VideoBackground(
                self._outermost,
                open_clips(video_path, split, n_clips),
                shared_cache(memory_cache_gb, disk_cache_gb),
                dynamic=dynamic,
                ground_plane_alpha=ground_plane_alpha(domain),
                texture_size=PAPER_TEXTURE_SIZE if paper else FAST_TEXTURE_SIZE,
                mipmapped=paper,
            )
        if "camera" in present:
            check_camera_mode(self._base.physics, f"{domain}-{task}")
            settings = upstream.get_camera_kwargs(domain, scale, dynamic)
            self._distractors["camera"] = upstream.DistractingCameraEnv(
                self._outermost, self._camera_id, **settings
            )
        if "color" in present:
            settings = upstream.get_color_kwargs(scale, dynamic)
            self._distractors["color"] = upstream.DistractingColorEnv(self._outermost, **settings)

        super().__init__(self._outermost)
        # Shimmy keeps the live dm_control environment for pickling and copying, which cannot be
        # pickled; a copy is made from the arguments instead.
        EzPickle.__init__(self, **arguments)
        self.render_mode = render_mode
        agent_seconds = self._base.control_timestep() * action_repeat
        self.metadata = {**type(self).metadata, "render_fps": max(1, round(1 / agent_seconds))}
        self.domain_name, self.task_name = domain, task
        self.render_quality = render_quality
        self._name = f"{domain}-{task}"
        if self._distractors:
            self._name += f" with {'+'.join(self._distractors)}, scale={scale}, dynamic={dynamic}"
        self._action_repeat = action_repeat
        self._image_size = image_size
        self._vector_observations = vector_observations
        self._simulator_steps = 0
        self._needs_reset = True
        self._model_fields = ModelFields(self._base.physics.model.ptr)
        self._renderer: FrameRenderer | None = FrameRenderer(self._base.physics, self._camera_id)
        self._frame: npt.NDArray[np.uint8] | None = None
        self.observation_space, self.action_space = self._make_spaces()

    def _make_spaces(self) -> tuple[spaces.Space[Any], spaces.Box]:
        """The spaces of observations and of actions; the latter are scaled to the task's bounds."""
        size = (self._image_size, self._image_size, 3)
        pixels = spaces.Box(0, 255, size, np.uint8)
        spec = self._base.action_spec()
        self._action_low, self._action_high = finite_bounds(spec)
        actions = spaces.Box(-1.0, 1.0, spec.shape, np.float32)
        if not self._vector_observations:
            return pixels, actions
        vectors = vector_spaces(self._base.observation_spec())
        return spaces.Dict({"pixels": pixels} | vectors), actions

    @property
    def _outermost(self) -> Any:
        """The dm_control environment inside all distractors so far."""
        return next(reversed(self._distractors.values()), self._base)

    @property
    def spec(self) -> EnvSpec | None:
        """Gymnasium's specification, with the agent steps of an episode as ``max_episode_steps``.

        The registered specification leaves it out: it depends on ``action_repeat``, and Gymnasium
        would truncate episodes at that number of steps.
        """
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None:
            spec = replace(spec, max_episode_steps=-(-EPISODE_STEPS // self._action_repeat))
        self._spec = spec

    @property
    def action_repeat(self) -> int:
        """Simulator steps per agent step."""
        return self._action_repeat

    @property
    def simulator_steps(self) -> int:
        """Simulator steps since the last reset."""
        return self._simulator_steps

    @property
    def video_folder(self) -> str:
        """Folder of the background clips, or ``"builtin"``; empty without a background."""
        return self._video_folder

    @property
    def clip_name(self) -> str:
        """Name of the current background clip; empty without one."""
        background = self._distractors.get("background")
        return background.clip_name if background else ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; return the first observation and the same ``info`` as :meth:`step`.

        :param seed: seed of task and distractions, in [0, 2**32); None keeps the generators
        :param options: not used
        :raises gymnasium.error.ClosedEnvironmentError: if the environment is closed
        """
        check_open(self._renderer)
        if seed is not None:
            check_whole("seed", seed, low=0, high=2**32 - 1)
            seed = int(seed)  # Gymnasium refuses NumPy's integers
            for distractor in self._distractors.values():
                distractor._random_state = np.random.RandomState(seed)
        vectors, _ = super().reset(seed=seed, options=options)
        self._simulator_steps = 0
        self._needs_reset = False
        self._draw_frame()
        return self._observation(vectors), self._info()

    def step(
        self, action: npt.NDArray[np.floating[Any]]
    ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Apply an action for ``action_repeat`` simulator steps, or until the episode ends.

        ``info`` has the name of the background's ``clip`` (empty without one), the
        ``simulator_steps`` since the last reset, and the ``action_repeat``.

        :param action: float array in [-1, 1], of the action space's shape
        :raises ValueError: if the action has another shape, or is not finite
        :raises gymnasium.error.ResetNeeded: if the episode has ended
        """
        if self._needs_reset:
            raise gymnasium.error.ResetNeeded("call reset() before step(): no episode is running")
        try:
            action = np.asarray(action, np.float64)
        except (TypeError, ValueError):
            action = np.array(np.nan)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise ValueError(
                f"action must be finite and of shape {self.action_space.shape}, got {action!r}"
            )
        if self._action_low is not None:
            action = self._action_low + (action + 1) / 2 * (self._action_high - self._action_low)
        total_reward = 0.0
        for _ in range(self._action_repeat):
            vectors, reward, terminated, truncated, _ = super().step(action)
            total_reward += float(reward)
            self._simulator_steps += 1
            truncated = truncated or (not terminated and self._simulator_steps >= EPISODE_STEPS)
            if terminated or truncated:
                self._needs_reset = True
                break
        self._draw_frame()
        return self._observation(vectors), total_reward, terminated, truncated, self._info()

    def _info(self) -> dict[str, Any]:
        return {
            "clip": self.clip_name,
            "simulator_steps": self._simulator_steps,
            "action_repeat": self._action_repeat,
        }

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
        self._renderer.close()  # type: ignore[union-attr]
        self._renderer = None
        self._frame = None
        self._needs_reset = True
        super().close()

    def changed_model_fields(self) -> State:
        """Return copies of the model's fields that distractions or the task have changed."""
        return self._model_fields.changed()

    def get_state(self) -> State:
        """Return the complete state of this environment.

        The result is a flat dict of numpy arrays, ints, floats and strings. An environment made
        with the same arguments and given this state by :meth:`set_state` continues exactly as this
        one: with equal observations and rewards, bit for bit, also after resets without a seed.

        :raises gymnasium.error.ClosedEnvironmentError: after ``close``
        """
        check_open(self._renderer)
        return join(
            env={
                "name": self._name,
                "simulator_steps": self._simulator_steps,
                "needs_reset": self._needs_reset,
                "dm_step_count": self._base._step_count,
                "dm_reset_next_step": self._base._reset_next_step,
            },
            physics=get_physics(self._base.physics),
            model=self.changed_model_fields(),
            task=get_attributes(self._base.task),
            **{
                name: layer.get_state() if name == "background" else get_attributes(layer)
                for name, layer in self._distractors.items()
            },
        )

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state from :meth:`get_state`.

        :raises ValueError: if the state is of another task, other distractions or other clips
        :raises gymnasium.error.ClosedEnvironmentError: after ``close``
        """
        renderer = check_open(self._renderer)
        own = part(state, "env")
        if own.get("name") != self._name:
            raise ValueError(
                f"state must come from the environment {self._name!r}, got one from "
                f"{own.get('name')!r}; make the environment with the same arguments"
            )
        if "background" in self._distractors:  # first, as it may refuse
            self._distractors["background"].set_state(part(state, "background"))
        for name in self._distractors.keys() - {"background"}:
            set_attributes(self._distractors[name], part(state, name))
        self._simulator_steps = own["simulator_steps"]
        self._needs_reset = own["needs_reset"]
        self._base._step_count = own["dm_step_count"]
        self._base._reset_next_step = own["dm_reset_next_step"]
        self._model_fields.restore(part(state, "model"))
        set_attributes(self._base.task, part(state, "task"))
        set_physics(self._base.physics, part(state, "physics"))
        renderer.upload_terrain()
        self._draw_frame()

    def _draw_frame(self) -> None:
        """Render the current frame."""
        assert self._renderer is not None
        self._renderer.prepare()
        if "background" in self._distractors:
            self._distractors["background"].upload()
        self._frame = self._renderer.render()

    def _observation(self, vectors: Mapping[str, Any]) -> Any:
        assert self._frame is not None
        size = (self._image_size, self._image_size)
        picture = PillowImage.fromarray(np.ascontiguousarray(self._frame))
        pixels = np.array(picture.resize(size, PillowImage.Resampling.BILINEAR))
        if not self._vector_observations:
            return pixels
        return {"pixels": pixels} | {
            name: np.atleast_1d(np.asarray(value, np.float32)).ravel()
            for name, value in vectors.items()
        }
