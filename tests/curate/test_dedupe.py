"""Near-duplicates and benchmark items, against Python sets of strings and against datasketch's own index."""

from __future__ import annotations

import itertools
import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from psychecore.curate.bands import bands_for, candidate_pairs
from psychecore.curate.decontaminate import Benchmarks, DecontaminateConfig, read_benchmark
from psychecore.curate.dedupe import DedupeConfig, dedupe, judge
from psychecore.curate.shingles import Parts, jaccard, row_parts, shingle, units, windows

ZH = "在经典条件反射中中性刺激与无条件刺激反复配对之后单独呈现也能引起相似的反应这一过程称为习得"
EN = (
    "In classical conditioning a neutral stimulus that was paired with another one many times comes to elicit a "
    "similar response when it is presented alone and this process is called acquisition"
)


def question(row_id: str, stem: str, *options: str, **more: Any) -> dict[str, Any]:
    options = options or ("强化", "惩罚", "消退", "泛化")
    return {"id": row_id, "question": stem, "options": dict(zip("ABCDEFGH", options, strict=False))} | more


def sets_of(text_parts: list[str], zh_chars: int, en_words: int) -> set[tuple[str, ...]]:
    """The shingles of a text in plain Python, each as a tuple of units."""
    han = re.compile("[㐀-鿿]")
    tokens = [re.findall("[㐀-鿿]|[^\\W_㐀-鿿]+", unicodedata.normalize("NFKC", p).lower()) for p in text_parts]
    every = [token for part in tokens for token in part]
    size = zh_chars if 2 * sum(bool(han.match(t)) for t in every) >= len(every) else en_words
    return {tuple(p[i : i + size]) for p in tokens if p for i in range(max(1, len(p) - size + 1))}


def plain_jaccard(a: set[Any], b: set[Any]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def pairs_of(sets: list[set[Any]], least: float) -> dict[tuple[int, int], float]:
    """Every pair with a Jaccard similarity of at least `least` (above 0), by counting what it shares."""
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


def variants(seed: int = 0, originals: int = 60) -> Iterator[list[str]]:
    """Texts with some of their words replaced: from untouched to half of them."""
    rng = random.Random(seed)
    for number in range(originals):
        words = [chr(0x4E00 + rng.randrange(400)) for _ in range(60)] if number % 2 else rng.choices(EN.split(), k=40)
        for changes in (0, 1, 2, 4, 8):
            copy = list(words)
            for _ in range(changes):
                copy[rng.randrange(len(copy))] = chr(0x4E00 + rng.randrange(9000)) if number % 2 else f"w{rng.random()}"
            yield copy if number % 2 == 0 else ["".join(copy)]


def test_shingles_have_the_jaccard_similarity_of_sets_of_strings() -> None:
    rows = [{"id": str(i), "text": " ".join(words)} for i, words in enumerate(variants(originals=16))]
    rows += [question(f"q{i}", f"第{i}题：{ZH[i : i + 20]}是？", "DSM-5", "冯特", "a b", "?") for i in range(8)]
    ours = [shingle(row_parts(row)) for row in rows]
    for a, b in itertools.combinations(range(len(rows)), 2):
        parts = [
            [row["text"]] if "text" in row else [row["question"], *row["options"].values()]
            for row in (rows[a], rows[b])
        ]
        expected = plain_jaccard(*(sets_of(p, 3, 2) for p in parts))
        assert jaccard(ours[a].body, ours[b].body) == pytest.approx(expected, abs=1e-12)


def test_chinese_is_cut_into_characters_and_english_into_words() -> None:
    assert units("⼼理 DSM-5，Ａbc’s ①") == ["心", "理", "dsm", "5", "abc", "s", "1"]
    assert len(shingle(Parts("冯特建立了实验室。")).body) == 6
    assert len(shingle(Parts("A variable-ratio schedule")).body) == 3
    assert len(windows([["a"], ["b", "c"], ["d", "e", "f"]], 3)) == 3  # a short part is one shingle


def test_rows_are_the_same_whatever_the_glyphs_the_numbering_and_the_order_of_options() -> None:
    a = shingle(row_parts(question("1", "26．世界上第⼀个⼼理学实验室的创办者是（）。", "铁钦纳", "冯特")))
    b = shingle(row_parts(question("2", "单选：世界上第一个心理学实验室的创办者是( )", "冯特", "铁钦纳")))
    c = shingle(row_parts(question("3", "世界上第一个心理学实验室的创办者是（）。", "冯特", "华生")))
    assert a.key == b.key != c.key
    assert shingle(Parts("3.5 和 4")).key != shingle(Parts("5 和 4")).key


@pytest.mark.parametrize(("threshold", "recall"), [(0.5, 0.99), (0.8, 0.99), (0.9, 0.999)])
def test_pairs_at_the_threshold_are_found_with_the_promised_recall_and_nothing_below_it(
    threshold: float, recall: float
) -> None:
    rows = [{"id": str(i), "text": " ".join(words)} for i, words in enumerate(variants())]
    shingles = [sets_of([row["text"]], 3, 2) for row in rows]
    similar = {
        (a, b)
        for a, b in itertools.combinations(range(len(rows)), 2)
        if plain_jaccard(shingles[a], shingles[b]) >= threshold
    }
    verdicts = judge(rows, DedupeConfig(threshold=threshold, recall=recall))
    joined = {
        (a, b) for a, b in itertools.combinations(range(len(rows)), 2) if verdicts[a].cluster == verdicts[b].cluster
    }
    assert len(similar) > 25
    assert len(similar & joined) >= recall * len(similar)
    label = list(range(len(rows)))  # connected components of the pairs that are really similar
    for _ in rows:
        for a, b in similar:
            label[a] = label[b] = min(label[a], label[b])
    assert all(label[a] == label[b] for a, b in joined)
    kept = [number for number, verdict in enumerate(verdicts) if not verdict.reason]
    assert sum(pair in similar for pair in itertools.combinations(kept, 2)) <= (1 - recall) * len(similar)
    for number, verdict in enumerate(verdicts):
        if verdict.reason == "near_duplicate":
            value, other = re.fullmatch(r"(\S+) like (\d+)", verdict.detail).groups()
            assert int(other) in kept
            assert float(value) == pytest.approx(plain_jaccard(shingles[number], shingles[int(other)]), abs=6e-4)
            assert plain_jaccard(shingles[number], shingles[int(other)]) >= threshold


def test_candidates_are_those_of_datasketch() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 5000, (40, 60))
    sets = [
        set(np.where(rng.random(60) < share, rng.integers(0, 5000, 60), row)) for row in base for share in (0, 0.1, 0.4)
    ]
    minhashes = list(MinHash.generator([[int(x) for x in s] for s in sets], num_perm=128, seed=1, hashfunc=int))
    index = MinHashLSH(num_perm=128, params=(21, 6))
    expected = set()
    for number, minhash in enumerate(minhashes):
        expected |= {(other, number) for other in index.query(minhash)}
        index.insert(number, minhash)
    signatures_NP = np.stack([m.hashvalues for m in minhashes]).astype(np.uint32)
    found = [tuple(sorted(pair)) for block in candidate_pairs(signatures_NP, 21, 6) for pair in block.tolist()]
    assert len(expected) > 40
    assert set(found) == expected
    assert len(found) == len(set(found))  # each pair once


def test_the_bands_reach_the_recall_at_the_threshold() -> None:
    for threshold in (0.3, 0.5, 0.8, 0.95):
        bands, rows = bands_for(threshold, 0.99, 128)
        assert bands * rows <= 128
        assert 1 - (1 - threshold**rows) ** bands >= 0.99


def test_the_first_row_stays_or_the_best() -> None:
    stem = "关于负强化，下列说法中正确的一项是哪一项呢请选出"
    rows = [
        question("a", stem, quality={"score": 0.5}),
        question("b", stem + "！", quality={"score": 0.9}),
        question("c", stem + "来", quality={"score": 0.7}),
        question("d", "完全不同的另一个问题，问的是记忆的编码与提取过程"),
    ]
    first = judge(rows, DedupeConfig(threshold=0.7))
    assert [v.reason for v in first] == ["", "exact_duplicate", "near_duplicate", ""]
    assert [v.cluster for v in first] == ["a", "a", "a", "d"]
    best = judge(rows, DedupeConfig(threshold=0.7, best="quality.score"))
    assert [v.reason for v in best] == ["exact_duplicate", "", "near_duplicate", ""]
    assert best[0].detail == "1.000 like b"
    with pytest.raises(ValueError, match=r"no row has the key 'quality\.sense'"):
        judge(rows, DedupeConfig(best="quality.sense"))


def test_in_a_chain_only_rows_with_a_kept_duplicate_go() -> None:
    texts = [ZH[i : i + 30] for i in (0, 2, 4, 6, 8)]  # each like its neighbour, the ends unlike each other
    verdicts = judge([{"id": str(i), "text": t} for i, t in enumerate(texts)], DedupeConfig(threshold=0.8))
    assert [v.cluster for v in verdicts] == ["0"] * 5
    assert [bool(v.reason) for v in verdicts] == [False, True, False, True, False]


def test_the_same_question_on_another_case_is_another_question() -> None:
    cases = [
        "求助者是一名高三学生，近两个月来考试前心慌失眠。",
        "求助者是一位退休教师，丧偶后半年来情绪低落，不愿出门。",
    ]
    stem = "该求助者目前最主要的心理问题是什么？"
    rows = [question(str(i), stem, context=case) for i, case in enumerate([*cases, cases[0]])]
    rows.append(question("3", stem))
    assert [v.reason for v in judge(rows, DedupeConfig())] == ["", "", "exact_duplicate", ""]
    other = question("4", "根据材料，应首先排除的诊断是什么？", "抑郁发作", "精神分裂症", context=cases[0])
    assert [v.reason for v in judge([rows[0], other], DedupeConfig())] == ["", ""]


def test_rows_without_any_letter_are_duplicates_only_of_themselves() -> None:
    rows = [{"id": str(i), "text": text} for i, text in enumerate(["？？", "！！", "？？"])]
    assert [v.reason for v in judge(rows, DedupeConfig())] == ["", "", "exact_duplicate"]


# benchmarks

PCEB_QUESTION = {
    "id": 1,
    "question": "26．世界上第⼀个⼼理学实验室的创办者及其所在的城市分别是（）。",
    "options": {"A": "铁钦纳，纽约", "B": "冯特，莱⽐锡", "C": "詹姆⼠，波士顿", "D": "华⽣，芝加哥"},
    "answer": "B",
}
CASE = "求助者的儿子原本乖巧、听话，学习成绩也较好。但上初三后似有心事，显得有些郁郁寡欢，成绩下降明显，经常失眠。"
PCEB_CASE = {
    "id": 1,
    "general_info": "求助者，⼥性，已婚，40岁，本科学历，公司职员。",
    "case_introduction": CASE + "求助者和丈夫想了各种⽅法帮助孩⼦，但不⻅效。",
    "questions_and_answers": [
        {"question": "多选：该求助者出现的主要情绪症状包括", "options": {"A": "愤怒", "B": "憋⽓"}, "answer": "AB"}
    ],
}
CPSYEXAM = {
    "id": "7",
    "question": "儿童能够理解物体质量守恒的年龄阶段在皮亚杰理论中称为",
    "options": {"A": "感知运动阶段", "B": "前运算阶段", "C": "具体运算阶段", "D": "", "E": ""},
    "answer": "",
}
OWN = {
    "id": "en-1",
    "question": "Which schedule of reinforcement gives rewards after an unpredictable number of responses?",
    "options": {"A": "Fixed interval", "B": "Variable ratio"},
    "answer": "B",
    "kind": "single",
    "language": "en",
}


@pytest.fixture
def benchmarks(tmp_path: Path) -> Benchmarks:
    deep = tmp_path / "pceb" / "theory" / "single"
    deep.mkdir(parents=True)
    (deep / "14-16.json").write_text(json.dumps([PCEB_QUESTION]), encoding="utf-8")
    (tmp_path / "pceb" / "cases.json").write_text(json.dumps([PCEB_CASE]), encoding="utf-8")
    (tmp_path / "exam.json").write_text(json.dumps([CPSYEXAM]), encoding="utf-8")
    (tmp_path / "own.jsonl").write_text(json.dumps(OWN) + "\n", encoding="utf-8")
    paths = tuple(str(tmp_path / name) for name in ("pceb", "exam.json", "own.jsonl"))
    return Benchmarks(DecontaminateConfig(benchmarks=paths))


STEM = "世界上第一个心理学实验室的创办者及其所在的城市分别是"
OPTIONS = ("冯特，莱比锡", "铁钦纳，纽约", "詹姆士，波士顿", "华生，芝加哥")


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (question("1", f"3、{STEM}（ ）", *OPTIONS), "benchmark_exact", "14-16.json item 1"),
        (question("1", STEM.replace("创办者", "建立者"), *OPTIONS), "benchmark_near", "14-16.json item 1"),
        (question("1", STEM, "巴黎", "伦敦"), "benchmark_exact", "the same stem as 14-16.json item 1"),
        (question("1", STEM + "什么", "巴黎", "伦敦"), "holds_benchmark", "14-16.json item 1"),
        (
            {"id": "1", "text": f"考前复习。有人问{STEM}？答案是冯特，莱比锡。" + ZH},
            "holds_benchmark",
            "14-16.json item 1",
        ),
        (
            {"id": "1", "messages": [{"role": "user", "content": "请帮帮我。" + CASE + "我该怎么办？"}]},
            "inside_benchmark",
            "cases.json item 1",
        ),
        (
            {"id": "1", "post": "我，女性，已婚，40岁，公司职员。" + PCEB_CASE["case_introduction"] + "还有其他事"},
            "holds_benchmark",
            "of the case of cases.json item 1",
        ),
        (question("1", "上初三后似有心事，显得有些郁郁寡欢？"), "inside_benchmark", "cases.json item 1"),
        (question("1", "完全无关的问题？", context=CASE + "后来好些了。"), "inside_benchmark", "cases.json item 1"),
        (
            question("1", CPSYEXAM["question"], "感知运动阶段", "前运算阶段", "具体运算阶段"),
            "benchmark_exact",
            "exam.json",
        ),
        (
            question("1", "Which schedule of reinforcement gives rewards after an unpredictable number of replies?",
                     "Fixed interval", "Variable ratio"),
            "benchmark_near",
            "own.jsonl en-1",
        ),
    ],
)  # fmt: skip
def test_a_row_that_a_benchmark_holds_is_found(
    benchmarks: Benchmarks, row: dict[str, Any], reason: str, detail: str
) -> None:
    found = benchmarks.find(shingle(row_parts(row)))
    assert found is not None
    assert found[0] == reason
    assert detail in found[1]


@pytest.mark.parametrize(
    "row",
    [
        question("1", "世界上第一个心理学实验室建立于哪一年", "1879", "1890"),
        question(
            "1", "该求助者出现的主要情绪症状包括", "愤怒", "憋气", context="求助者，男，20岁，大学生，失恋后情绪低落。"
        ),
        {"id": "1", "text": ZH},
        {"id": "1", "text": EN},
        {"id": "1", "post": "我的儿子上初三，成绩下降了，我很着急。", "reply": "听起来您很担心。"},
        {"id": "1", "text": "？"},
    ],
)
def test_a_row_that_only_shares_the_subject_stays(benchmarks: Benchmarks, row: dict[str, Any]) -> None:
    assert benchmarks.find(shingle(row_parts(row))) is None


def test_a_question_that_two_benchmarks_hold_is_found_as_if_one_held_it(tmp_path: Path) -> None:
    stem = "关于阳性强化法在行为治疗之中的应用，正确的说法包括"
    files = []
    for name, options in (("one", ("及时强化", "事先约定")), ("two", ("由他人评定", "逐步撤除奖励"))):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps([question(name, stem, *options)]), encoding="utf-8")
    mine = shingle(row_parts(question("mine", stem, "奖励要有吸引力", "目标要具体可行")))
    for held in (files[:1], files[1:], files):
        found = Benchmarks(DecontaminateConfig(benchmarks=tuple(map(str, held)))).find(mine)
        assert found is not None
        assert found[0] == "benchmark_exact"


def test_a_form_that_several_items_share_is_no_benchmark_question_by_itself(tmp_path: Path) -> None:
    stem = "关于心理学的研究方法，下列各种说法之中正确的一项是"
    items = [
        question("1", stem, "观察法最早", "实验法最准"),
        question("2", stem, "问卷便于统计", "访谈便于深入"),
        question("3", stem, "测验要有常模", "个案要有记录"),
    ]
    (tmp_path / "exam.json").write_text(json.dumps(items), encoding="utf-8")
    index = Benchmarks(DecontaminateConfig(benchmarks=(str(tmp_path / "exam.json"),)))
    assert (
        index.find(shingle(row_parts(question("3", stem, "个案研究适合罕见现象的探讨", "相关不等于因果关系")))) is None
    )
    assert index.find(shingle(row_parts(items[0]))) is not None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.json", "{", "bad.json: not JSON in UTF-8"),
        ("bad.json", '{"a": 1}', "bad.json: must hold a list of objects"),
        (
            "bad.json",
            '[{"stem": "x"}]',
            r"bad.json item 1: not a benchmark item \(ValueError: row None has no question",
        ),
        ("bad.json", '[{"question": "x", "options": {"A": 3}}]', "bad.json item 1: .* 3 where a text must stand"),
        ("bad.json", "[]", "bad.json: no items"),
        ("bad.jsonl", '{"question": "x"}\n{', "bad.jsonl line 2"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        list(read_benchmark(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        list(read_benchmark(tmp_path / "absent.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no \.json"):
        list(read_benchmark(tmp_path / "empty"))


# files


def test_the_stage_writes_every_row_to_one_of_two_files(tmp_path: Path, benchmarks: Benchmarks) -> None:
    rows = [
        question("a", "关于负强化，下列说法中正确的一项是哪一项？", source="book"),
        question("b", "关于负强化，下列说法中正确的一项是哪一项。"),
        question("c", STEM, *OPTIONS),
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    seen: list[int] = []
    counts = dedupe(source, tmp_path / "out", DedupeConfig(), benchmarks, seen.append)
    assert counts == {"kept": 1, "exact_duplicate": 1, "benchmark_exact": 1}
    assert seen == [1, 2, 3]
    kept, rejects = (
        [json.loads(line) for line in (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines()]
        for name in ("dedupe.jsonl", "dedupe.rejects.jsonl")
    )
    assert kept == [rows[0] | {"cluster": "a"}]
    assert rejects[0] == rows[1] | {"cluster": "a", "reason": "exact_duplicate", "detail": "1.000 like a"}
    assert rejects[1]["detail"] == "the same as 14-16.json item 1"
    before = (tmp_path / "out" / "dedupe.jsonl").read_bytes()
    dedupe(source, tmp_path / "out", DedupeConfig(), benchmarks)
    assert (tmp_path / "out" / "dedupe.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"}', "in.jsonl line 2: id is None"),
        ('{"id": "a", "text": "y"}', "in.jsonl line 2: id 'a' already stands on line 1"),
        ('{"id": "b", "stem": "y"}', "in.jsonl line 2: row 'b' has no question, text, post or messages"),
        ('{"id": "b", "question": "y", "options": {"A": 1}}', "in.jsonl line 2: row 'b' holds 1 where a text"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "x"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        dedupe(tmp_path / "in.jsonl", tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"threshold": 0}, {"threshold": 1.1}, {"recall": 1.0}, {"zh_chars": 0}, {"threshold": 0.01, "recall": 0.99}],
)
def test_a_wrong_config_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|use more"):
        DedupeConfig(**change)
    with pytest.raises(ValueError, match="containment is 0"):
        DecontaminateConfig(containment=0)


# real data


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8])
def test_on_pceb_recall_is_at_least_95_percent_and_precision_is_1(shared_folder: Path, threshold: float) -> None:
    parts = [parts for *_, parts in read_benchmark(shared_folder / "data" / "pceb")]
    rows = [
        {
            "id": str(i),
            "question": p.stem,
            "options": dict(zip("ABCDEFGHIJ", p.options, strict=False)),
            "context": p.context,
        }
        for i, p in enumerate(parts)
    ]
    every = [shingle(p) for p in parts]
    bodies, contexts = [set(s.body.tolist()) for s in every], [set(s.context.tolist()) for s in every]
    similar = {
        (a, b)
        for a, b in pairs_of(bodies, threshold)
        if not contexts[a] | contexts[b] or plain_jaccard(contexts[a], contexts[b]) >= threshold
    }
    verdicts = judge(rows, DedupeConfig(threshold=threshold))
    found = sum(verdicts[a].cluster == verdicts[b].cluster for a, b in similar)
    assert len(similar) > 10
    assert found >= 0.95 * len(similar)
    label = {str(i): i for i in range(len(rows))}
    for _ in range(9):
        for a, b in similar:
            label[str(a)] = label[str(b)] = min(label[str(a)], label[str(b)])
    assert all(label[verdict.cluster] == label[str(i)] for i, verdict in enumerate(verdicts))
    for i, verdict in enumerate(verdicts):
        if verdict.reason:
            other = int(verdict.detail.split()[-1])
            assert (min(i, other), max(i, other)) in similar
            assert not verdicts[other].reason


def test_pceb_finds_itself_and_not_the_demo_corpus(shared_folder: Path) -> None:
    folder = shared_folder / "data" / "pceb"
    index = Benchmarks(DecontaminateConfig(benchmarks=(str(folder),)))
    reasons = [index.find(shingle(parts)) for *_, parts in read_benchmark(folder)]
    assert all(reason is not None and reason[0] == "benchmark_exact" for reason in reasons)
    data = Path(__file__).resolve().parents[2] / "recipes" / "data"
    for name in ("passages_zh.jsonl", "passages_en.jsonl"):
        for line in (data / name).read_text(encoding="utf-8").splitlines():
            assert index.find(shingle(row_parts(json.loads(line)))) is None


SEAT_BELT = {
    "A": "An alarm stops when the belt is fastened",
    "B": "A child gets sweets for tidying the room",
    "C": "A driver pays a fine for speeding",
    "D": "A dog is ignored when it barks",
}


def test_the_negated_question_is_no_duplicate() -> None:
    stem = "Which of these is {}a typical feature of negative reinforcement in everyday life as the passage has it?"
    rows = [{"id": x, "question": stem.format(x), "options": SEAT_BELT} for x in ("", "not ", "really ")]
    verdicts = judge(rows, DedupeConfig())
    assert [verdict.reason for verdict in verdicts] == ["", "", "near_duplicate"]
    assert len({verdict.cluster for verdict in verdicts}) == 1  # so that they stay on one side of a split


def test_a_duplicate_with_another_answer_says_so() -> None:
    rows = [{"id": x, "question": "Which?", "options": SEAT_BELT, "answer": x} for x in "AB"]
    assert [verdict.detail for verdict in judge(rows, DedupeConfig())] == ["", "1.000 like A, which has another answer"]
