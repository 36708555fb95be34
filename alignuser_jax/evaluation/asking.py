"""The trained policy under test: its ratings, preferences and next states, asked as agents ask.

Every request is one that the agents' own coroutines yield (ARCHITECTURE.md decision 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from alignuser_jax.agents import SessionConfig, probabilities, rate_item, session
from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.evaluation.preference import PreferenceCase
from alignuser_jax.records import (
    RATINGS,
    Completion,
    CountTokens,
    Example,
    Generator,
    Message,
    Request,
    Slate,
)
from alignuser_jax.sampling import generate
from alignuser_jax.sampling.generate import check_answered
from alignuser_jax.views import View
from alignuser_jax.views.sites import Sites, agent_user
from alignuser_jax.world import SiteConfig

CHUNK = 1024
"""Requests that are submitted together; between chunks progress is told."""

NEXT_STATE_TOKENS = 256
"""A next state has at most so many tokens; what is longer is cut."""

Say = Callable[[str], None]


def ask(
    generator: Generator, requests: Sequence[Request], what: str, say: Say | None = None
) -> list[Completion]:
    """All completions. Raises `RequestsFailed` with the reasons where some failed, after all
    have been asked."""
    done: list[Completion] = []
    for start in range(0, len(requests), CHUNK):
        done += generate(generator, requests[start : start + CHUNK])
        if say:
            say(f"{what}: {len(done)}/{len(requests)}")
    check_answered(done, what)
    return done


def rating_requests(
    dataset: Dataset,
    view: View,
    truth: Log,
    site: SiteConfig,
    config: SessionConfig,
    count_tokens: CountTokens,
    *,
    seed: int = 0,
    samples: int = 1,
) -> Iterator[Request]:
    """The item-level question for every interaction of `truth`, in order."""
    world = Sites(dataset.items, view, site).of_one_item()
    for user_code, item_code in zip(truth.user.tolist(), truth.item.tolist(), strict=True):
        user = agent_user(view, dataset.user_ids[user_code], config)
        item = dataset.items[dataset.item_ids[item_code]]
        asked = rate_item(user, item, world, config, seed=seed, count_tokens=count_tokens)
        yield replace(next(asked), samples=samples)


def rating_distributions(completions: Sequence[Completion]) -> np.ndarray:
    """float64 [n, 5]: the mean over a completion's samples of its exact distributions, or of
    its draws where the back end cannot tell a distribution."""
    rows = []
    for completion in completions:
        drawn = completion.samples or (completion,)
        known = [probabilities(sample, 0, sample.choices[0]) for sample in drawn]
        rows.append(
            np.mean([row + (0.0,) * (len(RATINGS) - len(row)) for row in known], axis=0)
        )
    table = np.array(rows, np.float64).reshape(-1, len(RATINGS))
    return table / table.sum(1, keepdims=True)


def watch_probabilities(
    dataset: Dataset,
    view: View,
    cases: Sequence[PreferenceCase],
    site: SiteConfig,
    config: SessionConfig,
    generator: Generator,
    count_tokens: CountTokens,
    *,
    seed: int = 0,
    say: Say | None = None,
) -> list[np.ndarray]:
    """P(watch) of every item of every case, each page shown as a session's first page."""
    world = Sites(dataset.items, view, site).site()
    requests, sizes = [], []
    for case in cases:
        user = agent_user(view, dataset.user_ids[case.user], config)
        for start in range(0, len(case.items), site.items_per_page):
            page = case.items[start : start + site.items_per_page]
            visit = session(
                user, world, config, arm="", number=start, seed=seed, count_tokens=count_tokens
            )
            next(visit)
            requests.append(visit.send(Slate(tuple(dataset.item_ids[i] for i in page))))
            visit.close()
        sizes.append(len(case.items))
    completions = ask(generator, requests, "preference", say)
    watched = np.array(
        [
            probabilities(completion, line, choice)[0]
            for completion in completions
            for line, choice in enumerate(completion.choices)
        ]
    )
    return np.split(watched, np.cumsum(sizes)[:-1])


def next_state_requests(examples: Sequence[Example]) -> list[Request]:
    """World-model examples as questions: the prompt without its trained reply, greedily."""
    limits = {"max_tokens": NEXT_STATE_TOKENS, "temperature": 0.0}
    return [Request(example.messages[:-1], "world_model", **limits) for example in examples]


def next_state_text(message: Message | str) -> str:
    """A state's text without the `[NEXT STATE]` line before it."""
    text = message if isinstance(message, str) else message.content
    return text.removeprefix("[NEXT STATE]").strip()


def action_of(example: Example) -> str:
    """The action token at the end of a world-model prompt."""
    return example.messages[-2].content.rsplit("ACTION: ", 1)[1].strip()
