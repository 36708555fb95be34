"""A tiny two-task data set: enough to learn from within a few steps."""

from alignuser_jax.records import Example, Message, Span

SOURCE = {"dataset_hash": "tiny", "policy_id": "test"}
WORDS = ("red", "green", "blue", "black")


def conversation(task, number, turns=1):
    """The reply repeats the asked word: a rule that a tiny model finds at once."""
    messages = [Message.of("system", f"task {task}")]
    for turn in range(turns):
        word = WORDS[(number + turn) % len(WORDS)]
        messages.append(Message.of("user", f"say {word}, number {number % 10}"))
        messages.append(
            Message(
                "assistant",
                (
                    Span(f"it is {word}\n", trained=True),
                    Span(f"RATING: {1 + (number + turn) % 4}", trained=True, action=True),
                ),
            )
        )
    return Example(task, tuple(messages), f"{task}/{number}/{turns}", str(number))


def examples(count, start=0):
    return [
        conversation(task, number, turns=1 + number % 3)
        for number in range(start, start + count)
        for task in ("world_model", "reflection")
    ]
