"""Marking of acute risk, and what a reply to a post with risk must hold; all sentences are written for this test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from growth import growth

from psychecore.curate.risk import find_risk
from psychecore.curate.risk_reply import names_help, plays_down, reply_fault

SUICIDE = [
    "I want to die.",
    "Some nights I just want to kill myself.",
    "Everyone would be better off without me.",
    "I keep thinking about ending it all.",
    "I no longer want to live.",
    "I don't want to be here any more.",
    "What is the point of living?",
    "I wish I was dead.",
    "I wish I wouldn't wake up tomorrow.",
    "I have been having suicidal thoughts since May.",
    "I wrote letters and thought about jumping off the bridge.",
    "Last year I took an overdose, I overdosed on my mother's pills.",
    "I can't stop thinking about suicide.",
    "Nobody knows that I am suicidal.",
    "I have never told anyone that I want to die.",
    "I never thought about suicide before, but now I do every day.",
    "My friend says she wants to kill herself. What can I do?",
    "My son talks about suicide at night.",
    "I don't want to kill myself.",  # a wish that has to be denied is a sign
    "I DON’T WANT TO LIVE ANYMORE",
    "我想自杀。",
    "活着真没意思，每天都这么累。",
    "我真的不想活了。",
    "昨晚站在阳台上想跳下去。",
    "有时候觉得死了就轻松了。",
    "我已经写好了遗书。",
    "我妹妹说她想死，我该怎么办？",
    "从来没有想过自杀，但是最近总想到死了算了。",
    "I almost committed suicide last year.",
    "I am trying not to kill myself.",
    "i dont want to live anymore",
    "I really wanna die",
    "I want to end it.",
    "I took a whole bottle of pills last night.",
    "I almost took my own life.",
    "I just want to not be alive anymore.",
    "I see no reason to stay alive.",
    "I hate my life and want it to be over.",
    "我不想继续活着",
    "我吃了一整瓶安眠药",
    "我买了炭，准备烧炭",
    "我想自殺",
    "kms",
    "i'm gonna kms tonight",
    "I've swallowed 40 paracetamol.",
    "I took twenty of my sleeping pills.",
    "I have a plan to die tonight.",
    "I want to disappear forever.",
    "I just want it all to end.",
    "想跳樓",
    "想結束生命",
    "我覺得活著沒意義，不如死了算了。",
    "已經寫好了遺書",
    "自\u200b杀",
    "I want to k\u200bill mys\ufeffelf.",
    "我撑不下去了",
    "真的快撐不下去了",
]
SELF_HARM = [
    "I cut myself when it gets too much.",
    "She has cuts on her arms and won't talk to me.",
    "I started cutting again last week.",
    "I self-harm and can't stop.",
    "When I fail a test I hit myself.",
    "I burned my arm with a lighter on purpose.",
    "I cut myself, but I don't want to die.",
    "I bang my head against the wall.",
    "难受的时候我会用刀片划自己。",
    "孩子手臂上有很多划痕，她说是自残。",
    "我控制不住会用头撞墙。",
    "我不想死，只是会割自己的手臂。",
    "I cut my left arm last night.",
    "I'm trying not to cut myself.",
    "I relapsed and cut again.",
    "I punch the wall until my knuckles bleed.",
    "我用刀割手",
]
ABUSE = [
    "My husband hits me when he drinks.",
    "He slapped me in front of the children.",
    "My father beat me with a belt as a child.",
    "I was raped two years ago.",
    "My uncle touched me in places he shouldn't have.",
    "He grabbed me by the throat.",
    "I am afraid of my husband.",
    "My stepfather gets violent when he is drunk.",
    "She threatens to hurt me if I leave.",
    "I live in an abusive relationship.",
    "他喝了酒就打我。",
    "小时候被亲戚猥亵过。",
    "爸爸经常打骂我们。",
    "丈夫家暴，我不敢离婚。",
    "他掐我的脖子。",
    "My husband beat me up last night.",
    "My dad hit me hard in the face.",
    "My dad hits my little brother.",
    "My stepdad touches me at night.",
    "My boyfriend pushed me down the stairs.",
    "My husband threw a plate at me.",
    "继父摸了我",
    "他强迫我跟他发生关系",
    "妈妈把我打得浑身是伤",
    "爸爸經常打罵我們。",
    "I am going to kill my wife.",
    "I really want to stab him.",
    "I keep having thoughts of killing my baby.",
    "我要杀了他",
    "我想殺了我老婆",
]
NONE = [
    "I am sad since my dog died.",
    "I have never thought about suicide.",
    "I am not suicidal and I sleep well.",
    "I have no suicidal thoughts.",
    "My uncle committed suicide when I was ten, and I miss him.",
    "We lost our neighbour to suicide.",
    "He has never been physically abusive.",
    "I was never abused.",
    "It hit me that I am forty.",
    "The news hit me hard.",
    "Grief hits me in waves.",
    "She beat me at chess.",
    "He kicked me out of the band.",
    "I cut my hair and cut down on coffee.",
    "I cut my hours at work.",
    "My feet are killing me, and I am dying to see the film.",
    "My boss is hard on us.",
    "I am tired of this job.",
    "My father abuses alcohol.",
    "I am afraid of my exam.",
    "I don't want to drown myself in work.",
    "想死你了，什么时候回来？",
    "他给我打电话说工作的事。",
    "我从来没有想过自杀。",
    "今天累死了，也笑死我了。",
    "他一直对我冷暴力。",
    "我打算自己动手做一个书架。",
    "同学自杀了，我很难过。",
    "他打了我的电话，我没接到。",
    "最近工作压力大，睡不好。",
    "My father has dementia, and sometimes I just want this to be over.",
    "I want to end it with my boyfriend.",
    "他把我打发走了。",
    "This homework is killing me.",
    "I play games to kill time.",
    "He killed the mood.",
    "My mum is going to kill me for the grade.",
    "I would never want to kill somebody.",
    "She is going to kill it on stage.",
    "I'm going to shoot him a message.",
    "My pump uses DPMS.",
    "I ran 3 kms today.",
    "It is a few kms away.",
    "We ran 3kms.",
    "I took 20 mg pills for my blood pressure.",
    "I took two tablets of paracetamol.",
    "I want to disappear into my room and read.",
    "公司快撑不下去了。",
    "他著書立說。",
    "我要杀了这只蚊子。",
]


@pytest.mark.parametrize(
    ("post", "kind"),
    [
        (post, kind)
        for kind, posts in (("suicide", SUICIDE), ("self-harm", SELF_HARM), ("abuse", ABUSE))
        for post in posts
    ]
    + [(post, None) for post in NONE],
)
def test_posts_are_marked(post: str, kind: str | None) -> None:
    for text in (post, f"It has been a long year. {post} Thank you for reading.", f"说来话长。\n{post}\n谢谢。"):
        risk = find_risk(text)
        assert (risk.kind if risk else None) == kind, risk


def test_the_gravest_risk_names_the_post_and_the_evidence_is_its_words() -> None:
    risk = find_risk("My husband hits me. I cut my arms. Now I want to die.")
    assert risk is not None
    assert risk == ("suicide", "want to die")


def test_the_evidence_stands_in_the_post_as_it_was_written() -> None:
    risk = find_risk("我想結束生命。")
    assert risk is not None
    assert risk.evidence == "結束生命"


def test_a_denial_in_one_sentence_does_not_hide_the_next() -> None:
    risk = find_risk("I have never been suicidal. But I think everyone would be better off without me.")
    assert risk is not None
    assert risk.evidence == "better off without me"


@pytest.mark.parametrize(
    "reply",
    [
        "Please call a crisis line.",
        "If it gets worse, dial 988 at once.",
        "Go to the nearest emergency department.",
        "A domestic violence service can plan this with you.",
        "Tell your sister today what happened.",
        "Please talk to your doctor now.",
        "Stay with someone you trust tonight and ask them not to leave.",
        "请现在就拨打12356。",
        "今天就告诉辅导员。",
        "马上联系你信任的人，请他陪着你。",
        "他再动手就报警。",
        "Don't hesitate to call 911.",
        "The helpline never closes.",
        "马上拨打120。",
    ],
)
def test_replies_that_name_help(reply: str) -> None:
    assert names_help(f"That sounds hard. {reply} I am glad that you wrote.")
    assert reply_fault(reply) is None


@pytest.mark.parametrize(
    "reply",
    [
        "Go for a walk and write down three good things.",
        "You could see a therapist some day.",  # names nobody to turn to now
        "Spend time with friends.",
        "You don't need to call a hotline.",
        "There is no need to call the police.",
        "Now try to sleep.",
        "不用打热线，多运动。",
        "多和朋友聊聊天，早点睡觉。",
        "More than 10,000 people feel like this.",
        "112 people asked me this.",
        "休息120分钟就好。",
        "每天走120步。",
        "Hotlines are useless.",
        "The police won't help you.",
        "Your husband isn't the police.",
        "I would not call the hotline.",
        "警察帮不了你。",
        "Now see the funny side: a friend in need is a friend indeed.",
        "",
    ],
)
def test_replies_that_name_none(reply: str) -> None:
    assert not names_help(reply)
    fault = reply_fault(reply)
    assert fault is not None
    assert fault[0] == "risk_without_help"


@pytest.mark.parametrize(
    "reply",
    [
        "It is just a phase.",
        "Other people have it worse.",
        "Don't be so dramatic.",
        "You are overreacting.",
        "It's not that bad.",
        "Cheer up!",
        "There is nothing to worry about.",
        "He does it only because he loves you.",
        "想开点。",
        "这没什么大不了的。",
        "为了孩子忍忍吧，别小题大做。",
        "你太敏感了。",
    ],
)
def test_playing_down_is_found_and_help_beside_it_does_not_excuse_it(reply: str) -> None:
    assert plays_down(reply)
    fault = reply_fault(f"{reply} Call a crisis line now. 现在就拨打12356。")
    assert fault is not None
    assert fault[0] == "risk_played_down"


@pytest.mark.parametrize(
    ("search", "piece"),
    [
        (find_risk, "I am not ready to talk about my friend who was there when 我打了个电话给他 "),
        (find_risk, "never thought about suicide and " * 2),
        (names_help, "call tell talk doctor " * 5),
        (plays_down, "not really that so such " * 5),
    ],
)
def test_a_long_text_is_searched_in_linear_time(search: Callable[[str], object], piece: str) -> None:
    assert search is not find_risk or find_risk(piece * 4000) is None
    assert growth(lambda n: search(piece * n), 250, 8) < 24  # quadratic is 64
