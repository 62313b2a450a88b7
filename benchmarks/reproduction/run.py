"""Does the paper's recipe beat its parts, at a size that two cores can train? One command for all arms, or for one.

    python benchmarks/reproduction/run.py                                       # all arms; continues where it stopped
    python benchmarks/reproduction/run.py --task field --arm paper --seed 42    # one arm and what it stands on
    python benchmarks/reproduction/run.py --counsel-chat counsel_chat.jsonl     # with the task of real posts

Per task and seed: an SFT on the warm-up questions gives a second selector; base and warm-up model answer the pool
(psychecore/curate/select.py), which divides it into easy and hard; SFT trains on warm-up, easy questions and dialogues;
GRPO starts from it. Every step is a recipe's process whose run folder continues when the command is given again. An
arm's figures go to benchmarks/results/reproduction/, over those committed there, and from there into
docs/REPRODUCTION.md (pages.py).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path[:0] = [str(REPO / "recipes"), str(REPO / "benchmarks")]

import torch  # noqa: E402
from arms import ARMS, SEEDS, plan  # noqa: E402
from cli import main_guard  # noqa: E402
from examine import examine  # noqa: E402
from measure import MODEL, machine  # noqa: E402
from tasks import Task, field_task, topic_task  # noqa: E402

from psychecore.curate.divide import GRPO_FILE, SFT_FILE, DivideConfig, divide  # noqa: E402
from psychecore.curate.generator import LocalGenerator  # noqa: E402
from psychecore.curate.questions import shuffled  # noqa: E402
from psychecore.curate.select import SelectConfig, SelectStage  # noqa: E402
from psychecore.data.prompts import worked_conversation  # noqa: E402
from psychecore.data.records import Question, read_questions, write_rows  # noqa: E402
from psychecore.durable import digest, replace_file  # noqa: E402
from psychecore.model.products import fast_dtype  # noqa: E402

RESULTS = REPO / "benchmarks" / "results" / "reproduction"
SETTINGS = HERE / "settings.toml"
WARMUP_STEPS = 40


def main() -> None:
    """Run what is not there yet of the chosen arms, a result file each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["field", "topic"], help="one task only")
    parser.add_argument("--arm", choices=list(ARMS), help="one arm only")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="one seed only")
    parser.add_argument(
        "--counsel-chat", type=Path, default=REPO.parent / "shared/data/counsel_chat/counsel_chat.jsonl"
    )
    parser.add_argument("--folder", type=Path, default=REPO / "runs" / "reproduction", help="run folders")
    options = parser.parse_args()
    tasks = ("field", "topic") if options.counsel_chat.exists() else ("field",)
    if options.task and options.task not in tasks:
        raise ValueError(f"the task topic needs --counsel-chat; {options.counsel_chat} is not there")
    chosen = (options.task, options.arm, options.seed)
    wanted = [one for one in plan(tasks) if all(asked in (None, part) for asked, part in zip(chosen, one, strict=True))]
    for task, arm, seed in wanted or [(options.task or tasks[0], options.arm, options.seed or SEEDS[0])]:
        path = options.folder / "results" / f"{task}-{arm}-{seed}.json"
        if path.exists():
            print(f"{path} is there; remove it to measure anew", flush=True)
        else:
            run_arm(task, arm, seed, options.folder / task / str(seed), options.counsel_chat, path)


def run_arm(name: str, arm_name: str, seed: int, folder: Path, counsel_chat: Path, path: Path) -> None:
    """Train what the arm needs and is not there, examine the result, write the figures."""
    print(f"\n== {name} {arm_name} seed {seed}", flush=True)
    arm, task = ARMS[arm_name], field_task(seed) if name == "field" else topic_task(seed, counsel_chat)
    base, result = str(MODEL.relative_to(REPO)), folder / arm_name
    figures: dict[str, Any] = {"task": name, "arm": arm_name, "seed": seed, "settings": digest(SETTINGS)[:16]}
    model, chain = base, []
    if arm.start == "sft" or arm.questions:
        sets = select(task, seed, folder)
        figures["selection"] = {side: len(rows) for side, rows in sets.items()}
        if arm.start == "sft":
            rows = [worked_conversation(question) for question in (*task.warmup, *sets["easy"])]
            chain.append(recipe("sft", folder / "sft", seed, [*rows, *task.dialogues]))
            model = str(chain[-1] / "export")
        if arm.questions:
            drawn = same_number(sets, seed)
            questions = drawn[arm.questions]
            if arm.redrawn == "letters":
                questions = [reletter(question, seed) for question in questions]
            elif arm.redrawn == "answers":
                questions = match_answers(sets["hard"], drawn["random"], seed)
            figures["gold_answers"] = Counter(question.options[question.answer] for question in questions)
            figures["gold_letters"] = dict(sorted(Counter(question.answer for question in questions).items()))
            chain.append(recipe("grpo", result, seed, questions, model, arm.flags))
            model = str(chain[-1] / "export")
    figures |= examine(model, task)
    figures["minutes"] = {run.name: round(sum(r["seconds"] for r in rows_of(run, "timings")) / 60, 2) for run in chain}
    if arm.questions:
        names = ("reward", "reward_correct", "reward_format", "informative", "length", "kl", "entropy", "truncated")
        metrics = rows_of(chain[-1], "metrics")
        # without a KL term there is no reference, and no KL to tell
        figures["curves"] = {key: [round(row[key], 4) for row in metrics] for key in names if key in metrics[0]}
    line = json.dumps(figures | {"machine": machine()}, ensure_ascii=False) + "\n"
    for place in (RESULTS / path.name, path):  # what is committed, and what says here that the arm is done
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, [line])
    print(f"wrote {path}", flush=True)


def select(task: Task, seed: int, folder: Path) -> dict[str, list[Question]]:
    """The pool as {"easy", "hard"}: what a selector got, the base model or the one after the warm-up, and the rest."""
    out = folder / "selection"
    if not (out / GRPO_FILE).exists():
        out.mkdir(parents=True, exist_ok=True)
        warm = recipe("sft", folder / "warmup", seed, [worked_conversation(q) for q in task.warmup], steps=WARMUP_STEPS)
        dtype = fast_dtype(torch.device("cpu"))
        selectors = [
            LocalGenerator(str(source), name, dtype, slots=64, max_length=512)
            for name, source in (("base", MODEL), ("warm-up", warm / "export"))
        ]
        stage = SelectStage(selectors, SelectConfig(max_new_tokens=40))
        rows = [question.to_row() for question in task.pool]
        answered = [row for outcome in stage.batch(rows) for row in outcome.kept]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in answered)
        replace_file(out / "answered.jsonl", lines)
        divide(out / "answered.jsonl", out, DivideConfig(seed=seed))
    return {"easy": read_questions(out / SFT_FILE), "hard": read_questions(out / GRPO_FILE)}


def same_number(sets: Mapping[str, list[Question]], seed: int) -> dict[str, list[Question]]:
    """Equally many hard, easy and random questions of the pool, in a seeded order."""
    draw = random.Random(f"reproduction/{seed}/sets")
    count = min(map(len, sets.values()))
    pools = {**sets, "random": sorted((q for rows in sets.values() for q in rows), key=lambda q: q.id)}
    return {side: draw.sample(rows, count) for side, rows in pools.items()}


def match_answers(hard: list[Question], like: list[Question], seed: int) -> list[Question]:
    """Hard questions whose right options are, by their texts, as frequent as those of `like`; where too few, again."""
    draw = random.Random(f"reproduction/{seed}/answers")
    found = []
    for text, count in sorted(Counter(question.options[question.answer] for question in like).items()):
        able = [question for question in hard if question.options[question.answer] == text]
        draw.shuffle(able)
        found += [replace(able[i % len(able)], id=f"{able[i % len(able)].id}/{i}") for i in range(count if able else 0)]
    draw.shuffle(found)
    return found


def reletter(question: Question, seed: int) -> Question:
    """The same question with its options in an order drawn by its id and the seed."""
    options, answer = shuffled(question.options, question.answer, f"reproduction/{seed}/{question.id}")
    return replace(question, options=options, answer=answer)


def recipe(
    kind: str,
    folder: Path,
    seed: int,
    rows: list[Any],
    model: str | None = None,
    flags: Mapping[str, object] | None = None,
    steps: int = 0,
) -> Path:
    """Run recipes/KIND.py on these rows to its end, or from where it stopped; returns its folder.

    Raises ValueError where the folder holds the result of other settings.
    """
    settings: dict[str, object] = {"run.seed": seed, **(flags or {})}
    settings |= {"run.steps": steps} if steps else {}
    data, made_with = folder.parent / f"{folder.name}.jsonl", folder.parent / f"{folder.name}.settings"
    write_rows(data, rows)
    stamp = f"{digest(SETTINGS)} {digest(data)} {settings}\n"
    if (folder / "export").is_dir():
        if not made_with.exists() or made_with.read_text(encoding="utf-8") != stamp:
            raise ValueError(f"{folder} holds a model of other settings or data: remove it, or give another --folder")
        return folder
    replace_file(made_with, [stamp])
    settings |= {"data.train": data, "run.folder": folder} | ({"model.path": model} if model else {})
    command = [sys.executable, str(REPO / "recipes" / f"{kind}.py"), "--config", str(SETTINGS)]
    command += [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    if kind == "grpo":
        command += ["--run.evaluate_first", "false"]
    done = subprocess.run(command, cwd=REPO)
    if done.returncode or not (folder / "export").is_dir():
        raise SystemExit(f"{kind} in {folder} was not finished; the same command continues it")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # 3 GB a run, of use only to one that goes on
    return folder


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a run folder's log."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    with main_guard():
        main()
