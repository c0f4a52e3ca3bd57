"""Crops and shifts of images."""

from __future__ import annotations

import torch


def center_crop(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The middle ``(..., C, h, w)`` of images ``(..., C, H, W)``, as a view."""
    height, width = images.shape[-2:]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def random_crop(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A random part ``(N, C, h, w)`` of each image ``(N, C, H, W)``, each at a place of its own."""
    (height, width), device = images.shape[-2:], images.device
    top = torch.randint(height - size[0] + 1, (len(images), 1), device=device)
    left = torch.randint(width - size[1] + 1, (len(images), 1), device=device)
    rows, columns = (torch.arange(side, device=device) for side in size)
    return pick_pixels(images, top + rows, left + columns)


def overlay(images: torch.Tensor, largest: float) -> torch.Tensor:
    """Sequences ``(T, B, C, h, w)``, another one of the batch laid faintly over each, mirrored.

    The weight of what is laid over is drawn uniformly from [0, ``largest``] for each sequence. The
    task stays what it was and the background does not, so that features which follow the background
    serve less. Compare SODA and SVEA, which lay foreign pictures over theirs (arXiv:2011.13389,
    arXiv:2107.00644); here they are the batch's own, and move.

    :param images: bytes or floats
    :param largest: in [0, 1]
    :return: floats
    """
    n_sequences, device = images.shape[1], images.device
    images = images.float()
    other = images[:, torch.randperm(n_sequences, device=device)].flip(-1)
    weight = largest * torch.rand(1, n_sequences, 1, 1, 1, device=device)
    return images + weight * (other - images)


def random_shift(images: torch.Tensor, size: tuple[int, int], pad: int = 4) -> torch.Tensor:
    """The middle ``(N, C, h, w)`` of images ``(N, C, H, W)``, each shifted by up to ``pad`` pixels.

    What a shift uncovers repeats the pixel at the border, as if the image had been padded with
    its border and cropped again. Source: DrQ, arXiv:2004.13649.
    """
    images, device = center_crop(images, size), images.device
    down, right = torch.randint(-pad, pad + 1, (2, len(images), 1), device=device)
    rows, columns = (torch.arange(side, device=device) for side in size)
    return pick_pixels(
        images, (rows + down).clamp(0, size[0] - 1), (columns + right).clamp(0, size[1] - 1)
    )


def pick_pixels(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Of each image ``(N, C, H, W)`` its own ``rows`` ``(N, h)`` and ``columns`` ``(N, w)``.

    The result ``(N, C, h, w)`` lies in memory channels-last.
    """
    # Channels-last a pixel is one row of a matrix, and picking rows is a plain copy: an index along
    # two axes takes seven times as long on a CPU.
    n_images, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    image = torch.arange(n_images, device=images.device)[:, None, None]
    index = (image * height + rows[:, :, None]) * width + columns[:, None, :]
    picked = pixels.index_select(0, index.flatten())
    return picked.view(n_images, rows.shape[1], columns.shape[1], channels).permute(0, 3, 1, 2)
