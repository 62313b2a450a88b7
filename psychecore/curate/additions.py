"""Diagnoses, medicines and promises that a rewrite holds and its source does not, in Chinese and English.

Each is found by a list of names and turns of phrase, so a drug or disorder that no list names is not seen. A disorder
that the post speaks of may be taken up ("living with depression is exhausting"), but may not be told as the writer's
("you have depression") unless the source reply speaks of it; a drug may come from the source reply only.
"""

from __future__ import annotations

import re

from psychecore.curate.wording import patterns, plain

DISORDERS = {
    name: patterns(lines)
    for name, lines in {
        "depression": r"\bdepression\b|\bdepressive\b|"
        r"\bclinically depressed\b|\byou(?:'re| are) (?:probably |likely |just )?depressed\b|"
        r"抑郁症|抑郁障碍|重度抑郁|中度抑郁|轻度抑郁",
        "anxiety disorder": r"\banxiety disorder|\bgad\b|焦虑症|焦虑障碍",
        "panic disorder": r"\bpanic disorder|惊恐障碍|惊恐症",
        "phobia": r"\bphobi\w+|\bsocial anxiety\b|恐惧症|恐怖症|社恐",
        "PTSD": r"\bptsd\b|\bpost-?traumatic|创伤后应激",
        "OCD": r"\bocd\b|\bobsessive[- ]compulsive|强迫症|强迫障碍",
        "bipolar disorder": r"\bbipolar|\bmanic\b|\bmania\b|双相|躁郁|躁狂",
        "personality disorder": r"\bborderline\b|\bpersonality disorder|\bnarcissis\w+|人格障碍",
        "psychosis": r"\bpsychosis|\bpsychotic|\bschizo\w+|精神分裂|精神病",
        "ADHD": r"\badhd\b|\b(?:(?:symptoms?|signs?) of|you have) add\b|\battention[- ]deficit|多动症|注意缺陷",
        "autism": r"\bautis\w+|\basperger|自闭症|孤独症",
        "eating disorder": r"\banorexi\w+|\bbulimi\w+|\b(?:binge[- ])?eating disorder|厌食症|贪食症|暴食症|进食障碍",
        "addiction": r"\baddict(?:ion|ed)?\b|\balcoholi\w+|成瘾|酒精依赖|上瘾",
        "insomnia": r"\binsomnia|失眠症",
        "dementia": r"\bdementia|\balzheimer|痴呆|阿尔茨海默",
        "dysmorphia": r"\bdysmorphi\w+|\bhypochondri\w+|\bdissociat\w+|疑病|躯体变形|解离",
        "mental illness": r"\bmental(?:ly)? (?:ill|illness|"
        r"disorder)\b|\bdisorder\b|\bburn-?out syndrome|\bneurasthenia|"
        r"神经衰弱|神经症|心理疾病|精神疾病|心理障碍|精神障碍",
    }.items()
}
_NAMES = "|".join(pattern.pattern for pattern in DISORDERS.values())
_TOLD = patterns(
    r"""
    \byou(?:'ve| (?:\w+ ){0,2}(?:have|got|suffer from|developed|meet))(?: \w+){0,4}? ?(?:<NAMES>|anxiety\b)
    \byou(?:'re| are)(?: \w+){0,4}? ?(?:<NAMES>)
    \b(?:sounds? like|looks? like|this is|that is|it is|it's|that's|means|points to|suggests|suffering from|signs? of|\
    symptoms? of|a case of|diagnos\w+|your)(?: \w+){0,4}? ?(?:<NAMES>)
    (?:你|您|这)[^。,，;；]{0,6}(?:是|得了|患有?|患上|属于|有|符合|像)[^。,，;；]{0,6}(?:<NAMES>|抑郁|焦虑症)|诊断|确诊
    """,
    NAMES=_NAMES,
)

MEDICINES = {
    name: patterns(lines)
    for name, lines in {
        "medicine": r"\bmedicat\w+|\bmedicines?\b|\bmeds\b|\bpills?\b|\btablets?\b|\bprescri\w+|药(?!店)|服用",
        "antidepressant": r"\banti-?depressants?\b|\bss?nris?\b|\bssris?\b|抗抑郁",
        "sedative": r"\bsleeping (?:pill|tablet)s?|\bbenzo\w+|"
        r"\bsedativ\w+|\btranquil+i[sz]\w+|安眠药|镇静剂|安定片|抗焦虑药",
        "named drug": r"\b(?:sertraline|zoloft|fluoxetine|prozac|"
        r"citalopram|escitalopram|lexapro|celexa|paroxetine|paxil|"
        r"venlafaxine|effexor|duloxetine|cymbalta|bupropion|wellbutrin|mirtazapine|trazodone|quetiapine|seroquel|"
        r"olanzapine|risperidone|aripiprazole|abilify|lithium|lamotrigine|valpro\w+|methylphenidate|ritalin|adderall|"
        r"concerta|buspirone|propranolol|hydroxyzine|ketamine|psilocybin|diazepam|valium|alprazolam|xanax|lorazepam|"
        r"ativan|clonazepam|klonopin|zolpidem|ambien|zopiclone|naltrexone|disulfiram)\b|舍曲林|氟西汀|百忧解|帕罗西汀|"
        r"西酞普兰|文拉法辛|度洛西汀|米氮平|曲唑酮|喹硫平|奥氮平|利培酮|"
        r"阿普唑仑|劳拉西泮|氯硝西泮|艾司唑仑|唑吡坦|佐匹克隆|扎来普隆|碳酸锂|黛力新",
        "supplement": r"\bmelatonin|\bvalerian|\bst\.? john'?s wort|\bashwagandha|\bcbd\b|\bcannabis|\bmarijuana|"
        r"\bsupplements?\b|\bvitamins?\b|\bmagnesium|\bherbal|褪黑素|保健品|维生素|安神",
        "dose": r"\b\d+ ?(?:mg|ml|milligrams?|micrograms?)\b|\d+ ?毫克",
    }.items()
}

PROMISES = {
    name: patterns(lines)
    for name, lines in {
        "guarantee": r"\bguarante\w+|\bi(?: can)? (?:promise|assure you|swear)\b|保证|担保|包你|打包票|我发誓|我答应你",
        "certainty": r"\b(?:will|'ll|going to) (?:definitely|certainly|surely|absolutely|undoubtedly|always|never)\b|"
        r"\b(?:definitely|certainly|surely|absolutely) (?:will|"
        r"going to)\b|\bwithout (?:a |any )?doubt|\bfor (?:sure|certain)\b|"
        r"\b(?:is|are|'s) (?:certain|sure|bound) to\b|\bnever fails?\b|\b100 ?(?:%|percent)|(?<![不何未务])必[好定]|"
        r"一定会|一定能|肯定会|肯定能|绝对|百分之百|必然会",
        "cure": r"\bcur(?:e|ed|es|ing)\b|\b(?:full|complete)(?:ly)? (?:recover\w*|"
        r"heal\w*)|治愈|根治|痊愈|治好|彻底(?:好|解决|摆脱|走出)",
        "good end": r"\b(?:everything|it|things|all|this|you)(?:'ll|"
        r" will|'s going to| is going to|'re going to| are going to)"
        r"(?: all| soon)? (?:be|turn out|work out|get|feel)(?: just| absolutely| perfectly| much)?"
        r" (?:fine|ok(?:ay)?|all right|alright|well|better|great|"
        r"easier)\b|\byou(?:'ll| will) (?:get over|overcome|recover|beat)|"
        r"\bwill (?:soon )?pass\b|\byou(?:'ll| will) (?:soon )?be over (?:this|it)\b|都会好|会没事|不会有事|"
        r"很快(?:就)?(?:会)?好|会好起来|都会过去|会过去的|你会战胜|你能战胜",
        "always there": r"\bi(?:'ll| will|'m| am) always (?:be )?(?:here|there)|我会一直(?:陪|在)|我会永远|随时都在",
        "no worry": r"\b(?:nothing|no need) to worry|\bdon't worry\b|不用担心|别担心|不必担心",
    }.items()
}
_NO_PROMISE = re.compile(
    r"(?:\bcan't|\bcannot|\bcan not|\bnot|n't|\bno(?:body| one)?|不能|无法|没法|不敢|没人能)(?: \w+)? ?$"
)


def added_claims(post: str, source: str, rewrite: str) -> list[tuple[str, str]]:
    """What the rewrite of the reply `source` to `post` adds, as (code, words), in the order of the codes.

    Codes: diagnosis_added, medicine_added, promise_added.
    """
    post, source, rewrite = plain(post), plain(source), plain(rewrite)
    told = [found[0] for found in _TOLD.finditer(rewrite)]
    added: list[tuple[str, str]] = []
    for pattern in DISORDERS.values():
        if (found := pattern.search(rewrite)) and not pattern.search(source):
            as_theirs = next((words for words in told if pattern.search(words)), None)
            if as_theirs or not pattern.search(post):
                added.append(("diagnosis_added", as_theirs or found[0]))
    if told and not added and not _TOLD.search(source) and not any(p.search(source) for p in DISORDERS.values()):
        added.append(("diagnosis_added", told[0]))
    for name, pattern in MEDICINES.items():
        known = pattern.search(source) or (name == "medicine" and pattern.search(post))
        if (found := pattern.search(rewrite)) and not known:
            added.append(("medicine_added", found[0]))
    for pattern in PROMISES.values():
        made = [
            one[0]
            for one in pattern.finditer(rewrite)
            if not _NO_PROMISE.search(rewrite[max(one.start() - 40, 0) : one.start()])
        ]
        if made and not pattern.search(source):
            added.append(("promise_added", made[0]))
    return added
