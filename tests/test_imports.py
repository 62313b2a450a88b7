"""The architecture test: imports go one way, no trainer framework is in the product (ARCHITECTURE.md), none is slow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

# The most exact row that covers a file decides; what it may import is the row's list and its own package.
ALLOWED: dict[str, list[str]] = {
    "kernels": [],
    "durable": [],
    "page": [],
    "model": ["durable", "untrusted"],
    "model.fused": ["kernels"],
    "text": ["untrusted"],
    "data": ["text", "durable", "untrusted"],
    "rollout": ["model", "data", "text"],
    "reward": ["data", "text"],
    "train": ["model", "data", "text", "rollout.trajectory", "runtime", "durable", "untrusted"],
    "curate": ["data", "text", "durable", "page", "untrusted"],
    "curate.generator": ["data", "text", "durable", "model", "rollout", "untrusted"],
    # an answer is read as the reward reads it
    "curate.conclusion": ["data", "reward.answer"],
    "curate.rationale": ["data", "text", "durable", "reward.answer", "untrusted"],
    "curate.select": ["data", "text", "durable", "reward.answer", "untrusted"],  # and so is who is right
    # models are asked, remembered and judged as in curate, and benchmarks are read with its characters
    "evaluate": [
        *("data", "text", "rollout", "reward", "durable", "untrusted", "curate.generator", "curate.progress"),
        *("curate.prompts", "curate.replies", "curate.typography"),
    ],
    "evaluate.likelihood": ["data", "text", "model", "train.token_logprobs", "curate.generator"],
    "report": ["durable", "page", "untrusted"],
    "runtime": [],
    "untrusted": [],
}
SINGLE_FILES = ("page", "runtime", "durable", "untrusted")
FRAMEWORKS = {"transformers", "trl", "accelerate", "datasets", "deepspeed", "peft"}
OUTSIDE = {"recipes", "tests", "benchmarks"}
PRODUCT = {"psychecore": "psychecore", "kernels": "psychecore.kernels", "recipes": "recipes"}  # folder: import name


def test_the_product_keeps_to_the_arrows() -> None:
    assert list(violations(REPO)) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("psychecore/model/decoder.py", "from psychecore.kernels import rms_norm"),
        ("psychecore/model/decoder.py", "from psychecore import kernels"),
        ("psychecore/model/decoder.py", "from .. import kernels"),
        ("psychecore/model/decoder.py", "import kernels"),
        ("psychecore/model/pretrained.py", "from psychecore.text.tokenizer import Tokenizer"),
        ("psychecore/text/chat.py", "from psychecore.data.records import Question"),
        ("psychecore/data/packing.py", "import psychecore"),
        ("psychecore/rollout/sampler.py", "from psychecore.train import losses"),
        ("psychecore/train/grpo.py", "from psychecore.rollout.sampler import Sampler"),
        ("psychecore/train/grpo.py", "from psychecore.rollout import sampler"),
        ("psychecore/train/grpo.py", "    import peft"),
        ("psychecore/reward/score.py", "from psychecore.model import Decoder"),
        ("psychecore/curate/quality.py", "from psychecore.rollout.sampler import Sampler"),
        ("psychecore/curate/quality.py", "from psychecore.reward.answer import parse_answer"),
        ("psychecore/curate/rationale.py", "from psychecore.reward.score import score_group"),
        ("psychecore/curate/select.py", "from psychecore.reward.score import score_group"),
        ("psychecore/evaluate/choice.py", "import transformers.utils"),
        ("psychecore/evaluate/choice.py", "from benchmarks import rollouts"),
        ("psychecore/runtime.py", "from psychecore.model import Decoder"),
        ("psychecore/runtime.py", "import grpo"),
        ("psychecore/novel/thing.py", "import os"),
        ("psychecore/__init__.py", "import trl"),
        ("psychecore/__init__.py", "importlib.import_module('datasets')"),
        ("kernels/swiglu.py", "from psychecore.model import fused"),
        ("kernels/swiglu.py", "from ..model import fused"),
        ("recipes/grpo.py", "from accelerate import Accelerator"),
        ("recipes/grpo.py", "from tests.conftest import REPO"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path: Path, path: str, line: str) -> None:
    write(tmp_path, path, line)
    assert [violation.split(":")[0] for violation in violations(tmp_path)] == [path]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("psychecore/__init__.py", "from psychecore.train.losses import grpo_loss"),
        ("psychecore/model/fused.py", "from psychecore import kernels"),
        ("psychecore/model/decoder.py", "from . import fused"),
        ("psychecore/train/grpo.py", "from psychecore.rollout.trajectory import Group"),
        ("psychecore/curate/generator.py", "from psychecore.rollout.sampler import Sampler"),
        ("psychecore/curate/rationale.py", "from psychecore.reward.answer import parse_answer"),
        ("kernels/swiglu.py", "from .common import cdiv"),
        ("recipes/pipeline.py", "import grpo, psychecore as pc"),
    ],
)
def test_a_right_arrow_is_let_through(tmp_path: Path, path: str, line: str) -> None:
    write(tmp_path, path, line)
    assert list(violations(tmp_path)) == []


SAMPLES = """
import sys, psychecore as pc
sampler = pc.Sampler(pc.load_model(sys.argv[1]), pc.load_tokenizer(sys.argv[1]))
sampler.generate([[{"role": "user", "content": "Well?"}]], pc.SamplingParams(max_new_tokens=2))
names = ("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "sympy")
print([name for name in names if name in sys.modules])
"""


def test_who_loads_a_model_and_samples_waits_neither_for_the_compiler_nor_for_fsdp2(workplace: Path) -> None:
    """Each takes a second or more to import; sympy comes with the others, and with operators on meta tensors."""
    command = [sys.executable, "-c", SAMPLES, str(workplace / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def write(root: Path, path: str, line: str) -> None:
    """A tree under `root` with a file of every row of the table, and `line` in the file at `path`."""
    modules = ["kernels/__init__.py", "recipes/grpo.py", "psychecore/__init__.py", "psychecore/rollout/sampler.py"]
    for row in ALLOWED.keys() - {"kernels"}:
        is_file = "." in row or row in SINGLE_FILES
        modules.append(f"psychecore/{row.replace('.', '/')}" + (".py" if is_file else "/__init__.py"))
    for module in modules:
        (root / module).parent.mkdir(parents=True, exist_ok=True)
        (root / module).touch()
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("if True:\n" + line if line.startswith(" ") else line)


def violations(root: Path) -> Iterator[str]:
    """Each forbidden import under `root`, as "file:line: what"."""
    recipes = {path.stem for path in (root / "recipes").glob("*.py")} - set(sys.stdlib_module_names)
    for folder, name in PRODUCT.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            module = ".".join([name, *(part for part in parts if part != "__init__")])
            package = module if parts[-1] == "__init__" else module.rpartition(".")[0]
            for line, target in imports(root, ast.parse(path.read_text(encoding="utf-8")), package):
                if reason := objection(module, target, recipes):
                    yield f"{path.relative_to(root).as_posix()}:{line}: {module} imports {target}: {reason}"


def objection(module: str, target: str, recipes: set[str]) -> str | None:
    """Why `module` must not import `target`, both as dotted names; None if it may."""
    top = target.split(".")[0]
    if top in FRAMEWORKS:
        return "trainer frameworks are for tests and benchmarks"
    if top == "kernels":
        return "the import name is psychecore.kernels; `kernels` is someone else's distribution"
    if module.startswith("recipes"):
        return "recipes import psychecore and each other" if top in OUTSIDE - {"recipes"} else None
    if top in OUTSIDE | recipes:
        return "the library knows no recipe, test or benchmark"
    if module == "psychecore":
        return None  # the facade: it gathers the public names
    row = max((row for row in ALLOWED if covers(f"psychecore.{row}", module)), key=len, default=None)
    if row is None:
        return "this file has no row in ALLOWED"
    own = row.split(".")[0]
    if top != "psychecore" or any(covers(f"psychecore.{allowed}", target) for allowed in [own, *ALLOWED[row]]):
        return None
    return f"{row} may import {', '.join(ALLOWED[row]) or 'no other part'}"


def covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imports(root: Path, tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in the file, also in functions and by importlib with a literal name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:  # `from a import b` imports a.b where that is a module, else a
                yield node.lineno, f"{base}.{alias.name}" if is_module(root, f"{base}.{alias.name}") else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, name) for name in names if isinstance(name, str))


def is_module(root: Path, name: str) -> bool:
    if covers("psychecore.kernels", name):
        name = name.removeprefix("psychecore.")
    path = root / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
