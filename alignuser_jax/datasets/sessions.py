"""Read and check sessions: logs that record what a person saw on each page, and did there.

Such a `Dataset` has three extra tables: `sessions`, `steps` and `surveys`, with the columns
`SESSION_SCHEMA`, `STEP_SCHEMA` and `SURVEY_SCHEMA`. The text of a page is not stored but
rendered (`shop_page_text`), so that what an agent reads and what it may click come from the
same columns.

Example:
    >>> from alignuser_jax.datasets import load_dataset
    >>> from alignuser_jax.datasets.sessions import sessions
    >>> for session in sessions(load_dataset("runs/opera"), "test"):
    ...     print(session.steps[0].page, session.steps[0].action_kind)
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
"""The kinds of pages of a shop."""
ACTION_KINDS = ("click", "input", "terminate", "scroll", "navigation", "tab_activate")
"""The first three are those of docs/method.md section 3; others are in OPeRA's full tables."""
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
    """What a person saw, and then did.

    Attributes:
        session_id: The session.
        user_id: The person.
        order: Number of the step in its session, from 0.
        timestamp_milliseconds: Time of the action, since 1970.
        page_kind: One of `PAGE_KINDS`.
        page_number: Number of the page of results, from 1.
        page_context: What the page is about, on one line.
        products: The products on the page, in document order.
        elements: Semantic ids of what can be acted on, in document order.
        action_kind: One of `ACTION_KINDS`.
        target: Semantic id of the element acted on, "" for none.
        text: What was typed, "" for nothing.
        click_type: One of `CLICK_TYPES`; OPeRA's full tables have others; "" for no click.
        item_id: The product acted on, "" when the log does not say.
        target_on_page: False if the target is missing from `elements`; it is never added to
            them (docs/method.md section 2.4).
        rationale: The person's reason for the action, "" for none.
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
        """The text of the page, as agents read it."""
        products = [product.on_page for product in self.products]
        return shop_page_text(self.page_number, self.page_context, products, self.elements)


@dataclass(frozen=True, slots=True)
class Session:
    """One visit of a person to the shop.

    Attributes:
        session_id: The session.
        user_id: The person.
        split: "train", "validation" or "test".
        steps: The steps in their order.
        outcome: "purchase" if a click is a purchase, otherwise "terminate" if the person ended
            the session, otherwise "".
    """

    session_id: str
    user_id: str
    split: str
    steps: tuple[Step, ...]
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a person said of themselves; "" stands for no answer.

    Attributes:
        user_id: The person.
        age: The answer about age.
        occupation: The answer about occupation.
        personality: Answers about personality, on one line.
        habits: Answers about shopping habits, on one line.
        answers: All answers, one `question: answer` per line, without names, gender or contact
            data.
        interview: Transcript of an interview.
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
"""The columns of the table `steps`: the fields of `Step`."""
SESSION_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("session_id", "user_id", "split")),
        ("start_milliseconds", pa.int64()),
        ("steps", pa.int64()),
        ("outcome", pa.string()),
    ]
)
"""The columns of the table `sessions`; `steps` is the number of a session's rows in the table
of that name, which are in the same order."""
SURVEY_SCHEMA = pa.schema([(f.name, pa.string()) for f in fields(Survey)])
"""The columns of the table `surveys`: the fields of `Survey`."""


def session_tables(sessions: Iterable[Session]) -> tuple[pa.Table, pa.Table]:
    """Return the tables `sessions` and `steps` of these sessions, in their order."""
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
    """Iterate over the sessions of some splits, in the order of the table.

    Args:
        dataset: A log of sessions.
        *splits: Some of `SPLITS`; none means all.

    Raises:
        ValueError: If the dataset has no sessions, or a split does not exist; it is raised at
            once, not at the first session.
    """
    table, steps = (_table(dataset, name) for name in ("sessions", "steps"))
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise ValueError(f"unknown splits {unknown}: expected some of {SPLITS}")

    def generate() -> Iterator[Session]:
        start = 0
        for row in table.to_pylist():
            count = row["steps"]
            if not splits or row["split"] in splits:
                own = tuple(_step(r) for r in steps.slice(start, count).to_pylist())
                yield Session(
                    row["session_id"], row["user_id"], row["split"], own, row["outcome"]
                )
            start += count

    return generate()


def surveys(dataset: Dataset) -> Mapping[str, Survey]:
    """Return the surveys by user id.

    Raises:
        ValueError: If the dataset has no surveys.
    """
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
    """Return the split of each session.

    Sessions of the log's own test part are "test". Of each user's other sessions the latest
    `share` is "validation" (docs/method.md section 13.2: 10 %, latest per user); its number is
    rounded to the nearest, and a user's only session stays in train.

    Args:
        user_ids: The user of each session.
        starts: The start of each session, in any unit.
        test: Whether each session is in the log's own test part.
        share: Share of the other sessions that becomes validation.
    """
    split = ["test" if is_test else "train" for is_test in test]
    order = sorted(range(len(split)), key=lambda n: (user_ids[n], starts[n], n))
    own = (n for n in order if split[n] == "train")
    for _, group in groupby(own, key=lambda n: user_ids[n]):
        indices = list(group)
        count = min(int(share * len(indices) + 0.5), len(indices) - 1)
        for index in indices[len(indices) - count :]:
            split[index] = "validation"
    return split


def check_session_leaks(dataset: Dataset) -> list[str]:
    """Return a sentence for each fault of the split of sessions; an empty list means none.

    The faults are: a session in two splits, a user's train session later than a validation
    session, and tables that do not fit together. Test sessions are the log's own, and may be
    older than the others.
    """
    table, steps = (_table(dataset, name) for name in ("sessions", "steps"))
    if not table.num_rows:
        return ["there are no sessions"]
    problems: list[str] = []
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
