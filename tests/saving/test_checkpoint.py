"""A run that resumes from a checkpoint does what it would have done without stopping."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import time
import warnings
import zipfile
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from core_agent import CURL, SACRAD, CoRe, QTOptDrQ, QTOptRAD, RecurrentSAC
from core_agent.environments.make import make_env
from core_agent.runs.callbacks import ExactCheckpointCallback
from core_agent.saving.archive import read_archive, write_archive
from core_agent.saving.checkpoint import (
    N_KEPT,
    CheckpointFolder,
    NoCheckpointError,
    _store,
    _written,
)
from core_agent.saving.resumable import Resumable
from tests.fakes import BOTH, IMAGE, TINY, VECTOR, FakeEnv, SavableEnv, tiny

ARGUMENTS = {**TINY, "buffer_size": 40}
N_STEPS = 60


class StopAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step


def images():
    return SavableEnv(IMAGE)


def vectors():
    return SavableEnv(VECTOR, length=7, terminates=True)


def dicts():
    return SavableEnv(BOTH)


def unequal():
    return [partial(SavableEnv, VECTOR, length=length) for length in (5, 8)]


def two():
    return VecMonitor(DummyVecEnv(unequal()))


def normalized():
    return VecNormalize(VecMonitor(DummyVecEnv(unequal())))


def stacked():
    return VecFrameStack(DummyVecEnv([images]), 2)


def within_time_limit():
    return gym.wrappers.TimeLimit(SavableEnv(VECTOR, length=100), 9)


def seen(model) -> dict[str, torch.Tensor]:
    """Everything that is the same in two equal runs."""
    optimizers = {
        f"{i}/{j}/{name}": value
        for i, optimizer in enumerate(model.optimizers)
        for j, state in enumerate(optimizer.state_dict()["state"].values())
        for name, value in state.items()
    }
    buffer = model.replay_buffer
    return {
        **model.policy.state_dict(),
        **optimizers,
        "last actions": torch.as_tensor(model._last_states[-1]),
        "actions": torch.from_numpy(np.concatenate([ep.actions for ep in buffer.episodes])),
        "rewards": torch.from_numpy(np.concatenate([ep.rewards for ep in buffer.episodes])),
        "draws": torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))]),  # noqa: NPY002
        "n_updates": torch.tensor(model._n_updates),
        "returns": torch.tensor([info["r"] for info in model.ep_info_buffer]),
    }


def assert_alike(model, expected: dict[str, torch.Tensor]) -> None:
    """Right after the run, as random numbers are drawn from generators that all runs share."""
    first, second = seen(model), expected
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def disturb() -> None:
    """Another process has other random states."""
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)


def never_stopped(algorithm, make, **arguments):
    model = algorithm("auto", make(), **arguments).learn(N_STEPS)
    result = seen(model)
    model.env.close()
    return result


def resume(algorithm, make, folder):
    disturb()
    model = algorithm.resume(folder, make(), device="cpu")
    step = model.num_timesteps
    return model.learn(max(N_STEPS - step, 0), reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("make", "step"),
    [
        *((vectors, step) for step in (2, 8, 13, 59)),
        *((make, 13) for make in (images, dicts, two, normalized, stacked, within_time_limit)),
    ],
)
def test_a_run_resumes_exactly_from_any_step(make, step, tmp_path):
    expected = never_stopped(RecurrentSAC, make, **ARGUMENTS)
    model = RecurrentSAC("auto", make(), **ARGUMENTS)
    model.learn(N_STEPS, callback=StopAt(step))
    model.checkpoint(tmp_path)
    assert_alike(resume(RecurrentSAC, make, tmp_path), expected)


@pytest.mark.parametrize(
    ("algorithm", "step"), [(SACRAD, 13), (CURL, 40), (QTOptRAD, 40), (QTOptDrQ, 13)]
)
def test_a_feed_forward_run_resumes_exactly(algorithm, step, tmp_path):
    arguments = {**tiny(algorithm), "buffer_size": 40}
    expected = never_stopped(algorithm, images, **arguments)
    model = algorithm("auto", images(), **arguments)
    model.learn(N_STEPS, callback=StopAt(step))
    model.checkpoint(tmp_path)
    assert_alike(resume(algorithm, images, tmp_path), expected)


@pytest.mark.parametrize("n_updates", [11, 26])
def test_a_run_resumes_exactly_from_within_its_updates(n_updates, tmp_path, monkeypatch):
    """Stopped there as by a signal; 3 updates follow each episode of 6 steps."""
    expected = never_stopped(CoRe, images, **ARGUMENTS)

    def update(model, batch):
        if model._n_updates + 1 == n_updates:
            model.at_next_safe_point(lambda: False)
        return real(model, batch)

    real = CoRe.update
    monkeypatch.setattr(CoRe, "update", update)
    model = CoRe("auto", images(), **ARGUMENTS)
    model.learn(N_STEPS, callback=ExactCheckpointCallback(tmp_path, 0))
    assert (model._n_updates, model._progress.updates_due) == (n_updates, -n_updates % 3)
    monkeypatch.undo()
    assert_alike(resume(CoRe, images, tmp_path), expected)


def test_a_run_may_stop_again_and_again(tmp_path):
    rate = LinearSchedule(1e-3, 1e-4, 1.0)
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.3))
    arguments = {**ARGUMENTS, "learning_rate": rate, "action_noise": noise, "train_freq": 4}
    expected = never_stopped(CoRe, dicts, **arguments)
    model = CoRe("auto", dicts(), **arguments)
    model.learn(N_STEPS, callback=StopAt(3))
    for step in (11, 21, 22, 50):
        model.checkpoint(tmp_path)
        disturb()
        model = CoRe.resume(tmp_path, dicts(), device="cpu")
        model.learn(N_STEPS - model.num_timesteps, StopAt(step), reset_num_timesteps=False)
    model.learn(N_STEPS - model.num_timesteps, reset_num_timesteps=False)
    assert_alike(model, expected)


def test_environments_in_other_processes_resume_exactly(tmp_path):
    def make():
        return SubprocVecEnv([lambda: Resumable(Monitor(vectors()))] * 2, start_method="fork")

    expected = never_stopped(RecurrentSAC, make, **ARGUMENTS)
    model = RecurrentSAC("auto", make(), **ARGUMENTS)
    model.learn(N_STEPS, callback=StopAt(26))
    model.checkpoint(tmp_path)
    resumed = resume(RecurrentSAC, make, tmp_path)
    assert_alike(resumed, expected)
    for each in (model, resumed):
        each.env.close()


def test_a_distracting_environment_resumes_exactly(tmp_path):
    def make():
        return make_env(
            "DCS-reacher-easy-medium-dynamic",
            action_repeat=200,
            image_size=32,
            render_quality="fast",
        )

    arguments = {**ARGUMENTS, "learning_starts": 5}
    uninterrupted = CoRe("auto", make(), **arguments).learn(20)
    expected = seen(uninterrupted)
    model = CoRe("auto", make(), **arguments)
    model.learn(20, callback=StopAt(13))
    model.checkpoint(tmp_path)
    disturb()
    resumed = CoRe.resume(tmp_path, make(), device="cpu")
    assert_alike(resumed.learn(20 - 13, reset_num_timesteps=False), expected)
    for each in (uninterrupted, model, resumed):
        each.env.close()


def test_other_environments_resume_exactly_from_an_episode_s_start(tmp_path):
    expected = never_stopped(RecurrentSAC, FakeEnv, **ARGUMENTS)
    model = RecurrentSAC("auto", FakeEnv(), **ARGUMENTS)
    model.learn(N_STEPS, callback=StopAt(12))
    model.checkpoint(tmp_path)
    assert_alike(resume(RecurrentSAC, FakeEnv, tmp_path), expected)


def test_other_environments_begin_an_episode_when_stopped_within_one(tmp_path):
    model = RecurrentSAC("auto", FakeEnv(), **{**ARGUMENTS, "buffer_size": 1000})
    model.learn(N_STEPS, callback=StopAt(33))
    model.checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="cannot resume in the middle of an episode"):
        resumed = RecurrentSAC.resume(tmp_path, FakeEnv())
    resumed.learn(30, reset_num_timesteps=False)
    assert resumed.num_timesteps >= N_STEPS
    lengths = [episode.n_steps for episode in resumed.replay_buffer.episodes]
    assert lengths.count(3) == 1, "the three steps before the stop, as an episode of their own"
    assert {length for length in lengths if length != 3} == {6}


@pytest.mark.parametrize(
    ("make", "written"),
    [
        (images, [10, 20, 30, 36]),
        (FakeEnv, [12, 24, 30, 36]),  # It waits for an episode's start,
        (partial(FakeEnv, length=1000), [20, 36]),  # but not for ever.
    ],
)
def test_the_callback_writes_every_so_many_steps(make, written, tmp_path):
    callback = ExactCheckpointCallback(tmp_path, every=10)
    RecurrentSAC("auto", make(), **ARGUMENTS).learn(36, callback=callback)
    assert [step for step, _ in callback.written] == written
    assert steps(tmp_path) == written[:-3:-1]


# ---- the replay buffer, a file for each episode ----


def test_each_episode_is_written_once(tmp_path):
    model = RecurrentSAC("auto", images(), **{**ARGUMENTS, "buffer_size": 1000})
    model.learn(60, callback=ExactCheckpointCallback(tmp_path, every=10))
    files = list((tmp_path / "replay").iterdir())
    assert len(files) == len(model.replay_buffer.episodes) == 10
    before = {path: path.stat().st_mtime_ns for path in files}
    model.checkpoint(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_files_of_forgotten_episodes_are_removed(tmp_path):
    model = RecurrentSAC("auto", images(), **ARGUMENTS)
    model.learn(240, callback=ExactCheckpointCallback(tmp_path, every=10))
    n_files = len(list((tmp_path / "replay").iterdir()))
    n_episodes = len(model.replay_buffer.episodes)
    assert n_files <= n_episodes + 4, "the buffer's, and what two checkpoints differ by"
    assert len(model._checkpoints._needed) <= N_KEPT, "nor is memory kept for them"
    resumed = RecurrentSAC.resume(tmp_path, images())
    assert resumed.replay_buffer.size() == model.replay_buffer.size()


def test_another_replay_buffer_is_written_in_its_place(tmp_path):
    model = RecurrentSAC("auto", images(), **ARGUMENTS).learn(12)
    model.checkpoint(tmp_path / "checkpoints")
    other = RecurrentSAC("auto", images(), **{**ARGUMENTS, "seed": 1}).learn(18)
    other.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    model.checkpoint(tmp_path / "checkpoints")
    resumed = RecurrentSAC.resume(tmp_path / "checkpoints", images()).replay_buffer
    for episode, expected in zip(resumed.episodes, other.replay_buffer.episodes, strict=True):
        np.testing.assert_array_equal(episode.actions, expected.actions)


# ---- files ----


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    model = RecurrentSAC("auto", images(), **{**TINY, "learning_starts": 100})
    model.learn(30, callback=ExactCheckpointCallback(path, every=10))
    return path


@pytest.fixture
def folder(two_checkpoints, tmp_path):
    """Two checkpoints, at steps 20 and 30."""
    return shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)


def flip(path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def newest(folder):
    return sorted(folder.glob("checkpoint-*"))[-1]


def steps(folder) -> list[int]:
    return [checkpoint.step for checkpoint in CheckpointFolder(folder).checkpoints()]


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_after_a_flipped_bit_the_checkpoint_before_is_used(folder, position):
    flip(newest(folder), position)
    with pytest.warns(UserWarning, match=r"checkpoint-000003-\S+ is passed over: it is damaged"):
        assert RecurrentSAC.resume(folder, images()).num_timesteps == 20


def episode_files(folder, index: int):
    """The file of an episode at the newest checkpoint."""
    checkpoint = next(CheckpointFolder(folder).checkpoints())
    return folder / "replay" / checkpoint.tree["episodes"][index]["file"]


def test_damage_to_the_newest_episode_leads_to_the_checkpoint_before(folder):
    flip(episode_files(folder, -1))
    with pytest.warns(UserWarning, match=r"checkpoint-000003-\S+ is passed over: episodes of it"):
        assert RecurrentSAC.resume(folder, images()).num_timesteps == 20


def test_damage_to_a_shared_episode_costs_its_steps_alone(folder):
    flip(episode_files(folder, 0))
    episode_files(folder, 1).unlink()
    with pytest.warns(UserWarning, match=r"12 of the replay buffer's steps are lost, as 2 file"):
        model = RecurrentSAC.resume(folder, images())
    assert model.num_timesteps == 30
    assert [episode.n_steps for episode in model.replay_buffer.episodes] == [6, 6, 6]
    model.checkpoint(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RecurrentSAC.resume(folder, images()).replay_buffer.size() == 18


@pytest.mark.parametrize("damaged", [newest, partial(episode_files, index=-1)])
def test_a_damaged_checkpoint_is_not_counted_among_those_kept(folder, damaged):
    flip(damaged(folder))
    with pytest.warns(UserWarning, match="passed over"):
        model = RecurrentSAC.resume(folder, images())
    model.learn(3, reset_num_timesteps=False)
    model.checkpoint(folder)
    assert steps(folder) == [23, 20]


def test_a_folder_without_a_complete_checkpoint_is_refused(tmp_path):
    with pytest.raises(NoCheckpointError, match="folder must hold a complete checkpoint"):
        RecurrentSAC.resume(tmp_path, images())


def test_the_model_of_a_checkpoint_loads_without_an_environment(folder):
    checkpoint = CheckpointFolder(folder).newest()
    assert checkpoint is not None
    assert RecurrentSAC.load(checkpoint.model).num_timesteps == checkpoint.step == 30


def test_another_algorithm_s_checkpoint_is_refused(folder):
    with pytest.raises(ValueError, match=r"got 'RecurrentSAC'; use RecurrentSAC\.resume"):
        CoRe.resume(folder, images())


def test_another_number_of_environments_is_refused(folder):
    with pytest.raises(ValueError, match=r"env must hold 1 environment\(s\)"):
        RecurrentSAC.resume(folder, DummyVecEnv([images, images]))


def test_other_wrappers_are_refused(folder):
    env = VecNormalize(DummyVecEnv([images]), norm_obs=False)
    with pytest.raises(ValueError, match=r"env must be in 1 wrapper\(s\)"):
        RecurrentSAC.resume(folder, env)


def test_what_a_killed_run_left_half_done_is_removed(folder):
    (folder / ".unfinished-12345678").write_bytes(b"half")
    (folder / "replay" / ".unfinished-12345678").write_bytes(b"half")
    model = RecurrentSAC.resume(folder, images())
    model.checkpoint(folder)
    assert not list(folder.rglob(".unfinished-*"))


# ---- faults of the file system ----


class Faults:
    """Lets the n-th of the calls that it stands in for fail, or do something else instead."""

    def __init__(self, n: int, fault) -> None:
        self.n, self.fault, self.n_calls = n, fault, 0

    def patch(self, monkeypatch, owner, name: str) -> None:
        real = getattr(owner, name)

        def call(*args, **kwargs):
            self.n_calls += 1
            return (self.fault if self.n_calls == self.n else real)(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)


def raises(number: int):
    def fault(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fault


def fills_the_disk(path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def loses_the_last_byte(path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content[:-1])


# Each call once more often than a checkpoint makes it.
FAULTS = [
    *((os, "fsync", n, raises(errno.EIO)) for n in range(1, 6)),
    *((Path, "rename", n, raises(errno.ENOSPC)) for n in range(1, 4)),
    *((Path, "write_bytes", n, fills_the_disk) for n in range(1, 4)),
    *((Path, "write_bytes", n, loses_the_last_byte) for n in range(1, 4)),
    (Path, "mkdir", 1, raises(errno.EROFS)),
]


@pytest.mark.parametrize(("owner", "name", "n", "fault"), FAULTS)
def test_a_write_that_fails_leaves_the_last_checkpoint_complete(
    folder, owner, name, n, fault, monkeypatch
):
    model = RecurrentSAC.resume(folder, images(), device="cpu")
    model.learn(6, reset_num_timesteps=False)
    with monkeypatch.context() as patch:
        faults = Faults(n, fault)
        faults.patch(patch, owner, name)
        failed = False
        try:
            model.checkpoint(folder)
        except OSError:
            failed = True
    assert failed == (faults.n_calls >= n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = RecurrentSAC.resume(folder, images()).num_timesteps
    assert step in ((30, 36) if failed else (36,))
    assert not list(folder.rglob(".unfinished-*"))
    model.checkpoint(folder)
    assert RecurrentSAC.resume(folder, images()).num_timesteps == 36


def test_what_cannot_be_removed_is_removed_next_time(folder, monkeypatch):
    model = RecurrentSAC.resume(folder, images(), device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", raises(errno.EROFS))
        model.checkpoint(folder)
        assert steps(folder) == [30, 30, 20]
    model.checkpoint(folder)
    assert steps(folder) == [30, 30]


def test_of_two_runs_in_one_folder_the_one_that_started_last_writes(folder):
    first, second = (RecurrentSAC.resume(folder, images(), device="cpu") for _ in range(2))
    second.learn(6, reset_num_timesteps=False)
    second.checkpoint(folder)
    with pytest.raises(OSError, match="another process has written checkpoint 4 into"):
        first.checkpoint(folder)
    second.checkpoint(folder)
    assert steps(folder) == [36, 36]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", ["write_bytes", "rename"])
def test_two_runs_that_write_at_once_leave_a_complete_checkpoint(folder, name, n, monkeypatch):
    first, second = (RecurrentSAC.resume(folder, images(), device="cpu") for _ in range(2))
    for each in (first, second):
        each.learn(6, reset_num_timesteps=False)
    second.replay_buffer.episodes[-1].rewards[0] += 1  # Not the same files.
    real = getattr(Path, name)

    def meanwhile(*args):
        monkeypatch.undo()
        second.checkpoint(folder)
        return real(*args)

    Faults(n, meanwhile).patch(monkeypatch, Path, name)
    with contextlib.suppress(OSError):
        first.checkpoint(folder)
    with warnings.catch_warnings():
        # The other run may have removed episodes of the newest one; then there is one before it.
        warnings.filterwarnings("ignore", ".* is passed over: episodes of it")
        assert RecurrentSAC.resume(folder, images()).num_timesteps == 36


def test_a_clock_before_that_of_zip_files_is_told_and_training_resumes(folder, monkeypatch):
    model = RecurrentSAC.resume(folder, images(), device="cpu")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.warns(UserWarning, match="was not written: ZIP does not support timestamps"):
        model.learn(6, ExactCheckpointCallback(folder, 5), reset_num_timesteps=False)
    assert model.num_timesteps == 36
    assert steps(folder) == [30, 20]


def test_a_full_disk_is_reported_and_training_continues(tmp_path, monkeypatch):
    import resource

    model = RecurrentSAC("auto", images(), **ARGUMENTS)
    callback = ExactCheckpointCallback(tmp_path, every=10)

    class Fill(BaseCallback):
        def _on_step(self) -> bool:
            limit = 4_000 if 15 < self.num_timesteps < 35 else resource.RLIM_INFINITY
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            return True

    with pytest.warns(UserWarning, match=r"step \d+ was not written: .*File too large") as told:
        model.learn(48, callback=[callback, Fill()])
    assert len([w for w in told if "was not written" in str(w.message)]) == 2
    assert [step for step, _ in callback.written] == [10, 40, 48]
    assert RecurrentSAC.resume(tmp_path, images()).num_timesteps == 48


def test_a_model_that_is_not_finite_is_not_written(folder):
    model = RecurrentSAC.resume(folder, images())
    with torch.no_grad():
        next(model.policy.actor.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"actor\.net\S* must be finite"):
        model.checkpoint(folder)
    assert steps(folder) == [30, 20]


def test_nothing_in_a_checkpoint_is_pickled_but_what_load_restricts(folder):
    for path in folder.rglob("*.npz"):
        with zipfile.ZipFile(path) as archive:
            assert all(archive.read(name).startswith(b"\x93NUMPY") for name in archive.namelist())


def forge(path, change) -> None:
    """Change a checkpoint and give it the name that belongs to its content."""
    with path.open("rb") as file:
        tree = read_archive(file)
    change(tree)
    path.unlink()
    content = _written(lambda file: write_archive(file, tree))
    _store(path.parent, path.name.rpartition("-")[0], content)


def test_a_forged_checkpoint_cannot_reach_outside_its_folder(folder):
    stolen = folder.parent / "stolen.npz"
    stolen.write_bytes(b"")
    entry = {"file": "../../stolen.npz", "steps": 6}
    forge(newest(folder), lambda tree: tree["episodes"].append(entry))
    with pytest.warns(UserWarning, match="is passed over: episodes of it are damaged or missing"):
        assert RecurrentSAC.resume(folder, images()).num_timesteps == 20
    assert stolen.exists()


def test_spaces_must_fit(folder):
    other = SavableEnv(spaces.Box(0, 255, (12, 12, 3), np.uint8))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        RecurrentSAC.resume(folder, other)
