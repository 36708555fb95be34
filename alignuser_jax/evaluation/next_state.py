"""Test next-state prediction: page-type F1 beside a rule, and edit similarity.

The page type follows from the action almost always, so the rule that reads it off the action
is the figure to compare with (docs/method.md section 12.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from alignuser_jax.evaluation.protocol import Protocol, ProtocolResult, Subject, ask
from alignuser_jax.records import Example, Message, Request
from alignuser_jax.text import markdown_table

REPLY_TOKENS = 256
"""Tokens of a predicted next state, at most; a longer one is cut."""


def requests(examples: Sequence[Example]) -> list[Request]:
    """Return world-model examples as requests: the prompt without its trained reply, greedy."""
    return [
        Request(example.messages[:-1], "world_model", max_tokens=REPLY_TOKENS, temperature=0.0)
        for example in examples
    ]


def state_text(reply: Message | str) -> str:
    """Return a next state's text without the `[NEXT STATE]` line before it."""
    text = reply if isinstance(reply, str) else reply.content
    return text.removeprefix("[NEXT STATE]").strip()


def action_token(example: Example) -> str:
    """Return the action token at the end of a world-model prompt."""
    return example.messages[-2].content.rsplit("ACTION: ", 1)[1].strip()


def page_type(text: str) -> str:
    """Return a page's type: browse, detail, end, or other if it is no page of this site."""
    text = text.strip()
    if "SESSION ENDED" in text:
        return "end"
    if "\nDETAILS " in text:
        return "detail"
    return "browse" if "PAGE " in text and "\n1. " in text else "other"


def rule_page_type(token: str) -> str:
    """Read the page type off the action token: click -> detail, exit -> end, else browse."""
    if token.startswith("[CLICK_ITEM"):
        return "detail"
    return "end" if token == "[EXIT]" else "browse"


def macro_f1(predicted: Sequence[str], actual: Sequence[str]) -> float:
    """Return the unweighted mean F1 over the classes that occur in `actual`.

    A prediction outside these classes counts as a miss only, not as a class of its own.
    """
    scores = []
    for label in sorted(set(actual)):
        hit = sum(p == a == label for p, a in zip(predicted, actual, strict=True))
        wrong = sum(
            (p == label) != (a == label) for p, a in zip(predicted, actual, strict=True)
        )
        scores.append(2 * hit / max(2 * hit + wrong, 1))
    return sum(scores) / len(scores)


def edit_similarity(predicted: str, actual: str) -> float:
    """Return 1 - Levenshtein / longer length, on lower-cased text with single spaces."""
    a, b = " ".join(predicted.lower().split()), " ".join(actual.lower().split())
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return 1 - row[-1] / max(len(a), len(b), 1)


@dataclass(frozen=True)
class NextStateScores:
    """The scores of next-state predictions.

    Attributes:
        model_f1: Macro F1 of the page type, as the model predicts it.
        rule_f1: The same for the rule that reads it off the action.
        similarity: Mean edit similarity of the texts.
        n: How many transitions were predicted.
    """

    model_f1: float
    rule_f1: float
    similarity: float
    n: int


def score(
    predicted: Sequence[str], actual: Sequence[str], actions: Sequence[str]
) -> NextStateScores:
    """Score predictions against the states that really followed, one or more.

    Args:
        predicted: The predicted next-state texts.
        actual: The true ones.
        actions: The tokens of the actions that led there.
    """
    truth = [page_type(text) for text in actual]
    return NextStateScores(
        macro_f1([page_type(text) for text in predicted], truth),
        macro_f1([rule_page_type(token) for token in actions], truth),
        sum(map(edit_similarity, predicted, actual)) / len(actual),
        len(actual),
    )


def table(scores: NextStateScores) -> str:
    """Return the scores as a Markdown table."""
    figures = (scores.model_f1, scores.rule_f1, scores.similarity)
    headers = ["page-type F1, model", "rule that reads the action", "edit similarity", "n"]
    return markdown_table([[*(f"{figure:.3f}" for figure in figures), scores.n]], headers)


def run(subject: Subject) -> ProtocolResult:
    """Ask the first policy for the next states of held-out transitions, and score them."""
    assert subject.transitions is not None, "the suite checks the needs of a protocol"
    examples = list(islice(subject.transitions(), subject.config.next_states))
    if not examples:
        raise ValueError(
            "there are no held-out transitions: build shards with the task world_model and a "
            "validation share"
        )
    with subject.open(subject.policies[0], PROTOCOL.name, REPLY_TOKENS) as policy:
        done = ask(policy.backend, requests(examples), "next states", subject.say)
    scores = score(
        [state_text(completion.text) for completion in done],
        [state_text(example.messages[-1]) for example in examples],
        [action_token(example) for example in examples],
    )
    return ProtocolResult(f"Next states\n\n{table(scores)}")


PROTOCOL = Protocol("next_state", needs=("transitions",), run=run)
