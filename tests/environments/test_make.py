"""Ids that are known without an import, and seeds that training and validation never share."""

from __future__ import annotations

import importlib.metadata
import itertools
import subprocess
import sys
from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest
from packaging.version import Version
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from core_agent import RecurrentSAC
from core_agent.environments.make import make_env, make_vec_env, seed_environments
from core_agent.environments.suite import MAX_SEED, first_seed
from tests.fakes import TINY, VECTOR, FakeEnv

ID = "DCS-cheetah-run-easy-dynamic"


def in_a_new_process(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_importing_core_agent_registers_the_suite_and_loads_no_simulator():
    program = (
        "import core_agent, gymnasium, sys; gymnasium.spec('DCS-cheetah-run-easy-dynamic');"
        "print([name for name in ('mujoco', 'OpenGL', 'dm_control') if name in sys.modules])"
    )
    result = in_a_new_process(program)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[]\n", "")


@pytest.mark.skipif(
    Version(importlib.metadata.version("gym-notices")) >= Version("0.1"),
    reason="needs the gym-notices that pyproject.toml asks for",
)
def test_no_notice_of_gym_is_printed_whatever_is_imported_first():
    result = in_a_new_process("import stable_baselines3, core_agent")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


SHOWN = {
    "task": ["physics/integration"],
    "camera": ["camera/_h_angle", "camera/_v_angle", "camera/_roll", "camera/_radius"],
    "colours": ["color/_current_rgb"],
}


def first_episodes(seed: int, worker: int, split: str, n_episodes: int) -> list[dict[str, bytes]]:
    """What distinguishes episodes at their first step, without rendering."""
    env = make_env(ID, split=split, video_path="builtin", render_mode=None)
    inner = env.unwrapped
    inner._draw_frame = lambda: setattr(inner, "_frame", np.zeros((8, 8, 3), np.uint8))
    found = []
    for episode in range(n_episodes):
        env.reset(seed=first_seed(seed, worker, split) if episode == 0 else None)
        state = inner.get_state()
        parts = {
            part: b"".join(np.asarray(state[name]).tobytes() for name in names)
            for part, names in SHOWN.items()
        }
        found.append(parts)
    env.close()
    return found


def test_no_episode_of_training_occurs_in_validation_or_in_another_worker():
    episodes = [
        episode
        for seed, worker, split in itertools.product((0, 1, 2), (0, 1), ("train", "val"))
        for episode in first_episodes(seed, worker, split, 10)
    ]
    assert len(episodes) == 120
    for part in SHOWN:
        assert len({episode[part] for episode in episodes}) == 120, part


def test_first_seeds_differ_by_run_worker_and_split():
    runs = itertools.product((0, 1, 2, MAX_SEED - 1), range(5), ("train", "val"))
    seeds = [first_seed(*run) for run in runs]
    assert len(set(seeds)) == len(seeds) == 40
    assert max(first_seed(2**32 - 1, 1023, "val"), *seeds) < 2**32


class SeedEnv(FakeEnv):
    """Remembers its seeds."""

    def __init__(self, **kwargs) -> None:
        super().__init__(VECTOR, **kwargs)
        self.seeds: list[int] = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return super().reset(seed=seed)


def test_agents_seed_their_environments_as_no_other_run_does():
    env = VecNormalize(DummyVecEnv([SeedEnv, SeedEnv]))
    RecurrentSAC("MlpPolicy", env, **{**TINY, "seed": 3}).learn(2)
    assert [each[0] for each in env.get_attr("seeds")] == [first_seed(3, 0), first_seed(3, 1)]


def test_environments_are_vectorised_after_a_first_frame():
    first = make_env(ID, action_repeat=100, render_quality="fast")
    first.reset(seed=0)
    arguments = dict(action_repeat=100, render_quality="fast")
    with closing(make_vec_env(ID, env_kwargs=arguments, vec_env_kwargs={})) as env:
        assert env.reset().shape == (1, 100, 100, 3)
    first.close()


def test_vectorised_environments_are_seeded_by_their_split():
    gym.register("SeedTest-v0", lambda render_mode, split="train": SeedEnv())
    try:
        for split in ("train", "val"):
            env = make_vec_env("SeedTest-v0", seed=1, env_kwargs={"split": split})
            env.reset()
            assert env.get_attr("seeds") == [[first_seed(1, 0, split)]]
    finally:
        del gym.registry["SeedTest-v0"]
    seed_environments(env, 7, "val")
    env.reset()
    assert env.get_attr("seeds")[0][-1] == first_seed(7, 0, "val")


def test_an_id_with_its_package_imports_what_registers_it(tmp_path, monkeypatch):
    code = (
        "import gymnasium, tests.fakes\n"
        "def make(render_mode): return tests.fakes.FakeEnv()\n"
        "gymnasium.register('Registered-v0', make)\n"
    )
    (tmp_path / "registering.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="env must be the id of a registered environment"):
        make_env("Registered-v0")
    with pytest.raises(ValueError, match="No module named 'unregistering'"):
        make_env("unregistering:Registered-v0")
    try:
        assert isinstance(make_env("registering:Registered-v0").unwrapped, FakeEnv)
    finally:
        gym.registry.pop("Registered-v0", None)
        sys.modules.pop("registering", None)
