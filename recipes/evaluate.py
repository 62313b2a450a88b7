"""Evaluation: a Hugging Face folder, a hub id or an OpenAI-compatible server on the field's benchmarks.

    python recipes/evaluate.py --model.path runs/demo/grpo/export --benchmark.pceb PCEB --run.folder runs/eval/grpo
    python recipes/evaluate.py --model.path http://127.0.0.1:8000/v1#psyche-r1 --benchmark.cpsyexam cpsyexam.zip
    python recipes/evaluate.py --model.path FOLDER --benchmark.questions heldout.jsonl --answers.mode likelihood \\
        --run.folder runs/eval/new --run.against runs/eval/old

What is written into the folder: evaluation.json (every figure), predictions/NAME.jsonl (prompt, text, parsed, gold and
credit of each answer), submission.json for CPsyExam's test split, config.toml. What the model has said is kept in
cache.jsonl under a hash of the weights, the prompt and the parameters, so the same command continues a killed run.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli import dump_config, load_config, main_guard
from curate_models import check_keys, make_generator
from evaluate_options import EvaluateRecipe
from evaluate_table import show

from psychecore.curate.cache import Cache, CachedGenerator
from psychecore.curate.endpoint import EndpointGenerator
from psychecore.curate.generator import LocalGenerator, Reply, Request, request_key
from psychecore.curate.progress import Progress
from psychecore.curate.prompts import load_prompts
from psychecore.durable import replace_file
from psychecore.evaluate import cpsyexam, judge, pceb, scores
from psychecore.evaluate.answers import (
    Answer,
    Counted,
    choice_requests,
    essay_requests,
    read_essays,
    read_predictions,
    read_replies,
    read_scores,
    write_predictions,
)
from psychecore.evaluate.item import Essay, Item, Problem
from psychecore.evaluate.likelihood import candidate_scores, likelihood_messages
from psychecore.evaluate.question_files import first_of_each, read_question_file
from psychecore.evaluate.statistics import Estimate
from psychecore.evaluate.text_overlap import text_overlap

Weights = Mapping[str, tuple[Mapping[str, float], bool]]  # of a macro mean: (weight by value of the group, elastic)


def main(config: EvaluateRecipe) -> None:
    """Read all benchmarks, so that a wrong path costs nothing, then ask and score one after the other."""
    benchmark, folder = config.benchmark, config.run.folder
    exam = cpsyexam.read_cpsyexam(benchmark.cpsyexam) if benchmark.cpsyexam else None
    counselor = pceb.read_pceb(benchmark.pceb) if benchmark.pceb else None
    files = {Path(path).stem: read_question_file(path) for path in benchmark.questions}
    dialogues = {path.stem: judge.read_dialogues(path, benchmark.last_turn_only) for path in benchmark.dialogues}
    if counselor and counselor.essays and benchmark.essays:
        text_overlap("试", "试")  # an absent package is told now, not after hours
    open_folder(folder, dump_config(config))
    cache = Cache(folder / "cache.jsonl")
    try:
        evaluation = Evaluation(config, cache)
        if counselor:
            items = first_of_each(counselor.items, "column", benchmark.limit)
            weights = pceb.column_weights({item.groups["column"]: 1 for item in items})
            averages = {"standard": (weights, False), "elastic": (weights, True)}
            evaluation.choice("pceb", items, ("column", "area", "tier"), "column", averages, counselor.problems)
            if counselor.essays and benchmark.essays:
                evaluation.essays("pceb_essays", counselor.essays[: benchmark.limit or None])
        if exam:
            evaluation.exam(exam)
        for name, items in files.items():
            evaluation.choice(name, items[: benchmark.limit or None], ("kind", "area"))
        for name, turns in dialogues.items():
            evaluation.dialogues(name, turns[: benchmark.limit or None])
    finally:
        cache.close()


class Evaluation:
    """The benchmarks' results, written and shown as they come."""

    def __init__(self, config: EvaluateRecipe, cache: Cache):
        self.config, self.cache, self.folder = config, cache, config.run.folder
        check_keys(config.model.keys, (config.model.path, config.judge.path))
        self.generator = make_generator(config.model.path, config.model)
        if config.answers.mode == "likelihood" and not isinstance(self.generator, LocalGenerator):
            raise ValueError("answers.mode likelihood needs the weights: give a folder or a hub id as model.path")
        self.results: dict[str, Any] = {}

    def choice(
        self,
        name: str,
        items: Sequence[Item],
        groups: Sequence[str],
        macro: str = "",
        averages: Weights | None = None,
        problems: Sequence[Problem] = (),
    ) -> list[Answer]:
        """Ask, score and show multiple-choice questions; `averages` are macro means over the group `macro`."""
        answers, seed = self._answers(name, items), self.config.run.seed
        write_predictions(self._file(name), answers)
        tallied = scores.tally(answers)
        result: dict[str, Any] = {"kind": "choice", "problems": [asdict(problem) for problem in problems]}
        if tallied:
            pass_k = self.config.answers.pass_k
            result["all"] = scores.choice_scores(tallied, pass_k, seed).to_row()
            result["by"] = {
                group: {
                    value: scores.choice_scores(members, pass_k, seed).to_row()
                    for value, members in scores.by_group(tallied, group).items()
                }
                for group in groups
            }
            result["averages"] = {
                label: asdict(scores.macro_score(tallied, macro, weights, elastic, seed))
                for label, (weights, elastic) in (averages or {}).items()
            }
            if self.config.run.against:
                result["against"] = self._against(name, tallied, macro, averages or {})
        self._record(name, result)
        return answers

    def essays(self, name: str, essays: Sequence[Essay]) -> None:
        """Ask and score open questions."""
        replies = self._ask(name, essay_requests(essays, self.config.answers))
        answers, seed = read_essays(essays, replies), self.config.run.seed
        write_predictions(self._file(name), answers)
        figures = {
            key: asdict(scores.mean_score([getattr(answer, key) for answer in answers], seed))
            for key in ("rouge_1", "rouge_l", "bleu_4")
        }
        empty = sum(not answer.answer for answer in answers) / len(answers)
        self._record(name, {"kind": "overlap", "figures": figures, "empty": empty})

    def exam(self, exam: cpsyexam.CPsyExam) -> None:
        """CPsyExam with each number of worked examples; for the test split, the submission file."""
        benchmark, submission = self.config.benchmark, {}
        for shots in benchmark.shots:
            items = exam.with_shots(benchmark.split, shots, self.config.run.seed)
            items = first_of_each(items, "task", benchmark.limit)
            weights = {name: (each, False) for name, each in cpsyexam.task_weights(items).items()}
            name = f"cpsyexam_{benchmark.split}_{shots}_shot"
            scored = {} if benchmark.split == "test" else weights
            answers = self.choice(name, items, ("kind", "subject", "task"), "task", scored, exam.problems)
            letters = {answer.id: answer.parsed for answer in answers if answer.sample == 0}
            submission |= cpsyexam.submission(items, letters, shots)
        if benchmark.split == "test":
            path = self.folder / "submission.json"
            replace_file(path, [json.dumps(submission, ensure_ascii=False, indent=1) + "\n"])
            print(f"the test split has no answers: send {path} to the benchmark's site")

    def dialogues(self, name: str, turns: Sequence[judge.Turn]) -> None:
        """Let the model answer each client turn and the judge score it; against another's replies, compare them."""
        config, seed = self.config, self.config.run.seed
        asked = config.answers
        requests = [
            Request(turn.messages, asked.max_new_tokens, asked.temperature, asked.seed, 0, asked.top_p)
            for turn in turns
        ]
        replies = [reply.text for reply in self._ask(name, requests)]
        write_rows(self._file(f"{name}.replies"), [
            {"id": turn.id, "prompt": turn.messages, "text": text} for turn, text in zip(turns, replies, strict=True)
        ])  # fmt: skip
        if isinstance(self.generator, LocalGenerator):
            self.generator.close()  # model and judge may not fit together
        prompts, most = load_prompts(config.run.prompts / "judge.toml"), config.judge.max_new_tokens
        judging = Asker(self, f"{name}, judged", make_generator(config.judge.path, config.model))
        result: dict[str, Any] = {"kind": "judged", "judge": judging.name, "rubrics": {}}
        for rubric in config.judge.rubrics:
            verdicts = judge.judge_replies(judging, prompts, rubric, turns, replies, most)
            write_predictions(self._file(f"{name}.{rubric}"), verdicts)
            unparsable = sum(verdict.scores is None for verdict in verdicts) / len(verdicts)
            estimates = judge.rubric_estimates(verdicts, rubric, seed)
            result["rubrics"][rubric] = {
                "n": len(verdicts),
                "unparsable": unparsable,
                "figures": {key: found._asdict() for key, found in estimates.items()},
            }
        if config.run.against:
            result["against"] = self._compare(name, judging, prompts, turns, replies)
        self._record(name, result)

    def _compare(
        self, name: str, judging: Asker, prompts: Any, turns: Sequence[judge.Turn], replies: Sequence[str]
    ) -> dict[str, Any]:
        path = self._other(f"{name}.replies")
        with open(path, encoding="utf-8") as file:
            theirs = {row["id"]: row["text"] for row in map(json.loads, file)}
        shared = [(turn, reply) for turn, reply in zip(turns, replies, strict=True) if turn.id in theirs]
        if not shared:
            raise ValueError(f"{path} holds none of these turns, so there is nothing to compare")
        both = [turn for turn, _ in shared], [reply for _, reply in shared], [theirs[turn.id] for turn, _ in shared]
        found = judge.compare_replies(judging, prompts, *both, self.config.judge.max_new_tokens)
        write_predictions(self._file(f"{name}.compare"), found)
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
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self.cache}
        found = candidate_scores(self.generator, list(missing.values()), answers.form, answers.normalise)
        with Progress(name, len(items), len(items) - len(missing)) as progress:
            for key, score in zip(missing, found, strict=True):
                self.cache.add({key: Reply(json.dumps(score), None)})
                progress.update(1)
        known = [self.cache.get(key) for key in keys]
        return [
            read_scores(item, prompt, json.loads(reply.text if reply else "null"))
            for item, prompt, reply in zip(items, prompts, known, strict=True)
        ]

    def _ask(self, name: str, requests: Sequence[Request]) -> list[Reply]:
        return Asker(self, name, self.generator).generate(requests)

    def _against(self, name: str, tallied: Sequence[scores.Tallied], macro: str, averages: Weights) -> dict[str, Any]:
        theirs, seed = scores.tally(read_predictions(self._other(name))), self.config.run.seed
        result = {"accuracy": asdict(scores.macro_difference(tallied, theirs, seed=seed))}
        for label, (weights, elastic) in averages.items():
            found = scores.macro_difference(tallied, theirs, macro, weights, elastic, seed)
            result[label] = asdict(found)
        return result

    def _other(self, name: str) -> Path:
        assert self.config.run.against is not None
        path = self.config.run.against / "predictions" / f"{name}.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run.against must hold an evaluation on the same benchmark")
        return path

    def _file(self, name: str) -> Path:
        return self.folder / "predictions" / f"{name}.jsonl"

    def _record(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        config, generator = self.config, self.generator
        row = {
            "model": {"name": generator.name, "identity": generator.identity},
            "answers": asdict(config.answers),
            "against": str(config.run.against) if config.run.against else None,
            "benchmarks": self.results,
        }
        replace_file(self.folder / "evaluation.json", [json.dumps(row, ensure_ascii=False, indent=1) + "\n"])
        print("\n".join(show(name, result)), flush=True)


class Asker:
    """A generator behind the evaluation's cache, with progress and time left."""

    def __init__(self, evaluation: Evaluation, label: str, generator: LocalGenerator | EndpointGenerator):
        self.cache, self.label, self.generator, self.name = evaluation.cache, label, generator, generator.name

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order; what the cache holds is not asked again."""
        keys = {request_key(self.generator.identity, request) for request in requests}
        known = sum(key in self.cache for key in keys)
        with Progress(self.label, len(keys), known) as progress:
            return CachedGenerator(Counted(self.generator, progress), self.cache).generate(requests)


def open_folder(folder: Path, config_text: str) -> None:
    """Make the folder and write the configuration. Raises ValueError where it holds a run of another recipe."""
    path = folder / "config.toml"
    if path.exists() and "benchmark" not in tomllib.loads(path.read_text(encoding="utf-8")):
        raise ValueError(f"{folder} holds a run of another recipe: choose another --run.folder")
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, [config_text])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Objects as JSONL, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    with main_guard():
        main(load_config(EvaluateRecipe, sys.argv[1:], __doc__, table="evaluate"))
