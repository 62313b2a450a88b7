"""The rows of the evaluation table, from what the training recipes and recipes/evaluate.py leave as evaluation.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psychecore.report.tail import number
from psychecore.untrusted import read_json

MAX_ROWS = 5000


def evaluation_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of label, step, set, value, low, high, n, constant, ...; a figure that is absent or no number is None.

    "percent" says whether the value is a share, "detail" whether it is of a part of the set. Nothing is made up: an
    unknown shape gives no rows. Raises ValueError, naming the file, for damaged JSON and numbers too large to show.
    """
    if not path.is_file():
        return []
    found = read_json(path)
    rows = _benchmarks(found) if isinstance(found.get("benchmarks"), dict) else _heldout(found)
    try:
        found_rows = sorted(rows, key=lambda row: bool(row["detail"]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if (more := len(found_rows) - MAX_ROWS) > 0:
        found_rows[MAX_ROWS:] = [_row("", None, f"{more:,} more in {path.name}", {}, {})]
    return found_rows


def _heldout(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """recipes/sft.py and grpo.py: {label: {"step", "sets": {name: ChoiceReport}}}."""
    for label, entry in found.items():
        for name, report in _object(_object(entry).get("sets")).items():
            if isinstance(report, dict):
                score = {**report, "value": report.get("accuracy")}
                yield _row(label, number(entry.get("step"), "step"), name, score, report)


def _benchmarks(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """recipes/evaluate.py: {"model", "benchmarks": {name: result}}, results of the kinds choice, overlap and judged."""
    label = str(_object(found.get("model")).get("name") or "")
    for name, result in found["benchmarks"].items():
        result = _object(result)
        other = Path(str(result.get("compared_with") or "the other")).name
        yield from _choice(label, name, result.get("all"))
        for average, score in _object(result.get("averages")).items():
            yield _row(label, None, f"{name}, average, {average}", _object(score), {})
        for figure, score in _object(result.get("against")).items():
            if "value" in _object(score):  # a judged comparison has its counts there as well
                what = f"wins less losses against {other}" if figure == "margin" else f"{figure} less {other}'s"
                yield _row(label, None, f"{name}, {what}", score, {}, percent=result.get("kind") != "overlap")
        for group, values in _object(result.get("by")).items():
            if len(_object(values)) > 1:
                for value, scores in values.items():
                    yield from (row | {"detail": True} for row in _choice(label, f"{name}, {group} {value}", scores))
        for figure, score in _object(result.get("figures")).items():
            yield _row(label, None, f"{name}, {figure}", _object(score), {}, percent=False)
        for rubric, judged in _object(result.get("rubrics")).items():
            for figure, score in _object(_object(judged).get("figures")).items():
                yield _row(label, None, f"{name}, {rubric} {figure}", _object(score), _object(judged), percent=False)


def _choice(label: str, name: str, scores: Any) -> Iterator[dict[str, Any]]:
    """The rows of one evaluate.scores.ChoiceScores."""
    scores = _object(scores)
    if isinstance(scores.get("accuracy"), dict):
        elastic = _object(scores.get("elastic")).get("value")
        yield _row(label, None, name, scores["accuracy"], {**scores, "elastic": elastic})
    for k, score in _object(scores.get("pass_k")).items():
        yield _row(label, None, f"{name}, pass@{k}", _object(score), {})
    if isinstance(scores.get("majority"), dict):
        yield _row(label, None, f"{name}, majority", scores["majority"], {})


def _row(
    label: str, step: float | None, name: str, score: dict[str, Any], more: dict[str, Any], percent: bool = True
) -> dict[str, Any]:
    row: dict[str, Any] = {"label": label, "step": step, "set": name, "percent": percent, "detail": False}
    row["constant_answer"] = str(score.get("constant_answer") or "")
    row["format"] = number(more.get("format", more.get("format_rate")), "format")  # of evaluation, of training
    row |= {key: number(score.get(key), key) for key in ("value", "low", "high", "n", "constant")}
    return row | {key: number(more.get(key), key) for key in ("elastic", "unparsable")}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
