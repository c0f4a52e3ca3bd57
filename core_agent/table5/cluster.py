"""Many runs at once, on one machine or many, by Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGINT, default_int_handler, signal

from core_agent.runs.callbacks import first_signal
from core_agent.table5.grid import (
    Job,
    RunInterruptedError,
    read_job_status,
    read_status,
    run_job,
    update_status,
)
from core_agent.validation import at_least, check, check_arguments, optional

PASSED_ON = ("MUJOCO_GL", "DCS_VIDEOS", "PYTHONPATH")
"""Environment variables of this process that are passed on to runs on other machines."""
N_RETRIES = 10
"""Times that a run is started again after its machine or process was lost."""
MOST_AT_ONCE = 1_000
"""The most runs at once if neither processors nor GPUs are reserved for a run."""


def start_ray(address: str | None = None) -> dict[str, float]:
    """Start Ray here, or connect to a cluster; return its resources, such as ``{"CPU": 8.0}``.

    :param address: address of a running cluster; ``None``: only this machine
    :raises ValueError: if Ray is not installed
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError(
            'ray must be installed to run several runs at once: pip install "core-agent[cluster]"; '
            "or give --shard 1/1 to run them here, one after the other"
        ) from None
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if not ray.is_initialized():
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            runtime_env={"env_vars": variables},
        )
    return ray.cluster_resources()


def gpus_of_a_run(resources: Mapping[str, float], gpus: float | None) -> float:
    """``gpus``, or by default one if there are any: without a reservation all use the first."""
    return min(1.0, resources.get("GPU", 0.0)) if gpus is None else gpus


def count_at_once(
    resources: Mapping[str, float], cpus: float = 1.0, gpus: float | None = None
) -> int:
    """How many runs a cluster has room for at once.

    :param resources: see :func:`start_ray`
    :param cpus: processors for a run
    :param gpus: GPUs for a run; 0.25 puts four runs on each; default: 1 if there are any
    :raises ValueError: if it can never make room for one
    """
    check_arguments({"cpus": at_least(0), "gpus": optional(at_least(0))}, locals())
    gpus = gpus_of_a_run(resources, gpus)
    counts = [MOST_AT_ONCE]
    for name, wanted, key in (("cpus", cpus, "CPU"), ("gpus", gpus, "GPU")):
        there = resources.get(key, 0.0)
        check(wanted <= there, name, f"be at most what the cluster has, {there:g}", wanted)
        if wanted:
            counts.append(int(there / wanted))
    return min(counts)


def run_on_ray(
    jobs: Sequence[Job],
    root: Path,
    address: str | None = None,
    cpus: float = 1.0,
    gpus: float | None = None,
    watch: Callable[[], None] = lambda: None,
    seconds_between: float = 2.0,
) -> dict[Path, str]:
    """Do all jobs, as many at once as there is room for.

    A run whose machine or process is lost continues from its last checkpoint, on another machine if
    necessary. ``root`` must be a folder that all machines share. At SIGINT (Ctrl-C) or SIGTERM,
    every run writes a checkpoint and stops; a second signal acts as it would without this function.

    :param jobs: what to run
    :param root: folder that holds all runs, see :meth:`~core_agent.table5.grid.Job.folder`
    :param address: address of a running cluster; ``None``: only this machine
    :param cpus: processors for a run
    :param gpus: GPUs for a run; 0.25 puts four runs on each; default: 1 if there are any
    :param watch: function that is called about every ``seconds_between`` seconds
    :return: the state of each run when this function ended, by the folder of the run
    :raises ValueError: if Ray is not installed or can never make room for one run, or if the folder
        of a run has another one
    """
    for job in jobs:
        read_job_status(job, root)
    check_arguments({"cpus": at_least(0), "gpus": optional(at_least(0))}, locals())
    resources = start_ray(address)
    count_at_once(resources, cpus, gpus)
    gpus = gpus_of_a_run(resources, gpus)
    import ray

    retries = {"max_retries": N_RETRIES, "retry_exceptions": [RunInterruptedError]}
    task = ray.remote(run_on_worker).options(num_cpus=cpus, num_gpus=gpus, **retries)
    ended: dict[Path, str] = {}
    received: list[int] = []
    with first_signal(received.append):
        pending = {task.remote(job, root.absolute()): job for job in jobs}
        is_stopping = False
        while pending:
            done, _ = ray.wait(list(pending), timeout=seconds_between)
            for reference in done:
                folder = pending.pop(reference).folder(root)
                try:
                    ended[folder] = ray.get(reference)
                except ray.exceptions.TaskCancelledError:
                    ended[folder] = read_status(folder)["state"]
                except ray.exceptions.RayError as error:
                    update_status(folder, state="failed", error=str(error))
                    ended[folder] = "failed"
            if received and not is_stopping:
                is_stopping = True
                logging.getLogger("core_agent").warning(
                    "stopping: each run writes a checkpoint first; a second signal ends at once"
                )
                for reference in pending:
                    ray.cancel(reference)
            watch()
    return ended


def run_on_worker(job: Job, root: Path) -> str:
    """Do a job in a process of Ray, in which SIGINT comes only from ``ray.cancel``.

    :return: as :func:`~core_agent.table5.grid.run_job`, or ``"interrupted"``
    :raises RunInterruptedError: if another signal stopped it; Ray then starts it again
    """
    # Programs that a shell starts in the background ignore SIGINT; Ray's processes inherit that.
    signal(SIGINT, default_int_handler)
    try:
        return run_job(job, root)
    except RunInterruptedError as error:
        if error.signal != SIGINT:
            raise
        return "interrupted"
