"""Ask for ratings of items alone, one after another: a session's question without a page."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from alignuser_jax.agents.conversation import (
    AgentUser,
    Conversation,
    SessionConfig,
    rate_recall,
    remembered,
)
from alignuser_jax.agents.session import choices_for, rate_request
from alignuser_jax.language import prompts
from alignuser_jax.language.parsing import answer_text
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, CountTokens, Message, Request
from alignuser_jax.world import RecommendationSite
from alignuser_jax.world.site.page import local_id


def rate_item(
    user: AgentUser,
    item_id: str,
    world: RecommendationSite,
    config: SessionConfig,
    *,
    seed: int,
    index: int = 0,
    count_tokens: CountTokens | None = None,
) -> Generator[Request, Completion, Completion]:
    """Yield one scored "rate" request and return its completion as it was sent in.

    It is the first request of `rate_items`.

    Args:
        user: Who rates.
        item_id: What is rated.
        world: The site whose line of the item is shown.
        config: How the rating is asked for.
        seed: Names the randomness, together with user, item and `index`.
        index: Tells requests for the same user and item apart (samples, alternatives).
        count_tokens: Counts the tokens of a text; needed for `config.context_tokens`.
    """
    asking = rate_items(
        user, [item_id], world, config, seed=seed, index=index, count_tokens=count_tokens
    )
    request = next(asking)
    asking.close()
    return (yield request)


def rate_items(
    user: AgentUser,
    item_ids: Sequence[str],
    world: RecommendationSite,
    config: SessionConfig,
    *,
    seed: int,
    index: int = 0,
    count_tokens: CountTokens | None = None,
) -> Generator[Request, Completion, tuple[Message, ...]]:
    """Yield one scored "rate" request per item, all in one conversation.

    The first user message has the opening, and each turn the item's line and the question. A
    line shows what `world` shows, the user's own past rating of the item or else its mean
    rating, so neither may come from held-out data. Where the conversation reaches the limit of
    the context it starts anew, as sessions do, and the opening repeats the last ratings.

    Args:
        user: Who rates.
        item_ids: What is rated, in order.
        world: The site whose lines are shown.
        config: How the ratings are asked for.
        seed: Names the randomness, together with user, item and `index`.
        index: Tells requests for the same user and item apart.
        count_tokens: Counts the tokens of a text; needed for `config.context_tokens`.

    Returns:
        The messages of the conversation, those since its last restart.
    """
    memory = remembered(user, world.items)
    conversation = Conversation(user, config, count_tokens)
    for number, item_id in enumerate(item_ids, 1):
        conversation.show_page(world.item_line(user.user_id, number, item_id), memory)
        recalled = rate_recall(user, config, item_id, world)
        messages = conversation.messages_with(
            prompts.rate_turn(local_id(number), conversation.pending, recalled),
            prompts.rate_answer(),
            config.rate_reasoning_tokens,
        )
        key = stable_key(seed, user.user_id, item_id, "rate", index)
        request = rate_request(messages, item_id, config, key)
        choices, _, _ = yield from choices_for(request, conversation)
        if choices is None:
            continue
        conversation.keep(messages, answer_text(choices, prompts.rate_answer()))
        memory = memory.with_rating(world.items[item_id].title, float(choices[0] + 1), number)
    return conversation.messages
