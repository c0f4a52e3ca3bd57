"""The latent: encode, imagine, value; and the warning for a forgotten state."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces

from core_agent import CoRe, RecurrentSAC
from core_agent.agents.policies import STATELESS_CALLS
from tests.fakes import BOTH, IMAGE, TINY, VECTOR, FakeEnv

ALGORITHMS = [CoRe, RecurrentSAC]
LATENT_DIM = 10  # 6 + 4, see TINY_MODEL


def make_model(space: spaces.Space = VECTOR, algorithm: type = CoRe):
    name = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    return algorithm("CnnPolicy" if space is IMAGE else name, FakeEnv(space), **TINY)


def episode(space: spaces.Space, *lead: int):
    """Random observations ``(*lead, ...)`` and actions ``(lead[0] - 1, *lead[1:], 2)``."""
    space.seed(0)
    samples = [space.sample() for _ in range(int(np.prod(lead)))]
    if isinstance(space, spaces.Dict):
        observations = {
            key: np.stack([s[key] for s in samples]).reshape(*lead, *space[key].shape)
            for key in space
        }
    else:
        observations = np.stack(samples).reshape(*lead, *space.shape)
    generator = np.random.default_rng(0)
    return observations, generator.uniform(-2, 2, (lead[0] - 1, *lead[1:], 2)).astype(np.float32)


def at(observations, *index):
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("space", [IMAGE, VECTOR, BOTH, spaces.Discrete(3)])
def test_encode_filters_one_episode_or_several(algorithm, space):
    model = make_model(space, algorithm)
    observations, actions = episode(space, 5, 2)
    latents = model.encode(observations, actions)
    assert latents.shape == (5, 2, LATENT_DIM)
    assert latents.dtype == np.float32
    one = model.encode(at(observations, slice(None), 1), actions[:, 1])
    assert one.shape == (5, LATENT_DIM)
    assert np.allclose(one, latents[:, 1], atol=1e-5)


@pytest.mark.parametrize("space", [IMAGE, VECTOR, BOTH])
def test_encode_gives_the_state_that_predict_carries(space):
    model = make_model(space)
    observations, _ = episode(space, 6)
    state, states, actions = None, [], []
    for t in range(6):
        action, state = model.predict(at(observations, t), state, deterministic=True)
        states.append(np.concatenate(state[:2], axis=-1)[0])
        actions.append(action)
    assert np.allclose(model.encode(observations, actions[:-1]), states, atol=1e-5)
    # The last action leads nowhere: it may be left in.
    assert np.allclose(model.encode(observations, actions), states, atol=1e-5)


def test_images_are_taken_channels_first_too():
    model = make_model(IMAGE)
    observations, actions = episode(IMAGE, 4)
    first = model.encode(observations.transpose(0, 3, 1, 2), actions)
    assert np.array_equal(first, model.encode(observations, actions))


def test_long_episodes_are_encoded_in_parts(monkeypatch):
    model = make_model(BOTH)
    observations, actions = episode(BOTH, 7, 2)
    complete = model.encode(observations, actions)
    monkeypatch.setattr("core_agent.agents.latent.FRAMES_AT_ONCE", 3)
    assert np.allclose(model.encode(observations, actions), complete, atol=1e-5)


def test_imagine_rolls_the_prior_step_by_step():
    model = make_model()
    observations, actions = episode(VECTOR, 6, 2)
    start = model.encode(observations, actions)[2]
    latents, rewards = model.imagine(start, actions[2:])
    assert latents.shape == (3, 2, LATENT_DIM)
    assert rewards.shape == (3, 2)
    world = model.policy.world_model
    deter, stoch = torch.as_tensor(start[:, :6]), torch.as_tensor(start[:, 6:])
    with torch.no_grad():
        for t, action in enumerate(torch.as_tensor(actions[2:]) / 2.0):
            deter = world.rssm.cell(world.rssm.gru_mlp(torch.cat([stoch, action], -1)), deter)
            stoch = world.rssm.prior(deter).mean
            flat = torch.cat([deter, stoch], -1)
            assert np.allclose(latents[t], flat, atol=1e-5)
            assert np.allclose(rewards[t], world.reward(flat), atol=1e-5)
    one = model.imagine(start[1], actions[2:, 1])
    assert one.latents.shape == (3, LATENT_DIM)
    assert np.allclose(one.rewards, rewards[:, 1], atol=1e-5)


def test_imagination_belongs_to_the_model():
    assert not hasattr(RecurrentSAC, "imagine")  # its prior is not trained


def test_learned_rewards_are_foretold():
    class Even(FakeEnv):
        """The reward is the action; the observation says nothing."""

        def observe(self):
            return np.zeros(3, np.float32)

    arguments = {**TINY, "learning_starts": 200, "buffer_size": 500, "batch_size": 16}
    model = CoRe(
        "MlpPolicy", Even(VECTOR, length=20), **arguments, learning_rate=3e-3, gradient_steps=30
    )
    model.learn(400)
    actions = np.random.default_rng(0).uniform(-2, 2, (10, 2)).astype(np.float32)
    latents = model.encode(np.zeros((11, 3), np.float32), actions)
    predicted = model.imagine(latents[0], actions).rewards
    assert np.corrcoef(predicted, actions[:, 0])[0, 1] > 0.8


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_value_is_the_lower_critic_at_actions_of_the_environment(algorithm):
    model = make_model(algorithm=algorithm)
    observations, actions = episode(VECTOR, 4, 2)
    latents = model.encode(observations, actions)
    values = model.value(latents[:-1], actions)
    assert values.shape == (3, 2)
    with torch.no_grad():
        expected = model.policy.critic(
            torch.as_tensor(latents[:-1]), torch.as_tensor(actions / 2.0)
        ).amin(0)
    assert np.allclose(values, expected, atol=1e-5)
    assert model.value(latents[0, 0], actions[0, 0]).shape == ()


def test_nothing_here_draws_random_numbers():
    model = make_model()
    observations, actions = episode(VECTOR, 4)
    before = torch.get_rng_state()
    latents = model.encode(observations, actions)
    model.imagine(latents[0], actions)
    model.value(latents[0], actions[0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, o, a: m.encode(o[0], a), "observations must have one axis for time"),
        (lambda m, o, a: m.encode({"x": o}, a), "observations must have the keys"),
        (lambda m, o, a: m.encode(o, a[:-1]), "actions must be 3 for 4 frames"),
        (lambda m, o, a: m.encode(o, a[:, :1]), "actions must have the shape"),
        (lambda m, o, a: m.imagine(o, a), "latent must have a last axis of 10"),
        (lambda m, o, a: m.imagine(np.zeros(10), a[:0]), "actions must be at least one"),
        (lambda m, o, a: m.imagine(np.zeros((1, 1, 10)), a), "latent must have one axis or two"),
        (lambda m, o, a: m.value(np.zeros(10), a), "action must have the shape"),
    ],
)
def test_shapes_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_model(), *episode(VECTOR, 4))


# ---- a forgotten state ----


def test_forgetting_the_state_warns_once():
    model, observation = make_model(), np.zeros(3, np.float32)
    for _ in range(STATELESS_CALLS - 1):
        model.predict(observation)
    with pytest.warns(UserWarning, match="10 times in a row without a state") as caught:
        model.predict(observation)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3 * STATELESS_CALLS):
            model.predict(observation)


def test_carrying_the_state_or_starting_episodes_never_warns():
    model, observation = make_model(), np.zeros(3, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * STATELESS_CALLS):
            _, state = model.predict(observation)
            model.predict(observation, state)
        for _ in range(2 * STATELESS_CALLS):
            model.predict(observation, None, np.array([True]))
