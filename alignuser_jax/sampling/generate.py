"""Ask a generator many requests and collect every completion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from alignuser_jax.records import Completion, Generator, Request, Ticket, Usage

REASON = 300
"""Characters of an error that are told, at most."""


def with_samples(completions: Sequence[Completion]) -> Completion:
    """One completion per request: the first sample, carrying all of them if there are
    several."""
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


class RequestsFailed(RuntimeError):
    """Some of many requests have no answer; the others have theirs."""


def errors_of(completion: Completion) -> list[str]:
    """What went wrong, of each of its samples that failed."""
    replies = completion.samples or (completion,)
    return [r.error or "no reason given" for r in replies if r.finish_reason == "error"]


def check_answered(completions: Sequence[Completion], what: str) -> None:
    """Raises `RequestsFailed`, which says how many failed and the most frequent reasons."""
    failed = [errors for completion in completions if (errors := errors_of(completion))]
    if failed:
        often = Counter(error[:REASON] for errors in failed for error in errors[:1])
        reasons = "; ".join(f"{n} x {error!r}" for error, n in often.most_common(3))
        raise RequestsFailed(
            f"{what}: {len(failed)} of {len(completions)} requests failed: {reasons}"
        )


def generate(generator: Generator, requests: Sequence[Request]) -> list[Completion]:
    """All completions, in the order of the requests. The generator must be otherwise idle."""
    tickets = [generator.submit(request) for request in requests]
    done: dict[Ticket, Completion] = {}
    while batch := generator.collect():
        done.update(batch)
    missing = sum(ticket not in done for ticket in tickets)
    if missing:
        raise RuntimeError(
            f"the generator is idle but {missing} of {len(tickets)} requests have no completion"
        )
    return [done[ticket] for ticket in tickets]
