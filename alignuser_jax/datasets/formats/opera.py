"""Read OPeRA (NEU-HAI/OPeRA, CC-BY-4.0): shopping sessions page by page, with rationales.

Its Parquet tables (docs/method.md section 13.2) become the tables of `datasets.sessions`: pages
are rebuilt (`opera_page`), and surveys become given personas (`opera_survey`). OPeRA has no
ratings, so the interactions are empty; its items are the products on the pages. The action
tables hold gigabytes of HTML, so they are read by row group and only the rebuilt pages are
kept.

Example:
    >>> from alignuser_jax.datasets.formats import opera
    >>> from alignuser_jax.datasets.sessions import sessions
    >>> dataset = opera.read("downloads/opera", tables="filtered")
    >>> first = next(sessions(dataset, "test"))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from alignuser_jax.datasets.dataset import FORMAT_VERSION, Dataset, content_hash
from alignuser_jax.datasets.formats.opera_page import build_page, listed_products, loaded
from alignuser_jax.datasets.formats.opera_survey import read_surveys
from alignuser_jax.datasets.log import SPLITS
from alignuser_jax.datasets.reading.cleaning import UNUSABLE
from alignuser_jax.datasets.reading.json_lines import INTERACTIONS
from alignuser_jax.datasets.reading.parquet import open_parquet, parquet_rows
from alignuser_jax.datasets.reading.values import (
    identifier,
    milliseconds,
    plain,
    text_of,
    unusable_ids,
)
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sessions import (
    ACTION_KINDS,
    SESSION_SCHEMA,
    STEP_SCHEMA,
    SURVEY_SCHEMA,
    split_sessions,
)
from alignuser_jax.datasets.sources import source_of

_COLUMNS = (
    *("session_id", "action_id", "timestamp", "action_type", "click_type", "semantic_id"),
    *("element_meta", "url", "page_meta", "simplified_html", "rationale", "products"),
    "input_text",
)
PAGE_CHARACTERS = 4_000_000
"""A page longer than this is not read; OPeRA's longest has 626 thousand."""
LAST_MILLISECONDS = 4_102_444_800_000
"""2100-01-01: a later time is wrong."""


@dataclass(frozen=True)
class _Parts:
    """What the files hold, cleaned and sorted."""

    steps: pa.Table
    sessions: list[dict[str, Any]]  # rows of the session table
    surveys: dict[str, dict[str, str]]  # rows of the survey table, by user
    titles: dict[str, str]  # product id -> title
    stated_steps: dict[str, int]  # session -> number of actions that OPeRA states
    files: list[Path]


def read(
    directory: str | Path,
    *,
    tables: Literal["filtered", "full"] = "filtered",
    strict: bool = False,
) -> Dataset:
    """Read a copy of the OPeRA repository, or one of its folders of tables.

    The folders `OPeRA_filtered` and `OPeRA_full` hold `action/{train,test}-*.parquet`,
    `session/{train,test}/*.parquet` and `user/{train,test}/*.parquet`. Test sessions are
    OPeRA's own; validation is the latest tenth of each user's other sessions.

    These rows are dropped, and counted with their number: an unknown action type, a bad
    timestamp, a click or an input without a target, an unusable session id, a repeated action,
    and the train copy of a session that is also in test. A target that its page does not show
    is kept, and never added to the page; `manifest["coverage"]` counts these.

    Args:
        directory: The repository, or one of its two folders.
        tables: Which of the two folders.
        strict: Whether to refuse bad rows instead of dropping and counting them.

    Raises:
        FileNotFoundError: If there are no action tables.
        InputError: If a file cannot be read.
        DirtyInput: If the import is strict and a row would be dropped.
        ValueError: If no usable step is left.
    """
    if tables not in ("filtered", "full"):
        raise ValueError(f"tables is {tables!r}: expected filtered or full")
    report, directory = Report(strict), Path(directory)
    root = directory / f"OPeRA_{tables}"
    root = root if root.is_dir() else directory
    actions = {split: _files(root, "action", split) for split in ("train", "test")}
    if not any(actions.values()):
        raise FileNotFoundError(
            f"no OPeRA tables in {directory}: expected OPeRA_{tables}/action/train-*.parquet "
            "and the folders session and user beside it"
        )
    files = [path for paths in actions.values() for path in paths]
    user_of, stated_steps = _session_rows(root, files)
    titles: dict[str, str] = {}
    batches, is_test = [], []
    for split, paths in actions.items():
        for path in paths:
            for batch in _steps(path, user_of, titles, report):
                batches.append(batch)
                is_test += [split == "test"] * batch.num_rows
    report.check()
    steps = pa.Table.from_batches(batches, _RAW) if batches else _RAW.empty_table()
    if not steps.num_rows:
        raise ValueError(f"{directory}: no usable step is left\n{report}")
    steps, sessions = _ordered(steps, np.array(is_test, bool), report)
    report.check()
    survey_files = [path for s in ("train", "test") for path in _files(root, "user", s)]
    files += survey_files
    surveys = read_surveys(survey_files, report)
    report.check()
    parts = _Parts(steps, sessions, surveys, titles, stated_steps, files)
    return _dataset(parts, f"opera-{tables}", {"tables": tables}, report)


def _files(root: Path, kind: str, split: str) -> list[Path]:
    patterns = (f"{split}-*.parquet", f"{split}/*.parquet", f"{split}.parquet")
    return sorted(path for pattern in patterns for path in (root / kind).glob(pattern))


def _session_rows(root: Path, files: list[Path]) -> tuple[dict[str, str], dict[str, int]]:
    """Return the user of each session and the number of actions that OPeRA states for it.

    The session files are appended to `files`.
    """
    users: dict[str, str] = {}
    stated: dict[str, int] = {}
    for split in ("train", "test"):
        for path in _files(root, "session", split):
            files.append(path)
            for _, row in parquet_rows(path, ("session_id", "user_id")):
                name = identifier(row["session_id"])
                users[name] = identifier(row["user_id"])
            names = open_parquet(path, ()).schema_arrow.names
            if "action_count" in names:
                for _, row in parquet_rows(path, ("session_id", "action_count")):
                    if isinstance(row["action_count"], int):
                        stated[identifier(row["session_id"])] = row["action_count"]
    return users, stated


_RAW = STEP_SCHEMA.append(pa.field("action_id", pa.string())).append(
    pa.field("row", pa.string())
)
"""A step before it is sorted; `row` is its file and row number, for the report."""


def _steps(
    path: Path, user_of: dict[str, str], titles: dict[str, str], report: Report
) -> Iterator[pa.RecordBatch]:
    bad: dict[str, list[int]] = {}
    rows: list[dict] = []
    for number, row in parquet_rows(path, _COLUMNS):
        report.read += 1
        step = _step(row, user_of, titles)
        if isinstance(step, str):
            bad.setdefault(step, []).append(number)
            continue
        rows.append(step | {"row": f"{path.name}:{number}"})
        if len(rows) == 512:
            yield pa.RecordBatch.from_pylist(rows, _RAW)
            rows = []
    for problem, numbers in bad.items():
        report.add(problem, path.name, numbers)
    if rows:
        yield pa.RecordBatch.from_pylist(rows, _RAW)


def _step(row: dict, user_of: dict[str, str], titles: dict[str, str]) -> dict | str:
    """Return a row as a step of `_RAW` whose order is not known yet, or the problem it has."""
    session = identifier(row["session_id"])
    user = user_of.get(session) or session.partition("_")[0]
    if not session or not user:
        return "empty user or session id"
    if unusable_ids(pa.chunked_array([[session, user]])).to_pylist() != [False, False]:
        return UNUSABLE
    kind = text_of(row["action_type"]).lower()
    if kind not in ACTION_KINDS:
        return "unknown action type"
    time = milliseconds(row["timestamp"])
    if time is None or not 0 <= time < LAST_MILLISECONDS:
        return "bad timestamp"
    target = text_of(row["semantic_id"]) if kind != "terminate" else ""
    if kind in ("click", "input") and not target:
        return f"{kind} without a target"
    html = row["simplified_html"] if isinstance(row["simplified_html"], str) else ""
    if len(html) > PAGE_CHARACTERS:
        return f"page of more than {PAGE_CHARACTERS} characters"
    page = build_page(html, text_of(row["url"]), row["page_meta"])
    item, title = _acted_on(row)
    bought = listed_products(row["products"])
    own_page = text_of(row["click_type"]) in (
        "purchase",
        "product_option",
        "quantity",
        "review",
    )
    if not item and bought:
        item = bought[0].item_id
    if not item and own_page:
        item = page.item_id
    named = ((p.item_id, p.title) for p in (*bought, *page.products))
    for product_id, name in ((item, title), *named):
        if product_id and name:
            titles.setdefault(product_id, name)
    return {
        "session_id": session,
        "user_id": user,
        "order": 0,
        "timestamp_milliseconds": time,
        "page_kind": page.kind,
        "page_number": page.number,
        "page_context": page.context,
        "products": [asdict(product) for product in page.products],
        "elements": list(page.elements),
        "action_kind": kind,
        "target": target,
        "text": text_of(row["input_text"]) if kind == "input" else "",
        "click_type": text_of(row["click_type"]) if kind == "click" else "",
        "item_id": item,
        "target_on_page": not target or target in page.elements,
        "rationale": text_of(row["rationale"]),
        "action_id": text_of(row["action_id"]),
    }


def _acted_on(row: dict) -> tuple[str, str]:
    """Return ASIN and title of the product whose element was acted on, or ("", "")."""
    meta = loaded(row["element_meta"])
    data = loaded(meta.get("data")) if isinstance(meta, dict) else None
    if not isinstance(data, dict):
        return "", ""
    return identifier(data.get("asin")), text_of(data.get("title"))


def _ordered(
    steps: pa.Table, is_test: np.ndarray, report: Report
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Return the steps sorted and numbered, and the rows of the session table.

    Repeated actions, and steps of train sessions that are also in test, are left out and
    reported. Users keep their order of appearance, their sessions are sorted by time.
    """
    names, users = (steps[n].to_pylist() for n in ("session_id", "user_id"))
    times = steps["timestamp_milliseconds"].to_numpy()
    test_sessions = {name for name, test in zip(names, is_test, strict=True) if test}
    usable = _usable_steps(steps, is_test, test_sessions, report)
    starts: dict[str, int] = {}
    for n in usable:
        starts[names[n]] = min(starts.get(names[n], times[n]), times[n])
    first_row = {user: n for n, user in reversed([*enumerate(users)])}
    usable.sort(key=lambda n: (first_row[users[n]], starts[names[n]], names[n], times[n], n))
    counts = Counter(names[n] for n in usable)
    order = [n for count in counts.values() for n in range(count)]
    steps = steps.take(pa.array(usable, pa.int64())).select(STEP_SCHEMA.names)
    column = steps.column_names.index("order")
    steps = steps.set_column(column, STEP_SCHEMA.field("order"), pa.array(order, pa.int64()))
    steps = steps.cast(STEP_SCHEMA).combine_chunks()
    kinds, clicks = (steps[n].to_pylist() for n in ("action_kind", "click_type"))
    user_of = dict(zip(names, users, strict=True))
    sessions, begin = [], 0
    for name, count in counts.items():
        end = begin + count
        outcome = "terminate" if kinds[end - 1] == "terminate" else ""
        sessions.append(
            {
                "session_id": name,
                "user_id": user_of[name],
                "split": "",
                "start_milliseconds": int(starts[name]),
                "steps": count,
                "outcome": "purchase" if "purchase" in clicks[begin:end] else outcome,
            }
        )
        begin = end
    splits = split_sessions(
        [row["user_id"] for row in sessions],
        [row["start_milliseconds"] for row in sessions],
        [row["session_id"] in test_sessions for row in sessions],
    )
    return steps, [row | {"split": s} for row, s in zip(sessions, splits, strict=True)]


def _usable_steps(
    steps: pa.Table, is_test: np.ndarray, test_sessions: set[str], report: Report
) -> list[int]:
    """Return the rows of steps that stay; the others are reported."""
    names, actions, places = (steps[n].to_pylist() for n in ("session_id", "action_id", "row"))
    seen: set[tuple[str, str]] = set()
    usable: list[int] = []
    problems: dict[str, list[int]] = {"session in train and test": [], "repeated action": []}
    for n, name in enumerate(names):
        if name in test_sessions and not is_test[n]:
            problems["session in train and test"].append(n)
        elif actions[n] and (name, actions[n]) in seen:
            problems["repeated action"].append(n)
        else:
            seen.add((name, actions[n]))
            usable.append(n)
    for problem, rows in problems.items():
        for n in rows:
            file, _, number = places[n].rpartition(":")
            report.add(problem, file, [int(number)])
    return usable


def _dataset(parts: _Parts, name: str, origin: dict[str, Any], report: Report) -> Dataset:
    users = list(dict.fromkeys(row["user_id"] for row in parts.sessions))
    surveys = {user: parts.surveys[user] for user in users if user in parts.surveys}
    user_table, item_table = _user_table(users, surveys), _item_table(parts.titles)
    interactions = pa.schema(
        [
            *(INTERACTIONS.field(name) for name in ("user_id", "item_id")),
            ("rating", pa.float32()),
            ("timestamp", pa.int64()),
            ("split", pa.string()),
        ]
    ).empty_table()
    extra = {
        "sessions": pa.Table.from_pylist(parts.sessions, SESSION_SCHEMA),
        "steps": parts.steps,
        "surveys": pa.Table.from_pylist(list(surveys.values()), SURVEY_SCHEMA),
    }
    split_of = Counter(row["split"] for row in parts.sessions)
    counts = {
        **{"users": len(users), "items": len(parts.titles)},
        **{"rated_items": 0, "interactions": 0},
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "synthetic": False,
        "hash": content_hash(user_table, item_table, interactions, extra),
        "source": source_of("opera", parts.files) | origin,
        "counts": counts | {name: table.num_rows for name, table in extra.items()},
        "split": {"kind": "sessions", "counts": {name: split_of[name] for name in SPLITS}},
        "coverage": _coverage(parts),
        "report": report.describe(),
    }
    return Dataset(user_table, item_table, interactions, manifest=manifest, extra_tables=extra)


def _user_table(users: list[str], surveys: dict[str, dict[str, str]]) -> pa.Table:
    people = [surveys.get(user, {}) for user in users]
    facts = {
        name: pa.array([person.get(name, "") for person in people], pa.string())
        for name in ("age", "occupation")
    }
    return pa.table({"user_id": pa.array(users, pa.string()), **facts})


def _item_table(titles: dict[str, str]) -> pa.Table:
    return pa.table(
        {
            "item_id": pa.array(titles, pa.string()),
            "title": pa.array([plain(title) for title in titles.values()], pa.string()),
            "genres": pa.array([[]] * len(titles), pa.list_(pa.string())),
            "description": pa.array([""] * len(titles), pa.string()),
        }
    )


def _coverage(parts: _Parts) -> dict[str, Any]:
    """Count how many human actions can be chosen from their page, and what the log lacks."""
    steps, stated = parts.steps, parts.stated_steps
    has_target = np.array([bool(target) for target in steps["target"].to_pylist()], bool)
    on_page = steps["target_on_page"].to_numpy()[has_target]
    empty = sum(not elements for elements in steps["elements"].to_pylist())
    other = sum(
        stated.get(row["session_id"], row["steps"]) != row["steps"] for row in parts.sessions
    )
    return {
        "steps_with_target": int(has_target.sum()),
        "target_on_page": int(on_page.sum()),
        "share": round(float(on_page.mean()), 4) if len(on_page) else 1.0,
        "pages_without_elements": empty,
        "sessions_with_other_than_stated_steps": other,
    }
