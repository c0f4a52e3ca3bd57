"""What the machine can do: number formats and the memory allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


class AutoPrecision(NamedTuple):
    """What ``precision="auto"`` is on a device."""

    precision: Literal["float32", "bfloat16"]
    reason: str


@lru_cache
def auto_precision(device: torch.device) -> AutoPrecision:
    """bfloat16 where PyTorch reports that the hardware multiplies it, float32 elsewhere."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        fast = (major, minor) >= (8, 0)
        reason = f"compute capability {major}.{minor}, bfloat16 needs 8.0"
    elif device.type != "cpu":
        fast, reason = False, f"bfloat16 is not measured on {device.type}"
    elif torch.cpu._is_amx_tile_supported():
        fast, reason = True, "the processor has AMX"
    elif torch.cpu._is_avx512_bf16_supported():
        fast, reason = True, "the processor has AVX512_BF16"
    else:
        fast, reason = False, "PyTorch reports neither AMX nor AVX512_BF16"
    return AutoPrecision("bfloat16" if fast else "float32", reason)


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type in which hidden layers compute; ``None`` is the type of the parameters."""
    return torch.bfloat16 if used_precision(precision, device) == "bfloat16" else None


def used_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """The precision that hidden layers compute in; ``"auto"``: see :func:`auto_precision`."""
    return auto_precision(device).precision if precision == "auto" else precision


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocation instead of giving it back.

    Every update allocates and frees the same activations, hundreds of MB; by default glibc maps
    each again and the kernel zeroes it page by page, which takes as long as the arithmetic. The
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
    """Context in which the error of a GPU that runs out of memory says which setting to lower.

    :param settings: values of the settings that help, by name
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
