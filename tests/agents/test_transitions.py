"""What a step brought is stored as the environment gave it."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from core_agent import SACRAD
from tests.fakes import BOTH, VECTOR, FakeEnv, tiny

FAR = 5000.0


class FarEndEnv(FakeEnv):
    """Each episode ends far from where it was."""

    def observe(self):
        observation = super().observe()
        vector = observation["vector"] if isinstance(observation, dict) else observation
        vector[:] = FAR if self.step_count == self.length else self.step_count
        return observation


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize(("space", "key"), [(VECTOR, "observation"), (BOTH, "vector")])
def test_vec_normalize_does_not_clip_last_observations_that_are_stored(space, key, vec_env_cls):
    venv = make_vec_env(lambda: FarEndEnv(space), n_envs=2, vec_env_cls=vec_env_cls)
    env = VecNormalize(venv, norm_obs_keys=None if space is VECTOR else [key])
    model = SACRAD("auto", env, **tiny(SACRAD)).learn(24)
    env.close()
    for episode in model.replay_buffer.episodes:
        values = episode.frames[key].numpy()
        assert np.array_equal(values[:, 0], [0, 1, 2, 3, 4, 5, FAR])
    assert "step_wait" not in vars(venv), "nothing is left in the user's environments"
