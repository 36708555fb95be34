"""Reflect at the level of ratings (docs/method.md section 8): all that rating logs allow.

Per target rating: the agents' own rating prompt, K other ratings as alternative actions, the
world's next state of each, and one reflection per alternative. With K = 0 the example is the
human's rating alone (task `imitation`). Outcomes differ in little but the echo of the rating,
so what these reflections can teach is weak; that is the data's limit, not the world's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from alignuser_jax.agents import AgentUser, SessionConfig, rate_item
from alignuser_jax.alignment.counterfactuals import (
    Alternatives,
    Counterfactual,
    Generate,
    step_alternatives,
)
from alignuser_jax.alignment.examples import Call, choice_example
from alignuser_jax.alignment.reflecting.requests import rating_facts, rating_reflection_request
from alignuser_jax.alignment.reflecting.templates import ItemEvidence, rating_template, shuffled
from alignuser_jax.alignment.reflecting.writing import Tally, reflect
from alignuser_jax.alignment.visits import stars
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import (
    RATINGS,
    Action,
    CountTokens,
    Example,
    Interaction,
    RecommendationRequest,
    Request,
    Slate,
    Transition,
)
from alignuser_jax.views.sites import Sites, agent_user
from alignuser_jax.world.site.page import title_of


@dataclass(frozen=True, slots=True)
class RatingStep:
    """One human rating and what other ratings would have led to.

    Attributes:
        user_id: Who rated.
        call: The rating call: its request is the prompt as at inference.
        evidence: What that prompt shows of the item.
        counterfactual: The human rating and its alternatives as transitions.
    """

    user_id: str
    call: Call
    evidence: ItemEvidence
    counterfactual: Counterfactual

    @property
    def name(self) -> str:
        """The step's part of example ids: user and item."""
        return f"{self.user_id}/{self.evidence.item.item_id}"


def rating_steps(
    sites: Sites,
    targets: Sequence[tuple[str, Interaction]],
    session: SessionConfig,
    alternatives: Alternatives,
    count_tokens: CountTokens | None = None,
) -> list[RatingStep]:
    """Turn target ratings into steps with alternatives.

    A target whose item the user had rated before is left out: its page would show that
    earlier rating.

    Args:
        sites: The sites of a view; the targets must be later than its profile.
        targets: (user id, rating) pairs.
        session: How the agents ask.
        alternatives: How other ratings are drawn. If K leaves no choice, all are taken without
            asking the model.
        count_tokens: Needed if `session.context_tokens` is set.

    Raises:
        ValueError: K is more than the 4 other ratings that there are.
    """
    most = len(RATINGS) - 1
    if not 0 <= alternatives.k <= most:
        raise ValueError(f"k is {alternatives.k}: of 5 ratings 0 to 4 are alternatives")
    if alternatives.k == most:
        alternatives = replace(alternatives, generate=None)
    site, seed = sites.of_one_item(), alternatives.seed
    calls, evidence, human = [], [], []
    for user_id, target in targets:
        state = site.reset(user_id, stable_key(seed, user_id, target.item_id, "page"))
        assert isinstance(state.needs, RecommendationRequest), "a visit begins with a page"
        if target.item_id in state.needs.exclude:
            continue
        state = site.resolve(state, Slate((target.item_id,)))
        action = Action("rate", "1", stars(target.rating))
        human.append(Transition(state, action, site.step(state, action), "human"))
        user = agent_user(sites.view, user_id, session)
        coroutine = rate_item(
            user,
            target.item_id,
            site,
            session,
            seed=seed,
            count_tokens=count_tokens,
        )
        calls.append(Call(next(coroutine), (RATINGS.index(stars(target.rating)),)))
        coroutine.close()
        evidence.append(_evidence(sites, user, calls[-1].request, session))
    others = alternatives.draw(
        [call.request for call in calls], [call.choices[0] for call in calls]
    )
    actions = [[Action("rate", "1", RATINGS[n]) for n in indices] for indices in others]
    return [
        RatingStep(pair.human.state.user_id, call, facts, pair)
        for call, facts, pair in zip(
            calls, evidence, step_alternatives(site, human, actions), strict=True
        )
    ]


def _evidence(
    sites: Sites, user: AgentUser, request: Request, session: SessionConfig
) -> ItemEvidence:
    """What the rating request shows the user of its item."""
    items, item_id, prompt = sites.items, request.subject, request.messages[-1].content
    mean = sites.view.mean_ratings.get(item_id) if sites.config.show_mean_rating else None
    return ItemEvidence(
        item=items[item_id],
        items=items,
        persona=user.persona if session.persona else None,
        history=tuple(
            past
            for past in user.history
            if past.item_id in items
            and title_of(items[past.item_id]).replace(";", ",") in prompt
        ),
        mean_rating=mean,
        recalled=user.recollection.about(item_id).similar if user.recollection else None,
    )


def reasonings(
    steps: Sequence[RatingStep],
    session: SessionConfig,
    *,
    seed: int = 0,
    generate: Generate | None = None,
    tally: Tally | None = None,
    shuffle: bool = False,
) -> tuple[list[str | None], dict[str, int]]:
    """Write one reflection per pair of a human rating and an alternative.

    Args:
        steps: The human ratings.
        session: How the agents ask.
        seed: Names the draws.
        generate: Writes the reflections; by template without it.
        tally: Counts what the model writes and shows it; it holds the settings.
        shuffle: Permute the texts among the pairs (the ablation).

    Returns:
        One text per pair, in order, `None` where the filter dropped it; and how many were
        dropped, by reason.
    """
    pairs = [(step, pair) for step in steps for pair in step.counterfactual.pairs]
    keys = [
        stable_key(seed, "reflect", step.name, pair.alternative.action.value)
        for step, pair in pairs
    ]
    texts: list[str | None]
    dropped: dict[str, int] = {}
    if generate is None:
        texts = [
            rating_template(step.evidence, pair.alternative, key)
            for (step, pair), key in zip(pairs, keys, strict=True)
        ]
    else:
        tally = tally or Tally()
        config = tally.config
        requests = [
            rating_reflection_request(step.evidence, pair, session.item_type, config, key)
            for (step, pair), key in zip(pairs, keys, strict=True)
        ]
        facts = [rating_facts(step.evidence, config) for step, _ in pairs]
        reflected = reflect(generate, requests, [pair for _, pair in pairs], facts, tally)
        texts, dropped = list(reflected.texts), dict(reflected.dropped)
    if shuffle:
        rows = [(n, text) for n, text in enumerate(texts) if text is not None]
        moved = shuffled([text for _, text in rows], seed)
        for (n, _), text in zip(rows, moved, strict=True):
            texts[n] = text
    return texts, dropped


def imitation_examples(steps: Sequence[RatingStep]) -> Iterator[Example]:
    """Yield one example per step: the human's rating and nothing else."""
    for step in steps:
        yield choice_example(step.call, "imitation", f"imitation/{step.name}", step.user_id)


def reflection_examples(
    steps: Sequence[RatingStep], texts: Sequence[str | None]
) -> Iterator[Example]:
    """Yield one example per pair that has a text: the text, then the human's rating."""
    pairs = [(step, other) for step in steps for other in step.counterfactual.alternatives]
    for (step, other), text in zip(pairs, texts, strict=True):
        if text is not None:
            name = f"reflection/{step.name}/{other.action.value}"
            yield choice_example(step.call, "reflection", name, step.user_id, text)
