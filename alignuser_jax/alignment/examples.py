"""Training examples made by running the agents' own coroutines with human replies.

What is trained is what is run: the `Request` that a coroutine yields is the input, the reply
that is sent in is the trained span (ARCHITECTURE.md, decision 4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from alignuser_jax.alignment.rollouts import leave_action
from alignuser_jax.alignment.visits import Visit
from alignuser_jax.language.parsing import answer_text
from alignuser_jax.language.prompts import BEST_ACTION, PLATFORM, world_model_messages
from alignuser_jax.records import (
    Action,
    Completion,
    Example,
    Message,
    Outcome,
    RecommendationRequest,
    Request,
    Slate,
    Span,
    State,
    Transition,
)
from alignuser_jax.world import RecommendationSite


class Call(NamedTuple):
    """One call of a session and the choices that answered it."""

    request: Request
    choices: tuple[int, ...]

    @property
    def answer(self) -> str:
        return answer_text(self.choices, self.request.answer)


def drive(
    coroutine: Generator[Any, Any, Outcome],
    choose: Callable[[Request], tuple[int, ...]],
    show: Callable[[RecommendationRequest], Slate],
) -> tuple[list[Call], Outcome]:
    """Runs a session to its end with `choose` as the model and `show` as the recommender."""
    calls: list[Call] = []
    answer: Completion | Slate | None = None
    while True:
        try:
            question = coroutine.send(answer)
        except StopIteration as end:
            return calls, end.value
        if isinstance(question, Request):
            calls.append(Call(question, choose(question)))
            answer = Completion(calls[-1].answer, choices=calls[-1].choices)
        elif isinstance(question, RecommendationRequest):
            answer = show(question)
        else:
            raise TypeError(
                f"the session asks a {type(question).__name__}, which a recorded visit cannot "
                "answer; expected a Request or a RecommendationRequest"
            )


class HumanVisit:
    """A visit as the replies of a session: `[WATCH]` what was rated, the true ratings, the
    visit's satisfaction (DEFAULT), and `actions` in their order; where those have run out,
    `[NEXT_PAGE]`, and on the last page `[EXIT]`."""

    def __init__(self, visit: Visit, actions: Sequence[Action] = ()):
        self.visit, self.ratings = visit, visit.ratings
        self.actions = deque(actions)
        self.shown = 0

    def show(self, request: RecommendationRequest) -> Slate:
        if self.shown == len(self.visit.pages):
            raise ValueError(
                f"the session asks for page {self.shown + 1} of a visit of {self.shown} pages "
                f"of user {self.visit.user_id!r}: run it on a site that ends there"
            )
        self.shown += 1
        return Slate(self.visit.pages[self.shown - 1])

    def choose(self, request: Request) -> tuple[int, ...]:
        if request.purpose == "screen":
            slate = self.visit.pages[self.shown - 1]
            return tuple(0 if item_id in self.ratings else 1 for item_id in slate)
        if request.purpose == "rate":
            return (self.ratings[request.subject] - 1,)
        if request.purpose == "act":
            return (self._act(request.answer[0]),)
        if request.purpose == "interview":
            return (self.visit.satisfaction - 1,)
        raise ValueError(f"a recorded visit has no reply to a {request.purpose!r} request")

    def _act(self, lines: tuple[str, ...]) -> int:
        leaving = [a for a in (Action("exit"), Action("next_page")) if action_line(a) in lines]
        action = (
            self.actions.popleft()
            if self.actions
            else leave_action(leaving, self.shown == len(self.visit.pages))
        )
        if action_line(action) not in lines:
            raise ValueError(
                f"user {self.visit.user_id!r} did {action.token}, which is not offered; "
                f"offered: {', '.join(lines)}"
            )
        return lines.index(action_line(action))


def action_line(action: Action) -> str:
    return BEST_ACTION + action.token


class WatchedWorld:
    """A site that keeps its transitions, the pages it needed filled in, in order."""

    def __init__(self, world: RecommendationSite):
        self.world, self.items, self.rating_text = world, world.items, world.rating_text
        self.transitions: list[Transition] = []
        self.state: State | None = None

    def reset(self, user_id: str, seed: int) -> State:
        self.state = self.world.reset(user_id, seed)
        return self.state

    def step(self, state: State, action: Action) -> State:
        self.state = self.world.step(state, action)
        self.transitions.append(Transition(state, action, self.state, "human"))
        return self.state

    def resolve(self, state: State, answer: Slate | str) -> State:
        self.state = self.world.resolve(state, answer)
        if self.transitions:
            self.transitions[-1] = replace(self.transitions[-1], next_state=self.state)
        return self.state


def visit_examples(calls: Sequence[Call], visit: Visit, task: str = "visit") -> list[Example]:
    """One example per context window, every reply trained.

    Conversations only grow, so the last call of a window holds the replies to all earlier
    ones: the same loss as one example per call, at the cost of one.
    """
    windows: list[Call] = []
    for call in calls:
        if windows and _continues(windows[-1], call):
            windows[-1] = call
        else:
            windows.append(call)
    return [
        Example(
            task,
            (*map(_train_replies, call.request.messages), _reply("", call.answer)),
            f"{task}/{visit.user_id}/{visit.number}/{number}",
            visit.user_id,
        )
        for number, call in enumerate(windows)
    ]


def _continues(before: Call, after: Call) -> bool:
    """True where the later conversation holds the earlier one and the reply to it."""
    messages = before.request.messages
    n = len(messages)
    later = after.request.messages
    return (
        len(later) > n
        and later[:n] == messages
        and later[n].role == "assistant"
        and later[n].content == before.answer
    )


def _train_replies(message: Message) -> Message:
    return _reply("", message.content) if message.role == "assistant" else message


def _reply(reasoning: str, answer: str) -> Message:
    spans = (Span(reasoning, trained=True),) if reasoning else ()
    return Message("assistant", (*spans, Span(answer, trained=True, action=True)))


def choice_example(
    call: Call, task: str, example_id: str, user_id: str, reasoning: str = ""
) -> Example:
    """The prompt as it is at inference; trained: the reasoning and the human's answer.

    Without reasoning this is an imitation example. `reasoning` ends with a newline.
    """
    if reasoning and not reasoning.endswith("\n"):
        raise ValueError(f"the reasoning {reasoning!r} must end with a newline")
    messages = (*call.request.messages, _reply(reasoning, call.answer))
    return Example(task, messages, example_id, user_id)


def world_model_examples(
    transitions: Iterable[Transition],
    names: Iterable[str],
    item_type: str = "movies",
    platform: str = PLATFORM,
) -> list[Example]:
    """`(state, action) -> next state` of METHOD.md equation 2; no persona in the prompt."""
    return [
        Example(
            "world_model",
            world_model_messages(
                step.state.text, step.action, step.next_state.text, item_type, platform
            ),
            f"world_model/{name}",
            step.state.user_id if step.source == "human" else "",
        )
        for step, name in zip(transitions, names, strict=True)
    ]
