"""Test rating prediction on held-out interactions (docs/method.md section 12.2).

Each rating is asked for alone, as the first of a conversation; the agent's prediction is a
distribution over 1 to 5. `rating_turns` asks for one after another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from alignuser_jax.agents import probabilities, rate_item
from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.driver import waiting
from alignuser_jax.evaluation import another_history
from alignuser_jax.evaluation.another_history import other_users, with_past_of
from alignuser_jax.evaluation.protocol import OpenPolicy, Protocol, ProtocolResult, Subject, ask
from alignuser_jax.evaluation.rating_baselines import BASELINES
from alignuser_jax.evaluation.rating_scores import (
    acceptance,
    score,
    score_over_seeds,
    seeds_table,
    table,
)
from alignuser_jax.records import RATINGS, Completion, Request
from alignuser_jax.sampling import RequestsFailed
from alignuser_jax.views import View, test_view
from alignuser_jax.views.sites import Sites, agent_user

SWAPPED = ", another user's past"
"""Stands behind the name of a policy that was asked with another user's past."""


# --- what is asked ---


def held_out_ratings(log: Log, users: np.ndarray, *, cap: int = 20) -> Log:
    """Return the first `cap` test interactions, in time order, of each of `users` (codes)."""
    test = log.of_split("test")
    test = test.where(np.isin(test.user, users))
    start = np.searchsorted(test.user, test.user, side="left")  # sorted by user, then time
    return test.where(np.arange(len(test)) - start < cap)


def requests(
    dataset: Dataset,
    view: View,
    truth: Log,
    policy: OpenPolicy,
    *,
    seed: int = 0,
    samples: int = 1,
    past_of: Mapping[int, int] | None = None,
) -> Iterator[Request]:
    """Yield the agents' own rating request for every interaction of `truth`, in order.

    Args:
        dataset: The log that `truth` is a part of.
        view: What the prompts may show; nothing of `truth`.
        truth: The interactions to predict.
        policy: How the agents ask.
        seed: Names the draws.
        samples: Completions per request.
        past_of: User -> the user whose persona, history and memory it has, as codes; `None`
            leaves everybody as they are.
    """
    world = Sites(dataset.items, view, policy.site).of_one_item()
    for user_code, item_code in zip(truth.user.tolist(), truth.item.tolist(), strict=True):
        user_id = dataset.user_ids[user_code]
        user = agent_user(view, user_id, policy.session)
        if past_of is not None:
            other = dataset.user_ids[past_of[user_code]]
            user = with_past_of(user_id, agent_user(view, other, policy.session))
        rating = rate_item(
            user,
            dataset.item_ids[item_code],
            world,
            policy.session,
            seed=seed,
            count_tokens=policy.backend.count_tokens,
        )
        yield replace(next(rating), samples=samples)


def distributions(completions: Sequence[Completion]) -> np.ndarray:
    """Return the predicted distributions over 1 to 5 as float64[n, 5].

    Each is the mean over a completion's samples of their exact distributions, or of their
    draws where the back end reports no distribution.

    Raises:
        RequestsFailed: Some replies could not be read as a rating.
    """
    rows = []
    answers = [completion.samples or (completion,) for completion in completions]
    unread = [s.text for samples in answers for s in samples if not s.choices]
    if unread:
        raise RequestsFailed(
            f"{len(unread)} of {sum(map(len, answers))} replies are no rating, such as "
            f"{unread[0][:80]!r}: use the engine, or a server that keeps to a given answer"
        )
    for samples in answers:
        shares = [probabilities(sample, 0, sample.choices[0]) for sample in samples]
        rows.append(
            np.mean([row + (0.0,) * (len(RATINGS) - len(row)) for row in shares], axis=0)
        )
    table = np.array(rows, np.float64).reshape(-1, len(RATINGS))
    return table / table.sum(1, keepdims=True)


# --- the protocol ---


class _Way(NamedTuple):
    """One way to ask for all ratings; its `suffix` stands behind the policy's name."""

    suffix: str
    tokens: int = 0
    samples: int = 1
    past_of: Mapping[int, int] | None = None


def run(subject: Subject) -> ProtocolResult:
    """Ask every policy for the held-out ratings and score them beside the baselines.

    Policies NAME@SEED are also averaged over their seeds. The first policy, without reasoning,
    is the one to accept.
    """
    dataset, config = subject.dataset, subject.config
    view = test_view(dataset, subject.personas)
    truth = held_out_ratings(dataset.log, subject.users, cap=config.cap)
    with waiting("ratings: fitting the baselines", subject.say):
        points = {
            name: fit(view.profile)(truth.user, truth.item) for name, fit in BASELINES.items()
        }
    ways = [_Way("")]
    if config.reasoning_samples:
        reasoning = config.reasoning_tokens, config.reasoning_samples
        ways.append(_Way(", after reasoning", *reasoning))
    if config.swap_history:
        ways.append(_Way(SWAPPED, past_of=other_users(np.unique(truth.user), config.seed)))
    predicted: dict[str, np.ndarray] = {}
    groups: dict[str, list[np.ndarray]] = defaultdict(list)
    for name in subject.policies:
        with subject.open(name, PROTOCOL.name, 0) as policy:
            for way in ways:
                session, full = policy.session, name + way.suffix
                if way.tokens:
                    session = replace(session, rate_reasoning_tokens=way.tokens)
                asking = replace(policy, session=session)
                asked = requests(
                    *(dataset, view, truth, asking),
                    seed=config.seed,
                    samples=way.samples,
                    past_of=way.past_of,
                )
                with waiting(f"{full}: writing {len(truth)} prompts", subject.say):
                    prompts = list(asked)
                done = ask(policy.backend, prompts, full, subject.say)
                predicted[full] = distributions(done)
                groups[name.partition("@")[0] + way.suffix].append(predicted[full])
    with waiting("ratings: scoring", subject.say):
        scores = score(truth, points, predicted, seed=config.seed)
    failures = acceptance(next(s for s in scores if s.name == subject.policies[0]))
    title = f"Ratings: {len(truth)} test interactions of {len(np.unique(truth.user))} users"
    parts = [title, table(scores)]
    if len(groups) < len(predicted):
        over_seeds = score_over_seeds(truth, groups, seed=config.seed)
        parts += ["Mean over seeds", seeds_table(over_seeds)]
    if config.swap_history:
        reactions = [
            another_history.reaction(
                name, truth, predicted[name], predicted[name + SWAPPED], seed=config.seed
            )
            for name in subject.policies
        ]
        parts += [
            "The same questions with another user's past",
            another_history.table(reactions),
        ]
    return ProtocolResult("\n\n".join(parts), tuple(failures))


PROTOCOL = Protocol("ratings", needs=(), run=run)
