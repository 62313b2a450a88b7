"""Easy questions to SFT, hard ones to GRPO, families whole, and every question accounted for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from psychecore.curate.divide import DivideConfig, divide
from psychecore.curate.families import Families

HAND = DivideConfig(sft_minimum=0, grpo_minimum=0)


def answered(row_id: str, rights: dict[str, Sequence[bool]], passage: str | None = None, area: str = "social") -> dict:
    answers = {
        name: [{"text": "", "letters": "B" if right else "A", "right": right} for right in given]
        for name, given in rights.items()
    }
    row = {"id": row_id, "question": "?", "options": {"A": "a", "B": "b"}, "answer": "B", "kind": "single"}
    return row | {"area": area, "passage_id": passage, "answers": answers}


def run(folder: Path, rows: list[dict], config: DivideConfig) -> tuple[dict[str, set[str]], dict[str, Any]]:
    """The ids in each file, and the report; each question must stand in one file and in the matrix."""
    source = folder / "select.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = divide(source, folder, config)
    files = {"sft": "questions_sft", "grpo": "questions_grpo", "dropped": "divide.rejects", "matrix": "matrix"}
    found = {key: read(folder / f"{name}.jsonl") for key, name in files.items()}
    ids = {key: {row["id"] for row in got} for key, got in found.items()}
    placed = [row["id"] for key in ("sft", "grpo", "dropped") for row in found[key]]
    assert sorted(placed) == sorted(row["id"] for row in rows)
    assert [row["id"] for row in found["matrix"]] == [row["id"] for row in rows]
    assert {row["id"]: row["set"] for row in found["matrix"]} == {
        row_id: None if key == "dropped" else key for key in ("sft", "grpo", "dropped") for row_id in ids[key]
    }
    originals = {row["id"]: row for row in rows}
    assert all(row == originals[row["id"]] for key in ("sft", "grpo") for row in found[key])
    report = json.loads((folder / "selection.json").read_text())
    assert (counts.read, counts.kept) == (len(rows), len(ids["sft"]) + len(ids["grpo"]))
    assert sum(counts.rejected.values()) == len(ids["dropped"])
    assert report["sets"] == {key: len(ids[key]) for key in ("sft", "grpo", "dropped")}
    return ids, report


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_right_answer_makes_it_easy_and_none_makes_it_hard(tmp_path: Path) -> None:
    rows = [
        answered(f"{one:d}{two:d}{three:d}", {"x": [one], "y": [two], "z": [three]})
        for one in (False, True)
        for two in (False, True)
        for three in (False, True)
    ]
    ids, report = run(tmp_path, rows, HAND)
    assert ids["grpo"] == {"000"}
    assert ids["dropped"] == set()
    assert report["sets"] == {"sft": 7, "grpo": 1, "dropped": 0}
    ids, _ = run(tmp_path, rows, DivideConfig(selectors_needed=2))
    assert ids["sft"] == {"011", "101", "110", "111"}
    matrix = read(tmp_path / "matrix.jsonl")
    assert matrix[3] == {
        "id": "011",
        "area": "social",
        "gold": "B",
        "letters": {"x": ["A"], "y": ["B"], "z": ["B"]},
        "right": {"x": 0, "y": 1, "z": 1},
        "kind": "sft",
        "set": "sft",
        "reason": "",
    }


def test_a_selector_got_it_with_as_many_samples_as_are_needed(tmp_path: Path) -> None:
    rows = [answered(f"n{n}", {"x": [True] * n + [False] * (3 - n)}) for n in range(4)]
    for needed, easy in ((1, {"n1", "n2", "n3"}), (2, {"n2", "n3"}), (3, {"n3"})):
        assert run(tmp_path, rows, DivideConfig(samples_needed=needed))[0]["sft"] == easy
    with pytest.raises(ValueError, match="no question can be easy"):
        run(tmp_path, rows, DivideConfig(samples_needed=4))
    with pytest.raises(ValueError, match="no question can be easy"):
        run(tmp_path, rows, DivideConfig(selectors_needed=2))


# passage p: 1 hard of 3; passage q: 2 hard of 3; r and s alone
MIXED = [
    answered("p1", {"x": [True]}, "p"),
    answered("p2", {"x": [True]}, "p"),
    answered("p3", {"x": [False]}, "p"),
    answered("q1", {"x": [True]}, "q"),
    answered("q2", {"x": [False]}, "q"),
    answered("q3", {"x": [False]}, "q"),
    answered("r", {"x": [True]}, "r"),
    answered("s", {"x": [False]}),
]


@pytest.mark.parametrize(
    ("config", "sft", "grpo"),
    [
        (HAND, {"p1", "p2", "r"}, {"q2", "q3", "s"}),
        (DivideConfig(hard_share=0.1), {"r"}, {"p3", "q2", "q3", "s"}),
        (DivideConfig(hard_share=1.0), {"p1", "p2", "q1", "r"}, {"s"}),
        (DivideConfig(straddling="move"), {"p1", "p2", "p3", "r"}, {"q1", "q2", "q3", "s"}),
    ],
)
def test_a_passage_stands_in_one_set_only(tmp_path: Path, config: DivideConfig, sft: set, grpo: set) -> None:
    ids, report = run(tmp_path, MIXED, config)
    assert (ids["sft"], ids["grpo"]) == (sft, grpo)
    assert report["families"] == {"count": 4, "largest": 3, "mixed": 2, "moved": 0}
    families = Families(MIXED)
    assert not {families.of(row_id) for row_id in ids["sft"]} & {families.of(row_id) for row_id in ids["grpo"]}
    if config.straddling == "drop":
        assert {row["reason"] for row in read(tmp_path / "divide.rejects.jsonl")} == {"straddles"}
        assert report["reasons"] == {"straddles": 8 - len(sft) - len(grpo)}


def test_the_matrix_and_the_report_say_who_got_what(tmp_path: Path) -> None:
    rows = [
        answered("a", {"x": [True], "y": [True]}, area="social"),
        answered("b", {"x": [True], "y": [False]}, area="social"),
        answered("c", {"x": [False], "y": [False]}, area="ethics"),
        answered("d", {"x": [False], "y": [False]}, area="ethics"),
    ]
    rows[1]["answer"], rows[3]["answer"] = "A", "AB"
    _, report = run(tmp_path, rows, HAND)
    assert report["gold_letters"] == {"sft": {"A": 1, "B": 1}, "grpo": {"AB": 1, "B": 1}}
    assert report["areas"]["social"]["right"] == {"x": 1.0, "y": 0.5}
    assert report["areas"]["ethics"]["right"] == {"x": 0.0, "y": 0.0}
    # equal on 3 of 4; by chance 0.5 * 0.25 + 0.5 * 0.75 = 0.5; kappa (0.75 - 0.5) / 0.5
    assert report["agreement"] == [
        {
            "selectors": ["x", "y"],
            "letters": {"agreement": 0.75, "kappa": 0.5},
            "right": {"agreement": 0.75, "kappa": 0.5},
        }
    ]


def test_a_question_that_some_could_not_be_asked_is_hard_for_nobody(tmp_path: Path) -> None:
    rows = [answered("easy", {"x": [True], "y": [False]}), answered("hard", {"x": [False], "y": [False]})]
    rows += [answered("unasked", {"x": [False], "y": [False]}), answered("got", {"x": [True], "y": [False]})]
    for row in rows[2:]:
        row["answers"]["y"][0] |= {"letters": None, "refused": True}
    ids, report = run(tmp_path, rows, HAND)
    assert (ids["sft"], ids["grpo"], ids["dropped"]) == ({"easy", "got"}, {"hard"}, {"unasked"})
    assert report["reasons"] == {"not_answered": 1}
    assert report["questions"] == 4
    with pytest.raises(ValueError, match=r"no question was answered.*max_length"):
        run(tmp_path, rows[2:3], HAND)


def test_a_set_below_its_minimum_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    rows = [answered(f"e{n}", {"x": [True]}) for n in range(5)]
    with pytest.raises(ValueError, match=r"grpo would hold 0 questions, below grpo_minimum 1 .*set short to 'move'"):
        run(tmp_path, rows, DivideConfig())
    assert not (tmp_path / "matrix.jsonl").exists()


def test_the_hardest_easy_families_fill_grpo_up_and_the_easiest_hard_ones_sft(tmp_path: Path) -> None:
    # by selectors right, then samples right: e1 is the hardest, then e2, e3, e4
    votes = {"e4": "1111", "e3": "1110", "e2": "1010", "e1": "1000"}
    rows = [
        answered(row_id, {"x": [bits[0] == "1", bits[1] == "1"], "y": [bits[2] == "1", bits[3] == "1"]})
        for row_id, bits in votes.items()
    ]
    for minimum, moved in ((1, {"e1"}), (2, {"e1", "e2"}), (3, {"e1", "e2", "e3"})):
        config = DivideConfig(grpo_minimum=minimum, short="move", sft_minimum=1)
        ids, report = run(tmp_path, rows, config)
        assert ids["grpo"] == moved
        assert report["reasons"] == {"moved_to_minimum": minimum}
        assert report["config"]["short"] == "move"
    with pytest.raises(ValueError, match="grpo would hold 3 questions, below grpo_minimum 4"):
        run(tmp_path, rows, DivideConfig(grpo_minimum=4, short="move"))
    hard = DivideConfig(samples_needed=2, selectors_needed=2, sft_minimum=2, short="move")
    ids, _ = run(tmp_path, rows, hard)
    assert ids["sft"] == {"e4", "e3"}


def test_a_family_that_fills_a_set_up_comes_whole(tmp_path: Path) -> None:
    ids, _ = run(tmp_path, MIXED[:3] + MIXED[6:7], DivideConfig(grpo_minimum=2, short="move"))
    assert ids["grpo"] == {"p1", "p2", "p3"}
    assert ids["sft"] == {"r"}


def test_a_subsample_is_seeded_exact_and_free_of_the_order_of_rows(tmp_path: Path) -> None:
    rows = [answered(f"e{n}", {"x": [n % 3 > 0]}) for n in range(60)]
    config = DivideConfig(sft_limit=12, grpo_limit=7)
    ids, report = run(tmp_path, rows, config)
    assert (len(ids["sft"]), len(ids["grpo"])) == (12, 7)
    assert report["reasons"] == {"subsampled": 60 - 19}
    assert run(tmp_path, rows[::-1], config)[0] == ids
    assert run(tmp_path, rows, DivideConfig(sft_limit=12, grpo_limit=7, seed=1))[0]["sft"] != ids["sft"]
    larger = DivideConfig(sft_limit=20, grpo_limit=7)
    assert run(tmp_path, rows, larger)[0]["sft"] > ids["sft"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, MIXED, DivideConfig(sft_limit=2))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_rows_that_were_not_answered_alike_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"select.jsonl line 2: answers of \{'x': 2\}, but the first row has"):
        run(tmp_path, [answered("a", {"x": [True]}), answered("b", {"x": [True, True]})], HAND)
    with pytest.raises(ValueError, match=r"select.jsonl line 2: id 'a' stands twice"):
        run(tmp_path, [answered("a", {"x": [True]}), answered("a", {"x": [True]})], HAND)
    with pytest.raises(ValueError, match=r"select.jsonl line 1: id 'a' without answers"):
        run(tmp_path, [answered("a", {})], HAND)
    with pytest.raises(ValueError, match=r"sft_limit 3 must be 0, or at least sft_minimum 5"):
        DivideConfig(sft_limit=3, sft_minimum=5)
    with pytest.raises(ValueError, match="short is 'maybe', but must be one of error, move"):
        DivideConfig(short="maybe")  # type: ignore[arg-type]
