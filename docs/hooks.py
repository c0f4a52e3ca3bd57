"""Hooks of MkDocs: formulas, drawings and references of docstrings.

Blocks of ``math`` become SVG, which needs no font and no script. SVG images are put into the page,
where they use its colours. References in docstrings become links.
"""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
MATH = re.compile(r"^```math\n(?P<latex>.*?)^```$", re.S | re.M)
DRAWING = re.compile(r'<img alt="(?P<alt>[^"]*)" src="(?P<file>[^"]+\.svg)" ?/?>')
ROLE = re.compile(
    r":(?:attr|class|data|func|meth|mod):<code>"
    r"(?:(?P<title>[^<&]+?)\s+&lt;(?P<named>[\w.]+)&gt;|(?P<tilde>~?)(?P<path>[\w.]+))</code>"
)


def draw_formula(match: re.Match[str]) -> str:
    """A formula as SVG, one drawing per line, in the colour of the text."""
    latex = re.sub(r"\\(begin|end){split}|&", "", match["latex"])
    drawn = "".join(draw_line(line.strip()) for line in latex.split(r"\\"))
    label = html.escape(" ".join(latex.split()), quote=True)
    return f'<div class="formula" role="img" aria-label="{label}">{drawn}</div>'


def draw_line(latex: str, size: float = 10.0) -> str:
    """One line of a formula as SVG, its width in units of the font's size."""
    figure, file = Figure(), io.StringIO()
    figure.text(0, 0, f"${latex}$", fontsize=size, math_fontfamily="stix")
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": latex}):
        figure.savefig(
            file, format="svg", bbox_inches="tight", pad_inches=0.03, metadata={"Date": None}
        )
    svg = file.getvalue()
    points = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # type: ignore[index]
    box = re.search(r'viewBox="[^"]+"', svg)[0]  # type: ignore[index]
    glyphs = svg[svg.index('<g id="text_1">') : svg.rindex("</g>")]
    return f'<svg {box} style="width: {points / size:.2f}em" fill="currentColor">{glyphs}</svg>'


def inline_drawing(match: re.Match[str]) -> str:
    """The SVG file of an image, as an element of the page."""
    svg = (ROOT / "docs" / match["file"]).read_text()
    return f'<div class="drawing" role="img" aria-label="{match["alt"]}">{svg}</div>'


def link(match: re.Match[str]) -> str:
    """A reference as a link if the site documents it, otherwise as code."""
    path = match["named"] or match["path"]
    name = match["title"] or (path.rpartition(".")[2] if match["tilde"] else path)
    return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page before it is rendered."""
    return MATH.sub(draw_formula, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs for each page after it was rendered."""
    return ROLE.sub(link, DRAWING.sub(inline_drawing, content))
