"""A wrapper of `tokenizers`: safe encoding of untrusted text, chat rendering with loss mask, stop ids, valid ids.

Special tokens ("<|im_start|>") structure a conversation, so no text of a user, a row or a model may become one.
Rendering therefore knows which characters came from where: in every message, characters that are or could become part
of a special token are exchanged for private-use characters, the template is rendered, the text is split at the special
tokens that remain (only the template can have written them), and the rest is restored and encoded as plain text.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from psychecore.text.chat import OPEN, ChatTemplate, Message, check_messages, opens_thinking, texts_in
from psychecore.text.turns import taught_spans
from psychecore.untrusted import MAX_JSON, local_or_hub, read_json, within

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
GENERATION = "generation_config.json"
MAX_VOCABULARY = 10_000_000  # ids; one list element each, so a file that names id 2^32 - 1 would fill the memory
PRIVATE_BLOCKS = [*range(0xE000, 0xF800, 0x100), *range(0xF0000, 0xFFF00, 0x100), *range(0x100000, 0x10FF00, 0x100)]


@dataclass(frozen=True)
class Encoded:
    """A rendered conversation: ids, for each whether the loss falls on it, and the text.

    `fault` says which of an assistant's words the loss should fall on and can't, and why; empty where there are none.
    """

    ids: list[int]
    loss_mask: list[bool]
    text: str
    fault: str = ""


class Tokenizer:
    """Text to ids and back, for one model folder. See `load_tokenizer`."""

    def __init__(self, folder: Path, thinking: bool | None = None):
        self.folder = folder
        self._tokenizer = _read_tokenizer(within(folder, "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True  # text that looks like a special token is encoded as text
        config = read_json(within(folder, "tokenizer_config.json"))
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = {token.content: index for index, token in added.items() if token.special}
        self.special_ids = frozenset(self.specials.values())
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=0) + 1
        if not vocabulary or self.vocab_size > MAX_VOCABULARY:
            raise ValueError(
                f"{folder / 'tokenizer.json'}: its ids end at {self.vocab_size - 1:,}, but must be 1 to "
                f"{MAX_VOCABULARY:,} in number"
            )
        self.valid_ids = [False] * self.vocab_size
        for index in vocabulary.values():
            self.valid_ids[index] = True
        variables = {key: text for key in config if (text := _token_text(config[key])) is not None}
        self._template = _read_template(folder, config, variables)
        self.switches: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        if thinking is not None and len({self._asked(enable_thinking=on) for on in (True, False)}) == 1:
            raise ValueError(f"{folder}: thinking is {thinking}, but the chat template has no switch for it: leave it")
        self._split = re.compile("(" + _any_of(self.specials) + ")")
        self._strips = {t.content: (t.lstrip, t.rstrip) for t in added.values() if t.special and (t.lstrip or t.rstrip)}
        self.stop_ids = self._find_stop_ids(variables)
        self.pad_id = self.specials.get(variables.get("pad_token", ""), min(self.stop_ids, default=0))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; whatever it says, none of them is a special token. Raises ValueError naming the file."""
        ids = self._ids(text)
        if not self.special_ids.isdisjoint(ids):  # a vocabulary that merges plain characters into a special token
            ids = [i for char in text for i in self._ids(char)]
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def render_chat(self, messages: list[Message], add_generation_prompt: bool = False, **variables: Any) -> Encoded:
        """Render the model's chat template and encode it; equal to transformers for text without special tokens.

        The loss mask is true on what an assistant said and on the stop token after it, nothing else; not in a turn of
        "weight" 0, and nowhere in a prompt (add_generation_prompt). `variables` reach the template
        (enable_thinking=False for Qwen3). Raises ValueError for messages that are none, for a folder without template,
        or where the template refuses.
        """
        check_messages(messages)
        if self._template is None:
            raise ValueError(f"{self.folder} has no chat template (chat_template.jinja or in tokenizer_config.json)")
        variables = self.switches | variables
        # a header that holds no special token could be written by anyone, so it is disguised in contents as well
        header, opened = self._generation_header(variables)
        opening = header.strip()
        disguise = _Disguise(messages, [*self.specials, *([opening] if opening else [])])
        disguised = [disguise.apply(message) for message in messages]
        text = self._template.render(disguised, add_generation_prompt, **variables)
        ids: list[int] = []
        mask: list[bool] = []
        spans, fault = [(text, False)], ""
        if not add_generation_prompt:
            spans, fault = taught_spans(text, header, opened, self._stop_pattern(), disguised)
        for piece, trained in spans:
            for part, part_trained in self._cut(piece, trained):
                if part in self.specials:
                    new = [self.specials[part]]
                else:
                    new = self.encode(disguise.restore(part))
                ids += new
                mask += [part_trained] * len(new)
        return Encoded(ids, mask, disguise.restore(text), fault)

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's files, template and generation config into an existing folder; where there is none of
        the latter, write one, so that others stop where this tokenizer does."""
        for name in (*FILES, GENERATION):
            if within(self.folder, name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        if not (folder / GENERATION).exists() and self.stop_ids:
            raw = {"eos_token_id": sorted(self.stop_ids), "pad_token_id": self.pad_id}
            (folder / GENERATION).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")

    def _ids(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # tokenizers raises plain Exception, for example where "[UNK]" has no id
            raise ValueError(f"{self.folder / 'tokenizer.json'} can't encode {text!r:.80}: {error!s:.200}") from None

    def _cut(self, piece: str, trained: bool) -> list[tuple[str, bool]]:
        """Special tokens and the text between; white space that a token swallows (lstrip, rstrip) goes with it."""
        parts = [part for part in self._split.split(piece) if part]
        for i, part in enumerate(parts):
            left, right = self._strips.get(part, (False, False))
            if left and i > 0:
                parts[i - 1] = parts[i - 1].rstrip()
            if right and i + 1 < len(parts):
                parts[i + 1] = parts[i + 1].lstrip()
        return [(part, trained) for part in parts if part]

    def _asked(self, add_generation_prompt: bool = True, **variables: Any) -> str:
        asked = [{"role": "user", "content": "x"}]
        return "" if self._template is None else self._template.render(asked, add_generation_prompt, **variables)

    def _generation_header(self, variables: dict[str, Any]) -> tuple[str, str]:
        """What the template writes to open an assistant's turn, and the think block that it opens in it, if it does.

        They are told apart since earlier turns are rendered without thinking, and a content may begin with the tag.
        """
        plain = {k: v for k, v in variables.items() if k != "enable_thinking"}
        without, prompt = (self._asked(add, **plain) for add in (False, True))
        # they share a beginning; a template may end what is no prompt in a token of its own
        at = next((i for i, char in enumerate(prompt) if not without.startswith(char, i)), len(prompt))
        at = next((m.start() for m in self._split.finditer(prompt) if m.start() < at < m.end()), at)
        header = prompt[at:]
        at = header.rfind(OPEN) if opens_thinking(header) else len(header)
        return header[:at], header[at:]

    def _stop_pattern(self) -> re.Pattern[str]:
        stops = [text for text, index in self.specials.items() if index in self.stop_ids]
        return re.compile(_any_of(stops))

    def _find_stop_ids(self, variables: dict[str, str]) -> frozenset[int]:
        """The ids of generation_config.json, the eos token, and what ends an assistant's turn in the template."""
        path = within(self.folder, GENERATION)
        found = read_json(path).get("eos_token_id") if path.is_file() else None
        given = found if isinstance(found, list) else [] if found is None else [found]
        for index in given:
            if not isinstance(index, int) or isinstance(index, bool) or index < 0:
                raise ValueError(f"{path}: eos_token_id is {found!r:.80}, but must be an id or a list of ids")
        stops = set(given)
        if variables.get("eos_token") in self.specials:
            stops.add(self.specials[variables["eos_token"]])
        if self._template is not None:
            turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "qqq"}]
            try:
                after = self._template.render(turns, False).rpartition("qqq")[2]
            except ValueError as error:
                raise ValueError(f"{self.folder}: {error}") from None
            match = self._split.search(after)
            if match:
                stops.add(self.specials[match.group()])
        return frozenset(stops)


def load_tokenizer(source: str | os.PathLike[str], thinking: bool | None = None) -> Tokenizer:
    """Read the tokenizer of a local model folder or a hub id.

    `thinking` is the switch of templates that have one (Qwen3's enable_thinking) in all that is rendered. Raises
    FileNotFoundError or ValueError, naming the file, for what is missing or damaged.
    """
    return Tokenizer(local_or_hub(source, "tokenizer", [*FILES, GENERATION]), thinking)


class _Disguise:
    """Exchanges characters of messages that are, or at a field's edge could become, part of a special token."""

    def __init__(self, messages: list[Message], specials: list[str]):
        used = set("".join(texts_in(messages)))
        chars = sorted(set("".join(specials)))
        block = next((b for b in PRIVATE_BLOCKS if not any(chr(b + i) in used for i in range(len(chars)))), None)
        if block is None or len(chars) > 0x100:
            raise ValueError("the messages use every private-use character, so they can't be told from the template")
        self._to = {ord(char): chr(block + i) for i, char in enumerate(chars)}
        self._back = {block + i: char for i, char in enumerate(chars)}
        self._specials = specials
        self._whole = re.compile(_any_of(specials))
        self._longest = max(map(len, specials), default=0)

    def apply(self, message: Message) -> dict[str, Any]:
        return {key: self._nested(value) if key != "role" else value for key, value in message.items()}

    def restore(self, text: str) -> str:
        return text.translate(self._back)

    def _nested(self, value: Any) -> Any:
        """Texts inside tool calls and the like are no safer than contents: a template writes them as well."""
        if isinstance(value, dict):
            return {self._key(key): self._nested(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._nested(item) for item in value]
        return self._field(value) if isinstance(value, str) else value

    def _key(self, key: Any) -> Any:
        """Names such as "type" are what a template looks up, and no piece that could complete a token: only whole
        tokens in them are exchanged."""
        if isinstance(key, str) and key.isidentifier():
            return self._whole.sub(lambda match: match.group().translate(self._to), key)
        return self._nested(key)

    def _field(self, text: str) -> str:
        text = self._whole.sub(lambda match: match.group().translate(self._to), text)
        core = text.strip()
        start = text.find(core) if core else 0
        head, tail = text[:start], text[start + len(core) :]
        if len(core) <= self._longest and any(core in special for special in self._specials):
            return head + core.translate(self._to) + tail
        left = max((k for s in self._specials for k in range(1, len(s)) if core.startswith(s[-k:])), default=0)
        right = max((k for s in self._specials for k in range(1, len(s)) if core.endswith(s[:k])), default=0)
        middle = core[left : len(core) - right]
        return head + core[:left].translate(self._to) + middle + core[len(core) - right :].translate(self._to) + tail


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; psychecore reads the fast tokenizer's single file")
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, but at most {MAX_JSON:,} are read")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"{path} is not a tokenizer file: {error!s:.200}") from None


def _read_template(folder: Path, config: dict[str, Any], variables: dict[str, str]) -> ChatTemplate | None:
    path = within(folder, "chat_template.jinja")
    try:
        if path.is_file():
            return ChatTemplate(path.read_text(encoding="utf-8"), variables)
        path = folder / "tokenizer_config.json"
        source = config.get("chat_template")
        if isinstance(source, list):  # several by name
            named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
            source = named.get("default")
        if source is not None and not isinstance(source, str):
            raise ValueError(f"chat_template is {source!r:.80}, but must be a text")
        return None if source is None else ChatTemplate(source, variables)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _any_of(texts: Iterable[str]) -> str:
    """A pattern for any of the texts, the longest first; without texts it matches nothing."""
    return "|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True))) or "(?!)"


def _token_text(value: Any) -> str | None:
    """A special token in tokenizer_config.json, as a text or as an object with "content"."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
