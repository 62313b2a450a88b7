"""SECURITY.md promises nothing without a test: every row of its table names one that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| (?P<promise>[^|]+) \| `(?P<file>tests/[\w/]+\.py)::(?P<test>\w+)` \|$")


def promises() -> list[str]:
    """The rows of the table under "What is promised"."""
    page = (REPO / "SECURITY.md").read_text(encoding="utf-8")
    section = page.partition("## What is promised")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def test_every_promise_names_a_test_that_exists() -> None:
    rows = promises()
    assert len(rows) > 20
    for row in rows:
        match = ROW.match(row)
        assert match, f"not a promise and its test: {row}"
        path = REPO / match["file"]
        assert path.is_file(), f"{match['file']} does not exist: {row}"
        tests = {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if hasattr(node, "name")}
        assert match["test"] in tests, f"{match['file']} has no {match['test']}: {row}"


def test_no_promise_stands_twice() -> None:
    rows = promises()
    assert len({row.split("|")[1] for row in rows}) == len(rows)
