"""One episode in memory, each frame once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

FIRST_ALLOCATION = 64
"""Frames that a new episode has room for; the room doubles whenever it is full."""


class Episode:
    """One episode, or the part of it collected so far: ``n`` steps and ``n + 1`` frames.

    :param first: first observation by key; images as ``(H, W, C)``
    :param action_dim: number of actions
    :param device: where frames are kept; everything else lies in main memory
    :param serial: number of the episode within its buffer
    """

    def __init__(
        self,
        first: dict[str, torch.Tensor],
        action_dim: int,
        device: torch.device,
        serial: int = 0,
    ) -> None:
        self.serial = serial
        self._frames = {
            key: torch.empty((FIRST_ALLOCATION, *frame.shape), dtype=frame.dtype, device=device)
            for key, frame in first.items()
        }
        self._actions = np.empty((FIRST_ALLOCATION, action_dim), dtype=np.float32)
        self._rewards = np.empty(FIRST_ALLOCATION, dtype=np.float32)
        self.n_steps = 0
        self.terminated = False
        self._put_frame(first)

    @classmethod
    def from_arrays(
        cls,
        frames: dict[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: bool,
        device: torch.device,
        serial: int,
    ) -> Episode:
        """An episode of ``n`` steps.

        :param frames: ``(n + 1, ...)`` by key
        :param actions: ``(n, A)``
        :param rewards: ``(n,)``
        """
        tensors = {key: torch.from_numpy(value).to(device) for key, value in frames.items()}
        first = {key: value[0] for key, value in tensors.items()}
        episode = cls(first, actions.shape[1], device, serial)
        n_frames = len(rewards) + 1
        episode._frames = tensors
        episode._actions = np.resize(actions, (n_frames, actions.shape[1]))
        episode._rewards = np.resize(rewards, n_frames)
        episode.n_steps, episode.terminated = len(rewards), terminated
        return episode

    def _put_frame(self, frame: dict[str, torch.Tensor]) -> None:
        for key, value in frame.items():
            self._frames[key][self.n_steps].copy_(value)

    def append(self, frame: dict[str, torch.Tensor], action: np.ndarray, reward: float) -> None:
        """Add one step: the action taken at the last frame, its reward and the next frame."""
        if self.n_steps + 1 == len(self._rewards):
            self._resize(2 * len(self._rewards))
        self._actions[self.n_steps] = action
        self._rewards[self.n_steps] = reward
        self.n_steps += 1
        self._put_frame(frame)

    def _resize(self, n_frames: int) -> None:
        keep = min(n_frames, self.n_steps + 1)
        for key, frames in self._frames.items():
            resized = frames.new_empty((n_frames, *frames.shape[1:]))
            resized[:keep] = frames[:keep]
            self._frames[key] = resized
        self._actions = np.resize(self._actions, (n_frames, self._actions.shape[1]))
        self._rewards = np.resize(self._rewards, n_frames)

    def finish(self, terminated: bool) -> None:
        """End the episode: give back the memory that it does not need."""
        self.terminated = terminated
        self._resize(self.n_steps + 1)

    @property
    def frames(self) -> dict[str, torch.Tensor]:
        """``(n + 1, ...)`` by key."""
        return {key: frames[: self.n_steps + 1] for key, frames in self._frames.items()}

    @property
    def actions(self) -> np.ndarray:
        """``(n, A)`` in [-1, 1]."""
        return self._actions[: self.n_steps]

    @property
    def rewards(self) -> np.ndarray:
        """``(n,)``"""
        return self._rewards[: self.n_steps]

    @property
    def last_frame(self) -> dict[str, torch.Tensor]:
        return {key: frames[self.n_steps] for key, frames in self._frames.items()}

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # As arrays in main memory: they unpickle without torch's help, and without a GPU.
        state["_frames"] = {
            key: frames.clone().cpu().numpy() for key, frames in self.frames.items()
        }
        state["_actions"] = np.resize(self._actions, (self.n_steps + 1, self._actions.shape[1]))
        state["_rewards"] = np.resize(self._rewards, self.n_steps + 1)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._frames = {key: torch.from_numpy(frames) for key, frames in state["_frames"].items()}
