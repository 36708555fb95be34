"""Read and write personas that are not computed from the log: surveys, or matched ones.

A file has one row per user, with `user_id` and any fields of `records.Persona`, as JSON lines
(`.jsonl`) or Parquet (a dataset's `surveys.parquet` is such a file). A field of a row replaces
the value that was computed from the log; a field that is missing or null leaves it as it is; an
empty text means unknown.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from alignuser_jax.durable.whole import write_whole
from alignuser_jax.personas.matching import Match
from alignuser_jax.records import RATINGS, Persona

PERSONAS, MATCHES, MANIFEST = "personas.jsonl", "matches.jsonl", "manifest.json"
"""The files that `save_matches` writes."""
PARTS = ("profile", "train")
"""The ratings that personas can be matched by: those that training prompts show, or all that
agents know in a simulation."""

_TEXTS = ("age", "occupation", "personality", "habits")
_LEVELS = ("pickiness", "engagement", "conformity", "variety")
_BESIDE = ("answers", "interview")
"""Columns of a dataset's `surveys.parquet` that are not part of a persona."""
UNKNOWN_DEMOGRAPHICS: Mapping[str, Any] = {"age": "", "occupation": "", "big_five": ()}
"""Replaces the demographics of a user without a match."""
PERSONA_FIELDS = tuple(f.name for f in dataclasses.fields(Persona) if f.name != "user_id")


@dataclass(frozen=True)
class GivenPersonas:
    """Personas from a file, possibly of some users only and with some fields only.

    Attributes:
        rows: User id -> values of `Persona` fields.
        name: The path of the file.
        hash: Names the content.
        about: The manifest beside a file of matched personas, {} for any other file.
    """

    rows: Mapping[str, Mapping[str, Any]]
    name: str
    hash: str
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What these personas are and which, for manifests."""
        kind = "matched" if self.about else "given"
        return f"{kind}, {self.hash}"

    def told(self, users: Sequence[str]) -> str:
        """Return a sentence: how many of `users`, those that are used, have a persona here.

        Raises:
            ValueError: None of them has one.
        """
        covered = sum(user in self.rows for user in users)
        if not covered:
            raise ValueError(
                f"{self.name} has {len(self.rows)} personas, none of them of the {len(users)} "
                "users that are used here: match those first (`alignuser match-personas "
                "--users=all`, or policy for training, agents for a simulation)"
            )
        others = "age and occupation are unknown" if self.about else "are computed from the log"
        rest = "" if covered == len(users) else f"; the others' {others}"
        return f"personas of {covered} of {len(users)} users: {self.name}{rest}"

    def over(self, computed: Mapping[str, Persona]) -> dict[str, Persona]:
        """Return the computed personas with the values of the file in their place.

        If the file holds matched personas, a user who is not in it gets unknown demographics,
        like a user whose match failed.

        Raises:
            ValueError: No user of the file is among the computed personas.
        """
        if not self.rows.keys() & computed.keys():
            raise ValueError(
                f"{self.name} has {len(self.rows)} personas, none of them of a user of this "
                f"dataset; its user ids are such as {next(iter(self.rows), '(none)')!r}, the "
                f"dataset's such as {next(iter(computed), '(none)')!r}"
            )
        others = UNKNOWN_DEMOGRAPHICS if self.about else {}
        return {
            user: replace(persona, **self.rows.get(user, others))
            for user, persona in computed.items()
        }

    def check(self, dataset_hash: str, parts: Sequence[str], profile_share: float = 1) -> None:
        """Refuse matched personas of other data, or of ratings that must not be seen.

        Args:
            dataset_hash: The data in use.
            parts: The parts of the log (`PARTS`) that personas may be matched by here.
            profile_share: The largest share of the train part that the profile may be.

        Raises:
            ValueError: They were matched on another dataset or on other ratings.
        """
        if not self.about:
            return
        if self.about["dataset_hash"] != dataset_hash:
            raise ValueError(
                f"{self.name} was matched on another dataset ({self.about['dataset']}, "
                f"{self.about['dataset_hash']}); this one is {dataset_hash}: match again"
            )
        part, share = self.about["part"], self.about.get("profile_share") or 1
        if part not in parts or (part == "profile" and share > profile_share + 1e-9):
            raise ValueError(
                f"{self.name} was matched on {_part_text(part, share)}, which holds ratings "
                f"that are predicted here; match with --part=profile and a share of at most "
                f"{profile_share:g}"
            )


def _part_text(part: str, share: float) -> str:
    return f"the first {share:g} of the train part" if part == "profile" else f"all of {part}"


def read_personas(path: str | Path) -> GivenPersonas:
    """Read the personas in a `.jsonl` or `.parquet` file, or in a folder of `save_matches`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is no persona or a user comes twice (the message names the row), or
            the file is not the one that the manifest beside it describes.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PERSONAS
    if not path.is_file():
        raise FileNotFoundError(
            f"no personas at {path}: expected a .jsonl or .parquet file, or a folder made by "
            "`alignuser match-personas`"
        )
    rows: dict[str, dict[str, Any]] = {}
    for where, row in _rows_of(path):
        user, fields = _persona_of(row, f"{path}, row {where}")
        if user in rows:
            raise ValueError(f"{path}, row {where}: user {user!r} comes a second time")
        rows[user] = fields
    if not rows:
        raise ValueError(f"{path} holds no personas")
    text = json.dumps(rows, sort_keys=True, ensure_ascii=False)
    content = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    manifest, about = path.with_name(MANIFEST), {}
    if path.name == PERSONAS and manifest.is_file():
        about = _matched_manifest(manifest)
        if about and about["personas_hash"] != content:
            raise ValueError(
                f"{path} is not what {manifest} describes: it was changed after it was made; "
                "match again, or give a changed file a folder of its own"
            )
    return GivenPersonas(rows, str(path), content, about)


def _matched_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest that `save_matches` wrote, {} for another file of that name."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return about if isinstance(about, dict) and "personas_hash" in about else {}


def _rows_of(path: Path) -> Iterable[tuple[int, Any]]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            yield from enumerate(pq.read_table(path).to_pylist(), 1)
        except pa.ArrowException as error:
            raise ValueError(f"{path} is no Parquet file: {error}") from error
        return
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, row {number} is no JSON: {error}") from error


def _persona_of(row: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {type(row).__name__}, expected an object with user_id")
    user = row.get("user_id")
    if not isinstance(user, str) or not user:
        raise ValueError(f"{where}: user_id is {user!r}, expected a text")
    fields = {}
    for name, value in row.items():
        if name in ("user_id", *_BESIDE) or value is None:
            continue
        if name not in PERSONA_FIELDS:
            near = get_close_matches(name, PERSONA_FIELDS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{where}: no field {name!r}; {hint}it has {', '.join(PERSONA_FIELDS)}"
            )
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(name, value):
            raise ValueError(f"{where}: {name} is {value!r}, expected {_EXPECTED[name]}")
        fields[name] = value
    return user, fields


_EXPECTED = {
    **dict.fromkeys(_TEXTS, "a text"),
    **dict.fromkeys(_LEVELS, "a level from 1 to 3, 0 for unknown"),
    "big_five": "five levels from 1 to 3, or none",
    "mean_rating": f"a number from 0 to {RATINGS[-1]}",
    "rating_shares": f"{len(RATINGS)} shares from 0 to 1, or none",
    "favourite_genres": "a list of texts",
}


def _fits(name: str, value: Any) -> bool:
    def whole(number: Any, low: int) -> bool:
        return type(number) is int and low <= number <= 3

    def within(number: Any, high: float) -> bool:
        return type(number) in (int, float) and 0 <= number <= high

    if name in _TEXTS:
        return isinstance(value, str)
    if name in _LEVELS:
        return whole(value, 0)
    if name == "mean_rating":
        return within(value, RATINGS[-1])
    if not isinstance(value, tuple):
        return False
    if name == "big_five":
        return len(value) in (0, 5) and all(whole(level, 1) for level in value)
    if name == "rating_shares":
        return len(value) in (0, len(RATINGS)) and all(within(share, 1) for share in value)
    return all(isinstance(text, str) for text in value)


# --- matched personas ---------------------------------------------------------------------


def persona_row(match: Match) -> dict[str, Any]:
    """Return the row of one user in a file of matched personas.

    A user without a match gets unknown demographics, so that those of the data do not stand in
    for what could not be matched.
    """
    persona = match.persona
    if persona is None:
        return {"user_id": match.user_id, **UNKNOWN_DEMOGRAPHICS}
    return {"user_id": match.user_id, **persona._asdict()}


def save_matches(
    folder: str | Path, matches: Sequence[Match], about: Mapping[str, Any]
) -> GivenPersonas:
    """Write matched personas and return them as `read_personas` reads them.

    The folder gets the personas, the candidates that they were chosen from, and a manifest
    (`about` and counts). The same matches give the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # it does not describe the new files
    _write_lines(folder / PERSONAS, map(persona_row, matches))
    _write_lines(folder / MATCHES, map(_match_row, matches))
    personas = read_personas(folder)
    manifest = {
        **about,
        "users": len(matches),
        "matched": sum(match.persona is not None for match in matches),
        "with_failures": sum(bool(match.failures) for match in matches),
        "personas_hash": personas.hash,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=True)
    write_whole(folder / MANIFEST, text + "\n")
    return read_personas(folder)


def _match_row(match: Match) -> dict[str, Any]:
    row = dataclasses.asdict(match)
    row["candidates"] = [candidate._asdict() for candidate in match.candidates]
    return row


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
