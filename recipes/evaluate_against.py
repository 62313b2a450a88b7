"""run.against: what another evaluation holds on the same benchmark, checked before a model is asked anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from evaluate_tasks import ChoiceTask, DialogueTask, EssayTask, Task

from psychecore.data.records import read_jsonl
from psychecore.evaluate.answers import EssayAnswer, read_predictions
from psychecore.evaluate.item import Item
from psychecore.evaluate.likelihood import likelihood_messages
from psychecore.evaluate.scores import Tallied, cluster, macro_difference, mean_score, tally
from psychecore.text.chat import Message
from psychecore.untrusted import read_json

OVERLAPS = ("rouge_1", "rouge_l", "bleu_4")
WANTED = "run.against must hold an evaluation on the same benchmark"


def with_theirs(task: Task, folder: Path) -> Task:
    """The task with what the evaluation in `folder` has said to it; one without keys as it is.

    Raises FileNotFoundError or ValueError, naming the file, where the two can't be compared.
    """
    if isinstance(task, DialogueTask):
        return replace(task, theirs=_replies(folder, task))
    if isinstance(task, EssayTask):
        return replace(task, theirs=_essays(folder, task))
    if isinstance(task, ChoiceTask) and any(item.question.answer for item in task.items):
        return replace(task, theirs=_answers(folder, task))
    return task


def differences(task: ChoiceTask, tallied: Sequence[Tallied], seed: int) -> dict[str, Any]:
    """The accuracy and each average of the task, ours less theirs."""
    found = {"accuracy": macro_difference(tallied, task.theirs, seed=seed)}
    for label, (weights, elastic) in task.averages.items():
        found[label] = macro_difference(tallied, task.theirs, task.macro, weights, elastic, seed)
    return {label: asdict(score) for label, score in found.items()}


def essay_differences(task: EssayTask, answers: Sequence[EssayAnswer], seed: int) -> dict[str, Any]:
    """The mean of each figure, ours less theirs, over the essays of both."""
    shared = [answer for answer in answers if answer.id in task.theirs]
    return {
        key: asdict(
            mean_score(
                [getattr(answer, key) - task.theirs[answer.id][key] for answer in shared],
                seed,
                (-100.0, 100.0),
                [cluster(answer) for answer in shared],
            )
        )
        for key in OVERLAPS
    }


def _answers(folder: Path, task: ChoiceTask) -> list[Tallied]:
    path = _predictions(folder, task.name, task.name)
    asked = _way_to_ask(folder)
    theirs = tally(read_predictions(path))
    by_id = {one.id: one for one in theirs}
    shared = [item for item in task.items if item.question.answer and item.question.id in by_id]
    if not shared:
        raise ValueError(f"{path} holds none of these questions, so there is nothing to compare: {WANTED}")
    for item in shared:
        name, key, twin = item.question.id, item.question.answer, by_id[item.question.id]
        if twin.gold != key:
            raise ValueError(f"{path}: item {name!r:.80} has the key {twin.gold} there and {key} here: {WANTED}")
        _same_prompt(path, name, twin.answers[0].prompt, asked(item))
    present = {item.groups.get(task.macro) for item in shared}
    for weights, _ in task.averages.values():
        if absent := [value for value in weights if value not in present]:
            raise ValueError(
                f"{path} holds no question of {task.macro} {absent[0]!r:.80}, which the average needs: {WANTED}"
            )
    return theirs


def _way_to_ask(folder: Path) -> Callable[[Item], list[Message]]:
    """How the other asked a question: it may have answered by likelihood, whose prompt ends otherwise."""
    answers = read_json(folder / "evaluation.json").get("answers")
    answers = answers if isinstance(answers, dict) else {}
    if answers.get("mode") != "likelihood":
        return Item.messages
    form: Any = "text" if answers.get("form") == "text" else "letter"
    return lambda item: likelihood_messages(item, form)


def _same_prompt(path: Path, name: str, theirs: Any, ours: list[Message]) -> None:
    if theirs != ours:
        raise ValueError(
            f"{path}: {name!r:.80} was asked with another prompt there (another text, other worked examples): {WANTED}"
        )


def _essays(folder: Path, task: EssayTask) -> dict[str, dict[str, float]]:
    path = _predictions(folder, task.name, task.name)
    rows = {essay.id: essay for essay in task.essays}
    theirs: dict[str, dict[str, float]] = {}
    for number, row in read_jsonl(path):
        name = row.get("id")
        if not isinstance(name, str) or any(type(row.get(key)) not in (int, float) for key in OVERLAPS):
            raise ValueError(f"{path} line {number}: needs an id and {', '.join(OVERLAPS)} as numbers")
        if name in theirs:
            raise ValueError(f"{path} line {number}: id {name!r:.80} stands there twice")
        if name in rows:
            _same_prompt(path, name, row.get("prompt"), rows[name].messages())
            if row.get("gold") != rows[name].gold:
                raise ValueError(f"{path} line {number}: {name!r:.80} has another reference answer there: {WANTED}")
            theirs[name] = {key: float(row[key]) for key in OVERLAPS}
    if not theirs:
        raise ValueError(f"{path} holds none of these questions, so there is nothing to compare: {WANTED}")
    return theirs


def _replies(folder: Path, task: DialogueTask) -> dict[str, str]:
    path = _predictions(folder, task.name, f"{task.name}.replies")
    theirs: dict[str, str] = {}
    turns = {turn.id: turn for turn in task.turns}
    for number, row in read_jsonl(path):
        for key in ("id", "text"):
            if not isinstance(row.get(key), str):
                raise ValueError(f"{path} line {number}: {key} is {row.get(key)!r:.80}, but must be a text")
        if row["id"] in theirs:
            raise ValueError(f"{path} line {number}: id {row['id']!r:.80} stands there twice")
        if row["id"] in turns:
            _same_prompt(path, row["id"], row.get("prompt"), turns[row["id"]].messages)
        theirs[row["id"]] = row["text"]
    if not any(turn.id in theirs for turn in task.turns):
        raise ValueError(f"{path} holds none of these turns, so there is nothing to compare: {WANTED}")
    return theirs


def _predictions(folder: Path, name: str, file: str) -> Path:
    """A predictions file of a benchmark that the folder's evaluation.json has: any other may be of another model."""
    index, path = folder / "evaluation.json", folder / "predictions" / f"{file}.jsonl"
    if not index.is_file():
        raise FileNotFoundError(f"{index} does not exist: {WANTED}")
    held = read_json(index).get("benchmarks")
    if not isinstance(held, dict) or name not in held:
        known = ", ".join(held) if isinstance(held, dict) and held else "none"
        raise ValueError(f"{index} has no results of {name!r} (it has {known}): {WANTED}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {WANTED}")
    return path
