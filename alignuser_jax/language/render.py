"""Render messages as tokens and weights, in the one way that training and sampling share.

Chat templates cannot be trusted to say which tokens are trained (Qwen's has no
`{% generation %}`), so the weights come from the spans of the messages, mapped through offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from alignuser_jax.language.tokenizer import (
    HuggingFaceTokenizer,
    Offsets,
    SentencePieceTokenizer,
    TextTokenizer,
)
from alignuser_jax.records import Message, Span

MESSAGE_TOKENS = 5
"""The tokens that the chat templates of ChatML and Llama 3 put around a message."""
MOST_MESSAGE_TOKENS = 8
"""The most tokens that a chat template is assumed to put around a message."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as n tokens.

    Attributes:
        tokens: int32[n]; the token ids.
        weights: float32[n]; 1 where the token itself is trained, else 0. A trainer shifts them
            by one to get the weights of its targets.
        is_action: bool[n]; whether the token belongs to the final action line.
    """

    tokens: np.ndarray
    weights: np.ndarray
    is_action: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def render(
    tokenizer: TextTokenizer, messages: Sequence[Message], generation: bool = False
) -> Rendered:
    """Return the conversation as tokens; with `generation` it ends where a reply would begin.

    What a model must write around a trained reply is trained too: `tokenizer.reply_opening` if
    the reply's first span is trained, `reply_closing` and the end-of-turn token if its last is.

    If `m[k]` is a reply, `render(m[:k], generation=True).tokens` is a prefix of
    `render(m[:k + 1]).tokens`, and of all that follows if `tokenizer.prefix_stable`.

    Args:
        tokenizer: A tokenizer of `TextTokenizer.load`.
        messages: The conversation, at least one message.
        generation: Whether to add the beginning of the reply that follows.

    Raises:
        ValueError: There are no messages, or the chat template drops or rewrites one.
        TypeError: The tokenizer is of another kind.

    Example:
        >>> def prompt_of(folder):
        ...     tokenizer = TextTokenizer.load(folder)
        ...     messages = (Message.of("system", "Be brief."), Message.of("user", "Rate it."))
        ...     return render(tokenizer, messages, generation=True).tokens
    """
    if not messages:
        raise ValueError("no messages to render")
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _render_markers(tokenizer, messages, generation)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return _render_template(tokenizer, messages, generation)
    raise TypeError(f"{type(tokenizer).__name__} is not a tokenizer of TextTokenizer.load")


def answer_token_paths(
    tokenizer: TextTokenizer, alternatives: Sequence[str], last: bool, first: bool = False
) -> list[list[int]]:
    """Return the tokens of each alternative of an answer line, with those that end the line.

    A line ends with a newline, the last one with the end of the turn. Joined line by line the
    tokens are those of the reply. An alternative that spells a chat marker is broken by a space
    like all content.

    Args:
        tokenizer: A tokenizer of `TextTokenizer.load`.
        alternatives: The alternatives of the line.
        last: Whether it is the last line of the answer.
        first: Whether the line begins the reply, so that nothing was generated before it. It
            only matters to tokenizers with a `reply_opening`.
    """
    opening = tokenizer.reply_opening if first else ""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        alternatives = [tokenizer.safe(line) for line in alternatives]
    if not last:
        return [tokenizer.encode(opening + line + "\n") for line in alternatives]
    ending = tokenizer.reply_closing
    return [
        [*tokenizer.encode(opening + line + ending), tokenizer.eot_id] for line in alternatives
    ]


def start_tokens(tokenizer: TextTokenizer, text: str, first: bool = True) -> list[int]:
    """Return the tokens of what a reply, or a line of it, begins with; none for "".

    Text that spells a chat marker is broken by a space like all content.

    Args:
        tokenizer: A tokenizer of `TextTokenizer.load`.
        text: What the reply begins with.
        first: Whether nothing of the reply comes before it.
    """
    if not text:
        return []
    if isinstance(tokenizer, HuggingFaceTokenizer):
        text = tokenizer.safe(text)
    return tokenizer.encode((tokenizer.reply_opening if first else "") + text)


def _mark(
    spans: Sequence[tuple[int, int, Span]], offsets: Offsets
) -> tuple[np.ndarray, np.ndarray]:
    """Return which tokens touch a trained span, and which touch an action span."""
    trained = np.zeros(len(offsets), bool)
    action = np.zeros(len(offsets), bool)
    begins = np.array([begin for begin, _ in offsets], np.int64)
    ends = np.maximum([end for _, end in offsets], begins + 1)
    for begin, end, span in spans:
        if span.trained or span.action:
            touched = (begins < end) & (ends > begin) & (end > begin)
            trained |= touched & span.trained
            action |= touched & span.action
    return trained, action


def _extents(message: Message) -> list[tuple[int, int, Span]]:
    """Return (begin, end, span) of each span in the message's content."""
    extents, at = [], 0
    for span in message.spans:
        extents.append((at, at + len(span.text), span))
        at += len(span.text)
    return extents


def _begins_trained(message: Message) -> bool:
    return bool(message.spans) and message.spans[0].trained


def _ends_trained(message: Message) -> bool:
    return bool(message.spans) and message.spans[-1].trained


def _rendered(tokens: Sequence[int], trained: ArrayLike, action: ArrayLike) -> Rendered:
    return Rendered(
        np.asarray(tokens, np.int32), np.asarray(trained, np.float32), np.asarray(action, bool)
    )


# --- our vocabularies: <|role|>content<|end|> ----------------------------------------------


def _render_markers(
    tokenizer: SentencePieceTokenizer, messages: Sequence[Message], generation: bool
) -> Rendered:
    tokens: list[int] = []
    trained: list[bool] = []
    action: list[bool] = []
    for message in messages:
        if any(span.trained or span.action for span in message.spans):
            ids, offsets = tokenizer.encode_with_offsets(message.content)
            of_trained, of_action = _mark(_extents(message), offsets)
        else:
            ids = tokenizer.encode(message.content)
            of_trained = of_action = np.zeros(len(ids), bool)
        tokens += [tokenizer.role_ids[message.role], *ids, tokenizer.eot_id]
        trained += [False, *of_trained, _ends_trained(message)]
        action += [False, *of_action, False]
    if generation:
        tokens.append(tokenizer.role_ids["assistant"])
        trained.append(False)
        action.append(False)
    return _rendered(tokens, trained, action)


# --- Hugging Face chat templates -----------------------------------------------------------


def _render_template(
    tokenizer: HuggingFaceTokenizer, messages: Sequence[Message], generation: bool
) -> Rendered:
    contents = [message.content for message in messages]
    safe = [tokenizer.safe(content) for content in contents]
    roles = [message.role for message in messages]
    text, places = place_contents(tokenizer, roles, safe, generation)
    tokens, offsets = tokenizer.encode_with_offsets(text)
    spans = []
    for message, content, (begin, end, cut) in zip(messages, contents, places, strict=True):
        breaks = tokenizer.breaks(content)

        for first, last, span in _extents(message):
            first, last = (at + sum(place < at for place in breaks) for at in (first, last))
            first, last = (min(max(begin + at - cut, begin), end) for at in (first, last))
            spans.append((first, last, span))
        before = begin - len(tokenizer.reply_opening)
        if _begins_trained(message) and text[before:begin] == tokenizer.reply_opening:
            spans.append((before, begin, Span(tokenizer.reply_opening, trained=True)))
    trained, action = _mark(spans, offsets)
    starts = {begin: n for n, (begin, _) in enumerate(offsets)}
    for number, (message, (_, end, _)) in enumerate(zip(messages, places, strict=True)):
        if _ends_trained(message):
            stop = starts.get(end + len(tokenizer.reply_closing))
            if stop is None or tokens[stop] != tokenizer.eot_id:
                raise ValueError(
                    f"message {number} ({message.role}) is trained to its end, but the chat "
                    "template does not end it as it ends a reply: train spans of replies only"
                )
            trained[[n for n in range(stop + 1) if offsets[n][0] >= end]] = True
    return _rendered(tokens, trained, action)


def place_contents(
    tokenizer: HuggingFaceTokenizer,
    roles: Sequence[str],
    contents: Sequence[str],
    generation: bool,
) -> tuple[str, list[tuple[int, int, int]]]:
    """Return the text of a chat template, and where each message's content is in it.

    A place is (begin, end, number of leading characters that the template cut off). A rendering
    with placeholders tells the template's own text from content, so that content that looks
    like a header cannot be mistaken for one.

    Raises:
        ValueError: The template drops, repeats or rewrites a message.
    """

    def chat_text(texts: Sequence[str]) -> str:
        chat = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
        return tokenizer.chat_text(chat, generation)

    holders = [f"\ue000{n}\ue001" for n in range(len(roles))]
    skeleton = chat_text(holders)
    literals = []
    for n, holder in enumerate(holders):
        before, mark, skeleton = skeleton.partition(holder)
        if not mark:
            raise ValueError(
                f"the chat template drops or moves message {n} of the roles {roles}: this "
                "backbone's template cannot render such a conversation"
            )
        literals.append(before)
    literals.append(skeleton)
    text = chat_text(contents)
    places, at = [], len(literals[0])
    for n, content in enumerate(contents):
        forms = (content, content.strip("\n"), content.rstrip(), content.lstrip())
        for form in (*forms, content.strip()):
            if text.startswith(form + literals[n + 1], at):
                break
        else:
            raise ValueError(
                f"the chat template rewrites message {n} ({roles[n]}): {content[:80]!r} is not "
                "in its text as given; avoid text that the template treats specially"
            )
        places.append((at, at + len(form), content.index(form)))
        at += len(form) + len(literals[n + 1])
    return text, places
