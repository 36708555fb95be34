"""Amazon's three releases, line for line in their own forms, quirks included."""
# ruff: noqa: E501 (lines of data are as long as they are)

import gzip
import json

import pytest

from alignuser_jax.datasets.formats import amazon
from alignuser_jax.datasets.reading.delimited import InputError
from alignuser_jax.datasets.report import DirtyInput
from tests.datasets.formats.logs import rows

REVIEWS_2014 = [
    '{"reviewerID": "A10000012B7CGYKOMPQ4L", "asin": "000100039X", "reviewerName": "Adam", '
    '"helpful": [0, 0], "reviewText": "Spiritually and \\"mentally\\" inspiring!", "overall": 5.0, '
    '"summary": "Wonderful!", "unixReviewTime": 1355616000, "reviewTime": "12 16, 2012"}',
    '{"reviewerID": "A2S166WSCFIFP5", "asin": "000100039X", "helpful": [0, 2], "reviewText": "", '
    '"overall": 2.0, "summary": "", "unixReviewTime": 1071100800, "reviewTime": "12 11, 2003"}',
    '{"reviewerID": "A2S166WSCFIFP5", "asin": "0001055178", "helpful": [0, 2], "reviewText": "", '
    '"overall": 4.0, "summary": "", "unixReviewTime": 1071100801, "reviewTime": "12 11, 2003"}',
    '{"reviewerID": "A2S166WSCFIFP5", "asin": "NOTINMETA0", "overall": 4.0, '
    '"unixReviewTime": 1071100802}',
]
META_2014 = [  # Python literals, but for the second, which is strict JSON
    "{'asin': '000100039X', 'salesRank': {'Books': 4481}, 'imUrl': 'http://x/y.jpg', "
    "'categories': [['Books'], ['Books', 'Religion & Spirituality', 'Poetry']], "
    "'title': 'The Prophet', 'description': 'In a distant, timeless place,<br /> a \"prophet\" "
    "walks &amp; talks.', 'price': 1.99}",
    '{"asin": "0001055178", "salesRank": {"Books": 1}, "categories": [["Books"]], "title": null}',
    "{'asin': '0001055178', 'categories': [['Books']], 'title': 'Again'}",
]
REVIEWS_2018 = [
    '{"overall": 4.0, "vote": "2", "verified": true, "reviewTime": "11 9, 2012", "reviewerID": '
    '"A2", "asin": "0001", "style": {"Format:": " Hardcover"}, "reviewerName": "B", '
    '"reviewText": "t", "summary": "s", "unixReviewTime": 1352419200}',
]
META_2018 = [
    '{"category": ["Books", "Children&#39;s Books", "Literature &amp; Fiction"], "tech1": "", '
    '"description": ["", "A <i>kind</i> book."], "title": "Leaf &amp; <b>Bough</b>", '
    '"also_buy": ["0002"], "brand": "Visit", "rank": "6,291 in Books (", "asin": "0001"}',
    '{"title": "<span id=\\"productTitle\\">var aPageStart = (new Date()).getTime();</span>", '
    '"category": [], "asin": "0003"}',
]
REVIEWS_2023 = [
    '{"rating": 1.0, "title": "Not a watercolor book!", "text": "It is definitely not.", '
    '"images": [], "asin": "B09BGPFTDB", "parent_asin": "B09BGPFTDB", "user_id": '
    '"AFKZENTNBQ7A7V7UXW5JJI6UGRYQ", "timestamp": 1642399598485, "helpful_vote": 0, '
    '"verified_purchase": true}',
    '{"rating": 5.0, "title": "x", "text": "", "images": [], "asin": "CHILD", "parent_asin": '
    '"0593235657", "user_id": "AFKZ", "timestamp": 1640629604904, "helpful_vote": 1, '
    '"verified_purchase": true}',
]
META_2023 = [
    '{"main_category": "Books", "title": "Chaucer", "subtitle": "Hardcover", "average_rating": '
    '4.5, "features": [], "description": [], "price": 8.23, "categories": ["Books", "Literature '
    '& Fiction", "History & Criticism"], "details": {}, "parent_asin": "0593235657"}',
    '{"main_category": null, "title": "", "description": ["One.", "Two."], "categories": [], '
    '"parent_asin": "B09BGPFTDB"}',
]


def write(path, lines):
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_2014(tmp_path):
    write(tmp_path / "reviews_Books_5.json.gz", REVIEWS_2014)
    write(tmp_path / "meta_Books.json.gz", META_2014)
    dataset = amazon.read(tmp_path)
    assert rows(dataset) == [
        ("A10000012B7CGYKOMPQ4L", "000100039X", 5.0, 1_355_616_000),
        ("A2S166WSCFIFP5", "000100039X", 2.0, 1_071_100_800),
        ("A2S166WSCFIFP5", "0001055178", 4.0, 1_071_100_801),
    ]
    prophet, untitled = dataset.items["000100039X"], dataset.items["0001055178"]
    assert prophet.title == "The Prophet"
    assert prophet.genres == ("Religion & Spirituality", "Poetry")
    assert prophet.description == ('In a distant, timeless place, a "prophet" walks & talks.')
    assert (untitled.title, untitled.genres) == ("0001055178", ("Books",))
    assert dataset.report.lines == {
        "unknown item id": ["reviews_Books_5.json.gz:4"],
        "duplicate id": ["meta_Books.json.gz:3"],
    }
    source = dataset.manifest["source"]
    assert source["release"] == "2014/2018" and source["untitled_items"] == 1
    assert "Adam" not in json.dumps(dataset.manifest)


def test_2018(tmp_path):
    reviews = write(tmp_path / "Books_5.json.gz", REVIEWS_2018)
    meta = write(tmp_path / "elsewhere.json", META_2018)
    dataset = amazon.read(reviews, metadata=meta)
    assert rows(dataset) == [("A2", "0001", 4.0, 1_352_419_200)]
    item = dataset.items["0001"]
    assert item.title == "Leaf & Bough" and item.description == "A kind book."
    assert item.genres == ("Children's Books", "Literature & Fiction")
    assert dataset.report.lines == {"title that is page code": ["elsewhere.json:2"]}
    with pytest.raises(DirtyInput, match="title that is page code: 1"):
        amazon.read(reviews, metadata=meta, strict=True)


def test_2023_has_milliseconds_and_parent_products(tmp_path):
    write(tmp_path / "Books.jsonl.gz", REVIEWS_2023)
    write(tmp_path / "meta_Books.jsonl.gz", META_2023)
    dataset = amazon.read(tmp_path, strict=True)
    assert rows(dataset) == [
        ("AFKZENTNBQ7A7V7UXW5JJI6UGRYQ", "B09BGPFTDB", 1.0, 1_642_399_598),
        ("AFKZ", "0593235657", 5.0, 1_640_629_604),
    ]
    assert dataset.items["0593235657"].genres == ("Literature & Fiction", "History & Criticism")
    book = dataset.items["B09BGPFTDB"]
    assert (book.title, book.description) == ("B09BGPFTDB", "One. Two.")
    assert dataset.manifest["source"]["release"] == "2023"


def test_without_metadata_items_are_called_by_their_ids(tmp_path):
    dataset = amazon.read(write(tmp_path / "reviews_Books.json", REVIEWS_2014))
    assert dataset.items["NOTINMETA0"].title == "NOTINMETA0" and len(dataset.log) == 4


def test_descriptions_are_cut(tmp_path):
    meta = [json.dumps({"asin": "000100039X", "title": "T", "description": "word " * 1000})]
    reviews = write(tmp_path / "reviews_Books.json", REVIEWS_2014)
    dataset = amazon.read(reviews, metadata=write(tmp_path / "meta.json", meta))
    assert len(dataset.items["000100039X"].description) == amazon.DESCRIPTION_CHARACTERS


def test_what_is_no_amazon_log(tmp_path):
    with pytest.raises(FileNotFoundError, match="no reviews in"):
        amazon.read(tmp_path)
    with pytest.raises(InputError, match="expected the fields of one release"):
        amazon.read(write(tmp_path / "a.json", ['{"user": 1}']))
    reviews = write(tmp_path / "reviews_Books.json", REVIEWS_2014)
    with pytest.raises(InputError, match="lacks an item id"):
        amazon.read(reviews, metadata=write(tmp_path / "m.json", ['{"title": "x"}']))
    write(tmp_path / "reviews_Toys.json", REVIEWS_2014)
    with pytest.raises(ValueError, match="several files .* reviews_Books.json, reviews_Toys"):
        amazon.read(tmp_path)


def test_json_after_a_literal_keeps_its_escapes(tmp_path):
    meta = ["{'asin': '000100039X', 'title': 'It\\'s'}",
            '{"asin": "0001055178", "title": "\\ud83d\\ude00 a\\/b"}']  # fmt: skip
    reviews = write(tmp_path / "reviews_Books.json", REVIEWS_2014)
    dataset = amazon.read(reviews, metadata=write(tmp_path / "meta.json", meta))
    assert dataset.items["0001055178"].title == "\U0001f600 a/b"
    assert dataset.items["000100039X"].title == "It's"
