"""Prompts of the curation stages: TOML files with a version, one table a prompt and language.

    version = 1
    [judge.en]
    system = "You judge exam questions."
    user = "Passage: {passage}\n\nQuestion: {question}"

Placeholders are filled in one pass: a text that itself holds "{question}" stays as it is.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psychecore.text.chat import Message

PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True)
class Prompts:
    """The prompts of one file."""

    path: Path
    version: int
    tables: dict[str, dict[str, dict[str, str]]]  # name, language, role

    def messages(self, name: str, language: str, **values: Any) -> list[Message]:
        """The prompt `name` in a language with its placeholders filled.

        Raises ValueError naming file and table for a prompt or language that is not there, a placeholder without a
        value, or a value without a placeholder.
        """
        table = self.tables.get(name, {}).get(language)
        if table is None:
            raise ValueError(f"{self.path} has no table [{name}.{language}]")
        wanted = {found for text in table.values() for found in PLACEHOLDER.findall(text)}
        if wanted != values.keys():
            odd = sorted(wanted ^ values.keys())[0]
            side = "has no value" if odd in wanted else "does not stand in the prompt"
            raise ValueError(f"{self.path} [{name}.{language}]: {{{odd}}} {side}")
        fill = {role: PLACEHOLDER.sub(lambda m: str(values[m[1]]), text) for role, text in table.items()}
        return [Message(role=role, content=fill[role]) for role in ("system", "user") if role in fill]


def load_prompts(path: str | Path) -> Prompts:
    """Read a prompts file. Raises FileNotFoundError, or ValueError naming file and table."""
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    version = raw.pop("version", None)
    if type(version) is not int:
        raise ValueError(f"{path}: version is {version!r}, but must be a whole number")
    for name, languages in raw.items():
        if not isinstance(languages, dict) or not languages:
            raise ValueError(f"{path}: [{name}] must hold tables by language, such as [{name}.en]")
        for language, table in languages.items():
            if not isinstance(table, dict) or "user" not in table or not set(table) <= {"system", "user"}:
                raise ValueError(f"{path} [{name}.{language}]: must hold user, and may hold system")
            if not all(isinstance(text, str) and text.strip() for text in table.values()):
                raise ValueError(f"{path} [{name}.{language}]: texts must not be empty")
    return Prompts(path, version, raw)
