"""The report on runs: its numbers, its warnings, and that no text of a run becomes markup."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from core_agent import cli
from core_agent.table5.paper import TASKS
from core_agent.table5.report import page, write_report
from core_agent.table5.report.figures import shortened, spread
from core_agent.table5.report.notes import facts, notes
from core_agent.table5.report.results import (
    aggregates,
    binned_means,
    learning_curve,
    mean_rows,
    table_rows,
)
from core_agent.table5.statistics import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)
from tests.table5.run_folders import STATUS, study_of, write_lines, write_run

CHEETAH, WALKER = "DCS-cheetah-run-easy-dynamic", "DCS-walker-walk-easy-dynamic"
CORE = {CHEETAH: (400.0, 420.0, 500.0), WALKER: (700.0, 730.0, 790.0)}
CURL = {CHEETAH: (230.0, 250.0, 410.0), WALKER: (600.0, 650.0, 730.0)}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Tags, visible text, the cells of tables and the figures of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.text = ""
        self._raw = ""
        html = path.read_text()
        self.size = len(html)
        self.feed(html)
        self.figures = json.loads(self._raw)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1]
        if tag == "script" and attributes.get("id") == "figures":
            self._raw += data
        elif tag not in ("script", "style"):
            self.text += data

    def cells(self, column: int, n_columns: int = 5) -> list[str]:
        """``data-value`` of a column, over all tables that have so many columns."""
        cells = [attributes.get("data-value") for tag, attributes in self.tags if tag == "td"]
        return cells[column::n_columns]

    def named(self, title: str) -> dict:
        """The first figure whose horizontal axis has that title."""
        return next(
            figure
            for figure in self.figures.values()
            if figure["layout"]["xaxis"]["title"]["text"] == title
        )


def write_runs(folder: Path, scores: dict, agent: str = "core", steps: int = 500_000) -> None:
    for env_id, of_seeds in scores.items():
        for seed, score in enumerate(of_seeds):
            run = folder / agent / env_id / f"seed-{seed}"
            curve = {steps // 2: score / 2, steps: score}
            write_run(run, curve, env_id=env_id, agent=agent, seed=seed)


def report_on(folder: Path) -> Page:
    output = folder.parent / "report.html"
    write_report([folder], output)
    return Page(output)


@pytest.fixture(scope="module", autouse=True)
def _short_pages():
    """Without the 5 MB of Plotly's script, which the test in the browser has."""
    plotly = pytest.importorskip(
        "plotly.offline", reason="needs Plotly: pip install -e '.[report]'"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotly, "get_plotlyjs", lambda: "")
        yield


@pytest.fixture(scope="module")
def two_agents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "runs"
    write_runs(folder, CORE)
    write_runs(folder, CURL, "curl")
    return folder, report_on(folder)


def test_the_table_has_our_mean_the_papers_and_the_difference(two_agents):
    folder, shown = two_agents
    study = study_of(folder)
    cheetah, curl_cheetah, walker, _ = rows = table_rows(study)
    # (400 + 420 + 500) / 3; deviations -40, -20, 60: variance 2800, error sqrt(2800 / 3).
    assert cheetah.result == (440.0, pytest.approx(np.sqrt(2_800 / 3)), 3)
    assert cheetah.paper == (423, 22)
    assert cheetah.difference[:2] == (17.0, pytest.approx(np.sqrt(2_800 / 3 + 22**2)))
    assert (walker.result.mean, walker.paper.mean) == (740.0, 744)
    assert "440 ± 31" in shown.text and "423 ± 22" in shown.text and "+17 ± 38" in shown.text
    # Two rows of means, then the tasks, CoRe before CURL.
    means = [590.0, (890 / 3 + 660) / 2, 440.0, curl_cheetah.result.mean, 740.0, 660.0]
    assert [float(mean) for mean in shown.cells(2)[:6]] == pytest.approx(means)
    # The means over some tasks stand next to the paper's over the same tasks.
    ours, _ = mean_rows(study, rows)
    assert ours.n_tasks == 2
    assert ours.paper == ((423 + 744) / 2, pytest.approx(np.hypot(22, 40) / 2))


def test_means_over_all_tasks_stand_next_to_the_tables_own(tmp_path):
    write_runs(tmp_path, {f"DCS-{task}-easy-dynamic": (600.0,) for task in TASKS})
    study = study_of(tmp_path)
    (row,) = mean_rows(study, table_rows(study))
    assert (row.n_tasks, row.paper) == (6, (586, 30))


def test_charts_show_what_the_statistics_say(two_agents):
    _, shown = two_agents
    ours, theirs = ([np.array(v) / 1_000 for v in scores.values()] for scores in (CORE, CURL))
    iqm = shown.named("interquartile mean of return / 1,000")["data"]
    for trace, strata in zip(iqm, (ours, theirs)):
        value, interval = (
            interquartile_mean(strata),
            stratified_bootstrap(interquartile_mean, strata),
        )
        assert trace["x"] == [pytest.approx(value)]
        assert trace["error_x"]["array"] == [pytest.approx(interval.high - value)]
        assert trace["error_x"]["arrayminus"] == [pytest.approx(value - interval.low)]

    (pair,) = shown.named("probability that a run of CoRe scores higher")["data"]
    # Cheetah: 8 of 9 pairs; walker: 7 and a half wins, as 730 ties, of 9.
    assert pair["x"] == [pytest.approx((8 / 9 + 7.5 / 9) / 2)]
    assert pair["x"] == [pytest.approx(probability_of_improvement(ours, theirs))]

    band, profile, *_ = shown.named("threshold for return / 1,000")["data"]
    expected = performance_profile(ours, np.array(profile["x"]))
    np.testing.assert_allclose(profile["y"], expected, atol=1e-6)
    assert len(band["x"]) == 2 * len(profile["x"])


def test_curves_have_the_mean_the_interval_and_the_paper(two_agents):
    folder, shown = two_agents
    figure = shown.named("simulator steps")
    band, core, _, _, paper, *_ = figure["data"]
    assert core["x"] == [250_000, 500_000] and core["y"] == pytest.approx([220.0, 440.0])
    study = study_of(folder)
    points = learning_curve(study, "CoRe", study.settings[0])
    expected = [points[0].mean.low, points[1].mean.low, points[1].mean.high, points[0].mean.high]
    np.testing.assert_allclose(band["y"], expected, rtol=1e-5)
    assert (paper["x"], paper["y"], paper["error_y"]["array"]) == ([500_000], [423], [22])
    assert [shape["y0"] for shape in figure["layout"]["shapes"]] == [423, 569, 233]
    labels = [label["text"] for label in figure["layout"]["annotations"]]
    assert sorted(labels) == ["CURL", "CoRe", "paper 1M", "paper 500k", "paper 500k"]


def test_bands_and_intervals_need_three_seeds_and_an_error_two(tmp_path):
    write_runs(tmp_path / "runs", {CHEETAH: (400.0, 420.0), WALKER: (300.0,)})
    shown = report_on(tmp_path / "runs")
    text = " ".join(shown.text.split())
    assert "Fewer than 3 seeds: 2 of 2 results" in text
    assert "2 seeds, too few for an interval" in text
    assert "Fewer than 3 seeds: no interval." in text
    (dot,) = shown.named("interquartile mean of return / 1,000")["data"]
    assert "error_x" not in dot
    assert not any("fill" in trace for figure in shown.figures.values() for trace in figure["data"])
    assert "500,000 steps, 1 seed," in text
    assert "300 ±" not in text and "nan" not in text


def test_other_conditions_than_the_papers_are_noted(tmp_path):
    for seed, used in enumerate((["bfloat16"], ["float32"], ["bfloat16", "float32"])):
        status = {**STATUS, "precisions": used}
        write_run(tmp_path / str(seed), {16_000: 90.0}, status=status, n_episodes=5, seed=seed)
    study = study_of(tmp_path)
    words = " ".join(notes(study, table_rows(study)))
    for note in (
        "Other steps than the paper's (†): 1 of 1 results, at 16,000 simulator steps",
        "Other presets than the paper's: small. Networks, batches and pictures are smaller",
        "Background videos: the built-in clips",
        "Episodes per evaluation: 5; the paper's evaluations have 20",
    ):
        assert note in words
    assert ("Precision", "bfloat16 and float32") in facts(study)


def test_runs_as_in_the_paper_need_no_warning(tmp_path):
    for seed in range(5):
        davis = {"video_path": "/data/DAVIS/JPEGImages/480p"}
        run = dict(seed=seed, preset="paper", env_arguments=davis)
        write_run(tmp_path / str(seed), {500_000: 400.0 + seed}, **run)
    study = study_of(tmp_path)
    assert notes(study, table_rows(study)) == []


@pytest.mark.parametrize(
    ("videos", "said"),
    [
        ("builtin", "the built-in clips."),
        ("", "none."),
        ("/data/mine", "the folder mine."),
        ("/data/mine/JPEGImages/480p", "the folder mine."),
        (None, "not recorded"),
    ],
)
def test_the_machine_s_videos_are_noted_if_the_arguments_do_not_name_them(tmp_path, videos, said):
    write_run(tmp_path / "run", {1_000: 5.0}, env_arguments={}, videos=videos)
    study = study_of(tmp_path)
    said = f"Background videos: {said}"
    assert any(note.startswith(said) for note in notes(study, table_rows(study)))


def test_text_of_runs_never_becomes_markup(tmp_path):
    status = {**STATUS, "state": "failed", "error": HOSTILE, "host": HOSTILE}
    run = dict(env_id=HOSTILE, agent=HOSTILE, preset=HOSTILE)
    write_run(tmp_path / "runs" / "a", {1_000: 5.0}, {"train/critic_loss": [1.0]}, status, **run)
    shown = report_on(tmp_path / "runs")
    assert [tag for tag, _ in shown.tags].count("script") == 3
    assert "img" not in {tag for tag, _ in shown.tags}
    assert HOSTILE in shown.text
    assert "<img" not in json.dumps(shown.figures), "Plotly reads a subset of HTML"


def test_failures_come_with_their_reasons(tmp_path):
    failed = {**STATUS, "state": "failed", "error": "NonFiniteError: critic_loss is NaN"}
    runs = tmp_path / "runs"
    write_run(runs / "failed", {1_000: 5.0}, status=failed, seed=1)
    # A run that has just started has no figures.
    started = {**dict.fromkeys(STATUS), "state": "running"}
    write_run(runs / "going", status=started, seed=2)
    write_run(runs / "waiting", status=None, seed=3)
    broken = write_run(runs / "broken", seed=4)
    write_lines(broken / "evaluations.jsonl", [{"agent_steps": 1, "simulator_steps": 4}])
    early = {"state": "failed", "error": "ValueError: image_size must be >= 84"}
    (write_run(runs / "early", status=early) / "run.json").unlink()
    (write_run(runs / "trained", status=None) / "model.zip").touch()
    text = " ".join(report_on(runs).text.split())
    assert "NonFiniteError: critic_loss is NaN" in text
    assert "Not finished, of 3 runs: 1 running, 1 failed and 1 not started" in text
    assert "seed 3 not started" in text
    assert "3 more cannot be read" in text and "KeyError: 'returns'" in text
    assert "folder must hold run.json, got 'ValueError: image_size must be >= 84'" in text
    assert "core-agent benchmark records what a report shows" in text


def test_runs_without_an_evaluation_or_that_cannot_be_read_make_a_page_that_says_so(tmp_path):
    write_run(tmp_path / "runs" / "a", status=None)
    shown = report_on(tmp_path / "runs")
    assert "No evaluation yet" in shown.text and shown.figures == {}
    write_run(tmp_path / "runs" / "b", status=None)
    (tmp_path / "runs" / "a" / "run.json").write_text("{")
    assert "JSONDecodeError" in report_on(tmp_path / "runs").text
    (tmp_path / "runs" / "b" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"at least one run that can be read, .*JSONDecodeError"):
        report_on(tmp_path / "runs")


@pytest.mark.parametrize(
    ("folder", "missing", "messages"),
    [
        ("missing", None, ["runs must be folders, got"]),
        ("", None, ["runs must hold at least one run, a folder with run.json"]),
        ("runs", "jinja2", ["needs jinja2 and plotly", "pip install 'core-agent[report]'"]),
        ("runs", "plotly.offline", ["needs jinja2 and plotly", "plotly.offline"]),
    ],
)
def test_what_a_report_lacks_is_an_error_of_one_line(
    folder, missing, messages, tmp_path, monkeypatch, capsys
):
    if missing:
        write_run(tmp_path / "runs" / "a", {1_000: 5.0})
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("sys.argv", ["core-agent", "report", str(tmp_path / folder)])
    with pytest.raises(SystemExit):
        cli.main()
    error = capsys.readouterr().err
    assert all(message in error for message in messages)


def test_the_command_writes_the_page(tmp_path):
    write_run(tmp_path / "runs" / "a", {1_000: 5.0})
    output = tmp_path / "new" / "page.html"
    command = ["report", str(tmp_path / "runs"), "--output", str(output)]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    assert "1 run(s)" in result.output
    assert output.read_text().startswith("<!doctype html>")


def test_an_ablation_follows_its_agent_and_shares_the_papers_line(tmp_path):
    for name, arguments in (("a", {"kl_coef": 0.5}), ("b", {})):
        write_run(tmp_path / "runs" / name, {500_000: 400.0}, arguments=arguments)
    assert study_of(tmp_path).agents == ["CoRe", "CoRe (kl_coef=0.5)"]
    shapes = report_on(tmp_path / "runs").named("simulator steps")["layout"]["shapes"]
    assert [shape["y0"] for shape in shapes] == [423, 569]


def test_the_page_loads_nothing(two_agents):
    _, shown = two_agents
    links = [
        value
        for _, attributes in shown.tags
        for name, value in attributes.items()
        if name in ("src", "href", "data", "action", "poster")
    ]
    assert all(link.startswith(("#", "data:,")) for link in links)
    (policy,) = [a["content"] for _, a in shown.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'")


def test_the_page_stays_small_however_long_the_logs(tmp_path):
    losses = {f"train/{name}_loss": list(range(5_000)) for name in ("actor", "critic")}
    curve = {1_000 * i: float(i) for i in range(100)}
    write_run(tmp_path / "short" / "a", {1_000: 1.0})
    write_run(tmp_path / "long" / "a", curve, losses)
    grown = report_on(tmp_path / "long").size - report_on(tmp_path / "short").size
    assert 0 < grown < 40_000


def test_videos_are_of_median_seeds_up_to_the_size_of_a_page(tmp_path, monkeypatch):
    for agent in ("core", "curl"):
        for env_id in (CHEETAH, WALKER):
            for seed, score in enumerate((300.0, 100.0, 200.0)):
                run = dict(agent=agent, env_id=env_id, seed=seed)
                folder = tmp_path / agent / env_id / str(seed)
                (write_run(folder, {1_000: score}, **run) / "validation.mp4").write_bytes(b"film")
    monkeypatch.setattr(page, "VIDEO_BYTES", 2 * len(b"film"))
    videos, n_left_out = page.choose_videos(study_of(tmp_path))
    assert [(run.name, run.seed) for run, _ in videos] == [("CoRe", 2), ("CURL", 2)]
    assert n_left_out == 2


def test_agents_are_aggregated_over_the_settings_that_they_share(tmp_path):
    write_runs(tmp_path, CORE)
    write_runs(tmp_path, {CHEETAH: CURL[CHEETAH]}, "curl")
    (aggregate,) = aggregates(study_of(tmp_path))
    assert [setting.task for setting in aggregate.settings] == ["cheetah-run"]
    assert [setting.task for setting in aggregate.left_out] == ["walker-walk"]
    np.testing.assert_allclose(aggregate.scores["CoRe"], [[0.4, 0.42, 0.5]])


def test_returns_of_other_environments_are_not_aggregated(tmp_path):
    write_run(tmp_path / "runs" / "a", {10_000: -150.0}, env_id="Pendulum-v1", env_arguments={})
    study = study_of(tmp_path)
    assert aggregates(study) == []
    (row,) = table_rows(study)
    assert (row.result.mean, row.paper, row.difference) == (pytest.approx(-150.0), None, None)
    assert f"{page.MINUS}150" in report_on(tmp_path / "runs").text


def test_neighbouring_steps_are_averaged_where_there_are_too_many():
    steps, values = binned_means([(1, 1.0), (1, 3.0), (2, 4.0), (3, 6.0), (4, 8.0)], 2)
    # Steps 1 and 2, then 3 and 4; both seeds of step 1 count.
    np.testing.assert_allclose(steps, [4 / 3, 3.5])
    np.testing.assert_allclose(values, [8 / 3, 7.0])


def test_losses_that_are_not_finite_leave_a_gap(tmp_path):
    losses = {"train/critic_loss": [1.0, float("nan"), 3.0]}
    write_run(tmp_path / "runs" / "a", {1_000: 1.0}, losses)
    (curve,) = report_on(tmp_path / "runs").named("agent steps")["data"]
    assert curve["y"] == [1.0, None, 3.0]


def test_labels_keep_apart_and_stay_within_the_chart():
    assert spread([1.0, 1.2, 9.9, 10.0], gap=1.0, high=10.0) == [1.0, 2.0, 9.0, 10.0]


def test_words_and_numbers_as_they_are_shown():
    names = ["QT-Opt+RAD", "Recurrent SAC+RAD", "a_very_long_name"]
    assert [shortened(name) for name in names] == ["QT-Opt+RAD", "Recurrent…", "a_very_long…"]
    assert [page.duration(3_600 * hours) for hours in (12.5, 0.08)] == ["12.5 h", "4.8 min"]
    values = (12.4, -12.4, 0.3, -0.3, float("nan"))
    assert [page.number(v, plus=True) for v in values] == ["+12", "−12", "0", "0", "–"]
