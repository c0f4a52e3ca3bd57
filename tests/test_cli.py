"""The command line and the demo, on a real task in a tiny form."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import av
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

import core_agent
from core_agent import CoRe, QTOptDrQ, cli, doctor, load_agent
from core_agent.cli.pictures import plot
from core_agent.demo import run_demo
from core_agent.doctor import Finding
from core_agent.environments import suite
from core_agent.runs.settings import parse_settings, read_config
from core_agent.runs.training import Outcome
from core_agent.trained import trained_names
from core_agent.zoo import CONFIGS

pytestmark = pytest.mark.usefixtures("short_episodes")
runner = CliRunner()
CARTPOLE = "DCS-cartpole-swingup-easy-dynamic"
CLEAN = "DCS-cartpole-swingup-clean"


def run(*arguments: object) -> str:
    """What the command printed, which must succeed."""
    result = runner.invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory, short_episodes):
    folder = tmp_path_factory.mktemp("demo")
    sizes = dict(preset_name="debug", n_random=1, n_validation=1)
    summary = run_demo(folder, 0, 75, env_id=CARTPOLE, console=Console(quiet=True), **sizes)
    return folder, summary


def test_the_demo_leaves_all_that_it_promises(demo):
    folder, summary = demo
    assert CARTPOLE in trained_names()
    for video in ("trained_and_random.mp4", f"trained_{CARTPOLE}.mp4"):
        assert (folder / video).stat().st_size > 5_000
    assert (folder / "model.zip").stat().st_size > 10_000
    assert (folder / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))
    record = json.loads((folder / "summary.json").read_text())
    assert record["agent_steps"] == summary.agent_steps == 75
    assert len(record["episodes"]) == 3
    assert summary.updates == 3 * int(0.05 * 25)


def test_a_demo_without_time_for_an_episode_says_so(tmp_path):
    with pytest.raises(ValueError, match="time_limit must allow an episode"):
        run_demo(tmp_path, 0, 75, 1e-6, CLEAN, "debug", n_random=1, console=Console(quiet=True))


def test_evaluate_plays_a_saved_model_where_it_learned_or_elsewhere(demo):
    folder, summary = demo
    printed = run("evaluate", folder / "model", "--episodes", 1)
    assert "mean return" in printed and summary.env_id in printed
    for path, *changes in (
        (folder / "model.zip",),
        (folder, "--preset", "debug"),
        (folder, "--env-set", "image_size=64"),
    ):
        assert CLEAN in run("evaluate", path, CLEAN, "--episodes", 1, *changes)


def test_evaluate_prints_json_alone(demo):
    folder, summary = demo
    options = ("--episodes", 2, "--env-set", "action_repeat=100", "--json")
    found = json.loads(run("evaluate", folder, *options))
    assert (found["env_id"], found["split"], len(found["returns"])) == (summary.env_id, "val", 2)
    assert found["mean"] == pytest.approx(sum(found["returns"]) / 2)
    assert found["standard_error"] >= 0 and found["random_mean"] >= 0
    options = ("--episodes", 1, *options[2:])
    assert json.loads(run("evaluate", folder, *options))["standard_error"] is None


def test_the_version_is_the_packages():
    assert run("--version") == f"core-agent {core_agent.__version__}\n"


def test_a_model_is_loaded_with_the_environment_that_it_learned_in(demo, tmp_path):
    folder, summary = demo
    model = load_agent(folder, env="auto")
    assert model.get_env().get_attr("spec")[0].id == summary.env_id
    assert model.origin["preset"] == "debug" and model.origin["env_arguments"]["image_size"] == 64
    model.origin["env_id"] = "os:system"
    model.env = None
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="env must be given for a model that does not say which"):
        load_agent(tmp_path, env="auto")
    with pytest.raises(ValueError, match=r"env must be an environment.* or 'auto', got 'x'"):
        load_agent(tmp_path, env="x")


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_record_writes_a_video(demo, tmp_path, suffix):
    video = tmp_path / "new" / f"agent{suffix}"
    run("record", demo[0], "--output", video, "--env-set", "action_repeat=50")
    with av.open(str(video)) as container:
        assert len(list(container.decode(video=0))) == 5, "one frame, and one after each step"


def test_record_refuses_other_formats_before_it_plays():
    result = runner.invoke(cli.app, ["record", "missing.zip", "--output", "agent.avi"])
    assert "--output must end in one of ('.mp4', '.gif'), got 'agent.avi'" in str(result.exception)


def test_probe_reads_the_simulators_state(demo):
    printed = run("probe", demo[0], "--episodes", 2)
    assert "position[0]" in printed and "validation videos" in printed
    result = runner.invoke(cli.app, ["probe", str(demo[0]), "Pendulum-v1"])
    assert "env_id must be of the Distracting Control Suite" in str(result.exception)


def test_watch_shows_the_agent_of_a_run_next_to_its_clean_twin(demo, tmp_path):
    video = tmp_path / "watch.mp4"
    assert f"video: {video}" in run("watch", demo[0], "--output", video)
    with av.open(str(video)) as container:
        assert next(container.decode(video=0)).width == 2 * 320


def test_watch_lists_trained_agents_and_refuses_other_names():
    assert run("watch").split() == list(trained_names())
    result = runner.invoke(cli.app, ["watch", "DCS-nothing"])
    assert isinstance(result.exception, ValueError)
    assert "name must be one of" in str(result.exception)


def test_any_agent_is_trained_evaluated_and_recorded(tmp_path):
    settings = ("--preset", "debug", "--set", "n_stack=2", "--validate-every", 0)
    run("train", CLEAN, "--agent", "qtopt_drq", "--folder", tmp_path, "--steps", 60, *settings)
    model = load_agent(tmp_path / "model")
    assert isinstance(model, QTOptDrQ)
    assert (model.n_stack, model._n_updates) == (2, 2)  # after steps 40 and 60
    run("evaluate", tmp_path, "--episodes", 1)
    run("record", tmp_path, "--output", tmp_path / "v.mp4")


def test_an_ablation_is_a_preset_and_the_gate_is_shown(tmp_path):
    settings = ("--preset", "debug+core-gating", "--validate-every", 0)
    run("train", CLEAN, "--folder", tmp_path, "--steps", 10, *settings)
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    assert "gating/observation" in EventAccumulator(str(file)).Reload().Tags()["images"]


def test_train_takes_a_configuration_and_settings_on_top_and_continues_where_it_ended(tmp_path):
    config = tmp_path / "config.yml"
    config.write_text(
        f"{CLEAN}:\n"
        "  policy: CnnPolicy\n  n_timesteps: !!float 25\n  kl_coef: 0.25\n  gamma: 0.9\n"
        "  train_freq: [1, episode]\n"
    )
    command = ["train", CLEAN, "--preset", "debug", "--config", config, "--set", "gamma=0.5"]
    command += ["--folder", tmp_path, "--validate-every", 0]
    run(*command)
    model = CoRe.load(tmp_path / "model")
    assert (model.kl_coef, model.gamma, model.num_timesteps) == (0.25, 0.5, 25)
    refused = runner.invoke(cli.app, [*map(str, command), "--steps", "50"])
    assert "folder must hold no checkpoints" in str(refused.exception)
    run(*command, "--steps", 50, "--resume", "auto")
    assert CoRe.load(tmp_path / "model").num_timesteps == 50


@pytest.mark.parametrize(
    "env_id", ["DCS-cheetah-run-easy-static", "distracting_envs:DCS-walker-walk-clean"]
)
def test_the_packaged_configurations_can_be_read(env_id):
    arguments = read_config(CONFIGS / "core.yml", env_id)
    assert arguments["n_timesteps"] in (125_000, 250_000)
    assert arguments["train_freq"] == (1, "episode")


def test_settings_are_read_as_yaml_and_nest():
    settings = parse_settings(["a=1", "b.c=[1, 2]", "b.d=x", "e=null"], "--set")
    assert settings == {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": None}
    numbers = {"1e-3": 1e-3, "1.5e6": 1.5e6, "-.5E2": -50.0, "[2e-4]": [2e-4], "1e": "1e"}
    for text, value in numbers.items():
        assert parse_settings([f"a={text}"], "--set") == {"a": value}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", CLEAN, "--set", "kl_coef"],
            "must have the form key=value",
        ),
        (["train", CLEAN, "--env-set", "image_size"], "--env-set must have the form key=value"),
        (["train", CLEAN, "--set", "x={"], "--set must be valid YAML, got 'x={'"),
        (
            ["train", CLEAN, "--set", "a=1", "--set", "a.b=2"],
            "--set must have a dict before each dot, got 'a.b=2'; a is 1",
        ),
        (["train", CLEAN, "--set", "n_timesteps=x"], "n_timesteps must be a number >= 1, got 'x'"),
        (["train", "No-such-v0"], "env must be the id of a registered environment"),
        (["train", "Pendulum-v1", "--preset", "tiny"], "preset must be one of"),
        (["train", "Pendulum-v1", "--agent", "dreamer"], "agent must be one of"),
        (
            ["train", "Pendulum-v1", "--agent", "curl", "--preset", "core-fwd"],
            "preset must be one for 'curl'",
        ),
        (["train", "Pendulum-v1", "--set", "gamma=2", "--preset", "debug"], "gamma must lie in"),
        (["train", "Pendulum-v1", "--set", "gama=0.9"], "gama"),
        (["train", "Pendulum-v1", "--config", "missing.yml"], "--config must be a YAML file"),
        (["train", "No-v1", "--config", str(CONFIGS / "core.yml")], "must have an entry for No-v1"),
        (
            ["evaluate", "missing.zip", "Pendulum-v1"],
            "path must be a saved model or the folder of a run",
        ),
        (["train", CLEAN, "--set", "seed=4"], "arguments must not set policy, env, seed or"),
        (["train", "Pendulum-v1", "--preset", "debug", "--folder", __file__], "File exists"),
        (["record", "missing.zip", "--output", f"{__file__}/a.mp4"], "File exists"),
        (["benchmark", __file__, "--status"], "folder must be a folder, got"),
    ],
)
def test_a_mistake_of_the_users_is_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["core-agent", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_window_without_pygame_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setitem(sys.modules, "pygame", None)
    monkeypatch.setattr("sys.argv", ["core-agent", "watch", CARTPOLE, "--window"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 2
    assert "pip install pygame" in capsys.readouterr().err


def test_plot_draws_what_was_logged_and_names_the_tags_there_are(demo, tmp_path):
    folder, _ = demo
    picture = tmp_path / "curves.png"
    run("plot", folder, "--output", picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    expected = r"tag must be one of \[.*'train/model_loss'.*, got 'nothing'"
    with pytest.raises(ValueError, match=expected):
        plot([folder], tag="nothing")
    with pytest.raises(ValueError, match="runs must be folders with TensorBoard logs"):
        plot([folder / "model.zip"])


def test_doctor_finds_this_machine_healthy():
    printed = run("doctor")
    for subject in ("Python", "torch", "OpenGL, egl", "GPU", "precision", "videos"):
        assert subject in printed


def test_doctor_prints_json_alone(monkeypatch):
    findings = [Finding("GPU", True, "none"), Finding("videos", False, "missing", "unset it")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings))
    result = runner.invoke(cli.app, ["doctor", "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["healthy"] and found["findings"][1]["remedy"] == "unset it"


def test_gallery_and_videos_are_commands_like_the_others(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(suite, "draw_gallery", lambda *arguments: asked.append(arguments))
    run("gallery", "--picture", "a.png", "--video", "b.gif", "--difficulty", "hard")
    assert asked == [(Path("a.png"), Path("b.gif"), "hard", None, 1)]
    monkeypatch.setattr(suite, "download_videos", lambda folder: folder / "DAVIS")
    printed = run("videos", "download", "--folder", tmp_path)
    assert f"DCS_VIDEOS={tmp_path / 'DAVIS'}" in printed.replace("\n", "")


def test_a_download_that_fails_says_how_to_continue(tmp_path, monkeypatch):
    monkeypatch.setattr("distracting_envs.download.DAVIS_BYTES", 10**18)
    result = runner.invoke(cli.app, ["videos", "download", "--folder", str(tmp_path)])
    assert isinstance(result.exception, ValueError) and "GB free" in str(result.exception)


def test_doctor_says_what_to_type(monkeypatch):
    monkeypatch.setattr(doctor, "RENDER", "raise SystemExit('no libEGL')")
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    result = runner.invoke(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert "pip install no-such-package" in result.output
    assert "apt-get install -y libegl1" in result.output
    assert "no libEGL" in result.output


def test_a_training_that_a_signal_stopped_says_how_to_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "core_agent.runs.training.train_run", lambda *_, **__: Outcome(70, None, signal.SIGTERM)
    )
    monkeypatch.setattr("core_agent.table5.estimate.announce", lambda *_: "It takes long.")
    result = runner.invoke(cli.app, ["train", "DCS-reacher-easy-clean", "--folder", str(tmp_path)])
    assert result.exit_code == 128 + 15
    assert "It takes long." in result.output
    assert "Stopped by SIGTERM at step 70; the same command with --resume auto" in result.output
