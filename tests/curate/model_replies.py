"""Replies as models write them, and what should be read from each: the data of test_questions.py.

Each entry is (name, passage's language, reply, expected); expected holds for each item of the reply, in order, either
the texts of the right options as a set, or the reason for which the item is rejected.
"""

from __future__ import annotations

EN = (
    "What follows an action shapes how often it is repeated. In negative reinforcement, something unpleasant is taken "
    "away, and the act becomes more frequent. When rewards stop altogether, the behaviour undergoes extinction, "
    "although it may return for a while after a rest, which is known as spontaneous recovery."
)
ZH = (
    "后果可以分为两类：使行为增多的叫强化，使行为减少的叫惩罚。强化又有正负之分，给予愉快的事物是正强化，"
    "撤去厌恶的事物是负强化。初学者常把负强化当成惩罚，其实二者方向相反。"
)
PASSAGES = {"en": EN, "zh": ZH}

Expected = list[set[str] | str]
REPLIES: list[tuple[str, str, str, Expected]] = [
    # ------------------------------------------------------------------ labelled, English
    (
        "the form that was asked for, twice",
        "en",
        """Quote: In negative reinforcement, something unpleasant is taken away
Question: What happens to an act when an unpleasant event ends because of it?
Type: single
A. It becomes rarer
B. It becomes more frequent
C. It stays the same
D. It is forgotten
Answer: B

Quote: When rewards stop altogether, the behaviour undergoes extinction
Question: Which two things can be seen once rewards have stopped?
Type: multiple
A. Extinction
B. A return after a rest
C. Faster learning
D. Insight
Answer: A, B
""",
        [{"It becomes more frequent"}, {"Extinction", "A return after a rest"}],
    ),
    (
        "markdown, preamble, closing words, key with its text",
        "en",
        """Sure! Here are two multiple-choice questions based on the passage:

### Question 1
**Question:** What is taken away in negative reinforcement?
**Type:** single
- A) Something pleasant
- B) Something unpleasant
- C) A reward
- D) A rest

**Answer:** B) Something unpleasant

**Quote:** "In negative reinforcement, something unpleasant is taken away"

---

### Question 2
**Question:** What may return after a rest?
- A) Punishment
- B) A reward
- C) The behaviour
- D) A stimulus

**Answer:** C) The behaviour

**Quote:** "although it may return for a while after a rest"

I hope these questions help! Let me know if you would like more.""",
        [{"Something unpleasant"}, {"The behaviour"}],
    ),
    (
        "numbers instead of labels, stems bare, lower-case letters, remarks",
        "en",
        """1. What shapes how often an action is repeated?
a) What follows it
b) What comes before it
c) The time of day
d) The person's age
Answer: a
Explanation: the passage says so in its first sentence.
1. consequences matter
Quote: What follows an action shapes how often it is repeated.

2. What is the return of behaviour after a rest called?
a) Spontaneous recovery
b) Extinction
c) Punishment
d) Habituation
Answer: (a), because it is the term given.
Quote: which is known as spontaneous recovery""",
        [{"What follows it"}, {"Spontaneous recovery"}],
    ),
    (
        "all options on one line, label forms of their own",
        "en",
        "Q1: What ends in extinction? A. Behaviour B. Memory C. Perception D. Sleep\nCorrect answer: A. Behaviour\n"
        "Evidence: When rewards stop altogether, the behaviour undergoes extinction",
        [{"Behaviour"}],
    ),
    (
        "everything on one line",
        "en",
        "Question: What ends when rewards stop? (A) Behaviour (B) Memory (C) Perception (D) Sleep Answer: (A) "
        "Quote: When rewards stop altogether, the behaviour undergoes extinction",
        [{"Behaviour"}],
    ),
    (
        "thinking first, with a question in it that is not meant",
        "en",
        """<think>
Okay, a first try. Question: Bad? A. x B. y C. z D. w Answer: A
No, better another one.
</think>

Quote: something unpleasant is taken away
Question: Which change follows?
A. The act grows rarer
B. The act grows more frequent
C. The act stops
D. The act is unchanged
Answer: The correct answer is B.""",
        [{"The act grows more frequent"}],
    ),
    (
        "thinking that never ends",
        "en",
        "<think>Question: What? A. x B. y C. z D. w Answer: A Quote: rest",
        ["unparsable"],
    ),
    (
        "the last item breaks off",
        "en",
        """Quote: What follows an action shapes how often it is repeated.
Question: What shapes repetition?
A. Consequences
B. Mood
C. Age
D. Weather
Answer: A

Quote: When rewards stop altogether
Question: What happens then?
A. Extinction
B. Insi""",
        [{"Consequences"}, "missing_options"],
    ),
    (
        "breaks off after the options",
        "en",
        "Question: What happens?\nA. u\nB. v\nC. w\nD. x\n",
        ["unparsable"],
    ),
    (
        "the key is an option's text",
        "en",
        """Question: What is removed?
A. A pleasant thing
B. An unpleasant thing
C. A rest
D. A reward
Answer: an unpleasant thing.
Quote: something unpleasant is taken away""",
        [{"An unpleasant thing"}],
    ),
    (
        "letters and texts in the key, one a line; initials in an option",
        "en",
        """Question: Which names belong to learning by consequences? (Select all that apply)
A. B. F. Skinner
B. Edward Thorndike
C. Sigmund Freud
D. Carl Rogers
Answers:
A. B. F. Skinner
B. Edward Thorndike
Quote: What follows an action shapes how often it is repeated.""",
        [{"B. F. Skinner", "Edward Thorndike"}],
    ),
    (
        "options over two lines, and two on a line",
        "en",
        """Question: What is extinction?
A. The end of a behaviour
   when its rewards stop   B. A kind of punishment
C. The start of a habit   D. A return after a rest
Answer: A
Quote: When rewards stop altogether, the behaviour undergoes extinction""",
        [{"The end of a behaviour when its rewards stop"}],
    ),
    (
        "the right option is marked as well, which would give it away",
        "en",
        """Question: What returns after a rest?
A. The behaviour (correct)
B. The reward
C. The memory
D. The fear
Answer: A
Quote: it may return for a while after a rest""",
        [{"The behaviour"}],
    ),
    (
        "talk after a blank line belongs to no option, and an unlabelled item may follow one without a key",
        "en",
        """Question: What ends when rewards stop? A. Behaviour B. Memory C. Sleep D. Hunger

Take your time before you look!

Answer: A
Quote: When rewards stop altogether

Question: What returns after a rest?
A. The behaviour

B. The reward

C. The memory

D. The fear

Think about it.

Answer: A
Quote: it may return for a while after a rest

What is left without a key?
A. One
B. Two
C. Three
D. Four

What has one?
A. One
B. Two
C. Three
D. Four
Answer: D
Quote: What follows an action shapes""",
        [{"Behaviour"}, {"The behaviour"}, "unparsable", {"Four"}],
    ),
    (
        "what SmolLM2-135M wrote: the form shown by placeholders, copied",
        "en",
        """Question: The sentence, copied from the passage, is "The act becomes more frequent."

A. first option
B. second option
C. third option
D. fourth option

The answer is: C. The act becomes more frequent.

The answer is: B. The act becomes more frequent.""",
        ["unparsable"],
    ),
    (
        "what SmolLM2-135M wrote: the options of the example and no stems",
        "en",
        """I'm ready to help. Here are 3 questions on this passage:

Question 1:
A. Its color is compared with the colours around it.
B. The eye needs some minutes to get used to a wall.
C. A black wall reflects more light onto the patch.
D. Grey is remembered as lighter than it was.

Question 2:
A. Its color is compared with the colours around it.
B. The eye needs some minutes to get used to a wall.
C. A black wall reflects more light onto the patch.
D. Grey is remembered as lighter than it was.

Which one of these questions does the passage address?""",
        ["empty_stem", "empty_stem"],
    ),
    # ------------------------------------------------------------------ rejected, English
    (
        "the key names an option that is not there; the key has another option's text",
        "en",
        """1. What ends?
A. Behaviour
B. Memory
C. Sleep
D. Hunger
Answer: E
Quote: When rewards stop altogether

2. What ends then?
A. Behaviour
B. Memory
C. Sleep
D. Hunger
Answer: B. Behaviour
Quote: When rewards stop altogether""",
        ["wrong_letter", "wrong_letter"],
    ),
    (
        "a gap in the letters, a repeated letter, equal options",
        "en",
        """1. What ends?
A. Behaviour
B. Memory
D. Sleep
E. Hunger
Answer: A

2. What ends?
A. Behaviour
B. Memory
B. Sleep
C. Hunger
Answer: A

3. What ends?
A. The behaviour
B. Memory
C. behaviour.
D. Hunger
Answer: A""",
        ["missing_options", "unparsable", "duplicate_options"],
    ),
    (
        "all of the above and its kin",
        "en",
        """1. What ends?
A. Behaviour
B. Memory
C. Sleep
D. All of the above
Answer: D

2. What ends now?
A. Behaviour
B. Memory
C. Both A and B
D. Sleep
Answer: C""",
        ["all_of_the_above", "all_of_the_above"],
    ),
    (
        "single with two letters, multiple with one",
        "en",
        """1. What ends?
Type: single
A. Behaviour
B. Memory
C. Sleep
D. Hunger
Answer: A and B
Quote: When rewards stop altogether

2. What else ends?
Type: multiple
A. Behaviour
B. Memory
C. Sleep
D. Hunger
Answer: A
Quote: When rewards stop altogether""",
        ["wrong_kind", "wrong_kind"],
    ),
    (
        "the stem gives it away; the quotation is made up; no quotation; no stem",
        "en",
        """1. Why is spontaneous recovery a return of behaviour, and what is it called?
A. Spontaneous recovery
B. Extinction
C. Punishment
D. Insight
Answer: A
Quote: which is known as spontaneous recovery

2. What does the text say?
A. Rewards help
B. Rewards harm
C. Nothing
D. Something else
Answer: A
Quote: Rewards always help children to learn their lessons.

3. What does it say then?
A. Rewards help
B. Rewards harm
C. Nothing
D. Something else
Answer: A

Question:
A. Rewards help
B. Rewards harm
C. Nothing
D. Something else
Answer: A""",
        ["answer_in_stem", "span_not_in_passage", "span_not_in_passage", "empty_stem"],
    ),
    (
        "two keys that differ",
        "en",
        """Question: What ends?
A. Behaviour
B. Memory
C. Sleep
D. Hunger
Answer: A
Correct answer: B
Quote: When rewards stop altogether""",
        ["unparsable"],
    ),
    (
        "the same question over and over, as small models write it",
        "en",
        "\n\n".join(
            f"{number}. What ends?\nA. Behaviour\nB. Memory\nC. Sleep\nD. Hunger\nAnswer: A\n"
            "Quote: When rewards stop altogether"
            for number in (1, 2, 3)
        ),
        [{"Behaviour"}, "repeated", "repeated"],
    ),
    ("a refusal", "en", "I'm sorry, but I can't help with writing exam questions.", ["unparsable"]),
    ("nothing", "en", "  \n", ["unparsable"]),
    (
        "the form copied and not filled in",
        "en",
        "Quote: the sentence, copied from the passage\nQuestion: the question\nType: single\nA. first option\n"
        "B. second option\nC. third option\nD. fourth option\nAnswer: the letter of the right option",
        ["unparsable"],
    ),
    # ------------------------------------------------------------------ JSON
    (
        "a fenced list of objects",
        "en",
        """```json
[
  {"question": "What is taken away?", "type": "single",
   "options": {"A": "Something unpleasant", "B": "A reward", "C": "A rest", "D": "A habit"},
   "answer": "A", "quote": "something unpleasant is taken away"},
  {"question": "Which are named?", "type": "multiple",
   "options": {"A": "Extinction", "B": "Insight", "C": "Spontaneous recovery", "D": "Priming"},
   "answer": ["A", "C"], "quote": "When rewards stop altogether, the behaviour undergoes extinction"}
]
```""",
        [{"Something unpleasant"}, {"Extinction", "Spontaneous recovery"}],
    ),
    (
        "JSON lines with trailing commas, single quotes, quotes within, lettered options in a list",
        "en",
        """{'question': 'What does "extinction" mean?', 'options': ['A. It's the end of a response', 'B. A rest',
 'C. A reward', 'D. A return',], 'answer': 'A. It's the end of a response',
 'quote': 'the behaviour undergoes extinction',}
{"stem": "What is "recovery" here?", "choices": ["A return", "An end", "A reward", "A rest"],
 "correct_answer": "a", "evidence": "it may return for a while after a rest",},""",
        [{"It's the end of a response"}, {"A return"}],
    ),
    (
        "an object around the list, options as objects, the last one broken off",
        "en",
        """{"questions": [
 {"question": "What is taken away?", "options": [{"label": "A", "text": "A reward"}, {"label": "B", "text": "Harm"},
  {"label": "C", "text": "A rest"}, {"label": "D", "text": "A habit"}], "answer": "B",
  "quote": "something unpleasant is"},
 {"question": "And then?", "options": [{"label": "A", "text": "x"}, {"lab""",
        [{"Harm"}, "unparsable"],
    ),
    (
        "a number as the key could count from 0 or 1",
        "en",
        '{"question": "What ends?", "options": ["Memory", "Behaviour", "Sleep", "Hunger"], "answer": 1, '
        '"quote": "When rewards stop altogether"}',
        ["unparsable"],
    ),
    # ------------------------------------------------------------------ Chinese
    (
        "要求的格式，两题",
        "zh",
        """原文：撤去厌恶的事物是负强化。
题目：司机系上安全带后警报声停止，于是以后都系安全带，这属于什么？
题型：单选
A. 正强化
B. 负强化
C. 正惩罚
D. 消退
答案：B

原文：使行为增多的叫强化，使行为减少的叫惩罚。
题目：下列说法正确的有哪些？
题型：多选
A. 强化使行为增多
B. 惩罚使行为减少
C. 强化使行为减少
D. 惩罚使行为增多
答案：A、B""",
        [{"负强化"}, {"强化使行为增多", "惩罚使行为减少"}],
    ),
    (
        "全角字母与标点，选项在同一行，解析在后",
        "zh",
        """好的，以下是根据材料编写的题目：

１．【题目】初学者常把负强化误认为什么？
Ａ．正强化　　Ｂ．惩罚　　Ｃ．消退　　Ｄ．习惯化
【答案】Ｂ
【解析】材料指出，初学者常把负强化当成惩罚，故选Ｂ。
【原文】初学者常把负强化当成惩罚

２．【题目】给予愉快的事物称作什么？
Ａ．正强化　　Ｂ．负强化　　Ｃ．惩罚　　Ｄ．消退
【答案】Ａ．正强化
【原文】给予愉快的事物是正强化

希望这些题目对您有帮助！""",
        [{"惩罚"}, {"正强化"}],
    ),
    (
        "题号带题型，选项无空格",
        "zh",
        """第1题（单选题）
题干：使行为减少的后果叫什么？
A、强化B、惩罚C、消退D、泛化
正确答案：B。惩罚
引用原文：“使行为减少的叫惩罚”

第2题（多选题）
题干：强化分为哪两类？
A、正强化B、负强化C、正惩罚D、泛化
正确答案：A和B
引用原文：“强化又有正负之分”""",
        [{"惩罚"}, {"正强化", "负强化"}],
    ),
    (
        "无标签题干，题型写在题首，答案为多个字母",
        "zh",
        """1、（单选）二者的方向有何关系？
A）相同
B）相反
C）无关
D）不定
答案是B
依据：其实二者方向相反

2、（多选）后果分为哪两类？
A）强化
B）惩罚
C）消退
D）顿悟
答案：AB
依据：后果可以分为两类""",
        [{"相反"}, {"强化", "惩罚"}],
    ),
    (
        "中文标点的 JSON",
        "zh",
        """｛“题目”：“使行为增多的后果叫什么？”，“选项”：｛“A”：“强化”，“B”：“惩罚”，“C”：“消退”，“D”：“泛化”｝，
“答案”：“A”，“原文”：“使行为增多的叫强化”｝""",
        [{"强化"}],
    ),
    (
        "思考之后作答，英文标签，中文内容",
        "zh",
        """先想一想材料的要点。</think>
Question: 撤去厌恶的事物之后，行为会怎样？
Options:
A. 增多
B. 减少
C. 不变
D. 消失
Answer: 选项A
Quote: 撤去厌恶的事物是 负强化""",
        [{"增多"}],
    ),
    (
        "被拒绝的：以上都对、答案缺失、语言不符、原文不符",
        "zh",
        """1. 强化有哪些？
A. 正强化
B. 负强化
C. 惩罚
D. 以上都对
答案：D

2. 惩罚使行为怎样？
A. 增多
B. 减少
C. 不变
D. 消失
答案：

3. What is punishment?
A. 增多
B. 减少
C. 不变
D. 消失
答案：B
原文：使行为减少的叫惩罚

4. 惩罚有何作用？
A. 增多
B. 减少
C. 不变
D. 消失
答案：B
原文：惩罚从来都不会起到任何作用""",
        ["all_of_the_above", "unparsable", "wrong_language", "span_not_in_passage"],
    ),
    (
        "题干透露答案，但比较两个选项的题干不算",
        "zh",
        """1. 负强化是撤去厌恶的事物，这种做法叫什么？
A. 正强化
B. 负强化
C. 习惯化
D. 敏感化
答案：B
原文：撤去厌恶的事物是负强化

2. 正强化与负强化相比，哪一种撤去事物？
A. 正强化
B. 负强化
C. 两种行为都撤去
D. 两种行为都给予
答案：B
原文：撤去厌恶的事物是负强化""",
        ["answer_in_stem", {"负强化"}],
    ),
]
