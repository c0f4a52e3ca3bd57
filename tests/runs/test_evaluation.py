"""Evaluation draws random numbers of its own, and the last one is of the model that is saved."""

from __future__ import annotations

import errno
import random
from contextlib import closing
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from core_agent import CoRe, RecurrentSAC
from core_agent.environments.make import describe, make_origin
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


def test_another_environment_of_the_suite_has_the_same_arguments():
    arguments = {"action_repeat": 10, "image_size": 32, "scale": 0.1, "split": "train"}
    origin = {"env_id": "DCS-cartpole-swingup-easy-dynamic", "env_arguments": arguments}
    env = evaluation_environment(origin, "DCS-cartpole-swingup-clean", None, "val", {})
    with closing(env):
        assert env.get_wrapper_attr("action_repeat") == 10
        assert env.observation_space.shape == (32, 32, 3)


def rescaled() -> gym.Env:
    return gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), np.float32(-1), np.float32(1))


def normalized() -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: Monitor(gym.make("Pendulum-v1"))]))


WRAPPED = {"RescaleAction": rescaled, "VecNormalize": normalized}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_environment_is_not_made_again_without_its_wrappers(name):
    model = RecurrentSAC("MlpPolicy", WRAPPED[name](), **TINY)
    origin = describe(model.env)
    assert origin["wrappers"] == [name]
    with pytest.raises(ValueError, match=rf"learned in a wrapped environment, got \['{name}'\]"):
        evaluation_environment(origin, None, None, "val", {})
    evaluation_environment(origin, "Pendulum-v1", None, "val", {}).close()


def test_wrappers_that_change_nothing_and_a_time_limit_are_no_hindrance():
    env = gym.wrappers.NormalizeReward(gym.make("Pendulum-v1", max_episode_steps=50))
    rewards = VecNormalize(DummyVecEnv([lambda: Monitor(env)]), norm_obs=False)
    origin = describe(rewards)
    assert origin["wrappers"] == []
    with closing(evaluation_environment(origin, None, None, "val", {})) as made:
        assert made.spec.max_episode_steps == 50


def test_a_folder_of_videos_is_found_from_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, kept in (("clips", str(tmp_path / "clips")), ("builtin", "builtin"), (None, None)):
        origin = make_origin("DCS-cheetah-run-easy-static", {"video_path": given})
        assert origin["env_arguments"] == {"video_path": kept}


def test_validation_refuses_what_only_training_normalizes():
    model = RecurrentSAC("MlpPolicy", VecNormalize(DummyVecEnv([lambda: FakeEnv(VECTOR)])), **TINY)
    with pytest.raises(ValueError, match="model must see its environment's own observations"):
        model.learn(6, ValidationCallback(FakeEnv(VECTOR), 6, video=False))


def test_a_log_that_cannot_be_written_does_not_end_training(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    model = RecurrentSAC("MlpPolicy", FakeEnv(VECTOR), **TINY, tensorboard_log=str(tmp_path))
    monkeypatch.setattr("stable_baselines3.common.logger.TensorBoardOutputFormat.write", full)
    with pytest.warns(UserWarning, match="the log was not written .*No space left"):
        model.learn(12, ValidationCallback(FakeEnv(VECTOR), 6, video=False), log_interval=1)
    assert model.num_timesteps == 12


def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    run = Run(ID, preset="debug", arguments=ARGUMENTS)
    train_run(run, tmp_path, 12, progress=False)
    before = (tmp_path / "model.zip").read_bytes()

    save = CoRe.save

    def full(model, path):
        if not isinstance(path, Path):
            return save(model, path)  # of a checkpoint
        path.with_suffix(".zip").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CoRe, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train_run(run, tmp_path, 18, resume=True, progress=False)
    assert (tmp_path / "model.zip").read_bytes() == before
    assert not list(tmp_path.glob(".model*"))


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
