"""Write reflections by template: why the human's choice and not the alternative.

A template (always labelled `template`) states evidence from persona, history and the two
states. It does not know the human's rating, so its text tells nothing of that rating but that
it is not the alternative which the text is about. `writing` has those that a model writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignuser_jax.alignment.counterfactuals import Pair
from alignuser_jax.language.prompts import TRAJECTORY_TAGS
from alignuser_jax.memory import mean_level
from alignuser_jax.randomness import generator_of, named_generator
from alignuser_jax.records import (
    Interaction,
    Item,
    Persona,
    State,
    Transition,
)
from alignuser_jax.world.site.page import title_of

TEMPLATE = "template"
"""The policy id of shards whose reflections are written by template."""


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
