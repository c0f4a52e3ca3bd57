"""Crops, shifts and mixtures of images."""

from __future__ import annotations

import torch


def center_crop(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The middle ``(..., C, h, w)`` of images ``(..., C, H, W)``, as a view."""
    height, width = images.shape[-2:]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def random_crop(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Random crops ``(..., N, C, h, w)`` of images ``(..., N, C, H, W)``, as in RAD.

    Each of the ``N`` is cropped at its own place, which is the same along the axes before ``N``:
    all frames of a sequence ``(T, N, ...)`` are cropped at one place. Source: arXiv:2004.14990. The
    result's axes have the same order in memory as those of the images.
    """
    (n_images, _, height, width), device = images.shape[-4:], images.device
    top = torch.randint(height - size[0] + 1, (n_images,), device=device)
    left = torch.randint(width - size[1] + 1, (n_images,), device=device)
    # (..., N, tops, lefts, h, w, C): every crop of every image, as a view.
    crops = images.movedim(-3, -1).unfold(-3, size[0], 1).unfold(-3, size[1], 1).movedim(-3, -1)
    image = torch.arange(n_images, device=device)
    return crops[..., image, top, left, :, :, :].movedim(-1, -3)


def overlay(images: torch.Tensor, largest: float) -> torch.Tensor:
    """Sequences ``(T, B, C, h, w)`` as floats, each mixed with a random one of the batch.

    The other sequence is mirrored, its channels are put in a random order, and each is inverted
    with probability ½: this gives backgrounds of all colours, including the robot's. Its weight is
    drawn uniformly from [0, ``largest``]. All are drawn once for each sequence. The task stays the
    same while the background changes, so features that follow the background are less useful. SODA
    and SVEA mix in images of another data set instead (arXiv:2011.13389, arXiv:2107.00644).

    :param images: bytes, or floats from 0 to 1
    :param largest: bound of the weights, in [0, 1]
    """
    (n_sequences, channels), device = images.shape[1:3], images.device
    sequence = torch.rand(n_sequences, device=device).argsort().unsqueeze(1)
    channel = torch.rand(n_sequences, channels, device=device).argsort(dim=1)
    inverted = torch.rand(n_sequences, channels, 1, 1, device=device) < 0.5
    weight = largest * torch.rand(1, n_sequences, 1, 1, 1, device=device)
    # One selection of single channels as bytes takes a tenth of the time of two index operations.
    chosen = (sequence * channels + channel).flatten()
    other = images.flatten(1, 2).index_select(1, chosen).flip(-1).view(images.shape).float()
    white = 255 if images.dtype == torch.uint8 else 1
    other = other.sub_(white * inverted).abs_()  # a value, or white minus the value
    return images.float().lerp(other, weight)


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
    """Select ``rows`` ``(N, h)`` and ``columns`` ``(N, w)`` of each image ``(N, C, H, W)``.

    The result ``(N, C, h, w)`` is channels-last in memory.
    """
    # In channels-last format a pixel is one row of a matrix, and selecting rows is a plain copy:
    # indexing along two axes takes seven times as long on a CPU.
    n_images, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    image = torch.arange(n_images, device=images.device)[:, None, None]
    index = (image * height + rows[:, :, None]) * width + columns[:, None, :]
    picked = pixels.index_select(0, index.flatten())
    return picked.view(n_images, rows.shape[1], columns.shape[1], channels).permute(0, 3, 1, 2)
