"""Reflection at the level of ratings (METHOD.md section 8): logs without clicks have no other.

Per target rating: the agents' own rating prompt, K other ratings as alternative actions, the
world's next states of each, and one reflection per alternative. With K = 0 the example is the
human's rating alone (task `imitation`). Outcomes differ in little but the echo of the rating,
so what these reflections can teach is weak; that is the data's limit, not the world's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alignuser_jax.agents import SessionConfig, rate_item
from alignuser_jax.alignment.counterfactuals import (
    Counterfactual,
    Generate,
    policy_alternatives,
    step_alternatives,
    uniform_alternatives,
)
from alignuser_jax.alignment.examples import Call, choice_example
from alignuser_jax.alignment.reflections import (
    REFLECTION_TOKENS,
    Evidence,
    ReflectionConfig,
    rating_reflection_request,
    rating_template,
    reflect,
    shuffled,
)
from alignuser_jax.alignment.visits import stars
from alignuser_jax.memory import EpisodicMemory
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import (
    RATINGS,
    Action,
    CountTokens,
    Example,
    Interaction,
    Item,
    Slate,
    Transition,
)
from alignuser_jax.views.sites import Sites, agent_user
from alignuser_jax.views.view import View
from alignuser_jax.world.site.page import title_of


@dataclass(frozen=True, slots=True)
class RatingStep:
    """One human rating: its call (the prompt as at inference), the evidence that the prompt
    shows, and what other ratings would have led to."""

    user_id: str
    call: Call
    evidence: Evidence
    counterfactual: Counterfactual

    @property
    def name(self) -> str:
        return f"{self.user_id}/{self.evidence.item.item_id}"


def rating_steps(
    view: View,
    sites: Sites,
    items: Mapping[str, Item],
    targets: Sequence[tuple[str, Interaction]],
    session: SessionConfig,
    *,
    k: int = 4,
    seed: int = 0,
    generate: Generate | None = None,
    count_tokens: CountTokens | None = None,
) -> list[RatingStep]:
    """Steps of `targets` (user id, rating). Alternatives: with a model, where K leaves a
    choice, drawn from its own ratings (METHOD.md 8.1), else uniformly. Items that the user had
    rated before are left out: their page would show the earlier rating."""
    if not 0 <= k <= len(RATINGS) - 1:
        raise ValueError(f"k is {k}: of 5 ratings 0 to 4 are alternatives")
    site = sites.of_one_item()
    calls, evidence, taken = [], [], []
    for user_id, target in targets:
        user = agent_user(view, user_id, session)
        coroutine = rate_item(
            user, items[target.item_id], site, session, seed=seed, count_tokens=count_tokens
        )
        request = next(coroutine)
        coroutine.close()
        state = site.reset(user_id, stable_key(seed, user_id, target.item_id, "page"))
        if target.item_id in state.needs.exclude:
            continue
        state = site.resolve(state, Slate((target.item_id,)))
        rating = stars(target.rating)
        action = Action("rate", "ITEM_1", rating)
        calls.append(Call(request, (rating - 1,)))
        taken.append(Transition(state, action, site.step(state, action), "human"))
        told = request.messages[-1].content
        evidence.append(
            Evidence(
                item=items[target.item_id],
                items=items,
                persona=user.persona if session.persona else None,
                history=tuple(
                    past
                    for past in user.history
                    if past.item_id in items
                    and title_of(items[past.item_id]).replace(";", ",") in told
                ),
                mean_rating=view.mean_ratings.get(target.item_id)
                if sites.config.show_mean_rating
                else None,
                recalled=user.recollection.about(target.item_id).similar
                if user.recollection
                else None,
            )
        )
    human = [call.choices[0] for call in calls]
    if generate is not None and 0 < k < len(RATINGS) - 1:
        others = policy_alternatives(generate, [call.request for call in calls], human, k, seed)
    else:
        others = [
            uniform_alternatives(
                len(RATINGS), choice, k, stable_key(seed, "alternatives", call.request.key)
            )
            for call, choice in zip(calls, human, strict=True)
        ]
    actions = [[Action("rate", "ITEM_1", RATINGS[n]) for n in indices] for indices in others]
    return [
        RatingStep(step.state.user_id, call, shown, pair)
        for call, shown, step, pair in zip(
            calls, evidence, taken, step_alternatives(site, taken, actions), strict=True
        )
    ]


def reasonings(
    steps: Sequence[RatingStep],
    session: SessionConfig,
    *,
    seed: int = 0,
    generate: Generate | None = None,
    max_tokens: int = REFLECTION_TOKENS,
    shuffle: bool = False,
) -> tuple[list[str | None], dict[str, int]]:
    """One text per (step, alternative) in order, `None` where the filter dropped it, and the
    counts of why. By template without `generate`. `shuffle` permutes the texts that are left
    among themselves (the ablation)."""
    pairs = [(s, other) for s in steps for other in s.counterfactual.alternatives]
    keys = [stable_key(seed, "reflect", s.name, other.action.value) for s, other in pairs]
    if generate is None:
        texts: list[str | None] = [
            rating_template(step.evidence, other, key)
            for (step, other), key in zip(pairs, keys, strict=True)
        ]
        dropped: dict[str, int] = {}
    else:
        requests = [
            rating_reflection_request(
                step.evidence,
                _history_text(step, session),
                step.counterfactual.taken,
                other,
                ReflectionConfig(session.item_type, max_tokens),
                key,
            )
            for (step, other), key in zip(pairs, keys, strict=True)
        ]
        taken = [step.counterfactual.taken for step, _ in pairs]
        kept = reflect(generate, requests, taken, [other for _, other in pairs])
        texts, dropped = list(kept.texts), dict(kept.dropped)
    if shuffle:
        left = [n for n, text in enumerate(texts) if text is not None]
        for n, text in zip(left, shuffled([texts[n] for n in left], seed), strict=True):
            texts[n] = text
    return texts, dropped


def imitation_examples(steps: Sequence[RatingStep]) -> Iterator[Example]:
    """The human's rating and nothing else, one example per step."""
    for step in steps:
        yield choice_example(step.call, "imitation", f"imitation/{step.name}", step.user_id)


def reflection_examples(
    steps: Sequence[RatingStep], texts: Sequence[str | None]
) -> Iterator[Example]:
    """One example per (step, alternative) with a text: reasoning, then the human's rating."""
    pairs = [(s, other) for s in steps for other in s.counterfactual.alternatives]
    for (step, other), text in zip(pairs, texts, strict=True):
        if text is not None:
            name = f"reflection/{step.name}/{other.action.value}"
            yield choice_example(step.call, "reflection", name, step.user_id, text)


def _history_text(step: RatingStep, session: SessionConfig) -> str:
    items = step.evidence.items
    past = step.evidence.history
    titles = {one.item_id: items[one.item_id].title for one in past}
    return EpisodicMemory.of(past, titles).summary(session.history_items)
