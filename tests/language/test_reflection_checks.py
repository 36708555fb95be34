"""Which reflections of a model can be trained on."""

import pytest

from alignuser_jax.language.parsing import ReplyError
from alignuser_jax.language.prompts import ITEM_TAGS, TRAJECTORY_TAGS
from alignuser_jax.language.reflection_checks import ReflectionFacts, accept, whole_sentences
from alignuser_jax.language.reflection_prompts import EXAMPLES, example_texts
from alignuser_jax.records import Action

RATE = [Action("rate", "ITEM_1", value) for value in range(6)]
FACTS = ReflectionFacts(
    "Matrix, The (1999)",
    ("Action", "Sci-Fi", "Thriller"),
    ("Alien (1979)", "Big (1988)"),
    ("Comedy", "Drama"),
    example_texts(3),
)
GOOD = "WHY: It is close to what I love.\nLESSON: I trust my own taste."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, ""),
        ("Thinking.\n" + GOOD, ""),
        ("WHY: It is close to what I love.", "tags missing"),
        ("WHY: The expert action is right here.\nLESSON: x y z a.", "talks about an expert"),
        ("WHY: I would rate it 4 for the plot.\nLESSON: x y z a.", "names the choice"),
        ("WHY: It is worth four stars to me.\nLESSON: x y z a.", "names the choice"),
        (
            "WHY: 2/5 would be the better score here.\nLESSON: x y z a.",
            "names the alternative as better",
        ),
        ("WHY: 2/5 would be too harsh for it.\nLESSON: x y z a.", ""),
        ("WHY: It is rated 4.2 by the others.\nLESSON: x y z a.", ""),
        ("WHY: It has a mean of 3.4 stars.\nLESSON: x y z a.", ""),
        ("WHY: That was fun... 4/5 from me.\nLESSON: x y z a.", "names the choice"),
        ("WHY: I rate it 4.0 as a whole.\nLESSON: x y z a.", "names the choice"),
        ("WHY: I like it because it is\nLESSON: More of it.", "no whole sentence"),
        ("WHY: I like it.\nLESSON: I trust my own taste.", "too short"),
        ("WHY: I like it a lot, **really**.\nLESSON: x y z a.", "holds markup"),
        ("WHY: I like the big red car. And the big red car again.\nLESSON: x y z a.",
         "repeats itself"),
        ("WHY: I like the big red car, I do.\nLESSON: I like the big red car.",
         "repeats itself"),
    ],
)  # fmt: skip
def test_the_rules_on_the_text_alone(text, reason):
    kept, why = accept(text, ITEM_TAGS, RATE[4], RATE[2])
    assert why == reason and (kept is None) == bool(reason)
    if kept:
        assert kept.startswith("WHY: ") and kept.endswith("\n")


@pytest.mark.parametrize(
    ("why", "rating", "reason"),
    [
        ("I love how the Matrix keeps me thinking.", 5, ""),
        ("I love science fiction that keeps me thinking.", 5, ""),
        ("I love how this keeps me thinking.", 5, "not about the item"),
        ("I love the story of Alien above all.", 5, "not about the item"),
        ("I do not care for sci-fi of this kind.", 5, "speaks against a high rating"),
        ("I do not care for most sci-fi, but I love this.", 5, ""),
        ("I love science fiction that keeps me thinking.", 1, "speaks for a low rating"),
        ("I found this thriller dull and far too long.", 1, ""),
        ("I am not a fan of thrillers. I love it.", 1, "speaks for another rating"),
        ("I am not a fan of thrillers. I love that.", 1, "speaks for a low rating"),
        ("I love sharp thrillers. But I find it just okay.", 4, "speaks for another rating"),
        ("I like sharp thrillers, and I like it.", 5, ""),
        ("I love the thrills, though they are not as good.", 1, "speaks for a low rating"),
        ("I am not a fan of thrillers, though I like Alien.", 1, ""),
        ("I like thrillers, but I did not like this.", 5, "speaks against a high rating"),
        ("I could take or leave this thriller today.", 3, ""),
        (
            "I love this thriller: its mystery is about people and not about clues.",
            5,
            "copies the example",
        ),
        ("I love this thriller as I loved Turbo Uncles 2.", 5, "copies the example"),
        ("I love this thriller 因为它很好看 and more.", 5, "in another script"),
    ],
)
def test_the_rules_on_what_a_text_is_about(why, rating, reason):
    other = RATE[1 if rating > 3 else 5]
    text = f"WHY: {why}\nLESSON: Clever films are what I want."
    kept, refused = accept(text, ITEM_TAGS, RATE[rating], other, FACTS)
    assert refused == reason and (kept is None) == bool(reason)


def test_names_of_the_item_and_of_the_user():
    assert FACTS.about_item("a thrilling evening") and FACTS.about_item("THE MATRIX has it all")
    assert not FACTS.about_item("matrices and actors"), "words, not their beginnings"
    assert FACTS.about_user("like Big, only louder") and not FACTS.about_user("a big film")
    assert FACTS.about_user("a comic touch") and FACTS.about_user("Alien did it first")
    assert not FACTS.about_user("I trust my taste")


def test_a_sentence_that_is_cut_off_is_left_out():
    text = "WHY: I like Dr. Who. It is fun. So is\nLESSON: More of it! And"
    assert whole_sentences(text, ITEM_TAGS) == {
        "WHY": "I like Dr. Who. It is fun.",
        "LESSON": "More of it!",
    }
    with pytest.raises(ReplyError, match="no whole sentence"):
        whole_sentences("WHY: It was made by Mr.\nLESSON: More.", ITEM_TAGS)


def test_actions_of_a_session():
    lines = [f"{tag}: The page has what I want." for tag in TRAJECTORY_TAGS[:3]]
    lines.append("LESSON: I look before I leave.")
    go_on, leave = Action("next_page"), Action("exit")
    repeated = "\n".join(lines)
    assert accept(repeated, TRAJECTORY_TAGS, go_on, leave)[1] == "repeats itself"
    lines[1:3] = ["PERSONA-ALIGNMENT: I am patient.", "FUTURE-OUTCOMES: Better films follow."]
    text = "\n".join(lines)
    assert accept(text, TRAJECTORY_TAGS, go_on, leave) == (text + "\n", "")
    named = text.replace("I am patient", "I press [NEXT_PAGE]")
    assert accept(named, TRAJECTORY_TAGS, go_on, leave)[1] == "names the choice"


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_worked_examples_keep_the_rules_themselves(example):
    facts = ReflectionFacts(
        example.item.title,
        tuple(example.item.about.split(", ")),
        tuple(title for title, _ in example.item.similar),
    )
    choice, other = (RATE[rating] for rating in example.ratings)
    kept, reason = accept(example.reply, ITEM_TAGS, choice, other, facts)
    assert kept == example.reply + "\n" and not reason
    assert facts.about_item(example.reply) and facts.about_user(example.reply)
