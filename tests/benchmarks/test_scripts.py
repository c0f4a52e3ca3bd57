"""Each benchmark runs, and its figures are consistent."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import clip_statistics
import gpu
import learning_curves
import measuring
import memory
import numpy as np
import offline_probe
import pytest
import throughput
import torch
import trained_agent
import update
import vectors

from core_agent import trained
from core_agent.agents.registry import load_agent
from core_agent.runs.training import Run, train_run


@pytest.mark.parametrize("name", [*update.VARIANTS, *update.OTHER_AGENTS])
def test_every_variant_makes_updates(name):
    settings = update.Settings("debug", "cpu", None, True, 1)
    run = update.make_runner(name, settings)
    assert min(update.timed(run, 2, "cpu")) > 0


@pytest.mark.slow
def test_update_compares_with_the_yardstick(tmp_path, capsys):
    path = tmp_path / "update.json"
    options = ["--sizes", "debug", "--repetitions", "2", "--updates", "1", "--warmup", "0"]
    only = ["--only", "ours, precision float32", "curl"]
    arguments = [*options, "--device", "cpu", *only, "--json", str(path)]
    assert update.main(arguments) == 0
    rows = json.loads(path.read_text())["sizes"]["debug"]["rows"]
    expected = {"yardstick", "yardstick, tuned allocator", "ours", "ours, plain allocator"}
    assert set(rows) == {*expected, *only[1:]}
    for row in rows.values():
        assert len(row["seconds"]) == row["n"] == 2
        assert 0 < row["minimum"] <= row["median"] <= row["maximum"]
    assert "speed / yardstick" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("collect", "episode_steps"),
    [("sequential", 200), pytest.param("async", 1000, marks=pytest.mark.slow)],
)
def test_throughput_counts_steps_and_updates(collect, episode_steps, monkeypatch):
    # A worker's episodes are complete ones.
    monkeypatch.setattr("distracting_envs.env.EPISODE_STEPS", episode_steps)
    monkeypatch.setattr(throughput, "EPISODE_SIMULATOR_STEPS", episode_steps)
    options = argparse.Namespace(
        preset="debug",
        steps=100,
        device="cpu",
        threads=None,
        collect=collect,
        n_envs=1,
    )
    row = throughput.measure("cartpole-swingup", options)
    assert row["simulator_steps_per_second"] * row["seconds"] == pytest.approx(episode_steps)
    assert row["simulator_steps"] == 8 * row["agent_steps"] == episode_steps
    assert row["updates"] == int(0.05 * row["agent_steps"])
    assert 0.1 < row["peak_rss_gb"] < 50
    throughput.print_table([row])


@pytest.mark.slow
def test_memory_counts_each_frame_once(tmp_path):
    path = tmp_path / "memory.json"
    options = ["--preset", "debug", "--steps", "1000", "--updates", "1", "--json", str(path)]
    # In its own process: this one has memory that other tests have freed.
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), f"{root}/envs"])}
    command = [sys.executable, memory.__file__, *options]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "peak" in said.stdout
    figures = json.loads(path.read_text())
    assert figures["agent steps"] == 1000
    # Each episode of 125 steps has 126 frames.
    assert figures["frames"] == pytest.approx(8 * 126 * 64 * 64 * 3 / 1e9)
    assert figures["frames"] < figures["resident"] < figures["peak"]


@pytest.mark.slow
def test_vectors_compares_with_the_sac_of_stable_baselines3(tmp_path, capsys):
    path = tmp_path / "vectors.json"
    assert vectors.main(["--repetitions", "1", "--updates", "1", "--json", str(path)]) == 0
    assert "times SAC" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert list(rows) == ["SAC", "core, vector", "recurrent_sac, vector", "core, small"]
    for row in rows.values():
        assert row["times SAC"] == pytest.approx(row["median"] / rows["SAC"]["median"])


def test_the_agent_of_a_run_is_written_with_its_card(tmp_path, monkeypatch, capsys):
    name, folder = "DCS-cartpole-swingup-easy-dynamic", tmp_path / "run"
    run = Run(name, preset="debug", env_arguments=dict(action_repeat=250, n_clips=1))
    train_run(run, folder, total_timesteps=24, validate_every=0, progress=False)
    arguments = [str(folder), "--output", str(tmp_path), "--episodes", "2", "--commit", "abc"]
    assert trained_agent.main(arguments) == 0
    assert "random" in capsys.readouterr().out
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    card = trained.read_card(name)
    assert (card.agent_steps, card.simulator_steps, card.commit) == (24, 6_000, "abc")
    assert len(card.returns) == 2 and card.random_return > 0
    written = trained.load_trained(name).policy.state_dict()
    for key, value in trained.acting_parameters(load_agent(folder)).items():
        assert torch.equal(written[key], value), key


def test_spread_of_known_values():
    spread = measuring.Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert spread == (3.0, 2.0, 4.0, 1.0, 5.0, 5)
    assert math.isclose(float(spread.milliseconds().split()[0]), 3000.0)


def test_learning_curves_are_written_and_drawn(tmp_path, capsys):
    path, picture = tmp_path / "new" / "curves.json", tmp_path / "curves.png"
    options = ["--agents", "core", "curl", "--preset", "debug", "--steps", "100"]
    few = ["--seeds", "0", "1", "--episodes", "1", "--learning-starts", "50", "--device", "cpu"]
    outputs = ["--json", str(path), "--output", str(picture)]
    assert learning_curves.main([*options, *few, *outputs]) == 0
    figures = json.loads(path.read_text())
    assert list(figures["agents"]) == ["core", "curl"]
    for runs in figures["agents"].values():
        assert [run["agent_steps"] for run in runs.values()] == [100, 100]
        assert all(len(run["episodes"]) == 2 and run["updates"] > 0 for run in runs.values())
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "random actions on dots" in capsys.readouterr().out


@pytest.mark.slow
def test_learning_curves_tell_what_bfloat16_changes(tmp_path, capsys):
    path = tmp_path / "curves.json"
    options = ["--agents", "core", "--preset", "debug", "--steps", "100", "--episodes", "1"]
    others = ["--seeds", "0", "--learning-starts", "50", "--compare-precisions"]
    outputs = ["--json", str(path), "--output", str(tmp_path / "curves.png")]
    assert learning_curves.main([*options, *others, "--collect", "async", *outputs]) == 0
    run = json.loads(path.read_text())["agents"]["core"]["0"]
    assert 0 < run["changed_q"] <= run["most_changed_q"] < 0.1
    assert f"Q {run['mean_q']:.2f}, bfloat16 changes it by" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        learning_curves.main(["--agents", "curl", "--compare-precisions"])


def test_the_pendulum_compares_with_the_sac_of_stable_baselines3(tmp_path):
    path = tmp_path / "curves.json"
    options = ["--env", "pendulum", "--agents", "recurrent_sac", "sb3_sac", "--steps", "200"]
    outputs = ["--json", str(path), "--output", str(tmp_path / "curves.png")]
    assert learning_curves.main([*options, "--seeds", "0", "--episodes", "1", *outputs]) == 0
    agents = json.loads(path.read_text())["agents"]
    assert {name: run["0"]["agent_steps"] for name, run in agents.items()} == {
        "recurrent_sac": 200,
        "sb3_sac": 200,
    }


def test_the_sac_of_stable_baselines3_sees_three_frames_and_unseen_videos():
    task = ("DCS-cheetah-run-easy-dynamic", "small", "sb3_sac")
    with closing(learning_curves.make_task(*task)) as training_env:
        in_training = training_env.reset(seed=0)[0]
    with closing(learning_curves.make_task(*task, split="val")) as env:
        first = env.reset(seed=0)[0]
        second = env.step(env.action_space.sample())[0]
    assert first.shape == env.observation_space.shape == (64, 64, 9)
    assert np.array_equal(second[..., 3:6], first[..., 6:])
    assert not np.array_equal(second[..., 6:], first[..., 6:])
    assert not np.array_equal(first, in_training)


def test_the_pendulum_has_the_arguments_of_its_configuration():
    options = argparse.Namespace(env="pendulum", preset="small", learning_starts=500)
    arguments = learning_curves.arguments_of("recurrent_sac", options)
    schedule = arguments["learning_rate"]
    assert (schedule(1.0), schedule(0.5), schedule(0.0)) == (0.0003, 0.00015, 0.0)
    assert (arguments["learning_starts"], arguments["update_ratio"]) == (1_000, 1.0)


def test_curves_are_means_over_runs_up_to_the_end_of_the_shortest():
    runs = [
        {"episodes": [(50, 1.0, 10.0), (100, 2.0, 20.0), (150, 3.0, 30.0)]},
        {"episodes": [(50, 1.0, 0.0), (100, 2.0, 0.0)]},
    ]
    assert learning_curves.mean_curve(runs) == ([50, 100], [5.0, 7.5])


def test_the_reward_of_the_dots_is_their_nearness():
    env = learning_curves.Dots()
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    env.place = np.array([-0.5, 0.0])
    observation, reward, *_ = env.step(np.array([1.0, 0.0]))
    assert reward == pytest.approx(1.0 - 0.3 / 2)  # 0.2 nearer on one of two axes
    assert (observation.reshape(-1, 3) == [255, 255, 255]).all(axis=1).sum() == 64
    for _ in range(49):
        _, reward, _, truncated, _ = env.step(-5 * env.place)
    assert reward == pytest.approx(1.0) and truncated


def test_clip_statistics_of_a_few_clips(capsys):
    clip_statistics.main(["--clips", "2", "--pairs", "2"])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["saturation", "gradient", "change"]
    values = np.array([row.split()[2:] for row in rows], float)
    assert values.shape == (5, 3)
    assert np.all((values > 0) & (values < 1))


def test_the_built_in_clips_resemble_natural_video():
    rows = [clip_statistics.clip_statistics("train", index, n_pairs=3) for index in range(6)]
    saturation, gradient, change = np.mean(rows, axis=0)
    assert 0.12 < saturation < 0.42
    assert 0.035 < gradient < 0.06
    assert 0.005 < change < 0.035


def test_gpu_compares_the_losses_and_measures_nothing_on_a_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--size", "debug", "--folder", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["difference"] == 0
    assert figures["tests"] == figures["training"] == gpu.NOT_MEASURED
    assert all(cell == gpu.NOT_MEASURED for row in figures["table"][1:] for cell in row[1:])
    assert gpu.NOT_MEASURED in capsys.readouterr().out


@pytest.mark.usefixtures("short_episodes")
def test_the_offline_probe_learns_from_the_episodes_that_it_recorded(tmp_path, capsys):
    path = tmp_path / "episodes.npz"
    few = ["--episodes", "4", "--held-out", "2", "--updates", "1", "2", "--preset", "debug"]
    offline_probe.main([*few, "--save", str(path)])
    first = capsys.readouterr().out.splitlines()
    assert first[0].endswith("position[0] | position[1] | position[2] | velocity[0] | velocity[1]")
    assert [row.split(" | ")[0] for row in first[1:]] == ["1", "1", "2", "2"]
    offline_probe.main([*few, "--load", str(path)])
    figures = [[row.split(" | ")[3:] for row in text[1:]] for text in (first, _lines(capsys))]
    assert figures[0] == figures[1]
    offline_probe.main([*few, "--load", str(path), "--set", "crop_size=64"])
    assert [row.split(" | ")[3:] for row in _lines(capsys)[1:]] != figures[0]


def _lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()
