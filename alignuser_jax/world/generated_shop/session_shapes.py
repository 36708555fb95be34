"""How long shopping sessions are, by kind of page, and how many end in a purchase.

Real sessions come from the UCI file "Online Shoppers Purchasing Intention"; simulated sessions
are compared with them.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

KINDS = ("Administrative", "Informational", "ProductRelated")
"""UCI's kinds of page, its names of columns."""
PAGE_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""The quantiles of pages per session that are compared."""
LENGTH_BINS = (1, 3, 10, 20, 40, 80)
"""Lower ends of the bins of pages per session in which purchase rates are compared."""
_TRUE, _FALSE = ("1", "true"), ("0", "false")


@dataclass(frozen=True)
class SessionShapes:
    """The lengths and outcomes of many sessions.

    Attributes:
        pages: int[sessions, 3], the pages of each kind, in the order of `KINDS`.
        purchase: bool[sessions], whether something was bought.
    """

    pages: np.ndarray
    purchase: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """int[sessions], all pages of each session."""
        return self.pages.sum(1)

    def part(self, rows: np.ndarray) -> SessionShapes:
        """Return some of the sessions, by a boolean mask or by indices."""
        return SessionShapes(self.pages[rows], self.purchase[rows])


def read_online_shoppers(path: str | Path) -> SessionShapes:
    """Read the sessions of the UCI file (`.csv` or `.csv.gz`), in its order.

    Sessions without a page are left out. Raises `ValueError` with the line if a column is
    missing or a value has another form.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected UCI's online_shoppers_intention.csv")
    pages, purchase = [], []
    open_file = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rt", encoding="utf-8", newline="") as file:
            for counts, purchased in _rows(csv.DictReader(file), path):
                if sum(counts):
                    pages.append(counts)
                    purchase.append(purchased)
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error
    if not pages:
        raise ValueError(f"{path} has no session")
    return SessionShapes(np.array(pages), np.array(purchase))


def _rows(reader: csv.DictReader, path: Path) -> Iterator[tuple[list[int], bool]]:
    missing = [name for name in (*KINDS, "Revenue") if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}")
    for row in reader:
        revenue = (row["Revenue"] or "").strip().lower()
        counts = [(row[name] or "").strip() for name in KINDS]
        if revenue not in _TRUE + _FALSE or not all(
            c.isascii() and c.isdigit() and len(c) < 10 for c in counts
        ):
            raise ValueError(
                f"{path}, line {reader.line_num}: page counts {counts} and Revenue "
                f"{row['Revenue']!r}; expected whole numbers and TRUE or FALSE (or 1 or 0)"
            )
        yield [int(count) for count in counts], revenue in _TRUE


@dataclass(frozen=True)
class PagesCompared:
    """The pages per session of real and simulated sessions.

    Attributes:
        name: The kind of page, "all" for all kinds.
        human_mean: The mean of the real sessions.
        simulated_mean: The mean of the simulated ones.
        human_quantiles: The `PAGE_QUANTILES` of the real sessions.
        simulated_quantiles: The `PAGE_QUANTILES` of the simulated ones.
        ks: The Kolmogorov-Smirnov distance: 0 for the same distribution, 1 for no overlap.
    """

    name: str
    human_mean: float
    simulated_mean: float
    human_quantiles: tuple[float, ...]
    simulated_quantiles: tuple[float, ...]
    ks: float


@dataclass(frozen=True)
class ShapeComparison:
    """How simulated sessions differ from real ones; `str` gives a table.

    Attributes:
        pages: The pages per session, of all kinds and of each.
        human_purchase: The share of real sessions with a purchase.
        simulated_purchase: The share of simulated sessions with a purchase.
        by_length: (bin of length, real purchase rate, simulated one); NaN if a side has fewer
            than 20 sessions in the bin.
        human_sessions: The number of real sessions.
        simulated_sessions: The number of simulated sessions.
    """

    pages: tuple[PagesCompared, ...]
    human_purchase: float
    simulated_purchase: float
    by_length: tuple[tuple[str, float, float], ...]
    human_sessions: int
    simulated_sessions: int

    def __str__(self) -> str:
        marks = "  ".join(f"{100 * q:>4.0f}%" for q in PAGE_QUANTILES)
        lines = [
            f"{self.human_sessions} human sessions, {self.simulated_sessions} simulated",
            f"{'pages':<16}{'':<10}{'mean':>7}  {marks}    KS",
        ]
        for row in self.pages:
            for who, mean, quantiles, ks in (
                ("human", row.human_mean, row.human_quantiles, ""),
                ("simulated", row.simulated_mean, row.simulated_quantiles, f"{row.ks:.3f}"),
            ):
                values = "  ".join(f"{q:>5.0f}" for q in quantiles)
                lines.append(f"{row.name:<16}{who:<10}{mean:>7.1f}  {values}  {ks}".rstrip())
        lines.append(
            f"purchase rate    human {100 * self.human_purchase:.2f} %, "
            f"simulated {100 * self.simulated_purchase:.2f} %"
        )
        lines += [
            f"  {name:<12} pages: human {_percent(human)}, simulated {_percent(simulated)}"
            for name, human, simulated in self.by_length
        ]
        return "\n".join(lines)


def _percent(rate: float) -> str:
    return "too few" if np.isnan(rate) else f"{100 * rate:.1f} %"


def compare_shapes(human: SessionShapes, simulated: SessionShapes) -> ShapeComparison:
    """Compare pages per session, in all and by kind, and purchase rates by length."""
    columns = [("all", human.total, simulated.total)]
    columns += [(k, human.pages[:, n], simulated.pages[:, n]) for n, k in enumerate(KINDS)]
    compared = tuple(
        PagesCompared(
            name,
            float(a.mean()),
            float(b.mean()),
            tuple(map(float, np.quantile(a, PAGE_QUANTILES))),
            tuple(map(float, np.quantile(b, PAGE_QUANTILES))),
            float(ks_2samp(a, b, method="asymp").statistic),
        )
        for name, a, b in columns
    )
    rates: list[tuple[str, float, float]] = []
    for low, high in zip(LENGTH_BINS, (*LENGTH_BINS[1:], None), strict=True):
        name = f"{low} or more" if high is None else f"{low} to {high - 1}"
        rates.append((name, _rate(human, low, high), _rate(simulated, low, high)))
    return ShapeComparison(
        compared,
        float(human.purchase.mean()),
        float(simulated.purchase.mean()),
        tuple(rates),
        len(human.purchase),
        len(simulated.purchase),
    )


def _rate(shapes: SessionShapes, low: int, high: int | None) -> float:
    inside = (shapes.total >= low) & (shapes.total < (high or 1 << 62))
    return float(shapes.purchase[inside].mean()) if inside.sum() >= 20 else float("nan")
