"""What a stage tells a model: messages with placeholders, in a TOML file of recipes/prompts.

    version = 1

    [ask.en]
    system = "You write exam questions."
    user = "Write {count} questions on this passage: {passage}"

`{name}` in braces is filled with the value of that name, in one pass: what a value holds is never read again, so a
passage that says "{count}" stays as it is. Other braces are text.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from psychecore.durable import digest
from psychecore.text.chat import Message

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Prompts:
    """The tables of one file. `version` and `sha256` go into manifests."""

    def __init__(self, path: Path, version: int, tables: dict[str, dict[str, dict[str, str]]]):
        self.path, self.version, self.tables = path, version, tables
        self.sha256 = digest(path)

    def messages(self, name: str, language: str, **values: str) -> list[Message]:
        """The messages of table [name.language]: the system's, if it has one, and the user's.

        Raises ValueError that names file and table where it is absent, or holds a placeholder that has no value.
        """
        table = self.tables.get(name, {}).get(language)
        if table is None:
            known = ", ".join(f"{one}.{two}" for one, tables in self.tables.items() for two in tables)
            raise ValueError(f"{self.path}: no table [{name}.{language}]; there are {known}")

        def fill(found: re.Match[str]) -> str:
            if found[1] not in values:
                raise ValueError(
                    f"{self.path} [{name}.{language}]: placeholder {found[0]} has no value; "
                    f"known are {', '.join(values) or 'none'}"
                )
            return str(values[found[1]])

        return [
            {"role": role, "content": _PLACEHOLDER.sub(fill, table[role])}
            for role in ("system", "user")
            if role in table
        ]


def load_prompts(path: str | Path) -> Prompts:
    """Read a prompts file. Raises ValueError that names file and table for one that is not of this form."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    version = tables.pop("version", None)
    if type(version) is not int or version < 1:
        raise ValueError(f"{path}: version is {version!r}, but must be a whole number from 1")
    if not tables:
        raise ValueError(f"{path}: no tables")
    for name, languages in tables.items():
        if not isinstance(languages, dict):
            raise ValueError(f"{path}: {name} is {languages!r:.80}, but must be tables [{name}.en], [{name}.zh]")
        for language, table in languages.items():
            _check_table(table, f"{path} [{name}.{language}]")
    return Prompts(path, version, tables)


def _check_table(table: Any, place: str) -> None:
    if not isinstance(table, dict) or "user" not in table:
        raise ValueError(f'{place}: {table!r:.80}, but must be a table with "user" and, if it is wanted, "system"')
    for key, value in table.items():
        if key not in ("system", "user") or not isinstance(value, str) or not value.strip():
            raise ValueError(
                f'{place}: {key} is {value!r:.80}; only non-empty texts "system" and "user" may stand here'
            )
