"""Table 5 as the package has it."""

import numpy as np
import pytest

from core_agent.table5.paper import (
    METHODS,
    PAPER_STEPS,
    TASKS,
    PaperResult,
    Setting,
    find_paper_result,
    parse_setting,
    read_table5,
)


def test_table_5_is_complete():
    # Six settings; the baselines of Stone et al. lack the hard ones, CoRe comes twice.
    assert len(read_table5()) == 7 * (4 * 7 + 2 * 4)
    assert {method for _, method, _ in read_table5()} == set(METHODS.values())


@pytest.mark.parametrize(
    ("algorithm", "env_id", "steps", "expected"),
    [
        ("core", "DCS-cheetah-run-easy-dynamic", 500_000, PaperResult(423, 22)),
        ("core", "DCS-walker-walk-hard-dynamic", 1_000_000, PaperResult(505, 17)),
        ("recurrent_sac", "DCS-finger-spin-medium-static", 500_000, PaperResult(124, 107)),
        ("qtopt_drq", "DCS-reacher-easy-easy-static", 500_000, PaperResult(171, 25)),
        ("sacrad", "DCS-walker-walk-hard-static", 500_000, None),
        ("curl", "DCS-walker-walk-hard-static", 1_000_000, None),
        ("core", "DCS-walker-walk-clean", 500_000, None),
        ("dreamer", "DCS-walker-walk-easy-static", 500_000, None),
    ],
)
def test_results_are_found_by_algorithm_and_environment(algorithm, env_id, steps, expected):
    assert find_paper_result(algorithm, parse_setting(env_id), steps) == expected


def test_the_rows_of_means_are_the_means_of_the_tasks():
    table = read_table5()
    for (setting, method, steps), result in table.items():
        if setting.task == "mean":
            tasks = [table[setting._replace(task=task), method, steps].mean for task in TASKS]
            assert steps in PAPER_STEPS
            assert result.mean == pytest.approx(np.mean(tasks), abs=1.0), (setting, method)


def test_settings_are_read_from_ids():
    for env_id, setting in {
        "DCS-ball_in_cup-catch-medium-static": Setting("ball_in_cup-catch", "medium", "static"),
        "DCS-walker-walk-clean": Setting("walker-walk"),
        "Pendulum-v1": Setting("Pendulum-v1"),
    }.items():
        assert parse_setting(env_id) == setting
