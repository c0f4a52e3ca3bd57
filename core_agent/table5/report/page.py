"""The report: runs as one HTML page that loads nothing from a network."""

from __future__ import annotations

import base64
import datetime
import functools
import math
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import core_agent
from core_agent.table5.grid import STATES
from core_agent.table5.paper import PaperResult
from core_agent.table5.report import figures, results
from core_agent.table5.report.notes import facts, listing, notes
from core_agent.table5.report.runs import RecordedRun, Study, make_study, read_runs
from core_agent.table5.statistics import MINIMUM_SEEDS, MeanError
from core_agent.validation import check

VIDEO_BYTES = 24 * 1024**2
"""Largest size of all videos of a page, before base64 encoding, which adds a third."""
MINUS = "\N{MINUS SIGN}"


def write_report(paths: Sequence[Path], output: Path) -> int:
    """Write the page and return the number of runs on it.

    :param paths: folders with runs at any depth
    :param output: the page to write
    :raises ValueError: if there is no run that can be read
    :raises ModuleNotFoundError: without jinja2 and plotly, saying how to install them
    """
    runs, unreadable = read_runs(paths)
    rule = "hold at least one run that can be read"
    folder, reason = unreadable[0] if unreadable else ("", "")
    check(bool(runs), "runs", rule, str(folder), reason)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render(make_study(runs), unreadable), encoding="utf-8")
    return len(runs)


def render(study: Study, unreadable: Sequence[tuple[Path, str]]) -> str:
    """The page as HTML; all text from the runs' files is escaped."""

    def asset(name: str) -> str:
        return (resources.files("core_agent.table5.report") / name).read_text(encoding="utf-8")

    try:
        import jinja2
        from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a report needs jinja2 and plotly ({error}); install them with: "
            "pip install 'core-agent[report]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number,
        mean_error=mean_error,
        duration=duration,
        setting=lambda setting: ", ".join(filter(None, setting)),
        distractions=lambda setting: ", ".join(setting[1:]) if setting[1] else "undistracted",
    )
    return environment.from_string(asset("page.html")).render(
        css=asset("page.css"),
        javascript=asset("page.js"),
        plotly=get_plotlyjs(),
        **content(study, unreadable),
    )


def content(study: Study, unreadable: Sequence[tuple[Path, str]]) -> dict[str, Any]:
    """The template's variables."""
    rows = results.table_rows(study)
    counts = Counter(run.state for run in study.runs)
    videos, n_left_out = choose_videos(study)
    return dict(
        title=title(study),
        version=core_agent.__version__,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        facts=facts(study),
        notes=notes(study, rows),
        states=[(state, counts[state]) for state in STATES if counts[state]],
        n_runs=len(study.runs),
        tables=[("Mean over tasks", results.mean_rows(study, rows)), ("Task by task", rows)],
        **charts(study),
        videos=videos,
        n_videos_left_out=n_left_out,
        speeds=results.speeds(study),
        failed=[run for run in study.runs if run.state == "failed"],
        unreadable=unreadable,
        pending=[run for run in study.runs if run.state not in ("finished", "failed")],
        agents=study.agents,
        colour=functools.partial(figures.colour, study),
        minimum_seeds=MINIMUM_SEEDS,
        n_bins=figures.N_BINS,
    )


def charts(study: Study) -> dict[str, Any]:
    """The page's figures by their names, and the names that each section shows."""
    named: dict[str, figures.Figure] = {}

    def add(figure: figures.Figure) -> str:
        named[name := f"figure-{len(named) + 1}"] = figure
        return name

    curves = [
        (setting, add(figures.learning_figure(study, setting)))
        for setting in study.settings
        if any(run.returns for run in study.select(setting))
    ]
    aggregates = []
    for aggregate in results.aggregates(study):
        scores, names = aggregate.scores, {}
        if aggregate.settings:
            names["iqm"] = add(figures.iqm_figure(study, scores))
            names["profile"] = add(figures.profile_figure(study, scores))
            if len(scores) > 1:
                names["improvement"] = add(figures.improvement_figure(study, scores))
        aggregates.append(dict(of=aggregate, figures=names))
    panels = [(setting, figures.loss_figures(study, setting)) for setting in study.settings]
    losses = [
        (setting, [(heading, add(figure)) for heading, figure in found.items()])
        for setting, found in panels
        if found
    ]
    return dict(curves=curves, aggregates=aggregates, losses=losses, figures=named)


def choose_videos(study: Study) -> tuple[list[tuple[RecordedRun, str]], int]:
    """One video for each agent and setting up to the largest size, and the number left out.

    Every agent comes first with its first setting, then with its second, and so on.

    :return: runs with their videos as base64; the number
    """
    candidates = []
    for agent in study.agents:
        medians = (median_run(study.select(setting, agent)) for setting in study.settings)
        candidates += list(enumerate(filter(None, medians)))
    videos, room = [], VIDEO_BYTES
    for _, run in sorted(candidates, key=lambda candidate: candidate[0]):
        size = run.video.stat().st_size
        if size <= room:
            room -= size
            videos.append((run, base64.b64encode(run.video.read_bytes()).decode()))
    return videos, len(candidates) - len(videos)


def median_run(runs: Sequence[RecordedRun]) -> RecordedRun | None:
    """The run with the median return among those with a video."""
    filmed = [run for run in runs if run.video.is_file()]
    ranked = sorted(filmed, key=lambda run: run.score(run.last_steps) if run.returns else 0.0)
    return ranked[(len(ranked) - 1) // 2] if ranked else None


def title(study: Study) -> str:
    """``"CoRe and CURL on cheetah-run"``, or on so many tasks."""
    tasks = sorted({setting.task for setting in study.settings})
    if not tasks:
        return "No run can be read"
    agents = listing(study.agents) if len(study.agents) < 4 else f"{len(study.agents)} agents"
    return f"{agents} on {tasks[0] if len(tasks) == 1 else f'{len(tasks)} tasks'}"


def number(value: float, digits: int = 0, plus: bool = False) -> str:
    """A number with thousands separators and a true minus sign; a dash if it is not finite.

    :param plus: write the sign of positive numbers too
    """
    if not math.isfinite(value):
        return "–"
    # Adding 0 takes the sign off a negative zero.
    rounded = round(float(value), digits) + 0.0
    return f"{'+' * (plus and rounded > 0)}{rounded:,.{digits}f}".replace("-", MINUS)


def mean_error(result: MeanError | PaperResult, plus: bool = False) -> str:
    """``"423 ± 22"``; without the error where one seed has none.

    :param plus: a positive mean has a sign too
    """
    mean, error = number(result.mean, plus=plus), result.standard_error
    return mean if math.isnan(error) else f"{mean} ± {number(error)}"


def duration(seconds: float) -> str:
    """``"12.5 h"``; below an hour ``"4.8 min"``."""
    hours = seconds / 3_600
    return f"{number(hours, 1)} h" if hours >= 1 else f"{number(60 * hours, 1)} min"
