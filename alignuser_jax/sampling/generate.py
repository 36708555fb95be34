"""Send many requests to a generator and collect every completion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from alignuser_jax.records import Completion, Generator, Request, Ticket, Usage

REASON_CHARACTERS = 300
"""At most so many characters of an error are repeated in a `RequestsFailed`."""


class RequestsFailed(RuntimeError):
    """Some of many requests have no answer; the others have theirs."""


def with_samples(completions: Sequence[Completion]) -> Completion:
    """Return the completion of a request from the completions of its samples.

    It is the first sample. With more than one sample, `samples` holds all of them and `usage`
    is their sum.
    """
    first = completions[0]
    if len(completions) == 1:
        return first
    return Completion(
        first.text,
        choices=first.choices,
        choice_probabilities=first.choice_probabilities,
        tokens=first.tokens,
        logprobs=first.logprobs,
        finish_reason=first.finish_reason,
        error=first.error,
        usage=Usage(
            *(sum(values) for values in zip(*(c.usage for c in completions), strict=True))
        ),
        samples=tuple(completions),
    )


def errors_of(completion: Completion) -> list[str]:
    """Return the error of each sample of the completion that failed."""
    samples = completion.samples or (completion,)
    return [s.error or "no reason given" for s in samples if s.finish_reason == "error"]


def check_answered(completions: Sequence[Completion], what: str) -> None:
    """Raise `RequestsFailed` if any request failed.

    Args:
        completions: One per request.
        what: The name of the whole, with which the message begins. The message says how many
            requests failed and gives the three most frequent reasons.
    """
    failures = [errors for completion in completions if (errors := errors_of(completion))]
    if failures:
        counts = Counter(errors[0][:REASON_CHARACTERS] for errors in failures)
        reasons = "; ".join(f"{n} x {error!r}" for error, n in counts.most_common(3))
        raise RequestsFailed(
            f"{what}: {len(failures)} of {len(completions)} requests failed: {reasons}"
        )


def generate(
    generator: Generator,
    requests: Sequence[Request],
    finished: Callable[[], None] = lambda: None,
) -> list[Completion]:
    """Return the completion of every request, in the order of the requests.

    Args:
        generator: Must have no other requests in work: their completions would be lost.
        requests: Submitted all at once.
        finished: Called once for each request that was answered, for a bar of progress.

    Raises:
        RuntimeError: The generator has become idle without answering every request.

    Example:
        >>> from alignuser_jax.records import Message
        >>> from alignuser_jax.sampling import ScriptedGenerator
        >>> request = Request((Message.of("user", "Say hello."),), "greet")
        >>> generate(ScriptedGenerator(lambda request: "hello"), [request])[0].text
        'hello'
    """
    tickets = [generator.submit(request) for request in requests]
    done: dict[Ticket, Completion] = {}
    while batch := generator.collect():
        done.update(batch)
        for _ in batch:
            finished()
    missing = sum(ticket not in done for ticket in tickets)
    if missing:
        raise RuntimeError(
            f"the generator is idle but {missing} of {len(tickets)} requests have no completion"
        )
    return [done[ticket] for ticket in tickets]
