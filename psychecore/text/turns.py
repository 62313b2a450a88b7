"""Which part of a rendered conversation the loss falls on: an assistant's words and the stop token after them."""

from __future__ import annotations

import re
from typing import Any


def taught_spans(
    text: str, header: str, opened: str, stop: re.Pattern[str], messages: list[dict[str, Any]]
) -> tuple[list[tuple[str, bool]], str]:
    """A rendered conversation in pieces of (text, trained), an assistant's words and the stop token being trained; and
    what is wrong with the first turn of which that can't be said.

    A turn starts behind the template's generation header and ends with the first stop token. What the template itself
    puts before the words (an empty think block, or the tag with which it asks for one) is not trained.
    """
    spans: list[tuple[str, bool]] = []
    place, faults = 0, list[str]()
    for number, message in enumerate(messages, 1):
        if message["role"] != "assistant":
            continue
        start = text.find(header, place) if header else -1
        if start < 0:
            faults.append(
                f"message {number}: the chat template opens this turn of the assistant with nothing ([INST] templates "
                "do), or not as it opens the next, so that its words cannot be told apart"
            )
            break
        start += len(header)
        before = opened if text.startswith(opened, start) else ""
        start += len(before)
        end = stop.search(text, start)
        if end is None or text.find(header, start, end.start()) >= 0:
            faults.append(
                f"message {number}: the chat template ends this turn of the assistant in no stop token, so the model "
                "would not learn where to stop: give it another chat template"
            )
            break
        body, words = text[start : end.start()].rstrip(), message["content"].strip()
        trained, plain, rendered = message.get("weight") != 0, _dense(words), _dense(body)
        said = {plain, plain.removeprefix("<think></think>")}  # an empty block is no loss
        if trained and message.get("tool_calls") and rendered == plain:
            trained = False
            faults.append(f"message {number}: the chat template leaves out the tool calls, so they would not be learnt")
        elif said.isdisjoint((rendered, _dense(before) + rendered)):
            if words and body.endswith(words):
                start += len(body) - len(words)  # the template put something before the words
            elif trained and not (message.get("tool_calls") and plain in rendered):
                trained = False
                faults.append(
                    f"message {number}: the chat template leaves out or changes part of these words (many leave out "
                    "thinking, of all turns or all but the last), so they would not be learnt: write them as it does, "
                    'give the message "weight": 0, which trains nothing of it, or give the model another chat template'
                )
        spans += [(text[place:start], False), (text[start : end.end()], trained)]
        place = end.end()
    return [*spans, (text[place:], False)], next(iter(faults), "")


def _dense(text: str) -> str:
    return "".join(text.split())
