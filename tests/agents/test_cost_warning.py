"""One warning of runs that are going to take long, once the first updates show it."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from core_agent import CURL, CoRe, RecurrentSAC
from core_agent.agents import base, loop
from core_agent.runs.training import Run, train_run
from tests.fakes import IMAGE, VECTOR, FakeEnv, policy_name, tiny


@pytest.fixture
def slow(monkeypatch):
    """An update takes as many seconds as are set, by the clock of the agents."""
    now, clock = 0.0, SimpleNamespace(seconds=100.0)

    def perf_counter() -> float:
        nonlocal now
        now += clock.seconds
        return now

    clock.perf_counter = perf_counter
    for module in (base, loop):
        monkeypatch.setattr(module, "time", clock)
    return clock


def make(algorithm=CoRe, space=VECTOR, **arguments):
    return algorithm(policy_name(space), FakeEnv(space), **{**tiny(algorithm), **arguments})


@pytest.mark.parametrize(
    ("algorithm", "space", "sizes", "preset"),
    [
        (CoRe, IMAGE, "12 frames (batch_size=3 × sequence_length=4)", 'preset("small")'),
        (CoRe, VECTOR, "12 frames (batch_size=3 × sequence_length=4)", 'preset("vector")'),
        (
            RecurrentSAC,
            VECTOR,
            "12 frames (batch_size=3 × sequence_length=4)",
            'preset("vector", "recurrent_sac")',
        ),
        (CURL, IMAGE, "9 frames (batch_size=3 × n_stack=3)", 'preset("small", "curl")'),
    ],
)
def test_a_long_run_is_warned_of_once_with_what_to_lower(slow, algorithm, space, sizes, preset):
    model = make(algorithm, space, gradient_steps=None, update_ratio=0.5, train_freq=(1, "episode"))
    with pytest.warns(UserWarning, match="updates are expensive") as caught:
        model.learn(200)
    (warning,) = caught
    # After 12 steps three updates are due; one is made, 94 follow from the steps that are left.
    left = "at 100 s each, the 96 updates that are left take about 2.7 hours on this CPU"
    assert f"a batch holds {sizes}; {left}. Use {preset}, or lower" in str(warning.message)
    assert str(warning.message).endswith("or update_ratio")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(20, reset_num_timesteps=False)


def test_a_large_batch_is_warned_of_even_if_the_run_is_short():
    model = make(RecurrentSAC, batch_size=1_100, gradient_steps=3)
    with pytest.warns(UserWarning, match=r"4,400 frames \(batch_size=1100 × s.* or gradient_steps"):
        model.learn(14)


def test_a_run_of_less_than_an_hour_is_not_warned_of(slow):
    slow.seconds = 30.0
    assert make().learn(200)._n_updates > 90


def test_on_a_gpu_frames_alone_are_told():
    model = make(batch_size=2_000)
    model.device = torch.device("cuda")
    with pytest.warns(
        UserWarning, match=r"8,000 frames \(batch_size=2000 × sequence_length=4\)\. Use"
    ):
        model._warn_of_cost(1e6)
    model = make()
    model.device = torch.device("cuda")
    model._warn_of_cost(1e6)


def test_a_run_in_a_folder_is_announced_elsewhere(slow, tmp_path):
    slow.seconds = 10_000.0
    run = Run("Pendulum-v1", preset="debug")
    outcome = train_run(run, tmp_path, 60, validate_every=0, progress=False)
    assert outcome.agent_steps == 60
