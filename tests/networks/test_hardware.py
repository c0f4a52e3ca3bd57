"""Precision and the allocator."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from core_agent.networks import hardware

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "precision", "reason"),
    [
        ("amx_tile", "bfloat16", "AMX"),
        ("avx512_bf16", "bfloat16", "AVX512_BF16"),
        ("", "float32", "neither"),
    ],
)
def test_auto_precision_follows_the_processor(monkeypatch, flags, precision, reason):
    for flag in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{flag}_supported", lambda flag=flag: flag == flags)
    hardware.auto_precision.cache_clear()
    try:
        chosen = hardware.auto_precision(CPU)
        assert chosen.precision == precision
        assert reason in chosen.reason
        expected = torch.bfloat16 if precision == "bfloat16" else None
        assert hardware.compute_dtype("auto", CPU) == expected
    finally:
        hardware.auto_precision.cache_clear()


def test_precision_can_be_forced():
    assert hardware.compute_dtype("float32", CPU) is None
    assert hardware.compute_dtype("bfloat16", CPU) == torch.bfloat16


PAGE_FAULTS = """
import resource, sys, torch
from core_agent.networks.hardware import keep_freed_memory
assert keep_freed_memory() == (sys.argv[1] == "kept")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(20):
    if turn == 10:  # the heap has found its size
        before = faults()
    torch.zeros(20_000_000).add_(1)  # 80 MB, 20,000 pages
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_unless_told_otherwise():
    counts = {}
    for name, setting in (("kept", "1"), ("returned", "0")):
        result = subprocess.run(
            [sys.executable, "-c", PAGE_FAULTS, name],
            env={"CORE_AGENT_KEEP_MEMORY": setting, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        counts[name] = int(result.stdout)
    assert counts["kept"] < counts["returned"] / 5
