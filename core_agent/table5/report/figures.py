"""The report's charts, as dicts for Plotly. Their common layout is in the page's script.

Colours are names of the page's CSS variables, such as ``var(--series-1)``, which the page's script
resolves, so that charts follow the theme. Text is escaped, because Plotly reads a subset of HTML.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from core_agent.table5.paper import PAPER_STEPS, Setting, find_paper_result
from core_agent.table5.report.results import (
    CurvePoint,
    Estimate,
    binned_means,
    estimate,
    learning_curve,
)
from core_agent.table5.report.runs import Study
from core_agent.table5.statistics import (
    MINIMUM_SEEDS,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)

Figure = dict[str, Any]
Trace = dict[str, Any]

N_COLOURS = 8
"""Series colours of the page; further agents use them again with another dash."""
DASHES = ("solid", "dash", "dot")
N_BINS = 120
THRESHOLDS = np.linspace(0.0, 1.0, 101)
SHORT_STEPS = {500_000: "500k", 1_000_000: "1M"}
PANELS = (
    ("Model, total", "losses", "train/model_loss", "weighted sum"),
    ("Contrastive", "losses", "train/contrastive_loss", "nats"),
    ("Dynamics (KL)", "losses", "train/kl_loss", "nats"),
    ("Inverse dynamics", "losses", "train/inverse_loss", "half squared distance"),
    ("Reward", "losses", "train/reward_loss", "error"),
    ("Actor", "losses", "train/actor_loss", "mean of α log π − Q"),
    ("Critic", "losses", "train/critic_loss", "squared error"),
    ("Training episodes", "episodes", "return", "return per episode"),
)
"""Of the paper's Figure 1: title, log, key and unit."""
LABEL_GAP = 0.065
"""Smallest distance of two labels at the end of lines, as a share of the axis."""
LABEL_WIDTH = 12
"""Characters."""


class Label(NamedTuple):
    """A label at the right end of a line."""

    text: str
    height: float
    colour: str


# ---- parts of charts ----


def colour(study: Study, agent: str, kind: str = "series") -> str:
    """The CSS variable of an agent's lines, or of its bands (``kind="band"``)."""
    return f"var(--{kind}-{study.agents.index(agent) % N_COLOURS + 1})"


def significant(values: Iterable[float]) -> list[float | None]:
    """Six significant digits; ``None``, which leaves a gap, for what is not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def axis(title: str, **options: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {"title": {"text": title}, **options}


def steps_axis(title: str, **options: Any) -> dict[str, Any]:
    """Horizontal, in steps."""
    heading = {"unifiedhovertitle": {"text": f"%{{x:,.0f}} {title}"}}
    return axis(title, rangemode="tozero", tickformat="~s", nticks=5, **heading, **options)


def figure(traces: list[Trace], x: dict[str, Any], y: dict[str, Any], **options: Any) -> Figure:
    """A chart; the page's script has the layout that is common to all."""
    return {"data": traces, "layout": {"xaxis": x, "yaxis": y, **options}}


def line(
    study: Study, agent: str, x: Sequence[Any], y: Iterable[float], template: str, **options: Any
) -> Trace:
    """An agent's curve.

    :param template: template of the text that hovering shows after the agent's name
    """
    dash = DASHES[study.agents.index(agent) // N_COLOURS % len(DASHES)]
    return {
        "x": x,
        "y": significant(y),
        "mode": "lines",
        "name": html.escape(agent),
        "line": {"color": colour(study, agent), "width": 2.25, "dash": dash},
        "hovertemplate": f"<b>{html.escape(agent)}</b> {template}<extra></extra>",
        **options,
    }


def band(study: Study, agent: str, x: Sequence[float], low: Any, high: Any) -> Trace:
    """The area between two lines of an agent."""
    return {
        "x": [*x, *reversed(x)],
        "y": [*significant(low), *reversed(significant(high))],
        "fill": "toself",
        "fillcolor": colour(study, agent, "band"),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
    }


def ruler(along: str, at: float, line: dict[str, Any]) -> dict[str, Any]:
    """A straight line across the chart, along its ``"x"`` or ``"y"`` axis."""
    across = "y" if along == "x" else "x"
    ends = {f"{along}ref": "paper", f"{along}0": 0, f"{along}1": 1}
    return {"type": "line", **ends, f"{across}0": at, f"{across}1": at, "line": line}


def end_labels(labels: Sequence[Label], low: float, high: float) -> list[dict[str, Any]]:
    """Annotations right of the plot, moved apart where they would overlap.

    :param low: lower end of the vertical axis
    :param high: upper end
    """
    ordered = sorted(labels, key=lambda label: label.height)
    heights = spread([label.height for label in ordered], LABEL_GAP * (high - low), high)
    place = {"x": 1.0, "xanchor": "left", "xshift": 6, "yanchor": "middle"}
    return [
        {"y": y, "text": html.escape(shortened(text)), "font": {"color": tone}, **place}
        for y, (text, _, tone) in zip(heights, ordered)
    ]


def shortened(text: str) -> str:
    """The text, or its first words if it is longer than a label."""
    if len(text) <= LABEL_WIDTH:
        return text
    return f"{textwrap.wrap(text, LABEL_WIDTH - 1)[0]}…"


def spread(heights: Sequence[float], gap: float, high: float) -> list[float]:
    """Heights, given in ascending order, at least ``gap`` apart and at most ``high``."""
    result, free_from = [], -np.inf
    for height in heights:
        result.append(max(height, free_from))
        free_from = result[-1] + gap
    for i, height in reversed(list(enumerate(result))):
        result[i] = min(height, high)
        high = result[i] - gap
    return result


def interval_text(estimate: Estimate, digits: int) -> str:
    """``"2 [1, 3]"``; without brackets where there is no interval."""
    value, *ends = (f"{end:.{digits}f}" for end in estimate if end is not None)
    return f"{value} [{', '.join(ends)}]" if ends else value


def interval_figure(
    rows: Sequence[tuple[str, Estimate, str]], title: str, **options: Any
) -> Figure:
    """A dot and an interval on a line of its own for each row, named above it.

    :param rows: name, estimate and colour
    """
    traces: list[Trace] = []
    annotations = []
    place = {"x": 0, "xanchor": "left", "yanchor": "bottom", "yshift": 9, "align": "left"}
    for y, (name, row, tone) in enumerate(rows):
        words, name = interval_text(row, 2), html.escape(name)
        trace = {
            "x": [float(row.value)],
            "y": [y],
            "mode": "markers",
            "marker": {"size": 11, "color": tone},
            "cliponaxis": False,
            "hovertemplate": f"{name}: {words}<extra></extra>",
        }
        if row.low is not None and row.high is not None:
            sides = {"array": [row.high - row.value], "arrayminus": [row.value - row.low]}
            trace["error_x"] = {**sides, "color": tone, "thickness": 3, "width": 0}
        traces.append(trace)
        text = {"text": f"<b>{name}</b><br>{words}", "font": {"color": tone}}
        annotations.append({"y": y, **text, "bgcolor": "var(--ground)", **place})
    return figure(
        traces,
        axis(title, range=[0, 1], showgrid=True, nticks=6),
        axis("", range=[len(rows) - 0.7, -0.8], visible=False),
        height=70 + 70 * len(rows),
        margin={"l": 12, "r": 20, "t": 8, "b": 46},
        hovermode="closest",
        annotations=annotations,
        **options,
    )


# ---- the charts ----


def learning_figure(study: Study, setting: Setting) -> Figure:
    """Return over simulator steps, with the paper's values as dashed lines.

    :param setting: one with evaluations
    """
    traces: list[Trace] = []
    shapes, labels = [], []
    papers: dict[tuple[str, int], str] = {}
    for agent in study.agents:
        points = learning_curve(study, agent, setting)
        if points:
            traces += curve_traces(study, agent, setting, points)
            labels.append(Label(agent, float(points[-1].mean.value), colour(study, agent)))
            for steps in PAPER_STEPS:
                # Ablations share the line of their agent.
                papers.setdefault((study.paper_name(agent), steps), colour(study, agent))
    heights = [y for trace in traces for y in trace["y"] if y is not None]
    for (name, steps), tone in papers.items():
        paper = find_paper_result(name, setting, steps)
        if paper is not None:
            traces.append(paper_marker(steps, *paper, tone))
            shapes.append(ruler("x", paper.mean, {"color": tone, "width": 1.25, "dash": "dash"}))
            labels.append(Label(f"paper {SHORT_STEPS[steps]}", paper.mean, tone))
            heights.append(paper.mean + paper.standard_error)
    low, high = min(0.0, *heights), 1.06 * max(1.0, *heights)
    last = max(run.last_steps for run in study.select(setting))
    return figure(
        traces,
        steps_axis("simulator steps", range=[0, 1.03 * last]),
        axis("return per episode", range=[low, high], nticks=6),
        height=290,
        shapes=shapes,
        annotations=end_labels(labels, low, high),
    )


def curve_traces(
    study: Study, agent: str, setting: Setting, points: Sequence[CurvePoint]
) -> list[Trace]:
    """The mean over seeds, with its bootstrap interval from 3 seeds on; for two, also each seed."""
    traces = []
    runs = study.select(setting, agent)
    if 1 < len(runs) < MINIMUM_SEEDS:
        thin = {"line": {"color": colour(study, agent), "width": 1}, "opacity": 0.45}
        for run in runs:
            scores = significant(map(run.score, run.returns))
            seed = {"x": list(run.returns), "y": scores, "mode": "lines", "hoverinfo": "skip"}
            traces.append({**seed, **thin})
    sure = [(steps, mean.low, mean.high) for steps, mean, _ in points if mean.low is not None]
    if sure:
        traces.append(band(study, agent, *zip(*sure)))
    words = [
        f"{interval_text(p.mean, 0)}, {p.n_seeds} seed{'s' * (p.n_seeds != 1)}" for p in points
    ]
    x, y = [point.steps for point in points], [float(point.mean.value) for point in points]
    style = {"mode": "lines+markers", "marker": {"size": 5}, "text": words}
    return [*traces, line(study, agent, x, y, "%{text}", **style)]


def paper_marker(steps: int, mean: float, error: float, tone: str) -> Trace:
    """The paper's mean and standard error at its steps; outside the chart if runs are shorter."""
    diamond = {"symbol": "diamond-open", "size": 9, "color": tone, "line": {"width": 1.75}}
    return {
        "x": [steps],
        "y": [mean],
        "error_y": {"array": [error], "color": tone, "thickness": 1.5, "width": 4},
        "mode": "markers",
        "marker": diamond,
        "hovertemplate": f"paper {mean:.0f} ± {error:.0f}<extra></extra>",
    }


def loss_figures(study: Study, setting: Setting) -> dict[str, Figure]:
    """The panels of Figure 1 for which the runs on a setting have logged values, by title.

    A line is the mean over the seeds of an agent.
    """
    figures = {}
    for title, log, key, unit in PANELS:
        traces, labels = [], []
        for agent in study.agents:
            points = [
                (entry["agent_steps"], float(entry[key]))
                for run in study.select(setting, agent)
                for entry in getattr(run, log)
                if entry.get(key) is not None
            ]
            if points:
                steps, values = binned_means(points, N_BINS)
                traces.append(line(study, agent, significant(steps), values, "%{y:.4g}"))
                if np.isfinite(values[-1]):
                    labels.append(Label(agent, values[-1], colour(study, agent)))
        if traces:
            heights = [y for trace in traces for y in trace["y"] if y is not None]
            ends = min(heights, default=0.0), max(heights, default=1.0)
            x, y = steps_axis("agent steps"), axis(unit, nticks=5)
            figures[title] = figure(traces, x, y, height=250, annotations=end_labels(labels, *ends))
    return figures


def iqm_figure(study: Study, scores: dict[str, list[np.ndarray]]) -> Figure:
    """Interquartile mean of each agent, with its interval."""
    means = {agent: estimate(interquartile_mean, strata) for agent, strata in scores.items()}
    rows = [(agent, mean, colour(study, agent)) for agent, mean in means.items()]
    return interval_figure(rows, "interquartile mean of return / 1,000")


def improvement_figure(study: Study, scores: dict[str, list[np.ndarray]]) -> Figure:
    """Probability that the first agent improves on each other one; at 0.5 they are equal."""
    first, *others = scores
    rows = []
    for other in others:
        share = estimate(probability_of_improvement, scores[first], scores[other])
        rows.append((f"{first} over {other}", share, colour(study, other)))
    title = f"probability that a run of {html.escape(first)} scores higher"
    half = ruler("y", 0.5, {"color": "var(--muted)", "width": 1, "dash": "dot"})
    return interval_figure(rows, title, shapes=[half])


def profile_figure(study: Study, scores: dict[str, list[np.ndarray]]) -> Figure:
    """Share of runs that score more than each threshold."""
    traces, thresholds = [], THRESHOLDS.tolist()
    for agent, strata in scores.items():
        value, low, high = estimate(lambda s: performance_profile(s, THRESHOLDS), strata)
        if low is not None:
            traces.append(band(study, agent, thresholds, low, high))
        traces.append(line(study, agent, thresholds, value, "%{y:.0%}"))
        traces[-1]["line"]["shape"] = "hv"
    return figure(
        traces,
        axis(
            "threshold for return / 1,000", range=[0, 1], unifiedhovertitle={"text": "above %{x}"}
        ),
        axis("share of runs above it", range=[0, 1.02], tickformat=".0%", nticks=6),
        height=290,
        margin={"l": 58, "r": 20, "t": 12, "b": 46},
    )
