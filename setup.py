"""The README as package indexes show it; everything else is in pyproject.toml.

An index shows a README without the files next to it. ``REPOSITORY``, the address of a repository on
GitHub, makes the addresses of its pictures and links absolute. Without ``REPOSITORY``, pictures are
left out and links become plain text.
"""

import os
import re
from pathlib import Path

from setuptools import setup

RELATIVE = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?!https?://)[^)]+)\)")


def for_index(markdown: str, repository: str) -> str:
    """Markdown whose pictures and links do not depend on a checkout.

    :param repository: address of the repository; empty: keep the text of links alone
    """

    def replace(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        if not repository:
            return "" if picture else text
        kind = "raw" if picture else "blob"
        return f"{picture}[{text}]({repository.rstrip('/')}/{kind}/HEAD/{target})"

    return RELATIVE.sub(replace, markdown)


if __name__ == "__main__":
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=for_index(readme, os.environ.get("REPOSITORY", "")),
        long_description_content_type="text/markdown",
    )
