"""A server on this machine that sends parts of files, as those that hold Cloud Optimized GeoTIFFs do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class RangeServer:
    """Files by path, what was asked for, and how many of their bytes were sent."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    asked: list[str] = field(default_factory=list)
    sent: int = 0

    @property
    def host(self) -> str:
        """Address and port."""
        return self.url.removeprefix("http://")


class _Handler(BaseHTTPRequestHandler):
    server_: RangeServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        content = self.server_.files.get(path)
        self.server_.asked.append(path)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        part = content or b""
        if content is not None and asked is not None and body:
            first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            part = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        else:
            self.send_response(404 if content is None else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        if body:
            self.server_.sent += len(part)
            self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving_ranges() -> Iterator[RangeServer]:
    """Serve on a free port of this machine."""
    served = RangeServer()
    handler = type("Handler", (_Handler,), {"server_": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
