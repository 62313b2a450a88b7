"""Prompts files: filled once, and errors that name file and table."""

from __future__ import annotations

from pathlib import Path

import pytest

from psychecore.curate.prompts import load_prompts

GOOD = 'version = 2\n[judge.en]\nsystem = "You judge."\nuser = "Q: {question} / {passage}"\n'


def test_placeholders_are_filled_in_one_pass(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(GOOD)
    prompts = load_prompts(tmp_path / "p.toml")
    assert prompts.version == 2
    system, user = prompts.messages("judge", "en", question="what is {passage}? \\1", passage="P")
    assert system == {"role": "system", "content": "You judge."}
    assert user == {"role": "user", "content": "Q: what is {passage}? \\1 / P"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("judge", "zh", {}), r"p\.toml: no table \[judge\.zh\]"),
        (("author", "en", {}), r"no table \[author\.en\]"),
        (("judge", "en", {"question": "a"}), r"\[judge\.en\]: placeholder \{passage\} has no value"),
    ],
)
def test_what_is_missing_or_too_much_is_named(
    arguments: tuple[str, str, dict[str, str]], message: str, tmp_path: Path
) -> None:
    (tmp_path / "p.toml").write_text(GOOD)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / "p.toml").messages(arguments[0], arguments[1], **arguments[2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[judge.en]\nuser = 'x'", "version is None"),
        ("version = true", "version is True"),
        ("version = 1\n[judge]\nuser = 'x'", r"\[judge\.user\]"),
        ("version = 1\n[judge.en]\nsystem = 'x'", r"\[judge\.en\]"),
        ("version = 1\n[judge.en]\nuser = ' '", "only non-empty texts"),
        ("version =", r"p\.toml: "),
    ],
)
def test_a_bad_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / "p.toml")
