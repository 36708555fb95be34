"""A toy session and answerers whose answers depend on the question only."""

from alignuser_jax.randomness import stable_key
from alignuser_jax.records import (
    Completion,
    Event,
    Message,
    Outcome,
    RecommendationRequest,
    Request,
    Slate,
    State,
)

CATALOGUE = tuple(f"i{n}" for n in range(30))


def toy_session(arm, user_id, number, pages=2, break_on_page=0):
    """Per page a slate and one scored call; its events repeat what it was told."""
    events = []

    def note(kind, **fields):
        events.append(Event(arm, user_id, number, len(events), kind, **fields))

    said = ""
    for page in range(1, pages + 1):
        slate = yield RecommendationRequest(
            user_id, (), k=3, page=page, exclude=frozenset({"i0", "i1"}), seed=number
        )
        for position, item in enumerate(slate.item_ids, 1):
            note("page", page=page, position=position, item_id=item)
        if page == break_on_page:
            raise ZeroDivisionError("the agent broke")
        said += ",".join(slate.item_ids)
        reply = yield Request(
            (Message.of("user", said),),
            "rate",
            answer=(("RATING: 1", "RATING: 2"),),
            key=stable_key(user_id, number, page),
        )
        said += reply.text
        (shares,) = reply.choice_probabilities
        note("rate", page=page, value=reply.choices[0], expected=shares[1])
    note("exit", value=pages)
    return Outcome(tuple(events), State(user_id, number, "end", pages))


class ToyRecommender:
    """A slate drawn from the request alone; `broken` maps a user to a wrong slate or error."""

    def __init__(self, broken=()):
        self.broken = dict(broken)
        self.batches = []

    def recommend(self, requests):
        self.batches.append(len(requests))
        return [self.slate(request) for request in requests]

    def slate(self, request):
        wrong = self.broken.get(request.user_id, self.broken.get("*"))
        if isinstance(wrong, Exception):
            raise wrong
        if wrong is not None:
            return Slate(wrong)
        start = stable_key(request.user_id, request.page, request.seed) % (len(CATALOGUE) - 4)
        return Slate(CATALOGUE[2 + start :][:2] + ("i29",), scores=(0.5, 0.25, 0.125))


class ToyGenerator:
    """Answers from the request alone, in an odd order and at most `at_once` at a time.

    `stop_after` completions it behaves as if the process were killed.
    """

    def __init__(self, at_once=3, stop_after=None):
        self.queue, self.at_once, self.stop_after = {}, at_once, stop_after
        self.tickets = self.completed = self.most = 0
        self.cancelled = []

    def submit(self, request):
        self.tickets += 1
        self.queue[self.tickets] = request
        self.most = max(self.most, len(self.queue))
        return self.tickets

    def collect(self):
        chosen = sorted(self.queue, key=lambda ticket: stable_key("order", ticket))
        chosen = chosen[: self.at_once]
        done = [(ticket, self.answer(self.queue.pop(ticket))) for ticket in chosen]
        self.completed += len(done)
        if self.stop_after is not None and self.completed > self.stop_after:
            raise KeyboardInterrupt
        return done

    def answer(self, request):
        share = (stable_key(request.key, request.messages[-1].content) % 1000) / 1000
        choice = int(share > 0.4)
        return Completion(
            request.answer[0][choice],
            (choice,),
            ((1 - share, share),),
            tokens=(1, 2),
            logprobs=(-share, -0.1),
        )

    def cancel(self, ticket):
        del self.queue[ticket]
        self.cancelled.append(ticket)
