"""A run that goes on from a checkpoint does what it would have done without stopping."""

from __future__ import annotations

import random
import warnings
from functools import partial

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
from core_agent.saving.checkpoint import CheckpointFolder, NoCheckpointError
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
    """Everything that two runs alike have alike."""
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


def go_on(algorithm, make, folder):
    disturb()
    model = algorithm.resume(folder, make(), device="cpu")
    step = model.num_timesteps
    return model.learn(max(N_STEPS - step, 0), reset_num_timesteps=False)


@pytest.mark.parametrize("step", [2, 8, 13, 59])
@pytest.mark.parametrize(
    "make", [images, vectors, dicts, two, normalized, stacked, within_time_limit]
)
def test_a_run_goes_on_exactly_from_any_step(make, step, tmp_path):
    expected = never_stopped(RecurrentSAC, make, **ARGUMENTS)
    model = RecurrentSAC("auto", make(), **ARGUMENTS)
    model.learn(N_STEPS, callback=StopAt(step))
    model.checkpoint(tmp_path)
    assert_alike(go_on(RecurrentSAC, make, tmp_path), expected)


@pytest.mark.parametrize("algorithm", [SACRAD, CURL, QTOptRAD, QTOptDrQ])
@pytest.mark.parametrize("step", [13, 40])
def test_a_feed_forward_run_goes_on_exactly(algorithm, step, tmp_path):
    arguments = {**tiny(algorithm), "buffer_size": 40}
    expected = never_stopped(algorithm, images, **arguments)
    model = algorithm("auto", images(), **arguments)
    model.learn(N_STEPS, callback=StopAt(step))
    model.checkpoint(tmp_path)
    assert_alike(go_on(algorithm, images, tmp_path), expected)


@pytest.mark.parametrize("n_updates", [1, 11, 26])
def test_a_run_goes_on_exactly_from_within_its_updates(n_updates, tmp_path, monkeypatch):
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
    assert_alike(go_on(CoRe, images, tmp_path), expected)


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


def test_environments_in_other_processes_go_on_exactly(tmp_path):
    def make():
        return SubprocVecEnv([lambda: Resumable(Monitor(vectors()))] * 2, start_method="fork")

    expected = never_stopped(RecurrentSAC, make, **ARGUMENTS)
    model = RecurrentSAC("auto", make(), **ARGUMENTS)
    model.learn(N_STEPS, callback=StopAt(26))
    model.checkpoint(tmp_path)
    resumed = go_on(RecurrentSAC, make, tmp_path)
    assert_alike(resumed, expected)
    for each in (model, resumed):
        each.env.close()


def test_a_distracting_environment_goes_on_exactly(tmp_path):
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


@pytest.mark.parametrize("step", [6, 12, 30])
def test_other_environments_go_on_exactly_from_an_episode_s_start(step, tmp_path):
    expected = never_stopped(RecurrentSAC, FakeEnv, **ARGUMENTS)
    model = RecurrentSAC("auto", FakeEnv(), **ARGUMENTS)
    model.learn(N_STEPS, callback=StopAt(step))
    model.checkpoint(tmp_path)
    assert_alike(go_on(RecurrentSAC, FakeEnv, tmp_path), expected)


def test_other_environments_begin_an_episode_when_stopped_within_one(tmp_path):
    model = RecurrentSAC("auto", FakeEnv(), **{**ARGUMENTS, "buffer_size": 1000})
    model.learn(N_STEPS, callback=StopAt(33))
    model.checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="cannot go on in the middle of an episode"):
        resumed = RecurrentSAC.resume(tmp_path, FakeEnv())
    resumed.learn(30, reset_num_timesteps=False)
    assert resumed.num_timesteps >= N_STEPS
    lengths = [episode.n_steps for episode in resumed.replay_buffer.episodes]
    assert lengths.count(3) == 1, "the three steps before the stop, as an episode of their own"
    assert {length for length in lengths if length != 3} == {6}


def test_the_callback_waits_for_an_episode_s_start(tmp_path):
    model = RecurrentSAC("auto", FakeEnv(), **ARGUMENTS)
    callback = ExactCheckpointCallback(tmp_path, every=10)
    model.learn(36, callback=callback)
    assert [step for step, _ in callback.written] == [12, 24, 30, 36]


def test_the_callback_does_not_wait_for_ever(tmp_path):
    model = RecurrentSAC("auto", FakeEnv(length=1000), **ARGUMENTS)
    callback = ExactCheckpointCallback(tmp_path, every=10)
    model.learn(50, callback=[callback, StopAt(45)])
    assert [step for step, _ in callback.written] == [20, 40, 45]


def test_the_callback_writes_at_every_multiple_of_its_steps(tmp_path):
    callback = ExactCheckpointCallback(tmp_path, every=10)
    RecurrentSAC("auto", images(), **ARGUMENTS).learn(36, callback=callback)
    assert [step for step, _ in callback.written] == [10, 20, 30, 36]
    assert [c.step for c in CheckpointFolder(tmp_path).checkpoints()] == [36, 30]


# ---- the replay buffer in pieces ----


def test_each_step_is_written_once(tmp_path):
    model = RecurrentSAC("auto", images(), **{**ARGUMENTS, "buffer_size": 1000})
    callback = ExactCheckpointCallback(tmp_path, every=10)
    model.learn(60, callback=callback)
    sizes = [path.stat().st_size for path in (tmp_path / "replay").iterdir()]
    frames = 60 * 8 * 8 * 3
    assert len(sizes) == 6
    assert frames < sum(sizes) < 2.2 * frames


def test_segments_of_forgotten_episodes_are_removed(tmp_path):
    model = RecurrentSAC("auto", images(), **ARGUMENTS)
    model.learn(240, callback=ExactCheckpointCallback(tmp_path, every=10))
    n_segments = len(list((tmp_path / "replay").iterdir()))
    assert n_segments <= 40 // 10 + 3, "the buffer's 40 steps, and what two checkpoints differ by"
    resumed = RecurrentSAC.resume(tmp_path, images())
    assert resumed.replay_buffer.size() == model.replay_buffer.size()


def test_a_resumed_buffer_samples_the_same_windows(tmp_path):
    model = CoRe("auto", dicts(), **ARGUMENTS)
    model.learn(N_STEPS, callback=StopAt(47))
    model.checkpoint(tmp_path)
    resumed = CoRe.resume(tmp_path, dicts(), device="cpu")
    first, second = (each.replay_buffer.sample(5) for each in (model, resumed))
    for key in ("image", "vector"):
        assert torch.equal(first.observations[key], second.observations[key])
    assert all(torch.equal(a, b) for a, b in zip(first[1:], second[1:]))


# ---- files ----


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, at steps 20 and 30."""
    model = RecurrentSAC("auto", images(), **{**TINY, "learning_starts": 100})
    model.learn(30, callback=ExactCheckpointCallback(tmp_path, every=10))
    return tmp_path


def flip(path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def newest(folder):
    return sorted(folder.glob("checkpoint-*"))[-1]


@pytest.mark.parametrize("name", ["model.zip", "state.zip", "manifest.json"])
@pytest.mark.parametrize("position", [0.0, 0.3, 0.8, 1.0])
def test_after_a_flipped_bit_the_checkpoint_before_is_used(folder, name, position):
    assert RecurrentSAC.resume(folder, images()).num_timesteps == 30
    flip(newest(folder) / name, position)
    with pytest.warns(UserWarning, match=f"passed over: damaged or missing: {name}"):
        assert RecurrentSAC.resume(folder, images()).num_timesteps == 20


def test_damage_to_the_newest_segment_leads_to_the_checkpoint_before(folder):
    flip(sorted((folder / "replay").iterdir())[-1])
    assert RecurrentSAC.resume(folder, images()).num_timesteps == 20


def test_damage_to_a_shared_segment_costs_its_episodes_alone(folder):
    flip(sorted((folder / "replay").iterdir())[0])
    with pytest.warns(UserWarning, match=r"12 of the replay buffer's steps are lost"):
        model = RecurrentSAC.resume(folder, images())
    assert model.num_timesteps == 30
    assert [episode.n_steps for episode in model.replay_buffer.episodes] == [6, 6, 6]


@pytest.mark.parametrize("name", ["model.zip", "state.zip", "manifest.json"])
def test_a_missing_file_is_noticed(folder, name):
    (newest(folder) / name).unlink()
    with pytest.warns(UserWarning, match=f"damaged or missing: {name}"):
        assert RecurrentSAC.resume(folder, images()).num_timesteps == 20


def test_a_damaged_checkpoint_is_not_counted_among_those_kept(folder):
    flip(newest(folder) / "model.zip")
    with pytest.warns(UserWarning, match="passed over"):
        model = RecurrentSAC.resume(folder, images())
    model.learn(3, reset_num_timesteps=False)
    model.checkpoint(folder)
    assert [c.step for c in CheckpointFolder(folder).checkpoints()] == [23, 20]


def test_a_folder_without_a_whole_checkpoint_is_refused(tmp_path):
    with pytest.raises(NoCheckpointError, match="folder must hold a complete checkpoint"):
        RecurrentSAC.resume(tmp_path, images())


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
    (folder / ".unfinished-checkpoint-000009").mkdir()
    (folder / "replay" / ".unfinished-segment-000009.zip").write_bytes(b"half")
    model = RecurrentSAC.resume(folder, images())
    model.checkpoint(folder)
    assert not list(folder.rglob(".unfinished-*"))


@pytest.mark.parametrize("n_calls", range(12))
def test_a_write_that_fails_leaves_the_last_checkpoint_whole(folder, n_calls, monkeypatch):
    """Whichever call of the operating system's fails."""
    import core_agent.saving.checkpoint as checkpoint

    model = RecurrentSAC.resume(folder, images(), device="cpu")
    model.learn(6, reset_num_timesteps=False)
    calls = iter(range(100))

    def full(path):
        if next(calls) == n_calls:
            raise OSError(28, "No space left on device")
        real(path)

    real, checkpoint._sync = checkpoint._sync, full
    try:
        failed = False
        try:
            model.checkpoint(folder)
        except OSError:
            failed = True
    finally:
        checkpoint._sync = real
    assert failed == (n_calls < 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = RecurrentSAC.resume(folder, images()).num_timesteps
    assert step in ((30, 36) if failed else (36,))
    model.checkpoint(folder)
    assert RecurrentSAC.resume(folder, images()).num_timesteps == 36


def test_a_full_disk_is_told_and_training_goes_on(tmp_path, monkeypatch):
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
    assert [c.step for c in CheckpointFolder(folder).checkpoints()] == [30, 20]


def test_nothing_in_a_checkpoint_is_pickled_but_what_load_restricts(folder):
    import zipfile

    for path in [*folder.rglob("state.zip"), *folder.rglob("segment-*")]:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                assert name == "tree.json" or archive.read(name).startswith(b"\x93NUMPY")


def test_a_tampered_manifest_cannot_reach_outside_its_folder(folder):
    import json

    from core_agent.saving.checkpoint import _seal

    path = newest(folder) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["seal"]
    manifest["segments"]["../../stolen"] = {"bytes": 1, "sha256": ""}
    path.write_text(json.dumps({**manifest, "seal": _seal(manifest)}))
    with pytest.warns(UserWarning, match=r"passed over: damaged or missing: manifest\.json"):
        assert RecurrentSAC.resume(folder, images()).num_timesteps == 20


def test_seeds_are_not_used_again_after_going_on(folder):
    resumed = RecurrentSAC.resume(folder, images())
    assert resumed.env.unwrapped._seeds == [None]


def test_spaces_must_fit(folder):
    other = SavableEnv(spaces.Box(0, 255, (12, 12, 3), np.uint8))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        RecurrentSAC.resume(folder, other)
