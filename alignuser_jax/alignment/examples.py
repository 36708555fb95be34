"""Make training examples by running the agents' own coroutines with human replies.

What is trained is what is run: the `Request` that a coroutine yields is the input, the reply
that is sent to it is the trained span (docs/architecture.md decision 4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from alignuser_jax.alignment.rollouts import leave_action
from alignuser_jax.alignment.visits import Visit
from alignuser_jax.language.parsing import answer_text
from alignuser_jax.language.prompts import BEST_ACTION, PLATFORM, world_model_messages
from alignuser_jax.records import (
    Action,
    Completion,
    Example,
    Message,
    RecommendationRequest,
    Request,
    Slate,
    Span,
    State,
    Transition,
)
from alignuser_jax.world import RecommendationSite

_Returned = TypeVar("_Returned")


class Call(NamedTuple):
    """One call of a session and the choices that answered it.

    Attributes:
        request: What the session asked.
        choices: For each answer line of the request, the index of the choice.
    """

    request: Request
    choices: tuple[int, ...]

    @property
    def answer(self) -> str:
        """The choices as the text that a model would have replied."""
        return answer_text(self.choices, self.request.answer)


def drive(
    coroutine: Generator[Any, Any, _Returned],
    choose: Callable[[Request], tuple[int, ...]],
    show: Callable[[RecommendationRequest], Slate] | None = None,
) -> tuple[list[Call], _Returned]:
    """Run a coroutine to its end with `choose` as the model and `show` as the recommender.

    Returns:
        Every call to the model with its choices, and what the session returned.

    Raises:
        TypeError: The session asks for something that a recorded visit cannot answer.
    """
    calls: list[Call] = []
    answer: Completion | Slate | None = None
    while True:
        try:
            request = coroutine.send(answer)
        except StopIteration as end:
            return calls, end.value
        if isinstance(request, Request):
            calls.append(Call(request, choose(request)))
            answer = Completion(calls[-1].answer, choices=calls[-1].choices)
        elif isinstance(request, RecommendationRequest) and show is not None:
            answer = show(request)
        else:
            raise TypeError(
                f"the session yields a {type(request).__name__}, which a recorded visit cannot "
                "answer; expected a Request or a RecommendationRequest"
            )


class HumanVisit:
    """A recorded visit that answers a session as its human did.

    Screening calls get "yes" for what was rated, rating calls the true ratings, the
    interview the visit's satisfaction (a DEFAULT), and act calls the human's actions in their
    order. Where those have run out, or there are none, it answers `[NEXT_PAGE]`, and on the
    last page `[EXIT]`.

    Attributes:
        page: The number of pages that the session has been shown so far.
    """

    def __init__(self, visit: Visit, actions: Sequence[Action] = ()):
        self.visit, self.ratings = visit, visit.ratings
        self.actions = deque(actions)
        self.page = 0

    def show(self, request: RecommendationRequest) -> Slate:
        """Return the next page of the visit; raises `ValueError` where it has no more."""
        if self.page == len(self.visit.pages):
            raise ValueError(
                f"the session asks for page {self.page + 1} of a visit of {self.page} pages "
                f"of user {self.visit.user_id!r}: run it on a site that ends there"
            )
        self.page += 1
        return Slate(self.visit.pages[self.page - 1])

    def choose(self, request: Request) -> tuple[int, ...]:
        """Return the human's choice for each answer line of `request`."""
        if request.purpose == "screen":
            slate = self.visit.pages[self.page - 1]
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
            else leave_action(leaving, self.page == len(self.visit.pages))
        )
        if action_line(action) not in lines:
            raise ValueError(
                f"the action {action.token} of user {self.visit.user_id!r} is not offered "
                f"here; the site offers {', '.join(lines)}"
            )
        return lines.index(action_line(action))


def action_line(action: Action) -> str:
    """Return the answer line that names `action` in an act call."""
    return BEST_ACTION + action.token


class WatchedWorld:
    """A site that records its transitions, in order, for one session.

    Attributes:
        transitions: One per step; the next state is the one with its page filled in.
    """

    def __init__(self, world: RecommendationSite):
        self.world, self.items, self.rating_text = world, world.items, world.rating_text
        self.transitions: list[Transition] = []

    def reset(self, user_id: str, seed: int) -> State:
        """Return the first state of a visit, as the site does."""
        return self.world.reset(user_id, seed)

    def step(self, state: State, action: Action) -> State:
        """Step the site and record the transition."""
        after = self.world.step(state, action)
        self.transitions.append(Transition(state, action, after, "human"))
        return after

    def resolve(self, state: State, answer: Slate | str) -> State:
        """Fill the page in that `state` needs, and in the last transition too."""
        filled = self.world.resolve(state, answer)
        if self.transitions:
            self.transitions[-1] = replace(self.transitions[-1], next_state=filled)
        return filled


def conversation_examples(
    calls: Sequence[Call], task: str, name: str, user_id: str
) -> list[Example]:
    """Make one example per context window of a conversation, with every reply trained once.

    Conversations only grow, so the last call of a window holds the replies to all earlier
    calls: the same loss as one example per call, at the cost of one. A window that began in
    the middle of a page repeats what was said on it; those replies are trained in the window
    before.

    Args:
        calls: The calls, in order, with their choices.
        task: The examples' task, one of `config.TASKS`.
        name: Tells the conversation from others of its task.
        user_id: Whose conversation it is.
    """
    windows: list[list[Call]] = []
    for call in calls:
        if windows and _continues(windows[-1][-1], call):
            windows[-1].append(call)
        else:
            windows.append([call])
    return [
        Example(
            task,
            (*_trained(window), _reply("", window[-1].answer)),
            f"{task}/{name}/{number}",
            user_id,
        )
        for number, window in enumerate(windows)
    ]


def _trained(window: Sequence[Call]) -> list[Message]:
    """The messages before a window's last reply; the replies to its own calls are trained."""
    messages = window[-1].request.messages
    replies = [n for n, message in enumerate(messages) if message.role == "assistant"]
    own = set(replies[len(replies) - (len(window) - 1) :])
    return [_train_replies(m) if n in own else m for n, m in enumerate(messages)]


def _continues(before: Call, after: Call) -> bool:
    """Whether the later conversation holds the earlier one and the reply to it."""
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
    """Make an example of one call: the prompt of inference, then the human's answer.

    Args:
        call: The call and the human's choice; its request is the prompt.
        task: The example's task, one of `config.TASKS`.
        example_id: Unique in the shards.
        user_id: Whose call it is.
        reasoning: Text that is trained before the answer; must end with a newline. Without
            it this is an imitation example.
    """
    if reasoning and not reasoning.endswith("\n"):
        raise ValueError(f"the reasoning {reasoning!r} must end with a newline: add one")
    messages = (*call.request.messages, _reply(reasoning, call.answer))
    return Example(task, messages, example_id, user_id)


def world_model_examples(
    transitions: Iterable[Transition],
    names: Iterable[str],
    item_type: str = "movies",
    platform: str = PLATFORM,
) -> list[Example]:
    """Make one example `(state, action) -> next state` per transition.

    This is the world-model loss of docs/method.md section 1, equation 2; the prompt holds no
    persona.

    Args:
        transitions: The steps to learn.
        names: The examples' names, one per transition.
        item_type: What the site offers, for the prompt.
        platform: What kind of site it is, for the prompt.
    """
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
