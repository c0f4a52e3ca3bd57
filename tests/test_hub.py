"""Models on the Hub, which here is in memory: nothing goes over the network."""

from __future__ import annotations

import io
import json
import runpy
import sys

import av
import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import core_agent.hub
from core_agent import CoRe
from core_agent.hub import interval, load_from_hub, push_to_hub
from core_agent.saving.safe_loading import UnsafeFileError
from tests.fake_hub import TOKEN, hub  # noqa: F401  (a fixture)
from tests.fakes import IMAGE, TINY, VECTOR, FakeEnv
from tests.saving.attacks import set_object, touch

REPO = "somebody/agent"


@pytest.fixture(scope="module")
def env_id():
    gym.register(
        "Fake-v0", lambda render_mode: FakeEnv(), disable_env_checker=True, order_enforce=False
    )
    yield "Fake-v0"
    del gym.registry["Fake-v0"]


@pytest.fixture(scope="module")
def model(env_id):
    """An agent of some steps."""
    return CoRe("CnnPolicy", gym.make(env_id, render_mode="rgb_array"), **TINY).learn(14)


@pytest.fixture
def pushed(hub, model):  # noqa: F811
    """The files of a repository to which the agent was pushed."""
    address = push_to_hub(model, REPO, n_episodes=3, seed=5, licence="mit")
    assert address == f"https://hub/{REPO}/commit/CoRe, evaluated"
    return hub.repos[REPO]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("builtin", "builtin"),
        ("/a/DAVIS/JPEGImages/480p", "DAVIS"),
        ("/a/own", "own"),
        ("/a/own/JPEGImages/480p", "own"),
    ],
)
def test_the_videos_of_an_evaluation_are_named(model, folder, name):
    env = FakeEnv()
    env.video_folder = folder
    assert core_agent.hub.evaluate(model, env, 1, 0).videos == name


def test_a_repository_holds_model_card_results_configuration_and_video(pushed):
    assert set(pushed) == {"README.md", "config.json", "model.zip", "replay.mp4", "results.json"}
    config, results = json.loads(pushed["config.json"]), json.loads(pushed["results.json"])
    assert config["agent"] == "CoRe"
    assert config["env_id"] == results["env_id"] == "Fake-v0"
    assert config["agent_steps"] == 14
    assert config["arguments"]["sequence_length"] == TINY["sequence_length"]
    assert "tensorboard_log" not in config["arguments"], "a path of the machine"
    assert len(results["returns"]) == len(results["random_returns"]) == 3
    assert results["interval"]["mean"] == pytest.approx(np.mean(results["returns"]))
    with av.open(io.BytesIO(pushed["replay.mp4"])) as video:
        frames = list(video.decode(video=0))
    assert len(frames) == 7  # the first observation and six steps
    assert (frames[0].height, frames[0].width) == (16, 16)


def test_the_card_tells_the_hub_and_people_what_the_agent_returns(pushed):
    _, front_matter, text = pushed["README.md"].decode().split("---\n", 2)
    metadata, results = yaml.safe_load(front_matter), json.loads(pushed["results.json"])
    assert metadata["license"] == "mit"
    assert metadata["pipeline_tag"] == "reinforcement-learning"
    assert {"core", "stable-baselines3", "Fake-v0"} <= set(metadata["tags"])
    shown = "{mean:.1f} ({low:.1f} to {high:.1f})".format(**results["interval"])
    (entry,) = metadata["model-index"]
    assert entry["name"] == "agent"
    assert entry["results"][0]["metrics"][0]["value"] == shown
    assert f"| this agent | {shown} |" in text
    assert "95% interval" in text and "over 3 episodes" in text
    assert f'load_from_hub("{REPO}")' in text


def test_a_loaded_agent_acts_as_the_pushed_one(pushed, model):
    loaded = load_from_hub(REPO, env="auto")
    assert loaded.env is not None
    assert loaded.num_timesteps == 14
    frames = np.random.default_rng(0).integers(0, 256, (3, *IMAGE.shape), dtype=np.uint8)
    for ours, theirs in zip(
        model.predict(frames, deterministic=True)[1],
        loaded.predict(frames, deterministic=True)[1],
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_pushing_again_replaces_the_files(hub, pushed, model):  # noqa: F811
    before = pushed["results.json"]
    push_to_hub(model, REPO, FakeEnv(length=3), n_episodes=2, token=TOKEN)
    assert hub.repos[REPO]["results.json"] != before
    assert json.loads(hub.repos[REPO]["results.json"])["env_id"] == "FakeEnv"


def test_a_file_that_runs_code_is_refused(hub, pushed, tmp_path):  # noqa: F811
    (tmp_path / "model.zip").write_bytes(pushed["model.zip"])
    set_object(tmp_path, "gamma", touch(tmp_path))
    pushed["model.zip"] = (tmp_path / "model.zip").read_bytes()
    with pytest.raises(UnsafeFileError):
        load_from_hub(REPO)
    assert not (tmp_path / "proof").exists()


def test_without_permission_no_episode_is_played(hub, model):  # noqa: F811
    env = FakeEnv()
    with pytest.raises(PermissionError, match="401"):
        push_to_hub(model, REPO, env, token="hf_wrong")
    assert not hub.repos
    assert not env.actions


def test_what_cannot_be_shared_is_refused_before_a_call(hub, model, env_id):  # noqa: F811
    vectors = DummyVecEnv([lambda: FakeEnv(VECTOR)])
    normalized = CoRe("MlpPolicy", VecNormalize(vectors), **TINY)
    unknown = CoRe("CnnPolicy", FakeEnv(), **TINY)
    for rule, arguments in {
        "model must be an agent of this package": ("model", REPO),
        "repo must be the owner and the name": (model, "agent"),
        "env must be an environment, an id or None": (model, REPO, vectors),
        "n_episodes must be a whole number >= 2": (model, REPO, env_id, 1),
        "VecNormalize": (normalized, REPO),
        "env must be given for a model that does not say": (unknown, REPO),
        "Observation spaces do not match": (model, REPO, FakeEnv(VECTOR)),
    }.items():
        with pytest.raises(ValueError, match=rule):
            push_to_hub(*arguments)
    with pytest.raises(ValueError, match="repo must be the owner and the name"):
        load_from_hub("agent")
    assert not hub.calls


def test_the_interval_is_students(env_id):
    # t(0.975, 2 degrees of freedom) = 4.3027; the standard error of 1, 2, 3 is 1 / sqrt(3).
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_a_missing_hub_says_how_to_get_it(monkeypatch, model):
    # Importing the module does not need it: it is imported by name, when it is used.
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'core-agent\[hub\]'"):
        push_to_hub(model, REPO)
    assert runpy.run_path(core_agent.hub.__file__)["push_to_hub"]
