"""Scripted models for the tests of the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from psychecore.curate.generator import Reply, Request


def said(texts: Sequence[str]) -> list[Reply]:
    """Replies with these texts."""
    return [Reply(text, None) for text in texts]


class Scripted:
    """A generator whose reply is a function of the request; keeps what it was asked."""

    identity = "scripted"

    def __init__(self, reply: Callable[[Request], str], name: str = "scripted"):
        self.reply, self.name, self.asked = reply, name, list[Request]()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += requests
        return said([self.reply(request) for request in requests])
