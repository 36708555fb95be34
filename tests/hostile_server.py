"""An OpenAI-compatible HTTP server whose answers a test chooses, good or bad."""

import json
import re
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(*texts, prompt=10, generated=3, cached=0, finish="stop"):
    """Return a 200 answer with these texts as its choices."""
    choices = [
        {"index": n, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        for n, text in enumerate(texts)
    ]
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return 200, {}, whole | {"choices": choices, "usage": usage}


def failure(status, message="no", headers=None, **more):
    """Return an answer with an error status."""
    return status, headers or {}, {"error": {"message": message, **more}}


class HostileServer:
    """A server that answers chat completion `number` with `reply(body, number)`.

    A reply is (status, headers, JSON value or bytes). The client's first calls ("Say hello.")
    are answered by `hello(body)` and not counted. `bodies`, `keys` and `times` hold what came
    with each call, `most` is the largest number of calls at the same time.
    """

    def __init__(self, reply=None, hello=None, models=("m", "other-model"), models_status=200):
        self.reply = reply or (lambda body, number: completion("RATING: 2"))
        self.hello = hello or (lambda body: completion("hello"))
        self.models, self.models_status = models, models_status
        self.bodies, self.keys, self.times = [], [], []
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.connections = []
        self.start()

    def start(self, port=0):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                outer.connections.append(self.connection)

            def log_message(self, *arguments):
                pass

            def send(self, status, headers, value):
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in ({"Content-Type": "application/json"} | headers).items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                if outer.models_status != 200:
                    self.send(*failure(outer.models_status, "models say no"))
                    return
                data = [{"id": m, "object": "model"} for m in outer.models]
                self.send(200, {}, {"object": "list", "data": data})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if body["messages"][-1]["content"] == "Say hello.":
                    self.send(*outer.hello(body))
                    return
                with outer.lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    outer.times.append(time.monotonic())
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                try:
                    self.send(*outer.reply(body, number))
                finally:
                    with outer.lock:
                        outer.now -= 1

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.serving = True

    def stop(self):
        """End as if killed: connections end, and new ones are refused."""
        if self.serving:
            self.serving = False
            self.server.shutdown()
            self.server.server_close()
            for connection in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def obedient(body, number=0):
    """Return an answer that obeys vLLM's `structured_outputs`, drawn by the seed."""
    constraint = body.get("structured_outputs")
    if constraint is None:
        return completion("Hello!")
    if "choice" in constraint:
        lines = [constraint["choice"]]
    else:
        plain = re.sub(r"\\([^n])", r"\1", constraint["regex"])
        lines = [line[1:-1].split("|") for line in plain.split(r"\n")]
    return completion("\n".join(line[body["seed"] % len(line)] for line in lines))


def items_asked_about(body):
    """The titles in the questions of a reflection, the last one its own; empty for others."""
    said = "\n".join(message["content"] for message in body["messages"])
    return re.findall(r"^Item: (.+?)(?: \(.*\))?$", said, re.M)


def obedient_writer(body, number=0):
    """A reflection that passes the filter, or a constrained answer."""
    titles = items_asked_about(body)
    if not titles:
        return obedient(body)
    text = (
        f"WHY: I feel so about {titles[-1]}: what I love is there, and much is dull.\n"
        "LESSON: I know my taste.\n"
    )
    if body["messages"][-1]["role"] == "assistant":  # it is gone on with
        text = text.removeprefix(body["messages"][-1]["content"])
    return completion(*[text] * body.get("n", 1))
