"""The folder of an evaluation's results: one model, one way to answer, and the benchmarks of one command or several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli import read_toml

from psychecore.curate.cache import Cache
from psychecore.durable import replace_file
from psychecore.evaluate.answers import AnswerConfig
from psychecore.untrusted import read_json


class Results:
    """Holds the folder for one process, and adds results to those that are there.

    `inputs` has, by benchmark, what the results will depend on. Raises, before the folder's files are changed,
    ValueError where it holds a run of another recipe, or results that can't stand beside the new ones: of another model
    or way to answer, or of the same benchmark on other questions; BlockingIOError where another process holds it.
    """

    def __init__(
        self,
        folder: Path,
        model: Mapping[str, str],
        answers: AnswerConfig,
        inputs: Mapping[str, Mapping[str, str]],
        config_text: str,
    ):
        self.folder, self.path, self.inputs = folder, folder / "evaluation.json", inputs
        self.head = {"model": dict(model), "answers": json.loads(json.dumps(asdict(answers)))}
        config = folder / "config.toml"
        if config.exists() and "benchmark" not in read_toml(str(config)):  # a damaged file is an error that names it
            raise ValueError(f"{folder} holds a run of another recipe: choose another --run.folder")
        self.cache = Cache(folder / "cache.jsonl")
        try:
            self.benchmarks = self._earlier()
            replace_file(config, [config_text])
        except BaseException:
            self.cache.close()
            raise

    def predictions(self, name: str) -> Path:
        """Where the answers of a benchmark go."""
        return self.folder / "predictions" / f"{name}.jsonl"

    def record(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep a result; what an earlier one has beyond it (rubrics, a comparison of equal figures) stays."""
        earlier = self.benchmarks.get(name, {})
        result = json.loads(json.dumps(result))  # as it is read again: a key that is a number is a text there
        held, new = earlier.get("rubrics", {}), result.get("rubrics", {})
        same = all(earlier.get(key) == result.get(key) for key in ("all", "figures"))
        if not same or any(held[rubric] != new[rubric] for rubric in held.keys() & new.keys()):
            earlier = {key: value for key, value in earlier.items() if key not in ("against", "compared_with")}
        if "rubrics" in result:
            result = {**result, "rubrics": {**held, **new}}
        self.benchmarks[name] = {**earlier, **result, "inputs": dict(self.inputs[name])}
        row = self.head | {"benchmarks": self.benchmarks}
        replace_file(self.path, [json.dumps(row, ensure_ascii=False, indent=1) + "\n"])

    def submit(self, settings: Mapping[str, Any]) -> None:
        """Put settings ("zero_shot", ..) into CPsyExam's submission, beside those of results that are recorded."""
        path = self.folder / "submission.json"
        earlier = any(name.startswith("cpsyexam_test_") for name in self.benchmarks) and path.exists()
        row = (read_json(path) if earlier else {}) | settings
        replace_file(path, [json.dumps(row, ensure_ascii=False, indent=1) + "\n"])

    def close(self) -> None:
        """Let go of the folder."""
        self.cache.close()

    def _earlier(self) -> dict[str, Any]:
        """The benchmarks that are there, if what is to come can stand beside them."""
        if not self.path.exists():
            return {}
        found = read_json(self.path)
        model, answers, held = (found.get(key) for key in ("model", "answers", "benchmarks"))
        parts = [model, answers, held, *(held.values() if isinstance(held, dict) else ())]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError(f"{self.path} is no evaluation of this recipe: choose another --run.folder, or remove it")
        whose = f"results of model {model.get('name')!r:.80}"
        ours = {key: self.head["model"].get(key) for key in ("identity", *({"max_length"} & model.keys()))}
        self._require_same(ours, model, whose, "model.")
        self._require_same(self.head["answers"], answers, whose, "answers.")
        for name in self.inputs.keys() & held.keys():
            before = held[name].get("inputs")
            self._require_same(
                self.inputs[name], before if isinstance(before, dict) else {}, f"results of {name!r:.80}"
            )
        return held

    def _require_same(self, now: Mapping[str, Any], before: Mapping[str, Any], what: str, table: str = "") -> None:
        for key, value in now.items():
            if before.get(key) != value:
                raise ValueError(
                    f"{self.path} holds {what} with {table}{key} {before.get(key)!r:.80}, not {value!r:.80}: choose "
                    "another --run.folder, or remove that file (what was asked stays in cache.jsonl)"
                )
