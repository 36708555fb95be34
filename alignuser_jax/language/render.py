"""Messages to tokens and weights: the one rendering that training and sampling share.

Chat templates cannot be trusted to say which tokens are trained (Qwen's has no
`{% generation %}`), so weights come from the messages' own spans, mapped through offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    """`weights[i]` is 1 where token i is itself trained (a trainer shifts), `is_action[i]`
    where it belongs to the final action line. All of shape [n]."""

    tokens: np.ndarray  # int32
    weights: np.ndarray  # float32
    is_action: np.ndarray  # bool

    def __len__(self) -> int:
        return len(self.tokens)


def render(
    tokenizer: TextTokenizer, messages: Sequence[Message], generation: bool = False
) -> Rendered:
    """The conversation in tokens; with `generation` it ends where a reply would begin.

    What a model must write around a trained reply is trained too: `tokenizer.reply_opening`
    where the first span is trained; `reply_closing` and the end-of-turn token where the last
    one is.
    `render(m[:k], generation=True).tokens` is a prefix of `render(m[:k + 1]).tokens` where
    `m[k]` is a reply, and of all that follows where `tokenizer.prefix_stable`.
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
    """The tokens of each alternative of an answer line, with what ends it: a newline, or the
    end of the turn on the last line. Joined line by line they are the tokens of the reply.
    What spells a chat marker in an alternative is broken as in all content.

    `first`: the line begins the reply, nothing was generated before it. It matters to
    tokenizers with a `reply_opening` only.
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


def _mark(
    spans: Sequence[tuple[int, int, Span]], offsets: Offsets
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens touch a trained span, and which an action span."""
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
    """The message's spans with where they begin and end in its content."""
    extents, at = [], 0
    for span in message.spans:
        extents.append((at, at + len(span.text), span))
        at += len(span.text)
    return extents


def _begins_trained(message: Message) -> bool:
    return bool(message.spans) and message.spans[0].trained


def _ends_trained(message: Message) -> bool:
    return bool(message.spans) and message.spans[-1].trained


def _rendered(
    tokens: Sequence[int], trained: Sequence[bool], action: Sequence[bool]
) -> Rendered:
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

        def moved(at: int, begin=begin, end=end, cut=cut, breaks=breaks) -> int:
            shifted = at + sum(place < at for place in breaks)
            return min(max(begin + shifted - cut, begin), end)

        spans += [(moved(a), moved(b), span) for a, b, span in _extents(message)]
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
    tokenizer: HuggingFaceTokenizer, roles: list[str], contents: list[str], generation: bool
) -> tuple[str, list[tuple[int, int, int]]]:
    """The template's text, and per message (begin, end) of its content in it and how many
    leading characters the template cut off.

    A rendering with placeholders tells the template's own text from content, so that content
    that looks like a header cannot be mistaken for one. ValueError where the template drops,
    repeats or rewrites a message.
    """

    def chat_text(texts: list[str]) -> str:
        chat = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
        return tokenizer.chat_text(chat, generation)

    holders = [f"\ue000{n}\ue001" for n in range(len(roles))]
    skeleton = chat_text(holders)
    literals = []
    for n, holder in enumerate(holders):
        before, found, skeleton = skeleton.partition(holder)
        if not found:
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
