"""From what a row decoded or scored to its `Completion`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from alignuser_jax.records import Completion, Usage
from alignuser_jax.sampling.engine.automaton import ACCEPT
from alignuser_jax.sampling.engine.kernels import Decoded
from alignuser_jax.sampling.engine.prepare import Row
from alignuser_jax.sampling.engine.sample import draw_alternative, uniform


def failure(error: Exception) -> Completion:
    return Completion("", finish_reason="error", error=f"{type(error).__name__}: {error}")


def joined(parts: Sequence[Decoded]) -> Decoded:
    """What the calls of one row decoded, as one."""
    cut = [Decoded(*(a[: p.count] for a in p[:5]), p.count, p.final) for p in parts]
    whole = (np.concatenate(arrays) for arrays in list(zip(*cut, strict=True))[:5])
    return Decoded(*whole, sum(int(p.count) for p in parts), parts[-1].final)


def reasoning_of(row: Row, decoded: Decoded) -> np.ndarray:
    """The tokens before the answer; raises `ValueError` where the answer is not complete."""
    *_, begin = row.automaton.read(decoded.state, decoded.edge, decoded.edge_logprobs)
    return decoded.token[:begin]


def written(row: Row, decoded: Decoded, tokenizer: Any) -> Completion:
    """A row that was decoded to its end."""
    count = int(decoded.count)
    finished = bool(decoded.final == ACCEPT)
    choices, probabilities, begin = (), (), count - finished
    if row.request.answer:
        choices, probabilities, begin = row.automaton.read(
            decoded.state, decoded.edge, decoded.edge_logprobs
        )
    answer = "\n".join(
        alternatives[choice]
        for alternatives, choice in zip(row.request.answer, choices, strict=True)
    )
    return Completion(
        tokenizer.decode(decoded.token[:begin].tolist()) + answer,
        choices=choices,
        choice_probabilities=probabilities,
        tokens=tuple(decoded.token.tolist()),
        logprobs=tuple(decoded.logprob.tolist()),
        finish_reason="stop" if finished else "length",
        usage=Usage(generated_tokens=count),
    )


def stopped(row: Row, decoded: Decoded, tokenizer: Any) -> Completion | None:
    """The completion of free text in which a stop string has appeared, else None. It holds the
    tokens up to the one that completes the string, and the text in front of it."""
    tokens = decoded.token.tolist()
    if not row.request.stop or not _stop_in(tokenizer.decode(tokens), row.request.stop):
        return None
    low, high = 1, len(tokens)
    while low < high:  # the fewest tokens that hold one
        middle = (low + high) // 2
        if _stop_in(tokenizer.decode(tokens[:middle]), row.request.stop):
            high = middle
        else:
            low = middle + 1
    text = tokenizer.decode(tokens[:low])
    return Completion(
        text[: min(at for at in map(text.find, row.request.stop) if at >= 0)],
        tokens=tuple(tokens[:low]),
        logprobs=tuple(decoded.logprob[:low].tolist()),
        usage=Usage(generated_tokens=low),
    )


def _stop_in(text: str, stop: Sequence[str]) -> bool:
    return any(string in text for string in stop)


def scored(row: Row, totals: np.ndarray) -> Completion:
    """A row of which each alternative has log-probability `totals[i]`, up to a constant."""
    p = np.exp(totals - totals.max())
    p /= p.sum()
    request = row.request
    how = {name: getattr(request, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    choice = draw_alternative(p, uniform(row.key), **how)
    return Completion(
        request.answer[0][choice],
        choices=(choice,),
        choice_probabilities=(tuple(float(value) for value in p),),
    )


def after_reasoning(
    of_answer: Completion, reasoning: np.ndarray, decoded: Decoded, tokenizer: Any
) -> Completion:
    """A scored completion with its reasoning in front; tokens and logprobs are those of the
    reasoning (the alternative was drawn from its distribution, not generated)."""
    return replace(
        of_answer,
        text=tokenizer.decode(reasoning.tolist()) + of_answer.text,
        tokens=tuple(reasoning.tolist()),
        logprobs=tuple(decoded.logprob[: len(reasoning)].tolist()),
        usage=Usage(generated_tokens=int(decoded.count)),
    )


def finite(completion: Completion) -> bool:
    """Whether the model gave numbers at all."""
    values = [
        *completion.logprobs,
        *(p for line in completion.choice_probabilities for p in line),
    ]
    return bool(np.isfinite(values).all())
