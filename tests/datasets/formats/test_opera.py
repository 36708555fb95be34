"""OPeRA's tables: pages rebuilt from HTML, sessions in order, surveys without names, dirt."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignuser_jax.datasets import load_dataset
from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.formats import opera
from alignuser_jax.datasets.formats.opera_page import build_page, read_markup
from alignuser_jax.datasets.formats.opera_survey import survey_row
from alignuser_jax.datasets.reading.delimited import InputError
from alignuser_jax.datasets.report import DirtyInput
from alignuser_jax.datasets.sessions import (
    check_session_leaks,
    session_tables,
    sessions,
    split_sessions,
    surveys,
)
from tests.datasets.formats.opera_files import (
    ANN,
    BOB,
    CART,
    DETAIL,
    HOME,
    SEARCH,
    SURVEY,
    action,
    session_id,
    shopping,
    write_opera,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return opera.read(write_opera(tmp_path_factory.mktemp("opera")))


def test_the_page_of_method_2_4(dataset):
    step = next(sessions(dataset)).steps[1]
    assert step.page == (
        "PAGE 2\n"
        "CONTEXT: search results page | search term: rice cooker | cart: Bonide Soap, 32 oz\n"
        "PRODUCTS:\n"
        "<- Tiger JBV-S18U 10-Cup Rice Cooker & Steamer -> <- Price: $139.99 -> "
        "<- Availability: In Stock -> <- Details: 4.6 out of 5 stars ->\n"
        "<- Zojirushi Neuro Fuzzy -> <- Price: $1,189.00 -> "
        "<- Availability: Only 3 left in stock -> "
        "<- Details: Zojirushi photo - order soon. ->\n"
        "INTERACTIVE ELEMENTS (semantic IDs):\n"
        "nav_bar, nav_bar.search_input, search_results.tiger_jbv_s18u, "
        "search_results.tiger_jbv_s18u.view_product, search_results.zojirushi, "
        "search_results.zojirushi.view_product, pagination.2"
    )


def test_the_steps_of_a_session(dataset):
    session = next(sessions(dataset))
    assert (session.user_id, session.split, session.outcome) == (ANN, "train", "purchase")
    rows = [(s.order, s.action_kind, s.target, s.click_type) for s in session.steps]
    assert rows == [
        (0, "input", "nav_bar.search_input", ""),
        (1, "click", "search_results.tiger_jbv_s18u.view_product", "product_link"),
        (2, "click", "reviews.not_on_this_page", "review"),
        (3, "click", "buybox.purchase_form.add_to_cart", "purchase"),
        (4, "terminate", "", ""),
    ]
    kinds = [step.page_kind for step in session.steps]
    assert kinds == ["browse", "search", "detail", "detail", "cart"]
    first = session.steps[0]
    assert (first.text, first.rationale) == ("rice cooker", "I need a new rice cooker")
    assert first.timestamp_milliseconds == 1_744_667_457_792  # 2025-04-14T21:50:57.792Z
    assert [s.item_id for s in session.steps] == ["", *["B01L9SD3K0"] * 3, ""]


def test_a_target_is_never_added_to_its_page(dataset):
    step = next(sessions(dataset)).steps[2]
    assert not step.target_on_page and step.target not in step.elements
    assert step.target not in step.page
    coverage = dataset.manifest["coverage"]
    assert coverage["steps_with_target"] == 4 + 3 + 4 + 3 + 4
    assert coverage["target_on_page"] == coverage["steps_with_target"] - 5
    assert coverage["share"] == round(13 / 18, 4)


def test_a_page_does_not_tell_the_purchase_that_follows(dataset):
    """OPeRA's `products` column is filled on purchases only: the page must not show it."""
    looked, bought = next(sessions(dataset)).steps[2:4]
    assert (looked.click_type, bought.click_type) == ("review", "purchase")
    assert looked.page == bought.page


def test_splits_are_operas_own_and_the_latest_tenth(dataset):
    assert [(s.user_id, s.split) for s in sessions(dataset)] == [
        *[(ANN, "train")] * 3,
        (ANN, "test"),
        (BOB, "train"),
    ]
    assert [s.split for s in sessions(dataset, "test")] == ["test"]
    with pytest.raises(ValueError, match="unknown splits"):
        sessions(dataset, "later")
    users, starts = ["a"] * 10 + ["b"] * 4, [*range(10), *range(4)]
    split = split_sessions(users, starts, [False] * 9 + [True] + [False] * 4)
    assert split == ["train"] * 8 + ["validation", "test"] + ["train"] * 4
    assert split_sessions(["a"] * 2, [5, 3], [False] * 2, 0.5) == ["validation", "train"]
    assert split_sessions(["a"], [5], [False], 0.9) == ["train"]


def test_surveys_are_given_personas_without_names_gender_or_address(dataset):
    survey = surveys(dataset)[ANN]
    assert (survey.age, survey.occupation) == ("25-34", "Nurse")
    assert survey.personality == "Extraversion: 4; Openness: 6; MBTI: INFJ"
    assert survey.habits == (
        "How often do you shop online?: Weekly; What matters to you?: Price, Reviews; "
        "Prime member: yes"
    )
    assert "Female" not in survey.answers and "02115" not in survey.answers
    assert survey.interview == "### Shopping Often."
    assert dataset.demographics[ANN] == {"age": "25-34", "occupation": "Nurse"}
    assert dataset.demographics[BOB] == {"age": "", "occupation": ""}
    row = survey_row("u", {"Self": {"firstName": "Ann", "e-mail": "a@b", "Age": 30}})
    assert row["answers"] == "Age: 30"


def test_the_folder_round_trip(dataset, tmp_path):
    directory = dataset.save(tmp_path / "out")
    names = sorted(path.name for path in directory.iterdir())
    assert {"sessions.parquet", "steps.parquet", "surveys.parquet"} < set(names)
    loaded = load_dataset(directory)
    assert loaded.hash == dataset.hash and list(sessions(loaded)) == list(sessions(dataset))
    assert len(loaded.log) == 0 and check_session_leaks(loaded) == []
    rows = pq.read_table(directory / "steps.parquet").to_pylist()
    rows[0]["rationale"] = "I was paid to"
    pq.write_table(pa.Table.from_pylist(rows, loaded.extra_tables["steps"].schema),
                   directory / "steps.parquet")  # fmt: skip
    with pytest.raises(ValueError, match="changed after the import"):
        load_dataset(directory)


def test_tables_of_sessions_are_the_inverse(dataset):
    given = list(sessions(dataset))
    table, steps = session_tables(given)
    assert table.equals(dataset.extra_tables["sessions"])
    assert steps.equals(dataset.extra_tables["steps"])


def test_row_groups_do_not_matter(dataset, tmp_path):
    other = opera.read(write_opera(tmp_path, row_group_size=1))
    assert other.hash == dataset.hash
    inner = opera.read(tmp_path / "OPeRA_filtered")
    assert inner.hash == dataset.hash


def test_leaks_are_seen(dataset):
    table = dataset.extra_tables["sessions"]
    rows = table.to_pylist()

    def check(rows, steps=dataset.extra_tables["steps"]):
        extra = {"sessions": pa.Table.from_pylist(rows, table.schema), "steps": steps}
        return check_session_leaks(replace(dataset, extra_tables=extra))

    rows[0]["split"] = "validation"
    assert "train session later than a validation one" in check(rows)[0]
    assert "stand twice" in check(rows[:1] * 2)[0]
    short = dataset.extra_tables["steps"].slice(1)
    assert check(table.to_pylist(), short) == [
        "the steps are not those of the sessions, in their order"
    ]


def test_the_full_tables_keep_their_own_actions(tmp_path):
    name = session_id(ANN, "2025-04-14T21:52:46Z", "2025-04-14T22:00:00Z")
    kinds = ("scroll", "navigation", "tab_activate", "click")
    rows = [action(name, n, kind, HOME, "https://www.amazon.com/") for n, kind in
            enumerate(kinds)]  # fmt: skip
    rows[3] |= {"semantic_id": "nav_bar.homepage", "click_type": "some_full_type"}
    write_opera(tmp_path, {"train": rows}, "full")
    dataset = opera.read(tmp_path, tables="full")
    (session,) = sessions(dataset)
    assert [s.action_kind for s in session.steps] == list(kinds)
    assert session.outcome == "" and session.steps[3].click_type == "some_full_type"
    with pytest.raises(FileNotFoundError, match="OPeRA_filtered/action/train"):
        opera.read(tmp_path)


DIRT = [
    ({"session_id": None}, "empty user or session id"),
    ({"session_id": "_x"}, "empty user or session id"),
    ({"session_id": "u\x1b[2J_1_2"}, "id with control characters or over 512 bytes"),
    ({"action_type": "hover"}, "unknown action type"),
    ({"action_type": None}, "unknown action type"),
    ({"timestamp": "yesterday"}, "bad timestamp"),
    ({"timestamp": None}, "bad timestamp"),
    ({"timestamp": "9999-12-31T23:59:59Z"}, "bad timestamp"),
    ({"timestamp": "0001-01-01T00:00:00+14:00"}, "bad timestamp"),
    ({"semantic_id": None}, "click without a target"),
    ({"simplified_html": "x" * 4_000_001}, "page of more than 4000000 characters"),
]


@pytest.mark.parametrize("fields, problem", DIRT)
def test_dirty_rows_are_counted(tmp_path, fields, problem):
    rows = shopping(ANN, 14)
    rows[1] |= fields
    write_opera(tmp_path, {"train": rows})
    dataset = opera.read(tmp_path)
    place = "train-00000-of-00001.parquet:2"
    assert dataset.report.lines == {problem: [place]} and dataset.report.read == 5
    assert dataset.extra_tables["steps"].num_rows == 4
    with pytest.raises(DirtyInput, match=problem):
        opera.read(tmp_path, strict=True)


def test_repeated_actions_and_sessions_of_both_splits(tmp_path):
    rows = shopping(ANN, 14)
    write_opera(tmp_path, {"train": [*shopping(BOB, 15), rows[0]], "test": [*rows, rows[2]]})
    dataset = opera.read(tmp_path)
    assert dataset.report.counts == {"session in train and test": 1, "repeated action": 1}
    assert [(s.user_id, s.split, len(s.steps)) for s in sessions(dataset)] == [
        (BOB, "train", 5),
        (ANN, "test", 5),
    ]
    assert check_session_leaks(dataset) == []


def test_what_is_no_opera(tmp_path):
    with pytest.raises(FileNotFoundError, match="no OPeRA tables in"):
        opera.read(tmp_path)
    with pytest.raises(ValueError, match="expected filtered or full"):
        opera.read(tmp_path, tables="half")
    write_opera(tmp_path)
    path = tmp_path / "OPeRA_filtered/action/train-00000-of-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a readable Parquet file"):
        opera.read(tmp_path)
    pq.write_table(pa.table({"session_id": ["a"]}), path)
    with pytest.raises(InputError, match="lacks the columns .*'action_id'"):
        opera.read(tmp_path)
    write_opera(tmp_path, {"train": [], "test": []})
    with pytest.raises(ValueError, match="no usable step is left"):
        opera.read(tmp_path)


def test_odd_json_and_html_cost_a_field_not_a_row(tmp_path):
    rows = shopping(ANN, 14)
    rows[0] |= {"page_meta": "{cut", "element_meta": "[1]", "products": "[[[["}
    rows[1] |= {"page_meta": "[" * 100_000, "simplified_html": "<div name='a'" + "<b>" * 5000}
    rows[2] |= {"url": "https://[oops/dp/B01L9SD3K0", "simplified_html": None}
    rows[3] |= {"products": json.dumps([{"title": None}, 3, {"title": "T", "asin": 5}])}
    users = [
        {"user_id": ANN, "survey": "no json", "interview_transcript_processed": None},
        {"user_id": None, "survey": json.dumps(SURVEY), "interview_transcript_processed": ""},
    ]
    write_opera(tmp_path, {"train": rows}, users=users)
    dataset = opera.read(tmp_path)
    (session,) = sessions(dataset)
    assert len(session.steps) == 5 and session.steps[2].page_kind == "browse"
    assert session.steps[3].item_id == "5"
    assert dataset.report.counts == {"empty id": 1, "survey that is no JSON object": 1}
    assert dataset.manifest["coverage"]["pages_without_elements"] >= 1


@pytest.mark.parametrize(
    "url, html, kind",
    [
        ("https://www.amazon.com/s?k=tea", HOME, "search"),
        ("https://www.amazon.com/-/es/x/dp/B01L9SD3K0/ref=abc", HOME, "detail"),
        ("https://www.amazon.com/product-reviews/B01L9SD3K0", HOME, "detail"),
        ("https://www.amazon.com/gp/cart/view.html?ref_=nav_cart", HOME, "cart"),
        ("https://www.amazon.com/checkout/p/p-106/spc", HOME, "checkout"),
        ("https://www.amazon.com/", HOME, "browse"),
        ("", SEARCH, "search"),
        ("", DETAIL, "detail"),
        ("", CART, "cart"),
    ],
)
def test_page_kinds(url, html, kind):
    assert build_page(html, url, "").kind == kind


def test_names_come_once_in_document_order_and_on_one_line():
    html = (
        '<meta name="viewport"><div name="b"><p name="a.x&amp;y">t</p><br name="c"/>'
        '</div><div name="b"></div><div name=" d\n e ">'
    )
    assert read_markup(html).names == ("b", "a.x&y", "c", "d e")
