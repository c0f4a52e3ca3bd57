"""Runs on a Ray cluster of two nodes, one of which is lost."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest

from core_agent.runs.training import Run, read_lines
from core_agent.table5.cluster import count_at_once, run_on_ray
from core_agent.table5.grid import Job, read_status
from tests.fakes import HANGS_AFTER, VECTOR, SavableEnv

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[cluster]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LENGTH, N_STEPS, WAITS_AFTER = 10, 60, 25


class WaitingEnv(SavableEnv):
    """Waits after some steps until a file is there."""

    def __init__(self, render_mode: str, gate: str) -> None:
        super().__init__(VECTOR, LENGTH, bound=1.0)
        self.gate, self.n_steps = Path(gate), 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.n_steps += 1
        while self.n_steps > WAITS_AFTER and not self.gate.exists():
            time.sleep(0.05)
        return super().step(action)


gym.register("Waiting-v0", "tests.table5.test_cluster:WaitingEnv")


def make_job(seed: int, gate: Path) -> Job:
    """One update after each episode."""
    run = Run(
        "tests.table5.test_cluster:Waiting-v0",
        preset="debug",
        seed=seed,
        arguments={"update_ratio": 0.1, "learning_starts": LENGTH, "device": "cpu"},
        env_arguments={"gate": str(gate)},
    )
    return Job(run, N_STEPS, N_STEPS, n_episodes=1, checkpoint_every=LENGTH)


def processes_of(folder: Path) -> list[int]:
    """Those whose command names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def lose(cluster: Any, node: Any) -> None:
    """Take a machine away with its workers, which else outlive its raylet for a moment."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task").glob("*/children")
    workers = [int(number) for path in children for number in path.read_text().split()]
    assert workers
    cluster.remove_node(node, False)
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def node_arguments() -> dict[str, Any]:
    """One processor, and ports that are chosen here: see :func:`be_patient`."""
    names = ("dashboard_agent_listen", "metrics_agent", "metrics_export", "runtime_env_agent")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("", 0))
        ports = {f"{name}_port": each.getsockname()[1] for name, each in zip(names, sockets)}
    return dict(wait=False, num_cpus=1, include_log_monitor=False, **ports)


PATIENCE = {
    "gcs_rpc_server_connect_timeout_s": HANGS_AFTER,
    "gcs_server_port_wait_time_s": HANGS_AFTER,
    "gcs_server_request_timeout_seconds": HANGS_AFTER,
    "agent_register_timeout_ms": 1_000 * HANGS_AFTER,
    "worker_register_timeout_seconds": HANGS_AFTER,
    "health_check_timeout_ms": 1_000 * HANGS_AFTER,
}
"""Ray's settings, which it reads from the environment with ``RAY_`` in front."""


def be_patient(patch: pytest.MonkeyPatch) -> None:
    """Let a node take its time to start. Two limits of Ray are numbers in its code."""
    for name, value in PATIENCE.items():
        patch.setenv(f"RAY_{name}", str(value))
    # 30 seconds for all of it: they pass slowly.
    slowly = {**vars(time), "monotonic": lambda: 30 / HANGS_AFTER * time.monotonic()}
    patch.setattr("ray._private.node.time", SimpleNamespace(**slowly))
    # 15 seconds for its agents to choose ports: those that are chosen already are not waited for,
    # but for one, which is read from a file that the agent writes.
    start = ray._private.services.start_raylet

    def start_raylet(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(start).bind(*args, **kwargs).arguments
        name = "dashboard_agent_listen_port"
        Path(given["session_dir"], f"{name}_{given['node_id']}").write_text(str(given[name]))
        return start(*args, **kwargs)

    patch.setattr("ray._private.services.start_raylet", start_raylet)


@pytest.fixture(scope="module")
def cluster():
    """A head; whatever becomes of it, no process of it is left."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
    # Ray makes the folder of its address file only where it starts a machine itself.
    Path(ray._private.utils.get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)
    # Short, as paths of sockets have to be.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    cluster = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.path.abspath("envs")]))
        be_patient(patch)
        # Its processes ignore SIGINT, as all do that a shell starts in the background.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            cluster.add_node(
                **node_arguments(),
                include_dashboard=False,
                no_monitor=True,
                temp_dir=str(folder),
                _system_config=quick,
            )
            signal.signal(signal.SIGINT, handler)
            yield cluster
        finally:
            signal.signal(signal.SIGINT, handler)
            ray.shutdown()
            cluster.shutdown()
            for process in processes_of(folder):
                os.kill(process, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def test_runs_survive_the_loss_of_a_machine_and_none_is_done_twice(cluster, tmp_path):
    node = cluster.add_node(**node_arguments())
    cluster.wait_for_nodes(HANGS_AFTER)
    gate = tmp_path / "gate"
    jobs = [make_job(seed, gate) for seed in range(2)]

    def lose_a_machine_once_both_are_at_work() -> None:
        steps = [read_status(job.folder(tmp_path)).get("agent_steps", 0) for job in jobs]
        written = all(list(job.folder(tmp_path).glob("checkpoints/checkpoint-*")) for job in jobs)
        if not gate.exists() and written and min(steps) >= LENGTH:
            lose(cluster, node)
            gate.touch()

    ended = run_on_ray(
        jobs, tmp_path, cluster.address, 1.0, 0.0, lose_a_machine_once_both_are_at_work, 0.2
    )
    assert list(ended.values()) == ["finished"] * 2
    statuses = [read_status(job.folder(tmp_path)) for job in jobs]
    assert sorted(status["attempts"] for status in statuses) == [1, 2]
    for job, status in zip(jobs, statuses):
        assert (status["state"], status["agent_steps"]) == ("finished", N_STEPS)
        episodes = read_lines(job.folder(tmp_path) / "episodes.jsonl")
        assert [entry["agent_steps"] for entry in episodes] == list(
            range(LENGTH, N_STEPS + 1, LENGTH)
        )
        assert len(read_lines(job.folder(tmp_path) / "evaluations.jsonl")) == 1


@pytest.fixture
def ctrl_c():
    """Ctrl-C reaches this process, even where it was started in the background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_stops_every_run_with_a_checkpoint_and_none_starts_over(cluster, tmp_path):
    runs = [
        Run(
            "DCS-reacher-easy-easy-dynamic",
            preset="debug",
            seed=seed,
            arguments={"update_ratio": 0.1},
            env_arguments={"action_repeat": 100},
        )
        for seed in range(2)
    ]
    far = 1_000_000  # However busy the machine is, they do not end before they are stopped.
    jobs = [Job(run, far, far, n_episodes=1, checkpoint_every=far) for run in runs]
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
    assert 15 < status["agent_steps"] < far // 100
    assert list(first.glob("checkpoints/checkpoint-*"))
    before = read_lines(first / "episodes.jsonl")

    n_steps = 10 * (status["agent_steps"] // 10 + 3)
    jobs = [replace(job, simulator_steps=100 * n_steps, evaluate_every=far) for job in jobs]
    ended = run_on_ray(jobs, tmp_path, cluster.address, 1.0, 0.0, seconds_between=0.2)
    assert list(ended.values()) == ["finished"] * 2
    assert read_status(first)["attempts"] == 2
    episodes = read_lines(first / "episodes.jsonl")
    assert [entry["agent_steps"] for entry in episodes] == list(range(10, n_steps + 1, 10))
    assert episodes[: len(before)] == before, "with their times: no step was made again"


def test_a_cluster_has_room_for_as_many_runs_as_its_scarcest_resource():
    with pytest.raises(ValueError, match=r"^gpus must be at most what the cluster has, 0, got 0.5"):
        count_at_once({"CPU": 4.0}, 1.0, 0.5)
    assert count_at_once({"CPU": 4.0, "GPU": 1.0}, 4.0, 0.25) == 1
    assert count_at_once({"CPU": 16.0, "GPU": 2.0}, 1.0, 0.25) == 8
    assert count_at_once({"CPU": 5.0}, 2.0) == 2
    assert count_at_once({"CPU": 16.0, "GPU": 2.0}) == 2, "a GPU each where there are any"
    assert count_at_once({"CPU": 16.0, "GPU": 2.0}, gpus=0) == 16
