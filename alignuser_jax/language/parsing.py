"""Strict reading of replies from back ends that cannot constrain what they write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignuser_jax.language.answers import AnswerLines, json_answer, json_value
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Message, Request

REPROMPT = "You have one more chance to provide the correct answer."
"""Said once after a reply that cannot be read (METHOD.md section 3, the paper's sentence)."""


class ReplyError(ValueError):
    """A reply that does not hold what was asked; the message says what is wrong with it."""


def parse_answer(text: str, answer: AnswerLines) -> tuple[int, ...]:
    """The alternative taken in each answer line. The answer is the reply's last
    `len(answer)` lines that are not blank, each exactly one alternative; what stands before
    is reasoning. Space around a line does not count, and lines end with newlines only (a title
    may hold other separators). ReplyError otherwise."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) < len(answer):
        raise ReplyError(f"the reply has {len(lines)} lines, expected at least {len(answer)}")
    choices = []
    for number, (line, alternatives) in enumerate(
        zip(lines[len(lines) - len(answer) :], answer, strict=True), 1
    ):
        bare = [alternative.strip() for alternative in alternatives]
        if line not in bare:
            raise ReplyError(
                f"answer line {number} of {len(answer)} is {line!r}, "
                f"expected one of: {', '.join(alternatives)}"
            )
        choices.append(bare.index(line))
    return tuple(choices)


def parse_json(text: str, fields: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
    """The object in a reply to a `json_answer` of these fields. ReplyError as above."""
    values = {name: list(values) for name, values in fields.items()}
    return json_value(parse_answer(text, json_answer(values)), values)


def read_choices(
    completion: Completion, answer: AnswerLines
) -> tuple[tuple[int, ...] | None, str]:
    """The alternatives taken, or `None` and why there are none."""
    if completion.finish_reason == "error":
        return None, completion.error or "the model failed without saying why"
    if not completion.choices:
        try:
            return parse_answer(completion.text, answer), ""
        except ReplyError as error:
            return None, str(error)
    sizes = [len(alternatives) for alternatives in answer]
    if len(completion.choices) != len(sizes) or not all(
        0 <= choice < size for choice, size in zip(completion.choices, sizes, strict=False)
    ):
        return None, f"choices {completion.choices} do not fit {sizes} alternatives"
    return completion.choices, ""


def ask_again(request: Request, reply: str) -> Request:
    """The request after a reply that cannot be read: the conversation with it and `REPROMPT`,
    under a key of its own."""
    said = (Message.of("assistant", reply), Message.of("user", REPROMPT))
    key = stable_key(request.key, "again")
    return replace(request, messages=(*request.messages, *said), key=key)


def answer_text(choices: Sequence[int], answer: AnswerLines) -> str:
    """The answer lines of these choices."""
    return "\n".join(lines[choice] for lines, choice in zip(answer, choices, strict=True))


def final_lines(text: str, answer: AnswerLines) -> str:
    """A reply without its reasoning, as it stays in the conversation. ReplyError as above."""
    return answer_text(parse_answer(text, answer), answer)


def parse_tags(text: str, tags: Sequence[str]) -> dict[str, str]:
    """`TAG: value` lines as a mapping. Every tag must come once, in order, with a value; a
    value may run over several lines. Text before the first tag is dropped. Tags are
    `prompts.ITEM_TAGS` or `prompts.TRAJECTORY_TAGS`."""
    mark = re.compile(rf"^[ \t]*({'|'.join(map(re.escape, tags))}):", re.MULTILINE)
    found = list(mark.finditer(text))
    if [match.group(1) for match in found] != list(tags):
        raise ReplyError(
            f"the reply has the tags {[match.group(1) for match in found]}, "
            f"expected {list(tags)}, each once and at the start of a line"
        )
    ends = [match.start() for match in found[1:]] + [len(text)]
    values = {
        match.group(1): " ".join(text[match.end() : end].split())
        for match, end in zip(found, ends, strict=True)
    }
    if empty := [tag for tag, value in values.items() if not value]:
        raise ReplyError(f"nothing stands after {', '.join(empty)}")
    return values


def parse_alternatives(text: str, valid: Sequence[str], taken: str, k: int) -> list[str]:
    """At most `k` distinct valid actions other than `taken`, in the order of the reply's lines;
    lines that are none are ignored, ReplyError where no line is one."""
    lines = dict.fromkeys(line.strip() for line in text.splitlines())
    actions = [line for line in lines if line in valid and line != taken]
    if not actions:
        raise ReplyError(f"no line is a valid action other than {taken}: {text!r}")
    return actions[:k]
