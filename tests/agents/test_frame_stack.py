"""Stacks of frames: in the buffer, in acting, and their augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from core_agent import SACRAD
from core_agent.networks.augmentations import pick_pixels, random_crop, random_shift
from core_agent.networks.encoders import stack_frames, stacked_space
from core_agent.replay.buffer import SequenceReplayBuffer
from tests.fakes import BOTH, IMAGE, TINY_ACTOR_STACKS, VECTOR, FakeEnv, policy_name
from tests.replay.test_buffers import ACTION, FRAME, add_episode, make_buffer


def make_model(space: spaces.Space = IMAGE, **kwargs) -> SACRAD:
    return SACRAD(policy_name(space), FakeEnv(space), **{**TINY_ACTOR_STACKS, **kwargs})


# ---- in the buffer ----


def test_a_stack_holds_the_last_frames_of_its_own_episode_the_first_one_standing_in():
    buffer = make_buffer()
    for episode, length in enumerate([5, 9, 1, 12]):
        add_episode(buffer, episode, length)
    batch = buffer.sample_stacks(400, 3)
    assert batch.observations.shape == batch.next_observations.shape == (400, 3, 6, 6)
    stacks = batch.observations[:, :, 0, 0].long()
    episodes, steps = stacks[:, -1] // 20, stacks[:, -1] % 20
    assert set(episodes.tolist()) == {0, 1, 2, 3}
    for age in range(3):
        expected = 20 * episodes + (steps - age).clamp(min=0)
        assert torch.equal(stacks[:, 2 - age], expected)
        expected = 20 * episodes + (steps + 1 - age).clamp(min=0)
        assert torch.equal(batch.next_observations[:, 2 - age, 0, 0].long(), expected)
    assert torch.equal(batch.rewards, steps.float())
    assert torch.allclose(batch.actions[:, 0], steps / 100)


def test_every_transition_is_drawn_equally_often():
    buffer = make_buffer()
    add_episode(buffer, 0, 2)
    add_episode(buffer, 1, 8)
    frames = buffer.sample_stacks(20_000, 3).observations[:, -1, 0, 0]
    counts = torch.unique(frames, return_counts=True)[1]
    assert len(counts) == 10
    assert ((counts > 1_800) & (counts < 2_200)).all()  # 2,000 each, standard deviation 42


def test_no_transition_is_drawn_twice_once_there_are_enough():
    buffer = make_buffer()
    add_episode(buffer, 0, 4)
    add_episode(buffer, 1, 8)
    for batch_size in (7, 12):
        for _ in range(20):
            frames = buffer.sample_stacks(batch_size, 3).observations[:, -1, 0, 0]
            assert len(frames.unique()) == batch_size


def test_the_last_transition_alone_is_terminated_and_a_time_limit_is_not():
    buffer = make_buffer()
    add_episode(buffer, 0, 6, terminated=True)
    batch = buffer.sample_stacks(100, 3)
    assert torch.equal(batch.terminated, (batch.rewards == 5).float())
    assert batch.terminated.any()
    buffer = make_buffer()
    add_episode(buffer, 0, 6, terminated=False)
    assert not buffer.sample_stacks(100, 3).terminated.any()


def test_a_running_episode_and_several_environments_give_stacks():
    buffer = make_buffer(n_envs=2)
    for step in range(4):
        both = [np.full((1, 6, 6), base + step, np.uint8) for base in (0, 60)]
        following = [frame + 1 for frame in both]
        actions, done = np.zeros((2, 1), np.float32), np.array([False, step == 1])
        buffer.add(np.stack(both), np.stack(following), actions, np.zeros(2), done, [{}, {}])
    stacks = buffer.sample_stacks(100, 2).observations[:, :, 0, 0].long()
    # The second environment began its second episode at step 2.
    assert {tuple(stack) for stack in stacks.tolist()} == {
        *((0, 0), (0, 1), (1, 2), (2, 3)),
        *((60, 60), (60, 61), (62, 62), (62, 63)),
    }


def test_stacks_are_normalised_when_sampled():
    venv = VecNormalize(DummyVecEnv([lambda: FakeEnv(VECTOR, n_actions=1)]))
    venv.obs_rms.mean[:] = 1.0
    venv.obs_rms.var[:] = 4.0
    venv.ret_rms.var = np.array(9.0)
    buffer = SequenceReplayBuffer(50, VECTOR, ACTION, device="cpu")
    raw = np.array([[3.0, 5.0, 1.0]], np.float32)
    buffer.add(raw, raw, np.zeros((1, 1)), np.array([6.0]), np.array([True]), [{}])
    batch = buffer.sample_stacks(1, 2, venv)
    assert batch.observations[0].tolist() == pytest.approx([1.0, 2.0, 0.0] * 2, rel=1e-4)
    assert batch.rewards.tolist() == pytest.approx([2.0], rel=1e-4)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (FRAME, spaces.Box(0, 255, (3, 6, 6), np.uint8)),
        (spaces.Discrete(4), spaces.MultiDiscrete([4, 4, 4])),
        (spaces.MultiDiscrete([3, 2]), spaces.MultiDiscrete([3, 2, 3, 2, 3, 2])),
        (spaces.MultiBinary(2), spaces.MultiBinary([6])),
        (spaces.Dict(a=VECTOR), spaces.Dict(a=spaces.Box(-np.inf, np.inf, (9,), np.float32))),
    ],
)
def test_spaces_are_stacked_on_their_first_axis(space, expected):
    assert stacked_space(space, 3) == expected


def test_a_space_that_cannot_be_stacked_is_named():
    with pytest.raises(ValueError, match="observation_space must be a Box with an axis"):
        stacked_space(spaces.Text(3), 2)


def test_frames_without_an_axis_get_one():
    stacked = stack_frames([torch.tensor([1, 2]), torch.tensor([3, 4])])
    assert stacked.tolist() == [[1, 3], [2, 4]]


# ---- in acting ----


def test_predict_carries_the_stack_that_the_buffer_gives():
    model = make_model(n_stack=3)
    frames = np.random.default_rng(0).integers(0, 256, (5, 1, 3, 8, 8), dtype=np.uint8)
    state = None
    for step, frame in enumerate(frames):
        _, state = model.predict(frame, state, np.array([step == 0]))
        wanted = [frames[max(0, step - age), 0] for age in (2, 1, 0)]
        assert np.array_equal(state[0][0], np.concatenate(wanted))


def test_episode_start_refills_the_stack_of_that_environment_alone():
    model = make_model(VECTOR, n_stack=2)
    first, second = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    _, state = model.predict(first)
    _, state = model.predict(second, state, np.array([False, True]))
    assert state[0].tolist() == [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]


def test_stacks_are_those_of_sb3s_wrapper_but_for_the_repeated_first_frame():
    alone, wrapper = (make_vec_env(lambda: FakeEnv(VECTOR, length=4), 2, seed=0) for _ in range(2))
    wrapped = VecFrameStack(wrapper, 3)
    model = make_model(VECTOR, n_stack=3)
    stacks, observation = wrapped.reset(), alone.reset()
    state, starts = None, np.ones(2, bool)
    for _ in range(6):
        _, state = model.predict(observation, state, starts)
        seen = stacks != 0  # the wrapper fills up with zeros
        assert np.array_equal(state[0][seen], stacks[seen])
        assert np.array_equal(state[0][:, -3:], observation)
        observation, _, starts, _ = alone.step(np.zeros((2, 2), np.float32))
        stacks, *_ = wrapped.step(np.zeros((2, 2), np.float32))


def test_the_carried_stack_is_kept_as_numpy_and_names_every_key():
    model = make_model(BOTH).learn(10)
    assert [part.shape for part in model._last_states] == [(1, 9, 8, 8), (1, 9)]
    assert all(isinstance(part, np.ndarray) for part in model._last_states)
    _, state = model.predict(BOTH.sample())
    assert [part.shape for part in state] == [(1, 9, 8, 8), (1, 9)]


def test_a_ratio_below_one_makes_an_update_every_few_steps():
    assert make_model(update_ratio=0.5).learn(20)._n_updates == 6
    assert make_model(update_ratio=0.3).learn(20)._n_updates == 3
    assert make_model(update_ratio=0.5, train_freq=(1, "episode")).learn(24)._n_updates == 9
    assert make_model(update_ratio=0.5, gradient_steps=1).learn(10)._n_updates == 2


# ---- augmentation ----


def numbered(n_images: int, side: int) -> torch.Tensor:
    """Images ``(N, 2, side, side)``: the number of the pixel, and that of the image."""
    pixels = torch.arange(side * side, dtype=torch.uint8).view(1, 1, side, side)
    images = torch.arange(n_images, dtype=torch.uint8).view(-1, 1, 1, 1)
    return torch.cat(
        [pixels.expand(n_images, 1, side, side), images.expand(n_images, 1, side, side)], dim=1
    )


def test_pixels_are_picked_by_row_and_column_of_each_image():
    rows, columns = torch.tensor([[0, 2], [1, 1]]), torch.tensor([[1], [0]])
    picked = pick_pixels(numbered(2, 3), rows, columns)
    assert picked[:, 0].tolist() == [[[1], [7]], [[3], [3]]]
    assert picked[:, 1].tolist() == [[[0], [0]], [[1], [1]]]


def test_crops_are_whole_parts_of_their_own_image_at_every_place():
    crops = random_crop(numbered(200, 5), (3, 4))
    corners = crops[:, 0, 0, 0].long()
    rows = torch.arange(3).view(1, 3, 1) * 5 + torch.arange(4).view(1, 1, 4)
    assert torch.equal(crops[:, 0].long(), corners.view(-1, 1, 1) + rows)
    assert torch.equal(crops[:, 1, 0, 0], torch.arange(200, dtype=torch.uint8))
    assert sorted(corners.unique().tolist()) == [0, 1, 5, 6, 10, 11]  # 3 × 2 places


def test_a_sequence_is_cropped_at_one_place():
    windows = numbered(100, 5).repeat(7, 1, 1, 1, 1).permute(0, 1, 3, 4, 2).contiguous()
    windows = windows.permute(0, 1, 4, 2, 3)  # channels last in memory, as the buffer has them
    crops = random_crop(windows, (3, 4))
    assert crops.shape == (7, 100, 2, 3, 4)
    assert torch.equal(crops, crops[:1].expand_as(crops))
    assert len(crops[0, :, 0, 0, 0].unique()) == 6
    assert crops.permute(0, 1, 3, 4, 2).is_contiguous()


def test_shifts_repeat_the_border_and_have_all_offsets():
    shifted = random_shift(numbered(200, 6), (4, 4), pad=1)
    middle = numbered(1, 6)[0, 0, 1:5, 1:5]
    padded = torch.nn.functional.pad(middle[None, None].float(), (1, 1, 1, 1), mode="replicate")
    possible = {
        tuple(padded[0, 0, y : y + 4, x : x + 4].flatten().long().tolist())
        for y in range(3)
        for x in range(3)
    }
    assert len(possible) == 9
    assert {tuple(image.flatten().tolist()) for image in shifted[:, 0]} == possible


def test_vectors_are_not_augmented():
    model = make_model(BOTH).learn(10)
    batch = model.replay_buffer.sample_stacks(4, 3)
    augmented = model.augment(batch.observations)
    assert augmented["image"].shape == (4, 9, 7, 7)
    assert torch.equal(augmented["vector"], batch.observations["vector"])
