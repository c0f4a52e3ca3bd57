"""Statistics of a few runs on a few tasks.

Scores are grouped by task setting: a sequence with one array ``(n_seeds,)`` for each, the strata.
Settings may have different numbers of seeds. The measures are those of "Deep Reinforcement Learning
at the Edge of the Statistical Precipice" (arXiv:2108.13264). For shapes ``(..., n_seeds)`` a
function works along the last axis: the bootstrap computes all its resamples in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from core_agent.runs.evaluation import standard_error
from core_agent.validation import SIZE, check

MAX_RETURN = 1_000.0
"""A simulator step has a reward of at most 1, and an episode has 1,000 steps."""
MINIMUM_SEEDS = 3
"""With fewer seeds in any setting there is no interval."""
N_RESAMPLES = 2_000
LEVEL = 0.95

Strata = Sequence[np.ndarray]


class MeanError(NamedTuple):
    """A mean and its standard error, as in Table 5 of the paper."""

    mean: float
    standard_error: float
    """NaN for one seed."""
    n_seeds: int


class Interval(NamedTuple):
    """Percentile interval of a bootstrap; arrays of the statistic's shape."""

    low: np.ndarray
    high: np.ndarray


def normalized(returns: np.ndarray | Sequence[float]) -> np.ndarray:
    """Scores in [0, 1]: returns divided by 1,000, the maximum of an episode."""
    return np.asarray(returns, dtype=float) / MAX_RETURN


def fewest_seeds(*samples: Strata) -> int:
    """Seeds of the setting that has fewest, in any of the samples; 0 where there is no setting."""
    return min((len(stratum) for strata in samples for stratum in strata), default=0)


def mean_and_standard_error(scores: np.ndarray | Sequence[float]) -> MeanError:
    """Mean over seeds, and the standard deviation (n - 1) divided by the root of n.

    :param scores: ``(n_seeds,)``, each the mean return of a training seed's evaluation
    :raises ValueError: if there is none
    """
    values = np.asarray(scores, dtype=float)
    check(values.size > 0, "scores", "hold at least one seed", values.size)
    return MeanError(float(values.mean()), standard_error(values), values.size)


def mean_over_tasks(results: Sequence[MeanError]) -> MeanError:
    """Mean of the tasks' means; the error follows from theirs, as runs on tasks are independent.

    The paper does not say how the errors of its column of means were computed.

    :raises ValueError: if there is none
    """
    check(len(results) > 0, "results", "hold at least one task", len(results))
    mean = np.mean([result.mean for result in results])
    error = np.linalg.norm([result.standard_error for result in results]) / len(results)
    return MeanError(float(mean), float(error), min(result.n_seeds for result in results))


def interquartile_mean(strata: Strata) -> np.ndarray:
    """Mean of the runs that are left when a quarter at each end is cut off, over all settings.

    Of ``n`` runs ``n // 4`` are cut off at each end, as in arXiv:2108.13264 and rliable: no run
    counts in part, and for up to 3 runs this is the plain mean.

    :param strata: ``(..., n_seeds)`` each
    """
    return np.asarray(stats.trim_mean(np.concatenate(strata, axis=-1), 0.25, axis=-1))


def probability_of_improvement(ours: Strata, theirs: Strata) -> np.ndarray:
    """Mean over settings of the probability that a run of ours beats one of theirs.

    For each setting that is the Mann-Whitney statistic divided by the number of pairs: the share of
    pairs that ours wins, ties counting half.

    :param ours: ``(..., n_seeds)`` for each setting
    :param theirs: likewise, for the same settings in the same order
    :raises ValueError: if their numbers of settings differ
    """
    check(len(ours) == len(theirs), "theirs", f"have {len(ours)} settings", len(theirs))
    shares = []
    for our, their in zip(ours, theirs):
        signs = np.sign(our[..., :, None] - their[..., None, :])
        shares.append(np.mean(0.5 + 0.5 * signs, axis=(-2, -1)))
    return np.mean(shares, axis=0)


def performance_profile(strata: Strata, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs, over all settings, that score more than each threshold.

    :param strata: ``(..., n_seeds)`` each
    :param thresholds: ``(K,)``
    :return: ``(..., K)``
    """
    scores = np.concatenate(strata, axis=-1)
    return np.stack([(scores > threshold).mean(axis=-1) for threshold in thresholds], axis=-1)


def stratified_bootstrap(
    statistic: Callable[..., np.ndarray],
    *samples: Strata,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic when seeds are resampled within each setting.

    :param statistic: function that takes, for each sample, strata ``(n_resamples, n_seeds)``, and
        returns an array whose first axis is ``n_resamples``
    :param samples: strata ``(n_seeds,)``; one sample for each agent that is compared
    :param n_resamples: number of resamples
    :param level: share of the resamples within the interval
    :param seed: seed of the resampling
    :raises ValueError: if a setting has no seed
    """
    check(fewest_seeds(*samples) > 0, "samples", "have a seed in every setting", samples)
    SIZE("n_resamples", n_resamples)
    generator = np.random.default_rng(seed)
    resamples = [
        [generator.choice(stratum, (n_resamples, len(stratum))) for stratum in strata]
        for strata in samples
    ]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(statistic(*resamples), [tail, 1.0 - tail], axis=0)
    return Interval(low, high)
