"""The timing program runs, and its ratios are computed within rounds."""

from __future__ import annotations

import pytest

from distracting_envs import speed


def test_ratios_are_taken_within_rounds():
    timings = speed.Timings({"ours": [0.2, 0.6, 1.0], "bare": [0.1, 0.2, 0.5]})
    assert timings.ms("ours") == pytest.approx(600)
    assert timings.ratio("ours", "bare") == pytest.approx(2)


@pytest.mark.slow
def test_the_table_is_printed(capsys):
    options = ["--tasks", "cartpole-swingup", "--rounds", "1", "--envs", "1", "--seconds", "0.2"]
    assert speed.main(options) == 0
    printed = capsys.readouterr().out
    assert "cartpole-swingup dynamic (repeat 8)" in printed
    assert "fast   1 env: " in printed
