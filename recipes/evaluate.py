"""Evaluation: a Hugging Face folder, a hub id or an OpenAI-compatible server on the field's benchmarks.

    python recipes/evaluate.py --model.path runs/demo/grpo/export --benchmark.pceb PCEB --run.folder runs/eval/grpo
    python recipes/evaluate.py --model.path http://127.0.0.1:8000/v1#psyche-r1 --benchmark.cpsyexam cpsyexam.zip \\
        --run.folder runs/eval/served
    python recipes/evaluate.py --model.path FOLDER --benchmark.questions heldout.jsonl --answers.mode likelihood \\
        --run.folder runs/eval/new --run.against runs/eval/old

What is written into the folder: evaluation.json (every figure), predictions/NAME.jsonl (prompt, text, parsed, gold and
credit of each answer), submission.json for CPsyExam's test split, config.toml (of the last command). What the model has
said is kept in cache.jsonl under a hash of the weights, the prompt and the parameters, so the same command continues a
killed run. A folder is of one model and one way to answer: other benchmarks are added to it, all else is refused.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli import dump_config, load_config, main_guard
from curate_models import check_keys, make_generator
from evaluate_against import OVERLAPS, differences, essay_differences, with_theirs
from evaluate_options import EvaluateRecipe
from evaluate_results import Results
from evaluate_table import show
from evaluate_tasks import ChoiceTask, DialogueTask, EssayTask, Task, read_tasks

from psychecore.curate.cache import CachedGenerator
from psychecore.curate.endpoint import EndpointGenerator
from psychecore.curate.generator import LocalGenerator, Reply, Request, request_key
from psychecore.curate.progress import Progress
from psychecore.durable import replace_file
from psychecore.evaluate import cpsyexam, judge, scores
from psychecore.evaluate.answers import (
    Answer,
    Counted,
    choice_requests,
    essay_requests,
    read_essays,
    read_replies,
    read_scores,
    with_thinking_opened,
    write_predictions,
)
from psychecore.evaluate.item import Item
from psychecore.evaluate.likelihood import candidate_scores, likelihood_messages
from psychecore.evaluate.statistics import Estimate


def main(config: EvaluateRecipe) -> None:
    """Read and check everything, so that a wrong path costs nothing, then ask and score one after the other."""
    tasks = read_tasks(config)
    if config.run.against:
        tasks = [with_theirs(task, config.run.against) for task in tasks]
    evaluation = Evaluation(config, tasks)
    try:
        for task in tasks:
            evaluation.run(task)
    finally:
        evaluation.results.close()
    if any(isinstance(task, ChoiceTask) and task.shots is not None for task in tasks):
        print(f"the test split has no answers: send {config.run.folder / 'submission.json'} to the benchmark's site")


class Evaluation:
    """Asks and scores; the results are written and shown as they come.

    Raises, before anything is asked, ValueError or FileNotFoundError for a model, a judge or a folder that won't do.
    """

    def __init__(self, config: EvaluateRecipe, tasks: Sequence[Task]):
        self.config = config
        check_keys(config.model.keys, (config.model.path, config.judge.path))
        self.generator = make_generator(config.model.path, config.model)
        if config.answers.mode == "likelihood" and not isinstance(self.generator, LocalGenerator):
            raise ValueError("answers.mode likelihood needs the weights: give a folder or a hub id as model.path")
        written = [task.name for task in tasks if config.answers.mode == "generate" or not isinstance(task, ChoiceTask)]
        if isinstance(self.generator, LocalGenerator) and written:
            room, wanted = self.generator.max_length, config.answers.max_new_tokens
            if wanted >= room:
                raise ValueError(
                    f"answers.max_new_tokens is {wanted}, which leaves no room for {written[0]!r:.80} in the {room} "
                    "tokens of model.max_length and of the model itself: lower it"
                )
        inputs = {task.name: task.inputs for task in tasks}
        self.judge: LocalGenerator | EndpointGenerator | None = None
        if judged := [task.name for task in tasks if isinstance(task, DialogueTask)]:
            self.judge = make_generator(config.judge.path, config.model)
            for name in judged:
                inputs[name]["judge"] = self.judge.identity
        model = {"name": self.generator.name, "identity": self.generator.identity}
        if isinstance(self.generator, LocalGenerator):
            model["max_length"] = str(self.generator.max_length)
        self.results = Results(config.run.folder, model, config.answers, inputs, dump_config(config))

    def run(self, task: Task) -> None:
        """Ask, score and show one benchmark."""
        if isinstance(task, ChoiceTask):
            self._choice(task)
        elif isinstance(task, EssayTask):
            self._essays(task)
        else:
            self._dialogues(task)

    def _choice(self, task: ChoiceTask) -> None:
        answers, seed = self._answers(task.name, task.items), self.config.run.seed
        write_predictions(self.results.predictions(task.name), answers)
        tallied = scores.tally(answers)
        result: dict[str, Any] = {"kind": "choice", "problems": [asdict(problem) for problem in task.problems]}
        if tallied:
            pass_k = self.config.answers.pass_k
            result["all"] = scores.choice_scores(tallied, pass_k, seed).to_row()
            result["by"] = {
                group: {
                    value: scores.choice_scores(members, pass_k, seed).to_row()
                    for value, members in scores.by_group(tallied, group).items()
                }
                for group in task.groups
            }
            result["averages"] = {
                label: asdict(scores.macro_score(tallied, task.macro, weights, elastic, seed))
                for label, (weights, elastic) in task.averages.items()
            }
        if task.shots is not None:
            letters = {answer.id: answer.parsed for answer in answers if answer.sample == 0}
            self.results.submit(cpsyexam.submission(task.items, letters, task.shots))
        self._finish(task.name, result, (lambda: differences(task, tallied, seed)) if task.theirs else None)

    def _essays(self, task: EssayTask) -> None:
        replies = self._ask(task.name, essay_requests(task.essays, self.config.answers))
        answers, seed = read_essays(task.essays, replies), self.config.run.seed
        write_predictions(self.results.predictions(task.name), answers)
        clusters = [scores.cluster(answer) for answer in answers]
        figures = {
            key: asdict(scores.mean_score([getattr(answer, key) for answer in answers], seed, clusters=clusters))
            for key in OVERLAPS
        }
        empty = sum(not answer.answer for answer in answers) / len(answers)
        result = {"kind": "overlap", "figures": figures, "empty": empty}
        self._finish(task.name, result, (lambda: essay_differences(task, answers, seed)) if task.theirs else None)

    def _dialogues(self, task: DialogueTask) -> None:
        """Let the model answer each client turn and the judge score it; against another's replies, compare them."""
        assert self.judge is not None
        config, asked = self.config, self.config.answers
        requests = [
            Request(turn.messages, asked.max_new_tokens, asked.temperature, asked.seed, 0, asked.top_p)
            for turn in task.turns
        ]
        replies = [reply.text for reply in self._ask(task.name, requests)]
        write_rows(self.results.predictions(f"{task.name}.replies"), [
            {"id": turn.id, "prompt": turn.messages, "text": text}
            for turn, text in zip(task.turns, replies, strict=True)
        ])  # fmt: skip
        _free(self.generator)  # model and judge may not fit together
        judging = Asker(self, f"{task.name}, judged", self.judge)
        empty = sum(not judge.spoken(reply) for reply in replies) / len(replies)
        result: dict[str, Any] = {"kind": "judged", "judge": judging.name, "empty": empty, "rubrics": {}}
        for rubric in config.judge.rubrics:
            verdicts = judge.judge_replies(judging, task.prompts, rubric, task.turns, replies, task.max_new_tokens)
            write_predictions(self.results.predictions(f"{task.name}.{rubric}"), verdicts)
            estimates = judge.rubric_estimates(verdicts, rubric, config.run.seed)
            result["rubrics"][rubric] = {
                "n": len(verdicts),
                "unparsable": sum(verdict.scores is None for verdict in verdicts) / len(verdicts),
                "figures": {key: found._asdict() for key, found in estimates.items()},
            }
        self._finish(task.name, result, (lambda: self._compare(task, judging, replies)) if task.theirs else None)
        _free(self.judge)

    def _compare(self, task: DialogueTask, judging: Asker, replies: Sequence[str]) -> dict[str, Any]:
        shared = [
            (turn, reply, task.theirs[turn.id])
            for turn, reply in zip(task.turns, replies, strict=True)
            if turn.id in task.theirs
        ]
        turns, ours, theirs = zip(*shared, strict=True)
        found = judge.compare_replies(judging, task.prompts, turns, ours, theirs, task.max_new_tokens)
        write_predictions(self.results.predictions(f"{task.name}.compare"), found)
        counts = {str(kind): sum(one.winner == kind for one in found) for kind in ("first", "second", "tie")}
        counts["inconsistent"] = sum(one.winner == "inconsistent" for one in found)
        counts["unparsable"] = sum(one.winner is None for one in found)
        margin: Estimate | None = judge.preference_estimate(found, self.config.run.seed)
        return {"counts": counts, "margin": margin and margin._asdict()}

    def _answers(self, name: str, items: Sequence[Item]) -> list[Answer]:
        answers = self.config.answers
        if answers.mode == "generate":
            return read_replies(items, self._ask(name, choice_requests(items, answers)), answers.samples)
        assert isinstance(self.generator, LocalGenerator)
        prompts = [likelihood_messages(item, answers.form) for item in items]
        settings = [self.generator.identity, self.generator.max_length, "likelihood", answers.form, answers.normalise]
        keys = [
            hashlib.sha256(
                json.dumps([settings, prompt, item.question.options, item.question.kind]).encode()
            ).hexdigest()
            for item, prompt in zip(items, prompts, strict=True)
        ]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self.results.cache}
        found = candidate_scores(self.generator, list(missing.values()), answers.form, answers.normalise)
        with Progress(name, len(items), len(items) - len(missing)) as progress:
            for key, score in zip(missing, found, strict=True):
                self.results.cache.add({key: Reply(json.dumps(score), None)})
                progress.update(1)
        known = [self.results.cache.get(key) for key in keys]
        return [
            read_scores(item, prompt, json.loads(reply.text if reply else "null"))
            for item, prompt, reply in zip(items, prompts, known, strict=True)
        ]

    def _ask(self, name: str, requests: Sequence[Request]) -> list[Reply]:
        return Asker(self, name, self.generator).generate(requests)

    def _finish(self, name: str, result: dict[str, Any], compare: Callable[[], dict[str, Any]] | None = None) -> None:
        """Record and show a result; its figures are on the disk before they are compared with another's."""
        self.results.record(name, result)
        if compare:
            result |= {"against": compare(), "compared_with": str(self.config.run.against)}
            self.results.record(name, result)
        print("\n".join(show(name, result)), flush=True)


class Asker:
    """A generator behind the evaluation's cache, with progress and time left."""

    def __init__(self, evaluation: Evaluation, label: str, generator: LocalGenerator | EndpointGenerator):
        self.cache, self.label = evaluation.results.cache, label
        self.generator, self.name = generator, generator.name

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order; what the cache holds is not asked again."""
        keys = {request_key(self.generator.identity, request) for request in requests}
        known = sum(key in self.cache for key in keys)
        with Progress(self.label, len(keys), known) as progress:
            replies = CachedGenerator(Counted(self.generator, progress), self.cache).generate(requests)
        return replies if isinstance(self.generator, LocalGenerator) else with_thinking_opened(replies)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Objects as JSONL, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _free(generator: LocalGenerator | EndpointGenerator) -> None:
    if isinstance(generator, LocalGenerator):
        generator.close()


if __name__ == "__main__":
    with main_guard():
        main(load_config(EvaluateRecipe, sys.argv[1:], __doc__, table="evaluate"))
