"""One visit of one agent as a coroutine that does no I/O (METHOD.md section 10).

It yields what it wants to know (`Request` to the model, `RecommendationRequest` to the site's
recommender), is sent the answer, and returns an `Outcome`. So it can be driven by hand, ten
thousand at once, from a log, or with a human's answers to make training examples.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from alignuser_jax.agents.conversation import (
    AgentUser,
    Conversation,
    CountTokens,
    SessionConfig,
    rate_recall,
    remembered,
    screen_recall,
)
from alignuser_jax.language import prompts
from alignuser_jax.language.parsing import answer_text, ask_again, read_choices
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import (
    Action,
    Completion,
    Event,
    Message,
    NextPageRequest,
    Outcome,
    RecommendationRequest,
    Request,
    State,
)
from alignuser_jax.world import RecommendationSite

SessionCoroutine = Generator[Request | RecommendationRequest | NextPageRequest, Any, Outcome]


class RecommendationFailed(Exception):
    """Thrown into a session whose slate could not be had; the session ends with a failure."""


class _ModelFailed(Exception):
    """The model failed and the configuration says to end the session there."""


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
    """Visit number `number` of `user` to `world` in `arm`.

    Per page: screen, rate each watched item, act; at the end the interview. Keys name seed,
    user, number, step, purpose and index but not the arm, so arms share their randomness.
    `count_tokens` counts the tokens of a text and is needed for `config.context_tokens`.
    """
    visit = _Visit(user, world, config, arm, number, seed, count_tokens)
    try:
        yield from visit.run()
    except (RecommendationFailed, _ModelFailed) as error:
        visit.note("failure", text=str(error))
    return visit.outcome()


def rate_request(
    messages: tuple[Message, ...], item_id: str, config: SessionConfig, key: int
) -> Request:
    """The scored question for one item's rating."""
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
    """The distribution over an answer line; all on `choice` where the back end cannot tell
    (`()`, as for actions whose tokens branch more than once)."""
    known = completion.choice_probabilities[line : line + 1]
    return known[0] if known and known[0] else (0.0,) * choice + (1.0,)


def expected_value(distribution: tuple[float, ...]) -> float:
    """The mean of alternatives that stand for 1, 2, 3, ...: an expected rating."""
    return sum(value * share for value, share in enumerate(distribution, 1))


def asked(request: Request) -> Generator[Request, Completion, tuple]:
    """(choices, completion, problem): choices are `None` where there is a problem. A reply that
    cannot be read is asked for once more."""
    completion = yield request
    choices, problem = read_choices(completion, request.answer)
    if choices is None and completion.finish_reason != "error":
        completion = yield ask_again(request, completion.text)
        choices, problem = read_choices(completion, request.answer)
    return choices, completion, problem


class _Visit:
    """The state of one running session."""

    def __init__(self, user, world, config, arm, number, seed, count_tokens):
        self.user, self.world, self.config = user, world, config
        self.arm, self.number, self.seed = arm, number, seed
        self.events: list[Event] = []
        self.step = 0
        self.failures = 0
        self.propensities: tuple[float, ...] | None = None
        self.state: State = world.reset(
            user.user_id, stable_key(seed, user.user_id, number, "world")
        )
        self.last_shown = 0
        self.memory = remembered(user, world.items)
        self.talk = Conversation(user, config, count_tokens)

    def outcome(self) -> Outcome:
        extra = {
            "memory": self.memory,
            "messages": self.talk.messages,
            "failures": self.failures,
            "restarts": max(self.talk.starts - 1, 0),
        }
        return Outcome(tuple(self.events), self.state, extra)

    def note(self, kind: str, **fields) -> None:
        fields = {"page": self.last_shown} | fields
        row = (self.arm, self.user.user_id, self.number, len(self.events), kind)
        self.events.append(Event(*row, **fields))

    # --- the visit ---

    def run(self):
        known_pages = 0
        while True:
            while self.state.needs is not None:
                answer = yield self.state.needs
                self.propensities = getattr(answer, "propensities", None)
                self.state = self.world.resolve(self.state, answer)
            if self.state.terminal:
                break
            self.talk.show_page(self.state.text, self.memory)
            self.last_shown = self.state.page
            if self.state.page > known_pages:
                known_pages = self.state.page
                yield from self.look()
            yield from self.act()
            if self.step >= self.config.max_actions:
                break
        self.note("exit", page=self.last_shown, value=float(self.last_shown))
        if self.config.interview and known_pages:
            yield from self.be_interviewed()

    def look(self):
        """Screen a new page, then watch and rate what was chosen."""
        slate = self.state.slate
        shares = self.propensities
        if shares is None or len(shares) != len(slate):
            shares = (0.0,) * len(slate)
        for position, (item_id, share) in enumerate(zip(slate, shares, strict=True), 1):
            self.note("page", position=position, item_id=item_id, probability=share)
        watched = range(len(slate))
        if self.config.screening:
            watched = yield from self.screen(slate)
        for index in watched:
            yield from self.rate(index + 1, slate[index])
        titles = [self.world.items[item_id].title for item_id in slate]
        self.memory = self.memory.seen_page(self.state.page, titles)

    def screen(self, slate: tuple[str, ...]):
        """The indices of the items to watch; none after a failure."""
        answer = prompts.screen_answer(len(slate))
        recalled = screen_recall(self.user, self.config, slate)
        asked = self.talk.ask(prompts.screen_turn(self.talk.pending, *recalled))
        choices, completion = yield from self.choose(self.request(asked, "screen", answer))
        if choices is None:
            self.talk.keep(asked, answer_text([1] * len(slate), answer))
            return []
        self.talk.keep(asked, answer_text(choices, answer))
        for index, (item_id, choice) in enumerate(zip(slate, choices, strict=True)):
            self.note(
                "screen",
                position=index + 1,
                item_id=item_id,
                value=float(choice == 0),
                probability=probabilities(completion, index, choice)[0],
            )
        return [index for index, choice in enumerate(choices) if choice == 0]

    def rate(self, position: int, item_id: str):
        target = f"ITEM_{position}"
        recalled = rate_recall(self.user, self.config, target, item_id, self.world)
        asked = self.talk.ask(prompts.rate_turn(target, self.talk.pending, recalled))
        key = self.key("rate", position)
        choices, completion = yield from self.choose(
            rate_request(asked, item_id, self.config, key)
        )
        if choices is None:
            return
        self.talk.keep(asked, answer_text(choices, prompts.rate_answer()))
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
        self.talk.pending = self.state.feedback
        title = self.world.items[item_id].title
        self.memory = self.memory.rated(title, float(value), self.state.page)

    def act(self):
        """Act until the page is left: a click shows details and then something else follows."""
        clicks = 0
        while True:
            actions = self.offered(clicks)
            action = yield from self.choose_action(actions)
            before, self.state = self.state, self.world.step(self.state, action)
            self.step += 1
            clicks += action.kind == "click"
            if action.kind != "click" or self.step >= self.config.max_actions:
                return
            shown = set(before.text.splitlines())
            new = [line for line in self.state.text.splitlines() if line not in shown]
            self.talk.pending = prompts.turn(self.talk.pending, *new)

    def offered(self, clicks: int) -> tuple[Action, ...]:
        left_out = {"rate"}
        if clicks >= self.config.max_clicks:
            left_out.add("click")
        if not self.config.previous_page:
            left_out.add("previous_page")
        return tuple(action for action in self.state.actions if action.kind not in left_out)

    def choose_action(self, actions: tuple[Action, ...]):
        if len(actions) == 1 and self.config.skip_forced:
            self.note("act", text=actions[0].token, probability=1.0)
            return actions[0]
        answer = prompts.act_answer(actions)
        asked = self.talk.ask(prompts.act_turn(actions, self.talk.pending))
        choices, completion = yield from self.choose(
            self.request(asked, "act", answer, self.config.reasoning_tokens)
        )
        share = 0.0
        if choices is None:
            choices = (_default_action(actions),)
        else:
            share = probabilities(completion, 0, choices[0])[choices[0]]
        self.talk.keep(asked, answer_text(choices, answer))
        action = actions[choices[0]]
        self.note("act", text=action.token, probability=share)
        return action

    def be_interviewed(self):
        answer = prompts.interview_answer()
        text = prompts.turn(self.talk.pending, self.state.text if self.state.terminal else "")
        asked = self.talk.ask(prompts.interview_turn(text))
        choices, completion = yield from self.choose(
            self.request(asked, "interview", answer, self.config.reasoning_tokens, scored=True)
        )
        if choices is None:
            return
        self.talk.keep(asked, answer_text(choices, answer))
        shares = probabilities(completion, 0, choices[0])
        self.note(
            "interview",
            value=float(choices[0] + 1),
            probability=shares[choices[0]],
            expected=expected_value(shares),
        )

    # --- asking ---

    def key(self, purpose: str, index: int = 0) -> int:
        """`step` counts the session's actions, `index` is an item's position."""
        user_id = self.user.user_id
        return stable_key(self.seed, user_id, self.number, self.step, purpose, index)

    def request(self, messages, purpose, answer, reasoning_tokens=0, scored=False) -> Request:
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

    def choose(self, request: Request):
        """(choices, completion); choices are `None` after a failure, which is noted.

        A reply that cannot be read is asked for once more; that exchange is not kept.
        """
        choices, completion, problem = yield from asked(request)
        if choices is None:
            self.failures += 1
            text = f"{request.purpose}: {problem}"
            if completion.finish_reason == "error" and self.config.fail_fast:
                raise _ModelFailed(text)
            self.note("failure", item_id=request.subject, text=text)
        return choices, completion


def _default_action(actions: tuple[Action, ...]) -> int:
    """What is done after two unreadable replies: go on, else leave (METHOD.md section 3)."""
    kinds = [action.kind for action in actions]
    return next((kinds.index(kind) for kind in ("next_page", "exit") if kind in kinds), 0)
