"""Sessions of steps on pages: the tables of logs that record what a person saw and did.

Three tables of a `Dataset` that has them (`Dataset.extra_tables`): `sessions`, `steps` and
`surveys`, whose columns are `SESSION_SCHEMA`, `STEP_SCHEMA` and `SURVEY_SCHEMA`. The text of a
page is not stored but rendered (`shop_page_text`), so that what an agent reads and what it may
click come from the same columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby

import numpy as np
import pyarrow as pa

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.log import SPLITS
from alignuser_jax.datasets.shop_page_text import PageProduct, shop_page_text
from alignuser_jax.text import one_line

PAGE_KINDS = ("browse", "search", "detail", "cart", "checkout")
ACTION_KINDS = ("click", "input", "terminate", "scroll", "navigation", "tab_activate")
"""The first three are METHOD.md section 3's; the others stand only in OPeRA's full tables."""
CLICK_TYPES = (
    *("review", "search", "product_option", "product_link", "other", "purchase", "nav_bar"),
    *("page_related", "quantity", "suggested_term", "cart_side_bar", "cart_page_select"),
    "filter",
)
"""OPeRA's thirteen types of click, the most frequent first (docs/method.md section 13.2)."""


@dataclass(frozen=True, slots=True)
class LoggedProduct:
    """One product of a logged page.

    Attributes:
        item_id: The product's id, "" where the log does not say.
        title: The title.
        price: The price as text, "" where the page does not say.
        availability: What the page says of the stock, "" for nothing.
        details: Everything else, "" for nothing.
    """

    item_id: str
    title: str
    price: str = ""
    availability: str = ""
    details: str = ""

    @property
    def on_page(self) -> PageProduct:
        """The product as a page shows it: a product without a title goes by its id."""
        title = one_line(self.title) or self.item_id
        return PageProduct(title, self.price, self.availability, self.details)


@dataclass(frozen=True, slots=True)
class Step:
    """What a person saw and then did.

    `order` counts from 0 in the session; `page_kind` is one of `PAGE_KINDS`; `page_number` the
    page of results, from 1; `elements` the semantic ids in document order. `action_kind` is
    one of `ACTION_KINDS`, `target` the semantic id acted on, `text` what was typed,
    `click_type` one of `CLICK_TYPES` (others in OPeRA's full tables), `item_id` the product
    acted on where the log says. `target_on_page` is False where a target is missing from
    `elements`: it is never added to them (METHOD.md section 2.4).
    """

    session_id: str
    user_id: str
    order: int
    timestamp_milliseconds: int
    page_kind: str
    page_number: int
    page_context: str
    products: tuple[LoggedProduct, ...]
    elements: tuple[str, ...]
    action_kind: str
    target: str = ""
    text: str = ""
    click_type: str = ""
    item_id: str = ""
    target_on_page: bool = True
    rationale: str = ""

    @property
    def page(self) -> str:
        products = [product.on_page for product in self.products]
        return shop_page_text(self.page_number, self.page_context, products, self.elements)


@dataclass(frozen=True, slots=True)
class Session:
    """`outcome` is "purchase" where a purchase click is in it, "terminate" where it ends with
    one, "" where the log just ends.
    """

    session_id: str
    user_id: str
    split: str
    steps: tuple[Step, ...]
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a user said of themselves. `answers` holds one `question: answer` line each, without
    names, gender or contact data; the other fields are parts of it, `interview` is apart.
    """

    user_id: str
    age: str = ""
    occupation: str = ""
    personality: str = ""
    habits: str = ""
    answers: str = ""
    interview: str = ""


_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "tuple[str, ...]": pa.list_(pa.string()),
    "tuple[LoggedProduct, ...]": pa.list_(
        pa.struct([(f.name, pa.string()) for f in fields(LoggedProduct)])
    ),
}
STEP_SCHEMA = pa.schema([(f.name, _TYPES[str(f.type)]) for f in fields(Step)])
SESSION_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("session_id", "user_id", "split")),
        ("start_milliseconds", pa.int64()),
        ("steps", pa.int64()),
        ("outcome", pa.string()),
    ]
)
SURVEY_SCHEMA = pa.schema([(f.name, pa.string()) for f in fields(Survey)])


def session_tables(sessions: Iterable[Session]) -> tuple[pa.Table, pa.Table]:
    """The tables `sessions` and `steps` of these sessions, in the order given."""
    sessions = list(sessions)
    rows = [
        {
            "session_id": s.session_id,
            "user_id": s.user_id,
            "split": s.split,
            "start_milliseconds": s.steps[0].timestamp_milliseconds,
            "steps": len(s.steps),
            "outcome": s.outcome,
        }
        for s in sessions
    ]
    steps = [asdict(step) for session in sessions for step in session.steps]
    return (
        pa.Table.from_pylist(rows, SESSION_SCHEMA),
        pa.Table.from_pylist(steps, STEP_SCHEMA),
    )


def sessions(dataset: Dataset, *splits: str) -> Iterator[Session]:
    """The sessions of these splits (of all where none is named), in the table's order, each
    made when it is asked for.

    Raises `ValueError` for a dataset without sessions and for an unknown split.
    """
    table, steps = (_table(dataset, name) for name in ("sessions", "steps"))
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise ValueError(f"unknown splits {unknown}: expected some of {SPLITS}")

    def generate() -> Iterator[Session]:
        start = 0
        for row in table.to_pylist():
            count = row["steps"]
            if not splits or row["split"] in splits:
                found = tuple(_step(r) for r in steps.slice(start, count).to_pylist())
                yield Session(
                    row["session_id"], row["user_id"], row["split"], found, row["outcome"]
                )
            start += count

    return generate()


def surveys(dataset: Dataset) -> Mapping[str, Survey]:
    """The surveys by user id. Raises `ValueError` for a dataset without."""
    return {row["user_id"]: Survey(**row) for row in _table(dataset, "surveys").to_pylist()}


def _table(dataset: Dataset, name: str) -> pa.Table:
    if name not in dataset.extra_tables:
        raise ValueError(
            f"the dataset {dataset.name!r} has no {name}: they come with "
            "`alignuser import-logs --format=opera`"
        )
    return dataset.extra_tables[name]


def _step(row: dict) -> Step:
    products = tuple(LoggedProduct(**product) for product in row["products"])
    return Step(**row | {"products": products, "elements": tuple(row["elements"])})


def split_sessions(
    user_ids: Sequence[str], starts: Sequence[int], test: Sequence[bool], share: float = 0.1
) -> list[str]:
    """The split of each session. Those of the log's own test part are "test"; of the others the
    latest `share` of each user's (rounded to the nearest, a user's only session stays in train)
    are "validation" (METHOD.md section 13.2: 10 %, latest per user).
    """
    split = ["test" if is_test else "train" for is_test in test]
    order = sorted(range(len(split)), key=lambda n: (user_ids[n], starts[n], n))
    own = (n for n in order if split[n] == "train")
    for _, group in groupby(own, key=lambda n: user_ids[n]):
        places = list(group)
        count = min(int(share * len(places) + 0.5), len(places) - 1)
        for place in places[len(places) - count :]:
            split[place] = "validation"
    return split


def check_session_leaks(dataset: Dataset) -> list[str]:
    """What is wrong with the split of a dataset's sessions, in words; empty where nothing is.

    Looks for: a session in two splits, a user's validation session earlier than a train one,
    and tables that do not fit together. The test sessions are the log's own and may be older.
    """
    table, steps = (_table(dataset, name) for name in ("sessions", "steps"))
    if not table.num_rows:
        return ["there are no sessions"]
    problems = []
    rows = table.to_pylist()
    ids = [row["session_id"] for row in rows]
    if repeated := sorted(name for name, count in Counter(ids).items() if count > 1):
        problems.append(f"{len(repeated)} sessions stand twice, e.g. {repeated[0]!r}")
    expected = np.repeat(np.array(ids, object), [row["steps"] for row in rows]).tolist()
    if steps["session_id"].to_pylist() != expected:
        problems.append("the steps are not those of the sessions, in their order")
    for user, group in groupby(
        sorted(rows, key=lambda r: r["user_id"]), lambda r: r["user_id"]
    ):
        starts: dict[str, list[int]] = {name: [] for name in SPLITS}
        for row in group:
            starts[row["split"]].append(row["start_milliseconds"])
        if starts["validation"] and max(starts["train"], default=0) > min(starts["validation"]):
            problems.append(f"user {user!r} has a train session later than a validation one")
    return problems
