"""Download a published data set: it shows the terms first, resumes, and checks the files.

    alignuser download                                   # a list of the data sets
    alignuser download movielens-1m                      # its terms
    alignuser download movielens-1m --accept_licence --output=downloads/movielens-1m

Archives are unpacked; `alignuser import-logs` is the next step. This project passes no data on:
the files come from their publishers, or from your own mirror (--url).
"""

import sys
import textwrap
from pathlib import Path

from absl import app, flags
from tabulate import tabulate

from alignuser_jax.datasets.fetch.published import PUBLISHED, Published
from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_string("output", None, "Folder to write to (default: downloads/DATASET).")
flags.DEFINE_bool("accept_licence", False, "You have read the terms and accept them.")
flags.DEFINE_list("url", [], "Your mirror's URL of each file, in the order of the list.")
flags.DEFINE_string("hub_endpoint", None, "Another Hugging Face hub, as HF_ENDPOINT.")
flags.DEFINE_bool("gunzip", False, "Unpack .gz files (import-logs reads them as they are).")


def catalogue() -> str:
    rows = [
        (name, what.title, "hub" if what.repositories else "web", what.terms_url)
        for name, what in PUBLISHED.items()
    ]
    return tabulate(rows, ("data set", "what", "from", "terms"), "simple")


def terms(name: str, published: Published) -> str:
    sources = [f.url for f in published.files] or [f"hub: {r}" for r in published.repositories]
    body = textwrap.fill(published.terms, 92, initial_indent="  ", subsequent_indent="  ")
    return (
        f"{published.title}\n\nFiles:\n"
        + "".join(f"  {source}\n" for source in sources)
        + f"\nTerms, in our words (what binds is {published.terms_url}):\n{body}\n\n"
        f"Cite: {published.cite}\n"
    )


def main(names: list[str]) -> None:
    if not names:
        print(catalogue())
        return
    if len(names) > 1 or names[0] not in PUBLISHED:
        raise app.UsageError(
            f"no data set {' '.join(names)!r}: expected one of {', '.join(PUBLISHED)}"
        )
    name, published = names[0], PUBLISHED[names[0]]
    print(terms(name, published))
    if not FLAGS.accept_licence:
        print(
            "error: nothing was downloaded: read the terms, then run it again with "
            "--accept_licence",
            file=sys.stderr,
        )
        sys.exit(2)
    from alignuser_jax.datasets.fetch.download import RECORD, download

    folder = Path(FLAGS.output or f"downloads/{name}")
    record = download(
        name,
        published,
        folder,
        urls=FLAGS.url,
        endpoint=FLAGS.hub_endpoint,
        gunzip=FLAGS.gunzip,
    )
    checks = {
        "md5": "the publisher's MD5",
        "sha256": "the hub's SHA-256",
        "size": "its length only (no checksum is published)",
        "nothing": "nothing but the archive's own checksums",
    }
    rows = [
        (file, f"{about['bytes']:,}", checks[about["checked"]])
        for file, about in record["files"].items()
    ]
    print(tabulate(rows, ("file", "bytes", "checked against"), "simple", disable_numparse=True))
    top = {about["contents"] for about in record["files"].values()}
    only = folder / top.pop() if len(top) == 1 else folder
    source = only if only.is_dir() else folder
    print(f"\n{folder / RECORD} says what was fetched.")
    if published.format:
        command = f"alignuser import-logs --format={published.format} --input={source}"
        print(f"Next:\n\n{command} --output=DATA")
    else:
        print("alignuser import-logs does not read these files: they are chats, not logs.")


if __name__ == "__main__":
    run_program(main, arguments=True)
