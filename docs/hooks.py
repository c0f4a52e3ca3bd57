"""What the website does with the pages, which are plain Markdown for whoever reads them elsewhere.

A part between two comments names a section of another file; on the website that section takes its
place, without its heading::

    <!-- include envs/README.md: Options -->
    All options are in [envs/README.md](../envs/README.md#options).
    <!-- end -->

Blocks of ``math`` are drawn, so that they need no font and no script; drawings are put into the
page, where they take its colours; references in docstrings become links.
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
INCLUDE = re.compile(r"<!-- include (?P<file>\S+): (?P<heading>.+?) -->\n.*?<!-- end -->", re.S)
MATH = re.compile(r"^```math\n(?P<latex>.*?)^```$", re.S | re.M)
DRAWING = re.compile(r'<img alt="(?P<alt>[^"]*)" src="(?P<file>[^"]+\.svg)" ?/?>')
ROLE = re.compile(
    r":(?:attr|class|data|func|meth|mod):<code>"
    r"(?:(?P<title>[^<&]+?)\s+&lt;(?P<named>[\w.]+)&gt;|(?P<tilde>~?)(?P<path>[\w.]+))</code>"
)
FENCE = "```"


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one that is not deeper.

    :param text: Markdown
    :param heading: without its number signs
    :raises ValueError: if there is no such heading
    """
    level, lines, fenced = 0, [], False
    for line in text.splitlines():
        fenced ^= line.startswith(FENCE)
        hashes = "" if fenced else re.match("#*", line)[0]  # type: ignore[index]
        if level and hashes and len(hashes) <= level:
            break
        if level:
            lines.append(line)
        elif hashes and line[len(hashes) :].strip() == heading:
            level = len(hashes)
    if not level:
        raise ValueError(f"include must name a heading of the file, got {heading!r}")
    return "\n".join(lines).strip()


def include(match: re.Match[str]) -> str:
    """The section that a comment names; its links to these pages start from here."""
    return section((ROOT / match["file"]).read_text(), match["heading"]).replace("](docs/", "](")


def draw_formula(match: re.Match[str]) -> str:
    """A formula, each of its lines a drawing in the colour of the text."""
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
    """The drawing itself, for an image that is one."""
    svg = (ROOT / "docs" / match["file"]).read_text()
    return f'<div class="drawing" role="img" aria-label="{match["alt"]}">{svg}</div>'


def link(match: re.Match[str]) -> str:
    """A reference as a link, where the site describes what it names, and as code elsewhere."""
    path = match["named"] or match["path"]
    name = match["title"] or (path.rpartition(".")[2] if match["tilde"] else path)
    return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page before it is rendered."""
    return MATH.sub(draw_formula, INCLUDE.sub(include, markdown))


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs for each page after it was rendered."""
    return ROLE.sub(link, DRAWING.sub(inline_drawing, content))
