"""Turn single values of foreign logs into plain text: ids, numbers, times, texts.

Text of a log ends up in prompts, pages and terminals, so control characters, terminal escapes
and HTML are taken out here.
"""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from alignuser_jax.datasets.report import Report

ID_BYTES = 512
"""The longest id, in UTF-8."""
TEXT_CHARACTERS = {"title": 1_000, "description": 20_000, "genre": 200}
"""Kind of text -> its longest length; longer texts are cut, and counted."""
_CONTROL = r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ufeff]"
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # titles, links and other strings
    r"|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
_CONTROLS = re.compile(_CONTROL)
_ARROW_CONTROL = re.sub(r"\\u([0-9a-f]{4})", r"\\x{\1}", _CONTROL)
_TAG = re.compile(
    r"<!--.*?(?:-->|$)|<(script|style)\b.*?(?:</\1\s*>|$)|</?(?:a|abbr|b|big|blockquote|br|center"
    r"|div|em|font|h[1-6]|hr|i|img|input|li|ol|p|pre|s|small|span|strong|sub|sup|table|tbody|td"
    r"|th|thead|tr|tt|u|ul)\b[^<>]*>",
    re.DOTALL | re.IGNORECASE,
)


def identifier(value: object) -> str:
    """Return an id as text: strings trimmed, whole numbers written out; or else ""."""
    if isinstance(value, str):
        return value.strip() if _encodable(value) else ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def number(value: object) -> str:
    """Return a number as text, for `build_dataset` to check; "" for other types."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return ""
    if isinstance(value, int) and abs(value) >= 10**18:
        return ""
    text = str(value)
    return text if _encodable(text) else ""


def text_of(value: object) -> str:
    """Return a value as one plain line: lists are joined, "" stands for no text."""
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(text_of, value)))
    if value is None or isinstance(value, dict | bool):
        return ""
    return plain(str(value).encode("utf-8", "replace").decode())


def plain(text: str) -> str:
    """Return `text` on one line, without terminal escapes and invisible control characters."""
    return " ".join(_CONTROLS.sub(" ", _ESCAPES.sub("", text)).split())


def without_html(text: str) -> str:
    """Return the text of a piece of HTML on one line: tags dropped, entities decoded."""
    text = _TAG.sub(" ", text)
    return plain(_TAG.sub(" ", html.unescape(text)) if "&" in text else text)


def milliseconds(text: object) -> int | None:
    """Return the milliseconds since 1970 of an ISO date, or of a date and time.

    A time without a zone is UTC. Returns `None` for anything else.
    """
    if not isinstance(text, str):
        return None
    try:
        when = datetime.fromisoformat(text.strip())
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return round(when.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def seconds(text: object) -> str:
    """Return the Unix seconds of an ISO date or date and time as text, or ""."""
    when = milliseconds(text)
    return "" if when is None else str(when // 1000)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def unusable_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which ids hold control characters or more than `ID_BYTES` bytes.

    No prompt, page or terminal could show them.
    """
    return pc.or_(
        pc.match_substring_regex(column, _ARROW_CONTROL),
        pc.greater(pc.binary_length(column), ID_BYTES),
    )


def plain_columns(table: pa.Table, names: tuple[str, ...], report: Report) -> pa.Table:
    """Return `table` with the texts of these columns made plain.

    Each text is on one line, without control characters and no longer than `TEXT_CHARACTERS`
    says; `report` counts the texts that had to change.
    """
    for name in names:
        column = pc.fill_null(table[name].cast(pa.string()), "")
        limit = TEXT_CHARACTERS.get(name, TEXT_CHARACTERS["title"])
        odd = pc.match_substring_regex(column, _ARROW_CONTROL)
        long = pc.greater(pc.utf8_length(column), limit)
        report.repair(f"control characters taken out of a {name}", pc.sum(odd).as_py() or 0)
        report.repair(f"{name} cut to {limit} characters", pc.sum(long).as_py() or 0)
        if pc.any(pc.or_(odd, long)).as_py():
            texts = [
                plain(text)[:limit] if bad else text
                for text, bad in zip(
                    column.to_pylist(), pc.or_(odd, long).to_pylist(), strict=True
                )
            ]
            column = pa.chunked_array([pa.array(texts, pa.string())])
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def plain_genres(items: pa.Table, report: Report) -> pa.Table:
    """Return `items` with genres made plain as `plain_columns` does, without empty ones."""
    limit = TEXT_CHARACTERS["genre"]
    column = pc.fill_null(items["genres"].cast(pa.list_(pa.string())), [])
    flat = pc.list_flatten(column)
    odd = pc.fill_null(pc.match_substring_regex(flat, _ARROW_CONTROL), False)
    long = pc.fill_null(pc.greater(pc.utf8_length(flat), limit), False)
    report.repair("control characters taken out of a genre", pc.sum(odd).as_py() or 0)
    report.repair(f"genre cut to {limit} characters", pc.sum(long).as_py() or 0)
    if flat.null_count or pc.any(pc.or_(odd, long)).as_py():
        rows = [
            [text for genre in row if genre and (text := plain(genre)[:limit])]
            for row in column.to_pylist()
        ]
        column = pa.chunked_array([pa.array(rows, pa.list_(pa.string()))])
    return items.set_column(items.column_names.index("genres"), "genres", column)
