"""Why the human's choice and not the alternative: reflections by template or by a model.

A template (always labelled `template`) states evidence from persona, history and the two
states. It is never given the human's rating, so nothing of it can be read from the text but
that it is not the alternative the text is about. A model is given both (METHOD.md section 8.3)
and its text is filtered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignuser_jax.alignment.counterfactuals import Generate
from alignuser_jax.language.parsing import ReplyError, parse_tags
from alignuser_jax.language.prompts import (
    ITEM_TAGS,
    TRAJECTORY_TAGS,
    persona_block,
    rating_reflection_messages,
    trajectory_reflection_messages,
)
from alignuser_jax.memory import mean_level
from alignuser_jax.randomness import generator_of, named_generator
from alignuser_jax.records import Action, Interaction, Item, Persona, Request, State, Transition
from alignuser_jax.world.site.page import title_of

TEMPLATE = "template"
REFLECTION_TOKENS = 400
"""Longer generated reflections are dropped (METHOD.md section 8.3)."""


@dataclass(frozen=True)
class Evidence:
    """What a prompt shows a user about one item, and nothing else: the persona, the past
    ratings that the prompt lists, the mean rating that the page shows, and the user's own mean
    of similar items that is recalled (each `None` if it is not there)."""

    item: Item
    items: Mapping[str, Item]
    persona: Persona | None
    history: tuple[Interaction, ...]
    mean_rating: float | None
    recalled: float | None = None

    def similar(self) -> list[tuple[int, Interaction]]:
        """Past ratings that share genres with the item, most shared first, then latest."""
        genres = set(self.item.genres)
        shared = [
            (len(genres.intersection(self.items[past.item_id].genres)), past)
            for past in reversed(self.history)
            if past.item_id != self.item.item_id
        ]
        return sorted((pair for pair in shared if pair[0]), key=lambda pair: -pair[0])


# --- templates ---------------------------------------------------------------------------

_TRUST = (
    ("Similar items are my guide.", "I compare with what I know."),
    ("What others think counts for me.", "I trust what most people say."),
    ("I weigh others and my own taste.", "My taste and theirs both count."),
    ("I go by my own taste.", "What others think matters little."),
)
_STAYS = ("", "The page stays; ")


def rating_template(evidence: Evidence, alternative: Transition, key: int) -> str:
    """`WHY: …` and `LESSON: …`, each ended by a newline; at most some 60 tokens.

    `alternative` is the step that gives another rating; what it would leave on record is held
    against the evidence. The human's rating is not an argument.
    """
    rng = generator_of(key)
    similar = evidence.similar()
    why, numbers, values = [], [], []

    def told(mean: float) -> str:
        """As a level where the prompt tells levels."""
        return f"{mean:.1f}" if evidence.recalled is None else str(mean_level(mean))

    if similar:
        best = [past for _, past in similar[:6]]
        picked = sorted(rng.permutation(len(best))[:2].tolist())
        titles = [_short(evidence.items[best[n].item_id]) for n in picked]
        cited = [f"{t}: {best[n].rating:g}" for t, n in zip(titles, picked, strict=True)]
        verb = ("I gave ", "Like this, ", "Close to this, ")[int(rng.integers(3))]
        why.append(verb + ", ".join(cited) + ".")
    else:
        why.append("Nothing like it in my history.")
    if evidence.recalled is not None or similar:
        own = evidence.recalled
        own = float(np.mean([past.rating for _, past in similar])) if own is None else own
        values.append(own)
        numbers.append(f"similar items {told(own)}")
    if evidence.mean_rating is not None:
        values.append(evidence.mean_rating)
        numbers.append(f"others {told(evidence.mean_rating)}")
    if evidence.persona is not None and evidence.persona.mean_rating is not None:
        values.append(evidence.persona.mean_rating)
        numbers.append(f"I usually {evidence.persona.mean_rating:.1f}")
    if values:
        numbers[0] = numbers[0][0].upper() + numbers[0][1:]
        why.append(", ".join(numbers) + ".")
        same_page = alternative.state.slate == alternative.next_state.slate
        stays = _STAYS[int(rng.integers(2))] if same_page else ""
        relation = _relation(alternative.action.value - float(np.mean(values)))
        why.append(f"{stays}{alternative.action.value}/5 would be {relation} that.")
    lessons = _TRUST[evidence.persona.conformity if evidence.persona else 0]
    return f"WHY: {' '.join(why)}\nLESSON: {lessons[int(rng.integers(len(lessons)))]}\n"


def _relation(gap: float) -> str:
    if abs(gap) < 0.5:
        return "near"
    return ("far " if abs(gap) >= 1.5 else "") + ("above" if gap > 0 else "below")


def _short(item: Item, limit: int = 24) -> str:
    """The title as the history shows it, without its year, cut at a word where it is long."""
    title = re.sub(r" \(\d{4}\)$", "", title_of(item).replace(";", ","))
    return title if len(title) <= limit else title[:limit].rsplit(" ", 1)[0]


_PATIENCE = (
    "I look at what the page offers",
    "I leave at slight dissatisfaction",
    "I go on as long as it is worth it",
    "I am patient and look on",
)
_STEP_LESSONS = (
    "I do what the page and my taste call for.",
    "I look at what follows before I choose.",
    "I spend my time where my taste is met.",
)


def trajectory_template(
    persona: Persona | None,
    items: Mapping[str, Item],
    taken: Transition,
    alternative: Transition,
    key: int,
) -> str:
    """The four tagged lines of METHOD.md section 8.3, without the token of either action."""
    rng = generator_of(key)
    favourites = persona.favourite_genres if persona else ()
    lines = (
        f"{_offer(taken.state, favourites, items)} here.",
        f"{_PATIENCE[persona.engagement if persona else 0]}.",
        f"{_outcome(taken.next_state, favourites, items)} instead of "
        f"{_outcome(alternative.next_state, favourites, items, lower=True)}.",
        _STEP_LESSONS[int(rng.integers(len(_STEP_LESSONS)))],
    )
    return "".join(f"{tag}: {line}\n" for tag, line in zip(TRAJECTORY_TAGS, lines, strict=True))


def _offer(state: State, favourites: Sequence[str], items: Mapping[str, Item]) -> str:
    fit = sum(bool(set(favourites).intersection(items[i].genres)) for i in state.slate)
    return f"{fit} of {len(state.slate)} items fit my taste"


def _outcome(
    state: State, favourites: Sequence[str], items: Mapping[str, Item], lower: bool = False
) -> str:
    if state.terminal:
        text = "The end of the visit"
    elif state.kind == "detail":
        text = f"More about {_short(items[state.detail])}"
    else:
        text = f"A page where {_offer(state, favourites, items)}"
    return text[0].lower() + text[1:] if lower else text


# --- reflections by a model --------------------------------------------------------------


@dataclass(frozen=True)
class Reflected:
    """Texts in the order asked, `None` where one was dropped; `dropped` counts why."""

    texts: tuple[str | None, ...]
    dropped: Mapping[str, int]


def rating_reflection_request(
    evidence: Evidence,
    history_text: str,
    taken: Transition,
    alternative: Transition,
    *,
    item_type: str,
    key: int,
    max_tokens: int = REFLECTION_TOKENS,
    temperature: float = 0.7,
) -> Request:
    """Asks a model for one pair. The signals: the next state's echo and the mean of similar
    past ratings (DEFAULT of section 8.3)."""
    similar = [past.rating for _, past in evidence.similar()]
    fit = f"past ratings of similar items: mean {np.mean(similar):.1f}" if similar else ""
    signals = [
        "; ".join(part for part in (step.next_state.feedback, fit) if part)
        for step in (taken, alternative)
    ]
    messages = rating_reflection_messages(
        title_of(evidence.item),
        evidence.item.description or ", ".join(evidence.item.genres),
        persona_block(evidence.persona, item_type),
        history_text,
        taken.action.value,
        signals[0],
        alternative.action.value,
        signals[1],
        item_type,
    )
    return Request(
        messages,
        "reflect",
        subject=evidence.item.item_id,
        max_tokens=max_tokens,
        temperature=temperature,
        key=key,
    )


def trajectory_reflection_request(
    persona: Persona | None,
    history_text: str,
    taken: Transition,
    alternative: Transition,
    *,
    item_type: str,
    key: int,
    max_tokens: int = REFLECTION_TOKENS,
    temperature: float = 0.7,
) -> Request:
    """Asks a model for one pair of steps of a session."""
    messages = trajectory_reflection_messages(
        taken.state.text,
        persona_block(persona, item_type),
        history_text,
        taken.action.token,
        taken.next_state.text,
        alternative.action.token,
        alternative.next_state.text,
        item_type,
    )
    return Request(messages, "reflect", max_tokens=max_tokens, temperature=temperature, key=key)


def reflect(
    generate: Generate,
    requests: Sequence[Request],
    taken: Sequence[Transition],
    alternatives: Sequence[Transition],
) -> Reflected:
    """Asks for all reflections in one batch and keeps those that pass `accept`; of reflections
    with the same lesson for the same item and step the first is kept."""
    texts: list[str | None] = []
    dropped: Counter[str] = Counter()
    lessons: set[tuple[object, ...]] = set()
    completions = generate(requests)
    for completion, human, other in zip(completions, taken, alternatives, strict=True):
        text, reason = None, f"generation failed: {completion.error}"
        if completion.finish_reason == "length":
            reason = "too long"
        elif completion.finish_reason != "error":
            text, reason = accept(completion.text, human.action, other.action)
        if text is not None:
            lesson = (human.state.user_id, human.state.text, text.rsplit("LESSON:", 1)[1])
            if lesson in lessons:
                text, reason = None, "lesson repeated"
            lessons.add(lesson)
        texts.append(text)
        if text is None:
            dropped[reason] += 1
    return Reflected(tuple(texts), dict(dropped))


def accept(text: str, taken: Action, alternative: Action) -> tuple[str | None, str]:
    """`(text as tagged lines, "")` or `(None, why it was dropped)` (METHOD.md section 8.3).

    Dropped: tags missing, the human's choice named, the alternative named as
    the better one, talk of an expert (the policy must not speak of one at inference).
    """
    tags = ITEM_TAGS if taken.kind == "rate" else TRAJECTORY_TAGS
    try:
        values = parse_tags(text, tags)
    except ReplyError:
        return None, "tags missing"
    body = " ".join(values.values())
    if re.search(r"\b(expert|the human|as an ai)\b", body, re.IGNORECASE):
        return None, "talks about an expert"
    if re.search(_named(taken), body, re.IGNORECASE):
        return None, "names the choice"
    better = r"(is|was|seems|would be|fits|suits|matches)\W+(\w+\W+){0,2}?(better|best|right)"
    if re.search(rf"({_named(alternative)})\W+(\w+\W+){{0,3}}?{better}", body, re.IGNORECASE):
        return None, "names the alternative as better"
    return "".join(f"{tag}: {values[tag]}\n" for tag in tags), ""


def _named(action: Action) -> str:
    """A pattern for the ways a text names an action."""
    if action.kind != "rate":
        return re.escape(action.token)
    words = ("one", "two", "three", "four", "five")
    number = rf"(?<!\d\.){action.value}(\.0+)?(?!\.?\d)"  # not 4.2, nor the end of 3.4
    value = f"({number}|{words[action.value - 1]})"
    return rf"\b(rat\w+|score)( it| this| of|:)* {value}\b|\b{value}(/5| out of 5|[ -]stars?)"


def shuffled(reasonings: Sequence[str], seed: int) -> list[str]:
    """The same texts at other places (the ablation): a seeded cyclic shift of a permutation,
    so that none stays where it was where there are two or more."""
    n = len(reasonings)
    rng = named_generator(seed, "shuffle reflections")
    order = rng.permutation(n).tolist()
    moved = [""] * n
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        moved[here] = reasonings[there]
    return moved
