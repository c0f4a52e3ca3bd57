"""Replay of sequences."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from core_agent.replay.buffer import SequenceReplayBuffer
from tests.fakes import BOTH, FakeEnv

ACTION = spaces.Box(-1, 1, (1,), np.float32)
FRAME = spaces.Box(0, 255, (1, 6, 6), np.uint8)  # channels first, as SB3 hands them on


def frame(episode: int, step: int) -> np.ndarray:
    """Every pixel tells the episode (tens) and the step (ones)."""
    return np.full((1, 6, 6), 20 * episode + step, dtype=np.uint8)


def add_episode(
    buffer: SequenceReplayBuffer,
    episode: int,
    length: int,
    terminated: bool = False,
    finish: bool = True,
) -> None:
    for step in range(length):
        last = finish and step == length - 1
        buffer.add(
            frame(episode, step)[None],
            frame(episode, step + 1)[None],
            np.array([[step / 100]], np.float32),
            np.array([float(step)]),
            np.array([last]),
            [{"TimeLimit.truncated": last and not terminated}],
        )


def make_buffer(**kwargs) -> SequenceReplayBuffer:
    defaults = dict(buffer_size=100, sequence_length=4, seed=0, device="cpu")
    return SequenceReplayBuffer(
        observation_space=FRAME, action_space=ACTION, **{**defaults, **kwargs}
    )


def test_windows_never_cross_episodes():
    buffer = make_buffer()
    for episode, length in enumerate([5, 9, 4, 12]):
        add_episode(buffer, episode, length)
    batch = buffer.sample(200)
    pixels = batch.observations[:, :, 0, 0, 0].numpy()
    assert (pixels // 20 == pixels[:1] // 20).all()
    assert (np.diff(pixels.astype(int), axis=0) == 1).all()


def test_every_window_of_an_episode_is_drawn():
    buffer = make_buffer()
    add_episode(buffer, 0, 6)
    starts = buffer.sample(200).observations[0, :, 0, 0, 0].unique().tolist()
    assert starts == [0, 1, 2, 3]  # 7 frames, windows of 4


def test_episodes_are_drawn_uniformly_whatever_their_length():
    buffer = make_buffer(buffer_size=1000)
    add_episode(buffer, 0, 4)
    add_episode(buffer, 1, 18)
    episodes = buffer.sample(2000).observations[0, :, 0, 0, 0] // 20
    assert 0.45 < (episodes == 0).float().mean() < 0.55


def test_transitions_are_aligned_with_their_frames():
    buffer = make_buffer()
    add_episode(buffer, 0, 9, terminated=True)
    batch = buffer.sample(50)
    steps = batch.observations[:-1, :, 0, 0, 0].float()
    assert torch.equal(batch.rewards, steps)
    assert torch.allclose(batch.actions[..., 0], steps / 100)
    assert torch.equal(batch.terminated, (steps == 8).float())
    assert batch.mask.all()


def test_time_limit_is_no_termination():
    buffer = make_buffer()
    add_episode(buffer, 0, 5, terminated=False)
    assert buffer.sample(50).terminated.sum() == 0
    buffer = make_buffer(handle_timeout_termination=False)
    add_episode(buffer, 0, 5, terminated=False)
    assert buffer.sample(50).terminated.sum() > 0


def test_short_episodes_are_padded_and_masked():
    buffer = make_buffer()
    add_episode(buffer, 1, 2, terminated=True)
    batch = buffer.sample(3)
    assert batch.mask.tolist() == [[1] * 3, [1] * 3, [1] * 3, [0] * 3]
    assert batch.observations[:, 0, 0, 0, 0].tolist() == [20, 21, 22, 0]
    assert batch.terminated[:, 0].tolist() == [0, 1, 0]
    assert batch.rewards[:, 0].tolist() == [0, 1, 0]


def test_a_running_episode_can_be_sampled():
    buffer = make_buffer()
    add_episode(buffer, 0, 5, finish=False)
    batch = buffer.sample(20)
    assert batch.mask.all()
    assert batch.observations[-1, :, 0, 0, 0].max() == 5


def test_each_frame_is_stored_once():
    buffer = make_buffer(buffer_size=1000)
    for episode in range(5):
        add_episode(buffer, episode, 10)
    stored = sum(ep._frames["observation"].nbytes for ep in buffer.episodes)
    assert stored == 5 * 11 * 36  # n steps store n + 1 frames


def test_the_oldest_episodes_go_first():
    buffer = make_buffer(buffer_size=20, sequence_length=8)
    for episode in range(4):
        add_episode(buffer, episode, 8)
        assert buffer.full == (episode > 1)
    assert buffer.size() == 16
    assert (buffer.sample(100).observations[0, :, 0, 0, 0] // 20).min() == 2


def test_an_endless_episode_stays_within_the_buffer():
    buffer = make_buffer(buffer_size=40, sequence_length=4)
    add_episode(buffer, 0, 200, finish=False)
    assert buffer.size() <= 40
    batch = buffer.sample(100)
    assert batch.mask.all()
    assert (batch.observations[1:, :, 0, 0, 0] - batch.observations[:-1, :, 0, 0, 0] == 1).all()


def test_environments_fill_episodes_of_their_own():
    buffer = make_buffer(n_envs=2)
    for step in range(4):
        buffer.add(
            np.stack([frame(0, step), frame(3, step)]),
            np.stack([frame(0, step + 1), frame(3, step + 1)]),
            np.zeros((2, 1), np.float32),
            np.zeros(2),
            np.array([False, step == 3]),
            [{}, {}],
        )
    pixels = buffer.sample(100).observations[:, :, 0, 0, 0]
    assert (pixels // 20 == pixels[:1] // 20).all()
    assert len(buffer.episodes) == 2
    assert buffer.running[0] is not None
    assert buffer.running[1] is None


def test_end_episodes_starts_again_without_termination():
    buffer = make_buffer()
    add_episode(buffer, 0, 5, finish=False)
    buffer.end_episodes()
    add_episode(buffer, 1, 5)
    assert len(buffer.episodes) == 2
    assert buffer.sample(100).terminated.sum() == 0


def test_a_lost_episode_ends_at_its_last_real_step():
    buffer = make_buffer(n_envs=2, buffer_size=1000)
    lost = [{"episode_lost": True, "TimeLimit.truncated": True}, {}]
    for step in range(6):
        # Environment 0 fails at step 3; its new episode, number 4, has taken 2 steps at the end.
        first = (0, step) if step < 4 else (4, step - 4)
        following = (0, 3) if step == 3 else (first[0], first[1] + 1)
        buffer.add(
            np.stack([frame(*first), frame(1, step)]),
            np.stack([frame(*following), frame(1, step + 1)]),
            np.full((2, 1), step / 100, np.float32),
            np.array([float(step), float(step)]),
            np.array([step == 3, False]),
            lost if step == 3 else [{}, {}],
        )
    pixels = [ep.frames["observation"][:, 0, 0, 0].tolist() for ep in buffer.episodes]
    assert pixels == [[0, 1, 2, 3], [20, 21, 22, 23, 24, 25, 26], [80, 81, 82]]
    assert [ep.rewards.tolist() for ep in buffer.episodes] == [
        [0, 1, 2],
        [0, 1, 2, 3, 4, 5],
        [4, 5],
    ]
    assert buffer.size() == 11
    assert not any(episode.terminated for episode in buffer.episodes)


def test_an_episode_lost_before_its_first_step_leaves_nothing():
    buffer = make_buffer()
    buffer.add(
        frame(0, 0)[None],
        frame(0, 0)[None],
        np.zeros((1, 1)),
        np.zeros(1),
        np.array([True]),
        [{"episode_lost": True}],
    )
    assert buffer.size() == 0
    assert not buffer.episodes


def test_frames_come_complete():
    buffer = make_buffer()
    image = np.arange(36, dtype=np.uint8).reshape(1, 1, 6, 6)
    for step in range(8):
        buffer.add(image, image, np.zeros((1, 1)), np.zeros(1), np.array([step == 7]), [{}])
    observations = buffer.sample(3).observations
    assert torch.equal(observations, torch.from_numpy(image).expand(4, 3, 1, 6, 6))


def test_no_episode_is_drawn_twice_once_there_are_enough():
    buffer = make_buffer(buffer_size=1000)
    for episode in range(12):
        add_episode(buffer, episode, 6)
    for batch_size in (5, 12):
        for _ in range(30):
            episodes = buffer.sample(batch_size).observations[0, :, 0, 0, 0] // 20
            assert len(episodes.unique()) == batch_size
    assert buffer.sample(13).mask.all()  # more than there are: some come twice


def test_an_episode_shorter_than_a_window_weighs_by_its_steps():
    buffer = make_buffer(sequence_length=6, buffer_size=1000)
    add_episode(buffer, 0, 10)
    add_episode(buffer, 1, 1, finish=False)  # a fifth of a window's five transitions
    episodes = buffer.sample(3000).observations[0, :, 0, 0, 0] // 20
    assert 0.14 < (episodes == 1).float().mean() < 0.20  # 0.2 / 1.2


def test_the_same_seed_draws_the_same_windows():
    batches = []
    for _ in range(2):
        buffer = make_buffer()
        add_episode(buffer, 0, 12)
        batches.append(buffer.sample(8).observations)
    assert torch.equal(*batches)


def test_dict_observations_keep_their_keys():
    env = FakeEnv(BOTH)
    env.reset(seed=0)
    space = spaces.Dict(
        {"image": spaces.Box(0, 255, (3, 8, 8), np.uint8), "vector": BOTH["vector"]}
    )
    buffer = SequenceReplayBuffer(50, space, ACTION, device="cpu", sequence_length=3)
    last = None
    for step in range(5):
        obs, next_obs = ({k: v[None] for k, v in space.sample().items()} for _ in range(2))
        obs = last or obs
        buffer.add(obs, next_obs, np.zeros((1, 1)), np.zeros(1), np.array([step == 4]), [{}])
        last = next_obs
    batch = buffer.sample(2)
    assert batch.observations["image"].shape == (3, 2, 3, 8, 8)
    assert batch.observations["vector"].shape == (3, 2, 3)
    assert batch.observations["image"].dtype == torch.uint8


def test_normalisation_happens_when_sampling():
    venv = VecNormalize(DummyVecEnv([lambda: FakeEnv(BOTH["vector"], n_actions=1)]))
    venv.obs_rms.mean[:] = 1.0
    venv.obs_rms.var[:] = 4.0
    venv.ret_rms.var = np.array(9.0)
    buffer = SequenceReplayBuffer(50, BOTH["vector"], ACTION, device="cpu", sequence_length=2)
    raw = np.array([[3.0, 5.0, 1.0]], np.float32)
    buffer.add(raw, raw, np.zeros((1, 1)), np.array([6.0]), np.array([True]), [{}])
    batch = buffer.sample(1, env=venv)
    assert batch.observations[0, 0].tolist() == pytest.approx([1.0, 2.0, 0.0], rel=1e-4)
    assert batch.rewards[0, 0].item() == pytest.approx(2.0, rel=1e-4)
    assert buffer.episodes[0].rewards.tolist() == [6.0]


def test_a_pickled_buffer_resumes_identically():
    buffer = make_buffer()
    add_episode(buffer, 0, 6)
    add_episode(buffer, 1, 5, finish=False)
    copy = pickle.loads(pickle.dumps(buffer))
    for each in (buffer, copy):
        add_episode(each, 1, 3)
    assert torch.equal(buffer.sample(20).observations, copy.sample(20).observations)


def test_sampling_from_nothing_says_what_to_do():
    buffer, told = make_buffer(), "the replay buffer is empty: collect at least one step"
    for sample in (buffer.sample, lambda n: buffer.sample_stacks(n, 3)):
        with pytest.raises(RuntimeError, match=told):
            sample(1)
