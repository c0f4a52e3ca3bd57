"""The program that hurts runs on purpose; what it hurts is tested with the agents."""

from __future__ import annotations

import json

import pytest
import torture


@pytest.mark.parametrize(("failures", "status"), [([], 0), (["it loaded"], 1)])
def test_the_exit_status_tells_of_failures(monkeypatch, tmp_path, capsys, failures, status):
    monkeypatch.setitem(torture.COMMANDS, "attacks", lambda options: {"failures": failures})
    assert torture.main(["attacks", "--json", str(tmp_path / "figures")]) == status
    figures = json.loads((tmp_path / "figures").read_text())
    assert figures["benchmark"] == "torture attacks"
    assert figures["failures"] == failures
    assert f"{len(failures)} failure(s)" in capsys.readouterr().out


def test_attacks_that_are_let_in_are_failures(monkeypatch, capsys):
    answers = {"one": "path must be a saved model", "two": None}
    monkeypatch.setattr(torture, "ATTACKS", answers)
    monkeypatch.setattr(torture, "refusals", lambda folder, names: answers)
    assert torture.main(["attacks"]) == 1
    assert "failed: two" in capsys.readouterr().out
