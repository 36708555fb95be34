"""Against a server of our own on this machine that answers as the hub does."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from alignuser_jax.model.files.hub import local_directory
from tests.http_answers import BodyAnswers

COMMIT = "c0ffee" + "0" * 34
WANTED = {
    "config.json": b'{"model_type": "qwen3"}',
    "generation_config.json": b'{"eos_token_id": [1, 2]}',
    "tokenizer.json": b"{}" * 500,
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "tokenizer.model": b"pieces",
    "merges.txt": b"a b",
    "vocab.json": b'{"a": 0}',
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "model-1.safetensors": b"1" * 200_000,
    "model-2.safetensors": b"2" * 100_000,
}
UNWANTED = {
    "README.md": b"# tiny",
    "pytorch_model.bin": b"b" * 1000,
    "original/consolidated.00.pth": b"p" * 1000,
    "original/params.json": b"{}",
    "consolidated.safetensors": b"c" * 1000,
}


class Hub(ThreadingHTTPServer):
    """`owner/tiny` at one commit. `got` counts what was sent, `status` answers everything with
    an error, `cut` names a file that breaks off midway and is then refused."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.files = WANTED | UNWANTED
        self.got, self.status, self.cut = Counter(), None, None
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Answers(BodyAnswers):
    server: Hub

    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if hub.status:
            return self.answer(hub.status)
        if path == "/api/models/owner/tiny/revision/main":
            siblings = [{"rfilename": name} for name in hub.files]
            info = {"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}
            return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
        if path == f"/api/models/owner/tiny/tree/{COMMIT}":
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                for name, data in hub.files.items()
            ]
            return self.answer(
                200, json.dumps(listing).encode(), Content_Type="application/json"
            )
        name = re.sub(f"^/owner/tiny/resolve/(main|{COMMIT})/", "", path)
        if name not in hub.files:
            return self.answer(404, X_Error_Code="RepoNotFound")
        data = hub.files[name]
        if self.command == "GET":
            hub.got[name] += 1
            if name == hub.cut:
                return self.break_off(data)
            time.sleep(0.02)  # long enough to be asked twice
        self.answer(200, data, ETag=f'"{etag(data)}"', X_Repo_Commit=COMMIT)

    def break_off(self, data):
        if self.server.got[self.server.cut] > 1:
            return self.answer(500)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.close_connection = True


def etag(data):
    return hashlib.sha1(data).hexdigest()


def contents(directory):
    files = [path for path in Path(directory).rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()  # a new client, which sees the environment
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def test_a_directory_is_itself_and_opens_no_socket(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.chdir(tmp_path)
    Path("owner/tiny").mkdir(parents=True)
    assert local_directory("owner/tiny") == Path("owner/tiny")
    assert local_directory(tmp_path) == tmp_path


@pytest.mark.parametrize(
    "source",
    ["tiny", "/no/such/model", "./owner/tiny", "owner/tiny/", "a/b/c", "a/..", "a/b c"],
)
def test_what_is_neither_a_directory_nor_an_id(source, hub):
    with pytest.raises(FileNotFoundError, match="no directory .* owner/name"):
        local_directory(source)
    assert not hub.got


def test_a_file_is_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    Path("owner/tiny").touch()
    with pytest.raises(FileNotFoundError, match="no directory owner/tiny"):
        local_directory("owner/tiny")


def test_only_what_is_read_is_downloaded_and_then_no_network_is_needed(hub):
    directory = local_directory("owner/tiny")
    assert contents(directory) == WANTED
    assert hub.got == dict.fromkeys(WANTED, 1)
    hub.status = 500
    assert local_directory("owner/tiny") == directory
    assert local_directory("owner/tiny", COMMIT) == directory


def test_two_processes_download_once(hub, tmp_path):
    ask = (
        "from alignuser_jax.model.files.hub import local_directory; "
        "print(local_directory('owner/tiny'))"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    root = Path(__file__).parents[3]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ask],
            cwd=root,
            env=environment | {"HF_HUB_CACHE": str(tmp_path / "home" / "hub")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    assert (tmp_path / "home") in Path(answers[0]).parents
    assert contents(answers[0]) == WANTED
    assert hub.got == dict.fromkeys(WANTED, 1)


def test_an_interrupted_download_is_not_taken_for_whole(hub):
    hub.cut = "model-2.safetensors"
    with pytest.raises(ConnectionError, match="cannot download owner/tiny"):
        local_directory("owner/tiny")
    assert hub.got["model-2.safetensors"] == 2  # half of it, then nothing
    cached = Path(constants.HF_HUB_CACHE)
    assert not list(cached.rglob("snapshots/*/model-2.safetensors"))
    hub.status = 500
    with pytest.raises(ConnectionError, match="cannot download owner/tiny"):
        local_directory("owner/tiny")
    hub.cut = hub.status = None
    assert contents(local_directory("owner/tiny")) == WANTED
    assert not list(cached.rglob("*.incomplete"))


def test_what_another_program_left_is_completed(hub):
    huggingface_hub.hf_hub_download("owner/tiny", "config.json")
    huggingface_hub.hf_hub_download("owner/tiny", "model.safetensors.index.json")
    hub.status = 500
    with pytest.raises(OSError, match="model-1.safetensors|cannot download"):
        local_directory("owner/tiny")
    hub.status = None
    assert contents(local_directory("owner/tiny")) == WANTED


def test_a_model_without_safetensors(hub):
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"b"}
    with pytest.raises(FileNotFoundError, match="lacks model.safetensors"):
        local_directory("owner/tiny")


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, PermissionError, "401, it is private or gated.*HF_TOKEN"),
        (403, PermissionError, "403, it is private or gated.*HF_TOKEN"),
        (500, ConnectionError, "500.*HF_HUB_OFFLINE"),
    ],
)
def test_refusals(hub, status, error, words):
    hub.status = status
    with pytest.raises(error, match=f"cannot download owner/tiny .revision main.*{words}"):
        local_directory("owner/tiny")


def test_no_such_model(hub):
    with pytest.raises(FileNotFoundError, match="404, there is no such model or revision"):
        local_directory("owner/other")
    with pytest.raises(FileNotFoundError, match="revision v9.*404"):
        local_directory("owner/tiny", "v9")


def test_a_dead_server(hub, monkeypatch):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ConnectionError, match="give a local directory.*HF_HUB_OFFLINE"):
        local_directory("owner/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="cannot download owner/tiny"):
        local_directory("owner/tiny")
