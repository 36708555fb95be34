"""Ask a model why the human's choice and not the alternative, so that a small one can answer.

A large model keeps to a format that is described to it. A small one gets worked examples, a
reply that has begun, a line for each tag with a limit, and a rule against repeats; all of this
is a DEFAULT of this project (docs/method.md section 8.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from alignuser_jax.alignment.counterfactuals import Pair
from alignuser_jax.alignment.reflecting.templates import ItemEvidence
from alignuser_jax.language.prompts import ITEM_TAGS, TRAJECTORY_TAGS, persona_block
from alignuser_jax.language.reflection_checks import ReflectionFacts
from alignuser_jax.language.reflection_prompts import (
    EXAMPLES,
    RatedItem,
    UserText,
    example_lines,
    example_texts,
    persona_line,
    rating_reflection_messages,
    trajectory_reflection_messages,
)
from alignuser_jax.records import Message, Persona, Request, check_drawing
from alignuser_jax.text import shorten
from alignuser_jax.world.site.page import title_of

SIMILAR_ITEMS = 3
"""Similar items that a question names."""
ABOUT_CHARS = 160
"""Characters of a description that a question has."""


@dataclass(frozen=True)
class ReflectionConfig:
    """How a model is asked for reflections, and when it is given up.

    All values are DEFAULTS of this project but the temperature, which is a DEFAULT of
    docs/method.md section 8.3.

    Attributes:
        line_tokens: The most tokens of each tag's text; what is over its last whole sentence is
            cut off.
        examples: Worked examples in the prompt, at most three; none for a large model.
        retries: How often a reflection that is refused is asked for again, with another key.
        no_repeat: No run of so many tokens comes twice in a reflection, or out of the replies
            of the worked examples; 0 for no such rule.
        temperature: Sampling temperature.
        top_p: The probability that the tokens to draw from must reach; 1 for all tokens, which
            spares the engine a sort of the vocabulary at every token.
        least_kept: A build stops where a smaller share of the first `first_replies` is kept; 0
            never stops.
        first_replies: Replies after which that is checked.

    Raises:
        ValueError: A value has no meaning; the message names it.
    """

    line_tokens: int = 40
    examples: int = 3
    retries: int = 2
    no_repeat: int = 4
    temperature: float = 0.7
    top_p: float = 1.0
    least_kept: float = 0.2
    first_replies: int = 50

    def __post_init__(self) -> None:
        bounds = {
            "line_tokens": (4, 400),
            "examples": (0, len(EXAMPLES)),
            "retries": (0, 20),
            "no_repeat": (0, 8),
            "least_kept": (0, 1),
            "first_replies": (1, 10_000),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"reflections.{name} is {getattr(self, name)}, expected {low} to {high}"
                )
        check_drawing(self.temperature, self.top_p)


def rating_reflection_request(
    evidence: ItemEvidence, pair: Pair, item_type: str, config: ReflectionConfig, key: int
) -> Request:
    """Build the request for a reflection on one rating and one alternative.

    The signal that the prompt compares is what the user gave similar items, a DEFAULT of
    docs/method.md section 8.3. The two next states differ in the echo of the rating alone,
    which the question says in its own words.
    """
    item = evidence.item
    seen = [
        (title_of(evidence.items[past.item_id]), past.rating) for _, past in evidence.similar()
    ]
    rated = RatedItem(
        title_of(item),
        ", ".join(item.genres) or shorten(item.description, ABOUT_CHARS),
        evidence.mean_rating,
        tuple(seen[:SIMILAR_ITEMS]),
    )
    messages = rating_reflection_messages(
        UserText(persona_line(evidence.persona), "", item_type),
        rated,
        pair.human.action.value,
        pair.alternative.action.value,
        config.examples,
    )
    return _request(messages, ITEM_TAGS, config, key, evidence.item.item_id, config.examples)


def rating_facts(evidence: ItemEvidence, config: ReflectionConfig) -> ReflectionFacts:
    """Return what a reflection on a rating may be about."""
    similar = [past for _, past in evidence.similar()][:SIMILAR_ITEMS]
    return ReflectionFacts(
        title_of(evidence.item),
        evidence.item.genres,
        tuple(title_of(evidence.items[past.item_id]) for past in similar),
        evidence.persona.favourite_genres if evidence.persona else (),
        example_texts(config.examples),
    )


def trajectory_reflection_request(
    persona: Persona | None,
    history_text: str,
    pair: Pair,
    item_type: str,
    config: ReflectionConfig,
    key: int,
) -> Request:
    """Build the request for a reflection on one step of a session and one alternative."""
    messages = trajectory_reflection_messages(
        UserText(persona_block(persona, item_type), history_text, item_type),
        pair.human.state.text,
        pair.human.action.token,
        pair.human.next_state.text,
        pair.alternative.action.token,
        pair.alternative.next_state.text,
    )
    return _request(messages, TRAJECTORY_TAGS, config, key)


def _request(
    messages: tuple[Message, ...],
    tags: tuple[str, ...],
    config: ReflectionConfig,
    key: int,
    subject: str = "",
    examples: int = 0,
) -> Request:
    return Request(
        messages,
        "reflect",
        subject=subject,
        temperature=config.temperature,
        top_p=config.top_p,
        key=key,
        reply_start=f"{tags[0]}: I",
        lines=tuple(f"{tag}:" for tag in tags),
        line_tokens=config.line_tokens,
        no_repeat=config.no_repeat,
        no_repeat_of=example_lines(examples) if config.no_repeat else (),
    )
