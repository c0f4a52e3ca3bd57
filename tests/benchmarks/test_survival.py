"""A short form of `make torture`."""

from __future__ import annotations

import pytest

from benchmarks import kills, survival


def test_a_run_that_is_killed_ends_as_one_that_is_not():
    cases = [
        kills.Case("core", "sequential", 3, "Dict"),
        kills.Case("curl", "async", 1, "VecNormalize"),
    ]
    figures = kills.kills(n=1, cases=cases)
    assert figures["failures"] == []
    assert figures["kills"] == 2
    assert figures["runs equal to one never killed, bit for bit"] == 2


def test_a_run_that_ends_by_itself_is_a_failure():
    case = kills.Case("core", "sequential", 1, "no such space")
    (failure,) = kills.kills(n=1, cases=[case])["failures"]
    assert failure.startswith(f"{case}: ")


def test_a_run_that_ends_otherwise_is_a_failure(monkeypatch):
    case = kills.Case("core", "sequential", 1, "images")
    outcome = kills.Outcome(in_writing=0, lost=0, steps=30, equal=False)
    monkeypatch.setattr(kills, "kill", lambda *_: outcome)
    assert kills.kills(n=1, cases=[case])["failures"] == [f"{case}: {outcome}"]


@pytest.mark.parametrize("env_id", [survival.ENV_ID, "Pendulum-v1"])
def test_the_soak_is_read_and_drawn(tmp_path, env_id):
    figures = survival.soak(steps=100, env=env_id, picture=tmp_path / "soak.png")
    assert figures["steps"] == 100
    assert (tmp_path / "soak.png").read_bytes()[:4] == b"\x89PNG"
