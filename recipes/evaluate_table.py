"""The result of one benchmark as the lines of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HEADER = f"{'':<34}{'n':>6}{'value':>9}  {'95 % interval':<17}{'constant':>9}{'unparsable':>12}"


def show(name: str, result: Mapping[str, Any]) -> list[str]:
    """The lines of a result of recipes/evaluate.py; shares as percentages."""
    shown = {"choice": _choice, "overlap": _overlap, "judged": _judged}[result["kind"]]
    return [f"== {name}", HEADER, *shown(result)]


def _choice(result: Mapping[str, Any]) -> Iterator[str]:
    if "all" not in result:
        yield "no published answers: nothing is scored"
    else:
        yield from _group("all", result["all"])
        for values in result["by"].values():
            if len(values) > 1:
                for value, group in values.items():
                    yield from _group(value, group)
    for label, score in result.get("averages", {}).items():
        yield _line(f"average, {label}", score, 100)
    for label, score in result.get("against", {}).items():
        yield _line(f"difference, {label}", score, 100)
    dropped = [problem for problem in result["problems"] if problem["dropped"]]
    if result["problems"]:
        yield f"{len(dropped)} dropped, {len(result['problems']) - len(dropped)} kept with a remark (evaluation.json)"
    for problem in dropped[:5]:
        yield f"  {problem['file']} {problem['row']}: {problem['reason']}"


def _group(label: str, group: Mapping[str, Any]) -> Iterator[str]:
    unparsable = f"{100 * group['unparsable']:>11.1f}%"
    yield _line(label, group["accuracy"], 100) + unparsable
    if group["elastic"]:
        yield _line(f"{label}, elastic", group["elastic"], 100)
    for k, score in group["pass_k"].items():
        yield _line(f"{label}, pass@{k}", score, 100)
    if group["majority"]:
        yield _line(f"{label}, majority", group["majority"], 100)
    if group["empty"]:
        yield f"{label}: {group['empty']:.1%} empty answers; a question longer than model.max_length gets one"


def _overlap(result: Mapping[str, Any]) -> Iterator[str]:
    for label, score in result["figures"].items():
        yield _line(label, score, 1)
    for label, score in result.get("against", {}).items():
        yield _line(f"difference, {label}", score, 1)
    if result["empty"]:
        yield f"{result['empty']:.1%} without an answer, which score 0"


def _judged(result: Mapping[str, Any]) -> Iterator[str]:
    for rubric, found in result["rubrics"].items():
        for label, score in found["figures"].items():
            yield _line(f"{rubric} {label}", score, 1)
        yield f"{rubric}: {found['unparsable']:.1%} of {found['n']} verdicts of {result['judge']} could not be read"
    if result.get("empty"):
        yield f"{result['empty']:.1%} of the replies are empty (too long a dialogue, or thinking without an end)"
    if against := result.get("against"):
        yield "against the other: " + ", ".join(f"{kind} {count}" for kind, count in against["counts"].items())
        if against["margin"]:
            yield _line("wins less losses", against["margin"], 100)


def _line(label: str, score: Mapping[str, Any], times: float) -> str:
    low, high = times * score["low"], times * score["high"]
    constant = score.get("constant")
    floor = "" if constant is None else f"{times * constant:.1f} {score.get('constant_answer', '')}".strip()
    interval = f"{low:.2f} to {high:.2f}"
    return f"{_fit(label, 34)}{score['n']:>6}{times * score['value']:>9.2f}  {interval:<17}{floor:>9}"


def _fit(text: str, width: int) -> str:
    """Padded to a width in which a Chinese character takes two places."""
    return text + " " * max(width - sum(2 if "\u2e80" <= char <= "\uffef" else 1 for char in text), 1)
