"""The letters that an answer names, by a table of phrasings in both languages, and what must not fool the parser."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychecore.data.prompts import answer_text
from psychecore.data.records import Question
from psychecore.evaluate.pceb import read_pceb
from psychecore.reward.answer import MAX_ANSWER, parse_answer

PHRASINGS = [
    # a comma, other letters, and what is said of them
    ("故选A，B项说的是惩罚", "A"),
    ("答案选A，B属于负强化", "A"),
    ("答案为ABD，C不选", "ABD"),
    ("答案：AC，B、D为干扰项。", "AC"),
    ("答案是ABC，D选项表述不准确", "ABC"),
    ("The answer is A, B would be punishment.", "A"),
    ("故选B，而A是惩罚", "B"),
    ("答案是A，B是正确的", "AB"),
    ("答案为A，B项正确", "AB"),
    ("A，B，C是正确答案", "ABC"),
    ("The answers are A, C since they describe it.", "AC"),
    *[(text, "A") for text in ("故选A。B，C属于负强化，D属于消退。", "答案是A。B、D指的是惩罚。")],
    ("答案：A、C。B，D是干扰项。", "AC"),
    ("答案：B；A，C，D是错误的", "B"),
    ("B。A，C属于惩罚", "B"),
    ("I choose C; A, B and D describe reinforcement", "C"),
    ("答案：B。A项：过于宽泛；C项：与题干不符", "B"),
    ("本题选B。A项：消退；C项：惩罚；D项：锚定。", "B"),
    ("故选C。A项、B项、D项说法错误。", "C"),
    ("答案是C，不选B项、D项", "C"),
    ("Answer: A, B and C describe learning.", "ABC"),
    ("答案选A，C表述正确", "AC"),
    ("应选A，D项表述正确", "AD"),
    ("答案是A，C是符合题意的", "AC"),
    ("选A，C是因为二者都是强化", "AC"),
    # written as data, or with a word that only says "option"
    ('{"answer": "AC"}', "AC"),
    ("[答案]B", "B"),
    ("B项", "B"),
    ("B选项。", "B"),
    # what an attempt to break the parser found: letters that are called wrong, what others would choose, more phrasings
    ("Answer: B (A is wrong)", "B"),
    ("答案是B，A错误。", "B"),
    ("答案选B，A、C不符合", "B"),
    ("Some people choose A, but B is correct.", "B"),
    ("Students often pick A, but the answer is B.", "B"),
    ("B. It isn't A, C or D.", "B"),
    ("A. Shaping (correct)\nB. Extinction (incorrect)", "A"),
    ("A: no\nB: yes\nC: no", "B"),
    ("It's B.", "B"),
    ("So B.", "B"),
    ("Thus, B.", "B"),
    ("<answer>B</answer>", "B"),
    ("Ans: B", "B"),
    ("The correct one is B", "B"),
    ("The answer has to be B", "B"),
    ("The answer is not A but B.", "B"),
    ("B best fits the description.", "B"),
    ("B because it fits", "B"),
    ("答案不是A，而是B", "B"),
    ("A、B两项正确", "AB"),
    ("ABC都对", "ABC"),
    ("A不对，B对", "B"),
    ("B最合适", "B"),
    ("最合适的选项是C", "C"),
    ("选项B最符合题意", "B"),
    ("由此可知B项当选", "B"),
    ("综上所述，B", "B"),
    # letters in a numbered list
    ("The correct answers are:\n1. A\n2. C", "AC"),
    ("The correct answers are:\n\n1. A. x\n2. C. y", "AC"),
    ("Answer:\n1) **B**", "B"),
    ("答案：\n1、A\n2、C", "AC"),
    ("1. (A)\n2. (C)", "AC"),
    ("1. A person is rewarded.\n2. I think so.\nThe answer is B.", "B"),
    # bare and marked letters
    ("B", "B"),
    ("B.", "B"),
    ("B. Anchoring", "B"),
    ("B.Anchoring", "B"),
    ("(B)", "B"),
    ("(B) Anchoring", "B"),
    ("B) Anchoring", "B"),
    ("B: Anchoring", "B"),
    ("B - Anchoring", "B"),
    ("B (Anchoring)", "B"),
    ("**B**", "B"),
    ("**B. Anchoring**", "B"),
    ("Option B", "B"),
    ("Answer B.", "B"),
    ("\n\n  B\n", "B"),
    ("AC", "AC"),
    ("CA", "AC"),
    ("A, C", "AC"),
    ("A,C,D", "ACD"),
    ("A and C", "AC"),
    ("A, C, and D", "ACD"),
    ("A & C", "AC"),
    ("A B D", "ABD"),
    ("A. x; C. y", "AC"),
    ("A. x, C. y", "AC"),
    ("A. x and C. y", "AC"),
    ("A. x\nC. y", "AC"),
    ("A. B. D.", "ABD"),
    ("- A. x\n- C. y", "AC"),
    ("(A) x; (C) y", "AC"),
    ("A. person-centred therapy", "A"),
    ("A, because the reinforcer is taken away.", "A"),
    ("It is the schedule that matters.\n\nC. Variable ratio", "C"),
    # statements, English
    ("The answer is (B).", "B"),
    ("The answer is B", "B"),
    ("the correct answer is: B. Anchoring", "B"),
    ("The answer is A because it reinforces.", "A"),
    ("So the best answer here is **B**.", "B"),
    ("The answer to this question is B.", "B"),
    ("The answer is clearly option B.", "B"),
    ("Answer: A, C", "AC"),
    ("Answer: A. x; C. y", "AC"),
    ("Answer:\nB", "B"),
    ("Answer:\n\nA. x\nC. y\n\nB. is too narrow.", "AC"),
    ("ANSWER: B", "B"),
    ("Final answer: B", "B"),
    ("The answers are A and C.", "AC"),
    ("The correct options are both A and C.", "AC"),
    ("The correct answers are A, B, and D.", "ABD"),
    ("I would choose B.", "B"),
    ("I'd go with option B", "B"),
    (r"The answer is $\boxed{B}$", "B"),
    (r"\boxed{\text{AC}}", "AC"),
    ("I am not sure, but the answer is B", "B"),
    ("It is not C, so the answer is B", "B"),
    # verdicts
    ("B is correct.", "B"),
    ("Option B is the best answer.", "B"),
    ("A and C are the correct answers.", "AC"),
    ("A is correct. D is correct too.", "AD"),
    ("选项B正确", "B"),
    ("A、C都是正确的", "AC"),
    # statements, Chinese
    ("答案：AC", "AC"),
    ("答案:B", "B"),
    ("答案是B。", "B"),
    ("答案为 B", "B"),
    ("答案 B", "B"),
    ("答案应选B", "B"),
    ("正确答案是A、C和D", "ACD"),
    ("正确答案是：A，C", "AC"),
    ("【答案】B", "B"),
    ("答案：“B”", "B"),
    ("正确选项为B", "B"),
    ("正确的是A和C。", "AC"),
    ("因此选B", "B"),
    ("选B", "B"),
    ("故选：ABD。", "ABD"),
    ("应选择A、B", "AB"),
    ("我选 C，因为它强调强化。", "C"),
    ("不是C，所以答案是B", "B"),
    ("答案：A. 强化；C. 消退", "AC"),
    ("答案是A经典条件反射", "A"),
    ("答案：B\n\n解析：A. 过于宽泛；C. 与题干不符。", "B"),
    # marked letters, Chinese
    ("B。", "B"),
    ("B、锚定效应", "B"),
    ("B．锚定效应", "B"),
    ("B 锚定效应", "B"),
    ("（B）", "B"),
    ("A、C", "AC"),
    ("A和C", "AC"),
    ("A与C以及D", "ACD"),
    ("A. 塑造；C. 消退", "AC"),
    ("选项B", "B"),
    # compatibility forms
    ("Ａ", "A"),
    ("Ａ，Ｃ", "AC"),
    ("答案：ＡＣ", "AC"),
    ("Ⓑ", "B"),
    ("A\u2003C\u00a0", "AC"),
    ("B\u200b", "B"),
    ("\x00B\x00", "B"),
]

NO_LETTER = [
    "",
    "   \n",
    "A person who fears open places",
    "A person-centred therapist listens.",
    "A 5-year-old child",
    'A "flashbulb" memory',
    "The answer is A person who listens",
    "I think a person learns from others.",
    "I'm sure.",
    "I think it is anchoring.",
    "B.F. Skinner described it.",
    "B-cells are no neurons.",
    "A型人格",
    "答案是A型人格",
    "Cluster B",
    "vitaminB",
    "CBT",
    "ABA",
    "The answer is CBT",
    "BBBBBBBB",
    "ABCDABCD",
    "Because",
    "b",
    "А. x",  # Cyrillic A
    "A\u0338. x",
    "不选A",
    "不应该选A",
    "答案不是A",
    "错误答案是A",
    "The answer is not A",
    "The wrong answer is A",
    "The incorrect option is A",
    "I don't think the answer is A",
    "A is not correct.",
    "A is wrong.",
    "A不正确",
]


@pytest.mark.parametrize(("answer", "letters"), PHRASINGS)
def test_a_phrasing_names_its_letters(answer: str, letters: str) -> None:
    assert parse_answer(f"<think>C or D?</think>\n{answer}", "ABCD").letters == letters
    assert parse_answer(answer, "ABCD").letters == letters


@pytest.mark.parametrize("answer", NO_LETTER)
def test_a_text_without_a_choice_names_none(answer: str) -> None:
    assert parse_answer(f"<think>The answer is B.</think>{answer}", "ABCD").letters is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>The answer is B.</think>", "no answer"),
        ("<think>The answer is B.</think> \n", "no answer"),
        ("<think>The answer is B.", "not closed"),
        ("<think>x</think>B<think>y</think>C", "several"),
        ("<think><think>x</think>B", "several"),
        ("<think>x</think>B</think>C", "several"),
        ("</think>B<think>", "wrong order"),
        ("<think>x</think>The answer is E.", "names E, but the options are ABCD"),
        ("<think>x</think>AE", "names E"),
        ("<think>x</think>The answer is A or B.", "hedge"),
        ("<think>x</think>答案是A或B", "hedge"),
        ("<think>x</think>The answer is A. Wait. The answer is B.", "contradict"),
        ("<think>x</think>答案是A。不对，答案是B。", "contradict"),
        ("<think>x</think>The answer is A. The answers are A and C.", "contradict"),
        ("<think>x</think>" + "x" * MAX_ANSWER + " B", "characters"),
    ],
)
def test_an_unparsable_answer_says_why(text: str, reason: str) -> None:
    parsed = parse_answer(text, "ABCD")
    assert parsed.letters is None
    assert reason in parsed.reason


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("A. x. No, the answer is B.", "B"),  # one statement beats marked letters
        ("A. w\nB. x\nC. y\nD. z\nThe answer is B.", "B"),
        ("The answer is B. The answer is B!", "B"),
        ("I don't think the answer is A. The answer is B.", "B"),
        ("A. x. No, B. y", "AB"),  # two bare claims are two letters: wrong in a single-choice question
        ("The answer is A. No wait, B.", "AB"),
        ("The answer is A. x or B. y", "AB"),
        ("A. w\nB. x\nC. y\nD. z", "ABCD"),  # all letters listed are all letters chosen
        ("ABCD", "ABCD"),
        ("B. I think so", "B"),
        ("C. B. F. Skinner", "C"),  # initials of a name are no letters, but a line's first mark is one
        ("B. F. Skinner", "B"),
        ("D. Both A and B", "D"),
        ("The answer is A. B. F. Skinner", "A"),
        ("B. A person who listens", "B"),
    ],
)
def test_contradictions_follow_the_documented_rule(answer: str, letters: str) -> None:
    assert parse_answer(f"<think>x</think>{answer}", "ABCD").letters == letters


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("选B错觉", "B"),  # an option's text may begin as a verdict does
        ("B：错觉", "B"),
        ("B) False memory", "B"),
        ("Answer: B (False consensus effect)", "B"),
        ("The answer is B: no reinforcer follows the response.", "B"),
        ("B. Extinction (no reinforcer follows)", "B"),
        ("B. 负强化（不是惩罚）", "B"),
        ("B错，选A", "A"),
        ("A错在混淆，选C", "C"),
        ("选B不是A", "B"),
        ("A：√\nB：×", "A"),
        ("(A)(C)", "AC"),
        ("答案：【A】【C】", "AC"),
        ("Answer: B (A is too broad)", "B"),  # a remark on others
        ("Answer: B (A, C and D describe other things)", "B"),
        ("答案：B (A项过于绝对)", "B"),
        ("B (A is too narrow)", "B"),
        ("B（A项过于绝对）", "B"),
        ("The answer is (B: Operant).", "B"),  # a bracket around more than the letter
        ("the answer is: (A and C, both).", "AC"),
        ("答案是（B。）", "B"),
        ("- (B. x)", "B"),
        ("A, B and (C, D)", "ABCD"),
        ("A: Incorrect - it is too broad.\nB: Correct - fits.", "B"),
        ("A: Wrong choice.\nB: Right choice.", "B"),
        ("A. x (wrong answer)\nB. y (right answer)", "B"),
        ("A. x (错误选项)\nB. y(正确选项)", "B"),
        ("A: no B: yes C: no", None),
    ],
)
def test_remarks_and_verdicts_are_told_from_options(answer: str, letters: str | None) -> None:
    assert parse_answer(answer, "ABCD").letters == letters


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("答案：A. 烦躁 C. 错觉", "AC"),
        ("A. 烦躁 C. 错觉", "AC"),
        ("Answer: (A) 烦躁 (C) 错觉", "AC"),
        ("答案：\n\nA. 烦躁\n\nC. 错觉", "AC"),
        ("答案：A 烦躁、B 与丈夫吵架、D 是错误认知", "ABD"),
        ("答案：A（烦躁）、C（错觉）", "AC"),
        ("A（烦躁）B（与丈夫吵架）", "AB"),
        ("答案：A. 烦躁 B. 与丈夫吵架 C. 错觉 D. 是错误认知", "ABCD"),
        ("答案：C 错觉", "C"),
        ("C. 错觉", "C"),
        ("A. 正确\nB. 错误\nC. 正确\nD. 错误", "AC"),
        ("A. Correct\nB. Incorrect\nC. Correct", "AC"),
        ("答案：A. 烦躁，不像 C. 错觉", "A"),  # not the next item of a list
        ("答案：B. 与丈夫吵架\nC涉及知觉", "B"),
        ("答案：B 与丈夫吵架。C是知觉，D不对。", "B"),
        ("答案：B. 与丈夫吵架\nC. 错觉是另一回事", "B"),
        ("C. 错觉 A. 烦躁", "AC"),
    ],
)
def test_options_texts_tell_where_the_next_letter_stands(answer: str, letters: str) -> None:
    texts = {"A": "烦躁", "B": "与丈夫吵架", "C": "错觉", "D": "是错误认知"}
    assert parse_answer(answer, texts).letters == letters


FORMS = {
    "letters": ("故选{}", "、", "{0}"),
    "one line": ("答案：{}", " ", "{0}. {1}"),
    "paragraphs": ("答案：\n\n{}", "\n\n", "{0}. {1}"),
    "no mark": ("答案：{}", "、", "{0} {1}"),
    "brackets": ("答案：{}", "、", "{0}（{1}）"),
    "a list": ("{}", "\n", "{0}. {1}"),
    "English": ("The answer is {}.", ", ", "{0}. {1}"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_keys_of_a_real_benchmark_are_read_back_in_any_form(form: str, shared_folder: Path) -> None:
    """Options that are letters themselves (P量表, SCL-90) may be too much for it: at most 2 in 100."""
    whole, joint, item = FORMS[form]
    questions = [one.question for one in read_pceb(shared_folder / "data" / "pceb").items]
    said = [
        whole.format(joint.join(item.format(letter, question.options[letter]) for letter in question.answer))
        for question in questions
    ]
    wrong = [text for text, q in zip(said, questions, strict=True) if parse_answer(text, q.options).letters != q.answer]
    assert len(questions) > 1800
    assert len(wrong) <= len(questions) * 0.02, wrong[:5]


@pytest.mark.parametrize("answer", ["答案：B 错误", "答案：B（错误）", "B. 错误", "B. 错", "B. 不对", "B"])
def test_an_option_may_be_a_verdict(answer: str) -> None:
    assert parse_answer(answer, {"A": "正确", "B": "错误"}).letters == "B"


def test_only_the_letter_counts_where_it_contradicts_the_option_text() -> None:
    question = Question("q", "?", {"A": "Shaping", "B": "Priming", "C": "Extinction"}, "C", "single")
    assert parse_answer(f"<think>x</think>B. {question.options['C']}", "ABC").letters == "B"


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("bits", range(1, 32))
def test_our_own_answer_text_is_read_back(language: str, bits: int) -> None:
    options = dict(
        zip("ABCDE", ["A. Bandura", "B. F. Skinner", "I. Pavlov's dogs", "A and B", "A person"], strict=True)
    )
    answer = "".join(letter for i, letter in enumerate("ABCDE") if bits >> i & 1)
    question = Question("q", "?", options, answer, "multiple", language=language)  # type: ignore[arg-type]
    assert parse_answer("<think>x</think>\n" + answer_text(question), "ABCDE").letters == answer


def test_letters_up_to_j_and_the_pronoun() -> None:
    assert parse_answer("I", "ABCDEFGHIJ").letters == "I"
    assert parse_answer("I. Imprinting", "ABCDEFGHIJ").letters == "I"
    assert parse_answer("I think so", "ABCDEFGHIJ").letters is None
    assert parse_answer("B. Priming. I, too, was unsure.", "ABCD").letters == "B"


FRAGMENTS = ["<think>", "</think>", "answer is ", "答案是", "选", "A", "B", "C", "E", ". ", "、", "\n", "or "]
FRAGMENTS += ["\\boxed{", "\x00", "\ud800", "\u0301", "Ａ", "ﷺ", "⟦A⟧", "I ", "not ", "\u202e"]


@given(st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS)).map("".join)), st.sampled_from(["AB", "ABCD", ""]))
def test_any_text_gives_known_letters_or_a_reason_and_always_the_same(text: str, options: str) -> None:
    parsed = parse_answer(text, options)
    assert parsed == parse_answer(text, options)
    if parsed.letters is None:
        assert parsed.reason
    else:
        assert parsed.letters
        assert set(parsed.letters) <= set(options)
        assert list(parsed.letters) == sorted(set(parsed.letters))


@given(st.text(alphabet="ABCDE，、和.是 thinkaswer", max_size=60))
def test_thinking_never_decides(thinking: str) -> None:
    assert parse_answer(f"<think>{thinking}</think>B", "ABCD").letters == "B"


UNITS = [
    "A", "A ", "A, ", "A. ", "ABA ", "(", "a", " ", "\x00", "\n", "\nA", "answer is ", "answer to ", "the answer is A ",
    "The answer is A. ", "选", "选A", "不", "答案", "B is correct ", "⟦", "ﷺ", "\u0301", "the ", "not ", "*", "A or ",
    "A. x\n", "A:x,", "A.愤怒。", "A. x B. x ", "(A x",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_an_answer_at_the_bound_costs_little_more_per_character_than_a_short_one(unit: str) -> None:
    # eight times the text may cost 8 times the time; 64 would be quadratic. 20 ms of slack swallow a busy machine.
    long = (unit * MAX_ANSWER)[: MAX_ANSWER - 2] + "\nx"
    assert seconds(long) < 30 * seconds(long[: len(long) // 8]) + 0.02


@pytest.mark.parametrize("unit", [*UNITS, "<think>", "</think>", "<think", "<"])
def test_a_megabyte_costs_no_more_than_looking_for_the_tags(unit: str) -> None:
    megabyte = unit * (1_000_000 // len(unit))
    assert seconds(megabyte + "B") < 0.5
    assert seconds(f"<think>{megabyte}</think>B") < 0.5
    assert parse_answer(f"<think>{'x' * 1_000_000}</think>B" + "\n" * 1_000_000, "ABCD").letters == "B"


def seconds(text: str) -> float:
    """The fastest of three, on the processor's clock, so that a neighbour's load does not count."""
    times = []
    for _ in range(3):
        start = time.process_time()
        parse_answer(text, {"A": "x", "B": "x", "C": "愤怒", "D": "Shaping"})
        times.append(time.process_time() - start)
    return min(times)
