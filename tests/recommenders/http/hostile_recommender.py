"""An HTTP recommender of the tests' own that does what it is told, good or bad."""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from alignuser_jax.recommenders import HttpConfig
from alignuser_jax.records import Interaction, RecommendationRequest

PROTOCOL = "alignuser-recommend/1"
ITEMS = tuple(f"i{n:02d}" for n in range(40))
HISTORIES = {f"u{n}": (Interaction(ITEMS[n], 4.0, n),) for n in range(6)}
QUICK = HttpConfig(timeout_seconds=0.5, retries=2, backoff_seconds=0.01)


def request(user="u0", **more):
    more = {"history": (), "exclude": frozenset({"i00"}), "seed": 5, **more}
    return RecommendationRequest(user, **more)


class HostileRecommender:
    """`reply(body, number)` gives (status, headers, JSON value or bytes) for call `number`;
    without one it obeys. `bodies` are what its calls sent, `answered` the
    (user, page) of all requests in them."""

    def __init__(self, items, reply=None, about=None):
        self.items, self.reply = tuple(items), reply
        self.about = {"protocol": PROTOCOL, "name": "theirs", "version": "7", **(about or {})}
        self.bodies, self.answered, self.times = [], [], []
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    def good(self, body, **changes):
        slates = [
            {
                "user_id": r["user_id"],
                "item_ids": [i for i in self.items if i not in r["exclude"]][: r["k"]],
            }
            for r in body["requests"]
        ]
        return 200, {}, {"protocol": PROTOCOL, "version": "7", "slates": slates, **changes}

    def start(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def log_message(self, *arguments):
                pass

            def send(self, status, headers, value):
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.send(*outer.get(self.path))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.times.append(time.monotonic())
                    outer.answered += [(r["user_id"], r["page"]) for r in body["requests"]]
                if outer.reply is None:
                    self.send(*outer.good(body))
                    return
                answer = outer.reply(body, number)
                if answer is None:  # hang up
                    self.close_connection = True
                else:
                    self.send(*answer)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/rec"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def get(self, path):
        return 200, {}, self.about

    def stop(self):
        with suppress(OSError):
            self.server.shutdown()
            self.server.server_close()


class CornacLike(HostileRecommender):
    """Answers as `cornac.serving` does, errors included."""

    users = ("u0", "u1", "u2")
    gets = ()

    def get(self, path):
        self.gets = (*self.gets, path)
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        if "uid" not in query:
            return 400, {}, b"uid is required"
        k = int(query["k"])
        if query["uid"] not in self.users or not -1 <= k <= len(self.items):
            return 500, {}, b"<h1>Internal Server Error</h1>"
        ranked = list(self.items[int(query["uid"][1:]) :] + self.items[: int(query["uid"][1:])])
        query |= {"k": k, "remove_seen": query["remove_seen"] == "true"}
        return 200, {}, {"recommendations": ranked if k == -1 else ranked[:k], "query": query}
