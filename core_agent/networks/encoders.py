"""From observations of any space to one feature vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from torch import nn

from core_agent.networks.augmentations import center_crop
from core_agent.networks.layers import MLP, ImageEncoder
from core_agent.networks.types import Observation
from core_agent.validation import BOOLEAN, CROP_SIZE, SIZE, SIZES, Check, as_array, check

MOST_CHANNELS = 4
"""Largest number of channels for which an image's shape shows which axis holds them."""
SINGLE_KEY = "observation"
"""The key under which an observation that is no ``Dict`` is kept."""


def check_space(name: str, value: Any) -> None:
    """Make sure that ``value`` is a space, and its images have their channels first."""
    check(isinstance(value, spaces.Space), name, "be a space of Gymnasium", value)
    for space in value.values() if isinstance(value, spaces.Dict) else [value]:
        shape: Any = getattr(space, "shape", None)
        channels_last = is_image(space) and shape[2] <= MOST_CHANNELS < min(shape[:2])
        check(
            not channels_last,
            name,
            "have images channels first, (C, H, W)",
            space,
            "Stable-Baselines3 transposes only images of bytes in [0, 255]; let the environment "
            "return others, such as depth images, as np.moveaxis(image, -1, 0)",
        )


def check_box(name: str, value: Any) -> None:
    """Make sure that ``value`` is a space of continuous actions."""
    way_out = "for discrete actions use an algorithm such as sb3_contrib's RecurrentPPO"
    check(isinstance(value, spaces.Box), name, "be a Box of continuous actions", value, way_out)


def as_dict_space(space: spaces.Space) -> dict[str, spaces.Space]:
    """The sub-spaces of a ``Dict`` space by key; any other space under one key.

    :raises ValueError: for an empty ``Dict``
    """
    if not isinstance(space, spaces.Dict):
        return {SINGLE_KEY: space}
    if not space.spaces:
        raise ValueError("observation_space must have at least one entry, got an empty Dict")
    return dict(space.spaces)


def as_dict(observation: Observation) -> dict[str, torch.Tensor]:
    """An observation by key, as :func:`as_dict_space` names them."""
    return observation if isinstance(observation, dict) else {SINGLE_KEY: observation}


def any_entry(observation: Observation) -> torch.Tensor:
    """One tensor of an observation, to read the leading dimensions from, which all share."""
    return next(iter(as_dict(observation).values()))


def is_image(space: spaces.Space) -> bool:
    """Whether observations of ``space`` are images: three axes, channels first."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3


def crop_sizes(
    space: spaces.Space, crop_size: float | tuple[int, int] | None
) -> dict[str, tuple[int, int]]:
    """Height and width of the crop of each image of an observation space.

    :param space: observation space, images channels first
    :param crop_size: side or (height, width) for every image; a float: share of the image's sides;
        ``None``: 0.84, which is the paper's 84 pixels for its 100
    :raises ValueError: if the crop is larger than an image or smaller than one pixel
    """
    sizes = {}
    for key, sub_space in as_dict_space(space).items():
        if not is_image(sub_space):
            continue
        assert sub_space.shape is not None
        height, width = sub_space.shape[1:]
        given = 0.84 if crop_size is None else crop_size
        if isinstance(given, float):
            size = (round(given * height), round(given * width))
        else:
            size = given if isinstance(given, tuple) else (given, given)
        if not (1 <= size[0] <= height and 1 <= size[1] <= width):
            raise ValueError(
                f"crop_size must lie between 1 and the image's size {height}x{width}, got "
                f"{crop_size!r}; pass crop_size=None for 84 % of the image"
            )
        sizes[key] = size
    return sizes


def fits_space(value: Any, space: spaces.Space) -> bool:
    """Whether ``value`` is one observation of ``space`` or several; images channels first or last.

    All values must be finite numbers, as networks cannot use others.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        return False
    shape = tuple(space.shape or ())
    shapes = [shape, (*shape[1:], shape[0])] if is_image(space) else [shape]
    finite = array.dtype.kind in "biu" or (array.dtype.kind == "f" and np.isfinite(array).all())
    return bool(finite) and any(one in (array.shape, array.shape[1:]) for one in shapes)


def check_observations(name: str, value: Any, space: spaces.Space, n_envs: int) -> None:
    """Make sure that ``value`` holds one observation of ``space`` for each environment."""
    entries = value if isinstance(value, dict) else {SINGLE_KEY: value}
    shapes = {key: (n_envs, *(sub.shape or ())) for key, sub in as_dict_space(space).items()}
    found = {key: as_array(name, entry).shape for key, entry in entries.items()}
    check(found == shapes, name, f"have the shapes {shapes}", found)


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


class ObservationEncoder(nn.Module):
    """Images through a CNN each, everything else through one MLP; features are concatenated.

    :param observation_space: any space of SB3's, images channels first; images of bytes are divided
        by 255, others taken as they are
    :param crop_size: see :func:`crop_sizes`
    :param feature_dim: features of each image
    :param vector_dims: layers of the MLP for vectors, an activation after each
    :param cnn_channels: see :class:`~core_agent.networks.layers.ImageEncoder`
    :param cnn_strides: see :class:`~core_agent.networks.layers.ImageEncoder`
    :param gating: see :class:`~core_agent.networks.layers.ImageEncoder`
    :param gate_elu: see :class:`~core_agent.networks.layers.ImageEncoder`
    :param center_images: see :class:`~core_agent.networks.layers.ImageEncoder`
    """

    rules: ClassVar[dict[str, Check]] = {
        "observation_space": check_space,
        "crop_size": CROP_SIZE,
        "feature_dim": SIZE,
        "vector_dims": SIZES,
        "cnn_channels": SIZES,
        "cnn_strides": SIZES,
        "gating": BOOLEAN,
        "gate_elu": BOOLEAN,
        "center_images": BOOLEAN,
    }

    def __init__(
        self,
        observation_space: spaces.Space,
        crop_size: float | tuple[int, int] | None = None,
        feature_dim: int = 50,
        vector_dims: Sequence[int] = (200, 200, 200),
        cnn_channels: Sequence[int] = (32, 32, 32, 32),
        cnn_strides: Sequence[int] = (2, 1, 1, 1),
        gating: bool = False,
        gate_elu: bool = False,
        center_images: bool = False,
    ) -> None:
        super().__init__()
        self.spaces = as_dict_space(observation_space)
        self.crop_sizes = crop_sizes(observation_space, crop_size)
        self.image_encoders = nn.ModuleDict(
            {
                key: ImageEncoder(
                    self.spaces[key].shape[0],  # type: ignore[index]
                    size,
                    feature_dim,
                    cnn_channels,
                    cnn_strides,
                    gating,
                    gate_elu,
                    max_value=255.0 if self.spaces[key].dtype == np.uint8 else 1.0,
                    center_images=center_images,
                )
                for key, size in self.crop_sizes.items()
            }
        )
        self.vector_keys = [key for key in self.spaces if key not in self.crop_sizes]
        vector_dim = sum(get_flattened_obs_dim(self.spaces[key]) for key in self.vector_keys)
        self.vector_encoder = MLP(vector_dim, vector_dims) if self.vector_keys else None
        self.out_dim = feature_dim * len(self.image_encoders)
        if self.vector_encoder is not None:
            self.out_dim += self.vector_encoder.out_dim

    def forward(self, observation: Observation) -> torch.Tensor:
        """Features ``(N, out_dim)``, float32, of ``N`` observations, images cropped already."""
        entries = as_dict(observation)
        features = [encoder(entries[key]) for key, encoder in self.image_encoders.items()]
        if self.vector_encoder is not None:
            vectors = [
                preprocess_obs(entries[key], self.spaces[key], normalize_images=False).flatten(1)  # type: ignore[union-attr]
                for key in self.vector_keys
            ]
            features.append(self.vector_encoder(torch.cat(vectors, dim=-1)))
        return torch.cat(features, dim=-1)

    def center_crop(self, observation: Observation) -> Observation:
        """The observation with each image ``(..., C, H, W)`` cropped in its middle."""
        return self.map_images(center_crop, observation)

    def map_images(
        self,
        change: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor],
        observation: Observation,
    ) -> Observation:
        """The observation with ``change(images, size)`` in place of each image.

        :param change: gives images ``(..., h, w)`` of the size that the encoder takes
        :param observation: all else in it stays as it is
        """
        if not isinstance(observation, dict):
            size = self.crop_sizes.get(SINGLE_KEY)
            return observation if size is None else change(observation, size)
        return {
            key: change(entry, self.crop_sizes[key]) if key in self.crop_sizes else entry
            for key, entry in observation.items()
        }


def frame_bytes(space: spaces.Space) -> int:
    """Bytes that one observation of ``space`` takes in memory."""
    return sum(
        int(np.prod(sub_space.shape or (1,))) * np.dtype(sub_space.dtype).itemsize
        for sub_space in as_dict_space(space).values()
    )
