"""Three hundred ways and more to spoil a log: each takes a good file and a generator.

A mutation says whether it may turn a row into another valid one (`INVENTS`): then a test cannot
hold the rows against the originals.
"""

import gzip
import json
import re

import numpy as np
import pyarrow as pa

ESCAPES = "\x1b[31mred\x1b[0m \x1b]0;owned\x07 \x1b]8;;http://x\x1b\\link\x9b2J"
HTML = "<script>alert(1)</script><b>bold</b> &lt;img src=x onerror=alert(1)&gt;"
BIDI = "\u202egnp.exe\u2066\u200b\ufeff"


def lines_of(data):
    return data.split(b"\n")


def some(rng, items, count=2):
    return rng.choice(len(items), min(count, len(items)), replace=False)


def on_lines(change, count=2):
    """Apply `change(line, rng)` to some lines, the first (a header) left alone where there are
    several."""

    def mutate(data, rng):
        lines = lines_of(data)
        body = [n for n, line in enumerate(lines) if line.strip() and n] or [0]
        for n in some(rng, body, count):
            lines[body[n]] = change(lines[body[n]], rng)
        return b"\n".join(lines)

    return mutate


def number(text):
    """Replace one number of a line."""

    def change(line, rng):
        found = list(re.finditer(rb"(?<![\w.'\"-])\d+(?:\.\d+)?(?![\w.'\"-])", line))
        if not found:
            return line
        hit = found[rng.integers(len(found))]
        return line[: hit.start()] + text + line[hit.end() :]

    return on_lines(change)


def inside_words(text):
    """Put a text into the longest word of some lines."""
    raw = text.encode()

    def change(line, rng):
        found = max(
            re.finditer(rb"[A-Za-z]{3,}", line), key=lambda m: len(m.group()), default=None
        )
        if found is None:
            return line
        payload = raw
        if line.lstrip().startswith(b"{"):  # keep the record a record
            payload = json.dumps(text)[1:-1].encode()
            if b"'" in line:
                payload = text.encode("unicode_escape").replace(b"'", b"\\'")
        return line[: found.end()] + payload + line[found.end() :]

    return on_lines(change)


def swap(old, new):
    return lambda data, rng: data.replace(old, new)


def spliced(raw):
    def change(line, rng):
        place = rng.integers(len(line) + 1)
        return line[:place] + raw + line[place:]

    return on_lines(change)


TEXT = {
    "empty": lambda data, rng: b"",
    "blank": lambda data, rng: b" \n\t\n\n",
    "cut in half": lambda data, rng: data[: len(data) // 2],
    "last byte gone": lambda data, rng: data.rstrip()[:-1],
    "only the first line": lambda data, rng: lines_of(data)[0] + b"\n",
    "utf-16": lambda data, rng: data.decode("latin-1").encode("utf-16"),
    "utf-32": lambda data, rng: data.decode("latin-1").encode("utf-32"),
    "byte order mark": lambda data, rng: b"\xef\xbb\xbf" + data,
    "other encoding": spliced("é".encode("latin-1")),
    "broken utf-8": spliced(b"\xf0\x28\x8c\xbc"),
    "nul bytes": spliced(b"\x00\x00"),
    "random bytes": lambda data, rng: rng.bytes(400),
    "crlf": swap(b"\n", b"\r\n"),
    "old mac": swap(b"\n", b"\r"),
    "stray returns": spliced(b"\r"),
    "unicode line ends": spliced("\u2028\x85".encode()),
    "tabs for commas": swap(b",", b"\t"),
    "semicolons": lambda d, rng: (
        d.replace(b"::", b";").replace(b"\t", b";").replace(b",", b";")
    ),
    "no separators": lambda d, rng: re.sub(rb"[,:\t|]", b"", d),
    "more columns": on_lines(lambda line, rng: line + b"\t7,7::7|7"),
    "fewer columns": on_lines(lambda line, rng: line[: len(line) // 3]),
    "blank lines": lambda data, rng: data.replace(b"\n", b"\n\n"),
    "every line twice": lambda data, rng: b"\n".join(
        line for line in lines_of(data) for _ in range(2)
    ),
    "shuffled": lambda data, rng: b"\n".join(
        [
            lines_of(data)[0],
            *(lines_of(data)[1:][n] for n in rng.permutation(data.count(b"\n"))),
        ]
    ),
    "first line last": lambda data, rng: b"\n".join([*lines_of(data)[1:], lines_of(data)[0]]),
    "nan": number(b"NaN"),
    "infinite": number(b"-Infinity"),
    "inf": number(b"inf"),
    "1e400": number(b"1e400"),
    "thousand digits": number(b"9" * 1000),
    "ten thousand digits": number(b"9" * 10_000),
    "negative": number(b"-3"),
    "hexadecimal": number(b"0x4"),
    "year 9999": number(b"253402300799"),
    "year 292277026596": number(b"9223372036854775807"),
    "past int64": number(b"92233720368547758080"),
    "comma decimals": number(b"4,5"),
    "words for numbers": number(b"four"),
    "null": number(b"null"),
    "a list": number(b"[4]"),
    "an object": number(b'{"a": 4}'),
    "a truth": number(b"true"),
    "terminal escapes": inside_words(ESCAPES),
    "html": inside_words(HTML),
    "bidi": inside_words(BIDI),
    "emoji": inside_words("\U0001f600\u0301"),
    "page format": inside_words(" -> <- Price: 0 -> [CLICK_ITEM:1]"),
    "huge word": inside_words("w" * 300_000),
    "quotes": spliced(b'"'),
    "apostrophes": spliced(b"'"),
    "backslash": spliced(b"\\"),
    "half a surrogate": spliced(b"\\ud800"),
    "deep nesting": on_lines(lambda line, rng: b"[" * 20_000, 1),
    "deep objects": on_lines(lambda line, rng: b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 1),
    "many minus signs": on_lines(lambda line, rng: b"-" * 50_000 + b"1", 1),
    "an array": lambda data, rng: b"[" + data.strip().replace(b"\n", b",") + b"]",
    "an error page": lambda d, rng: b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    "a shell": on_lines(lambda line, rng: b"$(rm -rf /); __import__('os').abort()"),
    "a formula": inside_words('=HYPERLINK("http://x")'),
    "header twice": lambda data, rng: lines_of(data)[0] + b"\n" + data,
    "names in capitals": lambda d, rng: b"\n".join([lines_of(d)[0].upper(), *lines_of(d)[1:]]),
    "not gzip": lambda data, rng: data,
    "gzip cut off": lambda data, rng: gzip.compress(data)[:-9],
    "gzip with rubbish in it": lambda data, rng: gzip.compress(data)[:12] + b"\xff" * 40,
    "gzip of nothing": lambda data, rng: gzip.compress(b""),
    "gzip twice": lambda data, rng: gzip.compress(gzip.compress(data)),
}
GZIPPED = ("not gzip", *(name for name in TEXT if name.startswith("gzip ")))
INVENTS = {
    *("other encoding", "nul bytes", "unicode line ends", "stray returns", "fewer columns"),
    *("terminal escapes", "html", "bidi", "emoji", "page format", "huge word", "quotes"),
    *("apostrophes", "backslash", "half a surrogate", "a formula", "negative", "year 9999"),
    *("past int64", "nan", "inf", "infinite", "1e400", "hexadecimal", "a list", "a truth"),
    *("words for numbers", "null", "comma decimals", "thousand digits", "broken utf-8"),
    *(
        "ten thousand digits",
        "year 292277026596",
        "more columns",
        "an object",
        "last byte gone",
    ),
    *("cut in half", "names in capitals", "crlf"),
}
"""They make other valid ids or numbers somewhere: an id with a letter more is an id."""


def typed(kind):
    def mutate(table, rng):
        n = rng.integers(table.num_columns)
        name = table.column_names[n]
        values = {
            "null": pa.nulls(table.num_rows),
            "bool": pa.array([True] * table.num_rows),
            "list": pa.array([["a", None]] * table.num_rows),
            "struct": pa.array([{"a": 1}] * table.num_rows),
            "binary": pa.array([b"\xff\xfe\x00"] * table.num_rows, pa.binary()),
            "date": pa.array([0] * table.num_rows, pa.date32()),
            "duration": pa.array([5] * table.num_rows, pa.duration("s")),
            "nanoseconds": pa.array([2**62] * table.num_rows, pa.timestamp("ns", "UTC")),
            "far": pa.array([2**61] * table.num_rows, pa.timestamp("us")),
            "nan": pa.array([float("nan")] * table.num_rows),
            "big": pa.array([2**63] * table.num_rows, pa.uint64()),
            "half": pa.array(np.full(table.num_rows, np.inf, np.float16)),
            "map": pa.array([[("a", 1)]] * table.num_rows, pa.map_(pa.string(), pa.int64())),
            "dictionary": pa.array(["4"] * table.num_rows).dictionary_encode(),
            "large": pa.array(["4"] * table.num_rows, pa.large_string()),
            "escapes": pa.array([ESCAPES] * table.num_rows),
            "huge": pa.array(["w" * 300_000] * table.num_rows),
            "surrogates": pa.array([b"\xed\xa0\x80"] * table.num_rows, pa.binary()).view(
                pa.string()
            ),
        }[kind]
        return table.set_column(int(n), name, values)

    return mutate


TABLE = {
    **{
        f"{kind} column {n}": typed(kind)
        for kind in (
            *("null", "bool", "list", "struct", "binary", "date", "duration", "nanoseconds"),
            *("far", "nan", "big", "half", "map", "dictionary", "large", "escapes", "huge"),
            "surrogates",
        )
        for n in range(3)
    },
    "no rows": lambda table, rng: table.slice(0, 0),
    "no columns": lambda table, rng: table.select([]),
    "a column less": lambda table, rng: table.drop_columns(
        table.column_names[rng.integers(table.num_columns)]
    ),
    "every row twice": lambda table, rng: pa.concat_tables([table, table]),
    "other names": lambda table, rng: table.rename_columns(
        [f"{name}\x1b[2J" for name in table.column_names]
    ),
}
