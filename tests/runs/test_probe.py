from contextlib import closing

import numpy as np
import pytest
import torch
from gymnasium import spaces

from core_agent import SACRAD, CoRe
from core_agent.environments.make import make_env
from core_agent.runs.probe import LinearProbe, Recorded, probe, record, state_names
from core_agent.runs.probe import _flat as flat_state
from tests.fakes import IMAGE, TINY, TINY_ACTOR_STACKS, FakeEnv

STATES = spaces.Dict(
    {
        "pixels": IMAGE,
        "position": spaces.Box(-1, 1, (2,), np.float32),
        "velocity": spaces.Box(-1, 1, (1,), np.float32),
    }
)


def make_envs():
    return FakeEnv(STATES, length=5), FakeEnv(STATES, length=5)


@pytest.fixture
def model():
    return CoRe("CnnPolicy", FakeEnv(IMAGE), **TINY)


def frames_with(n_frames, seed=0, noise=0.0):
    """Latents from which the first coordinate follows exactly, the second not at all."""
    generator = np.random.default_rng(seed)
    latents = generator.normal(size=(n_frames, 4)).astype(np.float32)
    states = np.stack([3.0 * latents[:, 0] - latents[:, 2] + 5.0, generator.normal(size=n_frames)])
    return Recorded(latents, states.T.astype(np.float32))


def test_a_linear_function_of_the_latent_is_explained_and_noise_is_not():
    values = LinearProbe(frames_with(2_000)).r_squared(frames_with(2_000, seed=1))
    assert values[0] > 0.999
    assert abs(values[1]) < 0.05


def test_a_coordinate_that_never_changes_reads_0():
    frames = frames_with(100)
    constant = frames._replace(states=np.full_like(frames.states, 7.0))
    assert LinearProbe(constant).r_squared(constant).tolist() == [0.0, 0.0]


def test_every_frame_has_a_latent_and_a_state(model):
    env, _ = make_envs()
    episodes = record(model, env, 2, seed=0)
    assert [episode.latents.shape for episode in episodes] == [(6, 10)] * 2
    assert [episode.states.shape for episode in episodes] == [(6, 3)] * 2
    assert state_names(env) == ["position[0]", "position[1]", "velocity"]


def test_names_and_states_are_in_the_same_order():
    # dm_control's observation has orientations, height, velocity; Gymnasium's space is sorted.
    with closing(make_env("DCS-walker-walk-clean", vector_observations=True)) as env:
        observation, _ = env.reset(seed=0)
        by_name = dict(zip(state_names(env), flat_state(observation)))
    assert by_name["height"] == observation["height"]
    orientations = [by_name[f"orientations[{index}]"] for index in range(14)]
    assert orientations == observation["orientations"].tolist()


def test_recorded_latents_are_those_that_the_agent_acts_on(model):
    env, _ = make_envs()
    first = record(model, env, 1, seed=3)[0]
    observation, _ = make_envs()[0].reset(seed=3)
    _, state = model.predict(observation["pixels"], deterministic=True)
    np.testing.assert_allclose(first.latents[0], np.concatenate(state[:2], -1)[0], atol=1e-5)


@pytest.mark.parametrize("samples", [False, True])
def test_recording_leaves_the_random_generators_as_they_were(samples):
    policy_kwargs = {**TINY["policy_kwargs"], "sample_when_deterministic": samples}
    model = CoRe("CnnPolicy", FakeEnv(IMAGE), **{**TINY, "policy_kwargs": policy_kwargs})
    before = torch.get_rng_state()
    record(model, make_envs()[0], 2, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_an_agent_without_a_latent_state_is_refused():
    model = SACRAD("CnnPolicy", FakeEnv(IMAGE), **TINY_ACTOR_STACKS)
    with pytest.raises(ValueError, match="model must have a latent state, got 'SACRAD'"):
        probe(model, *make_envs())


def test_an_environment_without_the_state_is_refused(model):
    with pytest.raises(ValueError, match="make it with vector_observations=True"):
        probe(model, FakeEnv(IMAGE), FakeEnv(IMAGE))
