"""Constrain a server's reply to one line per answer entry, each one of its alternatives.

| mode | what is sent | understood by |
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
from collections.abc import Sequence
from typing import Any, Literal

from alignuser_jax.language.answers import AnswerLines
from alignuser_jax.language.parsing import ReplyError, answer_text

Mode = Literal["vllm", "guided", "sglang", "json_schema", "none"]
"""How answers are constrained; see the table above."""

MODES: tuple[Mode, ...] = ("vllm", "guided", "sglang", "json_schema", "none")
"""Every mode, in the order in which they are tried."""

PROBE: AnswerLines = (("quartz 7351",),)
"""An answer that no model gives by itself: a server that gives it obeys the constraint."""


LINE_CHARACTERS = 6
"""Characters of a line's text that are allowed for each of its tokens; English has some 4.5."""

CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
"""Fields by which vLLM and SGLang go on with the reply that ends the messages."""

BEGIN_WITH = "Begin your reply with: {start}"
"""How a server that cannot go on with a reply is asked for its start."""


def constraint(mode: Mode, answer: AnswerLines) -> dict[str, Any]:
    """Return the fields of a chat completion's body that constrain the reply to the answer.

    Example:
        >>> constraint("vllm", (("RATING: 1", "RATING: 2"),))
        {'extra_body': {'structured_outputs': {'choice': ['RATING: 1', 'RATING: 2']}}}
    """
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
        schema = {"name": "answer", "strict": True, "schema": reply_schema(answer)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {}


def pattern(answer: AnswerLines) -> str:
    """Return a regular expression of exactly the answers, in syntax that all servers share."""
    lines = ("|".join(map(_quoted, line)) for line in answer)
    return r"\n".join(f"({line})" for line in lines)


def continues(mode: Mode) -> bool:
    """Whether servers of this kind go on with a reply that ends the messages."""
    return mode in ("vllm", "guided", "sglang")


def lines_constraint(
    mode: Mode, lines: Sequence[str], line_tokens: int, start: str
) -> dict[str, Any]:
    r"""Return the fields that keep a reply to one line per entry of `lines`, where they can.

    Args:
        mode: How the server constrains replies.
        lines: What each line begins with.
        line_tokens: The most tokens of a line after that.
        start: The part of the reply that is already there.

    Example:
        >>> lines_constraint("sglang", ("WHY:", "LESSON:"), 2, "WHY: I")
        {'extra_body': {'regex': '[^\\n]{1,12}\\nLESSON:[^\\n]{1,12}'}}
    """
    if not continues(mode):
        return {}
    text = rf"[^\n]{{1,{line_tokens * LINE_CHARACTERS}}}"
    parts = [("" if start and n == 0 else _quoted(line)) + text for n, line in enumerate(lines)]
    regex = r"\n".join(parts)
    if mode == "vllm":
        return {"extra_body": {"structured_outputs": {"regex": regex}}}
    return {"extra_body": {"guided_regex" if mode == "guided" else "regex": regex}}


def _quoted(text: str) -> str:
    """Return a regular expression of the text, in syntax that all servers share."""
    return re.sub(r"([\\.^$*+?()\[\]{}|])", r"\\\1", text)


def reply_schema(answer: AnswerLines) -> dict[str, Any]:
    """Return the JSON schema of an object with one enum per answer line."""
    names = [f"line_{number}" for number in range(1, len(answer) + 1)]
    lines = [{"type": "string", "enum": list(alternatives)} for alternatives in answer]
    return {
        "type": "object",
        "properties": dict(zip(names, lines, strict=True)),
        "required": names,
        "additionalProperties": False,
    }


def as_lines(mode: Mode, text: str, answer: AnswerLines) -> str:
    """Return a constrained reply as answer lines.

    Raises:
        ReplyError: The reply should be a JSON object of the answer, and is not.
    """
    if mode != "json_schema":
        return text
    try:
        values = json.loads(text)
        choices = [line.index(values[f"line_{n}"]) for n, line in enumerate(answer, 1)]
    except (ValueError, KeyError, TypeError) as error:
        raise ReplyError(f"the reply is no object of the answer lines: {text!r}") from error
    return answer_text(choices, answer)


def token_limit(mode: Mode, answer: AnswerLines) -> int:
    """Return a number of tokens that fits any of the answers: no token is below one byte."""
    spell = json.dumps if mode == "json_schema" else str  # JSON has escapes
    longest = sum(max(len(spell(a).encode()) for a in line) + 1 for line in answer)
    return longest + 16 + (16 * len(answer) if mode == "json_schema" else 0)
