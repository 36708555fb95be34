"""Import a log of any known format: read it, make it smaller, check its split, summarise it.

A format is a value in `FORMATS`: a new one is an adapter in `datasets.formats` and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tabulate import tabulate

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.filters import Filters, filtered
from alignuser_jax.datasets.formats import (
    amazon,
    movielens,
    opera,
    recbole,
    steam,
    synthetic,
    tabular,
    usermirrorer,
)
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig
from alignuser_jax.datasets.formats.tabular import TableFile
from alignuser_jax.datasets.log import SPLITS
from alignuser_jax.datasets.sessions import check_session_leaks, sessions
from alignuser_jax.datasets.splits import SplitKind, check_leaks


@dataclass(frozen=True)
class ImportSettings:
    """What to read, and how. Each format uses some of the settings (`LogFormat.uses`).

    Attributes:
        source: The folder with the log's files, or the file of reviews or interactions;
            "" for a format that needs none.
        strict: Whether to refuse dirty input instead of dropping and counting it.
        split: How to split; OPeRA has a split of its own.
        descriptions: File with a description of each item.
        items: File of items, of games (steam) or of metadata (amazon).
        users: File of users.
        columns: Role -> column of the interactions.
        item_columns: Role -> column of `items`.
        user_columns: Role -> column of `users`.
        steam_rating: What becomes the rating of a Steam review.
        crawl_year: Year of Steam's dates that show none.
        opera_tables: Which of OPeRA's tables.
        behavior: UserMirrorer's feature that is the rating.
        synthetic: The log to generate.
    """

    source: str | Path = ""
    strict: bool = False
    split: SplitKind = "per_user"
    descriptions: str | Path | None = None
    items: str | Path | None = None
    users: str | Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    item_columns: Mapping[str, str] = field(default_factory=dict)
    user_columns: Mapping[str, str] = field(default_factory=dict)
    steam_rating: steam.Rating = "auto"
    crawl_year: int | None = None
    opera_tables: Literal["filtered", "full"] = "filtered"
    behavior: str = "rating"
    synthetic: SyntheticConfig = SyntheticConfig()


@dataclass(frozen=True)
class LogFormat:
    """A format that can be imported.

    Attributes:
        read: Reads a log of this format.
        uses: The settings, beyond those that all formats share, that `read` uses.
        has_files: Whether there is a source to read.
        has_split: Whether the publisher's split is used, so that the setting `split` is not.
    """

    read: Callable[[ImportSettings], Dataset]
    uses: tuple[str, ...] = ("descriptions",)
    has_files: bool = True
    has_split: bool = False


def _common(s: ImportSettings) -> dict[str, Any]:
    """Return the arguments that the readers of files of interactions share."""
    return {"descriptions": s.descriptions, "strict": s.strict, "split": s.split}


def _read_movielens(s: ImportSettings) -> Dataset:
    return movielens.read(s.source, **_common(s))


def _read_steam(s: ImportSettings) -> Dataset:
    return steam.read(
        s.source,
        games=s.items,
        rating=s.steam_rating,
        crawl_year=s.crawl_year,
        **_common(s),
    )


def _read_amazon(s: ImportSettings) -> Dataset:
    return amazon.read(
        s.source,
        metadata=s.items,
        **_common(s),
    )


def _read_opera(s: ImportSettings) -> Dataset:
    return opera.read(s.source, tables=s.opera_tables, strict=s.strict)


def _read_usermirrorer(s: ImportSettings) -> Dataset:
    return usermirrorer.read(
        s.source,
        rating=s.behavior,
        **_common(s),
    )


def _read_recbole(s: ImportSettings) -> Dataset:
    return recbole.read(
        s.source,
        columns=s.columns,
        **_common(s),
    )


def _read_tabular(s: ImportSettings) -> Dataset:
    return tabular.read(
        TableFile(s.source, s.columns),
        items=TableFile(s.items, s.item_columns) if s.items else None,
        users=TableFile(s.users, s.user_columns) if s.users else None,
        **_common(s),
    )


def _read_synthetic(s: ImportSettings) -> Dataset:
    return synthetic.generate(s.synthetic, s.split)


FORMATS = {
    "movielens": LogFormat(_read_movielens),
    "steam": LogFormat(_read_steam, ("descriptions", "items", "steam_rating", "crawl_year")),
    "amazon": LogFormat(_read_amazon, ("descriptions", "items")),
    "opera": LogFormat(_read_opera, ("opera_tables",), has_split=True),
    "usermirrorer": LogFormat(_read_usermirrorer, ("descriptions", "behavior")),
    "recbole": LogFormat(_read_recbole, ("descriptions", "columns")),
    "tabular": LogFormat(
        _read_tabular,
        ("descriptions", "columns", "items", "item_columns", "users", "user_columns"),
    ),
    "synthetic": LogFormat(_read_synthetic, (), has_files=False),
}
"""The formats by the name that `alignuser import-logs` takes."""


def import_log(
    format_name: str,
    settings: ImportSettings,
    filters: Filters | None = None,
    shares: Sequence[float] | None = None,
) -> Dataset:
    """Read a log, and keep the part that `filters` names, split by `shares`.

    Args:
        format_name: A key of `FORMATS`.
        settings: What to read, and how.
        filters: The part to keep; `None` keeps all.
        shares: Shares of train, validation and test; `None` keeps the defaults.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If the log cannot be read or nothing is left of it; the classes are
            `InputError` for a file and `DirtyInput` for a strict import.

    Example:
        >>> from alignuser_jax.datasets.importing import ImportSettings, import_log
        >>> dataset = import_log("movielens", ImportSettings("ml-1m"))
        >>> dataset.save("runs/ml-1m")
    """
    dataset = FORMATS[format_name].read(settings)
    return filtered(dataset, filters or Filters(), shares)


def column_mapping(pairs: Sequence[str], roles: Mapping[str, str], name: str) -> dict[str, str]:
    """Read `role=column` texts as a dictionary.

    Args:
        pairs: The texts.
        roles: The roles that exist, as keys.
        name: What the texts are, for the error message.

    Raises:
        ValueError: If a text has no column or another role.
    """
    mapping = dict(text.partition("=")[::2] for text in pairs)
    if bad := [role for role, column in mapping.items() if role not in roles or not column]:
        raise ValueError(
            f"{name} has {', '.join(map(repr, bad))}: expected role=column, with a role of "
            f"{', '.join(roles)}"
        )
    return mapping


def split_faults(dataset: Dataset) -> list[str]:
    """Return a sentence for each fault of a dataset's split, of interactions or of sessions."""
    check = check_session_leaks if "sessions" in dataset.extra_tables else check_leaks
    return check(dataset)


def import_summary(dataset: Dataset) -> str:
    """Return what was imported as text: counts per split, filters, what was dropped."""
    kind = dataset.manifest["split"]["kind"]
    table = _session_counts if "sessions" in dataset.extra_tables else _counts
    return (
        f"{dataset.label}: {len(dataset.item_ids)} items, {kind} split\n\n"
        f"{table(dataset)}\n\n{_filter_steps(dataset)}{dataset.report}"
    )


def _filter_steps(dataset: Dataset) -> str:
    """Say what each filter left, one line each."""
    lines = []
    for step in dataset.manifest.get("filters", []):
        if "k_core" in step:
            kept = f"{step['k_core']}-core"
        else:
            kept = f"sample of users, seed {step['sample']['seed']}"
        lines.append(
            f"{kept}: {step['left_interactions']} interactions, {step['left_users']} users and "
            f"{step['left_items']} items are left\n"
        )
    return "".join(lines)


def _counts(dataset: Dataset) -> str:
    """Count interactions, users and rated items of the whole log and of each split."""
    log = dataset.log
    parts = {"all": log} | {split: log.of_split(split) for split in SPLITS}
    rows = [
        (
            name,
            len(part),
            len(np.unique(part.user)),
            len(np.unique(part.item)),
            f"{part.rating.mean():.3f}" if len(part) else "",
        )
        for name, part in parts.items()
    ]
    head = ("part", "interactions", "users", "rated items", "mean rating")
    alignment = ("left",) + 4 * ("right",)
    return tabulate(rows, head, "pipe", disable_numparse=True, colalign=alignment)


def _session_counts(dataset: Dataset) -> str:
    """Count sessions, steps and purchases of each split, and the actions their pages show."""
    every_session = list(sessions(dataset))
    rows = []
    for part in ("all", *SPLITS):
        own = [s for s in every_session if part in ("all", s.split)]
        steps = [step for session in own for step in session.steps]
        rows.append(
            (
                part,
                len(own),
                len(steps),
                len({session.user_id for session in own}),
                sum(bool(step.rationale) for step in steps),
                sum(session.outcome == "purchase" for session in own),
            )
        )
    head = ("part", "sessions", "steps", "users", "rationales", "purchases")
    coverage = dataset.manifest["coverage"]
    return (
        tabulate(rows, head, "pipe")
        + f"\n\n{coverage['target_on_page']} of {coverage['steps_with_target']} actions with a "
        f"target are on their page ({coverage['share']:.2%}); the others cannot be chosen from "
        f"it\n{coverage['pages_without_elements']} pages without elements, "
        f"{coverage['sessions_with_other_than_stated_steps']} sessions with another number of "
        f"steps than stated, {dataset.extra_tables['surveys'].num_rows} surveys"
    )
