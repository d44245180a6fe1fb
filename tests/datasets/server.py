"""A real HTTP server on this machine, with the faults that downloads meet."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """A file and how it is served: a fault for each request in turn, none once they are used up.

    Faults: drop (the connection ends after `drop_after` bytes), wrong (zeros for bytes), shifted (another
    range than asked for), endless (the content again and again), or the number of an HTTP error.
    """

    content: bytes
    faults: list[str] = field(default_factory=list)
    drop_after: int = 0
    ranges: bool = True
    weak: bool = False
    length: bool = True
    asked: list[str] = field(default_factory=list)  # the Range header of every request

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()}"'


@contextmanager
def serve(files: dict[str, Served]) -> Iterator[str]:
    """The address under which `files` are served, by path."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            _answer(self, files.get(self.path.lstrip("/")))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(request: BaseHTTPRequestHandler, file: Served | None) -> None:
    request.close_connection = True
    if file is None:
        request.send_error(404)
        return
    asked = request.headers.get("Range", "")
    file.asked.append(asked)
    fault = file.faults.pop(0) if file.faults else ""
    if fault.isdigit():
        request.send_error(int(fault))
        return
    start, total = 0, len(file.content)
    if asked and file.ranges and request.headers.get("If-Range", file.tag) == file.tag:
        start = int(asked.removeprefix("bytes=").rstrip("-")) + (7 if fault == "shifted" else 0)
        if start >= total:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{total}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
    else:
        request.send_response(200)
    request.send_header("ETag", f"W/{file.tag}" if file.weak else file.tag)
    if file.length and fault != "endless":
        request.send_header("Content-Length", str(total - start))
    request.end_headers()
    if fault == "endless":
        with suppress(ConnectionError):
            while request.wfile.write(file.content):
                time.sleep(0.01)
        return
    body = bytes(total - start) if fault == "wrong" else file.content[start:]
    request.wfile.write(body[: file.drop_after] if fault == "drop" else body)
