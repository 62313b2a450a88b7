"""The review as one HTML page that needs no network: review.html with the questions in its one JSON island.

The page builds everything it shows from text nodes. Its Content-Security-Policy allows the one script and the one style
sheet by their hashes and nothing else, and trusted types forbid turning text into markup, so a hostile question stays
text even if the escaping of the island were wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from psychecore.curate.review import Decision, row_hash
from psychecore.data.records import Question
from psychecore.durable import replace_file
from psychecore.page import fill_script_page

TEMPLATE = Path(__file__).with_name("review.html")


def write_page(
    path: Path,
    rows: Iterable[dict[str, Any]],
    passages: Mapping[str, str] | None = None,
    decisions: Iterable[Decision] = (),
    title: str = "Question review",
) -> None:
    """Write the page for the questions in `rows` (sample_rows chooses them).

    `passages` maps passage ids to texts, `decisions` of an earlier review are shown as made where they still hold. The
    browser keeps progress under a hash of the questions, so a page written again for the same ones goes on with it.
    Raises ValueError for a row that is no valid question, with its id.
    """
    earlier = {(decision.id, decision.hash): decision for decision in decisions}
    items = []
    for row in rows:
        hash_ = row_hash(row)
        items.append(_item(row, hash_, passages or {}, earlier.get((str(row.get("id")), hash_))))
    ids = json.dumps([[item["id"], item["hash"]] for item in items])
    data = {"title": title, "key": hashlib.sha256(ids.encode()).hexdigest()[:32], "items": items}
    replace_file(path, [fill_script_page(TEMPLATE.read_text(encoding="utf-8"), data)])


def passage_text(row: Mapping[str, Any], passages: Mapping[str, str]) -> str:
    """The passage a question was made from: its own "passage", or that of its "passage_id"; "" where there is none."""
    return str(row.get("passage") or passages.get(str(row.get("passage_id")), ""))


def verdict_lines(row: Mapping[str, Any]) -> list[list[str]]:
    """What the judge said ("quality"), as [name, value, explanation] texts.

    Stage quality gives "scores" by criterion, and "verdicts" with the "reasons" of each judge; other shapes are shown
    key by key.
    """
    quality = row.get("quality")
    if not isinstance(quality, dict):
        return [] if quality is None else [["quality", _word(quality), ""]]
    rest = dict(quality)
    lines = []
    if isinstance(quality.get("scores"), dict):
        verdicts = [one for one in rest.pop("verdicts", []) if isinstance(one, dict)]
        reasons = [one["reasons"] for one in verdicts if isinstance(one.get("reasons"), dict)]
        for name, score in rest.pop("scores").items():
            lines.append([name, _word(score), "; ".join(_word(said[name]) for said in reasons if said.get(name))])
        if judges := list(dict.fromkeys(_word(one["judge"]) for one in verdicts if one.get("judge"))):
            rest["judge"] = ", ".join(judges)
    for name, value in rest.items():
        if isinstance(value, dict):  # a criterion with its score and reason
            lines.append([name, _word(value.get("score", "")), _word(value.get("reason", ""))])
        else:
            lines.append([name, _word(value), ""])
    return lines


def span_parts(passage: str, span: str) -> list[str] | None:
    """[before, quoted, after] of the passage; white space and case may differ. None where the span doesn't stand there.

    >>> span_parts("Extinction follows when\\nrewards stop.", "when rewards")
    ['Extinction follows ', 'when\\nrewards', ' stop.']
    """
    words = span.split()
    found = re.search(r"\s+".join(map(re.escape, words)), passage, re.IGNORECASE) if words else None
    return [passage[: found.start()], found[0], passage[found.end() :]] if found else None


def _item(row: dict[str, Any], hash_: str, passages: Mapping[str, str], decision: Decision | None) -> dict[str, Any]:
    try:
        question = Question.from_row(row)
    except ValueError as error:
        raise ValueError(f"question {row.get('id')!r}: {error}") from None
    passage, span = passage_text(row, passages), str(row.get("span") or "")
    earlier = (
        {"decision": decision.decision, "reason": decision.reason, "edited": decision.edited} if decision else None
    )
    return {
        "id": question.id,
        "hash": hash_,
        "question": question.question,
        "options": question.options,
        "answer": question.answer,
        "kind": question.kind,
        "context": question.context or "",
        "language": question.language,
        "area": question.area,
        "source": question.source,
        "span": span,
        "passage": (span_parts(passage, span) or [passage, "", ""]) if passage else None,
        "verdict": verdict_lines(row),
        "earlier": earlier,
    }


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
