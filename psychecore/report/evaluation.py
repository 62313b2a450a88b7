"""The rows of the evaluation table, from what the training recipes and recipes/evaluate.py leave as evaluation.json."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psychecore.untrusted import read_json

MAX_ROWS = 500


def evaluation_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of label, step, set, value, low, high, n, constant, ...; a figure that is absent or no number is None.

    "percent" says whether the value is a share. Nothing is made up: an unknown shape gives no rows.
    """
    if not path.is_file():
        return []
    found = read_json(path)
    rows = _benchmarks(found) if isinstance(found.get("benchmarks"), dict) else _heldout(found)
    return [row for row, _ in zip(rows, range(MAX_ROWS), strict=False)]


def _heldout(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """recipes/sft.py and grpo.py: {label: {"step", "sets": {name: ChoiceReport}}}."""
    for label, entry in found.items():
        for name, report in _object(_object(entry).get("sets")).items():
            if isinstance(report, dict):
                score = {**report, "value": report.get("accuracy")}
                yield _row(label, _number(entry.get("step")), name, score, _object(report))


def _benchmarks(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """recipes/evaluate.py: {"model", "benchmarks": {name: result}}, results of the kinds choice, overlap and judged."""
    label = str(_object(found.get("model")).get("name") or "")
    for name, result in found["benchmarks"].items():
        result = _object(result)
        whole = _object(result.get("all"))
        if isinstance(whole.get("accuracy"), dict):
            elastic = _object(whole.get("elastic")).get("value")
            yield _row(label, None, name, whole["accuracy"], {**whole, "elastic": elastic})
        for average, score in _object(result.get("averages")).items():
            yield _row(label, None, f"{name}, average, {average}", _object(score), {})
        for figure, score in _object(result.get("figures")).items():
            yield _row(label, None, f"{name}, {figure}", _object(score), {}, percent=False)
        for rubric, judged in _object(result.get("rubrics")).items():
            for figure, score in _object(_object(judged).get("figures")).items():
                yield _row(label, None, f"{name}, {rubric} {figure}", _object(score), _object(judged), percent=False)


def _row(
    label: str, step: float | None, name: str, score: dict[str, Any], more: dict[str, Any], percent: bool = True
) -> dict[str, Any]:
    row: dict[str, Any] = {"label": label, "step": step, "set": name, "percent": percent}
    row["constant_answer"] = str(score.get("constant_answer") or "")
    row |= {key: _number(score.get(key)) for key in ("value", "low", "high", "n", "constant")}
    return row | {key: _number(more.get(key)) for key in ("elastic", "format_rate", "unparsable")}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and math.isfinite(value) else None
