"""Parts of the report's charts, as dicts for Plotly.

Colours are names of the page's CSS variables, such as ``var(--series-1)``, which the page's script
resolves, so that charts follow the theme. Text is escaped, because Plotly reads a subset of HTML.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from core_agent.table5.report.results import Estimate

Figure = dict[str, Any]
Trace = dict[str, Any]

LABEL_GAP = 0.065
"""Smallest distance of two labels at the end of lines, as a share of the axis."""
LABEL_WIDTH = 12
"""Characters."""


class Label(NamedTuple):
    """A label at the right end of a line."""

    text: str
    height: float
    colour: str


def significant(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Six significant digits; ``None``, which leaves a gap, for what is not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def axis(title: str, **options: Any) -> dict[str, Any]:
    """An axis without zoom, so that a finger scrolls the page."""
    return {
        "title": {"text": title, "standoff": 8},
        "fixedrange": True,
        "automargin": True,
        "zeroline": False,
        "linecolor": "var(--rule)",
        "tickcolor": "var(--rule)",
        "gridcolor": "var(--rule)",
        **options,
    }


def layout(x: dict[str, Any], y: dict[str, Any], height: int, **options: Any) -> dict[str, Any]:
    """The common layout of all charts."""
    return {
        "height": height,
        "margin": {"l": 52, "r": 92, "t": 12, "b": 46},
        "paper_bgcolor": "var(--ground)",
        "plot_bgcolor": "var(--ground)",
        "font": {"size": 12, "color": "var(--muted)"},
        "hoverlabel": {
            "bgcolor": "var(--raised)",
            "bordercolor": "var(--rule)",
            "font": {"color": "var(--text)", "size": 12},
        },
        "showlegend": False,
        "dragmode": False,
        "xaxis": x,
        "yaxis": y,
        **options,
    }


def steps_axis(title: str) -> dict[str, Any]:
    """Horizontal, in steps."""
    return axis(
        title,
        rangemode="tozero",
        showgrid=False,
        ticks="outside",
        tickformat="~s",
        nticks=5,
        unifiedhovertitle={"text": f"%{{x:,.0f}} {title}"},
        spikecolor="var(--muted)",
        spikethickness=1,
    )


def end_labels(labels: Sequence[Label], low: float, high: float) -> list[dict[str, Any]]:
    """Annotations right of the plot, moved apart where they would overlap.

    :param low: lower end of the vertical axis
    :param high: upper end
    """
    ordered = sorted(labels, key=lambda label: label.height)
    heights = spread([label.height for label in ordered], LABEL_GAP * (high - low), high)
    return [
        {
            "xref": "paper",
            "x": 1.0,
            "xanchor": "left",
            "xshift": 6,
            "y": height,
            "yanchor": "middle",
            "text": html.escape(shortened(label.text)),
            "font": {"color": label.colour, "size": 12},
            "showarrow": False,
        }
        for height, label in zip(heights, ordered)
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


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], fill: str) -> Trace:
    """The area between two lines."""
    return {
        "x": [*x, *reversed(x)],
        "y": [*significant(low), *reversed(significant(high))],
        "fill": "toself",
        "fillcolor": fill,
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
    }


def seeds_text(n_seeds: int) -> str:
    """``"1 seed"``, ``"5 seeds"``."""
    return f"{n_seeds} seed{'s' if n_seeds != 1 else ''}"


def interval_text(estimate: Estimate, digits: int) -> str:
    """``" [1, 3]"``, or nothing where there is no interval."""
    if estimate.low is None:
        return ""
    return f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def interval_figure(
    rows: Sequence[tuple[str, Estimate, str]], title: str, limits: list[float]
) -> Figure:
    """A dot and an interval on a line of its own for each row, named above it.

    :param rows: name, estimate and colour
    """
    traces = []
    annotations = []
    for position, (name, estimate, row_colour) in enumerate(rows):
        words = f"{estimate.value:.2f}{interval_text(estimate, 2)}"
        traces.append(dot_and_interval(position, estimate, row_colour, f"{name}: {words}"))
        annotations.append(
            {
                "xref": "paper",
                "x": 0,
                "xanchor": "left",
                "y": position,
                "yanchor": "bottom",
                "yshift": 9,
                "text": f"<b>{html.escape(name)}</b><br>{words}",
                "align": "left",
                "font": {"color": row_colour, "size": 12},
                "bgcolor": "var(--ground)",
                "showarrow": False,
            }
        )
    y_axis = axis("", range=[len(rows) - 0.7, -0.8], visible=False)
    return {
        "data": traces,
        "layout": layout(
            axis(title, range=limits, showgrid=True, nticks=6),
            y_axis,
            70 + 70 * len(rows),
            margin={"l": 12, "r": 20, "t": 8, "b": 46},
            hovermode="closest",
            annotations=annotations,
        ),
    }


def dot_and_interval(position: int, estimate: Estimate, row_colour: str, words: str) -> Trace:
    """One row of :func:`interval_figure`."""
    trace: Trace = {
        "x": [estimate.value],
        "y": [position],
        "mode": "markers",
        "marker": {"size": 11, "color": row_colour},
        "cliponaxis": False,
        "hovertemplate": f"{html.escape(words)}<extra></extra>",
    }
    if estimate.low is not None and estimate.high is not None:
        trace["error_x"] = {
            "array": [estimate.high - estimate.value],
            "arrayminus": [estimate.value - estimate.low],
            "color": row_colour,
            "thickness": 3,
            "width": 0,
        }
    return trace
