"""The report's charts, as figures for Plotly."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from core_agent.table5.paper import PAPER_STEPS, Setting, find_paper_result
from core_agent.table5.report.charts import (
    Figure,
    Label,
    Trace,
    axis,
    band,
    end_labels,
    interval_figure,
    interval_text,
    layout,
    seeds_text,
    significant,
    steps_axis,
)
from core_agent.table5.report.results import (
    THRESHOLDS,
    Aggregate,
    CurvePoint,
    binned_means,
    learning_curve,
)
from core_agent.table5.report.runs import RecordedRun
from core_agent.table5.report.study import Study
from core_agent.table5.statistics import MINIMUM_SEEDS

N_COLOURS = 8
"""Series colours of the page; further agents use them again with another dash."""
SHORT_STEPS = {500_000: "500k", 1_000_000: "1M"}
DASHES = ("solid", "dash", "dot")
N_BINS = 120


class Panel(NamedTuple):
    """One panel of Figure 1."""

    title: str
    log: str
    key: str
    unit: str


PANELS = (
    Panel("Model, total", "losses", "train/model_loss", "weighted sum"),
    Panel("Contrastive", "losses", "train/contrastive_loss", "nats"),
    Panel("Dynamics (KL)", "losses", "train/kl_loss", "nats"),
    Panel("Inverse dynamics", "losses", "train/inverse_loss", "half squared distance"),
    Panel("Reward", "losses", "train/reward_loss", "error"),
    Panel("Actor", "losses", "train/actor_loss", "mean of α log π − Q"),
    Panel("Critic", "losses", "train/critic_loss", "squared error"),
    Panel("Training episodes", "episodes", "return", "return per episode"),
)


class PaperLine(NamedTuple):
    """A result of the paper in a chart."""

    colour: str
    steps: int
    mean: float
    standard_error: float


def colour(study: Study, agent: str, kind: str = "series") -> str:
    """The CSS variable of an agent's lines, or of its bands (``kind="band"``)."""
    return f"var(--{kind}-{study.agents.index(agent) % N_COLOURS + 1})"


def dash(study: Study, agent: str) -> str:
    """Solid for the first eight agents."""
    return DASHES[study.agents.index(agent) // N_COLOURS % len(DASHES)]


def line(
    study: Study,
    agent: str,
    x: Sequence[float] | Sequence[float | None],
    y: Sequence[float | None],
    **options: Any,
) -> Trace:
    """An agent's curve."""
    return {
        "x": x,
        "y": y,
        "mode": "lines",
        "name": html.escape(agent),
        "line": {"color": colour(study, agent), "width": 2.25, "dash": dash(study, agent)},
        **options,
    }


def learning_figure(study: Study, setting: Setting) -> Figure:
    """Return over simulator steps, with the paper's values as dashed lines.

    With at least 3 seeds the band is the bootstrap interval of the mean; with fewer the seeds are
    drawn one by one.

    :param setting: one with evaluations
    """
    curves = {agent: learning_curve(study, agent, setting) for agent in study.agents}
    curves = {agent: points for agent, points in curves.items() if points}
    papers = paper_lines(study, list(curves), setting)
    traces: list[Trace] = []
    for agent, points in curves.items():
        traces += seed_lines(study, study.select(setting, agent), agent)
        traces += curve_traces(study, agent, points)
    traces += [paper_marker(paper) for paper in papers]
    labels = [
        Label(agent, points[-1].mean.value, colour(study, agent))
        for agent, points in curves.items()
    ]
    labels += [
        Label(f"paper {SHORT_STEPS[paper.steps]}", paper.mean, paper.colour) for paper in papers
    ]
    low, high = vertical_range(traces)
    last = max(points[-1].steps for points in curves.values())
    return {
        "data": traces,
        "layout": layout(
            {**steps_axis("simulator steps"), "range": [0, 1.03 * last]},
            axis("return per episode", range=[low, high], nticks=6),
            290,
            hovermode="x unified",
            shapes=[paper_shape(paper) for paper in papers],
            annotations=end_labels(labels, low, high),
        ),
    }


def paper_lines(study: Study, agents: Sequence[str], setting: Setting) -> list[PaperLine]:
    """The paper's results of the agents; ablations share the line of their agent."""
    first: dict[str, str] = {}
    for agent in agents:
        first.setdefault(study.paper_name(agent), agent)
    return [
        PaperLine(colour(study, agent), steps, *paper)
        for name, agent in first.items()
        for steps in PAPER_STEPS
        if (paper := find_paper_result(name, setting, steps)) is not None
    ]


def vertical_range(traces: Sequence[Trace]) -> tuple[float, float]:
    """From 0, or the lowest point, to a little above the highest point or error bar."""
    errors = [trace.get("error_y", {}).get("array", [0.0])[0] for trace in traces]
    heights = [
        y + error for trace, error in zip(traces, errors) for y in trace["y"] if y is not None
    ]
    return min(0.0, *heights), 1.06 * max(1.0, *heights)


def seed_lines(study: Study, runs: Sequence[RecordedRun], agent: str) -> list[Trace]:
    """One thin line for each seed, where there are too few for an interval; none otherwise."""
    if len(runs) >= MINIMUM_SEEDS or len(runs) == 1:
        return []
    return [
        {
            "x": [entry.simulator_steps for entry in run.evaluations],
            "y": significant([entry.score for entry in run.evaluations]),
            "mode": "lines",
            "line": {"color": colour(study, agent), "width": 1},
            "opacity": 0.45,
            "hoverinfo": "skip",
        }
        for run in runs
        if run.evaluations
    ]


def curve_traces(study: Study, agent: str, points: Sequence[CurvePoint]) -> list[Trace]:
    """The mean over seeds, and its interval where there is one."""
    x = [point.steps for point in points]
    words = [
        f"{point.mean.value:.0f}{interval_text(point.mean, 0)}, {seeds_text(point.n_seeds)}"
        for point in points
    ]
    traces = [
        line(
            study,
            agent,
            x,
            significant([point.mean.value for point in points]),
            mode="lines+markers",
            marker={"size": 5},
            text=words,
            hovertemplate=f"<b>{html.escape(agent)}</b> %{{text}}<extra></extra>",
        )
    ]
    sure = [point for point in points if point.mean.low is not None]
    if sure:
        low, high = zip(*((point.mean.low, point.mean.high) for point in sure))
        steps = [point.steps for point in sure]
        traces.insert(0, band(steps, low, high, colour(study, agent, "band")))
    return traces


def paper_shape(paper: PaperLine) -> dict[str, Any]:
    """A dashed line across the chart."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": paper.mean,
        "y1": paper.mean,
        "line": {"color": paper.colour, "width": 1.25, "dash": "dash"},
        "layer": "below",
    }


def paper_marker(paper: PaperLine) -> Trace:
    """The paper's mean and standard error at its steps; outside the chart if runs are shorter."""
    error = paper.standard_error
    return {
        "x": [paper.steps],
        "y": [paper.mean],
        "error_y": {"array": [error], "color": paper.colour, "thickness": 1.5, "width": 4},
        "mode": "markers",
        "marker": {
            "symbol": "diamond-open",
            "size": 9,
            "color": paper.colour,
            "line": {"width": 1.75},
        },
        "hovertemplate": f"paper {paper.mean:.0f} ± {error:.0f}<extra></extra>",
    }


def loss_figures(study: Study, setting: Setting) -> dict[str, Figure]:
    """The panels of Figure 1 for which the runs on a setting have logged values, by title."""
    figures = {}
    for panel in PANELS:
        points = {
            agent: logged_points(study.select(setting, agent), panel) for agent in study.agents
        }
        if any(points.values()):
            figures[panel.title] = loss_figure(study, panel.unit, points)
    return figures


def logged_points(runs: Sequence[RecordedRun], panel: Panel) -> list[tuple[float, float]]:
    """``(agent steps, value)`` of all entries in the runs' logs that have the panel's key."""
    return [
        (entry["agent_steps"], float(entry[panel.key]))
        for run in runs
        for entry in getattr(run, panel.log)
        if entry.get(panel.key) is not None
    ]


def loss_figure(study: Study, unit: str, points: dict[str, list[tuple[float, float]]]) -> Figure:
    """One panel of Figure 1: the mean over seeds of each agent."""
    traces, labels = [], []
    for agent, of_agent in points.items():
        if of_agent:
            steps, values = binned_means(of_agent, N_BINS)
            template = f"<b>{html.escape(agent)}</b> %{{y:.4g}}<extra></extra>"
            traces.append(
                line(study, agent, significant(steps), significant(values), hovertemplate=template)
            )
            if np.isfinite(values[-1]):
                labels.append(Label(agent, values[-1], colour(study, agent)))
    heights = [y for trace in traces for y in trace["y"] if y is not None]
    low, high = min(heights, default=0.0), max(heights, default=1.0)
    return {
        "data": traces,
        "layout": layout(
            steps_axis("agent steps"),
            axis(unit, nticks=5),
            250,
            hovermode="x unified",
            annotations=end_labels(labels, low, high),
        ),
    }


def iqm_figure(study: Study, aggregate: Aggregate) -> Figure:
    """Interquartile mean of each agent, with its interval."""
    rows = [(agent, estimate, colour(study, agent)) for agent, estimate in aggregate.iqm().items()]
    return interval_figure(rows, "interquartile mean of return / 1,000", [0, 1])


def improvement_figure(study: Study, aggregate: Aggregate) -> Figure:
    """Probability that the first agent improves on each other one; at 0.5 they are equal."""
    first = next(iter(aggregate.scores))
    rows = [
        (f"{first} over {other}", estimate, colour(study, other))
        for other, estimate in aggregate.improvements().items()
    ]
    title = f"probability that a run of {html.escape(first)} scores higher"
    figure = interval_figure(rows, title, [0, 1])
    figure["layout"]["shapes"] = [
        {
            "type": "line",
            "x0": 0.5,
            "x1": 0.5,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
            "layer": "below",
        }
    ]
    return figure


def profile_figure(study: Study, aggregate: Aggregate) -> Figure:
    """Share of runs that score more than each threshold."""
    traces, thresholds = [], THRESHOLDS.tolist()
    for agent, estimates in aggregate.profiles().items():
        if estimates[0].low is not None:
            _, low, high = zip(*estimates)
            traces.append(band(thresholds, low, high, colour(study, agent, "band")))
        shares = significant([estimate.value for estimate in estimates])
        template = f"<b>{html.escape(agent)}</b> %{{y:.0%}}<extra></extra>"
        traces.append(line(study, agent, thresholds, shares, hovertemplate=template))
        traces[-1]["line"]["shape"] = "hv"
    return {
        "data": traces,
        "layout": layout(
            axis(
                "threshold for return / 1,000",
                range=[0, 1],
                showgrid=False,
                ticks="outside",
                unifiedhovertitle={"text": "above %{x}"},
                spikecolor="var(--muted)",
                spikethickness=1,
            ),
            axis("share of runs above it", range=[0, 1.02], tickformat=".0%", nticks=6),
            290,
            margin={"l": 58, "r": 20, "t": 12, "b": 46},
            hovermode="x unified",
        ),
    }
