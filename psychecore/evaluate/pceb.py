"""PCEB, the Psychological Counselor Examination Benchmark (PsycoLLM, Apache-2.0), read as it is published.

Folders `theory|moral / single|multiple / tier / *.json` and `cases / mix|essay / tier / *.json`. The published table
has six columns, (case, moral, theory) x (single, multiple); its average is their plain mean, the bracketed one takes
the elastic accuracy in the three multiple columns.

The files hold what scanned exam papers hold: answers with U+2003 or a line end, PDF glyphs (⼈ for 人), options out of
order, empty answers, and a "single" choice whose key names three options. Only what cannot be scored is dropped. The
rest stays where it was published, since the published figures count it there, and is named in `problems`: a question
of a single-choice column with the key BCD is right for the answer BCD alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from psychecore.data.records import Question
from psychecore.evaluate.item import (
    Essay,
    Item,
    Problem,
    clean_letters,
    clean_options,
    clean_text,
    optional_text,
    parse_rows,
)
from psychecore.untrusted import MAX_JSON, within

AREAS = {"cases": "case", "moral": "moral", "theory": "theory"}  # folder: as the table calls it
COLUMNS = tuple(f"{area} {kind}" for area in AREAS.values() for kind in ("single", "multiple"))
_PREFIX = re.compile(r"^[\s【\[(（]*([单多])(?:项)?选(?:择题?|题)?[】\])）]*\s*[:：]?\s*")
# What stands in brackets is point marks where each part is one: "(2分)", "（每点1分，共3分）", "（任答3点得6分）".
# "（65分，重度抑郁）", "（该量表总分72分）", "原始分（26分）" and "得分28分（28分）" are results of tests.
_BRACKETS = re.compile(r"(?<![\d始准得总评均子表]分)\s*[（(【\[［]([^（）()【】\[\]［］\n]{1,40})[）)】\]］]")
_MOST_POINTS, _NUMBER = r"(?:[0-2]?\d|30)(?:\.\d)?", r"\d{1,2}(?:\.\d)?"
_OF = rf"(?:(?:本|每|各|共|满|计|答|写|任|酌|得|最|总|合)\D{{0,8}})?(?:{_NUMBER} ?[点条项个]\D{{0,6}})?"
_POINTS = re.compile(
    rf"(?:共|满分) ?\d{{1,3}} ?分|{_OF}(?:{_NUMBER} ?[-~～—至到] ?)?{_MOST_POINTS} ?分(?:/[点条项个])?"
)
_PIECE = re.compile(rf"{_OF}(?:得分)?|\D{{0,6}}(?:即可|酌情\D{{0,3}}|扣 ?{_NUMBER} ?分)")


@dataclass(frozen=True)
class Pceb:
    """The choice questions by file and row, the case questions with open answers, and what was wrong with the files."""

    items: list[Item]
    essays: list[Essay]
    problems: list[Problem]


def read_pceb(folder: Path) -> Pceb:
    """Read the folder, or a part of it. Raises ValueError where it holds no question, or a file that is not JSON."""
    if not any((folder / name).is_dir() for name in AREAS):
        raise ValueError(f"{folder} is no PCEB folder: it holds none of {', '.join(AREAS)}")
    if linked := next((name for name in AREAS if (folder / name).is_symlink()), None):
        raise ValueError(f"{folder / linked} is a link, which is not followed: put the folder itself there")
    reader = _Reader()
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        if within(folder, name).stat().st_size > MAX_JSON:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes, but at most {MAX_JSON:,} are read")
        reader.file(name, parse_rows(path.read_bytes(), str(path)))
    if not reader.items and not reader.essays:
        raise ValueError(
            f"{folder}: no question could be read; the first problem: {next(iter(reader.problems), 'none')}"
        )
    present = {item.groups["column"] for item in reader.items}
    for column in (column for column in COLUMNS if present and column not in present):
        reader.problems.append(Problem(folder.name, "", f"no question of the column {column!r}", dropped=True))
    return Pceb(reader.items, reader.essays, reader.problems)


def column_weights(present: Mapping[str, int]) -> dict[str, float]:
    """The weight of each column in the table's average, over those of the six columns that have items."""
    columns = [column for column in COLUMNS if present.get(column)]
    return {column: 1 / len(columns) for column in columns}


def without_points(gold: str) -> str:
    """An open answer without its point marks.

    >>> without_points("（1）初步诊断：一般心理问题（2分）。（每点1分，共3分）")
    '（1）初步诊断：一般心理问题。'
    """

    def unless_marks(found: re.Match[str]) -> str:
        parts = [part.strip() for part in re.split("[，,、；;。：:+]|(?<=分) |(?<=分)共", found[1]) if part.strip()]
        points = [part for part in parts if _POINTS.fullmatch(part)]
        return "" if points and all(part in points or _PIECE.fullmatch(part) for part in parts) else found[0]

    return _BRACKETS.sub(unless_marks, gold)


class _Reader:
    """Collects items, essays and problems over the files."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.essays: list[Essay] = []
        self.problems: list[Problem] = []
        self._seen: dict[tuple[str, ...], str] = {}

    def file(self, name: str, rows: list[Any]) -> None:
        folder, _, rest = name.partition("/")
        form, _, rest = rest.partition("/")
        tier = rest.partition("/")[0] if "/" in rest else ""
        forms = ("mix", "essay") if folder == "cases" else ("single", "multiple")
        if folder not in AREAS or form not in forms:
            self.problems.append(Problem(name, "", "it stands in no folder of the published layout", dropped=True))
            return
        groups = {"area": AREAS[folder], "tier": tier}
        for number, row in enumerate(rows, start=1):
            place = f"row {number}"
            try:
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}, but each row must be an object")
                if folder != "cases":
                    self._choice(name, place, row, "", form, groups)
                    continue
                context, on_case = _context(row), {**groups, "case": f"{name} {place}"}
                for at, part in _parts(row):
                    self._part(name, f"{place} question {at}", part, context, form, on_case)
            except ValueError as error:
                self.problems.append(Problem(name, place, str(error), dropped=True))

    def _part(self, name: str, place: str, part: Any, context: str, form: str, groups: dict[str, str]) -> None:
        try:
            if not isinstance(part, dict):
                raise ValueError(f"a {type(part).__name__}, but each question must be an object")
            if form == "essay":
                self._essay(name, place, part, context, groups)
                return
            prefix = _PREFIX.match(clean_text(part.get("question")))
            if prefix is None:
                raise ValueError("the question starts with neither 单选 nor 多选, so its column is not known")
            self._choice(name, place, part, context, "single" if prefix[1] == "单" else "multiple", groups)
        except ValueError as error:
            self.problems.append(Problem(name, place, str(error), dropped=True))

    def _choice(
        self, name: str, place: str, row: dict[str, Any], context: str, form: str, groups: dict[str, str]
    ) -> None:
        stem = clean_text(row.get("question"))
        stem = _PREFIX.sub("", stem) if context else stem
        if not stem:
            raise ValueError("the question is empty")
        options, gold = clean_options(row.get("options")), clean_letters(row.get("answer"))
        if not gold:
            raise ValueError("the answer is empty, so nothing can be scored")
        if strange := sorted(set(gold) - set(options)):
            raise ValueError(f"the answer {gold} names {''.join(strange)}, but the options are {''.join(options)}")
        kind: Literal["single", "multiple"] = "single" if form == "single" else "multiple"
        if (kind == "single") != (len(gold) == 1):
            self._note(name, place, f"a {kind}-choice question with the answer {gold}")
        column = f"{groups['area']} {kind}"
        twin = self._seen.setdefault((column, context, stem, *options.values()), f"{name} {place}")
        if twin != f"{name} {place}":
            self._note(name, place, f"the same question as {twin}")
        question = Question(
            id=f"{name} {place}",
            question=stem,
            options=options,
            answer=gold,
            kind=kind,
            context=context or None,
            area=groups["area"],
            language="zh",
            source="pceb",
        )
        self.items.append(Item(question, {"column": column, **groups}))

    def _essay(self, name: str, place: str, row: dict[str, Any], context: str, groups: dict[str, str]) -> None:
        stem, gold = clean_text(row.get("question")), without_points(clean_text(row.get("answer"))).strip()
        if not stem:
            raise ValueError("the question is empty")
        if not gold:
            raise ValueError("the answer is empty, so nothing can be scored")
        self.essays.append(Essay(f"{name} {place}", context, stem, gold, groups))

    def _note(self, name: str, place: str, reason: str) -> None:
        self.problems.append(Problem(name, place, reason, dropped=False))


def _context(row: dict[str, Any]) -> str:
    context = "\n".join(filter(None, (optional_text(row, name) for name in ("general_info", "case_introduction"))))
    if not context:
        raise ValueError("it holds neither general_info nor case_introduction, so its questions have no case")
    return context


def _parts(row: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    parts = row.get("questions_and_answers")
    if not isinstance(parts, list) or not parts:
        raise ValueError("questions_and_answers is no list of questions")
    return enumerate(parts, start=1)
