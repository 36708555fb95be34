from dataclasses import replace

from alignuser_jax.language import prompts, reflection_prompts
from alignuser_jax.records import Action, Persona

PERSONA = Persona(
    user_id="u",
    pickiness=3,
    engagement=1,
    conformity=2,
    variety=3,
    mean_rating=3.26,
    rating_shares=(0.1, 0.2, 0.3, 0.25, 0.15),
    favourite_genres=("Drama", "Film-Noir"),
    age="25-34",
    occupation="lawyer",
)


def test_persona_block_in_order():
    assert prompts.persona_block(PERSONA, "books").splitlines() == [
        "Occupation: lawyer",
        "Age: 25-34",
        "You are extremely picky about books. You visit rarely and leave at slight "
        "dissatisfaction. You rate partly as others do. You seek out the unusual.",
        "Average rating: 3.3",
        "Ratings 1 to 5 in percent: 10 20 30 25 15",
        "Favourite genres: Drama, Film-Noir",
    ]


def test_what_is_unknown():
    assert prompts.persona_block(Persona("u")) == ""
    assert prompts.opening(None, "None yet.") == "Past ratings:\nNone yet."
    odd = replace(PERSONA, occupation="a -> b\nc")
    assert prompts.persona_block(odd).startswith("Occupation: a - b c\nAge")


def test_no_name_of_the_user_in_prompts():
    text = prompts.opening(replace(PERSONA, user_id="user-4711"), "None yet.")
    assert "4711" not in text


def test_system_prompt_explains_every_answer():
    text = prompts.system_prompt("games")
    for needed in ("games", "yes or no", "1 to 5", "1 to 10", "BEST-ACTION: ", "step by step"):
        assert needed in text
    assert "{" not in text


def test_recall_is_explained_where_it_is_used():
    assert prompts.system_prompt(recall=True) == f"{prompts.system_prompt()}\n{prompts.RECALL}"


def test_turns():
    assert prompts.screen_turn("PAGE 1") == "PAGE 1\nWatch?"
    assert prompts.rate_turn("2") == "Rate 2."
    assert prompts.rate_turn("2", "PAGE 1") == "PAGE 1\nRate 2."
    recalled = prompts.rate_recall_line("", "5")
    assert recalled == "similar items 5" and prompts.rate_recall_line("", "") == ""
    assert prompts.rate_turn("2", "f", recalled) == "f\nRate 2: similar items 5"
    assert prompts.rate_recall_line("7", "5") == "others 7, similar items 5"
    lines = [prompts.screen_recall_line("1", 3, 9), prompts.screen_recall_line("2", None, 0)]
    assert lines == ["1: match 3 popularity 9", "2: popularity 0"]
    assert prompts.screen_turn("PAGE 1", *lines) == "\n".join(["PAGE 1", *lines, "Watch?"])
    assert prompts.interview_turn("SESSION ENDED").startswith("SESSION ENDED\nSatisfaction ")
    assert prompts.turn("a", "", "b") == "a\nb"


def test_clicks_on_neighbours_are_listed_as_one():
    next_page, leave = Action("next_page"), Action("exit")
    clicks = [Action("click", str(n)) for n in (1, 2, 3, 5)]
    text = prompts.act_turn([next_page, *clicks, Action("search", "7"), leave], "f")
    listed = "[NEXT_PAGE] [CLICK_ITEM:1-3] [CLICK_ITEM:5] [SEARCH:7] [EXIT]"
    assert text == f"f\nActions: {listed}"
    assert prompts.act_turn([clicks[1], leave]) == "Actions: [CLICK_ITEM:2] [EXIT]"


def test_answers():
    assert prompts.screen_answer(2) == (
        ("1 yes", "1 no"),
        ("2 yes", "2 no"),
    )
    assert prompts.rate_answer() == (("1", "2", "3", "4", "5"),)
    assert prompts.interview_answer()[0][9] == "10"
    assert prompts.act_answer([Action("exit")]) == (("BEST-ACTION: [EXIT]",),)


def test_world_model():
    prompt = prompts.world_model_messages("PAGE 1", Action("rate", "1", 4))
    assert [message.role for message in prompt] == ["system", "user"]
    assert prompt[1].content == "PAGE 1\nACTION: [RATE:1:4]"
    full = prompts.world_model_messages("PAGE 1", Action("exit"), "SESSION ENDED")
    assert full[2].content == "[NEXT STATE]\nSESSION ENDED"
    assert all(span.trained for span in full[2].spans)


USER = reflection_prompts.UserText("PERSONA", "PAST", "games")


def test_reflection_prompts_hold_all_that_they_are_given():
    trajectory = reflection_prompts.trajectory_reflection_messages(
        USER, "STATE", "[EXIT]", "NEXT-A", "[NEXT_PAGE]", "NEXT-B"
    )
    text = "\n".join(message.content for message in trajectory)
    for part in ("STATE", "PERSONA", "PAST", "[EXIT]", "NEXT-A", "[NEXT_PAGE]", "NEXT-B"):
        assert part in trajectory[1].content
    assert all(f"{tag}: " in text for tag in prompts.TRAJECTORY_TAGS) and "games" in text
    rated = reflection_prompts.RatedItem("Heat", "Crime", 3.9, (("Ronin", 5.0),))
    item = reflection_prompts.rating_reflection_messages(USER, rated, 4, 2, examples=1)
    assert [m.role for m in item] == ["system", "user", "assistant", "user"]
    for part in ("Heat (Crime)", "PERSONA", "Most people ", "Ronin (I "):
        assert part in item[-1].content
    assert all(f"{tag}: " in item[2].content for tag in prompts.ITEM_TAGS)
    assert "games" in item[0].content


def test_alternatives_prompt():
    system, user = reflection_prompts.alternatives_messages(
        USER, "STATE", "[EXIT]", ["[EXIT]", "[NEXT_PAGE]"], 3
    )
    assert "exactly 3" in system.content
    assert "Valid actions: [EXIT] [NEXT_PAGE]" in user.content


def test_fixed_phrases_are_whole_lines_or_less():
    assert all(phrase and "\n" not in phrase for phrase in prompts.FIXED_PHRASES)
    assert not any("{" in phrase for phrase in prompts.FIXED_PHRASES)
