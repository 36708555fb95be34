"""Next-state prediction (METHOD.md section 12.8): page-type F1 beside a rule, edit similarity.

The page type follows from the action almost always, so the rule that reads it off the action
is the figure to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAGE_TYPES = ("browse", "detail", "end", "other")


def page_type(state_text: str) -> str:
    """browse, detail, end, or other where the text is no page of this site."""
    text = state_text.strip()
    if "SESSION ENDED" in text:
        return "end"
    if "DETAILS ITEM_" in text or "\nDETAILS " in text:
        return "detail"
    return "browse" if "PAGE " in text and "[ITEM_1]" in text else "other"


def rule_page_type(action_token: str) -> str:
    """What the action alone says: click -> detail, exit -> end, everything else -> browse."""
    if action_token.startswith("[CLICK_ITEM"):
        return "detail"
    return "end" if action_token == "[EXIT]" else "browse"


def macro_f1(predicted: Sequence[str], actual: Sequence[str]) -> float:
    """Unweighted mean of the F1 of every class that occurs in `actual`; a prediction outside
    them counts as a miss only."""
    scores = []
    for label in sorted(set(actual)):
        hit = sum(p == a == label for p, a in zip(predicted, actual, strict=True))
        wrong = sum(
            (p == label) != (a == label) for p, a in zip(predicted, actual, strict=True)
        )
        scores.append(2 * hit / max(2 * hit + wrong, 1))
    return sum(scores) / len(scores)


def edit_similarity(predicted: str, actual: str) -> float:
    """1 - Levenshtein / longer length, on lower-cased text with single spaces."""
    a, b = " ".join(predicted.lower().split()), " ".join(actual.lower().split())
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return 1 - row[-1] / max(len(a), len(b), 1)


@dataclass(frozen=True)
class NextStateScores:
    model_f1: float
    rule_f1: float
    similarity: float
    n: int


def score_next_states(
    predicted: Sequence[str], actual: Sequence[str], actions: Sequence[str]
) -> NextStateScores:
    """predicted, actual: next-state texts; actions: the tokens taken."""
    truth = [page_type(text) for text in actual]
    return NextStateScores(
        macro_f1([page_type(text) for text in predicted], truth),
        macro_f1([rule_page_type(token) for token in actions], truth),
        sum(map(edit_similarity, predicted, actual)) / max(len(actual), 1),
        len(actual),
    )
