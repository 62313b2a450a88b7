"""The report of a curation run: one HTML page without script or network, to be read by the person who trains on it.

Everything that came from a row is escaped on its way in (page.text), and the page's policy allows no script at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psychecore.curate.charts import Node, Part, bars, flow, histogram, number, quantile
from psychecore.curate.report_data import Examples, ReportData, SelectorData, StageData, read_folder
from psychecore.durable import replace_file
from psychecore.page import POLICY, policy_hash, text

TEMPLATE = Path(__file__).with_name("report.html")
BODY = "<!--BODY-->"
SETS = {"sft": "SFT", "grpo": "GRPO", "heldout": "held out"}
CUT = 600  # characters of a text in an example
AREAS, PATTERNS = 16, 16  # rows of a chart or table; the rest is summed up


def write_report(folder: Path, path: Path) -> None:
    """Write the page for a curation folder: NAME.jsonl, NAME.rejects.jsonl, manifest.json and what else is there.

    Raises ValueError for a folder without any stage, and with file and line for damaged JSONL.
    """
    data = read_folder(folder)
    template = TEMPLATE.read_text(encoding="utf-8")
    style = template.partition("<style>")[2].partition("</style>")[0]
    policy = f"default-src 'none'; style-src {policy_hash(style)}; base-uri 'none'; form-action 'none'"
    before, _, rest = template.partition(POLICY)
    middle, _, after = rest.partition(BODY)
    sections = (_head, _flow, _reasons, _lengths, _areas, _selectors, _decontamination, _provenance)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [before, policy, middle, *(part for section in sections for part in section(data)), after])


# ---- sections, in the order of the page


def _head(data: ReportData) -> Iterator[str]:
    final = data.stage("assemble") or data.stage("divide")
    figures = []
    for file, count in final.kept.items() if final else ():
        figures.append((f"rows in {file}", count))
    figures.append(("rows dropped on the way", sum(stage.rejected.total() for stage in data.stages)))
    yield f'<h1>Curation report</h1><p class="lead">{text(data.title)}: what was kept, what was dropped, and why.</p>'
    cells = "".join(f"<div><dd>{number(count)}</dd><dt>{text(name)}</dt></div>" for name, count in figures)
    yield f'<dl class="figures">{cells}</dl>'


def _diagram(stage: StageData) -> str:
    """In which diagram a stage stands; what comes from passages and what was given meet in the pool."""
    beside = {
        "clean": "Passages",
        "dedupe_texts": "Passages",
        "questions": "Passages",
        "clean_given": "Ready questions",
    }
    return "Dialogues" if stage.is_dialogue else beside.get(stage.name, "Questions")


def _flow(data: ReportData) -> Iterator[str]:
    yield "<h2>From stage to stage</h2>"
    yield '<p class="note">Widths are counts, each diagram to its own scale. A passage may give several questions.</p>'
    yield _legend({"kept": "goes on, or to SFT", "grpo": "goes to GRPO", "heldout": "held out", "dropped": "dropped"})
    yield '<div class="grid wide">'
    for title in ("Questions", "Passages", "Ready questions", "Dialogues"):
        if title == "Passages":
            yield '<div class="stack">'
        stages = [one for one in data.stages if one.name != "assemble" and _diagram(one) == title]
        if nodes := [_node(stage) for stage in stages]:
            said = "; ".join(f"{one.name}: {one.kept_count} kept, {one.rejected.total()} dropped" for one in stages)
            yield f'<div class="card"><h3>{title}</h3>{flow(nodes, f"{title}. {said}")}</div>'
    if (final := data.stage("assemble")) and final.kept:
        rows = [
            (f"{file}: {kind}", [Part(kind, count, _style(file))])
            for file in final.kept
            for kind, count in sorted((final.kinds.get(file) or Counter(rows=final.kept[file])).items(), reverse=True)
        ]
        yield f'<div class="card"><h3>Assembled</h3>{bars(rows, "Rows of the assembled files")}'
        if final.rejected:
            yield f'<p class="note">Left out when assembling: {number(final.rejected.total())}.</p>'
        yield "</div>"
    yield "</div></div>"


def _reasons(data: ReportData) -> Iterator[str]:
    yield "<h2>Kept and dropped, by reason</h2>"
    yield '<p class="note">Open a line for examples. They are chosen by hash, neither the best nor the worst.</p>'
    for stage in data.stages:
        total = stage.kept_count + stage.rejected.total()
        read = "" if stage.read is None else f"{number(stage.read)} rows in, "
        yield f'<section class="card stage"><h3>{text(stage.name)}</h3><p class="note">{read}'
        yield f"{number(stage.kept_count)} kept, {number(stage.rejected.total())} dropped.</p>"
        yield _reason("kept", stage.kept_count, total, "kept", stage.kept_examples)
        for reason, count in stage.rejected.most_common():
            yield _reason(reason.replace("_", " "), count, total, "dropped", stage.examples[reason])
        yield "</section>"


def _lengths(data: ReportData) -> Iterator[str]:
    lengths: dict[tuple[str, str], tuple[str, Counter[int]]] = {}
    for stage in data.stages:  # the last stage that has a kind of text shows it as it is trained on
        lengths.update({key: (stage.name, counter) for key, counter in stage.lengths.items()})
    if lengths:
        yield '<h2>Lengths</h2><p class="note">Characters of what was kept; the longest 1 % share the last bar.</p>'
        yield '<div class="grid">'
        for (measure, language), (stage_name, counter) in sorted(lengths.items()):
            name = f"{measure[0].upper()}{measure[1:]}, {language}"
            tail = f"{number(counter.total())} after {stage_name}, 95 % up to {number(quantile(counter, 0.95))}"
            yield f'<div class="card"><h3>{text(name)}</h3>'
            yield f'<p class="note">{text(tail)}</p>{histogram(counter, name)}</div>'
        yield "</div>"


def _areas(data: ReportData) -> Iterator[str]:
    if stage := next((one for one in reversed(data.stages) if any(one.areas.values())), None):
        yield f'<h2>Areas</h2><p class="note">Questions by area after {text(stage.name)}.</p>'
        yield _legend({_style(file): SETS.get(_style(file), "kept") for file in stage.areas})
        areas: Counter[str] = Counter()
        for counts in stage.areas.values():
            areas.update(counts)
        shown = [area for area, _ in areas.most_common(AREAS)]
        rows = [
            (area, [Part(file, counts[area], _style(file)) for file, counts in stage.areas.items()]) for area in shown
        ]
        if rest := [area for area in areas if area not in shown]:
            parts = [
                Part(file, sum(counts[area] for area in rest), _style(file)) for file, counts in stage.areas.items()
            ]
            rows.append((f"{len(rest)} other areas", parts))
        half = (len(rows) + 1) // 2 if len(rows) > 6 else len(rows)
        yield '<div class="grid wide">'
        largest = max(sum(part.count for part in parts) for _, parts in rows)
        for part in filter(None, (rows[:half], rows[half:])):
            yield f'<div class="card">{bars(part, "Questions by area", largest)}</div>'
        yield "</div>"


def _selectors(data: ReportData) -> Iterator[str]:
    found = data.selectors
    if not found.names:
        return
    total = sum(found.questions.values())
    yield "<h2>Selectors</h2>"
    yield f'<p class="note">{number(total)} questions, each answered by {len(found.names)} models. A model got a '
    yield "question when at least one of its answers is right.</p>"
    yield '<div class="card">'
    heads = "".join(f"<th>{text(name)}</th>" for name in found.names)
    right = "".join(_heat(found.right[name], found.answers[name]) for name in found.names)
    got = "".join(_heat(sum(found.got_by_area[a, name] for a in found.questions), total) for name in found.names)
    rows = [f"<tr><td>all answers right</td><td>{number(total)}</td>{right}</tr>"] if right != got else []
    rows.append(f"<tr><td>all areas</td><td>{number(total)}</td>{got}</tr>")
    for area, count in found.questions.most_common(AREAS):
        cells = "".join(_heat(found.got_by_area[area, name], count) for name in found.names)
        rows.append(f"<tr><td>{text(area)}</td><td>{number(count)}</td>{cells}</tr>")
    yield _table("Share of questions that each got, by area", f"<th>area</th><th>questions</th>{heads}", rows)
    yield _table("Who got what", f"{heads}<th>questions</th><th>share</th><th>went to</th>", _pattern_rows(found))
    if found.same:
        rows = []
        for (one, other), same in found.same.items():
            kappa = found.kappa.get((one, other), found.kappa.get((other, one)))
            shown = "" if kappa is None else f"{kappa:.2f}"
            rows.append(f"<tr><td>{text(one)} and {text(other)}</td>{_heat(same, total)}<td>{shown}</td></tr>")
        yield _table("Agreement", "<th>models</th><th>both got it, or neither</th><th>kappa on letters</th>", rows)
    yield "</div>"


def _decontamination(data: ReportData) -> Iterator[str]:
    yield "<h2>Decontamination</h2>"
    if not data.contaminated:
        yield '<p class="note">No row was dropped for standing in a benchmark, and the manifest names no benchmark.</p>'
        return
    yield '<p class="note">Rows dropped because a benchmark holds them, by benchmark file.</p><div class="card">'
    reasons = sorted({reason for counts in data.contaminated.values() for reason in counts})
    heads = "".join(f"<th>{text(reason.replace('_', ' '))}</th>" for reason in reasons)
    rows = []
    for file, counts in sorted(data.contaminated.items()):
        cells = "".join(f"<td>{number(counts[reason])}</td>" for reason in reasons)
        rows.append(f"<tr><td>{text(file)}</td>{cells}<td>{number(counts.total())}</td></tr>")
    yield _table("", f"<th>benchmark</th>{heads}<th>all</th>", rows)
    largest = max(counts.total() for counts in data.contaminated.values())
    for file, counts in sorted(data.contaminated.items()):
        if counts.total():
            yield _reason(file, counts.total(), largest, "dropped", data.contaminated_examples[file])
    yield "</div>"


def _provenance(data: ReportData) -> Iterator[str]:
    lines = []
    for title, key in (("models", "models"), ("prompts", "prompts"), ("seeds", "seeds")):
        if isinstance(found := data.manifest.get(key), dict) and found:
            lines.append((title, ", ".join(f"{name}: {_plain(value)}" for name, value in found.items())))
    for title, key in (("inputs", "inputs"), ("outputs", "outputs")):
        for name, entry in (data.manifest.get(key) or {}).items():
            if isinstance(entry, dict) and entry.get("sha256"):
                said = " ".join(dict.fromkeys([name, str(entry.get("file") or name)]))
                lines.append((title, f"{said}, sha256 {entry['sha256'][:16]}…"))
    if lines:
        yield '<h2>Made from</h2><p class="note">As manifest.json has it.</p><div class="card"><dl class="plain">'
        yield from (f"<dt>{text(title)}</dt><dd>{text(said)}</dd>" for title, said in lines)
        yield "</dl></div>"


# ---- parts of sections


def _node(stage: StageData) -> Node:
    styles = {file: _style(file) for file in stage.kept}
    parts = [Part(SETS.get(styles[file], "kept"), count, styles[file]) for file, count in stage.kept.items()]
    return Node(stage.name, stage.read, [*parts, Part("dropped", stage.rejected.total(), "dropped")])


def _style(file: str) -> str:
    name = file.removesuffix(".jsonl").replace("held_out", "heldout").rpartition("_")[2]
    return name if name in SETS else "kept"


def _reason(name: str, count: int, total: int, style: str, examples: Examples) -> str:
    wide = count / total * 100 if total else 0
    bar = (
        f'<svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{style}" width="{wide:.2f}" height="4"/></svg>'
    )
    items = "".join(f"<li>{_example(row)}</li>" for row in examples.rows()) or "<li>No examples are at hand.</li>"
    return (
        f'<details><summary><span>{text(name)}</span>{bar}<span class="count">{number(count)}</span></summary>'
        f'<ul class="examples">{items}</ul></details>'
    )


def _example(row: dict[str, Any]) -> str:
    parts = []
    if row.get("detail"):
        parts.append(f'<p class="why">{_cut(row["detail"])}</p>')
    if "question" in row:
        parts.append(f"<p>{_cut(row['question'])}</p>")
        options = row.get("options") if isinstance(row.get("options"), dict) else {}
        for letter, option in (options or {}).items():
            right = letter in str(row.get("answer") or "")
            parts.append(f"<p{' class=key' if right else ''}>{text(letter)}. {_cut(option)}{' ✓' if right else ''}</p>")
        if row.get("rationale"):
            parts.append(f"<p>{_cut(row['rationale'])}</p>")
    elif isinstance(row.get("messages"), list):
        for message in row["messages"]:
            if isinstance(message, dict) and message.get("role") != "system":
                parts.append(f"<p><b>{_cut(message.get('role'))}:</b> {_cut(message.get('content'))}</p>")
    else:
        parts.extend(f"<p>{_cut(row[key])}</p>" for key in ("text", "post", "reply") if row.get(key))
    if row.get("raw"):
        parts.append(f"<p><b>raw:</b> {_cut(row['raw'])}</p>")
    parts.append(f'<p class="id">{_cut(row.get("id", "without id"))}</p>')
    return "".join(parts)


def _pattern_rows(found: SelectorData) -> list[str]:
    total = found.patterns.total()
    rows = []
    for pattern, count in found.patterns.most_common(PATTERNS):
        marks = "".join('<td class="yes">got it</td>' if got else '<td class="no">no</td>' for got in pattern)
        went = ", ".join(f"{SETS.get(name, name)} {number(n)}" for name, n in found.sets[pattern].most_common() if name)
        rows.append(f"<tr>{marks}<td>{number(count)}</td><td>{count / total:.0%}</td><td>{text(went)}</td></tr>")
    if rest := found.patterns.total() - sum(count for _, count in found.patterns.most_common(PATTERNS)):
        rows.append(f'<tr><td colspan="{len(found.names)}">rarer combinations</td><td>{number(rest)}</td>')
        rows.append(f"<td>{rest / total:.0%}</td><td></td></tr>")
    return rows


def _heat(count: int, total: int) -> str:
    share = count / total if total else 0.0
    return f'<td class="h{min(int(share * 10), 9)}">{share:.0%}</td>'


def _table(caption: str, heads: str, rows: list[str]) -> str:
    said = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{text(caption or "table")}"><table>{said}'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _legend(styles: dict[str, str]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 1 1" aria-hidden="true"><rect class="{style}" width="1" height="1"/></svg>{name}</li>'
        for style, name in styles.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _cut(value: object) -> str:
    said = str(value)
    return text(said if len(said) <= CUT else said[:CUT] + " …")


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
