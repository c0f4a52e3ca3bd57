"""Evaluation draws random numbers of its own, and the last one is of the model that is saved."""

from __future__ import annotations

import random

import gymnasium as gym
import numpy as np
import pytest
import torch

from core_agent import CoRe, RecurrentSAC
from core_agent.runs.callbacks import ValidationCallback
from core_agent.runs.evaluation import play
from core_agent.runs.training import Run, evaluation_environment, train_run
from tests.fakes import TINY, VECTOR, FakeEnv, SavableEnv

ID = "EvaluationTest-v0"
SAMPLING = {**TINY["policy_kwargs"], "sample_when_deterministic": True}
ARGUMENTS = {k: v for k, v in TINY.items() if k != "seed"} | {"policy_kwargs": SAMPLING}


@pytest.fixture(autouse=True)
def _registered():
    gym.register(
        ID,
        lambda render_mode, length=6: SavableEnv(VECTOR, length=length),
        disable_env_checker=True,
    )
    yield
    del gym.registry[ID]


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


@pytest.mark.parametrize("seed", [None, 3])
def test_playing_leaves_every_generator_as_it_was(seed):
    model = RecurrentSAC("MlpPolicy", FakeEnv(VECTOR), **TINY)
    env = FakeEnv(VECTOR)
    env.action_space.seed(0)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = (*draws(), env.action_space.sample().tolist())
    env.action_space.seed(0)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    play(env, model, 2, deterministic=False, seed=seed)
    play(env, None, 1, seed=seed)
    assert (*draws(), env.action_space.sample().tolist()) == expected


def test_episodes_with_a_seed_are_the_same_each_time():
    model = RecurrentSAC("MlpPolicy", FakeEnv(VECTOR), **TINY)
    first, second = (play(FakeEnv(VECTOR), model, 2, False, seed=5) for _ in range(2))
    assert [e.episode_return for e in first] == [e.episode_return for e in second]
    others = play(FakeEnv(VECTOR), model, 2, False)
    assert [e.episode_return for e in others] != [e.episode_return for e in first]


def test_how_often_one_validates_does_not_change_what_is_learned(tmp_path):
    models = []
    for every in (0, 6):
        run = Run(ID, preset="debug", arguments=ARGUMENTS)
        train_run(run, tmp_path / str(every), 40, validate_every=every, progress=False)
        models.append(CoRe.load(tmp_path / str(every) / "model"))
    for name, value in models[0].policy.state_dict().items():
        assert torch.equal(value, models[1].policy.state_dict()[name]), name


@pytest.mark.parametrize("env_id", [None, ID, f"core_agent:{ID}"])
def test_a_model_is_evaluated_with_the_arguments_that_it_learned_with(env_id):
    origin = {"env_id": ID, "env_arguments": {"length": 3}}
    env = evaluation_environment(origin, env_id, None, "val", {})
    assert env.unwrapped.length == 3


class BlindEnv(SavableEnv):
    """Takes no ``render_mode``."""

    def __init__(self) -> None:
        super().__init__(VECTOR)
        self.render_mode = None

    def render(self):
        raise AssertionError("it cannot render")


def test_an_environment_that_cannot_render_is_trained_in_and_validated_in(tmp_path):
    gym.register("BlindTest-v0", BlindEnv, disable_env_checker=True)
    try:
        run = Run("BlindTest-v0", preset="debug", arguments=ARGUMENTS)
        train_run(run, tmp_path, 12, validate_every=6, progress=False)
    finally:
        del gym.registry["BlindTest-v0"]
    assert CoRe.load(tmp_path / "model").num_timesteps == 12


def test_the_last_validation_is_of_the_saved_model(tmp_path):
    env = FakeEnv(VECTOR)
    validation = ValidationCallback(env, every=6, n_episodes=2, video=False, seed=1)
    model = RecurrentSAC("MlpPolicy", FakeEnv(VECTOR), **TINY).learn(18, validation)
    assert [steps for steps, *_ in validation.results] == [6, 12, 18]
    last = validation.results[-1]
    model.save(tmp_path / "model")
    again = ValidationCallback(env, every=6, n_episodes=2, video=False, seed=1)
    again.init_callback(RecurrentSAC.load(tmp_path / "model", env=FakeEnv(VECTOR)))
    again.model.set_logger(model.logger)
    again.validate()
    assert again.results[0][1:] == last[1:]
