"""The two tasks of the reproduction: what trains, what is cross-selected, what is held out.

- field: which branch of psychology a description belongs to, composed from the authored concepts (recipes/compose.py);
- topic: which of four topics a real post is about, from counsel_chat (784 distinct texts, 21 topics with at least 6),
  the post cut at 220 characters; split by post.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compose import DATA, compose, read_concepts, split_key

from psychecore.curate.risk import find_risk
from psychecore.data.records import Conversation, Question, read_jsonl
from psychecore.text.chat import Message

WARM_UP = 0.4  # of the questions; they train the second selector, and every SFT
POST, CHARACTERS = 220, 700  # of a post in a question, and of either side of a dialogue
HELDOUT_POSTS, DIALOGUES = 160, 40
STEM = "Which topic is this post about above all?"


@dataclass(frozen=True)
class Task:
    """warmup and pool train, heldout is asked; dialogues train, heldout_dialogues tell what training did to them."""

    warmup: list[Question]
    pool: list[Question]
    heldout: dict[str, list[Question]]
    dialogues: list[Conversation]
    heldout_dialogues: list[Conversation]


def field_task(seed: int, limit: int = 200) -> Task:
    """Known concepts in new wording, and unknown concepts, `limit` questions of each; warm-up and pool by concept."""
    splits = compose(read_concepts([DATA / "concepts_en.jsonl"]), seed, ["field"])
    concepts = sorted({split_key(question) for question in splits["train"]})
    draw = random.Random(f"reproduction/{seed}")
    draw.shuffle(concepts)
    first = set(concepts[: round(WARM_UP * len(concepts))])
    posts = [row for _, row in read_jsonl(DATA / "posts_en.jsonl")]
    draw.shuffle(posts)
    dialogues = [_dialogue(row["id"], row["post"], row["reply"]) for row in posts]
    return Task(
        warmup=[question for question in splits["train"] if split_key(question) in first],
        pool=[question for question in splits["train"] if split_key(question) not in first],
        heldout={name: splits[name][:limit] for name in ("heldout", "heldout_concepts")},
        dialogues=dialogues[: 3 * len(posts) // 4],
        heldout_dialogues=dialogues[3 * len(posts) // 4 :],
    )


def topic_task(seed: int, path: Path) -> Task:
    """Real posts; the reply with the most upvotes is the dialogue. Raises ValueError where the file is another's."""
    posts: dict[str, dict[str, Any]] = {}
    for number, row in read_jsonl(path):
        if not all(isinstance(row.get(key), str) for key in ("question", "title", "topic", "answer")):
            raise ValueError(
                f"{path} line {number}: needs texts title, question, topic and answer, as counsel_chat has"
            )
        text = " ".join((row["question"] or row["title"]).split())
        if text and row["answer"].strip():
            best = posts.setdefault(text, row)
            if (row.get("upvotes") or 0) > (best.get("upvotes") or 0):
                posts[text] = {**row, "topic": best["topic"]}
    counts = Counter(row["topic"] for row in posts.values())
    topics = sorted(topic for topic, count in counts.items() if topic and count >= 6)
    draw = random.Random(f"reproduction/{seed}")
    kept = [(text, row) for text, row in sorted(posts.items()) if row["topic"] in topics]
    draw.shuffle(kept)
    train = len(kept) - HELDOUT_POSTS
    questions = [_topic_question(number, text, row["topic"], topics, draw) for number, (text, row) in enumerate(kept)]
    dialogues = [
        _dialogue(f"reply-{number}", text, row["answer"])
        for number, (text, row) in enumerate(kept)
        if number >= train or not find_risk(text)  # what may train on a post at acute risk is curation's to decide
    ]
    warm_up = round(WARM_UP * train)
    return Task(
        warmup=questions[:warm_up],
        pool=questions[warm_up:train],
        heldout={"topic": questions[train:]},
        dialogues=dialogues[:DIALOGUES],
        heldout_dialogues=dialogues[-DIALOGUES:],
    )


def _topic_question(number: int, text: str, topic: str, topics: list[str], draw: random.Random) -> Question:
    names = [topic, *draw.sample([other for other in topics if other != topic], 3)]
    draw.shuffle(names)
    name = topic.replace("-", " ")
    return Question(
        id=f"post-{number}",
        question=STEM,
        options=dict(zip("ABCD", (other.replace("-", " ").capitalize() for other in names), strict=True)),
        answer="ABCD"[names.index(topic)],
        kind="single",
        context=_cut(text, POST),
        rationale=f"This person writes about {name}.",
        area=topic,
        source="counsel_chat",
    )


def _dialogue(name: str, post: str, reply: str) -> Conversation:
    turns = zip(("user", "assistant"), (" ".join(text.split()) for text in (post, reply)), strict=True)
    messages: list[Message] = [{"role": role, "content": _cut(text, CHARACTERS)} for role, text in turns]
    return Conversation(id=name, messages=messages, source="dialogue")


def _cut(text: str, characters: int) -> str:
    """At a word's end."""
    return text if len(text) <= characters else text[:characters].rpartition(" ")[0]
