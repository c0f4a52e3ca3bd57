"""Whatever is passed where it does not belong gets an error that names it and says the rule."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import core_agent
from core_agent import CoRe, RecurrentSAC
from core_agent.runs.evaluation import play
from core_agent.validation import is_number, is_whole
from tests.agents.bad_input import SUBJECTS, pairs, registered, try_argument
from tests.fakes import TINY, VECTOR, FakeEnv

EXAMPLES = 10


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with registered():
        yield


ALIKE = ("RecurrentSAC", "CURL", "QTOptDrQ")
"""Their arguments are those of CoRe, SACRAD and QTOptRAD, or some of them, and so are the rules."""


@pytest.mark.parametrize(
    ("name", "argument"), [pair for pair in pairs() if not pair[0].startswith(ALIKE)]
)
def test_bad_values_are_named_before_anything_happens(name, argument):
    n_tried, complaints = try_argument(name, argument, EXAMPLES)
    assert complaints == []
    assert n_tried >= 2


def test_everything_exported_is_tried_with_bad_values_of_every_argument():
    for name, subject in SUBJECTS.items():
        missing = set(subject.arguments()) - set(subject.table)
        assert not missing, f"add bad values of {missing} to the table of {name}"
    exported = {name for name in core_agent.__all__ if callable(getattr(core_agent, name))}
    assert exported <= set(SUBJECTS), "add what is missing to SUBJECTS"


PARTS_OF_TRAINING = {
    *("train", "collect_rollouts", "dump_logs", "augment", "filter", "critic_loss", "update"),
    *("update_model", "update_jointly", "update_behavior", "update_critic", "update_actor"),
    *("update_temperature", "update_target", "at_next_safe_point", "when_learning_ends"),
}


def test_every_public_method_is_tried_but_the_parts_of_training():
    own = [vars(cls) for cls in CoRe.__mro__ if cls.__module__.startswith("core_agent.")]
    methods = {
        name
        for attributes in own
        for name, value in attributes.items()
        if name[0] != "_" and (inspect.isfunction(value) or isinstance(value, classmethod))
    }
    assert methods - PARTS_OF_TRAINING <= set(SUBJECTS)


@pytest.mark.parametrize("algorithm", [CoRe, RecurrentSAC])
def test_numbers_of_numpy_and_whole_numbers_for_fractions_are_legal(algorithm):
    arguments = {
        **TINY,
        "learning_rate": np.float32(1e-3),
        "batch_size": np.int64(3),
        "tau": 1,
        "gamma": np.float64(0.9),
        "ent_coef": 1,
        "seed": np.int32(0),
        "train_freq": (np.int64(1), "episode"),
        "policy_kwargs": {**TINY["policy_kwargs"], "deter_dim": np.int64(6)},
    }
    model = algorithm("MlpPolicy", FakeEnv(VECTOR), **arguments).learn(np.int64(14))
    assert model._n_updates > 0
    play(FakeEnv(VECTOR), model, np.int64(1), seed=np.uint8(1))


def test_numbers_are_told_from_what_looks_like_them():
    assert is_whole(np.uint8(3)) and is_number(np.float16(0.5)) and is_number(10**300)
    odd = [True, np.True_, "1", None, np.zeros(1), 1j]
    assert not any(is_whole(value) or is_number(value) for value in odd)
    assert not any(is_number(value) for value in (np.nan, np.inf, 10**400))
    assert not is_whole(2.0)
