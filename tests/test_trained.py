from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from core_agent import trained
from core_agent.agents.presets import preset
from core_agent.agents.registry import get_agent, load_agent
from core_agent.environments.suite import RenderingUnavailableError
from core_agent.runs.training import (
    Run,
    environment_arguments,
    make_environment,
    new_model,
    training_environments,
)
from core_agent.trained import (
    ModelCard,
    load_trained,
    read_card,
    save_trained,
    trained_names,
    watch,
    without_distractions,
)

NAME = "DCS-cartpole-swingup-easy-dynamic"
REPEAT = dict(action_repeat=250)


def make_card(**changes):
    fields = dict(
        env_id=NAME,
        agent="core",
        preset="debug",
        seed=0,
        agent_steps=10,
        simulator_steps=80,
        updates=5,
        returns=[1.0, 3.0],
        random_return=1.5,
        videos="builtin",
        processor="a processor",
        commit="abc",
        arguments={},
    )
    return ModelCard(**{**fields, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of the debug preset, saved as the one trained agent."""
    folder = tmp_path_factory.mktemp("trained")
    env = make_environment(NAME, "debug", "val", REPEAT)
    model = get_agent("core")("CnnPolicy", env, seed=1, **preset("debug"))
    save_trained(model, make_card(), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "FOLDER", folder)
        yield model
    env.close()


def test_a_loaded_agent_acts_as_the_saved_one_did_and_has_what_that_needs(saved):
    assert trained_names() == (NAME,)
    loaded = load_trained(NAME)
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    for one, other in zip(
        saved.predict(frames, deterministic=True)[1], loaded.predict(frames, deterministic=True)[1]
    ):
        np.testing.assert_array_equal(one, other)
    with np.load(trained.FOLDER / f"{NAME}.npz") as file:
        assert not any("critic" in name for name in file)


def test_a_loaded_agent_says_where_and_how_long_it_learned(saved, tmp_path):
    run = Run(NAME, preset="debug")
    with closing(training_environments(run)) as env:
        new_model(run, env, tmp_path).save(tmp_path / "model")
    loaded = load_trained(NAME)
    assert loaded.origin == load_agent(tmp_path / "model").origin
    assert (loaded.num_timesteps, loaded._n_updates) == (10, 5)


def test_a_card_is_read_as_it_was_written(saved):
    assert read_card(NAME) == make_card()
    assert "Return per episode of 1,000 simulator steps: 2 ± 1" in make_card().to_markdown()


def test_unknown_names_and_parameters_of_another_preset_are_refused(saved, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"name must be one of \('DCS-cartpole"):
        load_trained("DCS-cheetah-run-easy-dynamic")
    save_trained(saved, make_card(preset="small"), tmp_path)
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="hold the parameters of the card's preset"):
        load_trained(NAME)


def test_watching_in_a_window_needs_a_display(saved, tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RenderingUnavailableError, match="a window needs a display"):
        watch(NAME, tmp_path / "watch.mp4", window=True)


def test_only_a_distracting_environment_has_a_clean_twin():
    arguments = {"image_size": 64, "scale": 0.1}
    for env_id, clean in (
        (NAME, "DCS-cartpole-swingup-clean"),
        ("DCS-walker-walk-hard-static", "DCS-walker-walk-clean"),
    ):
        twin = without_distractions({"env_id": env_id, "env_arguments": arguments})
        assert twin == {"env_id": clean, "env_arguments": {"image_size": 64}}
    for env_id in ("Pendulum-v1", "DCS-cartpole-swingup-clean", "DCS-custom"):
        assert without_distractions({"env_id": env_id}) is None


def test_watching_writes_the_episode_next_to_its_clean_twin(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(
        trained,
        "environment_arguments",
        lambda *arguments: {**environment_arguments(*arguments), **REPEAT},
    )
    total = watch(NAME, tmp_path / "out" / "watch.mp4", seed=3)
    assert 0 <= total <= 1000
    assert (tmp_path / "out" / "watch.mp4").stat().st_size > 1000


PACKAGED = trained.FOLDER


def test_every_agent_in_the_package_is_small_and_has_a_card(monkeypatch):
    monkeypatch.setattr(trained, "FOLDER", PACKAGED)
    assert trained_names()
    for name in trained_names():
        assert (PACKAGED / f"{name}.npz").stat().st_size <= 4e6
        card = read_card(name)
        assert card.env_id == name
        assert len(card.returns) >= 20
