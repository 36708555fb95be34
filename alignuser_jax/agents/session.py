"""One visit of one agent to a recommendation site, as a coroutine that does no I/O.

The coroutine yields its questions (a `Request` to the model, a `RecommendationRequest` to the
site's recommender), is sent the answers and returns an `Outcome` (docs/method.md section 10).
So it can be driven by hand, ten thousand at once, from a log, or with a human's answers, which
makes training examples.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from alignuser_jax.agents.conversation import (
    AgentUser,
    ContextTooSmall,
    Conversation,
    SessionConfig,
    rate_recall,
    remembered,
    screen_recall,
)
from alignuser_jax.durable.answers import Question
from alignuser_jax.language import prompts
from alignuser_jax.language.answers import AnswerLines
from alignuser_jax.language.parsing import answer_text, read_choices
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import (
    Action,
    Completion,
    CountTokens,
    Event,
    Message,
    Outcome,
    Request,
    State,
)
from alignuser_jax.world import RecommendationSite
from alignuser_jax.world.site.page import local_id

SessionCoroutine = Generator[Question, Any, Outcome]

ReadReply = tuple[tuple[int, ...] | None, Completion, str]
"""The alternatives taken (`None` if the reply cannot be read), the completion, and why not."""

_T = TypeVar("_T")
Asking = Generator[Request, Completion, _T]
"""A part of a session that asks the model and returns a value."""


class RecommendationFailed(Exception):
    """Thrown into a session whose recommender gave no valid slate; it ends with a failure."""


class _ModelFailed(Exception):
    """The model failed, and `SessionConfig.fail_fast` says to end the session there."""


def session(
    user: AgentUser,
    world: RecommendationSite,
    config: SessionConfig,
    *,
    arm: str,
    number: int,
    seed: int,
    count_tokens: CountTokens | None = None,
) -> SessionCoroutine:
    """Return the coroutine of one visit of `user` to `world`.

    On each page the agent screens the items, rates each item that it watches, and acts; at the
    end it is interviewed. Request keys are made of seed, user, number, step, purpose and index
    but not of the arm, so the arms of a comparison share their randomness.

    Args:
        user: Who acts.
        world: The site.
        config: What the agent is shown and asked.
        arm: The name of the recommender, for the events.
        number: The number of the user's session.
        seed: Names the randomness.
        count_tokens: Counts the tokens of a text; needed for `config.context_tokens`.

    Raises:
        ContextTooSmall: The first page leaves no room in the context. At a later page the visit
            ends with a failure.

    Example:
        >>> def drive(visit, model, recommender):
        ...     question = next(visit)
        ...     while True:
        ...         if isinstance(question, Request):
        ...             answer = model(question)  # -> Completion
        ...         else:
        ...             (answer,) = recommender.recommend([question])
        ...         try:
        ...             question = visit.send(answer)
        ...         except StopIteration as end:
        ...             return end.value  # an Outcome
    """
    visit = _Visit(user, world, config, arm, number, seed, count_tokens)
    try:
        yield from visit.run()
    except (RecommendationFailed, _ModelFailed) as error:
        visit.note("failure", text=str(error))
    except ContextTooSmall as error:
        if not visit.conversation.starts:  # the settings are wrong, not this page
            raise
        visit.failures += 1
        visit.note("failure", text=str(error))
    return visit.outcome()


def rate_request(
    messages: tuple[Message, ...], item_id: str, config: SessionConfig, key: int
) -> Request:
    """Return the scored request for the rating of one item."""
    return Request(
        messages,
        "rate",
        subject=item_id,
        answer=prompts.rate_answer(),
        scored=True,
        reasoning_tokens=config.rate_reasoning_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        key=key,
    )


def probabilities(completion: Completion, line: int, choice: int) -> tuple[float, ...]:
    """Return the distribution over the alternatives of an answer line.

    Where the back end cannot tell it (as for actions whose tokens branch more than once), all
    probability is on `choice`, the alternative that was taken.
    """
    rows = completion.choice_probabilities[line : line + 1]
    return rows[0] if rows and rows[0] else (0.0,) * choice + (1.0,)


def expected_value(distribution: tuple[float, ...]) -> float:
    """Return the mean of alternatives that stand for 1, 2, 3, ...: an expected rating.

    >>> expected_value((0.0, 0.0, 0.5, 0.5, 0.0))
    3.5
    """
    return sum(value * share for value, share in enumerate(distribution, 1))


def choices_for(
    request: Request, conversation: Conversation
) -> Generator[Request, Completion, ReadReply]:
    """Yield `request`, once more if its reply cannot be read, and return what came of it.

    The second request has the bad reply in it, shortened where the context has no room for it;
    without any room for it there is no second request.

    Returns:
        (choices, completion, problem): the alternatives taken, the last completion, and ""; or
        `None`, the last completion, and why there are no choices.
    """
    completion = yield request
    choices, problem = read_choices(completion, request.answer)
    if choices is None and completion.finish_reason != "error":
        again = conversation.asking_again(request, completion.text)
        if again is not None:
            completion = yield again
            choices, problem = read_choices(completion, request.answer)
    return choices, completion, problem


class _Visit:
    """The state of one running session."""

    def __init__(
        self,
        user: AgentUser,
        world: RecommendationSite,
        config: SessionConfig,
        arm: str,
        number: int,
        seed: int,
        count_tokens: CountTokens | None,
    ):
        self.user, self.world, self.config = user, world, config
        self.arm, self.number, self.seed = arm, number, seed
        self.events: list[Event] = []
        self.step = 0
        self.failures = 0
        self.propensities: tuple[float, ...] | None = None
        self.state: State = world.reset(
            user.user_id, stable_key(seed, user.user_id, number, "world")
        )
        self.last_page = 0
        self.memory = remembered(user, world.items)
        self.conversation = Conversation(user, config, count_tokens)

    def outcome(self) -> Outcome:
        extra = {
            "memory": self.memory,
            "messages": self.conversation.messages,
            "failures": self.failures,
            "restarts": max(self.conversation.starts - 1, 0),
        }
        return Outcome(tuple(self.events), self.state, extra)

    def note(self, kind: str, **fields: Any) -> None:
        fields = {"page": self.last_page} | fields
        row = (self.arm, self.user.user_id, self.number, len(self.events), kind)
        self.events.append(Event(*row, **fields))

    # --- the visit ---

    def run(self) -> Generator[Question, Any, None]:
        pages_looked_at = 0
        while True:
            while self.state.needs is not None:
                answer = yield self.state.needs
                self.propensities = getattr(answer, "propensities", None)
                self.state = self.world.resolve(self.state, answer)
            if self.state.terminal:
                break
            self.conversation.show_page(self.state.text, self.memory)
            self.last_page = self.state.page
            if self.state.page > pages_looked_at:
                pages_looked_at = self.state.page
                yield from self.look()
            yield from self.act()
            if self.step >= self.config.max_actions:
                break
        self.note("exit", page=self.last_page, value=float(self.last_page))
        if self.config.interview and pages_looked_at:
            yield from self.be_interviewed()

    def look(self) -> Asking[None]:
        """Screen a new page, then rate the items that the agent watches."""
        slate = self.state.slate
        shares = self.propensities
        if shares is None or len(shares) != len(slate):
            shares = (0.0,) * len(slate)
        for position, (item_id, share) in enumerate(zip(slate, shares, strict=True), 1):
            self.note("page", position=position, item_id=item_id, probability=share)
        watched: Sequence[int] = range(len(slate))
        if self.config.screening:
            watched = yield from self.screen(slate)
        for index in watched:
            yield from self.rate(index + 1, slate[index])
        titles = [self.world.items[item_id].title for item_id in slate]
        self.memory = self.memory.with_page(self.state.page, titles)

    def screen(self, slate: tuple[str, ...]) -> Asking[list[int]]:
        """Ask which items to watch; return their indices, none after a failure."""
        answer = prompts.screen_answer(len(slate))
        recalled = screen_recall(self.user, self.config, slate)
        messages = self.conversation.messages_with(
            prompts.screen_turn(self.conversation.pending, *recalled), answer, 0
        )
        choices, completion = yield from self.choose(self.request(messages, "screen", answer))
        if choices is None:
            self.conversation.keep(messages, answer_text([1] * len(slate), answer))
            return []
        self.conversation.keep(messages, answer_text(choices, answer))
        for index, (item_id, choice) in enumerate(zip(slate, choices, strict=True)):
            self.note(
                "screen",
                position=index + 1,
                item_id=item_id,
                value=float(choice == 0),
                probability=probabilities(completion, index, choice)[0],
            )
        return [index for index, choice in enumerate(choices) if choice == 0]

    def rate(self, position: int, item_id: str) -> Asking[None]:
        target = local_id(position)
        recalled = rate_recall(self.user, self.config, item_id, self.world)
        messages = self.conversation.messages_with(
            prompts.rate_turn(target, self.conversation.pending, recalled),
            prompts.rate_answer(),
            self.config.rate_reasoning_tokens,
        )
        key = self.key("rate", position)
        choices, completion = yield from self.choose(
            rate_request(messages, item_id, self.config, key)
        )
        if choices is None:
            return
        self.conversation.keep(messages, answer_text(choices, prompts.rate_answer()))
        value = choices[0] + 1
        shares = probabilities(completion, 0, choices[0])
        self.note(
            "rate",
            position=position,
            item_id=item_id,
            value=float(value),
            probability=shares[choices[0]],
            expected=expected_value(shares),
        )
        self.state = self.world.step(self.state, Action("rate", target, value))
        title = self.world.items[item_id].title
        self.memory = self.memory.with_rating(title, float(value), self.state.page)

    def act(self) -> Asking[None]:
        """Take actions until the page is left; after a click, which opens details, go on."""
        clicks = 0
        while True:
            actions = self.offered(clicks)
            action = yield from self.choose_action(actions)
            before, self.state = self.state, self.world.step(self.state, action)
            self.step += 1
            clicks += action.kind == "click"
            if action.kind != "click" or self.step >= self.config.max_actions:
                return
            old_lines = set(before.text.splitlines())
            new = [line for line in self.state.text.splitlines() if line not in old_lines]
            self.conversation.pending = prompts.turn(self.conversation.pending, *new)

    def offered(self, clicks: int) -> tuple[Action, ...]:
        left_out = {"rate"}
        if clicks >= self.config.max_clicks:
            left_out.add("click")
        if not self.config.previous_page:
            left_out.add("previous_page")
        return tuple(action for action in self.state.actions if action.kind not in left_out)

    def choose_action(self, actions: tuple[Action, ...]) -> Asking[Action]:
        if len(actions) == 1 and self.config.skip_forced:
            self.note("act", text=actions[0].token, probability=1.0)
            return actions[0]
        answer = prompts.act_answer(actions)
        messages = self.conversation.messages_with(
            prompts.act_turn(actions, self.conversation.pending),
            answer,
            self.config.reasoning_tokens,
        )
        choices, completion = yield from self.choose(
            self.request(messages, "act", answer, self.config.reasoning_tokens)
        )
        share = 0.0
        if choices is None:
            choices = (_default_action(actions),)
        else:
            share = probabilities(completion, 0, choices[0])[choices[0]]
        self.conversation.keep(messages, answer_text(choices, answer))
        action = actions[choices[0]]
        self.note("act", text=action.token, probability=share)
        return action

    def be_interviewed(self) -> Asking[None]:
        answer = prompts.interview_answer()
        text = prompts.turn(
            self.conversation.pending, self.state.text if self.state.terminal else ""
        )
        messages = self.conversation.messages_with(
            prompts.interview_turn(text), answer, self.config.reasoning_tokens
        )
        choices, completion = yield from self.choose(
            self.request(
                messages, "interview", answer, self.config.reasoning_tokens, scored=True
            )
        )
        if choices is None:
            return
        self.conversation.keep(messages, answer_text(choices, answer))
        shares = probabilities(completion, 0, choices[0])
        self.note(
            "interview",
            value=float(choices[0] + 1),
            probability=shares[choices[0]],
            expected=expected_value(shares),
        )

    # --- requests ---

    def key(self, purpose: str, index: int = 0) -> int:
        """Return the key of a request; `index` is an item's position."""
        user_id = self.user.user_id
        return stable_key(self.seed, user_id, self.number, self.step, purpose, index)

    def request(
        self,
        messages: tuple[Message, ...],
        purpose: str,
        answer: AnswerLines,
        reasoning_tokens: int = 0,
        scored: bool = False,
    ) -> Request:
        return Request(
            messages,
            purpose,
            answer=answer,
            scored=scored,
            reasoning_tokens=reasoning_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            key=self.key(purpose),
        )

    def choose(self, request: Request) -> Asking[tuple[tuple[int, ...] | None, Completion]]:
        """Return (choices, completion); choices are `None` after a failure, which is noted.

        A reply that cannot be read is asked for once more; that exchange does not become part
        of the conversation.
        """
        choices, completion, problem = yield from choices_for(request, self.conversation)
        if choices is None:
            self.failures += 1
            text = f"{request.purpose}: {problem}"
            if completion.finish_reason == "error" and self.config.fail_fast:
                raise _ModelFailed(text)
            self.note("failure", item_id=request.subject, text=text)
        return choices, completion


def _default_action(actions: tuple[Action, ...]) -> int:
    """Return the index of the action after two unreadable replies: go on, or else leave.

    The rule is that of docs/method.md section 3.
    """
    kinds = [action.kind for action in actions]
    return next((kinds.index(kind) for kind in ("next_page", "exit") if kind in kinds), 0)
