"""Read OPeRA's surveys as given personas: age, occupation, personality, shopping habits.

A survey is JSON of any depth, in sections (demographics, self description, shopping preference,
personality). No exact keys are expected: every leaf is an answer, its key the question, and
the words of its path tell what it is about. Names, gender and contact data are never kept (the
paper's privacy rule).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignuser_jax.datasets.formats.opera_page import loaded
from alignuser_jax.datasets.reading.parquet import parquet_rows
from alignuser_jax.datasets.reading.values import identifier, text_of
from alignuser_jax.datasets.report import Report

_PRIVATE = frozenset(
    [
        *("gender", "sex", "pronoun", "pronouns", "name", "names", "firstname", "lastname"),
        *("fullname", "username", "nickname", "email", "mail", "phone", "telephone"),
        *("address", "street", "zip", "zipcode", "postcode", "birthday", "birthdate"),
        *("prolific", "mturk", "worker", "ip"),
    ]
)
"""Words of a path whose answer is never kept."""
_AGE = frozenset(["age"])
_OCCUPATION = (
    frozenset(["occupation", "profession", "job"]),
    frozenset(["employment", "employed", "work"]),
)
_PERSONALITY = frozenset(
    [
        *("personality", "openness", "conscientiousness", "extraversion", "extroversion"),
        *("agreeableness", "neuroticism", "mbti", "tipi", "bfi"),
    ]
)
_HABITS = frozenset(
    [
        *("shopping", "shop", "habit", "habits", "purchase", "purchases", "buying"),
        *("preference", "preferences"),
    ]
)
SURVEY_CHARACTERS = 20_000
"""Longest text of a field; longer ones are cut."""


def read_surveys(files: Sequence[Path], report: Report) -> dict[str, dict[str, str]]:
    """Return a row of `sessions.SURVEY_SCHEMA` for each user, by user id.

    The first survey of a user stays. Rows without an id and surveys that are no JSON object are
    reported.
    """
    surveys: dict[str, dict[str, str]] = {}
    for path in files:
        columns = ("user_id", "survey", "interview_transcript_processed")
        problems: dict[str, list[int]] = {"empty id": [], "survey that is no JSON object": []}
        for number, row in parquet_rows(path, columns):
            user, survey = identifier(row["user_id"]), loaded(row["survey"])
            if not user:
                problems["empty id"].append(number)
                continue
            if not isinstance(survey, dict):
                if text_of(row["survey"]):
                    problems["survey that is no JSON object"].append(number)
                survey = {}
            surveys.setdefault(user, survey_row(user, survey, row[columns[2]]))
        for problem, numbers in problems.items():
            report.add(problem, path.name, numbers)
    return surveys


def survey_row(user: str, survey: dict, interview: object = None) -> dict[str, str]:
    """Return one row of `sessions.SURVEY_SCHEMA`.

    Args:
        user: The user's id.
        survey: The survey, as read from JSON.
        interview: The transcript of an interview, if there is one.
    """
    leaves = [(path, text) for path, text in _leaves(survey, ()) if not _private(path)]
    own = [(_tokens(path[-1:]), _tokens(path), path, text) for path, text in leaves]

    def first(*meanings: frozenset[str]) -> str:
        for meaning in meanings:
            for last, _, _, text in own:
                if last & meaning:
                    return text
        return ""

    def about(meaning: frozenset[str]) -> str:
        return "; ".join(f"{path[-1]}: {text}" for _, all_, path, text in own if all_ & meaning)

    row = {
        "user_id": user,
        "age": first(_AGE),
        "occupation": first(*_OCCUPATION),
        "personality": about(_PERSONALITY),
        "habits": about(_HABITS - _PERSONALITY),
        "answers": "\n".join(f"{path[-1]}: {text}" for path, text in leaves),
        "interview": text_of(interview),
    }
    return {name: text[:SURVEY_CHARACTERS] for name, text in row.items()}


def _leaves(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, (*path, text_of(key)))
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for part in value:
            yield from _leaves(part, path)
    elif path:
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if isinstance(value, list):
            value = ", ".join(filter(None, map(text_of, value)))
        if text := text_of(value):
            yield path, text


def _tokens(path: Sequence[str]) -> frozenset[str]:
    split = re.sub(r"([a-z])([A-Z])", r"\1 \2", " ".join(path)).lower()
    return frozenset(re.findall(r"[a-z]+", split))


def _private(path: Sequence[str]) -> bool:
    return bool(_tokens(path) & _PRIVATE)
