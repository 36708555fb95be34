"""The rating of one item by itself: a session's question, on a page of one item."""

from __future__ import annotations

from collections.abc import Generator

from alignuser_jax.agents.conversation import (
    AgentUser,
    Conversation,
    CountTokens,
    SessionConfig,
    rate_recall,
    remembered,
)
from alignuser_jax.agents.session import rate_request
from alignuser_jax.language import prompts
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Item, Request
from alignuser_jax.world import RecommendationSite, page_text


def rate_item(
    user: AgentUser,
    item: Item,
    world: RecommendationSite,
    config: SessionConfig,
    *,
    seed: int,
    index: int = 0,
    count_tokens: CountTokens | None = None,
) -> Generator[Request, Completion, Completion]:
    """Yields one scored "rate" request (system; opening, page of one item, question) and
    returns its completion as it was sent in.

    The page shows what `world` shows: the user's own past rating of the item, else its mean
    rating, so neither may come from held-out data. `index` tells requests for the same user and
    item apart (samples, alternatives).
    """
    page = page_text(1, [world.item_line(user.user_id, 1, item.item_id)])
    talk = Conversation(user, config, count_tokens)
    talk.show_page(page, remembered(user, world.items))
    recalled = rate_recall(user, config, "ITEM_1", item.item_id, world)
    asked = talk.ask(prompts.rate_turn("ITEM_1", talk.pending, recalled))
    key = stable_key(seed, user.user_id, item.item_id, "rate", index)
    return (yield rate_request(asked, item.item_id, config, key))
