"""The training files: valid, disjoint by source and near-duplicate cluster, reproducible, and accounted for."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psychecore.curate.assemble import Provenance, Sources, assemble
from psychecore.curate.families import LINKS, Families
from psychecore.data.prompts import worked_conversation
from psychecore.data.records import Question, read_conversations, read_questions

SPLITS = ("sft.jsonl", "grpo.jsonl", "heldout.jsonl")


def question(row_id: str, rationale: str | None = "Because.", **more: object) -> dict:
    row = {"id": row_id, "question": "?", "options": {"A": "ä", "B": "b"}, "answer": "B", "kind": "single"}
    return row | {"language": "en", "area": "social", "source": "book", "rationale": rationale} | more


def dialogue(row_id: str, **more: object) -> dict:
    messages = [{"role": "user", "content": "I can't sleep."}, {"role": "assistant", "content": "That sounds hard."}]
    return {"id": row_id, "messages": messages, "source": "posts", "risk": None, "post_id": f"post-{row_id}"} | more


def write(folder: Path, **files: Iterable[dict]) -> Sources:
    for role in ("sft", "grpo", "dialogues", "heldout"):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in files.get(role, ()))
        (folder / f"{role}.in.jsonl").write_text("".join(lines), encoding="utf-8")
    return Sources(*(folder / f"{role}.in.jsonl" for role in ("sft", "grpo", "dialogues", "heldout")))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assembled(sources: Sources, folder: Path, *more: Any) -> dict[str, Any]:
    """The manifest; the counts that the stage returns must be the manifest's."""
    counts = assemble(sources, folder, *more)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert counts.rejected == manifest["counts"]["rejected"]
    assert counts.kept == sum(sum(manifest["counts"][split].values()) for split in ("sft", "grpo", "heldout"))
    assert counts.read == counts.kept + sum(counts.rejected.values())
    return manifest


def rejected(folder: Path) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in read(folder / "assemble.rejects.jsonl")}


def test_the_files_hold_what_training_reads(tmp_path: Path) -> None:
    easy = [question(f"e{n}", context="A case.", passage_id=f"p{n}") for n in range(4)]
    hard = [question(f"h{n}", None, passage_id=f"q{n}") for n in range(3)]
    talk = [dialogue(f"d{n}") for n in range(5)]
    sources = write(tmp_path, sft=easy, grpo=hard, dialogues=talk, heldout=[question("t", None, passage_id="t")])
    manifest = assembled(sources, tmp_path / "out")
    conversations = {row.id: row for row in read_conversations(tmp_path / "out" / "sft.jsonl")}
    assert conversations.keys() == {f"e{n}" for n in range(4)} | {f"d{n}" for n in range(5)}
    assert conversations["e2"] == worked_conversation(Question.from_row(easy[2]))
    assert conversations["e2"].messages[-1]["content"] == "<think>Because.</think>\nB. b"
    assert conversations["d1"].messages == talk[1]["messages"]
    for name, rows in (("grpo.jsonl", hard), ("heldout.jsonl", [question("t", None)])):
        got = sorted(read_questions(tmp_path / "out" / name), key=lambda row: row.id)
        assert got == [Question.from_row(row) for row in rows]
    assert manifest["counts"] == {
        "sft": {"questions": 4, "dialogues": 5},
        "grpo": {"questions": 3},
        "heldout": {"questions": 1},
        "rejected": {},
    }
    notes = {row["id"]: row for row in read(tmp_path / "out" / "sft.jsonl")}
    assert (notes["e2"]["kind"], notes["e2"]["passage_id"]) == ("question", "p2")
    assert (notes["d1"]["kind"], notes["d1"]["post_id"]) == ("dialogue", "post-d1")


LINKED = st.fixed_dictionaries({key: st.sampled_from([None, *"abcdef"]) for key in LINKS})
POOL = st.lists(st.tuples(st.sampled_from(["sft", "grpo", "dialogues", "heldout"]), LINKED), max_size=40)


@settings(max_examples=150, deadline=None)
@given(POOL, st.integers(0, 3))
def test_no_passage_post_or_cluster_stands_in_two_splits(pool: list[tuple[str, dict]], seed: int) -> None:
    files: dict[str, list[dict]] = {"sft": [], "grpo": [], "dialogues": [], "heldout": []}
    for number, (role, links) in enumerate(pool):
        make = dialogue if role == "dialogues" else question
        files[role].append(make(f"r{number}") | links)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = assembled(write(folder, **files), folder, seed)
        splits = {split: read(folder / split) for split in SPLITS}
        reasons = rejected(folder)
    rows = [row for given_rows in files.values() for row in given_rows]
    families = Families(rows)
    where: dict[str, set[str]] = {}
    for split, kept in splits.items():
        for row in kept:
            where.setdefault(families.of(row["id"]), set()).add(split)
    assert all(len(found) == 1 for found in where.values())
    for key in LINKS:  # and without the notion of a family
        shared = [{row[key] for row in kept if row.get(key) is not None} for kept in splits.values()]
        assert sum(map(len, shared)) == len(set().union(*shared))
    # every row is in one place, all held-out ones in their own, and no family is lost
    placed = [row["id"] for kept in splits.values() for row in kept]
    assert sorted([*placed, *reasons]) == sorted(row["id"] for row in rows)
    assert {row["id"] for row in splits["heldout.jsonl"]} == {row["id"] for row in files["heldout"]}
    assert where.keys() == {families.of(row["id"]) for row in rows}
    assert sum(manifest["counts"]["rejected"].values()) == len(reasons)
    assert set(reasons.values()) <= {"straddles", "held_out"}


def test_a_family_goes_where_most_of_it_is_meant_to_go(tmp_path: Path) -> None:
    sources = write(
        tmp_path,
        sft=[
            question("s1", cluster=1),
            question("s2", cluster=1),
            question("s3", cluster=2),
            question("s4", cluster=3),
        ],
        grpo=[question("g1", cluster=1), question("g2", cluster=2), question("g3", passage_id="p")],
        heldout=[question("t", passage_id="p", cluster=3)],
    )
    assemble(sources, tmp_path)
    assert {row["id"] for row in read(tmp_path / "sft.jsonl")} == {"s1", "s2"}
    assert {row["id"] for row in read(tmp_path / "grpo.jsonl")} == {"g2"}
    assert rejected(tmp_path) == {"g1": "straddles", "s3": "straddles", "s4": "held_out", "g3": "held_out"}


def test_rows_that_cannot_train_are_rejected_with_their_reason(tmp_path: Path) -> None:
    sources = write(
        tmp_path,
        sft=[
            question("none", None),
            question("blank", " "),
            question("tag", "So </think> B"),
            question("letter", answer="E"),
            question("twice"),
            question("twice", "Another."),
            question("both"),
        ],
        grpo=[question("bare", None), question("both", None)],
        dialogues=[dialogue("talk"), dialogue("mute", messages=[{"role": "user", "content": "Hm."}])],
    )
    manifest = assembled(sources, tmp_path)
    assert {row["id"] for row in read(tmp_path / "sft.jsonl")} == {"twice", "talk"}
    assert {row["id"] for row in read(tmp_path / "grpo.jsonl")} == {"bare", "both"}
    assert rejected(tmp_path) == {
        "none": "no_rationale",
        "blank": "no_rationale",
        "tag": "think_tag_in_rationale",
        "letter": "invalid_question",
        "twice": "duplicate_id",
        "both": "duplicate_id",
        "mute": "invalid_dialogue",
    }
    details = {row["id"]: row["detail"] for row in read(tmp_path / "assemble.rejects.jsonl")}
    assert "answer 'E' names option E" in details["letter"]
    assert details["both"] == "id 'both' stands at grpo.in.jsonl line 2"
    assert manifest["counts"]["rejected"]["duplicate_id"] == 2


def test_a_rejected_row_has_no_vote_on_its_family(tmp_path: Path) -> None:
    rows = [question("a", None, cluster=1), question("b", None, cluster=1)]
    assemble(write(tmp_path, sft=rows, grpo=[question("g", cluster=1)]), tmp_path)
    assert [row["id"] for row in read(tmp_path / "grpo.jsonl")] == ["g"]


def test_the_order_is_a_seeded_shuffle_of_questions_and_dialogues_alike(tmp_path: Path) -> None:
    easy, talk = [question(f"e{n}") for n in range(40)], [dialogue(f"d{n}") for n in range(40)]

    def order(seed: int, reverse: bool = False) -> list[str]:
        sources = write(tmp_path, sft=easy[::-1] if reverse else easy, grpo=[question("g")], dialogues=talk)
        assemble(sources, tmp_path, seed)
        return [row["id"] for row in read(tmp_path / "sft.jsonl")]

    first = order(1)
    assert sorted(first) == sorted(row["id"] for row in easy + talk)
    assert 8 <= sum(row_id.startswith("d") for row_id in first[:40]) <= 32
    assert order(2) != first
    assert order(1, reverse=True) == first


def test_the_same_inputs_give_the_same_bytes_in_any_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sources = write(
            tmp_path / name, sft=[question("a"), question("b")], grpo=[question("c")], dialogues=[dialogue("d")]
        )
        assemble(sources, tmp_path / name, 7)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"sft.jsonl", "grpo.jsonl", "heldout.jsonl", "assemble.rejects.jsonl", "manifest.json"} <= set(files)
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_manifest_hashes_every_file_and_names_models_prompts_and_seeds(tmp_path: Path) -> None:
    prompts = tmp_path / "rationale.toml"
    prompts.write_text("version = 3\n")
    sources = write(tmp_path, sft=[question("a")], grpo=[question("b")])
    about = Provenance(
        stages=[{"name": "clean", "read": 9, "kept": 7}],
        inputs={"prompts/rationale": prompts},
        models={"selectors": ["small", "large"]},
        prompts={"rationale.toml": 3},
        seeds={"select": 5},
        config={"select": {"samples": 1}, "folder": Path("runs/x")},
    )
    manifest = assembled(sources, tmp_path / "out", 4, about)
    for name in (*SPLITS, "assemble.rejects.jsonl"):
        content = (tmp_path / "out" / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert manifest["outputs"][name] == {"file": name, "bytes": len(content), "sha256": digest}
    assert {entry["file"]: entry["sha256"] for entry in manifest["inputs"].values()} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in [prompts, *sources.files().values()]
    }
    assert manifest["stages"] == [{"name": "clean", "read": 9, "kept": 7}]
    assert manifest["models"] == {"selectors": ["small", "large"]}
    assert manifest["prompts"] == {"rationale.toml": 3}
    assert manifest["seeds"] == {"assemble": 4, "select": 5}
    assert manifest["config"] == {"select": {"samples": 1}, "folder": "runs/x"}


def test_a_broken_line_is_named_and_leaves_no_manifest(tmp_path: Path) -> None:
    sources = write(tmp_path, sft=[question("a")], grpo=[question("b")])
    assemble(sources, tmp_path)
    sources.grpo.write_text("{}\n[1]\n")
    with pytest.raises(ValueError, match=r"grpo.in.jsonl line 2"):
        assemble(sources, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    sources.grpo.write_text(json.dumps(question("b", cluster=[1])) + "\n")
    with pytest.raises(ValueError, match=r"grpo.in.jsonl line 1: row 'b': cluster is \[1\]"):
        assemble(sources, tmp_path)
