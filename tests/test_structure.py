"""Limits that keep the code readable: sizes of modules, classes and functions."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path
    for package in (ROOT / "core_agent", ROOT / "envs" / "distracting_envs")
    for path in package.rglob("*.py")
)
LONGEST_MODULE = 400
LONGEST_CLASS = 350
LONGEST_FUNCTION = 60
SHORTEST_MODULE = 40


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:] or body[:1]
    return body[-1].end_lineno - body[0].lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_class_or_function_is_too_long(path):
    source = path.read_text()
    assert len(source.splitlines()) <= LONGEST_MODULE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno + 1 <= LONGEST_CLASS, node.name
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert body_lines(node) <= LONGEST_FUNCTION, node.name


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_a_short_module_has_more_than_one_importer():
    importers = defaultdict(set)
    for path in MODULES:
        for name in imported_names(path):
            importers[name].add(path)
    for path in MODULES:
        if path.name == "__init__.py" or len(path.read_text().splitlines()) >= SHORTEST_MODULE:
            continue
        base = ROOT if ROOT / "core_agent" in path.parents else ROOT / "envs"
        name = ".".join(path.relative_to(base).with_suffix("").parts)
        assert len(importers[name]) != 1, f"{name} belongs into {importers[name]}"


def test_one_module_alone_knows_the_environments():
    naming = [
        path.relative_to(ROOT)
        for path in MODULES
        if "core_agent" in path.parts
        and re.search(r"^\s*(from|import) distracting_envs", path.read_text(), re.M)
    ]
    assert len(naming) == 1, naming


def test_the_environments_know_nothing_of_the_agents():
    for path in MODULES:
        if "distracting_envs" in path.parts:
            assert not any(name.startswith("core_agent") for name in imported_names(path)), path


def test_the_readme_fits_one_screen_and_a_half():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
