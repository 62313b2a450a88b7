"""Acute risk in a post: suicide, self-harm, abuse, in Chinese and English. What a reply to it must hold: risk_reply.py.

The rules are word patterns, and they lean to false alarms: a post that is marked in vain only asks more of its reply,
a post that is missed lets a reply without help into training. So a wish that is denied ("I don't want to kill
myself") still counts, a friend's present risk counts as the writer's own, and past abuse counts as abuse. What does
not count: a plain denial ("never thought about suicide", "not suicidal") that no "but" follows, somebody else's death
("my uncle committed suicide"), figures of speech ("想死你了", "it hit me"). Whoever says that they are going to kill
somebody is marked as abuse. No rule understands a hint: a post that names nothing is not marked.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from psychecore.curate.wording import patterns, plain, sentences

RISKS = ("suicide", "self-harm", "abuse")  # in this order: a post that shows several is marked with the first

NEAR = 160  # characters around a match that decide what it means; the bound keeps the time linear


class Risk(NamedTuple):
    """`kind` is one of RISKS, `evidence` the words in the post that show it."""

    kind: str
    evidence: str


def find_risk(post: str) -> Risk | None:
    """The first kind of risk, in the order of RISKS, that the post shows; None where the rules see none.

    >>> find_risk("Since the summer I cut my arms.")
    Risk(kind='self-harm', evidence='cut my arms')
    >>> find_risk("I have never thought about suicide.") is None
    True
    """
    parts = [_APOSTROPHE.sub(r"\1n't", plain(part)) for part in sentences(_UNSEEN.sub("", post))]
    denied_wish = None
    for kind in RISKS:
        for said in parts:
            part = said.translate(_SIMPLIFIED)  # of the same length
            for match in _SIGNS[kind].finditer(part):
                if _is_denied(part, match) or _is_a_loss(part, match):
                    continue
                found = Risk(kind, said[match.start() : match.end()])
                if kind != "suicide" or not _NO_WISH.search(before(part, match)):
                    return found
                denied_wish = denied_wish or found
    return denied_wish  # "I cut myself, but I don't want to die" is self-harm; "I don't want to die" is still a sign


_UNSEEN = re.compile("[\u00ad\u180e\u200b-\u200f\u2060-\u2064\ufeff]")  # zero width: can stand inside a word
_SIMPLIFIED = str.maketrans(  # the characters that the rules use
    "盡書亂亡個義產親褻從們價會傷輕運對製動勁厲發叔隻嗎聽媽強戲掃擾擇機殺來橋樓慾殘毆氣沒無燒煙為爺現電離與"
    "係經結給繼續脅臉著藥裡見說讓試話敗車軌過這連遺鄰針間關隱騷罵頭戀尋腳劃將劑壓夢幹後麼願撐牆覺頓體攢摑絕殞喪"
    "歡負實謀滅綁鎖門懷歲兒孫嬸舊別當學師傳煩擔輩穫遠還遲邊題驗難雖斷陰",
    "尽书乱亡个义产亲亵从们价会伤轻运对制动劲厉发叔只吗听妈强戏扫扰择机杀来桥楼欲残殴气没无烧烟为爷现电离与"
    "系经结给继续胁脸着药里见说让试话败车轨过这连遗邻针间关隐骚骂头恋寻脚划将剂压梦干后么愿撑墙觉顿体攒掴绝殒丧"
    "欢负实谋灭绑锁门怀岁儿孙婶旧别当学师传烦担辈获远还迟边题验难虽断阴",
)
_APOSTROPHE = re.compile(  # people leave it out: "i dont want to live"
    r"\b(do|does|did|ca|wo|is|are|was|would|could|should|have|has)nt\b"
)

_PARTS = {
    "SELF": r"(?:my ?|him|her|them|our|your)sel(?:f|ves)",
    "OWN": r"(?:my|his|her|their)(?: own)?",
    "WHO": r"(?:me|her|him|us|them|my (?:\w+ )?(?:child|children|kids?|son|daughter|baby|mom|mum|mother|brothers?|"
    r"sisters?|siblings?|face))",
    "HAS": r"(?:took|taken|swallow\w*)",
    "MANY": r"(?:[1-9]\d+(?! m?c?g\b| mill?)|ten|twenty|thirty|forty|fifty|sixty|a hundred|dozens of|too many|so many)",
    "DRUG": r"(?:paracetamols?|tylenols?|acetaminophen|aspirins?|ibuprofen|advils?|xanax|opioids|antidepressants|"
    r"painkillers|sedatives|pills|tablets|capsules)",
    "SAYS": r"\b(?:i|he|she)(?:'m|'s|'ve)?(?: (?!not\b|never\b)\w+){0,3}",
    "KILL": r"(?:kill|murder|stab|strangle|poison|shoot(?! \w+ (?:an?|some)\b))",
    "SOMEBODY": r"(?:him|her|someone|somebody|everyone|everybody|people|my (?:\w+ )?(?:wife|husband|girlfriend|"
    r"boyfriend|partner|ex|father|dad|stepfather|mother|mom|mum|parents|family|children|kids?|son|daughter|baby|brother|"
    r"sister|boss|neighbou?rs?|roommate|teacher|classmates?|coworkers?|colleagues?))\b(?! with kindness| time| off)",
    "LIMB": r"(?:(?:\w+ )?(?:wrists?|arms?|forearms?|legs?|thighs?|skin|stomach|body|hands?))",
}
_SIGNS = {
    "suicide": patterns(
        r"""
        \bsuicid\w*\b(?! squad| bomb)
        \bkill(?:ing)? <SELF>\b
        \b(?:end|ends|ended|ending|take|takes|took|taken|taking) <OWN> li(?:fe|ves)\b
        \b(?:want|wanted|going|gonna|ready|plan\w*|tr(?:y|ied|ying)) (?:to )?(?:just )?end (?:it|things)\b(?! with)
        \bending (?:it|things) for good\b|\bbottle of pills\b|\bunalive\b|\bhung my ?self\b|\bfe(?:el|lt) like dying\b
        \b(?:took|taken|take|swallow\w*) (?:\w+ ){0,3}(?:bottle|bunch|handful|lot|pack|all)(?: \w+){0,4} \
        (?:pills|tablets|meds)\b
        \b(?:no|any) (?:reason|point) (?:to|in) stay(?:ing)? alive\b|\bwant(?:ed)? (?:it|(?:it|this) all) to be over\b
        \bto not be alive\b|\bplan(?:s|ned|ning)? (?:to die|on dying)\b|\bwant(?:ed)? (?:it|this) all to (?:end|stop)\b
        \b(?:want|wanted|wanting|wanna|ready|going) (?:to )?(?:just )?(?:disappear|vanish) (?:forever|for good)\b
        (?<!\d )(?<!few )(?<!many )(?<!some )(?<!the )(?<!more )(?<!ten )(?<!dred )(?<!sand )(?<!aws )\bkms\b\
        (?! (?:away|from|per|an hour|a day|long|of|key|server|activat|host))
        \b<HAS> (?:\w+ ){0,2}<MANY> (?:\w+ ){0,3}<DRUG>\b
        \b(?:end|ending) (?:it all|everything|my suffering)\b
        \bwant(?:ed)? (?:my life|everything) to (?:end|be over|stop)\b
        \b(?:hang|shoot|drown|poison|gas)(?:ing)? <SELF>\b(?! in)
        \boverdos\w+
        \b(?:jump|step)(?:ing)? (?:off|from|out of|in front of) (?:a|the|my) (?:bridge|roof|window|building|balcony)
        \b(?:jump|step)(?:ing)? in front of (?:a|the) (?:train|car|bus|truck)
        \bslit(?:ting)? (?:my|his|her) (?:wrists?|throat)
        \b(?:want|wants|wanted|wanting|wish|ready|prefer|like|going) to (?:just |be )?(?:die|dead)\b
        \bwanna (?:just )?(?:die|be dead)\b
        \brather (?:be dead|die)\b
        \bwish(?:ed|es|ing)? (?:that )?(?:i|he|she) (?:was|were|\
        had|could|would)(?:n't| not)? (?:just )?(?:be )?(?:dead|die)
        \bwish(?:ed|es|ing)? (?:that )?(?:i|he|she) (?:was|were|did|had|\
        would)(?:n't| not| never)? (?:been )?(?:born|alive|exist|wake up)
        \bwish(?:ed|es|ing)? (?:that )?i (?:could|would) (?:just )?(?:disappear|go to sleep and)
        \bbetter off (?:dead|without me|not (?:being )?(?:here|in this world|alive)|if i (?:was|were)(?:n't)?)
        \bworld (?:would be )?better without me
        (?:n't|\bnot|\bno longer|\bnever) (?:really |even |just )?(?:want|wanna|wish|care|\
        deserve) ?(?:to )?(?:live|living|be alive|be here|exist|wake up|be around)\b(?! me)
        \b(?:no|any|a|the|what's the) (?:reason|point|purpose|will) (?:to|\
        in|of|for) (?:\w+ )?(?:live|living|being alive|life|go on)\b
        (?:\bnot|n't) worth (?:it to )?(?:living|live)\b
        \b(?:tired|sick) of (?:living|life|being alive)\b
        \bshould(?:n't| not) (?:be (?:here|alive)|exist|live)\b
        \bgiv(?:e|en|ing) up on (?:life|living)\b
        \b(?:thoughts?|thinking|think|dream\w*|fantasi\w+|talk\w*) (?:of|about) (?:my |\
        me )?(?:own )?(?:death|dying|ending (?:it|my life)|not being here|not existing)\b
        \bcan(?:'t|not| not) go on\b
        \bif i (?:live or die|lived or died|died|die)\b
        \b(?:continue|have) to exist\b
        \bnever (?:to )?wak(?:e|ing) up\b
        自[杀殺尽]|轻生|輕生|寻死|寻短见|求死|厌世|生无可恋|一了百了|遗[书言]|死亡的念头
        烧炭|(?:吃|攒|存)了?.{0,4}(?:瓶|把|很多)安眠药|不想存在|再也不用醒|我死了.{0,4}(?:轻松|解脱)|天台.{0,4}跳
        (?:^|[，,、 我])(?:真的?|快|实在|已经|要|再也|也|就|都|感觉|觉得|好像|现在|有点|一个人){0,6}撑不下去
        了结(?:自己|生命|此生|一切)|结束(?:了?自己|我)?的?(?:生命|一生|这?一切)
        不想(?:再|继续)?活|活不下去|活不了|不如死|死了(?:算|就|之|一了|更|会|才|最)|死掉|一死|(?:怎么|如何)死
        想(?:要|到|过|去)*死(?!你|他|她|板|记)|让我去死
        活着.{0,8}(?:没(?:有|什么)?(?:意思|意义|劲|用)|[很好太]累|干[什嘛吗]|痛苦|何用)
        活够|活(?:下去|着)的(?:意义|理由|动力|勇气|欲望|希望|价值)
        (?:没有?|失去|丧失).{0,4}(?:生存|活下去|求生)
        跳(?:楼|河|江|海|下去|桥|轨)|割(?:腕|脉)|上吊|服毒|吞.{0,4}药
        想.{0,4}(?:从(?:这个)?世界上?)?消失|离开(?:这个)?(?:世界|人世|人间)|我(?:要是)?不在了
        """,
        **_PARTS,
    ),
    "self-harm": patterns(
        r"""
        \bself[- ]?(?:harm|injur|mutilat|destruct)\w*
        \b(?:cut|cuts|cutting|carv\w+|slic\w+|burn|burns|burning|burned|burnt) (?:up )?(?:<SELF>|<OWN> <LIMB>)\b
        \b(?:hurt|hurts|hurting|harm|harms|harming|injur\w+|hit|hits|hitting|punch\w*|bit|bite|biting) <SELF>\b
        \brelapsed and cut\b|\b(?:scratch\w*|stab\w*|nails into) <OWN> <LIMB>\b|\bpunch\w* (?:the |a )?walls?\b
        \b(?:scratch\w*|cuts|scars) (?:on|all over|down|up) (?:the |<OWN> )?<LIMB>\b
        \bscratch\w* <SELF>
        \b(?:been|started|start|stop|stopped|is|was|am|with|about|into|began|begun) cutting\b(?! (?:back|\
        down|off|out|corners|class|grass|ties|contact|people|him|her|them|it|the|costs))
        \brazor(?: blade)?s?\b
        \b(?:bang\w*|hit|hits|hitting|smash\w*) (?:my|his|her) head (?:on|against|into|off)\b
        \burges? to (?:cut|(?:hurt|burn) <SELF>)\b
        自[残伤虐]|(?:伤害|弄伤)了?我?自己|撞墙
        (?:划|割|扎|烫|掐|咬|抓|刺|砍)(?:了|着|过|破|伤)?(?:我)?自己
        (?:刀|针).{0,4}(?:划|割|扎)手|(?:划|割|烫|扎|咬)(?:了|着|过|破|伤)?.{0,4}(?:手臂|胳膊|手腕|大腿|手背|手指|皮肤)
        (?:手|胳膊|手臂|手腕|腿)上?.{0,3}划(?!船|拳|算|到|分)
        (?:打|扇|捶|抽)(?:了|着)?自己(?!了?一?(?:个|下|巴|耳))
        """,
        **_PARTS,
    ),
    "abuse": patterns(
        r"""
        (?<!drug )(?<!alcohol )(?<!substance )(?<!drugs )\babus(?:e|ed|es|ive|ing|\
        ers?)\b(?! (?:of )?(?:drugs|alcohol|substances|pills|heroin|medication))
        \b(?:raped?|rapes|raping|rapist|molest\w*|incest|grop(?:ed|ing|es))\b|\bdomestic violence
        \bsexual(?:ly)? (?:assault|harass|violat|touch|attack)\w*|\bassaulted\b
        \bphysical(?:ly)? (?:hurt|violen|assault|attack|fight)\w*
        \b(?:violent|aggressive) (?:with|to|towards?) (?:me|us|her|him|my)
        \b(?:gets?|got|is|was|becomes?|became|turn\w*) (?:\w+ )?violent\b
        \b(?:hit|hits|hitting) <WHO>\b(?! (?:out|off|up|that|like|to it))
        \b(?:beats?|beating|beaten|slap\w*|punch\w*|kick\w*|smack\w*|whip\w*|spank\w*)(?: up| on)? <WHO>\b\
        (?! (?:out|off|that|to it|at (?!home)))
        \b(?:push|pull|throw)\w* (?:me|her|him|us) (?:down|against|into) the\b|\bknife (?:on|at|to) me\b
        \b(?:grab\w*|squeez\w+) (?:my|her|his) (?:throat|neck)\b|\bhurts? me physically\b
        \bthr(?:ows?|ew) (?:an?|the|his|her) \w+ at (?:me|us|her)\b|\bhad sex with me when\b
        \bforc\w+ me to sleep with\b|\bmade me (?:touch|undress)\b|\btouch(?:es|ed) me at night\b
        \b(?:chok(?:e|es|ed|ing)|strangl\w+|shov(?:e|es|ed|ing)) <WHO>\b
        \b(?:held|holds|grabb\w+|grabs) (?:me|her|him) (?:by|down|against)
        \block(?:s|ed) (?:me|us|her|him) (?:in|out|up|on)
        \bthreaten\w* (?:\w+ )?(?:to (?:kill|hurt|hit|beat|harm)|me|my life|us|her)\b
        \bforc(?:e|es|ed|ing) (?:me|her|him|<SELF>) (?:to have|into|to (?:do )?sex|on)\b
        \btouch(?:es|ed|ing)? (?:me|her|him) (?:inappropriat|\
        in (?:places|ways|my|her)|down there|sexual|when|while|without)
        \b(?:scared|afraid|terrified|frightened) of (?:him|my (?:husband|\
        boyfriend|father|dad|partner|step(?:father|dad)|ex))\b
        \bthr(?:ows|ew|own) (?:\w+ )?(?:things|objects|stuff|me) (?:at|against|around|across)\b
        \b(?:laid|lays?|puts?) <OWN> hands? on (?:me|her|us)|\bblack eye|\bbruis(?:e|es|ed)\b
        <SAYS> (?:want|wants|wanted|wanna|going|gonna|plan\w*|ready|about) (?:to )?(?:\w+ )?<KILL> <SOMEBODY>
        \b(?:i'?ll|i will) <KILL> <SOMEBODY>
        \b(?:thoughts?|thinking|fantasi\w+|dream\w*) (?:of|about) (?:killing|murdering|stabbing|strangling) <SOMEBODY>
        (?:想|要|打算|准备|恨不得)(?:亲手|去|把)?(?:杀|砍|捅|掐|勒|弄|打)(?:死|了|掉)(?:他|她|我?的?(?:老婆|妻子|丈夫|\
        老公|男友|女友|爸|妈|父亲|母亲|儿子|女儿|孩子|同学|老师|室友|老板|邻居|所有人|全家|别人))|[想要]杀人(?!游戏|犯)
        家暴|家庭暴力|虐待|施暴|性(?:侵|骚扰|虐)|强[奸暴]|猥亵|迷奸|乱伦|侵犯(?:了|过)?(?:我|她|他)|非礼
        (?<!冷)(?<!非)暴力(?!游戏|电影|片|沟通|美学|拆)|拳打脚踢|打骂|掐.{0,3}脖子
        (?:毒|殴|暴|挨|被.{0,3}|总|就|经常)打(?!击|扰|断|败|动|电|算|折|开|交|工|车|压|乱|扮|听)
        (?:打|揍|踢|踹|掐|抽|捆|扇)(?:了|过|着)?(?:我|孩子|她|他|小孩|儿子|\
        女儿|老婆|妈妈)(?!们?的?(?:电话|手机|微信|招呼|主意|交道|包|车)|个?招呼)
        (?:扇|给).{0,4}(?:耳光|巴掌)|威胁.{0,4}(?:杀|打|要|我)
        (?<!自己)(?<!亲自)动手(?!术|能|做|操|写|准|制|实|干|收|学|试|去)
        (?:摸|碰)了我|(?:摸|碰)我(?:的)?(?:身体|胸|下|隐私|屁股|大腿)|(?:强迫|逼).{0,3}我.{0,4}(?:发生关系|上床)
        烫我|推下楼|关起来.{0,4}不让|把我打(?!发|动|扰|败)
        """,
        **_PARTS,
    ),
}

# Between a negation and the words it denies only these may stand, so "can't stop thinking about suicide" is no denial.
_DENIAL = re.compile(
    r"(?:\bnot(?! to\b)|n't|\bnever|\bno|\bneither|\bnor|\bwithout)(?: (?:been|\
    felt|really|actually|ever|currently|actively|any|an?|"
    r"history|sexual|physical|emotional|tried|try|contemplated|considered|attempted|thought|thinking|had|have|having|"
    r"feel|feeling|or|to|commit|about|of|thoughts?|intentions?|\
    plans?|being|am|was|physically|verbally|sexually|mentally|"
    r"emotionally|he|she|has|in))* ?$"
    r"|(?:从来没有?|从没有?|从未|并?没有?)(?:想过|过|动过|什么|任何|出现|想要|真的|被|遭受|受到|受过)*(?:要|去)?$"
)
_NO_WISH = re.compile(r"(?:n't|\bnot|\bnever)(?: \w+){0,4} ?$|不(?:是|想|会|敢|要|愿|愿意)?$")
_CONTRAST = re.compile(r"\b(?:but|however|though|although|except|yet|until|lately|sometimes)\b|但|可是|不过|然而|只是")
_LOSS = re.compile(
    r"(?:(?<!\bi )(?<!almost )(?<!nearly )\b(?:committed|died (?:by|from|of))|\blost .{0,40} to|"
    r"\bafter (?:his|her|their)|'s) suicide"
    r"|(?:他|她|朋友|同学|同事|邻居|爸爸?|妈妈?|哥哥?|姐姐?|弟弟?|妹妹?|叔叔?|[爷奶姑姨舅]\w?)[^我,，]{0,8}"
    r"(?:自杀|跳楼|轻生|上吊)(?:了|身亡|去世|死|离世)"
)
_THING = re.compile(
    r"\b(?:it|this|that|what|grief|reality|life|everything|thought|\
    sadness|loneliness|wave|ball|car|truck|news|depression|"
    r"anxiety|panic)(?: (?:really|just|finally|suddenly|always|also|never|has|had))* ?$"
)


def _is_denied(part: str, match: re.Match[str]) -> bool:
    lead, after = before(part, match), part[match.end() : match.end() + NEAR]
    if _THING.search(lead) and match[0].startswith(("hit", "beat", "kick", "punch", "slap")):
        return True
    return _DENIAL.search(lead) is not None and _CONTRAST.search(after) is None


def _is_a_loss(part: str, match: re.Match[str]) -> bool:
    """Somebody else's death in the past; what the writer says of their own wishes is found by another match."""
    nearby = _LOSS.finditer(part, max(match.start() - NEAR, 0), match.end() + NEAR)
    return any(loss.start() < match.end() and match.start() < loss.end() for loss in nearby)


def before(part: str, match: re.Match[str]) -> str:
    """What stands before a match, as far as it decides what the match means."""
    return part[max(match.start() - NEAR, 0) : match.start()]
