"""`alignuser download` as a person runs it, against servers of the tests' own."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

from alignuser_jax.datasets.fetch.archives import HostileArchive
from alignuser_jax.datasets.fetch.download import RECORD, download
from alignuser_jax.datasets.fetch.published import PUBLISHED
from alignuser_jax.datasets.formats import movielens
from tests.datasets.fetch.file_server import FileServer, breaks_off
from tests.datasets.formats.movielens_files import write_latest
from tests.http_answers import BodyAnswers

ROOT = Path(__file__).parents[3]


def run(*arguments, cwd):
    program = "from alignuser_jax.runs.flags import run; from data_prep import download; "
    done = subprocess.run(
        [sys.executable, "-c", f"{program}run(download.main, arguments=True)", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = FileServer()
    yield server
    server.shutdown()
    server.server_close()


def zipped(folder, top="ml-latest-small/"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for path in sorted(folder.iterdir()):
            file.write(path, top + path.name)
    return out.getvalue()


def test_from_the_terms_to_the_import(tmp_path, server):
    """What a new user does, one step after the other."""
    code, text, error = run(cwd=tmp_path)
    assert code == 0 and all(name in text for name in PUBLISHED), error

    code, text, error = run("movielens-latest-small", cwd=tmp_path)
    assert code == 2 and "Traceback" not in error
    assert "no commercial or revenue-bearing use" in " ".join(text.split())
    assert "files.grouplens.org/datasets/movielens/ml-latest-small.zip" in text
    assert error.startswith("error: nothing was downloaded: read the terms")
    assert list(tmp_path.iterdir()) == []

    write_latest(tmp_path / "made")
    server.data = zipped(tmp_path / "made")
    server.script = [breaks_off(200)]
    given = ("movielens-latest-small", "--accept_licence", f"--url={server.url}/m.zip")
    code, text, error = run(*given, cwd=tmp_path)
    assert code == 0, error
    assert "its length only (no checksum is published)" in text
    folder = tmp_path / "downloads" / "movielens-latest-small"
    command = text.strip().splitlines()[-1]
    assert command == (
        "alignuser import-logs --format=movielens "
        "--input=downloads/movielens-latest-small/ml-latest-small --output=DATA"
    )
    assert len(movielens.read(folder / "ml-latest-small").log) == 3
    assert sorted(p.name for p in folder.iterdir()) == [
        ".download",
        "ml-latest-small",
        "ml-latest-small.zip",
    ]
    record = json.loads((folder / RECORD).read_text())
    assert record["terms_accepted"] == PUBLISHED["movielens-latest-small"].terms
    assert record["files"]["ml-latest-small.zip"] == {
        "bytes": len(server.data),
        "sha256": hashlib.sha256(server.data).hexdigest(),
        "checked": "size",
        "url": f"{server.url}/m.zip",
        "contents": "ml-latest-small",
    }
    asked = len(server.asked)
    code, again, error = run(*given, cwd=tmp_path)
    assert code == 0 and again == text and len(server.asked) == asked, error


def test_refusals(tmp_path, server):
    server.data = b"<html>The data set has moved</html>"
    given = ("movielens-100k", "--accept_licence", "--output=out", f"--url={server.url}/m.zip")
    code, _, error = run(*given, cwd=tmp_path)
    assert code == 2 and error.startswith("error: ") and "publisher says 0e33842e" in error
    for name, urls, message in (
        ("movielens-latest-small", [server.url], "is no zip file"),
        ("movielens-latest-small", [server.url] * 2, "2 urls are given, expected 1: ml-latest"),
        ("steam", ["ftp://x/a", "ftp://x/b"], "expected an http:// or https:// URL"),
        ("opera", [server.url], "give --hub_endpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            download(name, PUBLISHED[name], tmp_path / "out", urls=urls, quiet=True)
    assert not (tmp_path / "out" / "ml-latest-small").exists()


def test_a_hostile_archive_is_kept_apart(tmp_path, server):
    with zipfile.ZipFile(out := io.BytesIO(), "w") as file:
        file.writestr("ml/ratings.csv", "1,2,3,4")
        file.writestr("../../evil", "evil")
    server.data = out.getvalue()
    published = PUBLISHED["movielens-latest-small"]
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with pytest.raises(HostileArchive, match="does not stay inside"):
            download("x", published, folder, urls=[server.url], quiet=True)
    assert len(server.asked) == 2  # it is not taken for a good one later
    assert sorted(os.listdir(folder)) == [".download", "ml-latest-small.zip.refused"]
    assert not list(tmp_path.rglob("evil"))


def test_gzipped_files_stay_or_are_unpacked(tmp_path, server):
    published = PUBLISHED["steam"]
    reviews, games = b"{'a': 1}\n" * 999, b"{'b': 2}\n"
    server.files = {"/r": gzip.compress(reviews), "/g": gzip.compress(games)}
    urls = [f"{server.url}/r", f"{server.url}/g"]
    record = download("steam", published, tmp_path / "a", urls=urls, quiet=True)
    names = ["steam_reviews.json.gz", "steam_games.json.gz"]
    assert [about["contents"] for about in record["files"].values()] == names
    assert gzip.decompress((tmp_path / "a" / names[0]).read_bytes()) == reviews
    # what is there is unpacked without asking again, and then takes the archive's place
    asked = len(server.asked)
    for _ in range(2):
        record = download(
            "steam", published, tmp_path / "a", urls=urls, gunzip=True, quiet=True
        )
        contents = ["steam_reviews.json", "steam_games.json"]
        assert [about["contents"] for about in record["files"].values()] == contents
        assert (tmp_path / "a" / "steam_games.json").read_bytes() == games
        assert sorted(os.listdir(tmp_path / "a")) == [".download", *sorted(contents)]
    assert len(server.asked) == asked
    # a file that was changed meanwhile is not taken for the one recorded
    (tmp_path / "a" / "steam_games.json").write_bytes(b"cut")
    download("steam", published, tmp_path / "a", urls=urls, gunzip=True, quiet=True)
    assert (tmp_path / "a" / "steam_games.json").read_bytes() == games
    assert len(server.asked) == asked + 1
    download("steam", published, tmp_path / "b", urls=urls, quiet=True)
    (tmp_path / "b" / names[1]).write_bytes(b"cut")
    with pytest.raises(HostileArchive, match="not a complete gzip file"):
        download("steam", published, tmp_path / "b", urls=urls, quiet=True)
    # a bomb: more than the published file may hold
    small = dataclasses.replace(published.files[0], unpacked_bytes=100)
    bomb = dataclasses.replace(published, files=(small,))
    with pytest.raises(HostileArchive, match="more than the 100 bytes"):
        download("steam", bomb, tmp_path / "c", urls=urls[:1], quiet=True)


def test_two_downloads_into_one_folder(tmp_path):
    (tmp_path / ".download").mkdir()
    with (
        FileLock(tmp_path / ".download" / "lock"),
        pytest.raises(RuntimeError, match="another download into .* is running"),
    ):
        download("steam", PUBLISHED["steam"], tmp_path, urls=["http://x/a", "http://x/b"])


def test_the_catalogue():
    assert len(PUBLISHED) == 9
    for name, published in PUBLISHED.items():
        assert bool(published.files) != bool(published.repositories), name
        assert published.terms and published.cite and published.terms_url.startswith("https://")
        for file in published.files:
            assert file.url.startswith("https://") and file.name.endswith((".zip", ".gz"))
    with_md5 = [name for name, p in PUBLISHED.items() if p.files and p.files[0].md5]
    assert with_md5 == ["movielens-100k", "movielens-1m"]


# --- the hub ---

COMMIT = "c0ffee" + "0" * 34
FILES = {
    "README.md": b"# OPeRA",
    "OPeRA_filtered/user/train/train.parquet": b"users" * 100,
    "OPeRA_filtered/action/train/train.parquet": b"actions" * 5000,
    "OPeRA_filtered/image/train/train.parquet": b"screenshots" * 9000,
}


class Hub(ThreadingHTTPServer):
    """NEU-HAI/OPeRA at one commit; `got` lists the files sent, `lie` changes what is sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubAnswers)
        self.got, self.lie, self.status = [], {}, None
        self.url = f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class HubAnswers(BodyAnswers):
    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if hub.status:
            return self.answer(hub.status)
        listing = [
            {
                "type": "file",
                "path": name,
                "rfilename": name,
                "size": len(data),
                "oid": hashlib.sha1(data).hexdigest(),
            }
            | (
                {"lfs": {"oid": (d := hashlib.sha256(data).hexdigest()), "sha256": d,
                         "size": len(data), "pointerSize": 130}}
                if name.endswith("parquet") else {}
            )
            for name, data in FILES.items()
        ]  # fmt: skip
        kind = "application/json"
        if path.startswith("/api/datasets/NEU-HAI/OPeRA/tree/"):
            return self.answer(200, json.dumps(listing).encode(), Content_Type=kind)
        if path.startswith("/api/datasets/NEU-HAI/OPeRA"):
            info = {"id": "NEU-HAI/OPeRA", "sha": COMMIT, "siblings": listing}
            return self.answer(200, json.dumps(info).encode(), Content_Type=kind)
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in FILES:
            return self.answer(404)
        data = hub.lie.get(name, FILES[name])
        etag = hashlib.sha256(FILES[name]).hexdigest()
        if self.command == "GET":
            hub.got.append(name)
        self.answer(200, data, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def test_from_the_hub(tmp_path, hub):
    published = PUBLISHED["opera"]
    record = download("opera", published, tmp_path / "opera", endpoint=hub.url)
    wanted = [name for name in FILES if "image" not in name]
    assert sorted(hub.got) == sorted(wanted) and sorted(record["files"]) == sorted(wanted)
    for name in wanted:
        assert (tmp_path / "opera" / name).read_bytes() == FILES[name]
    checked = {about["checked"] for n, about in record["files"].items() if "parquet" in n}
    assert checked == {"sha256"} and record["files"]["README.md"]["checked"] == "size"
    hub.got.clear()
    assert download("opera", published, tmp_path / "opera", endpoint=hub.url) == record
    assert hub.got == []


def test_a_hub_that_sends_another_file_or_none(tmp_path, hub):
    published, name = PUBLISHED["opera"], "OPeRA_filtered/user/train/train.parquet"
    hub.lie[name] = b"users" * 99 + b"USERS"
    with pytest.raises(
        ValueError, match="user/train/train.parquet .* is not what the hub says"
    ):
        download("opera", published, tmp_path, endpoint=hub.url)
    assert not (tmp_path / name).exists() and not (tmp_path / RECORD).exists()
    hub.lie.clear()
    hub.status = 401
    with pytest.raises(PermissionError, match="Accept its terms on .*and set HF_TOKEN"):
        download("opera", published, tmp_path, endpoint=hub.url)
