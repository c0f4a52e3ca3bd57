"""Each benchmark runs, and its figures hold together."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import agents_update
import clip_statistics
import collect
import learning_curves
import measuring
import memory
import numpy as np
import pendulum_without_velocity
import pytest
import scaling
import throughput
import torch
import update
import yaml

from core_agent.agents import AGENTS
from core_agent.types import Rollout
from core_agent.zoo import CONFIGS


def values(rollout: Rollout) -> list[torch.Tensor]:
    return [rollout.deter, *rollout.posterior, rollout.stoch]


@pytest.fixture(scope="module")
def model():
    return measuring.made_up_model("debug", "cpu", precision="float32")


@pytest.mark.parametrize("change", [update.use_autograd_loop, update.use_nothing_hoisted])
def test_taking_an_optimisation_back_leaves_the_latents_as_they_are(model, change):
    rssm = model.policy.world_model.rssm
    torch.manual_seed(0)
    embed, actions = torch.randn(4, 2, 128), torch.rand(3, 2, 6)
    noise = torch.randn(4, 2, rssm.stoch_dim)
    before = values(rssm.observe(embed, actions, noise))
    changed = measuring.made_up_model("debug", "cpu", precision="float32")
    changed.policy.load_state_dict(model.policy.state_dict())
    change(changed)
    after = values(changed.policy.world_model.rssm.observe(embed, actions, noise))
    for first, second in zip(before, after):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_separate_critics_give_the_same_values(model):
    states, actions = torch.randn(5, 160), torch.rand(5, 6)
    before = model.policy.critic(states, actions)
    changed = measuring.made_up_model("debug", "cpu", precision="float32")
    changed.policy.load_state_dict(model.policy.state_dict())
    update.use_separate_critics(changed)
    torch.testing.assert_close(changed.policy.critic(states, actions), before)


@pytest.mark.parametrize("name", list(update.VARIANTS))
def test_every_variant_makes_updates(name):
    settings = update.Settings("debug", "cpu", None, True, 1)
    run = update.make_runner(name, settings)
    assert min(update.timed(run, 1, "cpu")) > 0


def test_profile_tells_the_operators_of_an_update():
    run = update.make_runner(update.OURS, update.Settings("debug", "cpu", None, True, 0))
    names = [name for name, *_ in update.profile(run, 1, "cpu")]
    assert "aten::convolution_backward" in names


def test_update_compares_with_the_yardstick(tmp_path, capsys):
    path = tmp_path / "update.json"
    options = ["--sizes", "debug", "--repetitions", "2", "--updates", "1", "--warmup", "0"]
    arguments = [*options, "--device", "cpu", "--only", "ours, plain Adam", "--json", str(path)]
    assert update.main(arguments) == 0
    rows = json.loads(path.read_text())["sizes"]["debug"]["rows"]
    expected = {"yardstick", "yardstick, tuned allocator", "ours", "ours, plain allocator"}
    assert set(rows) == {*expected, "ours, plain Adam"}
    for row in rows.values():
        assert len(row["seconds"]) == row["n"] == 2
        assert 0 < row["minimum"] <= row["median"] <= row["maximum"]
    assert "speed / yardstick" in capsys.readouterr().out


def test_stopwatch_counts_what_it_watches():
    class Thing:
        def double(self, x):
            return 2 * x

    thing, watch = Thing(), throughput.Stopwatch("cpu")
    watch.watch(thing, "double", "part")
    assert thing.double(3) == 6
    assert watch.calls["part"] == 1 and watch.seconds["part"] > 0


@pytest.mark.parametrize("collect", ["sequential", "async"])
def test_throughput_shares_add_up(collect):
    options = argparse.Namespace(
        preset="debug",
        difficulty="easy",
        static=True,
        steps=100,
        device="cpu",
        threads=None,
        collect=collect,
        n_envs=1,
    )
    row = throughput.measure("cartpole-swingup", options)
    assert sum(row["shares"].values()) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in row["shares"].values())
    assert row["simulator_steps"] == 8 * row["agent_steps"] == 1000
    assert row["updates"] == int(0.05 * row["agent_steps"])
    assert 0.1 < row["peak_rss_gb"] < 50
    throughput.print_table([row])


def test_scaling_measures_batches_lengths_and_environments(tmp_path, monkeypatch, capsys):
    class Env(measuring.MadeUpEnv):
        action_repeat = 4

    monkeypatch.setattr(scaling, "make_env", lambda *args, **kwargs: Env(64))
    path = tmp_path / "scaling.json"
    sizes = ["--batches", "2", "3", "--lengths", "3", "--envs", "1", "2", "--kinds", "dummy"]
    few = ["--repetitions", "1", "--updates", "1", "--warmup", "0", "--collect-steps", "3"]
    arguments = ["--preset", "debug", "--device", "cpu", *sizes, *few, "--json", str(path)]
    assert scaling.main(arguments) == 0
    figures = json.loads(path.read_text())
    assert [row["batch_size"] for row in figures["batch"]] == [2, 3]
    assert [row["sequence_length"] for row in figures["length"]] == [3]
    assert [row["n_envs"] for row in figures["environments"]] == [1, 2]
    assert all(row["agent_steps_per_second"] > 0 for row in figures["environments"])
    assert "agent steps/s" in capsys.readouterr().out


def test_memory_counts_each_frame_once(tmp_path):
    path = tmp_path / "memory.json"
    options = ["--preset", "debug", "--steps", "1000", "--updates", "1", "--json", str(path)]
    # In a process of its own: this one holds memory that others have freed.
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), f"{root}/envs"])}
    command = [sys.executable, memory.__file__, *options]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "peak of the process" in said.stdout
    figures = json.loads(path.read_text())
    last = figures["readings"][-1]
    assert last["steps"] == 1000
    # Each episode of 125 steps has 126 frames.
    assert last["frames"] == pytest.approx(8 * 126 * 64 * 64 * 3 / 1e9)
    assert last["frames"] < last["resident"] < figures["peak"]


def test_the_zoo_trains_the_pendulum_as_the_benchmark_does():
    config = yaml.safe_load((CONFIGS / "recurrent_sac.yml").read_text())["PendulumNoVel-v1"]
    ours = dict(pendulum_without_velocity.RECURRENT)
    schedule = ours.pop("learning_rate")
    assert config["learning_rate"] == f"lin_{schedule(1.0)}"
    assert (schedule(0.5), schedule(0.0)) == (0.00015, 0.0)
    sizes = {
        key: value if isinstance(value, int) else tuple(value)
        for key, value in config["policy_kwargs"].items()
    }
    assert sizes == ours.pop("policy_kwargs")
    assert {key: config[key] for key in ours} == ours


def test_spread_of_known_values():
    spread = measuring.Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert spread == (3.0, 2.0, 4.0, 1.0, 5.0, 5)
    assert math.isclose(float(spread.milliseconds().split()[0]), 3000.0)


def test_updates_of_all_agents_are_timed_side_by_side(tmp_path, capsys):
    path = tmp_path / "agents.json"
    few = ["--repetitions", "2", "--updates", "2", "--preset", "debug", "--device", "cpu"]
    assert agents_update.main([*few, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["agents"]
    assert list(rows) == list(AGENTS)
    for row in rows.values():
        assert len(row["seconds"]) == len(row["cpu_seconds"]) == row["n"] == 2
        assert 0 < row["minimum"] <= row["median"] <= row["maximum"]
    assert "updates/s" in capsys.readouterr().out


def test_learning_curves_are_measured_and_drawn(tmp_path, capsys):
    path, picture = tmp_path / "new" / "curves.json", tmp_path / "curves.png"
    options = ["--agents", "core", "curl", "--preset", "debug", "--steps", "100"]
    few = ["--seeds", "0", "1", "--episodes", "1", "--learning-starts", "50"]
    outputs = ["--json", str(path), "--output", str(picture)]
    assert learning_curves.main([*options, *few, *outputs]) == 0
    figures = json.loads(path.read_text())
    assert list(figures["agents"]) == ["core", "curl"]
    for runs in figures["agents"].values():
        assert [run["agent_steps"] for run in runs.values()] == [100, 100]
        assert all(len(run["episodes"]) == 2 and run["updates"] > 0 for run in runs.values())
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "random actions on dots" in capsys.readouterr().out


def test_collecting_in_turn_and_at_once_are_compared(tmp_path, capsys):
    path = tmp_path / "collect.json"
    few = ["--preset", "debug", "--steps", "100", "--seeds", "0", "--episodes", "1"]
    options = ["--learning-starts", "50", "--device", "cpu", "--json", str(path)]
    assert collect.main([*few, *options]) == 0
    runs = json.loads(path.read_text())["runs"]
    assert [run["collect"] for run in runs] == ["sequential", "async"]
    assert runs[0]["updates"] == runs[1]["updates"] > 0
    assert runs[0]["agent_steps"] == runs[1]["agent_steps"] == 100
    assert "steps/s" in capsys.readouterr().out


def test_curves_are_means_over_runs_as_far_as_all_went():
    runs = [
        {"episodes": [(50, 1.0, 10.0), (100, 2.0, 20.0), (150, 3.0, 30.0)]},
        {"episodes": [(50, 1.0, 0.0), (100, 2.0, 0.0)]},
    ]
    assert learning_curves.mean_curve(runs) == ([50, 100], [5.0, 7.5])


def test_the_dots_are_paid_for_nearness():
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
