"""Dedupe: time and memory at 100,000 questions on one core, and recall and precision against every pair compared.

    python benchmarks/dedupe.py                    # about 5 minutes
    python benchmarks/dedupe.py --questions 10000  # a smaller set

The set is made by chains over the demo corpus (after two Chinese characters, or one English word, a successor found
there), with the lengths of examination questions, half of it in each language; 2 % are copies with other glyphs or
order of options, 5 % copies with one to four units changed. The recall on these planted copies is exact, as is that on
the PCEB part and on smile (dialogues, and single turns), where all pairs are compared. The peer is datasketch's
MinHashLSH on the same signatures. Every part runs in a process of its own, whose peak memory is reported;
where the load average exceeds the cores, cpu_seconds tell more than seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasketch import MinHash, MinHashLSH
from measure import save

from psychecore.curate.bands import bands_for, candidate_pairs
from psychecore.curate.decontaminate import Benchmarks, DecontaminateConfig, read_benchmark
from psychecore.curate.dedupe import DedupeConfig, dedupe, judge
from psychecore.curate.shingles import row_parts, shingle, similarity
from psychecore.data.records import read_jsonl

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared" / "data"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def main() -> None:
    """Run every part and write benchmarks/results/dedupe.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--part", choices=["scale", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps({"scale": scale, "peer": peer}[options.part](options.corpus)))
        return
    results: dict[str, Any] = {"unit": "seconds, MB of peak resident memory, one core", "quality": {}}
    if SHARED.is_dir():
        turns = smile(False)
        sets = {"pceb": pceb(), "smile dialogues": smile(True), "smile turns": turns}
        sets["smile turns and copies of them"] = [*turns, *changed(turns, random.Random(1))]
        results["quality"] = {name: quality(name, rows) for name, rows in sets.items()}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "questions.jsonl"
        write_corpus(corpus, options.questions)
        results["corpus"] = {"questions": options.questions, "bytes": corpus.stat().st_size}
        for part in ("scale", "peer"):
            results[part] = in_own_process(part, corpus) | {"load_average": round(os.getloadavg()[0], 1)}
            print(part, json.dumps(results[part]), flush=True)
    save("dedupe", results)


def quality(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pairs found and missed at several thresholds; "dropped below" counts rows that went without a duplicate."""
    shingles = [shingle(row_parts(row)) for row in rows]
    pairs = all_pairs([set(s.body.tolist()) for s in shingles], min(THRESHOLDS))
    values = {}
    for a, b in pairs:
        x, y = shingles[a], shingles[b]
        values[a, b] = similarity((x.body, x.context), (y.body, y.context))
    report: dict[str, Any] = {"rows": len(rows)}
    for threshold in THRESHOLDS:
        verdicts = judge(rows, DedupeConfig(threshold=threshold))
        similar = {pair for pair, value in values.items() if value >= threshold}
        found = sum(verdicts[a].cluster == verdicts[b].cluster for a, b in similar)
        number = {row["id"]: i for i, row in enumerate(rows)}
        dropped = [(i, number[v.detail.split(" like ")[1]]) for i, v in enumerate(verdicts) if v.reason]
        wrong = sum((min(pair), max(pair)) not in similar for pair in dropped)
        report[str(threshold)] = {
            "pairs": len(similar),
            "recall": round(found / len(similar), 5) if similar else None,
            "dropped": len(dropped),
            "precision": round(1 - wrong / len(dropped), 5) if dropped else None,
        }
        print(f"{name} at {threshold}: {report[str(threshold)]}", flush=True)
    return report


def all_pairs(sets: list[set[Any]], least: float) -> dict[tuple[int, int], float]:
    """Every pair with a Jaccard similarity of at least `least`, by counting the shingles that it shares."""
    owners: dict[Any, list[int]] = {}
    pairs: dict[tuple[int, int], float] = {}
    for number, elements in enumerate(sets):
        shared = Counter(other for element in elements for other in owners.get(element, []))
        for other, common in shared.items():
            if (value := common / (len(elements) + len(sets[other]) - common)) >= least:
                pairs[other, number] = value
        for element in elements:
            owners.setdefault(element, []).append(number)
    return pairs


def scale(corpus: Path) -> dict[str, Any]:
    """The whole stage on the corpus, with the PCEB part to decontaminate against where it is at hand."""
    start, cpu = time.perf_counter(), time.process_time()
    config = DecontaminateConfig(benchmarks=(str(SHARED / "pceb"),) if SHARED.is_dir() else ())
    benchmarks = Benchmarks(config)
    with tempfile.TemporaryDirectory() as folder:
        counts = dedupe(corpus, Path(folder), DedupeConfig(), benchmarks)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        clusters: dict[str, str] = {}
        for name in ("dedupe.jsonl", "dedupe.rejects.jsonl"):
            for _, row in read_jsonl(Path(folder) / name):
                if not row.get("reason", "").count("benchmark"):
                    clusters[row["id"]] = row["cluster"]
    planted = {"all": 0, "found": 0}
    rows = {row["id"]: row for _, row in read_jsonl(corpus)}
    for row in rows.values():
        if row.get("copy_of") in clusters and row["id"] in clusters:
            a, b = shingle(row_parts(row)), shingle(row_parts(rows[row["copy_of"]]))
            if similarity((a.body, a.context), (b.body, b.context)) >= DedupeConfig().threshold:
                planted["all"] += 1
                planted["found"] += clusters[row["id"]] == clusters[row["copy_of"]]
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "mb": round(memory),
        "benchmark_items": len(benchmarks),
        "counts": counts,
        "planted_pairs": planted["all"],
        "planted_recall": round(planted["found"] / max(planted["all"], 1), 5),
    }


def peer(corpus: Path) -> dict[str, Any]:
    """datasketch's MinHashLSH against sorted bands, on the same signatures: seconds and MB more than before."""
    hashes = [shingle(row_parts(row)).body for _, row in read_jsonl(corpus)]
    lists = ((h & np.uint64(0xFFFFFFFF)).tolist() for h in hashes)
    start = time.perf_counter()
    signatures_NP = np.empty((len(hashes), 128), np.uint32)
    for number, minhash in enumerate(MinHash.generator(lists, num_perm=128, seed=1, hashfunc=int)):
        signatures_NP[number] = minhash.hashvalues
    signing = time.perf_counter() - start
    bands, rows = bands_for(0.8, 0.99, 128)
    result: dict[str, Any] = {"signatures_seconds": round(signing, 1)}
    for name in ("sorted", "MinHashLSH"):
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start = time.perf_counter()
        if name == "sorted":
            pairs = sum(len(block) for block in candidate_pairs(signatures_NP, bands, rows))
        else:
            index, pairs = MinHashLSH(num_perm=128, params=(bands, rows)), 0
            for number, values in enumerate(signatures_NP):
                signed = MinHash.__new__(MinHash)  # only its hash values are looked at
                signed.hashvalues = values
                pairs += len(index.query(signed))
                index.insert(number, signed, check_duplication=False)
        result[name] = {
            "seconds": round(time.perf_counter() - start, 1),
            "mb_more": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - memory),
            "pairs": pairs,
        }
    return result


def in_own_process(part: str, corpus: Path) -> dict[str, Any]:
    """Run one part on one core, and read its result from the last line that it prints."""
    core = {max(os.sched_getaffinity(0))}
    command = [sys.executable, __file__, "--part", part, "--corpus", str(corpus)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, core)
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def pceb() -> list[dict[str, Any]]:
    """The questions of the PCEB part, as rows."""
    return [
        {
            "id": str(number),
            "question": parts.stem,
            "options": dict(enumerate(parts.options)),
            "context": parts.context,
        }
        for number, (*_, parts) in enumerate(read_benchmark(SHARED / "pceb"))
    ]


def smile(dialogues: bool) -> list[dict[str, Any]]:
    """The dialogues of smile, as rows; or each turn of at least 10 characters as a row."""
    rows = []
    for _, row in read_jsonl(SHARED / "smile" / "smile_sample.jsonl"):
        turns = [turn["content"] for turn in row["dialogue"]]
        if dialogues:
            rows.append({"id": row["id"], "messages": [{"role": "user", "content": turn} for turn in turns]})
        else:
            rows += [{"id": f"{row['id']}-{i}", "text": turn} for i, turn in enumerate(turns) if len(turn) >= 10]
    return rows


def changed(rows: list[dict[str, Any]], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Each row again, with one to four of its characters replaced."""
    for row in rows:
        text = list(row["text"])
        for _ in range(rng.randint(1, 4)):
            text[rng.randrange(len(text))] = chr(0x4E00 + rng.randrange(9000))
        yield {"id": f"{row['id']}-copy", "text": "".join(text)}


def write_corpus(path: Path, count: int) -> None:
    """Write `count` questions, some of them copies; a copy names its original under "copy_of"."""
    rng = random.Random(0)
    writers = {"zh": chain("zh", 2), "en": chain("en", 1)}
    with open(path, "w", encoding="utf-8") as file:
        originals: list[dict[str, Any]] = []
        for number in range(count):
            kind = rng.random()
            if originals and kind < 0.07:
                original = rng.choice(originals)
                row = copy_of(original, rng, changes=0 if kind < 0.02 else rng.randint(1, 4))
                row |= {"id": str(number), "copy_of": original["id"]}
            else:
                row = new_question(writers, "zh" if number % 2 else "en", rng) | {"id": str(number)}
                originals.append(row)
                if len(originals) > 5000:
                    originals.pop(rng.randrange(len(originals)))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def new_question(writers: dict[str, Any], language: str, rng: random.Random) -> dict[str, Any]:
    """A stem of 15 to 60 characters or 12 to 40 words, four options of 4 to 15 characters or 2 to 8 words."""
    stem, option = ((15, 60), (4, 15)) if language == "zh" else ((12, 40), (2, 8))
    joint = "" if language == "zh" else " "
    texts = [joint.join(writers[language](rng.randint(*bounds), rng)) for bounds in (stem, *[option] * 4)]
    return {
        "question": texts[0],
        "options": dict(zip("ABCD", texts[1:], strict=True)),
        "answer": "A",
        "kind": "single",
        "language": language,
    }


def copy_of(row: dict[str, Any], rng: random.Random, changes: int) -> dict[str, Any]:
    """The question with its options in another order, and with that many units of the stem replaced."""
    zh = row["language"] == "zh"
    stem = list(row["question"]) if zh else row["question"].split()
    for _ in range(changes):
        stem[rng.randrange(len(stem))] = chr(0x4E00 + rng.randrange(9000)) if zh else f"w{rng.randrange(10**6)}"
    options = list(row["options"].values())
    rng.shuffle(options)
    return row | {
        "question": ("" if zh else " ").join(stem) + ("（ ）。" if zh else "?"),
        "options": dict(zip("ABCD", options, strict=True)),
    }


def chain(language: str, order: int) -> Any:
    """A writer of unit lists: a Markov chain over the demo corpus, with some new beginnings."""
    texts = list(corpus_texts(language))
    units = [list(text) if language == "zh" else text.split() for text in texts]
    successors: dict[tuple[str, ...], list[str]] = {}
    for text in units:
        for at in range(len(text) - order):
            successors.setdefault(tuple(text[at : at + order]), []).append(text[at + order])
    starts = list(successors)

    def write(length: int, rng: random.Random) -> list[str]:
        out = list(rng.choice(starts))
        while len(out) < length:
            following = successors.get(tuple(out[-order:]))
            out += [rng.choice(following)] if following and rng.random() > 0.05 else rng.choice(starts)
        return out[:length]

    return write


def corpus_texts(language: str) -> Iterator[str]:
    """Passages and concept texts of the demo corpus."""
    for name in ("passages", "concepts"):
        for line in (REPO / "recipes" / "data" / f"{name}_{language}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield from (row[key] for key in ("text", "definition", "paraphrase", "example") if key in row)


if __name__ == "__main__":
    main()
