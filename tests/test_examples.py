"""Every example runs as it stands, here in a tiny form."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    from core_agent import CoRe, preset

    model = CoRe("CnnPolicy", make_dcs(), **preset("debug"))
    path = tmp_path_factory.mktemp("model") / "model.zip"
    model.save(path)
    return str(path)


def make_dcs():
    return gym.make(
        "distracting_envs:DCS-cartpole-swingup-easy-dynamic", image_size=64, render_quality="fast"
    )


@pytest.mark.usefixtures("short_episodes")
def test_swap_for_sac():
    assert 0 < load("swap_for_sac").main(total_timesteps=50, preset_name="debug") <= 200


def test_custom_environment():
    assert load("custom_environment").main(total_timesteps=550)._n_updates > 0


@pytest.mark.usefixtures("short_episodes")
def test_predict_loop():
    with pytest.warns(UserWarning, match="without a state"):
        with_state, without_state = load("predict_loop").main()
    assert 0 < without_state < with_state <= 200


def test_latent_rollout(tmp_path):
    path = tmp_path / "rewards.png"
    error = load("latent_rollout").main(total_timesteps=400, preset_name="debug", path=path)
    assert 0 < error < 20, "Pendulum's rewards lie in [-16.3, 0]"
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("short_episodes")
def test_evaluate_and_record(model_path, tmp_path):
    video = tmp_path / "episode.mp4"
    env_id = "DCS-cartpole-swingup-easy-dynamic"
    assert load("evaluate_and_record").main(model_path, env_id, 1, video) > 0
    assert video.stat().st_size > 5_000


def test_callback():
    callback = load("callback").main(600, "debug", threshold=1e9, every=100)
    assert callback.num_timesteps == 100
    assert 0 < callback.error < 1e9


def test_resume(tmp_path):
    changes = dict(learning_starts=100, update_ratio=0.05, batch_size=2)
    assert load("resume").main(tmp_path, 400, 310, **changes)


def test_every_example_is_run_here():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    examples = [path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert {path.stem for path in examples} <= tested


@pytest.mark.skipif(importlib.util.find_spec("nbclient") is None, reason="needs nbclient")
def test_quickstart(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    (parameters,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += (
        "\nenv_id, preset_name = 'DCS-cartpole-swingup-easy-dynamic', 'debug'"
        "\ntotal_timesteps = 50"
        "\nimport distracting_envs.env; distracting_envs.env.EPISODE_STEPS = 200"
    )
    root = str(EXAMPLES.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, f"{root}/envs"]))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(out.get("text", "") for cell in code for out in cell.outputs)
    assert "50 steps, 2 episodes" in printed
    assert "latents (26, " in printed and "imagined rewards (12,)" in printed
    shown = [kind for cell in code for out in cell.outputs for kind in out.get("data", {})]
    assert shown.count("image/png") == 2 and shown.count("image/gif") == 1
    assert (tmp_path / "cheetah.zip").is_file()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("rl_zoo3") is None, reason="needs rl_zoo3: pip install -e '.[zoo]'"
)
def test_rl_zoo(tmp_path, monkeypatch, capfd):
    root = str(EXAMPLES.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, f"{root}/envs"]))
    assert load("rl_zoo").main(tmp_path / "logs").exists()
    assert "Gym has been unmaintained" not in "".join(capfd.readouterr())
