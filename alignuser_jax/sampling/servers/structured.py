"""How servers are told that a reply is one line per answer entry, each one of its alternatives.

| mode | what is sent | by |
|---|---|---|
| `vllm` | `structured_outputs` with `choice` or `regex` | vLLM from 0.12 |
| `guided` | `guided_choice` or `guided_regex` | vLLM before |
| `sglang` | `regex` | SGLang |
| `json_schema` | `response_format`: an object of one enum per line | OpenAI, vLLM, SGLang |
| `none` | nothing; the reply is read strictly | any |
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from alignuser_jax.language.answers import AnswerLines
from alignuser_jax.language.parsing import ReplyError, answer_text

Mode = Literal["vllm", "guided", "sglang", "json_schema", "none"]
MODES: tuple[Mode, ...] = ("vllm", "guided", "sglang", "json_schema", "none")

PROBE: AnswerLines = (("quartz 7351",),)
"""What no model says by itself: a server that answers it has kept to the constraint."""


def constraint(mode: Mode, answer: AnswerLines) -> dict[str, Any]:
    """The fields of a chat completion's body that hold the reply to the answer."""
    if mode == "vllm":
        only = {"choice": list(answer[0])} if len(answer) == 1 else {"regex": pattern(answer)}
        return {"extra_body": {"structured_outputs": only}}
    if mode == "guided":
        if len(answer) == 1:
            return {"extra_body": {"guided_choice": list(answer[0])}}
        return {"extra_body": {"guided_regex": pattern(answer)}}
    if mode == "sglang":
        return {"extra_body": {"regex": pattern(answer)}}
    if mode == "json_schema":
        schema = {"name": "answer", "strict": True, "schema": _schema(answer)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {}


def pattern(answer: AnswerLines) -> str:
    """A regular expression of exactly the answers, in what every engine's dialect shares."""
    lines = ("|".join(re.sub(r"([\\.^$*+?()\[\]{}|])", r"\\\1", a) for a in line)
             for line in answer)  # fmt: skip
    return r"\n".join(f"({line})" for line in lines)


def _schema(answer: AnswerLines) -> dict[str, Any]:
    names = [f"line_{number}" for number in range(1, len(answer) + 1)]
    lines = [{"type": "string", "enum": list(alternatives)} for alternatives in answer]
    return {
        "type": "object",
        "properties": dict(zip(names, lines, strict=True)),
        "required": names,
        "additionalProperties": False,
    }


def as_lines(mode: Mode, text: str, answer: AnswerLines) -> str:
    """A constrained reply as answer lines. ReplyError where a JSON reply is none."""
    if mode != "json_schema":
        return text
    try:
        found = json.loads(text)
        choices = [line.index(found[f"line_{n}"]) for n, line in enumerate(answer, 1)]
    except (ValueError, KeyError, TypeError) as error:
        raise ReplyError(f"the reply is no object of the answer lines: {text!r}") from error
    return answer_text(choices, answer)


def room(mode: Mode, answer: AnswerLines) -> int:
    """Tokens that any of the answers fits into: no token is shorter than a byte."""
    written = json.dumps if mode == "json_schema" else str  # with its escapes
    longest = sum(max(len(written(a).encode()) for a in line) + 1 for line in answer)
    return longest + 16 + (16 * len(answer) if mode == "json_schema" else 0)
