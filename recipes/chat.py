"""A chat in the terminal with a trained folder.

    python recipes/chat.py runs/demo/grpo
    python recipes/chat.py Qwen/Qwen2.5-0.5B-Instruct --system none --think hide

Give a run folder (its export/ is taken), a Hugging Face folder or a hub id. Answers appear as they are sampled; Ctrl-C
stops one. The thought is shown dimmed or hidden, and stays out of the later turns' context, as reasoning models expect
it. The oldest turns leave the context when it is full. Reads lines from a pipe as well.

This is for looking at research models. It shows help lines where words signal acute risk, and that is all it can do.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from chat_display import Screen
from chat_help import HELP_LINES, NOTICE, help_for
from cli import main_guard

from psychecore.data.prompts import SYSTEM
from psychecore.data.records import Conversation
from psychecore.durable import create_file
from psychecore.model.pretrained import load_model
from psychecore.rollout.sampler import Sampler
from psychecore.rollout.sampling import SamplingParams
from psychecore.runtime import device_kind
from psychecore.text.chat import OPEN, Message, opens_thinking, split_think
from psychecore.text.tokenizer import Encoded, Tokenizer, load_tokenizer

COMMANDS = {
    "/help": "this list, and where to find help",
    "/reset": "forget the conversation",
    "/system [TEXT|en|zh|none]": "show or set the system prompt and start anew; en, zh: that of the training questions",
    "/params [NAME=VALUE ...]": "show or set how it samples: temperature=0.7 top_p=0.9 max_new_tokens=512 ...",
    "/think dim|hide": "show the thought dimmed, or hide it",
    "/save [FILE]": "write the conversation as a row of a training file; never over an existing file",
    "/quit": "end (so does Ctrl-D)",
}


class Quit(Exception):
    """The user is done."""


@dataclass
class Chat:
    """A conversation with a model, and the commands on it."""

    sampler: Sampler
    screen: Screen
    params: SamplingParams
    system: str | None = None
    source: str = ""
    messages: list[Message] = field(default_factory=list)
    turns: int = 0  # of the whole session: the random numbers of an answer depend on (seed, its turn)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.sampler.tokenizer

    def handle(self, line: str) -> None:
        """A line that the user entered: a command, or a message. Raises Quit."""
        if line.startswith("/") and not line.startswith("//"):
            self._command(line)
        elif line.strip():
            self.answer(line.removeprefix("/") if line.startswith("//") else line)

    def answer(self, message: str) -> None:
        """Answer a message, as long as no Ctrl-C comes; what was said until then stays in the conversation."""
        if lines := help_for(message):
            self.screen.say(lines)
        asked = [*self.messages, Message(role="user", content=message)]
        prompt = self._prompt(asked)
        if prompt is None:
            return
        inside = opens_thinking(prompt.text)
        said, self.turns = "", self.turns + 1
        self.screen.begin(inside)
        stopped, reason = False, ""
        try:
            with closing(self.sampler.stream([prompt.ids], self.params, prompt_keys=[self.turns])) as pieces:
                for piece in pieces:
                    said += piece.text
                    self.screen.write(piece.text)
                    reason = piece.finish_reason or ""
        except KeyboardInterrupt:
            stopped = True
        self.screen.end()
        if stopped or reason == "length":
            self.screen.say("(stopped)" if stopped else "(cut at max_new_tokens: /params raises it)")
        if not said.strip():
            self.screen.say("(no answer: the message is not kept)")
            return
        reply = OPEN + said if inside else said
        self.messages = [*asked, Message(role="assistant", content=reply)]
        if not lines and (lines := help_for(reply)):
            self.screen.say(lines)

    def _prompt(self, asked: list[Message]) -> Encoded | None:
        """The conversation as the model reads it: without earlier thoughts, and without turns that no longer fit."""
        turns = [
            Message(role=one["role"], content=_spoken(one["content"])) if one["role"] == "assistant" else one
            for one in asked
        ]
        head = [Message(role="system", content=self.system)] if self.system else []
        room = self.sampler.max_length - self.params.max_new_tokens
        dropped = 0
        while True:
            prompt = self.tokenizer.render_chat([*head, *turns[dropped:]], add_generation_prompt=True)
            if len(prompt.ids) <= room:
                break
            if dropped + 2 >= len(turns):
                self.screen.say(
                    f"This message has {len(prompt.ids)} tokens with its system prompt, but there is room for "
                    f"{max(room, 0)}: shorten it, or lower /params max_new_tokens={self.params.max_new_tokens}."
                )
                return None
            dropped += 2  # a question and its answer
        if dropped:
            self.screen.say(f"(the context is full: the first {dropped // 2} turns are left out of it)")
        return prompt

    # ---- commands

    def _command(self, line: str) -> None:
        if lines := help_for(line[1:]):  # a message that begins with a slash by mistake, or a system prompt
            self.screen.say(lines)
        name, _, rest = line[1:].partition(" ")
        method = getattr(self, f"_{name}", None) if f"/{name}" in {key.split()[0] for key in COMMANDS} else None
        if method is None:
            names = [key.split()[0] for key in COMMANDS]
            near = difflib.get_close_matches(f"/{name}"[:80], names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            self.screen.say(f"There is no command /{name[:40]}: {hint}/help lists them; // begins a message with /.")
            return
        try:
            method(rest.strip())
        except Quit:
            raise
        except Exception as error:  # ~nobody in a path is a RuntimeError, say: no slip may cost the conversation
            self.screen.say(f"{line[:80]}: {' '.join(str(error).split()) or type(error).__name__}")

    def _help(self, rest: str) -> None:
        for name, text in COMMANDS.items():
            self.screen.say(f"  {name:<26} {text}")
        for lines in HELP_LINES.values():
            self.screen.say(lines)

    def _quit(self, rest: str) -> None:
        raise Quit

    def _reset(self, rest: str) -> None:
        self.messages = []
        self.screen.say("The conversation is forgotten.")

    def _system(self, rest: str) -> None:
        if rest:
            self.system, self.messages = system_prompt(rest), []
            self.screen.say("A new conversation begins.")
        self.screen.say(f"System prompt: {self.system or 'none (a template may have its own)'}")

    def _think(self, rest: str) -> None:
        if rest not in ("dim", "hide"):
            raise ValueError("say /think dim or /think hide")
        self.screen.thinking = rest  # type: ignore[assignment]

    def _params(self, rest: str) -> None:
        self.params = change_params(self.params, rest.split())
        shown = {name: value for name, value in asdict(self.params).items() if name != "ignore_stop"}
        self.screen.say("  ".join(f"{name}={value}" for name, value in shown.items()))

    def _save(self, rest: str) -> None:
        if not self.messages:
            raise ValueError("there is nothing to save yet")
        stamp = time.strftime("chat-%Y%m%d-%H%M%S")
        head = [Message(role="system", content=self.system)] if self.system else []
        row = Conversation.from_row(
            Conversation(id=stamp, messages=[*head, *self.messages], source=self.source).to_row()
        )
        path = save_row(row, Path(rest).expanduser() if rest else None)
        self.screen.say(f"Saved {len(self.messages) // 2} turns to {path}")


def _spoken(reply: str) -> str:
    """A reply without its thinking, also where that was cut."""
    return split_think(reply)[1].partition(OPEN)[0].strip() or "..."


def change_params(params: SamplingParams, settings: Sequence[str]) -> SamplingParams:
    """The parameters with NAME=VALUE settings applied. Raises ValueError that names what is wrong."""
    kinds = {one.name: type(getattr(params, one.name)) for one in fields(params) if one.name != "ignore_stop"}
    changes: dict[str, float] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in kinds:
            raise ValueError(f"{setting[:80]!r} is not NAME=VALUE with one of {', '.join(kinds)}")
        try:
            changes[name] = kinds[name](value)
        except ValueError:
            raise ValueError(f"{name} is {value[:80]!r}, but must be a {kinds[name].__name__}") from None
    return replace(params, **changes)  # type: ignore[arg-type]


def save_row(row: Conversation, path: Path | None) -> Path:
    """Write one row to a new file: `path`, or row.id in this folder.

    Raises FileExistsError for a name that is taken, FileNotFoundError for a folder that is not there.
    """
    if path and not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder")
    text = json.dumps(row.to_row(), ensure_ascii=False) + "\n"
    names = [path] if path else [Path(f"{row.id}{more}.jsonl") for more in ("", *(f"-{n}" for n in range(2, 100)))]
    for name in names:
        try:
            create_file(name, [text])
            return name.absolute()
        except FileExistsError:
            continue
    raise FileExistsError(f"{names[0]} exists already, and is left as it is: name another file")


def system_prompt(text: str) -> str | None:
    """What --system and /system mean: a text, en or zh for the training questions' prompt, none."""
    return None if text == "none" else SYSTEM.get(text, text)


def model_folder(path: str) -> str:
    """The export of a run folder, else the folder or hub id itself."""
    export = Path(path) / "export"
    return str(export) if export.is_dir() and not (Path(path) / "config.json").exists() else path


def main(argv: Sequence[str]) -> None:
    """Load the model and chat until /quit or the end of input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="run folder, Hugging Face folder or hub id")
    parser.add_argument("--system", default="none", help="system prompt: a text, en, zh, or none (default)")
    parser.add_argument("--think", choices=("dim", "hide"), default="dim", help="thoughts are shown dimmed, or not")
    parser.add_argument("--thinking", choices=("on", "off"), help="the switch of chat templates that have one (Qwen3)")
    parser.add_argument("--params", nargs="*", default=[], metavar="NAME=VALUE", help="as in /params")
    # one sequence takes as long as its weights take to read, so half the bytes are half the time or a little more
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(argv)
    # the paper's temperature and top-p; its 2,048 tokens would fill small models' context
    params = change_params(SamplingParams(temperature=0.7, top_p=0.9, max_new_tokens=512), options.params)
    device = torch.device(device_kind(options.device, "--device"))
    path = model_folder(options.model)
    tokenizer = load_tokenizer(path, {"on": True, "off": False}.get(options.thinking))
    model = load_model(path, getattr(torch, options.dtype), device)
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    screen = Screen(options.think)
    sampler = Sampler(model, tokenizer, max_slots=1, max_length=model.config.context_length)
    chat = Chat(sampler, screen, params, system_prompt(options.system), source=f"recipes/chat.py with {path}")
    screen.say(f"{path}, {model.config.parameters / 1e6:.0f}M parameters. /help lists the commands.")
    screen.say(NOTICE)
    with suppress(Quit):
        converse(chat)


def converse(chat: Chat) -> None:
    """Read and answer lines until the input ends. Raises Quit."""
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    if tty:
        with suppress(ImportError):
            import readline  # noqa: F401 - input() then edits the line and remembers earlier ones, in memory only
    while True:
        try:
            line = input("\nyou> ") if tty else sys.stdin.readline()
        except EOFError:
            chat.screen.say("")
            return
        except KeyboardInterrupt:
            chat.screen.say("\n(/quit or Ctrl-D ends)")
            continue
        if not tty and not line:
            return
        try:
            chat.handle(line.rstrip("\r\n"))
        except KeyboardInterrupt:
            chat.screen.say("\n(stopped)")
        except ValueError as error:  # what the template refuses, say: the chat goes on
            chat.screen.say(f"error: {error}")


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
