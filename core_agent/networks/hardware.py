"""What the machine can do: number formats and the memory allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported()
    return False


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type in which hidden layers compute; ``"auto"``: bfloat16 where the hardware has it.

    ``None`` is the type of the parameters.
    """
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(device) else "float32"
    return torch.bfloat16 if precision == "bfloat16" else None


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocation instead of giving it back.

    Every update allocates and frees the same activations, hundreds of MB; by default glibc maps
    each anew and the kernel zeroes it page by page, which takes as long as the arithmetic. The
    setting holds for the whole process; ``CORE_AGENT_KEEP_MEMORY=0`` in the environment leaves
    the allocator alone.

    :return: whether the allocator took the setting; always ``False`` off Linux with glibc
    """
    if sys.platform != "linux" or os.environ.get("CORE_AGENT_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # -1 turns trimming off, where 2 GiB would be a threshold that large updates reach.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def wants_cuda_graphs() -> bool:
    """Whether updates on a GPU are to run as CUDA graphs.

    ``CORE_AGENT_CUDA_GRAPHS=0`` in the environment has them run kernel by kernel.
    """
    return os.environ.get("CORE_AGENT_CUDA_GRAPHS") != "0"


@contextmanager
def memory_advice(**settings: int) -> Iterator[None]:
    """Inside, a GPU that runs out of memory says which setting to lower.

    :param settings: those that help, with their values
    :raises torch.OutOfMemoryError: in place of PyTorch's own
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        lower = " or ".join(f"{name} (it is {value})" for name, value in settings.items())
        raise torch.OutOfMemoryError(
            f"the GPU's memory is full: lower {lower}, keep the frames in main memory with "
            "replay_buffer_kwargs=dict(storage_device='cpu'), or give precision='bfloat16'"
        ) from error
