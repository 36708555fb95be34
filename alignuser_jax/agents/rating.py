"""Ask for the rating of one item alone: a session's question, on a page of one item."""

from __future__ import annotations

from collections.abc import Generator

from alignuser_jax.agents.conversation import (
    AgentUser,
    Conversation,
    SessionConfig,
    rate_recall,
    remembered,
)
from alignuser_jax.agents.session import rate_request
from alignuser_jax.language import prompts
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import (
    Completion,
    CountTokens,
    Item,
    Request,
)
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
    """Yield one scored "rate" request and return its completion as it was sent in.

    The messages are the system message and one user message: opening, page of one item,
    question. The page shows what `world` shows, the user's own past rating of the item or else
    its mean rating, so neither may come from held-out data.

    Args:
        user: Who rates.
        item: What is rated.
        world: The site whose page is shown.
        config: How the rating is asked for.
        seed: Names the randomness, together with user, item and `index`.
        index: Tells requests for the same user and item apart (samples, alternatives).
        count_tokens: Counts the tokens of a text; needed for `config.context_tokens`.
    """
    page = page_text(1, [world.item_line(user.user_id, 1, item.item_id)])
    conversation = Conversation(user, config, count_tokens)
    conversation.show_page(page, remembered(user, world.items))
    recalled = rate_recall(user, config, "ITEM_1", item.item_id, world)
    messages = conversation.messages_with(
        prompts.rate_turn("ITEM_1", conversation.pending, recalled),
        prompts.rate_answer(),
        config.rate_reasoning_tokens,
    )
    key = stable_key(seed, user.user_id, item.item_id, "rate", index)
    return (yield rate_request(messages, item.item_id, config, key))
