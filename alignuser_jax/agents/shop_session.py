"""One visit of one agent to a web shop, as a coroutine that does no I/O.

The agent reads a page, may reason, and takes one of the page's actions, until it leaves, has
bought, or has taken `SessionConfig.max_actions` (docs/method.md section 10). If the world
needs a page that is not in the log, the model writes it, with the world model's own prompt.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from alignuser_jax.agents.conversation import (
    AgentUser,
    Conversation,
    SessionConfig,
)
from alignuser_jax.agents.session import Asking, choices_for, probabilities
from alignuser_jax.datasets.shop_page_text import ELEMENTS_LINE
from alignuser_jax.language import prompts
from alignuser_jax.language.parsing import answer_text
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import (
    Action,
    Completion,
    CountTokens,
    Event,
    Message,
    NextPageRequest,
    Outcome,
    Persona,
    Request,
    State,
)
from alignuser_jax.world import GeneratedShop, WebShop

PAGE_TOKENS = 1024
"""The most tokens of a page that the model writes (DEFAULT)."""


def shop_session(
    user: AgentUser,
    shop: WebShop | GeneratedShop,
    config: SessionConfig,
    *,
    arm: str,
    number: int,
    seed: int,
    count_tokens: CountTokens | None = None,
) -> Generator[Request, Completion, Outcome]:
    """Return the coroutine of one visit of `user` to `shop`.

    It leaves these events: "page" whenever the page changed (`text` is its kind, `item_id` what
    made it), "act" (`item_id` is the click type), "purchase", "exit" (`value` is the number of
    pages) and "failure".

    After two replies that cannot be read the agent leaves (DEFAULT). A page that the model
    cannot write, or one after the first that leaves no room in the context, ends the visit.

    Args:
        user: Who acts.
        shop: The web shop.
        config: How the agent is asked. Used are `persona`, `max_actions`, `memory_items` (past
            actions that a new conversation lists), `reasoning_tokens`, `temperature`, `top_p`,
            `context_tokens`, `page_reserve_tokens` and `fail_fast`.
        arm: A name for the events.
        number: The number of the user's session.
        seed: Names the randomness.
        count_tokens: Counts the tokens of a text; needed for `config.context_tokens`.

    Raises:
        ValueError: The first page leaves no room in the context.

    Example:
        >>> def drive(visit, model):
        ...     request = next(visit)
        ...     while True:
        ...         try:
        ...             request = visit.send(model(request))  # -> Completion
        ...         except StopIteration as end:
        ...             return end.value  # an Outcome
    """
    visit = _ShopVisit(user, shop, config, arm, number, seed, count_tokens)
    return (yield from visit.run())


class _ShopVisit:
    def __init__(self, user, shop, config, arm, number, seed, count_tokens):
        self.user, self.shop, self.config = user, shop, config
        self.arm, self.number, self.seed = arm, number, seed
        self.events: list[Event] = []
        self.done: list[str] = []
        self.pages = self.failures = 0
        self.state: State = shop.reset(
            user.user_id, stable_key(seed, user.user_id, number, "world")
        )
        goal = shop.goal_text(self.state)

        def openings(
            persona: Persona | None, config: SessionConfig, done: Sequence[str]
        ) -> Iterator[tuple[str, str]]:
            listed = min(len(done), config.memory_items)
            while True:
                last = done[len(done) - listed :]
                opening = prompts.shop_opening(persona, goal, last)
                yield prompts.shop_system_prompt(), opening
                if not listed:
                    return
                listed //= 2

        self.conversation = Conversation(user, config, count_tokens, openings)

    def note(self, kind: str, **fields: Any) -> None:
        row = (self.arm, self.user.user_id, self.number, len(self.events), kind)
        self.events.append(Event(*row, page=self.pages, **fields))

    def run(self) -> Asking[Outcome]:
        page_text = None
        while True:
            if self.state.needs is not None and not (yield from self.write_page()):
                break
            if self.state.text != page_text:
                page_text = self.state.text
                if not self.state.terminal:
                    self.pages += 1
                    self.note("page", text=self.state.place, item_id=self.state.source)
            if self.state.terminal or len(self.done) >= self.config.max_actions:
                break
            action = yield from self.choose()
            if action is None:
                break
            self.done.append(action.token)
            self.state = self.shop.step(self.state, action)
        if self.shop.has_purchase(self.state):
            self.note("purchase", value=1.0)
        self.note("exit", value=float(self.pages))
        extra = {"messages": self.conversation.messages, "failures": self.failures}
        return Outcome(tuple(self.events), self.state, extra)

    def choose(self) -> Asking[Action | None]:
        """Ask for an action, note and return it; `None` if the model failed: the visit ends."""
        actions, config = self.state.actions, self.config
        answer = prompts.act_answer(actions)
        try:
            self.conversation.show_page(self.state.text, tuple(self.done))
            question = self.conversation.messages_with(
                prompts.shop_act_turn(actions, self.conversation.pending),
                answer,
                config.reasoning_tokens,
            )
        except ValueError as error:
            if not self.done:  # the settings are wrong, not this page
                raise
            self.failures += 1
            self.note("failure", text=f"act: {error}")
            return None
        request = self.request(question, "act", answer=answer)
        choices, completion, problem = yield from choices_for(request, self.conversation)
        if choices is None:
            self.failures += 1
            self.note("failure", text=f"act: {problem}")
            if completion.finish_reason == "error" and config.fail_fast:
                return None
            leaving = Action("terminate")
            choices, share = (actions.index(leaving),), 0.0
        else:
            share = probabilities(completion, 0, choices[0])[choices[0]]
        self.conversation.keep(question, answer_text(choices, answer))
        action = actions[choices[0]]
        click_type = self.shop.click_type(action)
        self.note("act", text=action.token, item_id=click_type, probability=share)
        return action

    def write_page(self) -> Asking[bool]:
        """Let the model write the page that the world needs; return whether it succeeded."""
        needs = self.state.needs
        assert isinstance(needs, NextPageRequest)
        messages = prompts.world_model_messages(
            needs.state_text, needs.action, platform=prompts.SHOP
        )
        completion = yield self.request(messages, "next_page", max_tokens=PAGE_TOKENS)
        problem = completion.error
        if completion.finish_reason != "error":
            text = completion.text
            try:
                if completion.finish_reason == "length":
                    text = _whole_parts(text)
                self.state = self.shop.resolve(self.state, text)
                return True
            except ValueError as error:
                problem = str(error)
        self.failures += 1
        self.note("failure", text=f"next_page: {problem}")
        return False

    def request(self, messages: tuple[Message, ...], purpose: str, **options: Any) -> Request:
        key = stable_key(self.seed, self.user.user_id, self.number, len(self.done), purpose)
        return Request(
            messages,
            purpose,
            reasoning_tokens=self.config.reasoning_tokens if purpose == "act" else 0,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            key=key,
            **options,
        )


def _whole_parts(page: str) -> str:
    """Return a page that was cut off without its last id or line, which may be incomplete."""
    head, title, ids = page.partition(ELEMENTS_LINE)
    if not title:
        return page.rpartition("\n")[0]
    return head + title + ids.rpartition(", ")[0]
