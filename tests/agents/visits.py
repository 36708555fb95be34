"""A small site, a user, and visits driven by hand with canned replies."""

from alignuser_jax.agents import (
    AgentUser,
    SessionConfig,
    session,
)
from alignuser_jax.agents.conversation import MESSAGE_TOKENS
from alignuser_jax.records import (
    Completion,
    Interaction,
    Item,
    Persona,
    RecommendationRequest,
    Slate,
)
from alignuser_jax.world import RecommendationSite, SiteConfig

ITEMS = {f"i{n}": Item(f"i{n}", f"Film {n}", ("Drama",), f"About {n}.") for n in range(40)}
HISTORY = (Interaction("i30", 5.0, 1), Interaction("i31", 2.0, 2), Interaction("gone", 3.0, 3))
USER = AgentUser(Persona("u1", pickiness=2), HISTORY)


def site(**options):
    config = SiteConfig(**{"items_per_page": 3, "horizon": 2} | options)
    return RecommendationSite(ITEMS, {"u1": HISTORY}, {"i1": 4.0}, config)


def slate_of(request):
    start = 3 * (request.page - 1)
    return Slate(tuple(f"i{n}" for n in range(start, start + request.k)))


def completion(request, *choices):
    """A constrained reply; half of the probability on the choice."""
    text = "\n".join(line[c] for line, c in zip(request.answer, choices, strict=True))
    shares = []
    for line, choice in zip(request.answer, choices, strict=True):
        rest = 0.5 / max(len(line) - 1, 1)
        shares.append(tuple(0.5 if c == choice else rest for c in range(len(line))))
    return Completion("because\n" + text, tuple(choices), tuple(shares))


def constant(request, screen=(0, 1, 0), rating=4, act="[NEXT_PAGE]", satisfaction=7):
    """Watch 1 and 3, rate 4, go on, 7 of 10."""
    if request.purpose == "screen":
        return completion(request, *screen[: len(request.answer)])
    if request.purpose == "rate":
        return completion(request, rating - 1)
    if request.purpose == "interview":
        return completion(request, satisfaction - 1)
    return completion(request, request.answer[0].index("BEST-ACTION: " + act))


def drive(coroutine, reply=constant, slates=slate_of):
    """Run one coroutine by hand; returns its requests and its outcome."""
    requests, answer = [], None
    while True:
        try:
            question = coroutine.send(answer)
        except StopIteration as end:
            return requests, end.value
        if isinstance(question, RecommendationRequest):
            answer = slates(question)
        else:
            requests.append(question)
            answer = reply(question)


def visit(
    reply=constant, *, world=None, user=USER, number=0, seed=1, arm="a", count=None, **options
):
    config = SessionConfig(**options)
    coroutine = session(
        user, world or site(), config, arm=arm, number=number, seed=seed, count_tokens=count
    )
    return drive(coroutine, reply)


def actions_script(*tokens):
    left = list(tokens)
    return lambda request: constant(
        request, **({"act": left.pop(0)} if request.purpose == "act" else {})
    )


def kinds(outcome):
    return [event.kind for event in outcome.events]


def words(text):
    return len(text.split())


def tokens_of(messages):
    return sum(words(m.content) + MESSAGE_TOKENS for m in messages)
