"""List where the data sets of the paper are published, and on what terms.

The project passes no data on: the files come from their publishers, or from a mirror.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class WebFile:
    """A file on a web server.

    Attributes:
        url: Where it is.
        unpacked_bytes: Most bytes that it may hold when unpacked; more is refused.
        md5: The publisher's checksum, "" if none is published.
    """

    url: str
    unpacked_bytes: int
    md5: str = ""

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Published:
    """One data set: its files and its terms.

    Attributes:
        format: The format of `alignuser import-logs`, "" if it does not read these files.
        title: What it is, on one line.
        terms: Its terms in our words; the publisher's own at `terms_url` are binding.
        terms_url: Where the terms are published.
        cite: What to cite.
        files: Its files on web servers, if it is not on the hub.
        repositories: Its repositories on the Hugging Face hub.
        left_out: Patterns of names of files on the hub that are not fetched.
    """

    format: str
    title: str
    terms: str
    terms_url: str
    cite: str
    files: tuple[WebFile, ...] = ()
    repositories: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


_GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
_MOVIELENS_CITE = (
    "F. M. Harper, J. A. Konstan: The MovieLens Datasets: History and Context. ACM TiiS 5(4), "
    "2015. doi:10.1145/2827872"
)
_MOVIELENS_TERMS = (
    "Research use; acknowledge it in publications; state or imply no endorsement by the "
    "University of Minnesota; no redistribution without separate permission; no commercial or "
    "revenue-bearing use without permission of the GroupLens project."
)
_UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data/"
_UCSD_TERMS = (
    "No licence file is published; the page offers the data for research and asks to cite. The "
    "reviews and product texts belong to their authors and to the shop: do not pass them on."
)


def _movielens(layout: str, title: str, md5: str, cite: str, terms: str) -> Published:
    return Published(
        "movielens",
        title,
        terms,
        f"{_GROUPLENS}{layout}-README.{'html' if 'latest' in layout else 'txt'}",
        cite,
        (WebFile(f"{_GROUPLENS}{layout}.zip", 64 << 20, md5),),
    )


def _amazon(year: int, reviews: str, metadata: str, page: str, cite: str) -> Published:
    return Published(
        "amazon",
        f"Amazon reviews of books, {year}: all reviews and the books' metadata",
        _UCSD_TERMS,
        page,
        cite,
        (WebFile(reviews, 60 * GIB), WebFile(metadata, 40 * GIB)),
    )


PUBLISHED = {
    "movielens-100k": _movielens(
        "ml-100k",
        "MovieLens 100K: 100,000 ratings by 943 users of 1,682 films",
        "0e33842e24a9c977be4e0107933c0723",
        _MOVIELENS_CITE,
        _MOVIELENS_TERMS,
    ),
    "movielens-1m": _movielens(
        "ml-1m",
        "MovieLens 1M: 1,000,209 ratings by 6,040 users of 3,706 films",
        "c4d9eecfca2ab87c1945afe126590906",
        _MOVIELENS_CITE,
        _MOVIELENS_TERMS,
    ),
    "movielens-latest-small": _movielens(
        "ml-latest-small",
        "MovieLens latest, small: about 100,000 ratings by 600 users; it changes over time",
        "",
        _MOVIELENS_CITE,
        "Research use; acknowledge it in publications; state or imply no endorsement by the "
        "University of Minnesota; redistribution under these same conditions only; no "
        "commercial or revenue-bearing use without permission of the GroupLens project.",
    ),
    "steam": Published(
        "steam",
        "Steam: 7.8 million reviews by 2.6 million users, and the games' metadata",
        _UCSD_TERMS,
        "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
        "W.-C. Kang, J. McAuley: Self-attentive sequential recommendation. ICDM 2018",
        (
            WebFile("https://cseweb.ucsd.edu/~wckang/steam_reviews.json.gz", 16 * GIB),
            WebFile("https://cseweb.ucsd.edu/~wckang/steam_games.json.gz", GIB),
        ),
    ),
    "amazon-books-2014": _amazon(
        2014,
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
        "reviews_Books.json.gz",
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/meta_Books.json.gz",
        "https://jmcauley.ucsd.edu/data/amazon/links.html",
        "J. McAuley, C. Targett, Q. Shi, A. van den Hengel: Image-based recommendations on "
        "styles and substitutes. SIGIR 2015",
    ),
    "amazon-books-2018": _amazon(
        2018,
        f"{_UCSD}amazon_v2/categoryFiles/Books.json.gz",
        f"{_UCSD}amazon_v2/metaFiles2/meta_Books.json.gz",
        "https://nijianmo.github.io/amazon/index.html",
        "J. Ni, J. Li, J. McAuley: Justifying recommendations using distantly-labeled reviews "
        "and fine-grained aspects. EMNLP 2019",
    ),
    "amazon-books-2023": _amazon(
        2023,
        f"{_UCSD}amazon_2023/raw/review_categories/Books.jsonl.gz",
        f"{_UCSD}amazon_2023/raw/meta_categories/meta_Books.jsonl.gz",
        "https://amazon-reviews-2023.github.io/",
        "Y. Hou, J. Li, Z. He, A. Yan, X. Chen, J. McAuley: Bridging language and items for "
        "retrieval and recommendation. arXiv 2403.03952, 2024",
    ),
    "opera": Published(
        "opera",
        "OPeRA: shopping sessions with rationales and personas; without the screenshots",
        "CC BY 4.0: share and change it with attribution.",
        "https://huggingface.co/datasets/NEU-HAI/OPeRA",
        "Z. Wang et al.: OPeRA. arXiv 2506.05606, 2025",
        repositories=("NEU-HAI/OPeRA",),
        left_out=("*image*",),
    ),
    "usermirrorer": Published(
        "",  # scenes as chats; import-logs reads the JSON lines that its own scripts make
        "UserMirrorer: training and evaluation scenes of user simulation, as chats",
        "CC BY-SA 4.0 by its card: share and change it with attribution, under the same terms. "
        "The logs behind it keep their own; MIND and MovieLens are not in it for that reason.",
        "https://huggingface.co/datasets/MirrorUser/UserMirrorer",
        "T. Wei et al.: Mirroring Users. arXiv 2508.18142, 2025",
        repositories=("MirrorUser/UserMirrorer", "MirrorUser/UserMirrorer-eval"),
    ),
}
"""Name of a data set, as `alignuser download` takes it -> the data set."""
