"""A web server of the tests' own that serves one file well or badly, as it is told."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `data` at every path, with ranges. Each request may be told otherwise by
    `script`: a list of functions (handler, start) -> None, used up from the front; None serves
    well. `asked`: the Range and If-Range headers of each request."""

    daemon_threads = True

    def __init__(self, data=b"", etag='"one"'):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.etag, self.modified = data, etag, "Mon, 01 Jan 2024 00:00:00 GMT"
        self.script, self.asked = [], []
        self.files = {}  # path -> data, beside `data`
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range"), self.headers.get("If-Range")
        server.asked.append(asked)
        start = int(asked[0].removeprefix("bytes=").rstrip("-")) if asked[0] else 0
        step = server.script.pop(0) if server.script else None
        (step or serve)(self, start)


def head(handler, status, length=None, **headers):
    server = handler.server
    handler.send_response(status)
    if server.etag:
        handler.send_header("ETag", server.etag)
    if server.modified:
        handler.send_header("Last-Modified", server.modified)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()


def serve(handler, start, data=None, stated=None, send=None):
    """All from `start` as a good server; `stated` another length than it has, `send` only so
    many bytes before the connection ends."""
    server = handler.server
    data = server.files.get(handler.path, server.data) if data is None else data
    if start and handler.headers.get("If-Range") not in (None, server.etag, server.modified):
        start = 0
    total = len(data) if stated is None else stated
    if start or handler.headers.get("Range") == "bytes=0-":
        span = f"bytes {start}-{total - 1}/{total}"
        head(handler, 206, total - start, Content_Range=span)
    else:
        head(handler, 200, total)
    handler.wfile.write(data[start:] if send is None else data[start : start + send])
    if send is not None or stated is not None:
        handler.wfile.flush()
        handler.close_connection = True


def breaks_off(after):
    return lambda handler, start: serve(handler, start, send=after)


def states(length, data=None):
    """Says a length that is not so."""
    return lambda handler, start: serve(handler, start, data, stated=length)


def ignores_ranges(handler, start):
    head(handler, 200, len(handler.server.data))
    handler.wfile.write(handler.server.data)


def fails(status, **headers):
    return lambda handler, start: head(handler, status, 0, **headers)


def hangs_up(handler, start):
    handler.close_connection = True


def replaced_by(data, etag="", modified="", honest=False):
    """From now on another file, served without a look at If-Range unless `honest`."""

    def step(handler, start):
        server = handler.server
        server.data, server.etag, server.modified = data, etag, modified
        if honest:
            return serve(handler, start)
        span = f"bytes {start}-{len(data) - 1}/{len(data)}"
        head(handler, 206, len(data) - start, Content_Range=span)
        handler.wfile.write(data[start:])

    return step
