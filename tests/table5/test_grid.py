"""A grid of runs: each in its own folder, continued, never done twice."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from core_agent import CoRe, cli
from core_agent.cli.runs import say_how_they_ended
from core_agent.networks.hardware import auto_precision
from core_agent.runs.training import Run, locked, read_lines
from core_agent.table5 import grid as benchmark
from core_agent.table5.estimate import (
    Estimate,
    announce,
    draw_estimate,
    estimate_run,
    updates_per_step,
)
from core_agent.table5.grid import (
    Job,
    get_suite,
    read_status,
    run_job,
    take_shard,
    update_status,
)
from core_agent.table5.progress import draw_table, list_runs
from tests.fakes import TINY, FakeEnv

runner = CliRunner()
ENV_ID = "DCS-reacher-easy-easy-dynamic"
QUICK = dict(action_repeat=10)


@pytest.fixture(autouse=True, scope="module")
def _ten_agent_steps_an_episode():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distracting_envs.env.EPISODE_STEPS", 100)
        yield


def make_job(seed: int = 0, simulator_steps: int = 400, **arguments) -> Job:
    run = Run(ENV_ID, "core", "debug", seed, {"update_ratio": 0.1, **arguments}, QUICK)
    return Job(run, simulator_steps, evaluate_every=200, n_episodes=2, checkpoint_every=10)


def test_the_whole_table_has_36_settings_and_5_seeds_and_shards_are_its_parts():
    jobs = get_suite("all").jobs()
    assert len(jobs) == len({job.folder(Path()) for job in jobs}) == 180
    assert len({job.run.env_id for job in jobs}) == 36
    assert {(job.simulator_steps, job.n_episodes) for job in jobs} == {(500_000, 20)}
    shards = [take_shard(jobs, f"{i}/7") for i in range(1, 8)]
    assert sorted(repr(job) for shard in shards for job in shard) == sorted(map(repr, jobs))


def test_suites_are_parts_of_it_and_are_changed_field_by_field():
    sizes = [len(get_suite(name).jobs()) for name in ("easy", "medium", "hard", "smoke")]
    assert sizes == [60, 60, 60, 12]
    suite = get_suite("easy", agents=("core", "curl"), seeds=(7,), tasks=None)
    assert len(suite.jobs()) == 2 * 6 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(tasks=("swim",)), r"^tasks must be among .*got \['swim'\]"),
        (dict(difficulties=()), "^difficulties must hold at least one"),
        (dict(agents=("ppo",)), "^agent must be one of"),
        (dict(preset="huge"), "^preset must be one of"),
        (dict(preset="release", agents=("curl",)), "^preset must be one for 'curl'"),
        (dict(seeds=(-1,)), "^seeds must be a whole number >= 0"),
        (dict(n_episodes=0), "^n_episodes must be a whole number >= 1"),
    ],
)
def test_a_bad_suite_is_refused_before_anything_runs(changes, message):
    with pytest.raises(ValueError, match=message):
        get_suite("smoke", **changes)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3", "1/0", "-1/2"])
def test_a_bad_shard_is_refused(shard):
    with pytest.raises(ValueError, match="shard must have the form i/n"):
        take_shard([make_job()], shard)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    assert run_job(make_job(), root) == "finished"
    return root


def test_a_run_leaves_its_complete_record(finished):
    folder = make_job().folder(finished)
    assert folder == finished / "core" / ENV_ID / "seed-0"
    status = read_status(folder)
    assert (status["state"], status["attempts"], status["error"]) == ("finished", 1, None)
    assert status["agent_steps"] == 40 and status["simulator_steps"] == 400
    assert status["updates"] == 2, "one for each episode of ten steps after 20 random ones"
    assert status["precisions"] == [auto_precision(torch.device("cpu")).precision]
    evaluations = read_lines(folder / "evaluations.jsonl")
    assert [entry["simulator_steps"] for entry in evaluations] == [200, 400]
    assert all(len(entry["returns"]) == 2 for entry in evaluations)
    episodes = read_lines(folder / "episodes.jsonl")
    assert [entry["agent_steps"] for entry in episodes] == [10, 20, 30, 40]
    losses = read_lines(folder / "losses.jsonl")
    assert losses and np.isfinite(losses[0]["train/contrastive_loss"])
    assert (folder / "validation.mp4").stat().st_size > 1_000
    assert (folder / "model.zip").is_file() and (folder / "checkpoints").is_dir()
    run = json.loads((folder / "run.json").read_text())
    assert (run["agent"], run["videos"]) == ("core", "builtin")


def test_losses_are_means_between_episodes_however_short_the_rollouts_are(tmp_path):
    job = make_job(train_freq=(1, "step"), learning_starts=12, update_ratio=1.0)
    assert run_job(job, tmp_path) == "finished"
    losses = read_lines(job.folder(tmp_path) / "losses.jsonl")
    assert [entry["agent_steps"] for entry in losses] == [13, 20, 30]
    assert all(np.isfinite(entry["train/critic_loss"]) for entry in losses)


def test_a_finished_run_is_left_alone_and_can_be_made_longer(finished, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "train_run", None)
        assert run_job(make_job(), finished) == "finished"
    assert run_job(make_job(seed=9, simulator_steps=200), finished) == "finished"
    assert run_job(make_job(seed=9), finished) == "finished"
    folder = make_job(seed=9).folder(finished)
    assert read_status(folder)["simulator_steps"] == 400
    evaluations = read_lines(folder / "evaluations.jsonl")
    assert [entry["simulator_steps"] for entry in evaluations] == [200, 400]


def test_another_run_in_the_folder_is_refused_and_left_alone(finished):
    job = make_job(update_ratio=0.2)
    before = read_status(job.folder(finished))
    message = r"arguments must be \{'update_ratio': 0.1\}, as when the run in .* started"
    with pytest.raises(ValueError, match=message):
        run_job(job, finished)
    assert read_status(job.folder(finished)) == before
    (shown,) = list_runs([job], finished)
    assert (shown["state"], shown["progress"], shown["return"]) == ("not started", 0, None)
    assert re.match(message, shown["error"])


def test_a_run_that_could_not_start_can_be_corrected_in_its_folder(tmp_path):
    assert run_job(make_job(batch_size=-1), tmp_path) == "failed"
    assert run_job(make_job(simulator_steps=200), tmp_path) == "finished"


def test_a_run_that_was_stopped_continues_its_record(tmp_path, finished, monkeypatch):
    """As if it had not been, but for the wall-clock."""

    class Stop(benchmark.Recorder):
        def _on_step(self) -> bool:
            if self.num_timesteps == 33 and self.attempts == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super()._on_step()

    monkeypatch.setattr(benchmark, "Recorder", Stop)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(benchmark.RunInterruptedError, match="was stopped by SIGTERM"):
            run_job(make_job(), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    folder, other = make_job().folder(tmp_path), make_job().folder(finished)
    assert read_status(folder)["state"] == "interrupted"
    # What a process that was killed wrote after its last checkpoint is not to be kept.
    with (folder / "episodes.jsonl").open("a") as file:
        file.write('{"agent_steps": 39, "return": 7, "wall_clock_seconds": 1}\n{"agent_st')
    (first,) = read_status(folder)["precisions"]
    monkeypatch.setattr(benchmark, "used_precision", lambda *_: "another machine's")
    assert run_job(make_job(), tmp_path) == "finished"
    assert read_status(folder)["attempts"] == 2
    assert read_status(folder)["precisions"] == ["another machine's", first]
    for name in ("evaluations", "episodes", "losses"):
        first, second = (read_lines(each / f"{name}.jsonl") for each in (folder, other))
        for entry in (*first, *second):
            del entry["wall_clock_seconds"]
        assert first == second
    clocks = [entry["wall_clock_seconds"] for entry in read_lines(folder / "episodes.jsonl")]
    assert clocks == sorted(clocks)


def test_a_run_that_is_stopped_before_it_learns_is_interrupted_too(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "train_run", stop)
    with pytest.raises(benchmark.RunInterruptedError, match="was stopped by SIGINT"):
        run_job(make_job(), tmp_path)
    assert read_status(make_job().folder(tmp_path))["state"] == "interrupted"


def test_a_run_whose_process_died_is_not_called_running(tmp_path):
    status = {"state": "running", "host": platform.node()}
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert read_status(tmp_path)["state"] == "interrupted"
    with locked(tmp_path):
        assert read_status(tmp_path)["state"] == "running"
    assert read_status(tmp_path)["state"] == "interrupted"
    (tmp_path / "status.json").write_text(json.dumps({**status, "host": "another machine"}))
    assert read_status(tmp_path)["state"] == "running", "its lock may not reach this machine"


def test_the_end_of_a_grid_says_how_to_continue(tmp_path, capsys):
    states = ["finished", "interrupted", "interrupted", "not started", "failed"]
    with pytest.raises(typer.Exit) as ending:
        say_how_they_ended({tmp_path / str(i): state for i, state in enumerate(states)})
    assert ending.value.exit_code == 128 + signal.SIGINT
    failure, stopped = capsys.readouterr().err.splitlines()
    assert failure.endswith("4 failed; the reason is in its status.json")
    assert stopped.startswith("2 run(s) interrupted and 1 not started; ")
    assert stopped.endswith("to continue, run the same command.")
    with pytest.raises(typer.Exit) as ending:
        say_how_they_ended({tmp_path: "failed"})
    assert ending.value.exit_code == 1


def test_an_error_is_written_down_and_does_not_stop_the_others(tmp_path):
    job = make_job(gamma=2.0)
    assert run_job(job, tmp_path) == "failed"
    status = read_status(job.folder(tmp_path))
    assert status["state"] == "failed" and "gamma must lie in [0, 1]" in status["error"]
    assert json.loads((job.folder(tmp_path) / "run.json").read_text())["env_id"] == ENV_ID
    assert run_job(job, tmp_path) == "failed", "it is tried again"


def test_the_table_shows_every_setting(finished):
    console = Console(record=True, width=160)
    console.print(draw_table([make_job(), make_job(seed=1)], finished))
    text = console.export_text()
    row = next(line for line in text.splitlines() if ENV_ID in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells[:8] == ["core", ENV_ID, "1", "", "", "", "1", "50%"]
    first, second = list_runs([make_job(), make_job(seed=1)], finished)
    assert (first["state"], first["progress"], second["state"]) == ("finished", 1.0, "not started")
    assert first["return"] is not None and second["return"] is None


def test_a_run_that_fails_before_it_has_a_folder_is_recorded(tmp_path):
    folder = make_job().folder(tmp_path)
    update_status(folder, state="failed", error="no worker could be started")
    assert read_status(folder)["state"] == "failed"


def test_an_estimate_counts_what_is_left(finished, monkeypatch):
    tried = []

    def estimate(job):
        tried.append(job)
        return Estimate(0.1, 0.2, 7_200.0)

    monkeypatch.setattr("core_agent.table5.estimate.estimate_run", estimate)
    console = Console(record=True, width=160)
    console.print(draw_estimate([make_job(seed=seed) for seed in range(4)], finished, price=3.0))
    text = console.export_text()
    assert "3 of 4 runs to do" in text
    assert "6.0" in text and "18.00" in text, "3 runs of 2 hours at 3 an hour"
    assert len(tried) == 1
    console.print(draw_estimate([make_job(seed=seed) for seed in range(4)], finished, at_once=2))
    text = console.export_text()
    assert "3 of 4 runs to do, 2 at once" in text
    row = next(line for line in text.splitlines() if "all, 2 at once" in line)
    assert "3.0" in row, "6 hours, shared by two"
    console.print(draw_estimate([make_job(simulator_steps=1_600)], finished))
    text = console.export_text()
    assert "1 of 1 runs to do" in text and "1,200" in text
    row = next(line for line in text.splitlines() if line.startswith("│ all"))
    assert "1.5" in row, "three quarters of two hours are left"


def test_a_run_at_the_papers_sizes_says_what_it_takes_on_a_cpu(monkeypatch):
    seconds = {"paper": 7.2, "small": 0.072}

    def estimate(job: Job, n_updates: int) -> Estimate:
        assert n_updates == 1
        if job.run.preset == "small" and job.run.arguments:
            raise ValueError("joint_update must be False with train_model_with_critic=False")
        per_step = seconds[job.run.preset]
        return Estimate(0.0, 2 * per_step, 0.0, 125_000, per_step)

    monkeypatch.setattr("core_agent.table5.estimate.estimate_run", estimate)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = announce(Run("DCS-cheetah-run-easy-static"), None)
    assert "about 250.0 hours on this CPU (14.4 s an update)" in told
    assert "with --preset small, 2.5 hours" in told and "--resume auto" in told
    assert "about 20.0 hours" in announce(Run("DCS-cheetah-run-easy-static"), 10_000)
    apart = Run("DCS-cheetah-run-easy-static", arguments={"train_model_with_critic": False})
    assert "(14.4 s an update). Ctrl-C stops it" in announce(apart, None)
    for run, steps in ((Run("Pendulum-v1", preset="small"), None), (Run("Pendulum-v1"), 100)):
        assert announce(run, steps) == ""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert announce(Run("DCS-cheetah-run-easy-static"), None) == ""


@pytest.mark.parametrize("collect", ["sequential", "async"])
def test_an_estimate_adds_up(collect, monkeypatch):
    monkeypatch.setattr("core_agent.table5.estimate.EPISODE_STEPS", 100)
    estimate = estimate_run(make_job(collect=collect))
    assert estimate.step > 0 and estimate.update > 0
    # 40 steps, and 2 evaluations of 2 episodes of 10 steps each; 0.1 updates a step.
    expected = 80 * estimate.step + 4 * estimate.update
    assert estimate.run == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (dict(update_ratio=0.5), 0.5),
        (dict(gradient_steps=-1), 1.0),
        (dict(gradient_steps=3, train_freq=12), 0.25),
        (dict(gradient_steps=50, train_freq=(1, "episode")), 0.05),
    ],
)
def test_updates_per_step_follow_the_schedule(arguments, expected):
    assert updates_per_step(CoRe("auto", FakeEnv(), **{**TINY, **arguments})) == expected


def test_the_command_runs_a_shard_and_reports(tmp_path):
    command = ["benchmark", str(tmp_path), "--suite", "smoke", "--preset", "debug"]
    command += ["--simulator-steps", "400", "--episodes", "1", "--agent", "core", "--seed", "3"]
    command += ["--task", "cartpole-swingup"]
    result = runner.invoke(cli.app, [*command, "--shard", "1/1"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "core" / "DCS-cartpole-swingup-easy-dynamic" / "seed-3"
    assert read_status(folder)["state"] == "finished"
    result = runner.invoke(cli.app, [*command, "--status"])
    assert result.exit_code == 0 and "100%" in result.output
    result = runner.invoke(cli.app, [*command, "--status", "--json"])
    (run,) = json.loads(result.stdout)
    assert (run["agent"], run["seed"], run["state"]) == ("core", 3, "finished")
    result = runner.invoke(cli.app, [*command, "--json"])
    assert "--json must come with --status" in str(result.exception)


def test_without_ray_the_way_out_is_told(tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def no_ray(name, *args, **kwargs):
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_ray)
    result = runner.invoke(cli.app, ["benchmark", str(tmp_path)])
    assert "ray must be installed" in str(result.exception)
    assert not list(tmp_path.iterdir())
