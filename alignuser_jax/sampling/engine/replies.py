"""Make a row's `Completion` from what it decoded or scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from alignuser_jax.language.tokenizer import TextTokenizer
from alignuser_jax.records import Completion, Usage
from alignuser_jax.sampling.engine.automaton import ACCEPT, Automaton
from alignuser_jax.sampling.engine.decode import Decoded
from alignuser_jax.sampling.engine.prepare import Row
from alignuser_jax.sampling.engine.sample import draw_alternative, uniform


def failed(error: Exception) -> Completion:
    """Return the completion of a request that has failed."""
    return Completion("", finish_reason="error", error=f"{type(error).__name__}: {error}")


def written(row: Row, calls: Sequence[Decoded[np.ndarray]]) -> list[int]:
    """Return what a row with `no_repeat` must not repeat: `Row.avoided`, then its reply so far.

    Without that rule it is empty.
    """
    if not row.request.no_repeat:
        return []
    parts = [row.avoided, row.start_tokens, *(call.token[: call.length] for call in calls)]
    return np.concatenate(parts).tolist()


def join_calls(calls: Sequence[Decoded[np.ndarray]]) -> Decoded[np.ndarray]:
    """Return what several decode calls added to one row as one."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(call, name)[: call.length] for call in calls])

    return Decoded(
        token=joined("token"),
        logprob=joined("logprob"),
        state=joined("state"),
        edge=joined("edge"),
        edge_logprobs=joined("edge_logprobs"),
        length=np.array(sum(int(call.length) for call in calls)),
        final=calls[-1].final,
    )


def reasoning_of(automaton: Automaton, decoded: Decoded[np.ndarray]) -> np.ndarray:
    """Return the tokens before the answer.

    Raises:
        ValueError: The answer is not complete.
    """
    *_, begin = automaton.read_choices(decoded.state, decoded.edge, decoded.edge_logprobs)
    return decoded.token[:begin]


def from_decoded(
    row: Row, automaton: Automaton, decoded: Decoded[np.ndarray], tokenizer: TextTokenizer
) -> Completion:
    """Return the completion of a row that was decoded to its end.

    Raises:
        ValueError: The row has an answer, and did not complete it.
    """
    length = int(decoded.length)
    finished = bool(decoded.final == ACCEPT)
    choices: tuple[int, ...] = ()
    probabilities: tuple[tuple[float, ...], ...] = ()
    begin = length - (finished and bool(decoded.edge[length - 1] >= 0))  # the end of turn
    if row.request.answer:
        choices, probabilities, begin = automaton.read_choices(
            decoded.state, decoded.edge, decoded.edge_logprobs
        )
    answer = "\n".join(
        alternatives[choice]
        for alternatives, choice in zip(row.request.answer, choices, strict=True)
    )
    text = tokenizer.decode(decoded.token[:begin].tolist()) + answer
    return Completion(
        row.request.reply_start + (text.rstrip("\n") if row.request.lines else text),
        choices=choices,
        choice_probabilities=probabilities,
        tokens=tuple(decoded.token.tolist()),
        logprobs=tuple(decoded.logprob.tolist()),
        finish_reason="stop" if finished else "length",
        usage=Usage(generated_tokens=length),
    )


def at_stop(
    row: Row, decoded: Decoded[np.ndarray], tokenizer: TextTokenizer
) -> Completion | None:
    """Return the completion of free text in which a stop string has appeared, else `None`.

    It holds the tokens up to the one that completes the string, and the text in front of it.
    """
    tokens = decoded.token.tolist()
    if not row.request.stop or not _has_stop(tokenizer.decode(tokens), row.request.stop):
        return None
    low, high = 1, len(tokens)
    while low < high:  # find the fewest tokens that hold a stop string
        middle = (low + high) // 2
        if _has_stop(tokenizer.decode(tokens[:middle]), row.request.stop):
            high = middle
        else:
            low = middle + 1
    text = tokenizer.decode(tokens[:low])
    text = text[: min(at for at in map(text.find, row.request.stop) if at >= 0)]
    return Completion(
        row.request.reply_start + text,
        tokens=tuple(tokens[:low]),
        logprobs=tuple(decoded.logprob[:low].tolist()),
        usage=Usage(generated_tokens=low),
    )


def _has_stop(text: str, stop: Sequence[str]) -> bool:
    return any(string in text for string in stop)


def from_scores(row: Row, totals: np.ndarray) -> Completion:
    """Return the completion of a scored row.

    Args:
        row: The row.
        totals: The log probability of each alternative, up to a constant.
    """
    p = np.exp(totals - totals.max())
    p /= p.sum()
    request = row.request
    choice = draw_alternative(
        p,
        uniform(row.key),
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
    )
    return Completion(
        request.answer[0][choice],
        choices=(choice,),
        choice_probabilities=(tuple(float(value) for value in p),),
    )


def after_reasoning(
    answer: Completion,
    reasoning: np.ndarray,
    decoded: Decoded[np.ndarray],
    tokenizer: TextTokenizer,
) -> Completion:
    """Return the completion of a scored answer with its reasoning in front.

    Tokens and log probabilities are those of the reasoning: the alternative was drawn from its
    distribution, not generated.
    """
    return replace(
        answer,
        text=tokenizer.decode(reasoning.tolist()) + answer.text,
        tokens=tuple(reasoning.tolist()),
        logprobs=tuple(decoded.logprob[: len(reasoning)].tolist()),
        usage=Usage(generated_tokens=int(decoded.length)),
    )


def is_finite(completion: Completion) -> bool:
    """Return whether the model's numbers in a completion are finite."""
    values = [
        *completion.logprobs,
        *(p for line in completion.choice_probabilities for p in line),
    ]
    return bool(np.isfinite(values).all())
