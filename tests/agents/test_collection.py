"""Rollouts: where they end, and updates that are made meanwhile with ``collect="async"``."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper

from core_agent import SACRAD, CoRe, QTOptRAD, RecurrentSAC
from core_agent.agents import collection
from core_agent.environments.workers import SupervisedSubprocVecEnv
from core_agent.runs.callbacks import ExactCheckpointCallback
from core_agent.saving.resumable import Resumable
from core_agent.validation import NonFiniteError
from tests.fakes import IMAGE, TINY, VECTOR, FakeEnv, SavableEnv, tiny
from tests.saving.test_checkpoint import (
    ARGUMENTS,
    N_STEPS,
    StopAt,
    assert_alike,
    never_stopped,
    resume,
    seen,
)

ASYNC = {**ARGUMENTS, "collect": "async"}


def monitored(**kwargs):
    return Resumable(Monitor(SavableEnv(**kwargs)))


def apart(space=VECTOR, n_envs=1, **kwargs):
    """Environments in processes of their own."""
    make = partial(monitored, observation_space=space, **kwargs)
    return SubprocVecEnv([make] * n_envs, start_method="fork")


class Witness(VecEnvWrapper):
    """Notes what happens in which order."""

    def __init__(self, venv) -> None:
        super().__init__(venv)
        self.events: list[str] = []

    def reset(self):
        return self.venv.reset()

    def step_async(self, actions) -> None:
        self.events.append("step")
        super().step_async(actions)

    def step_wait(self):
        self.events.append("wait")
        return self.venv.step_wait()


def witnessed(algorithm=RecurrentSAC, **arguments):
    """A model whose environment notes its updates too."""
    env = Witness(apart())
    model = algorithm("auto", env, **{**ASYNC, **arguments})
    update = model.update

    def noted(batch):
        env.events.append("update")
        return update(batch)

    model.update = noted
    return model, env


def as_vector(policy) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()


def assert_resumes_exactly(algorithm, make, step, folder, **arguments) -> None:
    expected = never_stopped(algorithm, make, **arguments)
    model = algorithm("auto", make(), **arguments)
    model.learn(N_STEPS, callback=StopAt(step))
    model.checkpoint(folder)
    model.env.close()
    resumed = resume(algorithm, make, folder)
    assert_alike(resumed, expected)
    resumed.env.close()


# ---- where a rollout ends ----


class RolloutEnds(BaseCallback):
    """Notes the agent steps at the end of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.steps.append(self.model.num_timesteps)


@pytest.mark.parametrize(
    ("algorithm", "length", "n_steps", "ends"),
    [(SACRAD, 10**9, 2000, [1000, 2000]), (RecurrentSAC, 5000, 600, [600])],
)
def test_updates_come_and_learning_ends_though_no_episode_does(algorithm, length, n_steps, ends):
    arguments = {**tiny(algorithm), "train_freq": (1, "episode"), "update_ratio": 0.01}
    model, rollouts = algorithm("auto", FakeEnv(VECTOR, length), **arguments), RolloutEnds()
    model.learn(n_steps, callback=rollouts)
    assert rollouts.steps == ends
    assert (model.num_timesteps, model._n_updates) == (n_steps, n_steps // 100)


@pytest.mark.parametrize(
    ("train_freq", "ends"), [((2, "episode"), [20, 40, 60]), ((15, "step"), [30, 60])]
)
def test_max_rollout_steps_counts_those_of_each_environment_until_episodes_end(train_freq, ends):
    env = DummyVecEnv([partial(FakeEnv, VECTOR, length=50)] * 2)
    rollouts = RolloutEnds()
    arguments = {**ARGUMENTS, "train_freq": train_freq, "max_rollout_steps": 10}
    RecurrentSAC("auto", env, **arguments).learn(60, callback=rollouts)
    assert rollouts.steps == ends


@pytest.mark.parametrize("step", [7, 20, 60])
def test_a_run_resumes_exactly_though_no_episode_ends(step, tmp_path):
    make = partial(SavableEnv, VECTOR, length=1000)
    assert_resumes_exactly(RecurrentSAC, make, step, tmp_path, **ARGUMENTS, max_rollout_steps=7)


# ---- updates while the environments step ----


@pytest.mark.parametrize("env", [FakeEnv, lambda: DummyVecEnv([FakeEnv] * 2)])
def test_environments_in_this_process_are_refused(env):
    with pytest.raises(ValueError, match="env must run in processes of its own"):
        RecurrentSAC("auto", env(), **ASYNC)


def test_environments_in_this_process_are_refused_when_learning_is_to_continue(tmp_path):
    env = apart()
    RecurrentSAC("auto", env, **ASYNC).save(tmp_path / "model")
    env.close()
    model = RecurrentSAC.load(tmp_path / "model", FakeEnv(VECTOR))
    model.predict(model.get_env().reset(), episode_start=np.ones(1, bool))
    with pytest.raises(ValueError, match="env must run in processes of its own"):
        model.learn(1)


def test_an_id_is_made_in_a_process_of_its_own():
    model = RecurrentSAC("Pendulum-v1", **{**ASYNC, "policy_kwargs": {}})
    assert isinstance(model.env.unwrapped, SupervisedSubprocVecEnv)
    model.env.close()


def test_updates_are_made_between_asking_for_a_step_and_its_answer():
    model, env = witnessed()
    model.learn(24)
    env.close()
    # Episodes of 6 steps, of which the first ends before learning starts; 3 updates for each.
    acting = ["step", "wait"] * 12 + ["step", "update", "wait"] * 3 + ["step", "wait"] * 3
    assert env.events[: len(acting)] == acting
    assert env.events[-3:] == ["update"] * 3, "those of the last episode, with nothing to wait for"


@pytest.mark.parametrize(
    ("train_freq", "gradient_steps"), [(1, None), (4, 2), (4, -1), ((1, "episode"), None)]
)
def test_no_update_is_forgotten_at_any_rhythm(train_freq, gradient_steps):
    arguments = dict(train_freq=train_freq, gradient_steps=gradient_steps, update_ratio=1.0)
    counts = set()
    for collect in ("async", "sequential"):
        env = apart(n_envs=2)
        model = RecurrentSAC("auto", env, **{**ASYNC, **arguments, "collect": collect}).learn(40)
        env.close()
        counts.add((model._n_updates, model.num_timesteps, model.replay_buffer.size()))
    assert len(counts) == 1 and counts.pop()[0] > 0


def test_the_acting_policy_is_renewed_at_episodes_ends():
    class Compare(BaseCallback):
        def _on_step(self) -> bool:
            acting.append(as_vector(self.model.acting_policy))
            learning.append(as_vector(self.model.policy))
            return True

    acting, learning = [], []
    env = apart()
    RecurrentSAC("auto", env, **ASYNC).learn(30, callback=Compare())
    env.close()
    # Callbacks see a step before the episode's end is dealt with.
    for step in range(1, 30):
        if step % 6 == 0:
            assert torch.equal(acting[step], learning[step - 1]), step
        else:
            assert torch.equal(acting[step], acting[step - 1]), step
    assert not torch.equal(learning[14], acting[14]), "updates in an episode reach no action in it"


def test_with_the_policies_equal_async_acts_as_sequential_does():
    arguments = {**ARGUMENTS, "update_ratio": 0.0}
    runs = []
    for collect in ("async", "sequential"):
        env = apart()
        runs.append(seen(RecurrentSAC("auto", env, collect=collect, **arguments).learn(N_STEPS)))
        env.close()
    assert torch.equal(runs[0]["actions"], runs[1]["actions"])


@pytest.mark.parametrize("algorithm", [CoRe, SACRAD, QTOptRAD])
def test_every_agent_collects_while_it_learns(algorithm):
    env = apart(IMAGE)
    model = algorithm("auto", env, **{**tiny(algorithm), "collect": "async"})
    before = as_vector(model.acting_policy)
    model.learn(30)
    env.close()
    assert model._n_updates > 0
    assert not torch.equal(as_vector(model.acting_policy), before)


@pytest.mark.parametrize(("step", "n_envs"), [(14, 1), (15, 2), (18, 1), (31, 2)])
def test_a_run_resumes_exactly(step, n_envs, tmp_path):
    assert_resumes_exactly(RecurrentSAC, partial(apart, n_envs=n_envs), step, tmp_path, **ASYNC)


def test_a_feed_forward_run_resumes_exactly(tmp_path):
    arguments = {
        **tiny(SACRAD),
        "buffer_size": 40,
        "collect": "async",
        "train_freq": (1, "episode"),
    }
    assert_resumes_exactly(SACRAD, partial(apart, IMAGE), 33, tmp_path, **arguments)


def test_after_an_error_in_an_update_the_step_is_complete(tmp_path, monkeypatch):
    def update(model, batch):
        if model._n_updates == 4:
            raise NonFiniteError("the loss")
        return real(model, batch)

    real = RecurrentSAC.update
    monkeypatch.setattr(RecurrentSAC, "update", update)
    env = apart()
    model = RecurrentSAC("auto", env, **ASYNC)
    with pytest.raises(NonFiniteError):
        model.learn(N_STEPS, callback=ExactCheckpointCallback(tmp_path, 0))
    step = model.num_timesteps
    assert step == model.replay_buffer.size() < N_STEPS
    env.close()
    monkeypatch.undo()
    env = apart()
    resumed = RecurrentSAC.resume(tmp_path, env)
    assert (resumed.num_timesteps, resumed._n_updates) == (step, 4)
    resumed.learn(N_STEPS - step, reset_num_timesteps=False)
    assert resumed._n_updates == 27, "3 after each of 9 episodes"
    env.close()


@pytest.mark.parametrize("error", [NonFiniteError("the loss"), KeyboardInterrupt()])
def test_learning_resumes_after_an_error_in_an_update(error):
    def update(batch):
        if model._n_updates == 4:
            model.update = real
            raise error
        return real(batch)

    model, env = witnessed(buffer_size=1000)
    real, model.update = model.update, update
    with pytest.raises(type(error)):
        model.learn(N_STEPS)
    model.learn(N_STEPS - model.num_timesteps, reset_num_timesteps=False)
    assert [episode.n_steps for episode in model.replay_buffer.episodes] == [6] * (N_STEPS // 6)
    assert env.events.count("step") == env.events.count("wait") == N_STEPS
    env.close()


def test_loaded_parameters_act(tmp_path):
    env = apart()
    model = RecurrentSAC("auto", env, **ASYNC).learn(30)
    model.save(tmp_path / "model")
    loaded = RecurrentSAC.load(tmp_path / "model", env)
    assert torch.equal(as_vector(loaded.acting_policy), as_vector(model.policy))
    env.close()


def test_a_model_that_learned_in_turn_may_continue_async(tmp_path):
    RecurrentSAC("auto", FakeEnv(VECTOR), **TINY).learn(20).save(tmp_path / "model")
    env = apart()
    model = RecurrentSAC.load(tmp_path / "model", env, collect="async")
    assert model.learn(30).acting_policy is not model.policy
    env.close()


def test_a_model_saved_within_an_episode_resumes_elsewhere(tmp_path):
    env = apart()
    model = RecurrentSAC("auto", env, **ASYNC)
    model.learn(30, callback=CheckpointCallback(15, str(tmp_path), "model"))
    loaded = RecurrentSAC.load(tmp_path / "model_15_steps", env)
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded._n_updates > model._n_updates // 2
    env.close()


def test_an_id_is_resumed_in_a_process_of_its_own(tmp_path):
    arguments = {**ASYNC, "policy_kwargs": {}}
    model = RecurrentSAC("Pendulum-v1", **arguments).learn(20)
    model.checkpoint(tmp_path)
    model.env.close()
    with pytest.warns(UserWarning, match="in the middle of an episode"):
        resumed = RecurrentSAC.resume(tmp_path, "Pendulum-v1")
    assert isinstance(resumed.env.unwrapped, SupervisedSubprocVecEnv)
    resumed.learn(5, reset_num_timesteps=False)
    resumed.env.close()


def test_the_acting_policy_is_renewed_in_an_episode_that_does_not_end(monkeypatch, tmp_path):
    monkeypatch.setattr(collection, "LONGEST_WITHOUT_RENEWAL", 20)
    arguments = {**ASYNC, "train_freq": 1}
    make = partial(apart, length=1000)
    env = make()
    model = RecurrentSAC("auto", env, **arguments)
    first = as_vector(model.policy)
    model.learn(19)
    assert torch.equal(as_vector(model.acting_policy), first)
    model.learn(N_STEPS - 19, reset_num_timesteps=False)
    assert not torch.equal(as_vector(model.acting_policy), first)
    env.close()
    assert_resumes_exactly(RecurrentSAC, make, 33, tmp_path, **arguments)


def test_metrics_are_logged():
    env = apart()
    model = RecurrentSAC("auto", env, **ASYNC)
    model.learn(30, log_interval=None)
    assert {"train/critic_loss", "train/n_updates"} <= model.logger.name_to_value.keys()
    assert model._updates_per_second > 0
    env.close()
