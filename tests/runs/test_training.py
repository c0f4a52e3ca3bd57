"""A run in a folder: stopped by a signal, resumed, never started twice."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from core_agent import RecurrentSAC
from core_agent.agents.core import CoRe
from core_agent.agents.registry import load_agent
from core_agent.environments.make import make_vec_env
from core_agent.runs import training
from core_agent.runs.callbacks import ExactCheckpointCallback
from core_agent.runs.training import Run, train_run
from core_agent.validation import NonFiniteError
from tests.fakes import BOTH, IMAGE, TINY, VECTOR, FakeEnv, SavableEnv

ID = "TrainingTest-v0"
ARGUMENTS = {key: value for key, value in TINY.items() if key not in ("seed",)}
RUN = Run(ID, preset="debug", arguments=ARGUMENTS)


@pytest.fixture(autouse=True)
def _registered():
    gym.register(ID, lambda render_mode: SavableEnv(IMAGE), disable_env_checker=True)
    yield
    del gym.registry[ID]


@pytest.fixture(autouse=True)
def _usual_handlers():
    """Whatever the tests were started from."""
    handlers = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class KillSelf(BaseCallback):
    """Sends this process a signal at a step."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__()
        self.step, self.number = step, number

    def _on_step(self) -> bool:
        if self.num_timesteps == self.step:
            os.kill(os.getpid(), self.number)
        return True


def train(folder, steps: int = 40, *callbacks, run: Run = RUN, resume: bool = False):
    return train_run(
        run,
        folder,
        steps,
        resume=resume,
        checkpoint_every=10,
        validate_every=0,
        callbacks=list(callbacks),
    )


def assert_same_parameters(folder, other) -> None:
    ours, theirs = (
        CoRe.load(each / "model", device="cpu").policy.state_dict() for each in (folder, other)
    )
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


def test_a_signal_writes_a_checkpoint_and_the_run_resumes_exactly(tmp_path):
    train(tmp_path / "never stopped")
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
        outcome = train(folder, 40, KillSelf(27, number))
        assert outcome.interrupted_by is number and outcome.agent_steps == 27
        assert handlers == [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
        outcome = train(folder, resume=True)
        assert outcome.resumed_at == 27 and outcome.interrupted_by is None
        assert_same_parameters(folder, tmp_path / "never stopped")


def test_a_second_signal_acts_as_ever(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 40, KillSelf(27, signal.SIGINT), KillSelf(27, signal.SIGINT))


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert train(tmp_path, 40, KillSelf(27, signal.SIGINT)).interrupted_by is None


def test_a_run_is_not_started_twice_or_without_its_record_or_by_two(tmp_path):
    train(tmp_path, 12)
    before = (tmp_path / "model.zip").read_bytes()
    with pytest.raises(ValueError, match="folder must hold no checkpoints when a run starts"):
        train(tmp_path, 12)
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="folder must belong to one run at a time"):
            train(tmp_path, 24, resume=True)
    for name, changed in {
        "seed": dict(seed=1),
        "preset": dict(preset="small"),
        "arguments": dict(arguments={**ARGUMENTS, "gamma": 0.9}),
        "env_arguments": dict(env_arguments={"length": 3}),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be .*, as when the run in"):
            train(tmp_path, 24, run=replace(RUN, **changed), resume=True)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"folder must hold run\.json"):
        train(tmp_path, 24, resume=True)
    assert (tmp_path / "model.zip").read_bytes() == before


def test_a_run_that_another_process_started_meanwhile_is_not_started_again(tmp_path, monkeypatch):
    locked = training.locked

    def wait(folder, patience):
        monkeypatch.setattr(training, "locked", locked)
        train(folder, 12)
        return locked(folder, patience)

    monkeypatch.setattr(training, "locked", wait)
    assert train(tmp_path / "run", 20, resume=True).resumed_at == 12
    train(tmp_path / "never stopped", 20)
    assert_same_parameters(tmp_path / "run", tmp_path / "never stopped")
    monkeypatch.setattr(training, "locked", wait)
    with pytest.raises(ValueError, match="folder must hold no checkpoints when a run starts"):
        train(tmp_path / "refused", 20)


def test_a_complete_run_is_left_alone_and_can_be_made_longer(tmp_path):
    train(tmp_path, 12, run=replace(RUN, env_id=f"core_agent:{ID}"))
    assert json.loads((tmp_path / "run.json").read_text())["env_id"] == ID
    before = (tmp_path / "model.zip").stat().st_mtime_ns
    outcome = train(tmp_path, 12, resume=True)
    assert outcome.agent_steps == outcome.resumed_at == 12
    assert (tmp_path / "model.zip").stat().st_mtime_ns == before
    outcome = train(tmp_path, 20, resume=True)
    assert (outcome.resumed_at, outcome.agent_steps) == (12, 20)


def test_the_model_of_a_run_is_the_one_that_learned_longest(tmp_path):
    train(tmp_path, 40, KillSelf(12, signal.SIGTERM))
    path = tmp_path / "model.zip"
    interrupted = path.read_bytes()
    train(tmp_path, 20, resume=True)
    for content in (interrupted, interrupted[:1_000]):
        path.write_bytes(content)  # As if the process had been killed before it wrote the last one.
        assert load_agent(tmp_path).num_timesteps == 20
        assert train(tmp_path, 20, resume=True).agent_steps == 20
        assert CoRe.load(path).num_timesteps == 20
    path.unlink()
    train(tmp_path, 20, resume=True)
    assert path.is_file()
    for checkpoint in tmp_path.rglob("checkpoint-*.npz"):
        checkpoint.unlink()
    assert load_agent(tmp_path).num_timesteps == 20


def test_a_run_whose_folder_moved_writes_its_log_there(tmp_path):
    train(tmp_path / "before", 12)
    (tmp_path / "before").rename(tmp_path / "after")
    (log,) = (tmp_path / "after" / "tensorboard").iterdir()
    train(tmp_path / "after", 20, resume=True)
    assert not (tmp_path / "before").exists()
    assert len(list(log.iterdir())) == 2


@pytest.mark.filterwarnings("ignore:.* is passed over")
def test_a_run_without_a_complete_checkpoint_starts_again(tmp_path):
    train(tmp_path, 12)
    for path in tmp_path.rglob("checkpoint-*.npz"):
        path.write_bytes(b"{}")
    with pytest.warns(UserWarning, match="no checkpoint in .* is complete: the run starts again"):
        outcome = train(tmp_path, 18, resume=True)
    assert outcome.resumed_at is None and outcome.agent_steps == 18


# ---- faults of the environment ----


class FaultyEnv(SavableEnv):
    """Gives something that is no number at one step."""

    fault = 21
    taken = 0

    def __init__(self, kind: str = "reward", value: float = np.nan, **kwargs) -> None:
        super().__init__(VECTOR, **kwargs)
        self.kind, self.value = kind, value

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        type(self).taken += 1
        if self.taken == self.fault:
            if self.kind == "reward":
                reward = self.value
            else:
                observation = observation.copy()
                observation[1] = self.value
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("kind", "value", "length", "culprit"),
    [
        ("reward", np.nan, 6, "reward of environment 0"),
        ("reward", -np.inf, 6, "reward of environment 0"),
        ("observation", np.inf, 6, "observation of environment 0"),
        ("observation", np.nan, 7, "terminal observation of environment 0"),
    ],
)
def test_what_is_no_number_stops_the_run_and_the_last_good_state_is_kept(
    tmp_path, kind, value, length, culprit
):
    FaultyEnv.taken = 0
    model = RecurrentSAC("auto", FaultyEnv(kind, value, length=length), **TINY)
    with pytest.raises(NonFiniteError, match=rf"^the {culprit} must be finite.* at step 21"):
        model.learn(60, callback=ExactCheckpointCallback(tmp_path, 0))
    assert model.num_timesteps == model.replay_buffer.size() == 20
    with pytest.warns(UserWarning, match="they are reset"):
        resumed = RecurrentSAC.resume(tmp_path, FaultyEnv(kind, length=length))
    assert resumed.num_timesteps == 20
    resumed.learn(40, reset_num_timesteps=False)
    assert resumed.num_timesteps >= 60
    model.learn(12, reset_num_timesteps=False)
    assert model.num_timesteps >= 32, "the model itself continues as well"


def test_a_callback_writes_the_last_checkpoint_of_each_run(tmp_path):
    callback = ExactCheckpointCallback(tmp_path / "0", 0)
    for seed in range(2):
        callback.folder = tmp_path / str(seed)
        RecurrentSAC("auto", SavableEnv(), **{**TINY, "seed": seed}).learn(12, callback=callback)
    assert RecurrentSAC.resume(tmp_path / "1", SavableEnv()).num_timesteps == 12


def test_an_environment_that_raises_costs_nothing_but_its_episode(tmp_path):
    class Broken(SavableEnv):
        def step(self, action):
            if self.step_count == 4 and len(self.actions) > 20:
                raise OSError("the robot is gone")
            return super().step(action)

    model = RecurrentSAC("auto", Broken(), **TINY)
    with pytest.raises(OSError, match="the robot is gone"):
        model.learn(60, callback=ExactCheckpointCallback(tmp_path, 0))
    with pytest.warns(UserWarning, match="they are reset"):
        resumed = RecurrentSAC.resume(tmp_path, SavableEnv())
    assert resumed.num_timesteps == resumed.replay_buffer.size() == 22


def test_a_key_of_a_dict_observation_is_named():
    class Env(FakeEnv):
        def step(self, action):
            observation, *rest = super().step(action)
            observation["vector"][0] = np.inf
            return observation, *rest

    with pytest.raises(NonFiniteError, match="the observation 'vector' of environment 0"):
        RecurrentSAC("auto", Env(BOTH), **TINY).learn(10)


@pytest.mark.parametrize(
    ("broken", "culprit", "learned_before"),
    [
        ("reward_head", "model_loss, reward_loss", set()),
        ("decoder", "model_loss, contrastive_loss", set()),
        ("critic", "critic_loss", {"world_model"}),
        ("actor", "critic_loss", {"world_model"}),
    ],
)
def test_a_loss_that_is_no_number_is_named_before_it_changes_anything(
    broken, culprit, learned_before
):
    model = CoRe("auto", SavableEnv(), **TINY)
    model.learn(12)
    part = getattr(model.policy, broken, None) or getattr(model.policy.world_model, broken)
    last = list(part.parameters())[-1]
    with torch.no_grad():
        last.fill_(torch.nan)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(NonFiniteError, match=f"^{culprit}, gradient of .* must be finite"):
        model.train(1, 3)
    changed = {
        name.split(".")[0]
        for name, value in model.policy.state_dict().items()
        if not torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0))
    }
    assert changed == learned_before


def test_a_full_gpu_says_what_to_lower(monkeypatch):
    def update(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(RecurrentSAC, "update", update)
    with pytest.raises(torch.OutOfMemoryError, match=r"lower batch_size \(it is 3\) or sequence"):
        RecurrentSAC("auto", FakeEnv(), **TINY).learn(20)


@pytest.mark.filterwarnings(
    # Forked workers start in milliseconds; Python 3.12 and later warn of forking with threads.
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
@pytest.mark.parametrize(("n_envs", "collect"), [(2, "sequential"), (1, "async")])
def test_environments_in_processes_of_their_own_resume_exactly(
    tmp_path, monkeypatch, n_envs, collect
):
    def forked(*args, **kwargs):
        return make_vec_env(*args, **{**kwargs, "vec_env_kwargs": {"start_method": "fork"}})

    monkeypatch.setattr(training, "make_vec_env", forked)
    run = Run(ID, preset="debug", arguments={**ARGUMENTS, "collect": collect}, n_envs=n_envs)
    train(tmp_path / "never stopped", run=run)
    train(tmp_path / "stopped", 40, KillSelf(26, signal.SIGTERM), run=run)
    assert train(tmp_path / "stopped", run=run, resume=True).resumed_at == 26
    assert_same_parameters(tmp_path / "stopped", tmp_path / "never stopped")
