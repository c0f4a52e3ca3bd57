"""Statistics, against values worked out by hand."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from core_agent.table5.statistics import (
    MeanError,
    fewest_seeds,
    interquartile_mean,
    mean_and_standard_error,
    mean_over_tasks,
    normalized,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)


def mean_of_all(strata):
    return np.concatenate(strata, axis=-1).mean(axis=-1)


def test_standard_error_is_the_sample_deviation_over_the_root_of_n():
    # Deviations -2, 0, 2: variance 8 / 2 = 4, error 2 / sqrt(3).
    result = mean_and_standard_error([1.0, 3.0, 5.0])
    assert result == (3.0, pytest.approx(2.0 / np.sqrt(3.0)), 3)
    assert mean_and_standard_error([7.0]) == (7.0, pytest.approx(np.nan, nan_ok=True), 1)
    # Over tasks: sqrt(3² + 4²) / 2.
    over_tasks = mean_over_tasks([MeanError(10.0, 3.0, 5), MeanError(30.0, 4.0, 2)])
    assert over_tasks == MeanError(20.0, 2.5, 2)


@pytest.mark.parametrize(
    ("strata", "expected"),
    [
        ([[5.0]], 5.0),
        ([[0.0, 1.0, 8.0]], 3.0),  # nothing to cut: 3 // 4 = 0
        ([[0.0, 1.0, 3.0, 100.0]], 2.0),
        ([[9.0, 0.0, 1.0, 2.0, 100.0]], 4.0),  # 5 // 4 = 1 at each end: 1, 2, 9
        ([[0.0, 0.0, 3.0, 4.0, 5.0, 6.0, 90.0, 99.0]], 4.5),
        ([[0.0, 3.0], [1.0, 100.0]], 2.0),  # settings are pooled
    ],
)
def test_interquartile_mean_cuts_off_whole_runs(strata, expected):
    assert interquartile_mean(list(map(np.array, strata))) == pytest.approx(expected)


def test_ties_are_half_an_improvement():
    # Setting 1: pairs (1,1) tie, (1,2) lost, (3,1) and (3,2) won: 2.5 of 4. Setting 2: all won.
    ours = [np.array([1.0, 3.0]), np.array([5.0])]
    theirs = [np.array([1.0, 2.0]), np.array([0.0, 4.0, 4.0])]
    assert probability_of_improvement(ours, theirs) == pytest.approx((0.625 + 1.0) / 2.0)
    assert probability_of_improvement(theirs, ours) == pytest.approx((0.375 + 0.0) / 2.0)


def test_probability_of_improvement_is_the_mann_whitney_statistic():
    ours, theirs = np.random.default_rng(0).integers(0, 9, (2, 7)).astype(float)
    expected = mannwhitneyu(ours, theirs).statistic / 49
    assert probability_of_improvement([ours], [theirs]) == pytest.approx(expected)


def test_a_profile_counts_the_runs_above_each_threshold():
    strata = [np.array([0.1, 0.5]), np.array([0.5, 0.9])]
    profile = performance_profile(strata, np.array([0.0, 0.1, 0.5, 0.9]))
    np.testing.assert_allclose(profile, [1.0, 0.75, 0.25, 0.0])


def test_resampling_stays_within_a_setting():
    # Two constant settings: whatever is drawn, two runs are 0 and two are 1.
    interval = stratified_bootstrap(mean_of_all, [np.zeros(2), np.ones(2)])
    assert interval == (0.5, 0.5)


def test_the_interval_is_that_of_all_possible_resamples():
    # Of the 27 draws out of (0, 3, 6) one has mean 0 and three have mean 1 (0, 0, 3): 3.7 % and
    # 14.8 % at or below. By symmetry at the other end.
    scores = [np.array([0.0, 3.0, 6.0])]
    at_95 = stratified_bootstrap(mean_of_all, scores, n_resamples=20_000)
    at_80 = stratified_bootstrap(mean_of_all, scores, n_resamples=20_000, level=0.8)
    assert at_95 == (0.0, 6.0)
    assert at_80 == (1.0, 5.0)


def test_the_same_seed_gives_the_same_interval():
    scores = [np.random.default_rng(1).normal(size=5)]
    first, again = (stratified_bootstrap(mean_of_all, scores, seed=3) for _ in range(2))
    assert first == again
    assert first != stratified_bootstrap(mean_of_all, scores, seed=4)


def test_an_interval_covers_a_profile_and_a_comparison():
    ours = [np.array([0.2, 0.4, 0.6]), np.array([0.1, 0.3, 0.9])]
    theirs = [np.array([0.0, 0.1, 0.3]), np.array([0.2, 0.2, 0.2])]
    thresholds = np.linspace(0.0, 1.0, 11)
    band = stratified_bootstrap(lambda strata: performance_profile(strata, thresholds), ours)
    profile = performance_profile(ours, thresholds)
    assert band.low.shape == (11,)
    assert (band.low <= profile).all() and (profile <= band.high).all()
    low, high = stratified_bootstrap(probability_of_improvement, ours, theirs)
    assert low < probability_of_improvement(ours, theirs) < high


def test_a_setting_without_a_seed_or_without_its_counterpart_is_an_error():
    with pytest.raises(ValueError, match="samples must have a seed in every setting"):
        stratified_bootstrap(mean_of_all, [np.ones(3), np.array([])])
    with pytest.raises(ValueError, match="scores must hold at least one seed"):
        mean_and_standard_error([])
    with pytest.raises(ValueError, match="results must hold at least one task"):
        mean_over_tasks([])
    with pytest.raises(ValueError, match="theirs must have 1 settings, got 2"):
        probability_of_improvement([np.ones(2)], [np.ones(2), np.ones(2)])


def test_the_fewest_seeds_decide_and_scores_are_thousandths_of_the_return():
    assert fewest_seeds([np.ones(5), np.ones(3)], [np.ones(2)]) == 2
    assert fewest_seeds([]) == 0
    np.testing.assert_allclose(normalized([0, 423, 1_000]), [0.0, 0.423, 1.0])
