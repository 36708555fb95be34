"""Count what a target costs: the tokens of examples by part of the prompt, and what is learned.

A target is a choice that an example teaches: one screening, rating, action or satisfaction.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from alignuser_jax.language.prompts import PARTS, part_of
from alignuser_jax.language.render import render
from alignuser_jax.language.tokenizer import TextTokenizer
from alignuser_jax.records import Example
from alignuser_jax.text import markdown_table

TEMPLATE = "chat template"
ANSWERS, REASONING = "answers", "reasoning"
ROWS = (*PARTS, ANSWERS, REASONING, TEMPLATE)


@dataclass
class TaskCost:
    """The tokens of the examples of one task.

    Attributes:
        examples: How many examples.
        parts: Tokens by part, one of `ROWS`.
        tokens: All tokens.
        learned: Tokens that the loss covers.
        targets: Choices that they teach.
    """

    examples: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    learned: int = 0
    targets: int = 0


def prompt_costs(
    examples: Iterable[Example], tokenizer: TextTokenizer
) -> Mapping[str, TaskCost]:
    """Count the tokens of examples, task by task.

    The text is counted line by line; what the chat template adds is the rest of the whole.

    Args:
        examples: The examples.
        tokenizer: That of the model which learns from them.
    """
    costs: defaultdict[str, TaskCost] = defaultdict(TaskCost)
    for example in examples:
        cost = costs[example.task]
        rendered = render(tokenizer, example.messages)
        parts: Counter[str] = Counter()
        for part, text in _lines(example):
            parts[part] += tokenizer.count(text)
        parts[TEMPLATE] = len(rendered) - sum(parts.values())
        cost.examples += 1
        cost.parts.update(parts)
        cost.tokens += len(rendered)
        cost.learned += int((rendered.weights > 0).sum())
        cost.targets += sum(
            len(span.text.split("\n"))
            for message in example.messages
            for span in message.spans
            if span.trained and span.action
        )
    return dict(sorted(costs.items()))


def _lines(example: Example) -> Iterator[tuple[str, str]]:
    """(part, text) of every line of an example, newlines included."""
    for message in example.messages:
        if message.role == "assistant":
            for span in message.spans:
                yield ANSWERS if span.action else REASONING, span.text
            continue
        lines = message.content.split("\n")
        for number, line in enumerate(lines, 1):
            part = "system" if message.role == "system" else part_of(line)
            yield part, line + ("\n" if number < len(lines) else "")


def costs_table(costs: Mapping[str, TaskCost]) -> str:
    """Return a Markdown table with the mean tokens of an example by part, a column per task."""

    def row(name: str, values: Iterable[str]) -> list[str]:
        return [name, *values]

    every = list(costs.values())
    rows = [
        row(part, (f"{cost.parts[part] / cost.examples:.1f}" for cost in every))
        for part in ROWS
        if any(cost.parts[part] for cost in every)
    ]
    rows += [
        row("**all tokens**", (f"{cost.tokens / cost.examples:.1f}" for cost in every)),
        row("learned tokens", (f"{cost.learned / cost.examples:.1f}" for cost in every)),
        row("targets", (f"{cost.targets / cost.examples:.2f}" for cost in every)),
        row(
            "tokens per target",
            (f"{cost.tokens / cost.targets:.0f}" if cost.targets else "" for cost in every),
        ),
        row(
            "**targets per 1,000 tokens**",
            (f"{1000 * cost.targets / cost.tokens:.1f}" for cost in every),
        ),
    ]
    return markdown_table(rows, ["mean of an example", *costs])
