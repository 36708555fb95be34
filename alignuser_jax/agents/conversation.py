"""The conversation of one agent: it only grows, until a page would not fit and it starts anew.

What was said is never edited, so the conversation is the agent's recent history and every
request extends the one before it. Training runs the same code (ARCHITECTURE.md decision 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignuser_jax.language import prompts
from alignuser_jax.memory import EpisodicMemory, Recollection, mean_level
from alignuser_jax.records import Interaction, Item, Message, Persona
from alignuser_jax.world import RecommendationSite
from alignuser_jax.world.site.page import NONE

MESSAGE_TOKENS = 5
"""What a chat template puts around a message, in tokens (ChatML and Llama 3: 5)."""

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class AgentUser:
    """Who acts: the persona, what the user rated before, oldest first, and what is recalled of
    an item (`None`: nothing)."""

    persona: Persona
    history: tuple[Interaction, ...] = ()
    recollection: Recollection | None = None

    @property
    def user_id(self) -> str:
        return self.persona.user_id


def remembered(user: AgentUser, items: Mapping[str, Item]) -> EpisodicMemory:
    """What the user remembers at the start: the history, as far as the catalogue names it."""
    history = [past for past in user.history if past.item_id in items]
    titles = {past.item_id: items[past.item_id].title for past in history}
    return EpisodicMemory.of(history, titles)


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How agents are asked.

    `screening` asks which items to watch (without it all are watched); `persona` shows who
    the user is (without it: the ablation); `history_items` past ratings are told at the
    start, and after a restart `memory_items` of the session's besides; `recall` puts what
    is recalled of an item before a screening and a rating (memory/recall.py; off as in the
    paper). `max_clicks` per page, `previous_page` and `max_actions` per session limit what
    is offered; `skip_forced` takes the only action there is without asking.
    `reasoning_tokens` may precede an action and the interview, `rate_reasoning_tokens` a
    rating. A page that would leave less than `page_reserve_tokens` (beside the reasoning)
    of `context_tokens` starts a new conversation; `None` means no limit. `fail_fast` ends a
    session at its first error of the model, otherwise it goes on with a default.
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
        for name in ("history_items", "memory_items", "max_clicks", "reasoning_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.max_actions < 1:
            raise ValueError(f"max_actions is {self.max_actions}, expected 1 or more")


def screen_recall(user: AgentUser, config: SessionConfig, slate: Sequence[str]) -> list[str]:
    """What the user recalls of the items of a new page, a line each."""
    if not config.recall or user.recollection is None:
        return []
    about = [user.recollection.about(item_id) for item_id in slate]
    return [
        prompts.screen_recall(f"ITEM_{n}", _told(recall.match), _told(recall.popularity))
        for n, recall in enumerate(about, 1)
    ]


def rate_recall(
    user: AgentUser,
    config: SessionConfig,
    target: str,
    item_id: str,
    world: RecommendationSite,
) -> str:
    """What the user recalls before rating an item; of others' ratings what the page shows."""
    if not config.recall or user.recollection is None:
        return ""
    shown = world.rating_text(user.user_id, item_id)
    others = str(mean_level(float(shown))) if shown[0].isdigit() else shown
    similar = user.recollection.about(item_id).similar
    own = None if similar is None else mean_level(similar)
    return prompts.rate_recall(target, others, _told(own))


def _told(level: int | None) -> str:
    return NONE if level is None else str(level)


Openings = Callable[[Persona | None, SessionConfig, Any], Iterator[tuple[str, str]]]
"""(persona, config, memory) -> pairs of a system message and how the first user message begins,
each telling less of the memory than the one before, the last one nothing."""


def site_openings(
    persona: Persona | None, config: SessionConfig, memory: EpisodicMemory
) -> Iterator[tuple[str, str]]:
    """`Openings` of a visit to a recommendation site."""
    system = prompts.system_prompt(config.item_type, config.recall)
    in_session = sum(rated.page > 0 for rated in memory.ratings)
    told = config.history_items + min(in_session, config.memory_items)
    while True:
        yield system, prompts.opening(persona, memory.summary(told), config.item_type)
        if not told:
            return
        told //= 2


class Conversation:
    """Messages so far, and `pending`, what the next question begins with."""

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
        """Put a page before the next question; start anew where it would not fit. `memory` is
        what the openings tell of."""
        said = prompts.turn(self.pending, text)
        if self.messages and self._fits(*self.messages, Message.of("user", said)):
            self.pending = said
        else:
            self._start(text, memory)

    def ask(self, question: str) -> tuple[Message, ...]:
        """The messages of a request; `question` already begins with `pending`."""
        return (*self.messages, Message.of("user", question))

    def keep(self, asked: tuple[Message, ...], reply: str) -> None:
        """Go on from `asked` and its reply, which holds no reasoning."""
        self.messages = (*asked, Message.of("assistant", reply))
        self.pending = ""

    def _start(self, page_text: str, memory: Any) -> None:
        for said, opening in self._openings(self._persona, self._config, memory):
            system = Message.of("system", said)
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
        if text not in self._counted:
            self._counted[text] = self._count(text)
        return self._counted[text]

    @property
    def _reserve(self) -> int:
        config = self._config
        return config.page_reserve_tokens + max(
            config.reasoning_tokens, config.rate_reasoning_tokens
        )
