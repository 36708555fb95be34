"""Requests to servers, and an address where nobody is."""

import socket

from alignuser_jax.records import Message, Request

RATE = (("RATING: 1", "RATING: 2", "RATING: 3"),)


def ask(text="Rate it.", **options):
    messages = (Message.of("system", "s"), Message.of("user", text))
    return Request(messages, "rate", **({"answer": RATE} | options))


def say(text="Tell me.", **options):
    return ask(text, answer=(), **options)


def nobody() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"
