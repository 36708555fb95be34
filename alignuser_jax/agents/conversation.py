"""The conversation of one agent, which grows until a page does not fit and then starts anew.

Past turns are never edited. So the conversation is the agent's recent history, and every
request extends the one before it, which lets an engine reuse its KV cache. Training examples
are made by the same code (docs/architecture.md decision 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from alignuser_jax.language import prompts
from alignuser_jax.language.answers import AnswerLines
from alignuser_jax.language.parsing import ask_again
from alignuser_jax.language.render import MESSAGE_TOKENS, MOST_MESSAGE_TOKENS
from alignuser_jax.memory import EpisodicMemory, Recollection, mean_level
from alignuser_jax.records import (
    CountTokens,
    Interaction,
    Item,
    Message,
    Persona,
    Request,
    check_drawing,
)
from alignuser_jax.text import shorten
from alignuser_jax.world import RecommendationSite
from alignuser_jax.world.site.page import local_id

BAD_REPLY_CHARS = 80
"""Characters of a reply that cannot be read and is too long to be shown whole."""


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
        context_tokens: The most tokens of a request with its longest reply; `None` for no
            limit. Where a request would not fit, the conversation starts anew at the page.
        page_reserve_tokens: The tokens that should be left, beside the reasoning, after a page
            is shown; where they would not be, the conversation starts anew there. Too few only
            mean that more conversations start anew late, and repeat what was said on the page.
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
        prompts.screen_recall_line(local_id(n), recall.match, recall.popularity)
        for n, recall in enumerate(about, 1)
    ]


def rate_recall(
    user: AgentUser,
    config: SessionConfig,
    item_id: str,
    world: RecommendationSite,
) -> str:
    """Return the line that says what the user recalls before rating an item, "" for nothing.

    Of others' ratings it says no more than the page shows.
    """
    if not config.recall or user.recollection is None:
        return ""
    page_rating = world.rating_text(user.user_id, item_id)
    others = str(mean_level(float(page_rating))) if page_rating[0].isdigit() else ""
    similar = user.recollection.about(item_id).similar
    return prompts.rate_recall_line(others, "" if similar is None else str(mean_level(similar)))


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


class ContextTooSmall(ValueError):
    """Not even the shortest opening, a page and a question fit into the context."""


class _Page(NamedTuple):
    """The page that the agent is on, and how the conversation came to it.

    Attributes:
        text: The page.
        memory: What the openings of a new conversation repeat.
        begin: Index of the message that begins with the page.
        lead: The text of that message up to the page's end.
    """

    text: str
    memory: Any
    begin: int
    lead: str


class Conversation:
    """The messages between one agent and the model.

    The limit is `SessionConfig.context_tokens`, and holds for every request of `messages_with`
    together with its longest reply. A conversation that would exceed it starts anew: at a new
    page that leaves less than the reserve, and else where a question does not fit. Then the new
    conversation begins at the page too, and repeats what was said on it.

    Attributes:
        messages: The turns so far.
        pending: The text with which the next question begins: a new page, or what a click
            revealed.
        starts: How often a conversation was started in which something was asked.

    Args:
        user: Whose conversation it is.
        config: What is shown, and how long the conversation may grow.
        count_tokens: Counts the tokens of a text; needed for `config.context_tokens`. With a
            `language.counting.TokenCounter` the limit is exact; with another counter each
            message counts `MESSAGE_TOKENS` more.
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
        self._page = _Page("", None, 0, "")
        self._asked = False

    def show_page(self, text: str, memory: Any) -> None:
        """Put a page before the next question; start anew if it would leave no reserve.

        Args:
            text: The page.
            memory: What the openings of a new conversation repeat.

        Raises:
            ContextTooSmall: Not even the shortest opening and the page fit into the context.
        """
        turn = prompts.turn(self.pending, text)
        reserve = self._config.page_reserve_tokens + self._reasoning
        if self.messages and self._fits((*self.messages, Message.of("user", turn)), reserve):
            self._page = _Page(text, memory, len(self.messages), turn)
            self.pending = turn
            return
        starts = [
            (Message.of("system", system), prompts.turn(opening, text))
            for system, opening in self._openings(self._persona, self._config, memory)
        ]
        for room in (reserve, 0):
            for system, lead in starts:
                if self._fits((system, Message.of("user", lead)), room):
                    self._page = _Page(text, memory, 1, lead)
                    self.messages, self.pending, self._asked = (system,), lead, False
                    return
        raise self._too_small("persona and one page")

    def messages_with(
        self, question: str, answer: AnswerLines = (), reasoning_tokens: int | None = None
    ) -> tuple[Message, ...]:
        """Return the messages of a request, which fits into the context with its reply.

        Args:
            question: The text of the turn; it must already begin with `pending`.
            answer: The answer lines of the request; without them the reserve is left.
            reasoning_tokens: The most tokens of reasoning before them; `None` for the most that
                the settings allow.

        Raises:
            ContextTooSmall: Not even the shortest opening, the page and the question fit.
        """
        reasoning = self._reasoning if reasoning_tokens is None else reasoning_tokens
        room = self._reply_tokens(answer) + reasoning
        messages = (*self.messages, Message.of("user", question))
        if not self._fits(messages, room):
            messages = self._start_at_page(question, room)
        self.starts += not self._asked
        self._asked = True
        return messages

    def asking_again(self, request: Request, reply: str) -> Request | None:
        """Return the request to make after a reply that cannot be read, if it fits the context.

        Where the whole reply does not fit, its beginning stands for it.
        """
        room = self._reply_tokens(request.answer) + request.reasoning_tokens
        for text in (reply, shorten(reply, BAD_REPLY_CHARS)):
            again = ask_again(request, text)
            if self._fits(again.messages, room):
                return again
        return None

    def keep(self, request_messages: tuple[Message, ...], reply: str) -> None:
        """Add the messages of a request and the reply, which must hold no reasoning."""
        self.messages = (*request_messages, Message.of("assistant", reply))
        self.pending = ""

    def _start_at_page(self, question: str, room: int) -> tuple[Message, ...]:
        """Start anew with the page, what was said on it, and a question that did not fit.

        Of all openings the longest is taken that leaves the reserve for further questions, else
        the longest that fits. Where what was said on the page fits with none, it is left out.
        """
        page = self._page
        said = self.messages[page.begin :]
        first = said[0].content if said else question
        rest = first.removeprefix(page.lead).removeprefix("\n")
        asked = (*said[1:], Message.of("user", question)) if said else ()
        alone = question.removeprefix(page.lead).removeprefix("\n")
        spare = self._config.page_reserve_tokens
        for text, more, left in (
            (rest, asked, spare),
            (rest, asked, 0),
            (alone, (), spare),
            (alone, (), 0),
        ):
            for system, opening in self._openings(self._persona, self._config, page.memory):
                lead = prompts.turn(opening, page.text)
                begun = Message.of("user", prompts.turn(lead, text))
                messages = (Message.of("system", system), begun, *more)
                if self._fits(messages, room + left):
                    self._page = page._replace(begin=1, lead=lead)
                    self.messages, self._asked = messages[:-1], False
                    if not more:
                        self.pending = lead
                    return messages
        raise self._too_small(f"persona, one page and a question with {room} tokens of reply")

    def _too_small(self, what: str) -> ContextTooSmall:
        return ContextTooSmall(
            f"{what} do not fit into {self._config.context_tokens} tokens, even without "
            "history: raise context_tokens, or show fewer items on a page"
        )

    def _fits(self, messages: tuple[Message, ...], room: int) -> bool:
        limit = self._config.context_tokens
        if self._count is None or limit is None:
            return True
        texts = sum(self._tokens(message.content) for message in messages)
        whole = getattr(self._count, "conversation", None)
        if whole is None:
            return texts + MESSAGE_TOKENS * (len(messages) + 1) + room <= limit
        # far below the limit the estimate is enough: the seams do not add a quarter
        if texts + MOST_MESSAGE_TOKENS * (len(messages) + 1) + room <= 0.75 * limit:
            return True
        return whole(messages) + room <= limit

    def _reply_tokens(self, answer: AnswerLines) -> int:
        if self._count is None or self._config.context_tokens is None:
            return 0
        if not answer:
            return self._config.page_reserve_tokens
        reply = getattr(self._count, "reply", None)
        if reply is not None:
            return reply(answer)
        # each line ends with a newline or with the end of the turn
        return sum(max(map(self._tokens, lines)) + 1 for lines in answer)

    def _tokens(self, text: str) -> int:
        if self._count is None:
            return 0
        if text not in self._counted:
            self._counted[text] = self._count(text)
        return self._counted[text]

    @property
    def _reasoning(self) -> int:
        return max(self._config.reasoning_tokens, self._config.rate_reasoning_tokens)
