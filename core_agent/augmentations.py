"""Crops of images."""

from __future__ import annotations

import torch


def center_crop(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The middle ``(..., C, h, w)`` of images ``(..., C, H, W)``, as a view."""
    height, width = images.shape[-2:]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]
