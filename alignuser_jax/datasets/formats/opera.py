"""OPeRA (NEU-HAI/OPeRA, CC-BY-4.0): shopping sessions page by page, with reasons.

Its Parquet tables (METHOD.md section 13.2) become the tables of `sessions.py`: pages rebuilt
(`opera_page.py`), actions, rationales, and surveys as given personas (`opera_survey.py`).
OPeRA has no ratings, so the interactions are empty; its items are the products seen. Action
tables are read by row group: they hold gigabytes of HTML, of which only the rebuilt pages are
kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
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
from alignuser_jax.datasets.reading.values import identifier, moment, plain, unusable_ids, words
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sessions import (
    ACTION_KINDS,
    SESSION_SCHEMA,
    STEP_SCHEMA,
    SURVEY_SCHEMA,
    split_sessions,
)
from alignuser_jax.datasets.sources import source_of

COLUMNS = (
    *("session_id", "action_id", "timestamp", "action_type", "click_type", "semantic_id"),
    *("element_meta", "url", "page_meta", "simplified_html", "rationale", "products"),
    "input_text",
)
PAGE_CHARACTERS = 4_000_000
"""A longer page (OPeRA's longest has 626 thousand) is not read."""
LAST_MILLISECONDS = 4_102_444_800_000


def read(
    directory: str | Path,
    *,
    tables: Literal["filtered", "full"] = "filtered",
    strict: bool = False,
) -> Dataset:
    """The dataset in a copy of the OPeRA repository, or in one of its folders `OPeRA_filtered`
    and `OPeRA_full`: `action/{train,test}-*.parquet`, `session/{train,test}/*.parquet`,
    `user/{train,test}/*.parquet`.

    Splits: test sessions are OPeRA's own, validation is the latest tenth of each user's others.
    Dropped and counted by row number: an unknown action type, a bad timestamp, a click or input
    without a target, an unusable session id, a repeated action, a session of both train and
    test (it stays in test). A target that its page does not show is kept and never added to the
    page; `manifest["coverage"]` counts them.

    Raises `FileNotFoundError`, `InputError`, `DirtyInput` (strict) or `ValueError` where no
    step is left.
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
    users_of, stated = _session_rows(root, files)
    titles: dict[str, str] = {}
    parts, tests = [], []
    for split, paths in actions.items():
        for path in paths:
            for batch in _steps(path, users_of, titles, report):
                parts.append(batch)
                tests += [split == "test"] * batch.num_rows
    report.check()
    steps = pa.Table.from_batches(parts, _RAW) if parts else _RAW.empty_table()
    if not steps.num_rows:
        raise ValueError(f"{directory}: no usable step is left\n{report}")
    steps, sessions = _ordered(steps, np.array(tests, bool), report)
    report.check()
    survey_files = [path for s in ("train", "test") for path in _files(root, "user", s)]
    files += survey_files
    surveys = read_surveys(survey_files, report)
    report.check()
    return _dataset(steps, sessions, surveys, titles, stated, files, report, tables)


def _files(root: Path, kind: str, split: str) -> list[Path]:
    patterns = (f"{split}-*.parquet", f"{split}/*.parquet", f"{split}.parquet")
    return sorted(path for pattern in patterns for path in (root / kind).glob(pattern))


def _session_rows(root: Path, files: list[Path]) -> tuple[dict[str, str], dict[str, int]]:
    """(user of each session, number of actions its table states); their files are added."""
    users, stated = {}, {}
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
"""`row` is the file and row number of a step, for the report."""


def _steps(
    path: Path, users_of: dict[str, str], titles: dict[str, str], report: Report
) -> Iterator[pa.RecordBatch]:
    bad: dict[str, list[int]] = {}
    rows: list[dict] = []
    for number, row in parquet_rows(path, COLUMNS):
        report.read += 1
        step = _step(row, users_of, titles)
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


def _step(row: dict, users_of: dict[str, str], titles: dict[str, str]) -> dict | str:
    """The row as a step of `_RAW` without its order, or what is wrong with it."""
    session = identifier(row["session_id"])
    user = users_of.get(session) or session.partition("_")[0]
    if not session or not user:
        return "empty user or session id"
    if unusable_ids(pa.chunked_array([[session, user]])).to_pylist() != [False, False]:
        return UNUSABLE
    kind = words(row["action_type"]).lower()
    if kind not in ACTION_KINDS:
        return "unknown action type"
    time = moment(row["timestamp"])
    if time is None or not 0 <= time < LAST_MILLISECONDS:
        return "bad timestamp"
    target = words(row["semantic_id"]) if kind != "terminate" else ""
    if kind in ("click", "input") and not target:
        return f"{kind} without a target"
    html = row["simplified_html"] if isinstance(row["simplified_html"], str) else ""
    if len(html) > PAGE_CHARACTERS:
        return f"page of more than {PAGE_CHARACTERS} characters"
    page = build_page(html, words(row["url"]), row["page_meta"])
    item, title = _acted_on(row)
    bought = listed_products(row["products"])
    own_page = words(row["click_type"]) in ("purchase", "product_option", "quantity", "review")
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
        "text": words(row["input_text"]) if kind == "input" else "",
        "click_type": words(row["click_type"]) if kind == "click" else "",
        "item_id": item,
        "target_on_page": not target or target in page.elements,
        "rationale": words(row["rationale"]),
        "action_id": words(row["action_id"]),
    }


def _acted_on(row: dict) -> tuple[str, str]:
    """(ASIN, title) of the product that the element acted on belongs to, ("", "") for none."""
    meta = loaded(row["element_meta"])
    data = loaded(meta.get("data")) if isinstance(meta, dict) else None
    if not isinstance(data, dict):
        return "", ""
    return identifier(data.get("asin")), words(data.get("title"))


def _ordered(
    steps: pa.Table, test: np.ndarray, report: Report
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """(steps sorted and numbered, the rows of the session table); repeated actions and steps of
    train sessions that are in test are reported and left out."""
    names, users = (steps[n].to_pylist() for n in ("session_id", "user_id"))
    actions, places = (steps[n].to_pylist() for n in ("action_id", "row"))
    times = steps["timestamp_milliseconds"].to_numpy()
    in_test = {name for name, is_test in zip(names, test, strict=True) if is_test}
    seen: set[tuple[str, str]] = set()
    keep: list[int] = []
    problems: dict[str, list[int]] = {"session in train and test": [], "repeated action": []}
    for n, name in enumerate(names):
        if name in in_test and not test[n]:
            problems["session in train and test"].append(n)
        elif actions[n] and (name, actions[n]) in seen:
            problems["repeated action"].append(n)
        else:
            seen.add((name, actions[n]))
            keep.append(n)
    for problem, rows in problems.items():
        for n in rows:
            file, _, number = places[n].rpartition(":")
            report.add(problem, file, [int(number)])
    starts: dict[str, int] = {}
    for n in keep:
        starts[names[n]] = min(starts.get(names[n], times[n]), times[n])
    first_user = {user: place for place, user in reversed([*enumerate(users)])}
    keep.sort(key=lambda n: (first_user[users[n]], starts[names[n]], names[n], times[n], n))
    counts = Counter(names[n] for n in keep)
    order = [place for count in counts.values() for place in range(count)]
    steps = steps.take(pa.array(keep, pa.int64())).select(STEP_SCHEMA.names)
    place = steps.column_names.index("order")
    steps = steps.set_column(place, STEP_SCHEMA.field("order"), pa.array(order, pa.int64()))
    steps = steps.cast(STEP_SCHEMA).combine_chunks()
    kinds, clicks = (steps[n].to_pylist() for n in ("action_kind", "click_type"))
    user_of = dict(zip(names, users, strict=True))
    sessions, begin = [], 0
    for name, count in counts.items():
        span = range(begin, begin + count)
        bought = any(clicks[n] == "purchase" for n in span)
        ended = kinds[span[-1]] == "terminate"
        sessions.append(
            {
                "session_id": name,
                "user_id": user_of[name],
                "split": "",
                "start_milliseconds": int(starts[name]),
                "steps": count,
                "outcome": "purchase" if bought else "terminate" if ended else "",
            }
        )
        begin += count
    splits = split_sessions(
        [row["user_id"] for row in sessions],
        [row["start_milliseconds"] for row in sessions],
        [row["session_id"] in in_test for row in sessions],
    )
    return steps, [row | {"split": s} for row, s in zip(sessions, splits, strict=True)]


def _dataset(steps, sessions, surveys, titles, stated, files, report, tables) -> Dataset:
    users = list(dict.fromkeys(row["user_id"] for row in sessions))
    surveys = {user: surveys[user] for user in users if user in surveys}
    people = [surveys.get(user, {}) for user in users]
    user_table = pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            **{
                name: pa.array([person.get(name, "") for person in people], pa.string())
                for name in ("age", "occupation")
            },
        }
    )
    item_table = pa.table(
        {
            "item_id": pa.array(titles, pa.string()),
            "title": pa.array([plain(title) for title in titles.values()], pa.string()),
            "genres": pa.array([[]] * len(titles), pa.list_(pa.string())),
            "description": pa.array([""] * len(titles), pa.string()),
        }
    )
    interactions = pa.schema(
        [
            *(INTERACTIONS.field(name) for name in ("user_id", "item_id")),
            ("rating", pa.float32()),
            ("timestamp", pa.int64()),
            ("split", pa.string()),
        ]
    ).empty_table()
    extra = {
        "sessions": pa.Table.from_pylist(sessions, SESSION_SCHEMA),
        "steps": steps,
        "surveys": pa.Table.from_pylist(list(surveys.values()), SURVEY_SCHEMA),
    }
    split_of = Counter(row["split"] for row in sessions)
    counts = {"users": len(users), "items": len(titles), "rated_items": 0, "interactions": 0}
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": f"opera-{tables}",
        "synthetic": False,
        "hash": content_hash(user_table, item_table, interactions, extra),
        "source": source_of("opera", files) | {"tables": tables},
        "counts": counts | {name: table.num_rows for name, table in extra.items()},
        "split": {"kind": "sessions", "counts": {name: split_of[name] for name in SPLITS}},
        "coverage": _coverage(steps, sessions, stated),
        "report": report.describe(),
    }
    return Dataset(user_table, item_table, interactions, manifest=manifest, extra_tables=extra)


def _coverage(steps: pa.Table, sessions: list[dict], stated: dict[str, int]) -> dict[str, Any]:
    """How many human actions can be chosen from their page, and what else the log lacks."""
    targets = np.array([bool(target) for target in steps["target"].to_pylist()], bool)
    shown = steps["target_on_page"].to_numpy()[targets]
    empty = sum(not elements for elements in steps["elements"].to_pylist())
    other = sum(stated.get(s["session_id"], s["steps"]) != s["steps"] for s in sessions)
    return {
        "steps_with_target": int(targets.sum()),
        "target_on_page": int(shown.sum()),
        "share": round(float(shown.mean()), 4) if len(shown) else 1.0,
        "pages_without_elements": empty,
        "sessions_with_other_than_stated_steps": other,
    }
