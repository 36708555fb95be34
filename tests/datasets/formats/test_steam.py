"""Steam in its three forms, in the original's exact layout, and the real Australian reviews."""
# ruff: noqa: E501 (lines of data are as long as they are)

import gzip

import numpy as np
import pytest

from alignuser_jax.datasets import check_leaks
from alignuser_jax.datasets.formats import steam
from alignuser_jax.datasets.reading.delimited import InputError
from alignuser_jax.datasets.report import DirtyInput
from tests.datasets.formats.logs import rows

KANG_MCAULEY = [  # Python 2 literals, as the dump has them
    "{u'username': u'Chaos Syren', u'hours': 0.1, u'products': 41, u'product_id': u'10', "
    "u'page_order': 0, u'date': u'2017-12-17', u'text': u'This would not be \"acceptable\"', "
    "u'early_access': False, u'page': 1}",
    "{u'username': u\"\\u20ae\\u0127's\", u'hours': 51.1, u'products': 27, u'product_id': u'20', "
    "u'page_order': 1, u'date': u'2017-12-27', u'text': u'caf\\xe9', u'early_access': False, "
    "u'page': 1, u'user_id': u'76561198049216482', u'compensation': u'Product received for free'}",
    "{u'username': u'Chaos Syren', u'hours': 14.6, u'products': 41, u'product_id': u'20', "
    "u'page_order': 2, u'date': u'2017-12-16', u'text': u'', u'early_access': True, "
    "u'page': 1, u'found_funny': 2}",
    "{u'username': u'Kell', u'products': 9, u'product_id': u'20', u'page_order': 3, "
    "u'date': u'2017-12-16', u'text': u'no hours', u'early_access': True, u'page': 1}",
]
GAMES = [
    "{u'publisher': u'Kotoshiro', u'genres': [u'Action', u'Free to Play'], u'app_name': u'Lost "
    "Summoner Kitty', u'title': u'Lost Summoner Kitty', u'release_date': u'2018-01-04', u'tags': "
    "[u'Strategy'], u'price': 4.99, u'early_access': False, u'id': u'10', u'developer': u'K'}",
    "{u'app_name': u'Log Challenge', u'price': 2.99, u'id': u'20'}",
    "{u'app_name': u'Duplicate', u'id': u'20'}",
    "{u'app_name': u'No id', u'price': u'Free To Play'}",
]
AUSTRALIAN = (
    "{'user_id': 'js41637', 'user_url': 'http://steamcommunity.com/id/js41637', 'reviews': ["
    "{'funny': '', 'posted': 'Posted June 24, 2014.', 'last_edited': '', 'item_id': '10', "
    "'helpful': '15 of 20 people', 'recommend': True, 'review': 'I\\'ll say'}, "
    "{'funny': '', 'posted': 'Posted February 3.', 'last_edited': '', 'item_id': '20', "
    "'helpful': 'No ratings yet', 'recommend': False, 'review': ''}]}"
)
CSV = (
    "user_id,item_id,recommend,review,funny,posted,last_edited,helpful,posted_date\n"
    '76561197970982479,10,True,"Simple, ""zombie""\nfun",,"Posted November 5, 2011.",,x,'
    "2011-11-05\n"
    "js41637,20,False,a stray\rreturn,,Posted February 3.,,x,\n"
)


def write(path, lines, gzipped=False):
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if gzipped else data)
    return path


@pytest.mark.parametrize("gzipped", [False, True])
def test_kang_and_mcauleys_dump(tmp_path, gzipped):
    end = ".gz" if gzipped else ""
    write(tmp_path / f"steam_reviews.json{end}", KANG_MCAULEY, gzipped)
    write(tmp_path / f"steam_games.json{end}", GAMES, gzipped)
    dataset = steam.read(tmp_path)
    chaos, other = dataset.user_ids
    assert rows(dataset) == [  # hours 0.1, 14.6 and 51.1: quintiles of what is known
        (chaos, "20", 3.0, 1_513_382_400),
        (chaos, "10", 1.0, 1_513_468_800),
        (other, "20", 5.0, 1_514_332_800),
    ]
    assert all(len(user) == 16 and "Chaos" not in user for user in dataset.user_ids)
    kitty, log = dataset.items["10"], dataset.items["20"]
    assert kitty.title == "Lost Summoner Kitty" and kitty.genres == ("Action", "Free to Play")
    assert kitty.description == "By K. Released 2018-01-04. Strategy."
    assert (log.title, log.genres, log.description) == ("Log Challenge", (), "")
    reviews, games = f"steam_reviews.json{end}", f"steam_games.json{end}"
    assert dataset.report.lines == {
        "bad rating": [f"{reviews}:4"],
        "empty id": [f"{games}:4"],
        "duplicate id": [f"{games}:3"],
    }
    source = dataset.manifest["source"]
    assert source["rating"] == "playtime" and source["user_ids"] == "hashes of the user names"
    assert source["playtime_edges_hours"] == pytest.approx([5.9, 11.7, 21.9, 36.5], abs=0.01)


def test_quintiles_against_their_definition(tmp_path):
    rng = np.random.default_rng(0)
    hours = rng.exponential(20, 500).round(1)
    lines = [
        f"{{'username': 'u{n}', 'hours': {h}, 'product_id': '10', 'date': '2017-12-17'}}"
        for n, h in enumerate(hours)
    ]
    dataset = steam.read(write(tmp_path / "steam_reviews.json", lines))
    stars = dataset.log.rating.astype(int)
    expected = [1 + sum(h > np.percentile(hours, q) for q in (20, 40, 60, 80)) for h in hours]
    assert sorted(stars) == sorted(expected)
    assert all(95 <= count <= 105 for count in np.bincount(stars)[1:])


def test_the_australian_dump_and_its_missing_years(tmp_path):
    path = write(tmp_path / "australian_user_reviews.json", [AUSTRALIAN])
    dataset = steam.read(path)
    assert rows(dataset) == [("js41637", "10", 5.0, 1_403_568_000)]
    assert dataset.report.counts == {steam.NO_YEAR: 1} and dataset.report.read == 2
    with pytest.raises(DirtyInput, match="name the year of the crawl"):
        steam.read(path, strict=True)
    dataset = steam.read(path, crawl_year=2016, strict=True)
    assert rows(dataset)[1] == ("js41637", "20", 1.0, 1_454_457_600)  # 2016-02-03


def test_the_csv_form(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text(CSV, newline="")
    dataset = steam.read(path, crawl_year=2016, strict=True)
    assert rows(dataset) == [
        ("76561197970982479", "10", 5.0, 1_320_451_200),
        ("js41637", "20", 1.0, 1_454_457_600),
    ]
    assert dataset.items["10"].title == "10"  # no games file: titled by the ids


def test_what_the_ratings_are_made_from_must_be_there(tmp_path):
    path = write(tmp_path / "steam_reviews.json", KANG_MCAULEY)
    with pytest.raises(InputError, match="by recommend from; it has what rating=playtime"):
        steam.read(path, rating="recommend")
    other = write(tmp_path / "a.json", [AUSTRALIAN])
    with pytest.raises(InputError, match="by playtime from; it has what rating=recommend"):
        steam.read(other, rating="playtime")
    with pytest.raises(ValueError, match="expected auto, recommend or playtime"):
        steam.read(path, rating="stars")


def test_what_is_no_steam_log(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no Steam reviews file in .*steam_reviews.json"
    ):
        steam.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        steam.read(tmp_path / "missing")
    path = write(tmp_path / "steam_reviews.json", ["{'a': 1}"])
    with pytest.raises(
        InputError, match=r"lacks the fields \['product_id', 'date', 'username'\]"
    ):
        steam.read(path)
    path = write(tmp_path / "steam_reviews.json", ["__import__('os').getcwd()", "{'a': open}"])
    with pytest.raises(InputError, match="none of its 2 lines is a record"):
        steam.read(path)  # read, not run
    path = write(tmp_path / "reviews.csv", ["user_id,item_id", "a,b"])
    with pytest.raises(InputError, match=r"lacks the columns \['date'\]"):
        steam.read(path)


def test_the_real_australian_reviews(shared_data):
    if not (shared_data / "steam" / "australian_user_reviews.csv.gz").is_file():
        pytest.skip("no Steam reviews in ../shared/data/steam")
    dataset = steam.read(shared_data / "steam")
    report = dataset.report
    assert report.read == 59_305 and report.counts[steam.NO_YEAR] == 10_119
    assert (
        report.counts["duplicate rating"] == 627 and report.counts["unknown item id"] == 4_447
    )
    assert len(dataset.log) == 59_305 - sum(
        report.counts[p] for p in (steam.NO_YEAR, "unknown item id", "duplicate rating")
    )
    assert np.bincount(dataset.log.rating.astype(int)).tolist() == [0, 4_125, 0, 0, 0, 39_987]
    assert len(dataset.item_ids) == 32_132 and check_leaks(dataset) == []
    assert dataset.items["761140"].title == "Lost Summoner Kitty"
