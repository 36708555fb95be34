"""Personas that come from elsewhere: read strictly, put over the computed ones, and never of
ratings that are to be predicted."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignuser_jax.language.prompts import FIXED_PHRASES, persona_block
from alignuser_jax.personas import (
    Candidate,
    GivenPersonas,
    Match,
    compute_personas,
    read_personas,
    save_matches,
)
from alignuser_jax.records import Persona
from tests.personas.matching_toy import AGES, JOBS

ABOUT = {"dataset": "toy", "dataset_hash": "d1", "part": "profile", "profile_share": 0.75}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_given_replaces_what_was_computed_and_no_more(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        {"user_id": "a", "age": "18-24", "big_five": [1, 2, 3, 1, 2], "pickiness": 3},
        {"user_id": "b", "occupation": "", "habits": "Buys on sale.", "mean_rating": 4},
        {"user_id": "elsewhere", "age": "25-34"},
    )
    given = read_personas(path)
    computed = {
        user: Persona(user, pickiness=1, variety=2, age="56 or older", occupation="farmer")
        for user in "abc"
    }
    personas = given.over(computed)
    assert personas["a"] == Persona(
        "a", pickiness=3, variety=2, age="18-24", occupation="farmer", big_five=(1, 2, 3, 1, 2)
    )
    assert personas["b"].occupation == "" and personas["b"].habits == "Buys on sale."
    assert personas["b"].mean_rating == 4 and personas["c"] == computed["c"]
    assert set(personas) == set("abc") and given.about == {} and given.label.startswith("given")
    assert given.told("abc").startswith("personas of 2 of 3 users: ")
    assert "computed from the log" in given.told("abc") and "comp" not in given.told("ab")
    with pytest.raises(ValueError, match="none of them of a user of this dataset.*'a'.*'x'"):
        given.over({"x": Persona("x")})


def test_parquet_and_the_surveys_of_a_dataset(tmp_path):
    rows = [
        {"user_id": "a", "age": "25-34", "personality": "Calm.", "habits": None, "answers": ""},
        {"user_id": "b", "age": None, "personality": "", "habits": "Haggles.", "answers": "q"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "surveys.parquet")
    given = read_personas(tmp_path / "surveys.parquet")
    assert given.rows == {
        "a": {"age": "25-34", "personality": "Calm."},
        "b": {"personality": "", "habits": "Haggles."},
    }


def test_surveys_pass_into_computed_personas():
    from tests.personas.matching_toy import log_of

    dataset, log = log_of([[5, 4], [1]])
    dataset.demographics = {"u0": {"age": "", "occupation": "farmer"}}
    row = {
        "user_id": "u0",
        "age": "25-34",
        "personality": "Calm.",
        "habits": "",
        "answers": "x",
    }
    dataset.extra_tables = {"surveys": pa.Table.from_pylist([row])}
    persona = compute_personas(dataset, log)["u0"]
    assert (persona.age, persona.occupation) == ("25-34", "farmer")
    assert (persona.personality, persona.habits) == ("Calm.", "")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user_id": 3}, "user_id is 3, expected a text"),
        ({"age": "18-24"}, "user_id is None"),
        (["a"], "is list, expected an object"),
        ({"user_id": "a", "ocupation": "x"}, "did you mean 'occupation'"),
        ({"user_id": "a", "age": 30}, "age is 30, expected a text"),
        ({"user_id": "a", "pickiness": 4}, "pickiness is 4, expected a level"),
        ({"user_id": "a", "pickiness": True}, "pickiness is True"),
        ({"user_id": "a", "big_five": [1, 2, 3]}, "expected five levels"),
        ({"user_id": "a", "big_five": [1, 2, 3, 0, 1]}, "expected five levels"),
        ({"user_id": "a", "mean_rating": 9}, "a number from 0 to 5"),
        ({"user_id": "a", "rating_shares": [1]}, "5 shares"),
        ({"user_id": "a", "favourite_genres": "Drama"}, "a list of texts"),
    ],
)
def test_rows_that_are_no_persona(tmp_path, row, message):
    path = write(tmp_path / "bad.jsonl", {"user_id": "ok"}, row)
    with pytest.raises(ValueError, match=message) as error:
        read_personas(path)
    assert "row 2" in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="match-personas"):
        read_personas(tmp_path / "nothing.jsonl")
    with pytest.raises(FileNotFoundError):
        read_personas(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"user_id": "a"}\n{oops\n')
    with pytest.raises(ValueError, match="row 2 is no JSON"):
        read_personas(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b'{"user_id": "\xff\xfe"}\n')
    with pytest.raises(ValueError, match="not UTF-8"):
        read_personas(tmp_path / "b.jsonl")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="no Parquet file"):
        read_personas(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="holds no personas"):
        read_personas(write(tmp_path / "d.jsonl"))
    twice = write(tmp_path / "e.jsonl", {"user_id": "a"}, {"user_id": "a"})
    with pytest.raises(ValueError, match="row 2: user 'a' comes a second time"):
        read_personas(twice)


def test_matched_personas_say_what_they_are_of(tmp_path):
    chosen = Candidate(AGES[0], JOBS[1], (1, 1, 2, 3, 1))
    matches = [
        Match("a", (chosen,), ((9.0, 1.0),), (), (8.0,), 0, (5, 5)),
        Match("b", failures=("propose 1: down",)),
    ]
    given = save_matches(tmp_path, matches, ABOUT)
    personas = given.over({u: Persona(u, age="TRUE", occupation="TRUE") for u in "ab"})
    assert personas["a"].occupation == "farmer" and personas["a"].big_five == (1, 1, 2, 3, 1)
    assert personas["b"] == Persona("b"), "the true ones do not stand in for a failure"
    absent = {u: Persona(u, age="TRUE", occupation="TRUE", pickiness=2) for u in "ac"}
    assert given.over(absent)["c"] == Persona("c", pickiness=2), "nor for who was not matched"
    assert "of 2 of 3 users" in given.told("abc") and "are unknown" in given.told("abc")
    with pytest.raises(ValueError, match="none of them of the 2 users.*--users=all"):
        given.told("cd")
    assert (given.about["users"], given.about["matched"]) == (2, 1)
    assert given.about["with_failures"] == 1
    row = json.loads((tmp_path / "matches.jsonl").read_text().splitlines()[1])
    assert row["user_id"] == "b" and row["failures"] == ["propose 1: down"]

    given.check("d1", ("profile",), 0.75)
    given.check("d1", ("profile", "train"))
    with pytest.raises(ValueError, match="another dataset"):
        given.check("d2", ("profile",), 0.75)
    with pytest.raises(ValueError, match="first 0.75 of the train part.*at most 0.5"):
        given.check("d1", ("profile",), 0.5)
    of_train = GivenPersonas(given.rows, "x", "h", {**ABOUT, "part": "train"})
    of_train.check("d1", ("profile", "train"))
    with pytest.raises(ValueError, match="all of train.*--part=profile"):
        of_train.check("d1", ("profile",), 0.75)


@pytest.mark.parametrize("text", ['{"name": "an app"}', "[1]", "no JSON"])
def test_somebody_elses_manifest_beside_personas_is_left_alone(tmp_path, text):
    path = write(tmp_path / "personas.jsonl", {"user_id": "a", "age": "18-24"})
    (tmp_path / "manifest.json").write_text(text)
    given = read_personas(path)
    assert given.about == {} and given.rows == {"a": {"age": "18-24"}}


def test_the_new_fields_in_a_prompt_and_nothing_without_them():
    plain = Persona("a", pickiness=1, age="18-24", occupation="artist", mean_rating=4.0)
    text = (
        "Occupation: artist\nAge: 18-24\nYou are not picky about movies.\nAverage rating: 4.0"
    )
    assert persona_block(plain) == text, "as before these fields were there"
    full = Persona(
        "a", pickiness=1, age="18-24", occupation="artist", mean_rating=4.0,
        big_five=(3, 1, 2, 2, 1), personality="Calm\nand kind.", habits="Buys on sale.",
    )  # fmt: skip
    assert persona_block(full) == (
        "Occupation: artist\nAge: 18-24\nPersonality traits (1 low, 2 medium, 3 high): "
        "openness 3, conscientiousness 1, extraversion 2, agreeableness 2, neuroticism 1\n"
        "Personality: Calm and kind.\nYou are not picky about movies.\nHabits: Buys on sale.\n"
        "Average rating: 4.0"
    )
    assert not {"Personality: ", "Habits: "} & set(FIXED_PHRASES)
