"""Single values made plain."""

import pytest

from alignuser_jax.datasets.reading import values
from alignuser_jax.datasets.report import Report


@pytest.mark.parametrize(
    "value, text",
    [(" a ", "a"), (12, "12"), (12.0, "12"), (12.5, ""), (True, ""), (None, ""), (["a"], ""),
     ("\ud800", ""), (10**20, "100000000000000000000"), (float("inf"), ""), (float("nan"), "")],
)  # fmt: skip
def test_identifier(value, text):
    assert values.identifier(value) == text


@pytest.mark.parametrize(
    "value, text",
    [(4, "4"), (4.5, "4.5"), ("4,5", "4,5"), (True, ""), (None, ""), ([4], ""), (10**18, ""),
     (float("nan"), "nan"), (float("-inf"), "-inf")],
)  # fmt: skip
def test_number(value, text):
    assert values.number(value) == text


@pytest.mark.parametrize(
    "text, seconds",
    [("2017-12-17", "1513468800"), ("2025-04-14T21:52:57.792Z", "1744667577"),
     ("2000-12-31 22:12:40", "978300760"), ("2025-04-14T21:52:57+02:00", "1744660377"),
     ("yesterday", ""), ("", ""), (None, ""), ("0001-01-01T00:00:00+14:00", "-62135647200"),
     ("2017-13-40", "")],
)  # fmt: skip
def test_seconds(text, seconds):
    assert values.seconds(text) == seconds


@pytest.mark.parametrize(
    "text, plain",
    [
        ("\x1b[31mred\x1b[0m alert", "red alert"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x1b]never closed", "a"),
        ("tab\tnew\nline\r\x00", "tab new line"),
        ("\u202egnp.exe", "gnp.exe"),
        ("café \U0001f600", "café \U0001f600"),
    ],
)
def test_plain(text, plain):
    assert values.plain(text) == plain


@pytest.mark.parametrize(
    "markup, text",
    [
        ("In a place,<br /> a <i>man</i> &amp; a dog", "In a place, a man & a dog"),
        ("<script>alert(1)</script>Title", "Title"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("1 < 2 <3 I <heart> NY", "1 < 2 <3 I <heart> NY"),
        ("<style>p{}", ""),
        ("<!-- never closed", ""),
    ],
)
def test_without_html(markup, text):
    assert values.without_html(markup) == text


def test_what_is_repaired_is_counted_and_shown():
    report = Report()
    report.repair("control characters taken out of a title", 2)
    report.repair("control characters taken out of a title", 1)
    report.repair("nothing", 0)
    assert report.repaired == {"control characters taken out of a title": 3}
    assert str(report) == (
        "0 rows read, nothing dropped\n3 texts repaired:\n"
        "  control characters taken out of a title: 3"
    )
    assert Report.of(report.describe()).repaired == report.repaired
    assert "repaired" not in Report().describe()
