"""Every kernel under Triton's interpreter: one process for all files of interpreted/, one test here for each file."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.stem for path in FOLDER.glob("test_*.py"))


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs the tests: (JUnit report, what pytest printed)."""
    pytest.importorskip("triton")
    report = tmp_path_factory.mktemp("interpreted") / "report.xml"
    command = [sys.executable, "-m", "pytest", str(FOLDER), f"--junit-xml={report}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    return report, result.stdout + result.stderr


@pytest.mark.parametrize("file", FILES)
def test_the_interpreted_kernel_agrees_with_its_references(file: str, interpreted: tuple[Path, str]) -> None:
    report, output = interpreted
    assert passed(report, file, output) > 0, f"{file} holds no test that ran:\n{output}"


def passed(report: Path, file: str, output: str) -> int:
    """How many tests of this file passed; one that failed, or a file that could not be imported, fails here."""
    assert report.is_file(), output
    count = 0
    for case in ElementTree.parse(report).iter("testcase"):
        if file not in f"{case.get('classname')}.{case.get('name')}".split("."):
            continue
        problems = [child for child in case if child.tag in ("failure", "error")]
        assert not problems, f"{case.get('name')}\n{problems[0].text}"
        count += not any(child.tag == "skipped" for child in case)
    return count
