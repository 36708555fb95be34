"""Sessions through the driver, killed anywhere or shuffled: one and the same table."""

from alignuser_jax.agents import (
    AgentUser,
    SessionConfig,
    SessionSpec,
    run_population,
    session,
    write_events,
)
from alignuser_jax.durable.journal import Journal
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Persona, Slate
from tests.agents.visits import HISTORY, ITEMS, completion, site, words


class ConstrainedModel:
    """Chooses from key and conversation; answers the newest request first."""

    def __init__(self):
        self.queue = {}
        self.count = 0

    def submit(self, request):
        self.count += 1
        self.queue[self.count] = request
        return self.count

    def collect(self):
        if not self.queue:
            return []
        ticket, request = self.queue.popitem()
        said = tuple(message.content for message in request.messages)
        choices = [
            stable_key(request.key, said, line) % len(alternatives)
            for line, alternatives in enumerate(request.answer)
        ]
        return [(ticket, completion(request, *choices))]

    def cancel(self, ticket):
        self.queue.pop(ticket)


class Shelf:
    """Different slates per arm, from the request alone."""

    def __init__(self, shift):
        self.shift = shift

    def recommend(self, requests):
        return [self.slate(request) for request in requests]

    def slate(self, request):
        free = [i for i in ITEMS if i not in request.exclude]
        start = (self.shift * request.page + len(request.session)) % (len(free) - request.k)
        return Slate(tuple(free[start : start + request.k]))


def simulate(folder, order=1, concurrency=4):
    world = site(horizon=None, max_pages=4)
    config = SessionConfig(context_tokens=400, page_reserve_tokens=150)
    users = [AgentUser(Persona(f"u{n}"), HISTORY) for n in range(3)]

    def spec(arm, user):
        return SessionSpec(
            arm,
            user.user_id,
            0,
            lambda: session(user, world, config, arm=arm, number=0, seed=5, count_tokens=words),
        )

    specs = [spec(arm, user) for user in users for arm in ("a", "b")][::order]
    recommenders = {"a": Shelf(1), "b": Shelf(5)}
    with Journal.open(folder, {"seed": 5}) as journal:
        events = run_population(
            specs,
            ConstrainedModel(),
            recommenders,
            journal,
            concurrency=concurrency,
            catalogue=ITEMS,
        )
        recovered = journal.recovered
    return write_events(events, folder / "events.parquet").read_bytes(), events, recovered


def test_sessions_killed_anywhere_or_shuffled_give_the_same_table(tmp_path):
    expected, events, _ = simulate(tmp_path / "reference")
    assert {e.kind for e in events} == {"page", "screen", "rate", "act", "exit", "interview"}
    assert simulate(tmp_path / "shuffled", order=-1, concurrency=2)[0] == expected
    data = (tmp_path / "reference" / "segment-00000.bin").read_bytes()
    manifest = (tmp_path / "reference" / "manifest.json").read_bytes()
    for number, cut in enumerate(range(0, len(data), len(data) // 12)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "manifest.json").write_bytes(manifest)
        (folder / "segment-00000.bin").write_bytes(data[:cut])
        resumed, _, recovered = simulate(folder, order=1 - 2 * (number % 2))
        assert resumed == expected
        assert recovered > 0 or cut < 2000
