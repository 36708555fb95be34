"""Serve a recommender over HTTP in the JSON of `protocol`, with the standard library alone.

It is for tests, and for a recommender in another environment or on another machine than the
agents.
"""

from __future__ import annotations

import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from absl import logging

from alignuser_jax.recommenders.base import label_of, version_of
from alignuser_jax.recommenders.http.protocol import (
    PROTOCOL,
    MalformedMessage,
    decode_requests,
    encode_slates,
)
from alignuser_jax.records import Recommender

LONGEST_BODY_BYTES = 64 << 20
"""A longer request is refused."""


class RecommenderServer(ThreadingHTTPServer):
    """A server that answers for a recommender at any path.

    One batch at a time reaches the recommender, which need not be thread-safe.

    Example:
        >>> with RecommenderServer(Random(dataset.item_ids), port=8090) as server:
        ...     server.serve_forever()  # doctest: +SKIP

    Args:
        recommender: what to serve.
        host: where to listen; "0.0.0.0" for other machines too.
        port: 0 takes a free one; `url` says which.
        key: if given, calls must carry it as a bearer token.

    Attributes:
        url: where it answers.
        lock: held while the recommender is asked.
    """

    daemon_threads = True

    def __init__(
        self, recommender: Recommender, host: str = "127.0.0.1", port: int = 0, key: str = ""
    ):
        self.recommender, self.key = recommender, key
        self.lock = threading.Lock()
        super().__init__((host, port), _Handler)
        self.url = f"http://{host}:{self.server_address[1]}/"

    @property
    def version(self) -> str:
        """The recommender's version."""
        return version_of(self.recommender)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a connection that broke; the server goes on."""
        logging.info("a connection of %s broke", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: RecommenderServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave in one packet
    disable_nagle_algorithm = True
    timeout = 60  # of an idle connection

    def do_GET(self) -> None:
        if self._allowed():
            recommender = self.server.recommender
            about = {
                "protocol": PROTOCOL,
                "name": label_of(recommender),
                "version": self.server.version,
                "stateful": bool(getattr(recommender, "stateful", False)),
            }
            self._send(200, json.dumps(about).encode())

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LONGEST_BODY_BYTES:
            self.close_connection = True  # the body is not read
            self._error(413 if length.isdigit() else 411, f"a body of {length or 'no'} bytes")
            return
        body = self.rfile.read(int(length))
        if not self._allowed():
            return
        try:
            requests = decode_requests(body)
        except MalformedMessage as error:
            self._error(400, str(error))
            return
        try:
            with self.server.lock:
                slates = self.server.recommender.recommend(requests)
            data = encode_slates(requests, slates, self.server.version)
        except (
            Exception
        ) as error:  # the recommender's own: the caller is told, and the server goes on
            logging.exception("recommend failed")
            self._error(500, f"recommend raised {type(error).__name__}: {error}")
            return
        self._send(200, data)

    def _allowed(self) -> bool:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(key.encode(), self.server.key.encode()) or not self.server.key:
            return True
        self._error(401, "this server wants its key as Authorization: Bearer KEY")
        return False

    def _error(self, status: int, why: str) -> None:
        self._send(status, json.dumps({"error": why}).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        logging.info("%s " + format, self.address_string(), *arguments)
