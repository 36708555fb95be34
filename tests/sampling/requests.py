"""Every kind of request, and what of a completion must come out the same."""

from dataclasses import replace

from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Message, Request
from alignuser_jax.sampling import EngineConfig

GEOMETRY = EngineConfig(slots=4, context=128, chunk=16, states=256, edges=12)
SYSTEM = "You browse a list of movies. Answer with one line for each item."
SCREEN = (
    ("1 [WATCH]", "1 [SKIP]"),
    ("2 [WATCH]", "2 [SKIP]"),
)
ACT = (("BEST-ACTION: [NEXT_PAGE]", "BEST-ACTION: [EXIT]", "BEST-ACTION: [CLICK_ITEM:2]"),)
RATE = (tuple(f"RATING: {r}" for r in range(1, 6)),)
TEN = (tuple(f"RATING: {r}" for r in range(1, 11)),)
WORDS = (("a comedy", "a good film", "a good comedy"),)


def talk(*texts):
    """A conversation: system, then user and assistant in turn."""
    roles = ["system"] + ["user", "assistant"] * len(texts)
    return tuple(Message.of(role, text) for role, text in zip(roles, texts, strict=False))


def ask(number, answer=SCREEN, **options):
    user = f"film {number * 37} from 19{number:02d} because comedy " + "good " * (number % 5)
    options = {"temperature": 0.0, "key": stable_key("ask", number)} | options
    return Request(talk(SYSTEM, user), "test", answer=answer, **options)


def mixed():
    """Every kind of request at once, ragged, more than there are slots."""
    return [
        ask(1, temperature=1.0),
        ask(2, RATE, scored=True, temperature=1.0),
        ask(3, (), max_tokens=12, temperature=1.3),
        ask(4, ACT, reasoning_tokens=9, temperature=1.0),
        ask(5, TEN, scored=True, temperature=0.5),
        ask(6, RATE, scored=True, reasoning_tokens=7, temperature=1.0),
        ask(7, (), max_tokens=20, temperature=0.8, top_p=0.7, adapter="base"),
        ask(8, WORDS, temperature=1.0),
        ask(9, WORDS, temperature=1.0, scored=True, top_p=0.9),
        ask(10, ACT, temperature=2.0),
        ask(11, ACT, temperature=2.0, samples=3),
    ]


def result(completion):
    """Everything but what was reused."""
    samples = tuple(result(sample) for sample in completion.samples)
    usage = completion.usage._replace(cached_tokens=0)
    return replace(completion, usage=usage, samples=samples)
