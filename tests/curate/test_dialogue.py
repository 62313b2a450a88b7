"""Dialogues: what a rewrite may change, rule by rule, on the authored posts and on rewrites written for this test."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from growth import growth

from psychecore.curate.additions import added_claims
from psychecore.curate.advice import advice_sentences, lost_advice
from psychecore.curate.clean import clean_text
from psychecore.curate.dialogue import Dialogue, DialogueConfig, clean_rewrite, verdict_fault
from psychecore.curate.empathy import understanding
from psychecore.curate.generator import Reply, Request
from psychecore.curate.privacy import names_in, private_data, without_private_data
from psychecore.curate.prompts import load_prompts
from psychecore.curate.risk_reply import plays_down, reply_fault
from psychecore.curate.stage import Outcome, run_stage
from psychecore.curate.wording import content_words, length, sentences
from psychecore.data.records import read_conversations

RECIPES = Path(__file__).parents[2] / "recipes"
PROMPTS = load_prompts(RECIPES / "prompts" / "dialogue.toml")
POSTS = {
    row["id"]: row
    for language in ("en", "zh")
    for row in map(json.loads, (RECIPES / "data" / f"posts_{language}.jsonl").read_text("utf-8").splitlines())
}
WARM = {
    "en": "Thank you for writing this. It sounds exhausting, and it makes sense that you feel alone with it. ",
    "zh": "谢谢你愿意说出来。听起来你这段时间真的很疲惫，一个人扛着一定很难受。",
}
POST: dict[str, Any] = {
    "id": "p1",
    "post": "I lie awake until three every night and go over the day. At work I can hardly keep my eyes open.",
    "reply": "Get up at seven every day, also at weekends. Do not drink coffee after noon. Turn the clock away from "
    "the bed. If you lie awake for long, get up and read in dim light. Ask your doctor about a short sleep programme.",
    "language": "en",
    "source": "test",
}
# A rewrite as a good model would write it: other words around the advice, the advice's own words inside.
GOOD = (
    "Lying awake until three while the whole day passes before you again sounds exhausting, and it is no wonder that "
    "you can hardly keep your eyes open at work. A few things may help. Try to get up at seven every day, weekends "
    "too, even after a bad night. It would be good not to drink coffee after noon. You could turn the clock away from "
    "the bed, so that it stops watching you. And if you lie awake for long, it is kinder to get up and read in dim "
    "light than to fight. You may also ask your doctor about a short sleep programme."
)


class Scripted:
    """Replies by rule; keeps the requests of each call."""

    name = "scripted"

    def __init__(self, rule: Callable[[Request], str]):
        self.rule, self.calls = rule, list[list[Request]]()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        self.calls.append(list(requests))
        return [Reply(self.rule(request), None) for request in requests]


def rewrite(text: str, row: dict[str, Any] = POST, judge: Scripted | None = None, **config: Any) -> Outcome:
    stage = Dialogue(DialogueConfig(**{"attempts": 1} | config), Scripted(lambda request: text), PROMPTS, judge)
    [outcome] = stage.batch([row])
    return outcome


def reason(text: str, row: dict[str, Any] = POST, **config: Any) -> str:
    outcome = rewrite(text, row, **config)
    return outcome.rejected[0].reason if outcome.rejected else ""


def test_a_good_rewrite_becomes_a_dialogue_of_two_turns() -> None:
    outcome = rewrite(GOOD)
    assert outcome.rejected == []
    assert outcome.kept == [
        {
            "id": "p1-dialogue",
            "messages": [{"role": "user", "content": POST["post"]}, {"role": "assistant", "content": GOOD}],
            "source": "test",
            "risk": None,
            "post_id": "p1",
            "language": "en",
            "topic": "",
        }
    ]


def test_a_good_chinese_rewrite_passes() -> None:
    row = POST | {
        "language": "zh",
        "post": "最近总是睡不着，凌晨三点还在想白天的事，上班困得不行。",
        "reply": "每天固定时间起床，周末也一样。下午不要喝咖啡。手机放到卧室外面充电。"
        "睡不着就起来看几页书，困了再回床上。三周没有改善就去睡眠门诊。",
    }
    text = (
        "凌晨三点还在反复想白天的事，第二天又要撑着上班，听起来真的很累，难怪你会着急。"
        "我们可以慢慢来：每天固定时间起床，周末也尽量一样。下午就先不要喝咖啡了。晚上把手机放到卧室外面充电。实在睡不着就起来看几页书，等困了再回床上。"
        "如果三周还没有改善，就去睡眠门诊看一看吧。"
    )
    assert rewrite(text, row).rejected == []
    assert reason(text.replace("下午就先不要喝咖啡了。", ""), row) == "advice_lost"
    assert reason(text.replace("下午就先不要喝咖啡了。", "下午可以喝咖啡。"), row) == "advice_lost"
    assert reason(text + "你这就是得了焦虑症。", row) == "diagnosis_added"
    assert reason(text + "也可以吃一点褪黑素。", row) == "medicine_added"
    assert reason(text + "相信我，一定会好的。", row) == "promise_added"
    assert reason(text + "其实这没什么大不了。", row) == "played_down"
    assert reason(text + "有事加我微信：abc12345。", row) == "contact_left"
    assert reason(text + "王老师", row) == "name_left"
    assert reason(text.replace("听起来真的很累，难怪你会着急。", ""), row) == "no_understanding"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("It would be good not to drink coffee after noon. ", "", "advice_lost"),
        ("not to drink coffee after noon", "to drink coffee after noon", "advice_lost"),
        ("You may also ask your doctor about", "You should not ask your doctor about", "advice_lost"),
        ("A few things", "You have depression. A few things", "diagnosis_added"),
        ("A few things", "This looks like insomnia. A few things", "diagnosis_added"),
        ("A few things", "Taking melatonin or a few things", "medicine_added"),
        ("sleep programme", "sleep programme and sertraline, 50 mg", "medicine_added"),
        ("A few things may", "These things will definitely", "promise_added"),
        ("A few things may help.", "I guarantee it. Everything will be fine.", "promise_added"),
        ("A few things may help.", "Others have it worse.", "played_down"),
        ("A few things may help.", "Dear [Name], a few things.", "placeholder"),
        ("A few things may help.", "Write to help@sleep.example, please.", "contact_left"),
        ("A few things may help.", "Call me on +44 20 7946 0958.", "contact_left"),
        ("short sleep programme.", "short sleep programme.\n- Susan", "name_left"),
        ("A few things may help.", "\nClient: Thanks!\nCounsellor: A few things.", "several_turns"),
        ("A few things may help.", "As an AI I can't sleep.", "not_a_reply"),
    ],
)
def test_what_a_rewrite_must_not_change_is_found(old: str, new: str, code: str) -> None:
    assert GOOD.count(old) == 1
    assert reason(GOOD.replace(old, new)) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "no_rewrite"),
        ("<think>I wonder", "no_rewrite"),
        (str(POST["reply"]), "unchanged"),
        ("Good night.", "too_short"),
        (f"It sounds hard. {POST['reply']} " * 4, "too_long"),
        (f"Let us look at this. {POST['reply']}", "no_understanding"),
        (f"I understand. {POST['reply']}", "no_understanding"),
        ("听起来你真的很累。" * 9, "wrong_language"),
    ],
)
def test_a_rewrite_that_is_none_has_a_reason(text: str, code: str) -> None:
    assert reason(text) == code


def test_what_the_source_says_may_be_said_again() -> None:
    row = POST | {
        "reply": f"{POST['reply']} You have insomnia. Don't take sleeping pills. It will definitely get better."
    }
    text = GOOD + " You have insomnia. Please don't take sleeping pills. It will definitely get better."
    assert reason(text, row) == ""


def test_a_disorder_of_the_post_may_be_taken_up_but_not_told() -> None:
    post = "I was told that it may be depression. " + POST["post"]
    assert added_claims(post, "", "Hearing the word depression must be frightening.") == []
    assert added_claims(post, "", "I think you have depression.") == [("diagnosis_added", "you have depression")]
    assert added_claims("", "", "I can't promise that it will be quick.") == []


def test_a_text_that_only_adds_warmth_to_the_authored_replies_passes_but_for_risk_without_help() -> None:
    rows = list(POSTS.values())

    def warm(request: Request) -> str:
        text = request.messages[-1]["content"]
        row = next(row for row in rows if row["reply"] in text)
        return WARM[row["language"]] + row["reply"]

    outcomes = Dialogue(DialogueConfig(), Scripted(warm), PROMPTS).batch(rows)
    rejected = {one.row["id"]: one.reason for outcome in outcomes for one in outcome.rejected}
    assert rejected == dict.fromkeys(
        ["en-post-suicide-02", "en-post-self-harm-02", "en-post-abuse-02", "zh-post-self-harm-01"],
        "risk_without_help",
    )
    risks = [outcome.kept[0]["risk"] for outcome in outcomes if outcome.kept]
    assert len(risks) == 63
    assert sorted(filter(None, risks)) == ["abuse", "abuse", "self-harm", "suicide", "suicide"]


def test_every_piece_of_authored_advice_is_missed_when_it_is_left_out() -> None:
    dropped = found = 0
    for row in POSTS.values():
        parts = sentences(row["reply"])
        advice = advice_sentences(row["reply"])
        assert len(advice) >= 3, row["id"]
        for one in advice:
            rest = " ".join(part for part in parts if part != one)
            dropped += 1
            found += one in lost_advice(row["reply"], rest)
    assert found >= 0.97 * dropped > 400


def test_a_reply_that_another_post_got_keeps_nothing() -> None:
    for language in ("en", "zh"):
        rows = [row for row in POSTS.values() if row["language"] == language]
        pairs = list(zip(rows, rows[5:], strict=False))
        lost = sum(len(lost_advice(row["reply"], other["reply"])) for row, other in pairs)
        assert lost >= 0.95 * sum(len(advice_sentences(row["reply"])) for row, _ in pairs)


def test_a_post_with_risk_is_told_apart_and_needs_a_reply_that_names_help() -> None:
    row = POSTS["en-post-self-harm-02"]
    generator = Scripted(lambda request: WARM["en"] + row["reply"])
    stage = Dialogue(DialogueConfig(attempts=1), generator, PROMPTS)
    [outcome] = stage.batch([row])
    assert (outcome.kept, outcome.rejected[0].reason) == ([], "risk_without_help")
    assert "ask them to get help now" in generator.calls[0][0].messages[-1]["content"]
    help_now = "Please call your doctor today and do not stay alone with this worry. "
    outcome = rewrite(WARM["en"] + help_now + row["reply"], row)
    assert outcome.kept[0]["risk"] == "self-harm"
    assert reason(WARM["en"] + help_now + "It is just a phase. " + row["reply"], row) == "played_down"


def test_a_source_that_plays_a_danger_down_is_not_rewritten() -> None:
    generator = Scripted(lambda request: GOOD)
    row = POST | {"post": "I want to kill myself.", "reply": "Others have it worse. Go for a walk every day."}
    [outcome] = Dialogue(DialogueConfig(), generator, PROMPTS).batch([row])
    assert outcome.rejected[0].reason == "source_plays_down"
    assert generator.calls == []


def test_names_and_contact_data_are_out_of_post_and_prompt() -> None:
    row = POST | {
        "post": f"My name is Tim. {POST['post']} Mail me: tim@example.org",
        "reply": f"Dear Tim, {POST['reply']}\nDr. Harris, www.harris.example.com",
    }
    generator = Scripted(lambda request: GOOD)
    [outcome] = Dialogue(DialogueConfig(), generator, PROMPTS).batch([row])
    sent = generator.calls[0][0].messages[-1]["content"]
    for private in ("Tim", "tim@", "Harris", "harris"):
        assert private not in sent
        assert private not in json.dumps(outcome.kept)
    assert outcome.kept[0]["messages"][0]["content"].startswith("My name is [name].")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hi Maria, sleep well.", ["Maria"]),
        ("Hi there, sleep well.", []),
        ("My name is José. José is sad.", ["José", "José"]),
        ("my name is jessica, and Łukasz is late", ["jessica"]),
        ("My name is Łukasz Nowak, so Łukasz", ["Łukasz Nowak", "Łukasz"]),
        ("Mr. McDonald, Ms. Smith-Jones, Dr. O'Brien and Dr. Müller", ["McDonald", "Smith-Jones", "O'Brien", "Müller"]),
        ("my name is not important, and call me ASAP", []),
        ("我叫张伟今年25岁，大家都说张伟没用", ["张伟", "张伟"]),
        ("我叫李明 今年很累", ["李明"]),
        ("Ring 138.1234.5678 or 06.12.34.56.78.", ["138.1234.5678", "06.12.34.56.78"]),
        ("On 2024.11.27 it was 3.14159265 of them, from 2010.2011.2012.2013 on 12.03.2024.15.30.", []),
        ("大家好，我叫张乐乐。张乐很不高兴。", ["张乐乐"]),
        ("我叫王明，我弟弟叫王明明。", ["王明"]),
        ("我叫周围 的人安静，周围的人都不理我", []),
        ("My boyfriend Keanu left. Keanu was rude.", ["Keanu", "Keanu"]),
        ("Ask Dr. Okafor about it.", ["Okafor"]),
        ("Sleep well.\n- Robin", ["Robin"]),
        ("Kind words, Ana Lima, LMFT", ["Ana Lima"]),
        ("I will hope. May is a good month. Grace helps.", []),
        ("Call 988 or 116 123, or 1-800-273-8255.", []),
        ("Call (555) 123-4567.", ["(555) 123-4567"]),
        ("The years 2019 - 2021 were hard, 10 to 20 minutes.", []),
        ("See www.example.org/sleep for more", ["www.example.org/sleep"]),
        ("我叫李小明，今年二十岁。", ["李小明"]),
        ("去问问张老师。", ["张"]),
        ("小王说我很好。", ["小王"]),
        ("拨打12356或者120，马上联系老师。", []),
        ("我的手机是13800138000。", ["13800138000"]),
        ("小时候我怕马上考试，小心一点。", []),
    ],
)
def test_private_data_is_found(text: str, found: list[str]) -> None:
    assert [one.text for one in private_data(text)] == found


def test_a_name_that_post_or_reply_gives_away_is_gone_from_both_and_may_not_come_back() -> None:
    post, reply = f"My name is Tomasz. {POST['post']}", f"Tomasz, {POST['reply']} Yours, Okan"
    generator = Scripted(lambda request: f"Tomasz, {GOOD}")
    stage = Dialogue(DialogueConfig(attempts=1), generator, PROMPTS)
    [outcome] = stage.batch([POST | {"post": f"{post} Okan helps me.", "reply": reply}])
    sent = generator.calls[0][0].messages[-1]["content"]
    assert "Tomasz" not in sent
    assert "Okan" not in sent
    assert outcome.rejected[0].reason == "name_left"


@pytest.mark.parametrize(
    ("post", "reply"),
    [
        ("My friend Will hurt me.", "Will you talk to him? Will it help?"),
        ("My daughter Hope is ill.", "Hope this helps."),
        ("Hello Please help me. I feel sad.", "Please call 988."),
        ("Hi Counselor, I am sad.", "As a Counselor I hear you."),
        ("大家好，我叫高兴。", "你不高兴是正常的。"),
    ],
)
def test_a_name_that_is_a_word_stays_one_elsewhere(post: str, reply: str) -> None:
    assert without_private_data(reply, "en", names_in(post)) == reply


def test_taking_private_data_out_leaves_none() -> None:
    text = "Hi Maria, I am Dr. Lopez, call (555) 123-4567 or write to a.b@example.com. Maria, take care."
    assert private_data(without_private_data(text, "en")) == []
    assert private_data(without_private_data("我叫李小明，微信：abc12345，13800138000", "zh")) == []


def test_a_second_attempt_may_pass_and_only_the_failed_are_asked_again() -> None:
    rows = [POST, POST | {"id": "p2"}, POST | {"id": "p3", "post": "Awake again, I am so tired of this."}]

    def rule(request: Request) -> str:
        again = "Awake again" in request.messages[-1]["content"]
        return "Too short." if again and request.sample == 0 else GOOD

    generator = Scripted(rule)
    outcomes = Dialogue(DialogueConfig(attempts=3), generator, PROMPTS).batch(rows)
    assert [len(outcome.kept) for outcome in outcomes] == [1, 1, 1]
    assert [[request.sample for request in call] for call in generator.calls] == [[0, 0, 0], [1]]


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        ("ADVICE: yes\nADDED: no\nFEELING: yes", ""),
        ("<think>ADVICE: no?</think>**ADVICE**: Yes\n**ADDED**: No\n**FEELING**: Yes", ""),
        ("ADVICE: no\nADDED: no\nFEELING: yes", "judge_lost_advice"),
        ("ADVICE: yes\nADDED: yes\nFEELING: yes", "judge_added"),
        ("ADVICE: yes\nADDED: no\nFEELING: no", "judge_no_feeling"),
        ("ADVICE: yes or no\nADDED: yes or no\nFEELING: yes or no", "judge_unreadable"),
        ("ADVICE: yes\nADVICE: no\nADDED: no\nFEELING: yes", "judge_unreadable"),
        ("It looks fine to me.", "judge_unreadable"),
        ("", "judge_unreadable"),
    ],
)
def test_a_judge_decides_after_the_rules_and_one_that_cannot_be_read_rejects(verdict: str, code: str) -> None:
    fault = verdict_fault(verdict)
    assert (fault.code if fault else "") == code
    judge = Scripted(lambda request: verdict)
    assert reason(GOOD, judge=judge) == code
    assert GOOD in judge.calls[0][0].messages[-1]["content"]
    unread = Scripted(lambda request: verdict)
    assert reason("Good night.", judge=unread) == "too_short"
    assert unread.calls == []


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("Sure! Here is the rewritten reply:\n\nIt sounds hard.", "It sounds hard."),
        ('"It sounds hard."', "It sounds hard."),
        ("```\nIt sounds hard.\n```", "It sounds hard."),
        ("<think>How?</think>\nIt sounds hard.", "It sounds hard."),
        ("以下是改写后的回复：\n听起来很难。", "听起来很难。"),
        ("It sounds hard: you wait.", "It sounds hard: you wait."),
    ],
)
def test_what_models_put_around_a_reply_goes(reply: str, text: str) -> None:
    assert clean_rewrite(reply) == text


def test_understanding_needs_a_feeling_or_something_of_the_post() -> None:
    post = "My dog died and the flat is quiet."
    assert understanding("I understand. I'm sorry. That must be it.", post) == []
    assert len(understanding("I hear how quiet the flat is now. It sounds lonely. Go for a walk.", post)) == 2
    assert understanding("我明白。", "狗死了") == []
    assert understanding("我能理解你的难过。", "狗死了") == ["我能理解你的难过。"]


def test_the_stage_runs_over_a_file_with_the_same_bytes_at_any_batch_size(tmp_path: Path) -> None:
    written = []
    for size in (1, 7):
        stage = Dialogue(DialogueConfig(), Scripted(lambda request: GOOD), PROMPTS)
        source = tmp_path / "posts.jsonl"
        source.write_text("".join(json.dumps(POST | {"id": f"p{n}"}) + "\n" for n in range(9)), encoding="utf-8")
        counts = run_stage(stage, source, tmp_path / str(size), size)
        assert (counts.read, counts.kept) == (9, 9)
        written.append((tmp_path / str(size) / "dialogue.jsonl").read_bytes())
    assert written[0] == written[1]
    assert len(read_conversations(tmp_path / "7" / "dialogue.jsonl")) == 9


@pytest.mark.parametrize("wrong", [{"post": " "}, {"reply": None}, {"language": "fr"}])
def test_a_row_that_is_no_post_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"post 'p1': {next(iter(wrong))} is"):
        rewrite(GOOD, POST | wrong)


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"min_length": 0}, {"max_ratio": 0.1}, {"advice_share": 1.5}, {"temperature": -1.0}]
)
def test_a_wrong_config_names_the_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"dialogue.*{next(iter(wrong))}"):
        DialogueConfig(**wrong)


def test_the_authored_posts_are_what_the_pipeline_expects() -> None:
    by_language = {
        language: [row for row in POSTS.values() if row["language"] == language] for language in ("en", "zh")
    }
    assert len(by_language["en"]) >= 45
    assert len(by_language["zh"]) >= 15
    lines = sum(len((RECIPES / "data" / f"posts_{one}.jsonl").read_text("utf-8").splitlines()) for one in by_language)
    assert len(POSTS) == lines  # ids are unique
    assert len({row["topic"] for row in POSTS.values()}) >= 25
    assert len({row["post"] for row in POSTS.values()} | {row["reply"] for row in POSTS.values()}) == 2 * lines
    for row in POSTS.values():
        assert set(row) == {"id", "topic", "post", "reply", "language", "source"}
        low, high = (60, 140) if row["language"] == "en" else (100, 230)
        for key in ("post", "reply"):
            assert low <= length(row[key]) <= high, (row["id"], key, length(row[key]))
            assert private_data(row[key]) == [], row["id"]
        assert plays_down(row["reply"]) is None, row["id"]
        assert len(understanding(row["reply"], row["post"])) <= 1, row["id"]  # so that a rewrite has something to add


def test_of_the_authored_posts_with_risk_some_replies_name_help_and_some_do_not() -> None:
    names = {row["id"]: reply_fault(row["reply"]) is None for row in POSTS.values() if row["topic"] in RISK_TOPICS}
    assert sum(names.values()) == 5
    assert len(names) == 9


RISK_TOPICS = ("suicide", "self-harm", "abuse")


def test_content_words_are_compared_by_stem_and_by_pairs_of_characters() -> None:
    assert content_words("Sleeping and planning, diaries") == content_words("sleep, plans: a diary")
    assert content_words("按时吃饭") == ["按时", "时吃", "吃饭"]
    assert length("Don't go, 你好 ok") == 5


@pytest.mark.parametrize(
    ("added", "code"),
    [
        ("You are depressed.", "diagnosis_added"),
        ("You show symptoms of ADD.", "diagnosis_added"),
        ("你患上了神经衰弱。", "diagnosis_added"),
        ("服用佐匹克隆。", "medicine_added"),
        ("You'll be over this in a week.", "promise_added"),
        ("This is certain to help.", "promise_added"),
        ("三个月内必好。", "promise_added"),
    ],
)
def test_more_that_a_rewrite_must_not_add(added: str, code: str) -> None:
    assert {found for found, _ in added_claims("I am sad.", "Write it down.", f"Write it down. {added}")} == {code}


@pytest.mark.parametrize("said", ["You could add a walk. Be sure to rest.", "务必好好休息，不必好奇。"])
def test_words_that_only_look_like_additions_are_none(said: str) -> None:
    assert added_claims("I am sad.", "Write it down.", said) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("加我微信abc12345", "加我[联系方式]"),
        ("北京市朝阳区幸福路12号", "[联系方式]"),
        ("我老公张伟打我", "我老公某某打我"),
        ("我叫欧阳明", "我叫某某"),
        ("我女儿高兴，我老公从不说话", "我女儿高兴，我老公从不说话"),
        ("这条路走了5年，微信聊天很久", "这条路走了5年，微信聊天很久"),
    ],
)
def test_chinese_names_and_contacts_go(text: str, expected: str) -> None:
    assert without_private_data(text, "zh") == expected


@pytest.mark.parametrize("piece", ["北京市朝阳区的微信", "a-a-a-a-"])
def test_names_and_contacts_are_looked_for_in_linear_time(piece: str) -> None:
    assert private_data(piece * 10_000) == []  # minutes when it was quadratic
    assert growth(lambda n: private_data(piece * n), 1_000, 8) < 24  # quadratic is 64


@pytest.mark.parametrize(
    "rewrite",
    [
        "It sounds hard. There is no use in going to bed at ten every day.",
        "It sounds hard. It would be wrong to go to bed at ten every day.",
    ],
)
def test_advice_that_is_turned_round_is_lost(rewrite: str) -> None:
    assert lost_advice("Go to bed at ten every day.", rewrite, 0.5)


def test_a_rewrite_that_was_cut_is_asked_for_again_and_never_kept() -> None:
    class Cut(Scripted):
        def generate(self, requests: Sequence[Request]) -> list[Reply]:
            return [replace(reply, cut=requests[0].sample < 1) for reply in super().generate(requests)]

    for attempts, kept in ((1, 0), (2, 1)):
        stage = Dialogue(DialogueConfig(attempts=attempts), Cut(lambda request: GOOD), PROMPTS)
        [outcome] = stage.batch([POST])
        assert len(outcome.kept) == kept
        assert [one.reason for one in outcome.rejected] == ["cut_off"] * (1 - kept)


@pytest.mark.parametrize(
    "line",
    ["the National Domestic Violence Hotline at 1-800-799-7233", "the SAMHSA helpline, 1-800-662-4357",
     "RAINN at 1-800-656-4673", "the Texas Crisis Hotline at 800-989-6884", "心理援助热线：010-82951332",
     "生命热线 400-821-1215", "Childhelp, 1-800-422-4453"],
)  # fmt: skip
def test_the_number_of_a_help_line_stays_in_cleaning_and_in_dialogues(line: str) -> None:
    text = f"You could call {line}, today."
    assert clean_text(text, "en") == text or "：" in text
    assert re.sub(r"\D", "", line) in re.sub(r"\D", "", clean_text(text, "en"))
    assert not [one for one in private_data(text) if one.kind == "contact"]


@pytest.mark.parametrize(
    "text",
    ["You could call me at 212-555-0147 today.", "My cell is +44 20 7946 0147.", "求助者电话：13812340147",
     "I called the crisis hotline but nobody answered, so text me at 415-555-0147.", "自杀者家属的电话是13812340147",
     "I left the helpline my number, 415-555-0147", "危机干预对象的联系电话13812340147",
     "心理援助热线我打了，我的手机13812340147", "Call the helpline at 415-555-0147."],
)  # fmt: skip
def test_a_private_number_goes_though_a_help_line_is_spoken_of(text: str) -> None:
    assert "0147" not in clean_text(text)
    assert [one for one in private_data(text) if one.kind == "contact"]
