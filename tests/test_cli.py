"""The command line and the demo, on a real task in a tiny form."""

from __future__ import annotations

import json
import signal
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

runner = CliRunner()
CARTPOLE = "DCS-cartpole-swingup-easy-dynamic"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    console = Console(record=True, width=120, quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        # One of them is enough here.
        patch.setattr("core_agent.demo.trained_names", lambda: (CARTPOLE,))
        summary = run_demo(
            folder,
            total_timesteps=375,
            env_id=CARTPOLE,
            preset_name="debug",
            n_random=1,
            n_validation=1,
            console=console,
        )
    return folder, summary


def test_the_demo_leaves_all_that_it_promises(demo):
    folder, summary = demo
    assert (folder / "model.zip").stat().st_size > 10_000
    assert (folder / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "trained_and_random.mp4").stat().st_size > 10_000
    assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))
    record = json.loads((folder / "summary.json").read_text())
    assert record["agent_steps"] == summary.agent_steps == 375
    assert len(record["episodes"]) == 3
    assert summary.updates == 3 * int(0.05 * 125)


def test_the_demo_shows_the_trained_agents_of_the_package(demo):
    folder, _ = demo
    assert CARTPOLE in trained_names()
    assert (folder / f"trained_{CARTPOLE}.mp4").stat().st_size > 10_000


def test_evaluate_plays_a_saved_model(demo):
    folder, summary = demo
    for path in (folder, folder / "model", folder / "model.zip"):
        result = runner.invoke(cli.app, ["evaluate", str(path), "--episodes", "1"])
        assert result.exit_code == 0, result.output
        assert "mean return" in result.output and summary.env_id in result.output


def test_evaluate_prints_json_alone(demo):
    folder, summary = demo
    arguments = ["evaluate", str(folder), "--episodes", "2", "--env-set", "action_repeat=100"]
    result = runner.invoke(cli.app, [*arguments, "--json"])
    found = json.loads(result.stdout)
    assert (found["env_id"], found["split"], len(found["returns"])) == (summary.env_id, "val", 2)
    assert found["mean"] == pytest.approx(sum(found["returns"]) / 2)
    assert found["standard_error"] >= 0 and found["random_mean"] >= 0


def test_the_version_is_the_packages():
    result = runner.invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"core-agent {core_agent.__version__}\n")


def test_the_environment_of_a_model_is_overridden(demo):
    folder, _ = demo
    other, changed = "DCS-cartpole-swingup-clean", ["--env-set", "image_size=64"]
    for more in ([], ["--preset", "debug"], changed):
        result = runner.invoke(cli.app, ["evaluate", str(folder), other, "--episodes", "1", *more])
        assert result.exit_code == 0, result.output
        assert other in result.output


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
    folder, _ = demo
    video = tmp_path / "new" / f"agent{suffix}"
    shorter = ["--env-set", "action_repeat=100"]
    result = runner.invoke(cli.app, ["record", str(folder), "--output", str(video), *shorter])
    assert result.exit_code == 0, result.output
    with av.open(str(video)) as container:
        assert len(list(container.decode(video=0))) == 11, "one frame, and one after each step"


def test_record_refuses_other_formats_before_it_plays():
    result = runner.invoke(cli.app, ["record", "missing.zip", "--output", "agent.avi"])
    assert "--output must end in one of ('.mp4', '.gif'), got 'agent.avi'" in str(result.exception)


def test_probe_reads_the_simulators_state(demo):
    folder, _ = demo
    result = runner.invoke(cli.app, ["probe", str(folder), "--episodes", "2"])
    assert result.exit_code == 0, result.output
    assert "position[0]" in result.output and "validation videos" in result.output


def test_watch_shows_the_agent_of_a_run_next_to_its_clean_twin(demo, tmp_path):
    folder, _ = demo
    video = tmp_path / "watch.gif"
    result = runner.invoke(cli.app, ["watch", str(folder), "--output", str(video)])
    assert result.exit_code == 0, result.output
    assert f"video: {video}" in result.output
    with av.open(str(video)) as container:
        assert next(container.decode(video=0)).width == 2 * 320


def test_watch_lists_trained_agents_and_refuses_other_names():
    result = runner.invoke(cli.app, ["watch"])
    assert result.exit_code == 0
    assert "trained agent" in result.output or "DCS-" in result.output
    result = runner.invoke(cli.app, ["watch", "DCS-nothing"])
    assert isinstance(result.exception, ValueError) and "name must be one of" in str(
        result.exception
    )


def test_train_leaves_a_model_that_loads(tmp_path):
    arguments = ["train", "DCS-cartpole-swingup-clean", "--preset", "debug", "--steps", "125"]
    more = ["--folder", str(tmp_path), "--set", "kl_coef=0.5", "--validate-every", "0"]
    result = runner.invoke(cli.app, [*arguments, *more])
    assert result.exit_code == 0, result.output
    assert CoRe.load(tmp_path / "model").kl_coef == 0.5


def test_any_agent_is_trained_evaluated_and_recorded(tmp_path):
    env_id, size = "DCS-cartpole-swingup-clean", ["--preset", "debug"]
    arguments = ["train", env_id, "--agent", "qtopt_drq", *size, "--steps", "60"]
    folder = ["--folder", str(tmp_path), "--validate-every", "0", "--set", "n_stack=2"]
    result = runner.invoke(cli.app, [*arguments, *folder])
    assert result.exit_code == 0, result.output
    model = load_agent(tmp_path / "model")
    assert isinstance(model, QTOptDrQ)
    assert (model.n_stack, model._n_updates) == (2, 2)  # after steps 40 and 60
    for command in (
        ["evaluate", "--episodes", "1"],
        ["record", "--output", str(tmp_path / "v.mp4")],
    ):
        name, *options = command
        result = runner.invoke(cli.app, [name, str(tmp_path), *options])
        assert result.exit_code == 0, result.output


def test_an_ablation_is_a_preset_and_the_gate_is_shown(tmp_path):
    arguments = ["train", "DCS-cartpole-swingup-clean", "--preset", "debug+core-gating"]
    more = ["--folder", str(tmp_path), "--steps", "10", "--validate-every", "0"]
    result = runner.invoke(cli.app, [*arguments, *more])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    assert "gating/observation" in EventAccumulator(str(file)).Reload().Tags()["images"]


def test_train_takes_a_configuration_and_settings_on_top(tmp_path):
    config = tmp_path / "config.yml"
    config.write_text(
        "DCS-cartpole-swingup-clean:\n"
        "  policy: CnnPolicy\n  n_timesteps: 125\n  kl_coef: 0.25\n  gamma: 0.9\n"
        "  train_freq: [1, episode]\n"
    )
    arguments = ["train", "DCS-cartpole-swingup-clean", "--preset", "debug", "--config"]
    more = ["--folder", str(tmp_path), "--set", "gamma=0.5", "--validate-every", "0"]
    result = runner.invoke(cli.app, [*arguments, str(config), *more])
    assert result.exit_code == 0, result.output
    model = CoRe.load(tmp_path / "model")
    assert (model.kl_coef, model.gamma, model.num_timesteps) == (0.25, 0.5, 125)


@pytest.mark.parametrize("env_id", ["DCS-cheetah-run-easy-static", "DCS-walker-walk-clean"])
def test_the_packaged_configurations_can_be_read(env_id):
    arguments = read_config(CONFIGS / "core.yml", env_id)
    assert arguments["n_timesteps"] in (125_000, 250_000)
    assert arguments["train_freq"] == (1, "episode")


def test_settings_are_read_as_yaml_and_nest():
    settings = parse_settings(["a=1", "b.c=[1, 2]", "b.d=x", "e=null"])
    assert settings == {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "DCS-cartpole-swingup-clean", "--set", "kl_coef"],
            "must have the form key=value",
        ),
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


def test_plot_draws_what_was_logged(demo, tmp_path):
    folder, _ = demo
    picture = tmp_path / "curves.png"
    result = runner.invoke(cli.app, ["plot", str(folder), "--output", str(picture)])
    assert result.exit_code == 0, result.output
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_plot_names_the_tags_there_are(demo):
    folder, _ = demo
    expected = r"tag must be one of \[.*'train/model_loss'.*, got 'nothing'"
    with pytest.raises(ValueError, match=expected):
        plot([folder], tag="nothing")
    with pytest.raises(ValueError, match="runs must be folders with TensorBoard logs"):
        plot([folder / "model.zip"])


def test_doctor_finds_this_machine_healthy():
    result = runner.invoke(cli.app, ["doctor"])
    assert result.exit_code == 0, result.output
    for subject in ("Python", "torch", "OpenGL, egl", "GPU", "precision", "videos"):
        assert subject in result.output


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
    command = ["gallery", "--picture", "a.png", "--video", "b.gif", "--difficulty", "hard"]
    result = runner.invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    assert asked == [(Path("a.png"), Path("b.gif"), "hard", None, 1)]
    monkeypatch.setattr(suite, "download_videos", lambda folder: folder / "DAVIS")
    result = runner.invoke(cli.app, ["videos", "download", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"DCS_VIDEOS={tmp_path / 'DAVIS'}" in result.output.replace("\n", "")


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


def test_a_training_that_a_signal_stopped_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "core_agent.runs.training.train_run", lambda *_, **__: Outcome(70, None, signal.SIGTERM)
    )
    monkeypatch.setattr("core_agent.table5.estimate.announce", lambda *_: "It takes long.")
    result = runner.invoke(cli.app, ["train", "DCS-reacher-easy-clean", "--folder", str(tmp_path)])
    assert result.exit_code == 128 + 15
    assert "It takes long." in result.output
    assert "Stopped by SIGTERM at step 70; the same command with --resume auto" in result.output


def test_train_goes_on_where_it_ended(tmp_path):
    command = ["train", "DCS-cartpole-swingup-clean", "--preset", "debug", "--folder"]
    command += [str(tmp_path), "--validate-every", "0", "--env-set", "action_repeat=100"]
    assert runner.invoke(cli.app, [*command, "--steps", "30"]).exit_code == 0
    refused = runner.invoke(cli.app, [*command, "--steps", "60"])
    assert "folder must hold no checkpoints" in str(refused.exception)
    result = runner.invoke(cli.app, [*command, "--steps", "60", "--resume", "auto"])
    assert result.exit_code == 0, result.output
    assert CoRe.load(tmp_path / "model").num_timesteps == 60
