"""What clean removes, what it must leave, and that a second cleaning finds nothing to do."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from growth import growth
from hypothesis import given, settings
from hypothesis import strategies as st

from psychecore.curate.clean import Clean, CleanConfig, Unsettled, clean_text
from psychecore.curate.noise import without_advertisements
from psychecore.curate.typography import language_of, length_of

REPO = Path(__file__).resolve().parents[2]

NASTY = [
    *"，。：；！？（）()[]<>*_~`#-=|\\/&@:;!?.,^'\"“”… \n\t\r01239aAbTQo中心理的",
    *["...", "……", "。。", "!!", "：)", ":)", ":(", ":-)", ";-(", ":D", "^_^", "T_T", "-_-", ">_<", "(╯°□°）╯︵ ┻━┻"],
    *[
        "¯\\_(ツ)_/¯",
        "(´･ω･`)",
        "😭",
        "👨‍👩‍👧",
        "1️⃣",
        "[微笑]",
        ":smile:",
        "\u200b",
        "\ufeff",
        "\u202e",
        "\ud800",
        "\x00",
        "\xa0",
    ],
    *[
        "<b>",
        "</b>",
        "<p>",
        "<br/>",
        "<!--",
        "-->",
        "<script>",
        "</script>",
        "&lt;",
        "&gt;",
        "&amp;",
        "&#58;",
        "<sup>2</sup>",
    ],
    *[
        "**",
        "__",
        "~~",
        "# ",
        "> ",
        "- ",
        "* ",
        "```",
        "---",
        "|---|",
        "[a](http://b.cn)",
        "![x](y)",
        "](",
        "<b href='",
    ],
    *[
        "http://",
        "https://a.cn/b?c=d",
        "www.",
        "a.com",
        ".com",
        "me@x.org",
        "@张三 ",
        "@foo_bar",
        "13812345678",
        "400-123-4567",
    ],
    *[
        "微信",
        "微信:abc_123",
        "QQ 12345678",
        "wx",
        "加我",
        "关注我们的公众号",
        "扫描二维码",
        "click here",
        "20% off",
        "仅需9元",
    ],
    *[
        "DSM-5",
        "(2分)",
        "（1）",
        "8:30",
        "A:B",
        "p<0.05",
        "p < .01",
        "x²",
        "CO₂",
        "½",
        "①",
        "Ⅱ",
        "ﬁ",
        "⼈",
        "⻓",
        "℃",
        "㎡",
        "Ａ",
        "１",
    ],
    *[
        "我今天很难过，什么都不想做。",
        "This is a sentence that is long enough to be a repetition of itself when it stands twice here. ",
    ],
    *[
        "求助者",
        "the ",
        "and ",
        "feel ",
        "Dr. ",
        "e.g. ",
        "e\u0301",
        "が",
        "привет ",
        "ﾟ",
        "︵",
        "´",
        "\u3000",
        "\u2028",
    ],
]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.sampled_from([None, "zh", "en"]))
def test_a_second_cleaning_changes_nothing_on_any_unicode(text: str, language: str | None) -> None:
    once = clean_text(text, language)
    assert clean_text(once, language) == once


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(NASTY), max_size=40).map("".join), st.sampled_from([None, "zh", "en"]))
def test_a_second_cleaning_changes_nothing_on_nasty_pieces(text: str, language: str | None) -> None:
    try:
        once = clean_text(text, language)
    except Unsettled:
        return  # the row is rejected; test_nested_markup_is_rejected has one on purpose
    assert clean_text(once, language) == once


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(NASTY), min_size=1, max_size=30).map("".join), st.sampled_from([None, "zh", "en"]))
def test_a_row_that_is_kept_is_kept_unchanged_the_second_time(text: str, language: str | None) -> None:
    row = {"id": "1", "text": text} | ({"language": language} if language else {})
    for kept in Clean(CleanConfig(least=1)).batch([row])[0].kept:
        assert Clean(CleanConfig(least=1)).batch([kept])[0].kept == [kept]


def test_nested_markup_is_rejected() -> None:
    text = "<b" * 60 + "我很好" + ">" * 60
    deep = "关于焦虑的一段话。" + "&amp;" + "amp;" * 40 + "lt;"
    with pytest.raises(Unsettled, match="8 passes"):
        clean_text(deep)
    outcome = Clean().batch([{"id": "1", "text": deep}])[0]
    assert [r.reason for r in outcome.rejected] == ["never_settles"]
    assert clean_text(clean_text(text)) == clean_text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # characters
        ("你\u200b好\ufeff，\x00世界", "你好，世界"),
        ("one\r\ntwo\u2028three\xa0four", "one\ntwo\nthree four"),
        ("⼼理咨询师⻓期⻅到⺟亲和⼾主", "心理咨询师长期见到母亲和户主"),
        ("ＤＳＭ－５ 与 ﬁrst", "DSM-5 与 first"),
        ("双相Ⅱ型，２０㎎", "双相II型，20mg"),
        ("cafe\u0301 is a word", "café is a word"),
        # markup
        ("<p>Grief is <b>normal</b>.</p><p>It passes.</p>", "Grief is normal.\n\nIt passes."),
        ("<script>alert('x')</script>情绪是信号<!-- 注释 -->", "情绪是信号"),
        ("# 焦虑\n**焦虑**是`一种`情绪", "焦虑\n焦虑是一种情绪"),
        ("x<sup>2</sup> + H<sub>2</sub>O", "x² + H₂O"),
        ("R&amp;D &lt;3 of them", "R&D <3 of them"),
        ("see [the guide](https://x.org/a) for more", "see the guide for more"),
        ("* first point\n* second point", "- first point\n- second point"),
        # links
        ("详见https://www.abc.com/a?b=1，谢谢", "详见，谢谢"),
        ("Read www.example.org/page. It helps.", "Read. It helps."),
        ("网址：psy.cn", ""),
        # contact data
        ("请联系me.you@mail.example.com咨询", "请联系咨询"),
        ("电话：13812345678，很方便", "很方便"),
        ("座机 010-12345678 或 400-123-4567 均可", "座机 或 均可"),
        ("write to jo@x.org or +1 415-555-0132 today", "write to or today"),
        ("加微信：psy_help99 聊聊", "聊聊"),
        ("我的QQ 12345678 在线", "我的 在线"),
        ("@小王老师 你好，我很难过", "你好，我很难过"),
        ("thanks @dr_jones for this", "thanks for this"),
        ("身份证11010519491231002X丢了", "身份证丢了"),
        # advertisements
        ("情绪会过去。欢迎关注我们的公众号！试着呼吸。", "情绪会过去。试着呼吸。"),
        ("扫描下方二维码领取资料。\n睡眠很重要。", "睡眠很重要。"),
        ("Sleep matters. Click here to book your free call! Rest well.", "Sleep matters. Rest well."),
        ("Get 20% off with code CALM. Breathe slowly.", "Breathe slowly."),
        ("转载请注明出处。睡眠很重要。", "睡眠很重要。"),
        ("点击这里领取资料！睡眠很重要。", "睡眠很重要。"),
        ("限时优惠，仅此一天！睡眠很重要。", "睡眠很重要。"),
        ("睡眠很重要。广告合作请联系小编。", "睡眠很重要。"),
        # emoji and emoticons
        ("我很难过😭😭，真的[大哭]", "我很难过，真的"),
        ("good 👨‍👩‍👧 family 🇨🇳 :smile: day", "good family day"),
        ("I feel fine :-) now ;) really :(", "I feel fine now really"),
        ("好累啊T_T 不想动-_-", "好累啊 不想动"),
        ("随便吧(╯°□°）╯︵ ┻━┻ 算了", "随便吧 算了"),
        ("不知道 ¯\\_(ツ)_/¯ 就这样^_^", "不知道 就这样"),
        # repetition
        ("为什么！！！！怎么办？？？", "为什么！怎么办？"),
        ("Why????? I tried......", "Why? I tried..."),
        ("我不知道。。。。。。算了", "我不知道……算了"),
        ("我不知道该怎么办。我不知道该怎么办。我很怕。", "我不知道该怎么办。我很怕。"),
        ("I can not sleep at night. I can not sleep at night. Help.", "I can not sleep at night. Help."),
        (
            "我从小就不喜欢和别人说话，总觉得别人在看我。\n后来好些。\n我从小就不喜欢和别人说话，总觉得别人在看我。",
            "我从小就不喜欢和别人说话，总觉得别人在看我。\n后来好些。",
        ),
        # punctuation
        ("焦虑,抑郁;恐惧:都是情绪!对吗?", "焦虑，抑郁；恐惧：都是情绪！对吗？"),
        ("他睡不好.吃不下(两周)。", "他睡不好。吃不下（两周）。"),
        ("选项（A)和(B）", "选项（A）和（B）"),
        ("Anxiety，fear（and anger）are emotions。", "Anxiety, fear (and anger) are emotions."),
        # spaces
        ("a  b \n\n\n\n c d", "a b\n\nc d"),
    ],
)
def test_a_rule_does_what_its_row_of_the_table_says(text: str, expected: str) -> None:
    assert clean_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "根据DSM-5和ICD-11，该求助者符合诊断。",
        "初步诊断：严重心理问题。（2分）",
        "氟西汀20mg×7片，每日1次，晨服；阿普唑仑0.4mg qn。",
        "MMPI-2的T分≥70，TAT与HTP测验；SCL-90总分>160。",
        "他说：“我不想活了。”我问：‘什么时候开始的？’",
        "早上8:30起床，比例为1:1，A:B两组。",
        "结果为t(28)=2.10，p<0.05，r=-.35，F(2,57)=3.2，d=0.8。",
        "（1）病程；（2）程度。①情绪 ②行为",
        "躯体神经支配的器官包括（）。",
        "遗忘曲线由____提出，公式为 R=e^(-t/S)。",
        "心理学的研究对象是（____）。",
        "The process is called (____).",
        "WhatsApp is popular among adolescents.",
        "WeChat is widely used in China.",
        "I felt alone.Online friends helped me.",
        "爱岗敬业 诚实守信 办事公道",
        "答案:D、选项:P".replace(":", "："),
        "体温37°C（正常），血压120/80mmHg，占50%。",
        "紧急时请拨打12356，或希望24热线400-161-9995。",
        "广告心理学研究广告怎样影响消费者的态度。",
        "她……没有说话——只是哭。",
        "At 8:30 the ratio A:B was 3:1 (see table 2).",
        "Sertraline 50 mg b.i.d., fluoxetine 0.5 mg/kg; BDI-II > 29.",
        'She said "I can\'t sleep", and left.',
        "If x < 3 and y > 2, then x² + y² < 13 (p < .001).",
        "Answer: D. Options: A, B, C.",
        "In the U.S. call 988 or 1-800-273-8255 at any time.",
        "The formula is B = f(P, E); CO₂ rises by ½.",
        "- first\n- second\n\n1. third",
        "原价100元、现价60元的标签利用了锚定效应。",
        "The study, sponsored by a drug firm, is a book free of jargon; a label of 20% off sets an anchor.",
        "Consumers subscribe to the view that adverts do not work on them.",
        "点击这里会显示结果，被试需要立即按键。",
        "The participants were asked to click here when they saw a light.",
        "限时优惠利用了稀缺原理。",
        "我在广告公司上班，广告投放压力很大。",
        "免费领取的礼物让人产生互惠。",
    ],
)
def test_clinical_and_exam_content_stays_as_it_is(text: str) -> None:
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(如下:)再说", "（如下：）再说"),
        ("答案 :D", "答案 :D"),
        ("Answer :D", "Answer :D"),
        ("(he left :) and so on", "(he left :) and so on"),
        ("列表如下:(1)情绪", "列表如下：(1)情绪"),
    ],
)
def test_a_bracket_or_a_letter_after_a_colon_is_no_face_where_it_belongs_to_the_text(text: str, expected: str) -> None:
    assert clean_text(text) == expected


def test_blank_lines_are_passed_in_linear_time() -> None:
    def work(length: int) -> None:
        text = "a" + "\n" * length + "b"
        assert without_advertisements(text) == text

    work(50_000)  # 30 s when it was quadratic
    assert growth(work, 5_000, 8) < 24  # quadratic is 64


def row(**values: Any) -> dict[str, Any]:
    return {"id": "1", "area": "general", "source": "x", "language": "zh"} | values


TEXT = "遗忘并不只是时间冲淡了痕迹，材料之间的干扰也是原因。"


@pytest.mark.parametrize(
    ("given_row", "reason", "detail"),
    [
        (row(text="😀😀"), "empty", "nothing is left of text"),
        (row(), "empty", "none of these fields"),
        (row(text="太短了。"), "too_short", "3 characters or words, the least is 10"),
        (row(text="".join(f"第{i}句话说的是别的事情。" for i in range(900))), "too_long", "the most is 8000"),
        (row(text="This text is in English, but the row denies it."), "wrong_language", "the row says 'zh'"),
        (row(text="Забывание связано не только со временем."), "wrong_language", "other"),
        (row(text="人は時間が経つと、覚えたことをだんだんと忘れていきます。"), "wrong_language", "other"),
        (row(text="L'oubli ne vient pas seulement du temps qui passe, il vient aussi de ce que les souvenirs se gênent "
                  "les uns les autres quand ils se ressemblent trop.", language="en"), "wrong_language", "other"),
    ],
)  # fmt: skip
def test_a_row_outside_the_bounds_is_rejected_with_its_reason(
    given_row: dict[str, Any], reason: str, detail: str
) -> None:
    outcome = Clean().batch([given_row])[0]
    assert outcome.kept == []
    assert [r.reason for r in outcome.rejected] == [reason]
    assert detail in outcome.rejected[0].detail
    assert outcome.rejected[0].row == given_row


def test_every_kind_of_row_has_its_texts_cleaned_and_its_other_keys_kept() -> None:
    passage = row(text=TEXT + "😀", title="关注我们!!!")
    post = row(post="我最近总是睡不着,怎么办??", reply="先试着每天同一时间起床😀。", topic="sleep!!")
    question = row(
        question="下列哪一项是<b>负强化</b>?",
        options={"A": "撤去厌恶刺激😀", "B": "给予奖励"},
        answer="A",
        kind="single",
    )
    dialogue = row(
        messages=[
            {"role": "user", "content": "我已经很久睡不着了!!!"},
            {"role": "assistant", "content": "听起来很累😀。"},
        ]
    )
    kept = [outcome.kept[0] for outcome in Clean().batch([passage, post, question, dialogue])]
    assert kept[0] == passage | {"text": TEXT}
    assert kept[1] == post | {"post": "我最近总是睡不着，怎么办？", "reply": "先试着每天同一时间起床。"}
    assert kept[2] == question | {"question": "下列哪一项是负强化？", "options": {"A": "撤去厌恶刺激", "B": "给予奖励"}}
    assert [m["content"] for m in kept[3]["messages"]] == ["我已经很久睡不着了！", "听起来很累。"]


def test_fields_can_be_named() -> None:
    outcome = Clean(CleanConfig(fields=("title", "text"))).batch([row(text=TEXT, title="记忆!!!")])[0]
    assert outcome.kept[0]["title"] == "记忆！"


def test_an_option_that_cleaning_empties_rejects_the_question() -> None:
    question = row(question="哪个表情表示高兴的情绪？", options={"A": "😀", "B": "愤怒"})
    assert [r.reason for r in Clean().batch([question])[0].rejected] == ["empty"]


@pytest.mark.parametrize("change", [{"least": 0}, {"least": 9, "most": 8}, {"languages": ("fr",)}, {"languages": ()}])
def test_a_wrong_config_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        CleanConfig(**change)


@pytest.mark.parametrize(
    "piece",
    [
        "<",
        "<!--",
        "<script>",
        "<a href='",
        "[a](",
        "**a",
        "`a",
        "a@",
        "a.",
        "1-",
        "微信",
        ":(",
        "(°",
        "。",
        "a b. ",
        "&amp",
        "!?",
        "(",
        "\n> ",
    ],
)
def test_the_time_grows_with_the_length_and_no_faster(piece: str) -> None:
    def work(count: int) -> None:
        with contextlib.suppress(Unsettled):
            clean_text(piece * count, "zh")

    assert growth(work, 1000, 16, turns=2) < 64  # quadratic is 256


def test_the_demo_corpus_is_left_almost_alone() -> None:
    for name in ("passages_zh.jsonl", "passages_en.jsonl"):
        for line in (REPO / "recipes" / "data" / name).read_text(encoding="utf-8").splitlines():
            passage = json.loads(line)
            assert clean_text(passage["text"]) == passage["text"]


def test_pceb_loses_its_compatibility_glyphs_and_no_word(shared_folder: Path) -> None:
    path = shared_folder / "data" / "pceb" / "theory" / "single" / "third" / "14-16 理论单选.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    for item in rows:
        cleaned = clean_text(item["question"], "zh")
        assert not any("\u2e80" <= character <= "\u2fdf" for character in cleaned)
        assert length_of(cleaned) == length_of(item["question"].translate(dict.fromkeys(range(11904, 12256), "人")))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("DSM-5 的诊断标准", "zh"),
        ("The DSM-5 criteria", "en"),
        ("弗洛伊德 (Sigmund Freud, 1856-1939) 创立了精神分析。", "zh"),
        ("В начале было слово", "other"),
        ("12 + 30 = 42", None),
    ],
)
def test_the_language_is_found(text: str, language: str | None) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    "stem",
    [
        "A store announces a limited-time offer so that people hurry. Which principle of persuasion is this?",
        "A gym gives every visitor a free trial. Which technique does it use, so that people say yes to more later?",
        "某商家打出“限时优惠，仅此一天”的广告，很多人立即购买。这利用了什么原理？",
        "The correlation was r = +0.4512 in the sample, and it rose by +10000 points. Is it a strong one?",
        "The tendency to notice what fits a belief is called ____.",
    ],
)
def test_a_question_keeps_its_case_its_numbers_and_its_blank(stem: str) -> None:
    row = {"id": "q", "question": stem, "options": {"A": "Scarcity", "B": "Reciprocity"}}
    if "原理" in stem:
        row["options"] = {"A": "稀缺性原理", "B": "互惠性原理"}
    [outcome] = Clean(CleanConfig(least=1)).batch([row])
    assert outcome.kept[0]["question"] == stem
    [outcome] = Clean(CleanConfig(least=1)).batch([row | {"question": stem.replace("____", "----")}])
    assert outcome.kept[0]["question"] == stem
    advertised = "I feel low. Limited-time offer! Click here. I cannot sleep."
    assert clean_text(advertised, "en") == "I feel low. I cannot sleep."


def test_lists_of_terms_as_options_leave_a_question_english() -> None:
    lists = ["Openness, conscientiousness, extraversion, agreeableness, neuroticism",
             "Oral, anal, phallic, latency, genital", "Sanguine, choleric, melancholic, phlegmatic, mixed",
             "Dominance, influence, steadiness, compliance, patience"]  # fmt: skip
    row = {
        "id": "q",
        "question": "Which traits make up the Big Five?",
        "options": dict(zip("ABCD", lists, strict=True)),
    }
    [outcome] = Clean(CleanConfig(least=1)).batch([row | {"language": "en"}])
    assert outcome.kept[0]["language"] == "en"
    german = {
        "question": "Welche Merkmale gehören zum Modell der großen Fünf?",
        "options": dict(zip("ABCD", (words.replace("ness", "heit") for words in lists), strict=True)),
    }
    [outcome] = Clean(CleanConfig(least=1)).batch([row | german | {"language": "en"}])
    assert [one.reason for one in outcome.rejected] == ["wrong_language"]
