"""Many runs at once, on one machine or many, by Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from core_agent.table5.grid import Job, RunInterruptedError, run_job, update_status
from core_agent.validation import at_least, check, check_arguments

PASSED_ON = ("MUJOCO_GL", "DCS_VIDEOS", "PYTHONPATH")
"""Environment variables that runs on other machines see as this process does."""
N_RETRIES = 10
"""Times that a run is started again after its machine or process was lost."""


def run_on_ray(
    jobs: Sequence[Job],
    root: Path,
    address: str | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    watch: Callable[[], None] = lambda: None,
    seconds_between: float = 2.0,
) -> dict[Path, str]:
    """Do all jobs, as many at once as there is room for.

    A run whose machine or process is lost continues from its last checkpoint, elsewhere if need be.
    ``root`` must be a folder that all machines share.

    :param jobs: what to run
    :param root: where, see :meth:`~core_agent.table5.grid.Job.folder`
    :param address: of a running cluster; ``None``: this machine alone
    :param cpus: processors for a run
    :param gpus: GPUs for a run; 0.25 puts four runs on each
    :param watch: called every ``seconds_between``
    :return: how each run ended, by its folder
    :raises ValueError: if Ray is not installed or can never make room for one run
    """
    check_arguments({"cpus": at_least(0), "gpus": at_least(0)}, locals())
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
    check_room(ray.cluster_resources(), cpus, gpus)
    retries = {"max_retries": N_RETRIES, "retry_exceptions": [RunInterruptedError]}
    task = ray.remote(run_job).options(num_cpus=cpus, num_gpus=gpus, **retries)
    pending = {task.remote(job, root.absolute()): job for job in jobs}
    ended: dict[Path, str] = {}
    while pending:
        done, _ = ray.wait(list(pending), timeout=seconds_between)
        for reference in done:
            folder = pending.pop(reference).folder(root)
            try:
                ended[folder] = ray.get(reference)
            except ray.exceptions.RayError as error:
                update_status(folder, state="failed", error=str(error))
                ended[folder] = "failed"
        watch()
    return ended


def check_room(resources: dict[str, float], cpus: float, gpus: float) -> None:
    """Make sure that one run fits, or nothing would ever start.

    :raises ValueError: if it does not
    """
    for name, wanted, key in (("cpus", cpus, "CPU"), ("gpus", gpus, "GPU")):
        rule = f"be at most what the cluster has, {resources.get(key, 0.0):g}"
        check(wanted <= resources.get(key, 0.0), name, rule, wanted)
