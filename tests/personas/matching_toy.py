"""A small log, and models whose answers encode who fits whom."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from alignuser_jax.language.parsing import answer_text
from alignuser_jax.personas import MatchConfig
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Item

AGES = ("18-24", "25-34", "56 or older")
JOBS = ("artist", "farmer", "lawyer", "writer")
CONFIG = MatchConfig(
    AGES, JOBS, candidates=4, taste_items=6, subsets=2, subset_items=3,
    propose_reasoning_tokens=0,
)  # fmt: skip


def log_of(ratings):
    """ratings: one list of ratings per user; user n rates items n * 100, n * 100 + 1, ..., so a
    title tells whose it is. Demographics are there to be left alone."""
    users = tuple(f"u{n}" for n in range(len(ratings)))
    ids, rows = [], []
    for user, stars in enumerate(ratings):
        for n, rating in enumerate(stars):
            rows.append((user, len(ids), rating))
            ids.append(f"i{user * 100 + n}")
    dataset = SimpleNamespace(
        user_ids=users,
        item_ids=tuple(ids),
        items={i: Item(i, f"Film {i[1:]}") for i in ids},
        item_table=pa.table({"genres": pa.array([()] * len(ids), pa.list_(pa.string()))}),
        demographics={u: {"age": "HIDDEN", "occupation": "SECRET"} for u in users},
        extra_tables={},
    )
    log = SimpleNamespace(
        user=np.array([r[0] for r in rows], np.int32),
        item=np.array([r[1] for r in rows], np.int32),
        rating=np.array([r[2] for r in rows], np.float32),
    )
    return dataset, log


def films(request):
    """The numbers of the films of a request."""
    words = request.messages[1].content.replace(";", " ").split()
    return [int(b) for a, b in zip(words, words[1:], strict=False) if a == "Film"]


def owner(request):
    """Whose ratings a request shows."""
    (user,) = {number // 100 for number in films(request)}
    return user


class Model:
    """Proposes persona n with occupation n (ages and traits vary); likes in the role of an
    occupation the ratings of one user: `fits(job number, owner) -> 1 to 10`. `break_on`
    (request -> Completion, text or None) goes first. Answers newest first."""

    def __init__(self, fits, break_on=lambda request: None, stop_after=None, shares=False):
        self.fits, self.break_on, self.shares = fits, break_on, shares
        self.queue, self.requests, self.stop_after, self.answered = {}, [], stop_after, 0
        self.most = 0

    def submit(self, request):
        self.requests.append(request)
        self.queue[len(self.requests)] = request
        self.most = max(self.most, len(self.queue))
        return len(self.requests)

    def collect(self):
        done = []
        for _ in range(min(3, len(self.queue))):
            ticket, request = self.queue.popitem()
            done.append((ticket, self.answer(request)))
        self.answered += len(done)
        if self.stop_after is not None and self.answered > self.stop_after:
            raise KeyboardInterrupt
        return done

    def cancel(self, ticket):
        del self.queue[ticket]

    def answer(self, request):
        broken = self.break_on(request)
        if isinstance(broken, Completion):
            return broken
        if broken is not None:
            return Completion(broken)
        if request.purpose == "propose":
            number = int(request.subject) - 1
            choices = (number % 3, number % 4, *((number + n) % 3 for n in range(5)))
        else:
            text = request.messages[1].content
            job = next(n for n, job in enumerate(JOBS) if f"Occupation: {job}" in text)
            choices = (round(self.fits(job, owner(request))) - 1,)
            if self.shares:
                shares = [0.0] * 10
                shares[choices[0]], shares[0] = 0.5, 0.5
                return Completion(
                    answer_text(choices, request.answer), choices, (tuple(shares),)
                )
        return Completion(answer_text(choices, request.answer), choices)


def noise(*parts, most):
    return stable_key(*parts) % most
