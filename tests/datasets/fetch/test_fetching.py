"""Downloads from a server that breaks off, lies, ignores ranges and swaps the file."""

import hashlib
import json

import numpy as np
import pytest

from alignuser_jax.datasets.fetch import fetching
from alignuser_jax.datasets.fetch.fetching import OVERLAP_BYTES, DownloadFailed, fetch
from tests.datasets.fetch.file_server import (
    FileServer,
    breaks_off,
    fails,
    hangs_up,
    head,
    ignores_ranges,
    replaced_by,
    states,
)

DATA = np.random.default_rng(0).bytes(400_000)
OTHER = np.random.default_rng(1).bytes(400_000)
MD5 = hashlib.md5(DATA).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = FileServer(DATA)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def waits():
    return []


def got(server, tmp_path, waits, **options):
    found = fetch(server.url, tmp_path / "file", quiet=True, sleep=waits.append, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
    assert found.bytes == len(server.data)
    assert found.sha256 == hashlib.sha256(server.data).hexdigest()
    assert found.path.read_bytes() == server.data
    return found


def test_a_good_server(server, tmp_path, waits):
    assert got(server, tmp_path, waits).checked == "size"
    assert server.asked == [(None, None)] and waits == []
    assert got(server, tmp_path, waits, md5=MD5).checked == "md5"
    assert len(server.asked) == 1  # it is there: nothing is asked


def test_it_goes_on_where_it_broke_off(server, tmp_path, waits):
    server.script = [breaks_off(100_000), breaks_off(150_000), fails(503), hangs_up]
    assert got(server, tmp_path, waits, md5=MD5).checked == "md5"
    start = 100_000 - OVERLAP_BYTES
    second = start + 150_000 - OVERLAP_BYTES
    assert server.asked[:3] == [
        (None, None),
        (f"bytes={start}-", '"one"'),
        (f"bytes={second}-", '"one"'),
    ]
    assert waits == [1, 1, 2, 4]  # progress resets the wait


def test_another_call_goes_on_where_the_last_broke_off(server, tmp_path, waits):
    server.script = [breaks_off(300_000), *[hangs_up] * fetching.ATTEMPTS]
    message = "300,000 bytes are kept: run the same command again"
    with pytest.raises(DownloadFailed, match=message):
        got(server, tmp_path, waits)
    assert (tmp_path / "file.part").stat().st_size == 300_000
    assert not (tmp_path / "file").exists()
    state = json.loads((tmp_path / "file.part.json").read_text())
    assert state["etag"] == '"one"' and state["total"] == len(DATA)
    server.asked.clear()
    got(server, tmp_path, waits, md5=MD5)
    assert server.asked == [(f"bytes={300_000 - OVERLAP_BYTES}-", '"one"')]


def test_a_server_without_ranges_begins_again(server, tmp_path, waits):
    server.script = [breaks_off(100_000), ignores_ranges]
    got(server, tmp_path, waits, md5=MD5)


def test_a_new_file_at_resume_is_noticed_by_if_range(server, tmp_path, waits):
    server.script = [breaks_off(100_000), replaced_by(OTHER, '"two"', "later", honest=True)]
    got(server, tmp_path, waits)
    assert len(server.asked) == 2  # a 200 with all of it


@pytest.mark.parametrize(
    "etag, modified, data",
    [
        ('"two"', "", OTHER),
        ("", "Tue, 02 Jan 2024 00:00:00 GMT", OTHER),
        ("", "", OTHER),  # only the bytes tell
        ("", "", DATA[:200_000] + b"more" + OTHER),  # only the length tells
        ("", "", OTHER[:150_000]),
    ],
)
def test_a_new_file_at_resume_from_a_server_that_does_not_look(
    server, tmp_path, waits, etag, modified, data
):
    server.script = [breaks_off(200_000), replaced_by(data, etag, modified)]
    assert got(server, tmp_path, waits).path.read_bytes() == data


def test_a_shorter_file_at_resume(server, tmp_path, waits):
    def shrinks(handler, start):
        handler.server.data = OTHER[:1000]
        head(handler, 416, 0, Content_Range="bytes */1000")

    server.script = [breaks_off(300_000), shrinks]
    got(server, tmp_path, waits)


def test_a_file_that_is_another_each_time(server, tmp_path, waits):
    for n in range(9):
        server.script += [breaks_off(100_000), replaced_by(DATA[n + 1 :], f'"{n}"')]
    with pytest.raises(DownloadFailed, match="sends another file each time"):
        got(server, tmp_path, waits)
    assert not list(tmp_path.iterdir())


def test_a_length_that_is_too_long(server, tmp_path, waits):
    server.script = [states(len(DATA) + 10)] * 50
    with pytest.raises(DownloadFailed, match="breaks off"):
        got(server, tmp_path, waits)
    assert not (tmp_path / "file").exists()
    # the honest server after it: its length is another, so it begins again
    server.script = []
    got(server, tmp_path, waits, md5=MD5)


def test_a_length_that_is_too_short_is_found_by_the_checksum(server, tmp_path, waits):
    server.script = [states(1000)]
    with pytest.raises(ValueError, match=rf"1,000 bytes.*publisher says {MD5}: it was removed"):
        got(server, tmp_path, waits, md5=MD5)
    assert not (tmp_path / "file").exists() and not (tmp_path / "file.part").exists()
    got(server, tmp_path, waits, md5=MD5)


def test_no_length_at_all(server, tmp_path, waits):
    def unsized(handler, start):
        head(handler, 200)
        handler.wfile.write(DATA)
        handler.close_connection = True

    server.script = [unsized]
    assert got(server, tmp_path, waits).checked == "nothing"


def test_a_part_of_another_url_is_not_gone_on_with(server, tmp_path, waits):
    server.script = [breaks_off(300_000), *[hangs_up] * fetching.ATTEMPTS]
    with pytest.raises(DownloadFailed):
        got(server, tmp_path, waits)
    other = FileServer(OTHER, etag="")
    found = fetch(other.url, tmp_path / "file", quiet=True, sleep=waits.append)
    assert found.path.read_bytes() == OTHER and other.asked == [(None, None)]


def test_a_part_without_its_notes_begins_again(server, tmp_path, waits):
    (tmp_path / "file.part").write_bytes(OTHER[:1000])
    (tmp_path / "file.part.json").write_text("{torn")
    got(server, tmp_path, waits, md5=MD5)
    assert server.asked == [(None, None)]


def test_a_whole_part_needs_no_server(server, tmp_path, waits):
    server.script = [breaks_off(300_000), *[hangs_up] * fetching.ATTEMPTS]
    with pytest.raises(DownloadFailed):
        got(server, tmp_path, waits)
    (tmp_path / "file.part").write_bytes(DATA)
    server.asked.clear()
    got(server, tmp_path, waits, md5=MD5)
    assert server.asked == []


def test_what_a_server_refuses(server, tmp_path, waits):
    for status, kind, message in (
        (404, FileNotFoundError, "404, there is no such file"),
        (403, PermissionError, "403, the server refuses it"),
        (400, DownloadFailed, "answers 400"),
    ):
        server.script = [fails(status)]
        with pytest.raises(kind, match=message):
            fetch(server.url, tmp_path / "file", quiet=True, sleep=waits.append)
    assert waits == []  # asking again is no use
    server.script = [fails(429, Retry_After="7"), fails(500)]
    got(server, tmp_path, waits)
    assert waits == [7, 4]


def test_nobody_there(tmp_path, waits, server):
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadFailed, match="cannot be reached.*refused.*run the same"):
        fetch(url, tmp_path / "file", quiet=True, sleep=waits.append)
    assert waits == [2, 4, 8, 16]
    with pytest.raises(ValueError, match="expected an http:// or https:// URL"):
        fetch("file:///etc/passwd", tmp_path / "file")
