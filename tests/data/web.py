"""A web server on this machine that stands for the Hub, for Zenodo, and for those that hold scenes."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class FileServer:
    """Files by path; so many more requests for one as in ``broken`` break off half way; ``asked`` are all of them.

    With ``ranges``, parts of files are sent to those who ask for parts. ``seen`` are all requests, answered or not, and
    ``sent`` bytes of files went out.
    """

    files: dict[str, bytes]
    ranges: bool = False
    url: str = ""
    broken: Counter[str] = field(default_factory=Counter)
    asked: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    sent: int = 0

    @property
    def host(self) -> str:
        """Address and port."""
        return self.url.removeprefix("http://")


class _Handler(BaseHTTPRequestHandler):
    files: FileServer

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        content = whole = self.files.files.get(path)
        self.files.seen.append(path)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.files.ranges and body else None
        if content is not None and part is not None:
            first, last = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(404 if content is None else 200)
        self.send_header("X-Error-Code", "EntryNotFound")  # how the Hub says which thing it does not have
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("ETag", f'"{hashlib.md5(whole or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)  # what the Hub says of a file besides
        self.end_headers()
        if body and content is not None:
            self.files.asked.append(path)
            broken = self.files.broken[path] > 0
            self.files.broken[path] -= 1
            self.files.sent += len(content)
            self.wfile.write(content[: len(content) // 2] if broken else content)
            self.close_connection = broken

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving(files: Mapping[str, bytes], *, ranges: bool = False) -> Iterator[FileServer]:
    """Serve ``files`` (``"/name"`` -> content) on a free port of this machine."""
    served = FileServer(dict(files), ranges)
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


@contextmanager
def serving_zenodo(
    files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch, md5: str | None = None
) -> Iterator[FileServer]:
    """A Zenodo that pooch uses meanwhile; every record has ``files`` and states their checksums, or this one."""
    from pooch import downloaders

    with serving({f"/files/{name}": content for name, content in files.items()}) as server, monkeypatch.context() as m:
        entries = [
            {
                "key": name,
                "checksum": f"md5:{md5 or hashlib.md5(content).hexdigest()}",
                "links": {"self": f"{server.url}/files/{name}"},
            }
            for name, content in files.items()
        ]
        server.files["/7"] = json.dumps({"files": entries}).encode()
        m.setattr(downloaders, "doi_to_url", lambda doi, **_: "https://zenodo.org/records/7")
        m.setattr(downloaders.ZenodoRepository, "base_api_url", server.url)
        m.setattr("time.sleep", lambda seconds: None)  # between tries
        yield server
