"""Read, strictly, the replies of back ends that cannot constrain what they write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignuser_jax.language.answers import AnswerLines, json_answer, json_value
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Message, Request

REPROMPT = "You have one more chance to provide the correct answer."
"""The turn after a reply that cannot be read: the paper's sentence, used once per question
(docs/method.md section 3)."""


class ReplyError(ValueError):
    """A reply does not hold the answer; the message says what is wrong with it."""


def parse_answer(text: str, answer: AnswerLines) -> tuple[int, ...]:
    """Return the index of the alternative in each answer line of a reply.

    The answer is the last `len(answer)` lines that are not blank; each must be exactly one of
    its line's alternatives. Lines before them are reasoning. Space around a line does not
    count. Lines end with newlines only, since a title may hold other separators.

    Raises:
        ReplyError: The reply has too few lines, or a line is none of the alternatives.

    Example:
        >>> parse_answer("RATING: 4", (("RATING: 3", "RATING: 4"),))
        (1,)
    """
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
    """Return the object in a reply to a `json_answer` of these fields.

    Raises:
        ReplyError: The reply does not end with such an object.
    """
    values = {name: list(values) for name, values in fields.items()}
    return json_value(parse_answer(text, json_answer(values)), values)


def read_choices(
    completion: Completion, answer: AnswerLines
) -> tuple[tuple[int, ...] | None, str]:
    """Return the indices of the alternatives and "", or `None` and why there are none."""
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
    """Return the request to make after a reply that cannot be read.

    It is the conversation with that reply and `REPROMPT`, under a key of its own.
    """
    turns = (Message.of("assistant", reply), Message.of("user", REPROMPT))
    key = stable_key(request.key, "again")
    return replace(request, messages=(*request.messages, *turns), key=key)


def answer_text(choices: Sequence[int], answer: AnswerLines) -> str:
    """Return the answer lines of these choices, joined by newlines."""
    return "\n".join(lines[choice] for lines, choice in zip(answer, choices, strict=True))


def final_lines(text: str, answer: AnswerLines) -> str:
    """Return a reply without its reasoning, as it stays in the conversation.

    Raises:
        ReplyError: The reply cannot be read.
    """
    return answer_text(parse_answer(text, answer), answer)


def parse_tags(text: str, tags: Sequence[str]) -> dict[str, str]:
    """Return the values of `TAG: value` lines by tag.

    A value may run over several lines. Text before the first tag is dropped.

    Args:
        text: The reply.
        tags: `prompts.ITEM_TAGS` or `prompts.TRAJECTORY_TAGS`.

    Raises:
        ReplyError: A tag is missing, comes twice, is out of order or has no value.
    """
    mark = re.compile(rf"^[ \t]*({'|'.join(map(re.escape, tags))}):", re.MULTILINE)
    matches = list(mark.finditer(text))
    if [match.group(1) for match in matches] != list(tags):
        raise ReplyError(
            f"the reply has the tags {[match.group(1) for match in matches]}, "
            f"expected {list(tags)}, each once and at the start of a line"
        )
    ends = [match.start() for match in matches[1:]] + [len(text)]
    values = {
        match.group(1): " ".join(text[match.end() : end].split())
        for match, end in zip(matches, ends, strict=True)
    }
    if empty := [tag for tag, value in values.items() if not value]:
        raise ReplyError(f"there is no text after {', '.join(empty)}")
    return values


def parse_alternatives(text: str, valid: Sequence[str], taken: str, k: int) -> list[str]:
    """Return at most `k` different valid actions other than `taken`, in the reply's order.

    Lines that are no valid action are ignored.

    Raises:
        ReplyError: No line is a valid action other than `taken`.
    """
    lines = dict.fromkeys(line.strip() for line in text.splitlines())
    actions = [line for line in lines if line in valid and line != taken]
    if not actions:
        raise ReplyError(f"no line is a valid action other than {taken}: {text!r}")
    return actions[:k]
