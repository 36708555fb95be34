import pytest

from alignuser_jax.language import prompts
from alignuser_jax.language.prompt_costs import costs_table, prompt_costs
from alignuser_jax.language.render import render
from alignuser_jax.language.tokenizer import train_sentencepiece
from alignuser_jax.records import Example, Message, Persona, Span


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["a page of films and a person who rates them"] * 20
    return train_sentencepiece(texts, 700, tmp_path_factory.mktemp("vocabulary"))


def test_parts_add_up_to_all_tokens(tokenizer):
    persona = prompts.persona_block(Persona("u", 2, mean_rating=3.5, age="25-34"))
    asked = prompts.turn(persona, prompts.HISTORY, "Liked (5): Heat", "PAGE 1", "1. Up | Drama")
    recalled = prompts.screen_recall_line("1", 3, 9)
    example = Example(
        "visit",
        (
            Message.of("system", prompts.system_prompt()),
            Message.of("user", prompts.screen_turn(asked, recalled)),
            Message("assistant", (Span("1 yes", trained=True, action=True),)),
            Message.of("user", prompts.act_turn([])),
            Message(
                "assistant",
                (Span("Well.\n", trained=True), Span("4", trained=True, action=True)),
            ),
        ),
        "e",
    )
    (cost,) = prompt_costs([example], tokenizer).values()
    rendered = render(tokenizer, example.messages)
    assert cost.tokens == len(rendered) == sum(cost.parts.values())
    assert cost.learned == int((rendered.weights > 0).sum())
    assert (cost.examples, cost.targets) == (1, 2)
    assert cost.parts["persona"] == sum(
        tokenizer.count(line + "\n") for line in persona.split("\n")
    )
    assert all(cost.parts[part] > 0 for part in prompts.PARTS)
    assert cost.parts["reasoning"] == tokenizer.count("Well.\n")
    table = costs_table({"visit": cost})
    assert f"| {cost.tokens:.1f}" in table and "| 2.00" in table
    assert f"{1000 * 2 / cost.tokens:.1f}" in table
