"""A short form of `make torture`."""

from __future__ import annotations

from benchmarks import survival


def test_a_run_that_is_killed_ends_as_one_that_is_not():
    figures = survival.kills(n=2, longest=1.0)
    assert figures["resumed from the last checkpoint"] == 2
    assert figures["equal to a run never killed, bit for bit"]


def test_every_flipped_bit_is_detected():
    figures = survival.flips(n=20)
    assert figures["detected"] == figures["bits flipped"] == 20


def test_the_soak_is_read_and_drawn(tmp_path):
    figures = survival.soak(steps=1_000, picture=tmp_path / "soak.png")
    assert 950 < figures["steps"] <= 1_000
    assert (tmp_path / "soak.png").read_bytes()[:4] == b"\x89PNG"
