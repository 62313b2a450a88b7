"""What the model is asked and how it should answer: a question as messages, and its worked answer as text.

The wording is ours; the shape (reason in one think block, then the answer, no answer tag) is Psyche-R1's
(arXiv 2508.10848). Questions with a case text get the case prompt, which asks for the facts behind a conclusion.
"""

from __future__ import annotations

from psychecore.data.records import Conversation, Question
from psychecore.text.chat import Message

SYSTEM = {
    "en": "You are a psychology expert in theory and practice. Reason step by step from psychological knowledge "
    "inside <think></think>, then give the answer.",
    "zh": "你是一位兼具理论与实践经验的心理学专家。请先在<think></think>中运用心理学知识逐步推理，再给出答案。",
}
SYSTEM_CASE = {
    "en": "You are a psychology expert in theory and practice. Read the case, reason step by step inside "
    "<think></think> and say from which facts of the case each conclusion follows, then give the answer.",
    "zh": "你是一位兼具理论与实践经验的心理学专家。请阅读案例，先在<think></think>中逐步推理，"
    "并说明每个结论依据案例中的哪些事实，再给出答案。",
}
HINT_MULTIPLE = {"en": "(More than one option is right.)", "zh": "（有多个正确选项。）"}


def question_messages(question: Question) -> list[Message]:
    """System prompt and question with lettered options, one a line, in the question's language."""
    language = question.language
    parts = [question.context] if question.context else []
    parts.append(question.question + (HINT_MULTIPLE[language] if question.kind == "multiple" else ""))
    parts.extend(f"{letter}. {text}" for letter, text in question.options.items())
    system = SYSTEM_CASE if question.context else SYSTEM
    return [{"role": "system", "content": system[language]}, {"role": "user", "content": "\n".join(parts)}]


def answer_text(question: Question) -> str:
    """The right answer as a model should write it: "B. Anchoring", or "A. Shaping; C. Extinction"."""
    separator = "；" if question.language == "zh" else "; "
    return separator.join(f"{letter}. {question.options[letter]}" for letter in question.answer)


def worked_conversation(question: Question) -> Conversation:
    """The question with its rationale and answer, a row of sft.jsonl. Raises ValueError without a rationale."""
    if not question.rationale:
        raise ValueError(f"question {question.id!r} has no rationale, so it cannot become a training conversation")
    reply = f"<think>{question.rationale}</think>\n{answer_text(question)}"
    messages = [*question_messages(question), Message(role="assistant", content=reply)]
    return Conversation(id=question.id, messages=messages, source=question.source)
