"""A web server on this machine that has files to give away and misbehaves where it is told to."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass(frozen=True)
class Mischief:
    """What goes wrong with one request."""

    status: int | None = None  # answer with this error
    drop_after: int | None = None  # send so many bytes of the body, then close
    ignore_range: bool = False
    stall_s: float = 0.0  # wait so long before the body


@dataclass
class FileServer:
    """Files by path, with what goes wrong with the next requests of each; ``log`` has (method, path, Range)."""

    files: dict[str, bytes]
    url: str = ""
    mischief: deque[Mischief] = field(default_factory=deque)
    log: list[tuple[str, str, str | None]] = field(default_factory=list)

    def asked(self, path: str) -> int:
        """How often the content of a file was asked for."""
        return sum(method == "GET" and wanted == path for method, wanted, _ in self.log)

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request that asked for content."""
        return [asked for method, _, asked in self.log if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    server: ThreadingHTTPServer
    files: FileServer

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        asked = self.headers.get("Range")
        self.files.log.append((self.command, self.path, asked))
        trick = self.files.mischief.popleft() if body and self.files.mischief else Mischief()
        content = self.files.files.get(self.path.partition("?")[0])
        if trick.status is not None or content is None:
            self.send_response(trick.status or 404)
            self.send_header("X-Error-Code", "EntryNotFound")  # how the Hub says which thing it does not have
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        begin = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if trick.ignore_range or self.headers.get("If-Range", etag) != etag:
            asked, begin = None, 0
        if begin >= len(content) and asked:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("ETag", etag)
        self.send_header("X-Repo-Commit", "0" * 40)  # what the Hub says of a file besides
        self.end_headers()
        if body:
            self.wfile.flush()
            time.sleep(trick.stall_s)
            end = len(content) if trick.drop_after is None else begin + trick.drop_after
            self.wfile.write(content[begin:end])
        if trick.drop_after is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[FileServer]:
    """Serve ``files`` (``"/name"`` -> content) on a free port of this machine."""
    served = FileServer(dict(files))
    handler = type("Handler", (_Handler,), {"files": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving_hub(files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A Hub that the client uses meanwhile, with ``files`` (``"owner/data set/revision/name"`` -> content)."""
    from huggingface_hub import constants

    paths = {}
    for name, content in files.items():
        owner, repository, revision, file = name.split("/", 3)
        paths[f"/datasets/{owner}/{repository}/resolve/{revision}/{file}"] = content
    with serving(paths) as server, monkeypatch.context() as patched:
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patched.setattr(constants, "ENDPOINT", server.url)
        patched.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patched.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server
