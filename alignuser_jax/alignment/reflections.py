"""Write reflections: why the human's choice and not the alternative, by template or by a model.

A template (always labelled `template`) states evidence from persona, history and the two
states. It does not know the human's rating, so its text tells nothing of that rating but that
it is not the alternative which the text is about. A model gets both actions, and its text is
filtered (docs/method.md section 8.3).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignuser_jax.alignment.counterfactuals import Generate, Pair
from alignuser_jax.language.parsing import ReplyError, parse_tags
from alignuser_jax.language.prompts import ITEM_TAGS, TRAJECTORY_TAGS, persona_block
from alignuser_jax.language.reflection_prompts import (
    UserText,
    rating_reflection_messages,
    trajectory_reflection_messages,
)
from alignuser_jax.memory import mean_level
from alignuser_jax.randomness import generator_of, named_generator
from alignuser_jax.records import (
    Action,
    Interaction,
    Item,
    Message,
    Persona,
    Request,
    State,
    Transition,
)
from alignuser_jax.world.site.page import title_of

TEMPLATE = "template"
"""The policy id of shards whose reflections are written by template."""
REFLECTION_TOKENS = 400
"""Generated reflections with more tokens are dropped (docs/method.md section 8.3)."""


@dataclass(frozen=True)
class ReflectionConfig:
    """How a model is asked for reflections.

    Attributes:
        item_type: What the site offers, for the prompt.
        max_tokens: A longer reflection is dropped.
        temperature: Sampling temperature; 0.7 is a DEFAULT (docs/method.md section 8.3).
    """

    item_type: str = "movies"
    max_tokens: int = REFLECTION_TOKENS
    temperature: float = 0.7

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}, expected at least 1")
        if not 0 <= self.temperature < np.inf:
            raise ValueError(f"temperature is {self.temperature}, expected 0 or more")


@dataclass(frozen=True)
class ItemEvidence:
    """What a prompt shows a user about one item, and nothing else.

    Attributes:
        item: The item.
        items: The catalogue by item id.
        persona: The persona; `None` where the prompt has none.
        history: The past ratings that the prompt lists, oldest first.
        mean_rating: The item's mean rating; `None` where the page does not show it.
        recalled: The user's own mean rating of similar items as memory recalls it; `None`
            where the prompt holds no recollection.
    """

    item: Item
    items: Mapping[str, Item]
    persona: Persona | None
    history: tuple[Interaction, ...]
    mean_rating: float | None
    recalled: float | None = None

    def similar(self) -> list[tuple[int, Interaction]]:
        """Return the past ratings that share genres with the item, as (genres shared, rating).

        Those that share most genres come first, then the latest.
        """
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


def rating_template(evidence: ItemEvidence, alternative: Transition, key: int) -> str:
    """Write a reflection on a rating: `WHY: …` and `LESSON: …`, each ended by a newline.

    The alternative's rating is compared with the evidence. The human's rating is no argument
    of this function, so the text cannot give it away. It has at most some 60 tokens.

    Args:
        evidence: What the prompt shows.
        alternative: The step that gives another rating.
        key: Names the draws of phrases and titles.
    """
    rng = generator_of(key)
    similar = evidence.similar()
    why, numbers, values = [], [], []

    def mean_text(mean: float) -> str:
        """The mean as a level where the prompt shows levels."""
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
        numbers.append(f"similar items {mean_text(own)}")
    if evidence.mean_rating is not None:
        values.append(evidence.mean_rating)
        numbers.append(f"others {mean_text(evidence.mean_rating)}")
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
    """The title as the history shows it, without its year, cut after a word if it is long."""
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
    pair: Pair,
    key: int,
) -> str:
    """Write the four tagged lines of docs/method.md section 8.3 on a step of a session.

    Neither action's token is named.

    Args:
        persona: The user's persona; `None` where the prompt has none.
        items: The catalogue by item id.
        pair: The human step and the alternative to it.
        key: Names the draw of the lesson.
    """
    rng = generator_of(key)
    favourites = persona.favourite_genres if persona else ()
    lines = (
        f"{_offer(pair.human.state, favourites, items)} here.",
        f"{_PATIENCE[persona.engagement if persona else 0]}.",
        f"{_outcome(pair.human.next_state, favourites, items)} instead of "
        f"{_outcome(pair.alternative.next_state, favourites, items, lower=True)}.",
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
    """The reflections that a model wrote, after the filter.

    Attributes:
        texts: One per request, in order; `None` where the text was dropped.
        dropped: How many were dropped, by reason.
    """

    texts: tuple[str | None, ...]
    dropped: Mapping[str, int]


def rating_reflection_request(
    evidence: ItemEvidence,
    history_text: str,
    pair: Pair,
    config: ReflectionConfig,
    key: int,
) -> Request:
    """Build the request for a reflection on one rating and one alternative.

    The signals that the prompt compares are the next state's echo of the rating and the mean
    of similar past ratings, a DEFAULT of docs/method.md section 8.3.
    """
    similar = [past.rating for _, past in evidence.similar()]
    fit = f"past ratings of similar items: mean {np.mean(similar):.1f}" if similar else ""
    signals = [
        "; ".join(part for part in (step.next_state.feedback, fit) if part) for step in pair
    ]
    block = persona_block(evidence.persona, config.item_type)
    messages = rating_reflection_messages(
        UserText(block, history_text, config.item_type),
        title_of(evidence.item),
        evidence.item.description or ", ".join(evidence.item.genres),
        pair.human.action.value,
        signals[0],
        pair.alternative.action.value,
        signals[1],
    )
    return _request(messages, config, key, evidence.item.item_id)


def trajectory_reflection_request(
    persona: Persona | None,
    history_text: str,
    pair: Pair,
    config: ReflectionConfig,
    key: int,
) -> Request:
    """Build the request for a reflection on one step of a session and one alternative."""
    block = persona_block(persona, config.item_type)
    messages = trajectory_reflection_messages(
        UserText(block, history_text, config.item_type),
        pair.human.state.text,
        pair.human.action.token,
        pair.human.next_state.text,
        pair.alternative.action.token,
        pair.alternative.next_state.text,
    )
    return _request(messages, config, key)


def _request(
    messages: tuple[Message, ...], config: ReflectionConfig, key: int, subject: str = ""
) -> Request:
    return Request(
        messages,
        "reflect",
        subject=subject,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        key=key,
    )


def reflect(
    generate: Generate, requests: Sequence[Request], pairs: Sequence[Pair]
) -> Reflected:
    """Ask for all reflections in one batch and drop those that `accept` refuses.

    Of reflections with the same lesson for the same step, only the first stays.

    Args:
        generate: Answers the requests.
        requests: One per pair of steps.
        pairs: What each request is about.
    """
    texts: list[str | None] = []
    dropped: Counter[str] = Counter()
    lessons: set[tuple[object, ...]] = set()
    for completion, (human, other) in zip(generate(requests), pairs, strict=True):
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


def accept(text: str, choice: Action, alternative: Action) -> tuple[str | None, str]:
    """Check a generated reflection (docs/method.md section 8.3).

    It is refused if tags are missing, if it names the human's choice or calls the alternative
    the better one, or if it talks about an expert: the policy must not speak of one at
    inference.

    Returns:
        `(text as tagged lines, "")`, or `(None, reason)` if it is refused.
    """
    tags = ITEM_TAGS if choice.kind == "rate" else TRAJECTORY_TAGS
    try:
        values = parse_tags(text, tags)
    except ReplyError:
        return None, "tags missing"
    body = " ".join(values.values())
    if re.search(r"\b(expert|the human|as an ai)\b", body, re.IGNORECASE):
        return None, "talks about an expert"
    if re.search(_named(choice), body, re.IGNORECASE):
        return None, "names the choice"
    better = r"(is|was|seems|would be|fits|suits|matches)\W+(\w+\W+){0,2}?(better|best|right)"
    if re.search(rf"({_named(alternative)})\W+(\w+\W+){{0,3}}?{better}", body, re.IGNORECASE):
        return None, "names the alternative as better"
    return "".join(f"{tag}: {values[tag]}\n" for tag in tags), ""


def _named(action: Action) -> str:
    """A pattern that matches the ways in which a text names an action."""
    if action.kind != "rate":
        return re.escape(action.token)
    words = ("one", "two", "three", "four", "five")
    number = rf"(?<!\d\.){action.value}(\.0+)?(?!\.?\d)"  # not 4.2, nor the end of 3.4
    value = f"({number}|{words[action.value - 1]})"
    return rf"\b(rat\w+|score)( it| this| of|:)* {value}\b|\b{value}(/5| out of 5|[ -]stars?)"


def shuffled(reasonings: Sequence[str], seed: int) -> list[str]:
    """Return the same texts in other places: the ablation "shuffled reflections".

    Each text moves to the place of its neighbour in a seeded permutation, so that none of two
    or more stays where it was.
    """
    n = len(reasonings)
    rng = named_generator(seed, "shuffle reflections")
    order = rng.permutation(n).tolist()
    moved = [""] * n
    for target, source in zip(order, order[1:] + order[:1], strict=True):
        moved[target] = reasonings[source]
    return moved
