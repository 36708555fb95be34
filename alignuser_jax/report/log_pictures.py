"""Write the description of a log as a folder: Markdown, JSON and a picture per distribution."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from tabulate import tabulate

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.describe import (
    SESSION_GAP_SECONDS,
    TRAIT_LEVELS,
    describe,
    gaps,
    session_lengths,
)
from alignuser_jax.datasets.log import SPLITS, Log

if TYPE_CHECKING:  # matplotlib is slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_GENRES = 20
"""Genres that are drawn, the most frequent ones."""
COLOURS = ("#3b6ea5", "#e2a03f", "#b5523b")
"""Colours of train, validation and test; everything else has the first."""
_TIME_MARKS = {
    60: "1 min",
    3600: "1 h",
    86_400: "1 day",
    7 * 86_400: "1 week",
    31_557_600: "1 year",
}


def write_description(
    dataset: Dataset, folder: str | Path, levels: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Describe a log and write the description to a folder.

    The folder gets description.md, description.json and the pictures that description.md
    shows. Files of an earlier description are replaced.

    Args:
        dataset: The log.
        folder: Where to write; it is made if it does not exist.
        levels: Trait -> level of each user, int[users], 0 for unknown (`trait_levels`).

    Returns:
        The description, as `describe` returns it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = describe(dataset, levels)
    text = json.dumps(described, indent=2, ensure_ascii=False)
    (folder / "description.json").write_text(text + "\n", encoding="utf-8")
    sections = []
    for name, (title, needed, draw) in PLOTS.items():
        picture = folder / f"{name}.png"
        picture.unlink(missing_ok=True)
        if described.get(needed):
            _draw(picture, f"{_label(described)}: {title}", draw, dataset.log, described)
            sections.append(f"## {title}\n\n![{title}]({picture.name})\n")
    page = f"# {_label(described)}\n\n{summary(described)}\n\n" + "\n".join(sections)
    (folder / "description.md").write_text(page, encoding="utf-8")
    return described


def summary(described: Mapping[str, Any]) -> str:
    """Return the tables of a description as Markdown."""
    head = list(described["parts"][0])
    rows = [
        [
            row["part"],
            *(f"{row[name]:,}" for name in head[1:4]),
            "" if row["density"] is None else f"{row['density']:.3%}",
            "" if row["mean rating"] is None else f"{row['mean rating']:.3f}",
        ]
        for row in described["parts"]
    ]
    if visits := described.get("session_log"):
        return _session_summary(visits, described["items_in_catalogue"])
    tables = [_table(rows, head), _table(*_spreads(described))]
    facts = [f"{described['items_in_catalogue']:,} items are in the catalogue."]
    if "per_item" in described:
        facts.append(
            f"The most popular tenth of the rated items has "
            f"{described['per_item']['share of the top tenth']:.0%} of the interactions (Gini "
            f"{described['per_item']['gini']:.2f})."
        )
    if "time" in described:
        time = described["time"]
        facts.append(
            f"From {time['first_day']} to {time['last_day']}; {time['sessions']:,} sessions, "
            f"parted by {SESSION_GAP_SECONDS // 60} minutes without an interaction."
        )
    lacks = {"ratings": "ratings", "time": "timestamps", "genres": "genres"}
    if missing := [word for name, word in lacks.items() if name not in described]:
        facts.append(f"It has no {', '.join(missing)}.")
    return "\n\n".join([*tables, " ".join(facts)])


def _session_summary(visits: Mapping[str, Any], items: int) -> str:
    """The tables of a log of sessions, which has no ratings."""
    head = list(visits["parts"][0])
    rows = [[row["part"], *(f"{row[name]:,}" for name in head[1:])] for row in visits["parts"]]
    kinds = [
        [what, ", ".join(f"{name} {count:,}" for name, count in visits[key].items())]
        for what, key in (
            ("kind of page", "pages"),
            ("action", "actions"),
            ("type of click", "clicks"),
        )
    ]
    lengths = np.repeat(*np.array([(int(n), c) for n, c in visits["lengths"].items()]).T)
    facts = (
        f"{items:,} products were seen. Steps of a session: median {np.median(lengths):g}, "
        f"mean {lengths.mean():.1f}, most {lengths.max()}. A reason is given for "
        f"{visits['reasons']:.0%} of the steps; {visits['shown']:.1%} of the targets stand on "
        "their page. It has no ratings."
    )
    return "\n\n".join([_table(rows, head), tabulate(kinds, ["steps by", ""], "pipe"), facts])


def _table(rows: list[list[str]], head: list[str]) -> str:
    alignment = ("left",) + ("right",) * (len(head) - 1)
    return tabulate(rows, head, "pipe", disable_numparse=True, colalign=alignment)


def _spreads(described: Mapping[str, Any]) -> tuple[list[list[str]], list[str]]:
    spreads = {
        "interactions per user": described.get("per_user"),
        "interactions per rated item": described.get("per_item"),
    }
    if time := described.get("time"):
        spreads["interactions per session"] = time["interactions_per_session"]
        spreads["seconds between a user's interactions"] = time["gap_seconds"]
    names = ("min", "5 %", "median", "mean", "95 %", "max")
    rows = [
        [what, *(f"{values[name]:,.1f}".removesuffix(".0") for name in names)]
        for what, values in spreads.items()
        if values
    ]
    return rows, ["of all", *names]


def _label(described: Mapping[str, Any]) -> str:
    return described["name"] + (" (SYNTHETIC)" if described["synthetic"] else "")


# --- pictures ---

_Picture: TypeAlias = "Callable[[Figure, Log, Mapping[str, Any]], None]"


def _draw(
    path: Path, title: str, draw: _Picture, log: Log, described: Mapping[str, Any]
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title.replace("$", r"\$"), fontsize=12)
    draw(figure, log, described)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _thousands(axes: Axes, which: str = "y") -> None:
    from matplotlib.ticker import FuncFormatter

    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _ratings(figure: Figure, log: Log, described: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    values = [float(value) for value in described["ratings"]]
    counts = np.array(list(described["ratings"].values()))
    few = len(values) <= 12
    width = 0.8 * min(np.diff(values), default=1.0)
    bars = axes.bar(values, counts, width, color=COLOURS[0])
    if few:
        axes.bar_label(bars, [f"{share:.1%}" for share in counts / counts.sum()], fontsize=9)
        axes.set_xticks(values)
    axes.set(xlabel="rating", ylabel="interactions")
    axes.margins(y=0.12)
    _thousands(axes)


def _log_histogram(axes: Axes, values: np.ndarray, colour: str = COLOURS[0]) -> None:
    """Draw counts of positive integers in bins that grow; no bin is narrower than 1."""
    top = max(float(values.max()), 2.0)
    edges = np.unique(np.floor(np.geomspace(1, top + 1, 41))) - 0.5
    axes.hist(values, np.append(edges, top + 0.5).tolist(), color=colour)
    axes.set_xscale("log")
    _thousands(axes, "x")
    _thousands(axes)


def _per_user(figure: Figure, log: Log, described: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    counts = np.bincount(log.user)
    counts = counts[counts > 0]
    _log_histogram(axes, counts)
    middle = float(np.median(counts))
    axes.axvline(middle, color="black", linewidth=1)
    axes.annotate(
        f" median {middle:,.0f}", (middle, 0.97), xycoords=("data", "axes fraction"), va="top"
    )
    axes.set(xlabel="interactions of a user (log scale)", ylabel="users")


def _per_item(figure: Figure, log: Log, described: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    counts = np.sort(np.bincount(log.item))[::-1]
    counts = counts[counts > 0]
    rank = np.arange(1, len(counts) + 1)
    left.loglog(rank, counts, color=COLOURS[0])
    left.set(xlabel="item, by popularity (log scale)", ylabel="interactions (log scale)")
    _thousands(left)
    _thousands(left, "x")
    left.grid(alpha=0.3)
    right.plot(rank / len(counts), np.cumsum(counts) / counts.sum(), color=COLOURS[0])
    right.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
    share = described["per_item"]["share of the top tenth"]
    right.plot([0.1], [share], "o", color=COLOURS[2])
    right.annotate(f"a tenth of the items has {share:.0%}", (0.13, share), va="center")
    right.set(xlabel="share of the rated items", ylabel="share of the interactions")
    right.grid(alpha=0.3)


def _gaps(figure: Figure, log: Log, described: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    seconds = gaps(log)
    zero = float((seconds == 0).mean()) if len(seconds) else 0.0
    positive = seconds[seconds > 0]
    if len(positive):
        edges = np.geomspace(1, max(float(positive.max()), 2.0), 61)
        axes.hist(positive, edges.tolist(), color=COLOURS[0])
    axes.set_xscale("log")
    axes.set_xticks(list(_TIME_MARKS), list(_TIME_MARKS.values()))
    axes.minorticks_off()
    axes.axvline(SESSION_GAP_SECONDS, color=COLOURS[2], linewidth=1.5)
    axes.annotate(
        f" a new session after {SESSION_GAP_SECONDS // 60} min",
        (SESSION_GAP_SECONDS, 0.97),
        xycoords=("data", "axes fraction"),
        va="top",
    )
    axes.set(
        xlabel=f"time since the user's last interaction (log scale); {zero:.0%} are 0 and not "
        "shown",
        ylabel="interactions",
    )
    _thousands(axes)


def _sessions(figure: Figure, log: Log, described: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    _log_histogram(left, session_lengths(log))
    left.set(xlabel="interactions of a session (log scale)", ylabel="sessions")
    new = np.diff(log.timestamp) > SESSION_GAP_SECONDS
    same = log.user[1:] == log.user[:-1]
    users = np.flatnonzero(np.bincount(log.user))
    breaks = np.bincount(log.user[1:][new & same], minlength=log.n_users)[users]
    _log_histogram(right, breaks + 1)
    right.set(xlabel="sessions of a user (log scale)", ylabel="users")


def _over_time(figure: Figure, log: Log, described: Mapping[str, Any]) -> None:
    import matplotlib.dates as dates

    axes = figure.subplots()
    days = log.timestamp / 86_400
    edges = np.linspace(days.min(), days.max(), 61)
    parts = [days[log.split == n] for n in range(len(SPLITS))]
    axes.hist(parts, edges.tolist(), stacked=True, color=COLOURS, label=list(SPLITS))
    axes.xaxis.set_major_formatter(
        dates.ConciseDateFormatter(locator := dates.AutoDateLocator())
    )
    axes.xaxis.set_major_locator(locator)
    axes.set(xlabel="time", ylabel=f"interactions in {edges[1] - edges[0]:.1f} days")
    axes.legend(frameon=False)
    _thousands(axes)


def _genres(figure: Figure, log: Log, described: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    bars = list(described["genres"].items())[:MOST_GENRES][::-1]
    names = [name if len(name) <= 40 else f"{name[:39]}…" for name, _ in bars]
    places = np.arange(len(bars))
    axes.barh(places, [count for _, count in bars], color=COLOURS[0])
    axes.set_yticks(places, [name.replace("$", r"\$") for name in names], fontsize=9)
    left = len(described["genres"]) - len(bars)
    axes.set(xlabel="interactions" + (f" ({left} rarer genres not shown)" if left else ""))
    _thousands(axes, "x")


def _traits(figure: Figure, log: Log, described: Mapping[str, Any]) -> None:
    traits = {
        name: levels
        for name, levels in described["traits"].items()
        if any(levels[level] for level in TRAIT_LEVELS[name])
    }
    if not traits:
        return
    for axes, (trait, levels) in zip(
        np.atleast_1d(figure.subplots(1, len(traits), sharey=True)), traits.items(), strict=True
    ):
        names = [name for name, count in levels.items() if count or name != "unknown"]
        counts = np.array([levels[name] for name in names])
        bars = axes.bar(np.arange(len(names)), counts, color=COLOURS[0])
        axes.bar_label(bars, [f"{share:.0%}" for share in counts / counts.sum()], fontsize=9)
        axes.set_xticks(np.arange(len(names)), names, fontsize=9, rotation=30, ha="right")
        axes.set_title(trait, fontsize=11)
        axes.margins(y=0.1)
        _thousands(axes)
    figure.axes[0].set_ylabel("users")


def _steps(figure: Figure, log: Log, described: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    lengths = described["session_log"]["lengths"]
    values = np.repeat([int(n) for n in lengths], list(lengths.values()))
    _log_histogram(axes, values)
    axes.set(xlabel="steps of a session (log scale)", ylabel="sessions")


def _kinds(figure: Figure, log: Log, described: Mapping[str, Any]) -> None:
    parts = (("pages", "kind of page"), ("actions", "action"), ("clicks", "type of click"))
    for axes, (key, title) in zip(figure.subplots(1, len(parts)), parts, strict=True):
        counts = list(described["session_log"][key].items())[::-1]
        places = np.arange(len(counts))
        bars = axes.barh(places, [count for _, count in counts], color=COLOURS[0])
        axes.bar_label(bars, [f" {count:,}" for _, count in counts], fontsize=8)
        axes.set_yticks(places, [name.replace("$", r"\$") for name, _ in counts], fontsize=9)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("steps")
        axes.margins(x=0.2)
        _thousands(axes, "x")


PLOTS: dict[str, tuple[str, str, _Picture]] = {
    "ratings": ("ratings", "ratings", _ratings),
    "per_user": ("interactions per user", "per_user", _per_user),
    "per_item": ("interactions per item", "per_item", _per_item),
    "over_time": ("interactions over time", "time", _over_time),
    "gaps": ("time between a user's interactions", "time", _gaps),
    "sessions": ("sessions", "time", _sessions),
    "genres": ("genres", "genres", _genres),
    "steps": ("steps per session", "session_log", _steps),
    "kinds": ("pages, actions and clicks", "session_log", _kinds),
    "traits": ("traits of the users, from the training part", "traits", _traits),
}
"""File name -> (title, the part of the description that it needs, how it is drawn)."""
