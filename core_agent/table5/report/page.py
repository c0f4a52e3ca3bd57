"""The report: runs as one HTML page that loads nothing from a network."""

from __future__ import annotations

import base64
import datetime
import functools
import importlib
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import core_agent
from core_agent.table5.paper import PaperResult, Setting
from core_agent.table5.report import figures, results
from core_agent.table5.report.notes import facts, listing, notes, state_counts
from core_agent.table5.report.results import MeanError
from core_agent.table5.report.runs import STATES, RecordedRun, UnreadableRun, read_runs
from core_agent.table5.report.study import Study, make_study
from core_agent.table5.statistics import MINIMUM_SEEDS

VIDEO_BYTES = 24 * 1024**2
"""Largest size of all videos of a page, before base64 encoding, which adds a third."""
MINUS = "\N{MINUS SIGN}"


class Video(NamedTuple):
    """An episode of one agent on one setting."""

    agent: str
    run: RecordedRun
    content: str
    """The file, as base64."""


def write_report(paths: Sequence[Path], output: Path) -> int:
    """Write the page and return the number of runs found.

    :param paths: folders with runs at any depth
    :param output: the page to write
    :raises ValueError: if there is no run
    :raises ModuleNotFoundError: without jinja2 and plotly, saying how to install them
    """
    runs, unreadable = read_runs(paths)
    page = render(make_study(runs), unreadable)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    return len(runs) + len(unreadable)


def render(study: Study, unreadable: Sequence[UnreadableRun]) -> str:
    """The page as HTML; all text from the runs' files is escaped."""
    jinja2 = need("jinja2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number,
        signed=signed,
        mean_error=mean_error,
        difference=difference,
        duration=duration,
        setting=setting_name,
        distractions=distractions,
        listing=listing,
    )
    template = environment.from_string(asset("page.html"))
    return template.render(
        css=asset("page.css"),
        javascript=asset("page.js"),
        plotly=need("plotly.offline").get_plotlyjs(),
        **content(study, unreadable),
    )


def asset(name: str) -> str:
    """A file of this package."""
    return (resources.files("core_agent.table5.report") / name).read_text(encoding="utf-8")


def need(module: str) -> Any:
    """A module of the extra ``report``.

    :raises ModuleNotFoundError: saying how to install it
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a report needs {module} ({error}); install it with: pip install 'core-agent[report]'"
        ) from error


def content(study: Study, unreadable: Sequence[UnreadableRun]) -> dict[str, Any]:
    """The template's variables."""
    rows = results.table_rows(study)
    charts = Charts(study)
    counts = state_counts(study)
    videos, n_left_out = choose_videos(study)
    return dict(
        title=title(study),
        version=core_agent.__version__,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        facts=facts(study),
        notes=notes(study, rows),
        states=[(state, counts[state]) for state in STATES if counts[state]],
        n_runs=len(study.runs),
        tables=[
            ("Mean over tasks", results.mean_rows(study, rows)),
            ("Task by task", rows),
        ],
        curves=charts.curves(),
        aggregates=charts.aggregates(),
        losses=charts.losses(),
        figures=charts.figures,
        videos=videos,
        n_videos_left_out=n_left_out,
        speeds=results.speeds(study),
        failed=[run for run in study.runs if run.state == "failed"],
        unreadable=unreadable,
        pending=[run for run in study.runs if run.state in ("running", "not begun")],
        name=study.name,
        agents=study.agents,
        colour=functools.partial(figures.colour, study),
        minimum_seeds=MINIMUM_SEEDS,
        n_bins=figures.N_BINS,
    )


class Charts:
    """Makes the figures, and names each for the page.

    :param study: runs to show
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.figures: dict[str, figures.Figure] = {}

    def add(self, figure: figures.Figure) -> str:
        """Store a figure and return its name."""
        name = f"figure-{len(self.figures) + 1}"
        self.figures[name] = figure
        return name

    def curves(self) -> list[tuple[Setting, str]]:
        """Learning curves of every setting that was evaluated."""
        return [
            (setting, self.add(figures.learning_figure(self.study, setting)))
            for setting in self.study.settings
            if any(run.evaluations for run in self.study.select(setting))
        ]

    def aggregates(self) -> list[dict[str, Any]]:
        """Statistics over settings, with charts of those that all agents have."""
        result = []
        for aggregate in results.aggregates(self.study):
            names = {}
            if aggregate.settings:
                names["iqm"] = self.add(figures.iqm_figure(self.study, aggregate))
                names["profile"] = self.add(figures.profile_figure(self.study, aggregate))
                if len(aggregate.scores) > 1:
                    figure = figures.improvement_figure(self.study, aggregate)
                    names["improvement"] = self.add(figure)
            result.append(dict(of=aggregate, figures=names))
        return result

    def losses(self) -> list[tuple[Setting, list[tuple[str, str]]]]:
        """Figure 1 for every setting that has logged losses: titles and names of the panels."""
        result = []
        for setting in self.study.settings:
            panels = figures.loss_figures(self.study, setting)
            if panels:
                named = [(heading, self.add(figure)) for heading, figure in panels.items()]
                result.append((setting, named))
        return result


def choose_videos(study: Study) -> tuple[list[Video], int]:
    """One video for each agent and setting up to the largest size, and the number left out.

    Every agent comes first with its first setting, then with its second, and so on.
    """
    candidates = []
    for agent in study.agents:
        medians = [median_run(study.select(setting, agent)) for setting in study.settings]
        found = [run for run in medians if run is not None]
        candidates += [(turn, agent, run) for turn, run in enumerate(found)]
    videos, room = [], VIDEO_BYTES
    for _, agent, run in sorted(candidates, key=lambda candidate: candidate[0]):
        size = run.video.stat().st_size
        if size <= room:
            room -= size
            content = base64.b64encode(run.video.read_bytes()).decode()
            videos.append(Video(agent, run, content))
    return videos, len(candidates) - len(videos)


def median_run(runs: Sequence[RecordedRun]) -> RecordedRun | None:
    """The run with the median return among those with a video."""
    filmed = [run for run in runs if run.video.is_file()]
    ranked = sorted(filmed, key=lambda run: run.evaluations[-1].score if run.evaluations else 0.0)
    return ranked[(len(ranked) - 1) // 2] if ranked else None


def title(study: Study) -> str:
    """``"CoRe and CURL on cheetah-run"``, or on so many tasks."""
    tasks = sorted({setting.task for setting in study.settings})
    if not tasks:
        return "No run can be read"
    agents = listing(study.agents) if len(study.agents) < 4 else f"{len(study.agents)} agents"
    return f"{agents} on {tasks[0] if len(tasks) == 1 else f'{len(tasks)} tasks'}"


def distractions(setting: Setting) -> str:
    """``"easy, dynamic"``."""
    return ", ".join(setting[1:]) if setting.difficulty else "undistracted"


def setting_name(setting: Setting) -> str:
    """``"cheetah-run, easy, dynamic"``."""
    return ", ".join(filter(None, setting))


def number(value: float, digits: int = 0) -> str:
    """With thousands separated and a true minus sign; a dash for what is not finite."""
    if not math.isfinite(value):
        return "–"
    # Adding 0 takes the sign off a negative zero.
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", MINUS)


def duration(hours: float) -> str:
    """``"12.5 h"``; below an hour ``"4.8 min"``."""
    return f"{number(hours, 1)} h" if hours >= 1 else f"{number(60 * hours, 1)} min"


def signed(value: float) -> str:
    """``"+12"``, ``"−12"`` or ``"0"``."""
    text = number(value)
    return f"+{text}" if value > 0 and text != "0" else text


def mean_error(result: MeanError | PaperResult) -> str:
    """``"423 ± 22"``; without the error where one seed has none."""
    if math.isnan(result.standard_error):
        return number(result.mean)
    return f"{number(result.mean)} ± {number(result.standard_error)}"


def difference(result: MeanError) -> str:
    """``"−22 ± 31"``; without the error where one seed has none."""
    error = "" if math.isnan(result.standard_error) else f" ± {number(result.standard_error)}"
    return f"{signed(result.mean)}{error}"
