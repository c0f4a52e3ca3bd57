"""Reading runs, naming their agents, and the steps at which they are compared."""

from __future__ import annotations

import shutil

import pytest

from core_agent.table5.report.notes import notes
from core_agent.table5.report.results import table_rows
from core_agent.table5.report.runs import compared_steps, read_runs
from tests.table5.run_folders import STATUS, study_of, write_run


def test_runs_of_other_settings_are_not_pooled(tmp_path):
    write_run(tmp_path / "a", {1_000: 1.0})
    write_run(tmp_path / "b", {1_000: 9.0}, arguments={"kl_coef": 0.5})
    write_run(tmp_path / "c", {1_000: 9.0}, preset="debug")
    study = study_of(tmp_path)
    assert set(study.agents) == {"CoRe (small)", "CoRe (small, kl_coef=0.5)", "CoRe (debug)"}
    assert [row.result.n_seeds for row in table_rows(study)] == [1, 1, 1]
    write_run(tmp_path / "n" / "a", {1_000: 1.0})
    write_run(tmp_path / "n" / "b", {1_000: 9.0}, n_envs=4)
    assert study_of(tmp_path / "n").agents == ["CoRe (n_envs=1)", "CoRe (n_envs=4)"]


def test_the_same_run_counts_once(tmp_path):
    first = write_run(tmp_path / "a", {1_000: 1.0}, status={**STATUS, "state": "running"})
    shutil.copytree(first, tmp_path / "copy")
    write_run(tmp_path / "further", {1_000: 1.0, 2_000: 4.0})
    study = study_of(tmp_path)
    assert [run.folder.name for run in study.runs] == ["further"]
    assert "Left out: 2 folders" in " ".join(notes(study, table_rows(study)))
    runs, _ = read_runs([tmp_path, tmp_path / "a"])
    assert len(runs) == 3, "a path that is given twice is read once"


def test_lines_written_again_after_a_kill_count_once(tmp_path):
    folder = write_run(tmp_path / "a", {1_000: 1.0, 2_000: 2.0})
    complete = (folder / "evaluations.jsonl").read_text()
    again = complete.splitlines()[1].replace("2000", "2000 ")
    (folder / "evaluations.jsonl").write_text(f'{complete}{{"agent_steps": 7\n{again}\n{{"agent_')
    (run,) = read_runs([tmp_path])[0]
    assert list(run.returns) == [1_000, 2_000]


@pytest.mark.parametrize(
    ("curves", "states", "expected"),
    [
        (((8_000, 16_000), (8_000,)), ("finished", "failed"), [16_000]),
        (((8_000, 16_000), (8_000,)), ("running", "running"), [8_000]),
        (((500_000, 600_000), (8_000,)), ("running", "finished"), [500_000]),
        (((500_000, 1_000_000), (500_000,)), ("finished", "finished"), [500_000, 1_000_000]),
        (((), ()), ("running", "failed"), []),
    ],
)
def test_runs_are_compared_where_the_paper_is_or_else_where_they_ended(
    curves, states, expected, tmp_path
):
    for seed, (steps, state) in enumerate(zip(curves, states)):
        scores = dict.fromkeys(steps, 1.0)
        write_run(tmp_path / str(seed), scores, status={**STATUS, "state": state}, seed=seed)
    assert compared_steps(read_runs([tmp_path])[0]) == expected
