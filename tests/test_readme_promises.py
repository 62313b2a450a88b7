"""README.md's table of what a run survives names tests that exist; a name may end in `...`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
TEST = re.compile(r"`(?P<file>[\w/]+\.py)?::(?P<test>\w+)(?P<more>\.\.\.)?`")


def test_every_promise_names_tests_that_exist() -> None:
    page = (REPO / "README.md").read_text(encoding="utf-8")
    section = page.partition("## Runs that survive")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 10
    for row in rows:
        named = row.rsplit("|", 2)[1]
        assert TEST.sub("", named).strip(" ,") == "", f"not tests: {named}"
        file = ""
        for match in TEST.finditer(named):
            file = match["file"] or file
            path = REPO / "tests" / file
            assert path.is_file(), f"{path} does not exist: {row}"
            tests = [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if hasattr(node, "name")]
            fits = [
                name for name in tests if name == match["test"] or (match["more"] and name.startswith(match["test"]))
            ]
            assert fits, f"{file} has no {match['test']}: {row}"
