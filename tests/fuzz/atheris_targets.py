"""The fuzz tests' surfaces under atheris, which looks for inputs by coverage: `make fuzz`, not part of the tests.

    python tests/fuzz/atheris_targets.py answers -max_total_time=120

A crash is an input that broke a promise; put it into the tests as an @example. A target ends with exit code 0 or 1.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "recipes"), str(REPO / "tests" / "fuzz")]
with atheris.instrument_imports(include=["psychecore", "cli", "jinja2"]):
    from attempt import attempt
    from cli import dump_config, load_config
    from sft import SftRecipe

    from psychecore.data.records import Question, read_conversations, read_questions
    from psychecore.model.config import ModelConfig
    from psychecore.model.pretrained import load_model
    from psychecore.model.weight_files import INDEX
    from psychecore.reward.answer import parse_answer
    from psychecore.reward.correctness import correctness_score
    from psychecore.reward.format import format_score
    from psychecore.text import meter
    from psychecore.text.chat import ChatTemplate, check_messages

FOLDER = Path(tempfile.mkdtemp())
QUESTION = Question("q", "?", {"A": "x", "B": "y", "C": "z"}, "AC", "multiple")
CONFIG = '{"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, '
CONFIG += '"num_attention_heads": 2}'


def answers(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    parsed = parse_answer(text, "ABCD")
    assert parsed.letters is None or set(parsed.letters) <= set("ABCD")
    assert 0 <= correctness_score(text, QUESTION, "elastic") <= 1
    assert format_score(text) in (0.0, 1.0)


def rows(data: bytes) -> None:
    path = FOLDER / "rows.jsonl"
    path.write_bytes(data)
    for read in (read_questions, read_conversations):
        _, refusal = attempt(lambda read=read: read(path))
        assert not refusal or refusal.startswith(str(path))


def preset(data: bytes) -> None:
    path = FOLDER / "preset.toml"
    path.write_bytes(data)
    config, _ = attempt(lambda: load_config(SftRecipe, ["--config", str(path)], None), limit=4000)
    if config is not None:
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(SftRecipe, ["--config", str(path)], None) == config


def template(data: bytes) -> None:
    meter.MAX_WORK, meter.MAX_SECONDS = 1_000_000, 5.0
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    source = data.decode("utf-8", "replace")
    text, refusal = attempt(lambda: ChatTemplate(source, {"eos_token": "</s>"}).render(messages, True))
    assert "seconds" not in refusal
    assert text is None or "object at 0x" not in text or "object at 0x" in source
    assert messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def folder(data: bytes) -> None:
    for name in ("config.json", INDEX):
        (FOLDER / "config.json").write_text(CONFIG)
        (FOLDER / name).write_bytes(data)
        loaded, refusal = attempt(lambda: load_model(FOLDER))
        assert loaded is None
        assert str(FOLDER) in refusal
        if name == "config.json":  # a single file is read without an index
            (FOLDER / "model.safetensors").rename(FOLDER / "model-1.safetensors")
    (FOLDER / "model-1.safetensors").rename(FOLDER / "model.safetensors")
    (FOLDER / INDEX).unlink()
    attempt(lambda: ModelConfig.from_folder(FOLDER))


def weights(data: bytes) -> None:
    (FOLDER / "config.json").write_text(CONFIG)
    (FOLDER / "model.safetensors").write_bytes(data)
    loaded, refusal = attempt(lambda: load_model(FOLDER))
    assert loaded is None
    assert str(FOLDER) in refusal


def chat(data: bytes) -> None:
    try:
        messages = json.loads(data)
    except (ValueError, RecursionError):
        return
    attempt(lambda: check_messages(messages))


TARGETS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f for f in (answers, rows, preset, template, folder, weights, chat)
}
SEEDS = {
    "answers": ["<think>x</think>The answer is B, not A.", "答案：A、C", "1. A\n2. B is wrong", "\\boxed{AC}"],
    "rows": [json.dumps(vars(QUESTION)), '{"id": "a", "messages": [{"role": "assistant", "content": "x"}]}'],
    "preset": [(REPO / "recipes" / "presets" / "demo.toml").read_text(encoding="utf-8"), "[sft]\nmodel = 'x'"],
    "template": [
        "{% for m in messages %}{{ '<s>' ~ m.role + m['content'] | trim }}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(9) %}{% set ns.x = ns.x + [i] %}{% endfor %}{{ ns.x[1:] }}",
        "{% macro m(a) %}{{ a | join(',') | upper }}{% endmacro %}{{ m(['a', 'b']) }}{{ {'a': 1} | tojson(indent=2) }}",
        "{{ 'a-b'.split('-')[-1].strip('b') }}{{ '%s' % 1 }}{{ '{}'.format(1) if x is defined else 2 ** 3 }}",
    ],
    "folder": [CONFIG, '{"weight_map": {"a": "b.safetensors"}}', CONFIG[:-1] + ', "rope_scaling": {"type": "yarn"}}'],
    "weights": ['{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'],
    "chat": ['[{"role": "user", "content": "x"}]'],
}


def main() -> None:
    """Run one target by name; all further arguments are libFuzzer's."""
    name = sys.argv.pop(1)
    seeds = Path(tempfile.mkdtemp())
    for i, seed in enumerate(SEEDS[name]):
        header = len(seed).to_bytes(8, "little") if name == "weights" else b""
        (seeds / str(i)).write_bytes(header + seed.encode() + (b"\0\0\0\0" if header else b""))
    atheris.Setup([*sys.argv, str(seeds)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
