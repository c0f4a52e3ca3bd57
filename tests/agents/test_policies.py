"""Acting: predict and the state it carries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from core_agent import SACRAD, CoRe
from core_agent.agents.latent import RecurrentPolicy
from core_agent.networks.actor_critic import CLAMP, SquashedGaussian
from core_agent.networks.encoders import crop_sizes
from tests.fakes import IMAGE, TINY, TINY_POLICY, VECTOR, FakeEnv, policy_name, tiny

IMAGE_FIRST = spaces.Box(0, 255, (3, 8, 8), np.uint8)
ACTION = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))


def make_policy(observation_space: spaces.Space = IMAGE_FIRST, **kwargs) -> RecurrentPolicy:
    torch.manual_seed(0)
    return RecurrentPolicy(observation_space, ACTION, **{**TINY_POLICY, **kwargs})


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)


def test_predict_returns_actions_within_the_bounds_and_a_state_of_three_arrays():
    policy = make_policy()
    actions, state = policy.predict(images(5))
    assert actions.shape == (5, 2)
    assert actions.dtype == np.float32
    assert all(ACTION.contains(action) for action in actions)
    assert [part.shape for part in state] == [(5, 6), (5, 4), (5, 2)]


def test_channels_first_or_last_makes_no_difference():
    policy, batch = make_policy(), images(2)
    first, _ = policy.predict(batch, deterministic=True)
    last, _ = policy.predict(batch.transpose(0, 2, 3, 1), deterministic=True)
    assert np.array_equal(first, last)


def depth(*shape: int) -> spaces.Box:
    return spaces.Box(0.0, 1.0, shape, np.float32)


@pytest.mark.parametrize("algorithm", [CoRe, SACRAD])
def test_depth_next_to_a_picture_is_taken_as_it_is_with_channels_first(algorithm):
    space = spaces.Dict({"depth": depth(1, 8, 8), "image": IMAGE})
    model = algorithm("MultiInputPolicy", FakeEnv(space), **tiny(algorithm)).learn(14)
    assert model._n_updates > 0
    encoders = model.policy.observation_encoder.image_encoders
    pixels = torch.rand(2, 1, 7, 7)
    assert torch.equal(encoders["depth"].prepare(pixels), pixels)


@pytest.mark.parametrize("algorithm", [CoRe, SACRAD])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_floats_with_channels_last_are_refused_by_their_order(algorithm, channels):
    image = depth(8, 8, channels)
    for space in (image, spaces.Dict({"depth": image, "vector": VECTOR})):
        with pytest.raises(
            ValueError,
            match=r"observation_space must have images channels first, \(C, H, W\), got "
            rf"Box\(0.0, 1.0, \(8, 8, {channels}\), float32\); .* np\.moveaxis\(image, -1, 0\)",
        ):
            algorithm(policy_name(space), FakeEnv(space), **tiny(algorithm))


@pytest.mark.parametrize("space", [VECTOR, spaces.Box(0, 255, (8, 8), np.uint8)])
def test_a_policy_for_images_refuses_other_observations(space):
    with pytest.raises(ValueError, match="policy must be 'MlpPolicy' or 'auto' for Box"):
        CoRe("CnnPolicy", FakeEnv(space), **TINY)


def test_whole_numbers_are_rounded_to():
    env = FakeEnv(VECTOR)
    env.action_space = spaces.Box(0, 10, (1,), np.int32)
    policy = CoRe("MlpPolicy", env, **TINY).policy
    actions = np.arange(11, dtype=np.int32)[:, None]
    scaled = policy.scale_action(actions).astype(np.float32)
    np.testing.assert_array_equal(policy.to_env_actions(scaled), actions)


def test_the_state_ends_with_the_action_that_was_returned():
    policy = make_policy()
    actions, state = policy.predict(images(3))
    assert np.allclose(policy.scale_action(actions), state[-1], atol=1e-6)


def test_predict_is_pure():
    policy, batch = make_policy(), images(3)
    _, state = policy.predict(batch, deterministic=True)
    kept = [part.copy() for part in state]
    first = policy.predict(batch, state, deterministic=True)
    again = policy.predict(batch, state, deterministic=True)
    assert np.array_equal(first[0], again[0])
    assert all(np.array_equal(a, b) for a, b in zip(state, kept))


def test_deterministic_draws_no_random_number():
    policy = make_policy()
    before = torch.get_rng_state()
    policy.predict(images(3), deterministic=True)
    assert torch.equal(before, torch.get_rng_state())
    policy.predict(images(3), deterministic=False)
    assert not torch.equal(before, torch.get_rng_state())


def test_the_state_matters():
    policy, batch = make_policy(), images(2)
    _, state = policy.predict(images(2, seed=1), deterministic=True)
    restarted, _ = policy.predict(batch, deterministic=True)
    carried, _ = policy.predict(batch, state, deterministic=True)
    assert not np.allclose(restarted, carried)


def test_episode_start_resets_one_environment_alone():
    policy, batch = make_policy(), images(2)
    _, state = policy.predict(images(2, seed=1), deterministic=True)
    restarted, _ = policy.predict(batch, deterministic=True)
    carried, _ = policy.predict(batch, state, deterministic=True)
    mixed, _ = policy.predict(batch, state, np.array([True, False]), deterministic=True)
    assert np.allclose(mixed[0], restarted[0], atol=1e-6)
    assert np.allclose(mixed[1], carried[1], atol=1e-6)


@pytest.mark.parametrize(
    ("crop_size", "expected"),
    [(None, (84, 67)), (60, (60, 60)), ((50, 40), (50, 40)), (0.94, (94, 75)), (1.0, (100, 80))],
)
def test_crops_have_a_given_size_or_share_of_the_image(crop_size, expected):
    space = spaces.Dict({"image": spaces.Box(0, 255, (3, 100, 80), np.uint8), "vector": VECTOR})
    assert crop_sizes(space, crop_size) == {"image": expected}


def test_acting_filters_as_training_does():
    # The deterministic filter of predict equals observe() without noise on the same frames.
    policy = make_policy(crop_size=8)
    frames = images(4)
    state, deters = None, []
    actions = []
    for frame in frames:
        _, state = policy.predict(frame, state, deterministic=True)
        deters.append(torch.as_tensor(state[0]))
        actions.append(torch.as_tensor(state[2]))
    with torch.no_grad():
        rollout = policy.world_model.observe(
            policy.world_model.encode(torch.as_tensor(frames)[:, None]),
            torch.stack(actions)[:-1],
            torch.zeros(4, 1, 4),
        )
    assert torch.allclose(rollout.deter, torch.stack(deters), atol=1e-5)


def test_the_authors_sampled_evaluation_is_an_option():
    sampled = make_policy(sample_when_deterministic=True)
    _, a = sampled.predict(images(1), deterministic=True)
    _, b = sampled.predict(images(1), deterministic=True)
    assert not np.array_equal(a[1], b[1])
    assert np.array_equal(a[2], b[2])  # the actor reads the mean in any case


def test_an_observation_info_tuple_is_refused():
    with pytest.raises(ValueError, match="observation must be an array or a dict, got a tuple"):
        make_policy().predict((images(1), {}))


def test_target_critics_start_as_copies_and_are_not_trained():
    policy = make_policy()
    pairs = zip(policy.critic.parameters(), policy.critic_target.parameters())
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in pairs)


def test_squashed_gaussian_density_by_hand():
    distribution = SquashedGaussian(torch.tensor([[0.3, -0.2]]), torch.tensor([[-0.5, 0.1]]))
    noise = torch.tensor([[0.7, -1.1]])
    action, log_prob = distribution.sample(noise)
    normal = torch.distributions.Normal(distribution.mean, distribution.log_std.exp())
    raw = distribution.mean + distribution.log_std.exp() * noise
    expected = (normal.log_prob(raw) - torch.log(1 - torch.tanh(raw) ** 2)).sum(-1)
    assert torch.allclose(action, torch.tanh(raw))
    assert torch.allclose(log_prob, expected, atol=1e-5)


def test_squashed_gaussian_is_finite_far_out():
    distribution = SquashedGaussian(torch.tensor([[50.0]]), torch.tensor([[2.0]]))
    action, log_prob = distribution.sample(torch.tensor([[3.0]]))
    assert action.item() == 1.0
    assert torch.isfinite(log_prob).all()


def test_clamped_samples_have_the_density_of_the_clamped_action():
    mean, log_std = torch.tensor([[4.0, 0.1]], dtype=torch.float64), torch.zeros(1, 2).double()
    noise = torch.tensor([[9.0, 0.5]], dtype=torch.float64)  # 13 before tanh: beyond 1 - 1e-7
    action, log_prob = SquashedGaussian(mean, log_std, CLAMP).sample(noise)
    assert action[0, 0].item() == pytest.approx(1.0 - 1e-7, abs=1e-12)
    raw = torch.atanh(action)
    normal = torch.distributions.Normal(mean, log_std.exp())
    expected = (normal.log_prob(raw) - torch.log(1 - action**2)).sum(-1)
    assert log_prob.item() == pytest.approx(expected.item(), rel=1e-6)
    free, _ = SquashedGaussian(mean, log_std).sample(noise)
    assert free[0, 0] > action[0, 0]
    assert torch.equal(free[0, 1], action[0, 1])


def test_actor_squashes_mean_and_log_std():
    policy = make_policy()
    states = 1e4 * torch.randn(64, 10)
    distribution = policy.actor(states)
    assert distribution.mean.abs().max() <= 5.0
    assert distribution.log_std.min() >= -10.0
    assert distribution.log_std.max() <= 2.0


def test_the_updates_of_a_batch_share_one_crop():
    model = CoRe("CnnPolicy", FakeEnv(), **TINY).learn(14)
    seen = []
    model.policy.world_model.encoder.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    batch = model.replay_buffer.sample(3)
    model.update(batch)
    model_frames, critic_frames = seen
    assert batch.observations.shape == (4, 3, 3, 8, 8)
    assert model_frames.shape == (12, 3, 7, 7)
    assert torch.equal(model_frames, critic_frames)
