"""Precision and the allocator."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from core_agent.networks import hardware


def test_auto_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    for fast, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda device, fast=fast: fast)
        assert hardware.compute_dtype("auto", cpu) == dtype


def test_precision_can_be_forced():
    cpu = torch.device("cpu")
    assert hardware.compute_dtype("float32", cpu) is None
    assert hardware.compute_dtype("bfloat16", cpu) == torch.bfloat16


PAGE_FAULTS = """
import resource, sys, torch
from core_agent.networks.hardware import keep_freed_memory
assert keep_freed_memory() == (sys.argv[1] == "kept")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(20_000_000).add_(1)
before = faults()
for _ in range(10):
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
