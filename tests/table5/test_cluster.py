"""Runs on a Ray cluster of two nodes, one of which is lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from core_agent.runs.training import Run
from core_agent.table5.cluster import count_at_once, run_on_ray
from core_agent.table5.grid import Job, read_lines, read_status

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def make_job(seed: int, n_steps: int, checkpoint_every: int = 10) -> Job:
    """Ten agent steps in an episode, one update after each."""
    run = Run(
        "DCS-reacher-easy-easy-dynamic",
        preset="debug",
        seed=seed,
        arguments={"update_ratio": 0.1},
        env_arguments={"action_repeat": 100},
    )
    return Job(run, 100 * n_steps, 100 * n_steps, 1, checkpoint_every)


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.path.abspath("envs")]))
    quickly = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quickly}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_runs_survive_the_loss_of_a_machine_and_none_is_done_twice(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1)
    jobs = [make_job(seed, n_steps=300) for seed in range(2)]
    lost = []

    def lose_a_machine_once_both_are_at_work() -> None:
        steps = [read_status(job.folder(tmp_path)).get("agent_steps", 0) for job in jobs]
        written = all(list(job.folder(tmp_path).glob("checkpoints/checkpoint-*")) for job in jobs)
        if not lost and written and min(steps) > 20:
            lost.append(steps)
            threading.Thread(target=cluster.remove_node, args=(node, False)).start()

    ended = run_on_ray(
        jobs, tmp_path, cluster.address, 1.0, 0.0, lose_a_machine_once_both_are_at_work, 0.2
    )
    assert lost, "the runs were over before a machine could be lost"
    assert list(ended.values()) == ["finished"] * 2
    statuses = [read_status(job.folder(tmp_path)) for job in jobs]
    assert sorted(status["attempts"] for status in statuses) == [1, 2]
    for job, status in zip(jobs, statuses):
        assert (status["state"], status["agent_steps"]) == ("finished", 300)
        episodes = read_lines(job.folder(tmp_path) / "episodes.jsonl")
        assert [entry["agent_steps"] for entry in episodes] == list(range(10, 301, 10))
        assert len(read_lines(job.folder(tmp_path) / "evaluations.jsonl")) == 1


def test_ctrl_c_stops_every_run_with_a_checkpoint_and_none_starts_over(cluster, tmp_path):
    jobs = [make_job(seed, n_steps=100, checkpoint_every=10_000) for seed in range(2)]
    sent = []

    def stop_the_first_run() -> None:
        steps = read_status(jobs[0].folder(tmp_path)).get("agent_steps", 0)
        if steps > 15 and not sent:
            sent.append(steps)
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    ended = run_on_ray(jobs, tmp_path, cluster.address, 1.0, 0.0, stop_the_first_run, 0.1)
    assert signal.getsignal(signal.SIGINT) is handler
    first, second = (job.folder(tmp_path) for job in jobs)
    assert ended == {first: "interrupted", second: "not started"}, "there is room for one"
    status = read_status(first)
    assert (status["state"], status["attempts"]) == ("interrupted", 1)
    assert 15 < status["agent_steps"] < 100
    assert list(first.glob("checkpoints/checkpoint-*"))
    before = read_lines(first / "episodes.jsonl")

    ended = run_on_ray(jobs, tmp_path, cluster.address, 1.0, 0.0, seconds_between=0.2)
    assert list(ended.values()) == ["finished"] * 2
    assert read_status(first)["attempts"] == 2
    episodes = read_lines(first / "episodes.jsonl")
    assert [entry["agent_steps"] for entry in episodes] == list(range(10, 101, 10))
    assert episodes[: len(before)] == before, "with their times: no step was made again"


def test_a_cluster_has_room_for_as_many_runs_as_its_scarcest_resource():
    with pytest.raises(ValueError, match=r"^gpus must be at most what the cluster has, 0, got 0.5"):
        count_at_once({"CPU": 4.0}, 1.0, 0.5)
    assert count_at_once({"CPU": 4.0, "GPU": 1.0}, 4.0, 0.25) == 1
    assert count_at_once({"CPU": 16.0, "GPU": 2.0}, 1.0, 0.25) == 8
    assert count_at_once({"CPU": 5.0}, 2.0) == 2
