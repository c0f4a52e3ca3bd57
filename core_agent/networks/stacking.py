"""Stacks of the last frames: as spaces and as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces

from core_agent.validation import check


def stacked_space(space: spaces.Space, n_frames: int) -> spaces.Space:
    """The space of ``n_frames`` consecutive observations side by side on their first axis.

    Images, channels first, get ``n_frames`` times the channels; a ``Dict`` is stacked key by key.

    :raises ValueError: for a space that cannot be stacked
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: stacked_space(sub, n_frames) for key, sub in space.items()})
    if isinstance(space, spaces.Discrete):
        return spaces.MultiDiscrete([int(space.n)] * n_frames)
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(np.tile(space.nvec, n_frames))
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary([n_frames * space.shape[0], *space.shape[1:]])
    check(
        isinstance(space, spaces.Box) and bool(space.shape),
        "observation_space",
        "be a Box with an axis, Discrete, MultiDiscrete, MultiBinary or a Dict of these",
        space,
    )
    assert isinstance(space, spaces.Box)
    low, high = (np.concatenate([bound] * n_frames) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=space.dtype)


def stack_frames(frames: Sequence[torch.Tensor]) -> torch.Tensor:
    """Frames ``(N, C, ...)``, oldest first, as ``(N, n_frames * C, ...)``; ``(N,)``: ``C = 1``."""
    return torch.cat([frame.unsqueeze(1) if frame.ndim == 1 else frame for frame in frames], dim=1)
