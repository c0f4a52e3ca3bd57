"""Seeds for many environments, no two of them equal."""

from __future__ import annotations

from distracting_envs.checks import check_choice, check_whole
from distracting_envs.settings import SPLITS

MAX_WORKERS = 1024
"""Number of environments per split and seed."""

MAX_SEED = 2**32 // (MAX_WORKERS * len(SPLITS))
"""Seeds of experiments must be below this, since NumPy's legacy generator takes 32 bits."""


def env_seed(seed: int, worker: int = 0, split: str = "train") -> int:
    """Return the seed to reset an environment with, different for all arguments.

    Workers, splits and experiments all have different seeds. With ``seed + worker``, in contrast, a
    worker has the same seed as a worker of the next experiment.

    :param seed: seed of the experiment, in [0, MAX_SEED)
    :param worker: number of the environment within its split, in [0, MAX_WORKERS)
    :param split: "train" or "val"
    :raises ValueError: if an argument is out of its range
    """
    check_choice("split", split, SPLITS)
    check_whole("seed", seed, low=0, high=MAX_SEED - 1)
    check_whole("worker", worker, low=0, high=MAX_WORKERS - 1)
    return (seed * MAX_WORKERS + worker) * len(SPLITS) + SPLITS.index(split)
