"""The conversation of one agent, which grows until a page does not fit and then starts anew.

Past turns are never edited. So the conversation is the agent's recent history, and every
request extends the one before it, which lets an engine reuse its KV cache. Training examples
are made by the same code (docs/architecture.md decision 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignuser_jax.language import prompts
from alignuser_jax.language.render import MESSAGE_TOKENS
from alignuser_jax.memory import EpisodicMemory, Recollection, mean_level
from alignuser_jax.records import (
    CountTokens,
    Interaction,
    Item,
    Message,
    Persona,
    check_drawing,
)
from alignuser_jax.world import RecommendationSite
from alignuser_jax.world.site.page import NONE


@dataclass(frozen=True, slots=True)
class AgentUser:
    """One user as an agent plays it.

    Attributes:
        persona: Who the user is.
        history: What the user rated before the session, oldest first.
        recollection: Looks up what the user recalls of an item; `None` for nothing.

    Example:
        >>> persona = Persona("u1", pickiness=2, mean_rating=3.6)
        >>> AgentUser(persona, history=(Interaction("i7", 4.0),)).user_id
        'u1'
    """

    persona: Persona
    history: tuple[Interaction, ...] = ()
    recollection: Recollection | None = None

    @property
    def user_id(self) -> str:
        """The id of the persona."""
        return self.persona.user_id


def remembered(user: AgentUser, items: Mapping[str, Item]) -> EpisodicMemory:
    """Return the memory at the start of a session: the history, with titles from `items`.

    Ratings of items that are not in the catalogue are left out.
    """
    history = [past for past in user.history if past.item_id in items]
    titles = {past.item_id: items[past.item_id].title for past in history}
    return EpisodicMemory.of(history, titles)


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What an agent is shown and asked in a session, and how its replies are drawn.

    Attributes:
        item_type: What the site recommends, as prompts say it.
        screening: Whether to ask which items of a page to watch; otherwise all are watched.
        persona: Whether prompts show the persona; without it: the ablation.
        history_items: How many past ratings the first user message lists.
        memory_items: How many ratings of the session (in a shop: actions) it lists besides
            when the conversation starts anew.
        recall: Whether to say what the user recalls of an item before a screening and a rating
            (`memory/recall.py`); off as in the paper.
        max_clicks: How many clicks on items are offered per page.
        previous_page: Whether going back is offered.
        max_actions: The most actions of a session.
        skip_forced: Whether to take an action that is the only one without asking.
        interview: Whether to ask for the satisfaction at the end.
        reasoning_tokens: The most tokens of reasoning before an action and the interview.
        rate_reasoning_tokens: The most tokens of reasoning before a rating.
        temperature: Of the draws; 0 takes the likeliest reply.
        top_p: The probability that the tokens to draw from must reach; 1 for all tokens.
        context_tokens: The most tokens of a conversation; `None` for no limit.
        page_reserve_tokens: The tokens that must be left, beside the reasoning, after a page is
            shown; where they would not be, the conversation starts anew.
        fail_fast: Whether a session ends at the model's first error; otherwise it goes on with
            a default action.

    Example:
        >>> SessionConfig(history_items=10, temperature=0.7, context_tokens=4096).max_clicks
        1
    """

    item_type: str = "movies"
    screening: bool = True
    persona: bool = True
    history_items: int = 20
    memory_items: int = 10
    recall: bool = False
    max_clicks: int = 1
    previous_page: bool = True
    max_actions: int = 60
    skip_forced: bool = True
    interview: bool = True
    reasoning_tokens: int = 0
    rate_reasoning_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    context_tokens: int | None = None
    page_reserve_tokens: int = 256
    fail_fast: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that make no sense, by name."""
        for name in (
            *("history_items", "memory_items", "max_clicks"),
            *("reasoning_tokens", "rate_reasoning_tokens", "page_reserve_tokens"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.max_actions < 1:
            raise ValueError(f"max_actions is {self.max_actions}, expected 1 or more")
        if self.context_tokens is not None and self.context_tokens < 1:
            raise ValueError(
                f"context_tokens is {self.context_tokens}, expected 1 or more, or None for no "
                "limit"
            )
        if not self.item_type.strip():
            raise ValueError('item_type is empty: say what the site recommends ("movies")')
        check_drawing(self.temperature, self.top_p)


def screen_recall(user: AgentUser, config: SessionConfig, slate: Sequence[str]) -> list[str]:
    """Return one line per item of a new page that says what the user recalls of it."""
    if not config.recall or user.recollection is None:
        return []
    about = [user.recollection.about(item_id) for item_id in slate]
    return [
        prompts.screen_recall_line(
            f"ITEM_{n}", _level_text(recall.match), _level_text(recall.popularity)
        )
        for n, recall in enumerate(about, 1)
    ]


def rate_recall(
    user: AgentUser,
    config: SessionConfig,
    target: str,
    item_id: str,
    world: RecommendationSite,
) -> str:
    """Return the line that says what the user recalls before rating an item, "" for nothing.

    Of others' ratings it says no more than the page shows.
    """
    if not config.recall or user.recollection is None:
        return ""
    page_rating = world.rating_text(user.user_id, item_id)
    others = str(mean_level(float(page_rating))) if page_rating[0].isdigit() else page_rating
    similar = user.recollection.about(item_id).similar
    own = None if similar is None else mean_level(similar)
    return prompts.rate_recall_line(target, others, _level_text(own))


def _level_text(level: int | None) -> str:
    return NONE if level is None else str(level)


Openings = Callable[[Persona | None, SessionConfig, Any], Iterator[tuple[str, str]]]
"""(persona, config, memory) -> (system message, opening of the first user message) pairs.

Each pair repeats less of the memory than the one before, the last pair nothing of it; the first
that fits into the context is used.
"""


def site_openings(
    persona: Persona | None, config: SessionConfig, memory: EpisodicMemory
) -> Iterator[tuple[str, str]]:
    """Yield the openings of a visit to a recommendation site (see `Openings`)."""
    system = prompts.system_prompt(config.item_type, config.recall)
    in_session = sum(rated.page > 0 for rated in memory.ratings)
    ratings = config.history_items + min(in_session, config.memory_items)
    while True:
        yield system, prompts.opening(persona, memory.summary(ratings), config.item_type)
        if not ratings:
            return
        ratings //= 2


class Conversation:
    """The messages between one agent and the model.

    Attributes:
        messages: The turns so far.
        pending: The text with which the next question begins: a new page, or the echo of the
            last action.
        starts: How often the conversation was started.

    Args:
        user: Whose conversation it is.
        config: What is shown, and how long the conversation may grow.
        count_tokens: Counts the tokens of a text; needed for `config.context_tokens`.
        openings: Makes the system message and the opening of the first user message.
    """

    def __init__(
        self,
        user: AgentUser,
        config: SessionConfig,
        count_tokens: CountTokens | None = None,
        openings: Openings = site_openings,
    ):
        self.messages: tuple[Message, ...] = ()
        self.pending = ""
        self.starts = 0
        self._persona = user.persona if config.persona else None
        self._config = config
        self._openings = openings
        self._count = count_tokens
        self._counted: dict[str, int] = {}

    def show_page(self, text: str, memory: Any) -> None:
        """Put a page before the next question; start anew if it would not fit.

        Args:
            text: The page.
            memory: What the openings of a new conversation repeat.

        Raises:
            ValueError: Not even the shortest opening and the page fit into the context.
        """
        turn = prompts.turn(self.pending, text)
        if self.messages and self._fits(*self.messages, Message.of("user", turn)):
            self.pending = turn
        else:
            self._start(text, memory)

    def messages_with(self, question: str) -> tuple[Message, ...]:
        """Return the messages of a request; `question` must already begin with `pending`."""
        return (*self.messages, Message.of("user", question))

    def keep(self, request_messages: tuple[Message, ...], reply: str) -> None:
        """Add the messages of a request and the reply, which must hold no reasoning."""
        self.messages = (*request_messages, Message.of("assistant", reply))
        self.pending = ""

    def _start(self, page_text: str, memory: Any) -> None:
        for system_text, opening in self._openings(self._persona, self._config, memory):
            system = Message.of("system", system_text)
            pending = prompts.turn(opening, page_text)
            if self._fits(system, Message.of("user", pending)):
                break
        else:
            raise ValueError(
                f"persona and one page leave less than {self._reserve} of "
                f"{self._config.context_tokens} tokens even without history; raise "
                "context_tokens or lower page_reserve_tokens"
            )
        self.messages, self.pending = (system,), pending
        self.starts += 1

    def _fits(self, *messages: Message) -> bool:
        if self._count is None or self._config.context_tokens is None:
            return True
        used = sum(self._tokens(message.content) + MESSAGE_TOKENS for message in messages)
        return used + self._reserve <= self._config.context_tokens

    def _tokens(self, text: str) -> int:
        if self._count is None:
            return 0
        if text not in self._counted:
            self._counted[text] = self._count(text)
        return self._counted[text]

    @property
    def _reserve(self) -> int:
        config = self._config
        return config.page_reserve_tokens + max(
            config.reasoning_tokens, config.rate_reasoning_tokens
        )
