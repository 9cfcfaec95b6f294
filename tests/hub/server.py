"""A Hub on this machine: the part of its HTTP protocol that the client needs for model repositories, held in memory.

Users, access rights, private repositories, branches, commits, large files, downloads with ranges; and what goes wrong:
`break_file` makes a download fail in the ways that networks and servers do.
Source: the requests that huggingface_hub 1.31 to 2.4 sends (hf_api.py, lfs.py, file_download.py).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.store import LARGE, File, Repository, metadata, metadata_problems

ID = r"(?P<id>[\w.-]+/[\w.-]+)"
TOKENS = {"hf_alice": "alice", "hf_bob": "bob", "hf_reader": "alice"}
READ_ONLY = ("hf_reader",)


class Refused(Exception):
    """An answer that is an error: status, the Hub's error code, a message."""

    def __init__(self, status: int, code: str = "", message: str = "", body: Any = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


class Hub(ThreadingHTTPServer):
    """The server and what it holds. `requests` lists "METHOD path" of all it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.broken: dict[str, str] = {}
        self.down = False
        self.requests: list[str] = []

    def create(self, name: str, private: bool = False) -> Repository:
        repository = self.repositories[name] = Repository(private)
        repository.commit("main", {".gitattributes": File(b"*.safetensors lfs\n", large=False)}, "initial commit")
        return repository

    def put(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files as some other client would have; returns the commit."""
        repository = self.repositories.get(name) or self.create(name)
        made = {path: File(data, path.endswith(LARGE)) for path, data in files.items()}
        return repository.commit(branch, {**repository.commits[repository.branches["main"]], **made}, "put")

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        files = repository.commits[repository.resolve(revision) or ""]
        return {path: file.data for path, file in files.items() if path != ".gitattributes"}

    def break_file(self, path: str, how: str) -> None:
        """`drop` the connection after half of it, `short`: half of it as if that were all, `swap` bytes of it."""
        self.broken[path] = how


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        """Find the method for this path and send what it returns, or its refusal."""
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self.chunks()
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.server.requests.append(f"{self.command} {url.path}")
        try:
            if self.server.down:
                raise Refused(503, message="the Hub is down")
            for command, pattern, method in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in command:
                    parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                    answer = method(self, **parts)
                    if answer is not None:
                        self.send_json(200, answer)
                    return
            raise Refused(404, message=f"no such page: {self.command} {url.path}")
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            body = refusal.body or {"error": refusal.message}
            self.send_json(refusal.status, body, {name: value for name, value in headers.items() if value})

    def chunks(self) -> bytes:
        parts = []
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        return b"".join(parts)

    def send_json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_bytes(status, data, {"Content-Type": "application/json", **(headers or {})})

    def send_bytes(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def repository(self, name: str, write: bool = False) -> Repository:
        """The repository, if this user may read (and write) it; the Hub tells nobody else that it exists."""
        repository, owner, user = self.server.repositories.get(name), name.partition("/")[0], self.user
        if repository is None or (repository.private and user != owner):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and (user != owner or self.headers["Authorization"].removeprefix("Bearer ") in READ_ONLY):
            raise Refused(403, message="you do not have the rights to write here")
        return repository

    def commit_of(self, name: str, revision: str) -> tuple[str, dict[str, File]]:
        repository = self.repository(name)
        sha = repository.resolve(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repository.commits[sha]

    def whoami(self) -> dict[str, Any]:
        if self.user is None:
            raise Refused(401, message="Invalid username or password.")
        return {"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def create_repository(self) -> dict[str, Any]:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.user
        name = f"{owner}/{asked['name']}"
        if self.user is None:
            raise Refused(401, message="Invalid username or password.")
        if owner != self.user or self.headers["Authorization"].endswith(READ_ONLY):
            raise Refused(403, message=f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if name in self.server.repositories:
            raise Refused(
                409, body={"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
            )
        self.server.create(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": f"{self.server.url}/{name}", "name": name}

    def validate_yaml(self) -> dict[str, Any]:
        content = json.loads(self.body)["content"]
        problems = metadata_problems(content)
        if problems:
            raise Refused(400, body={"errors": [{"message": problem} for problem in problems], "warnings": []})
        return {"errors": [], "warnings": []}

    def info(self, id: str, revision: str = "main") -> dict[str, Any]:
        sha, files = self.commit_of(id, revision)
        blobs = bool(self.query.get("blobs"))
        siblings = [
            {"rfilename": path, **(file.described("sha256", "blobId") if blobs else {})} for path, file in files.items()
        ]
        card = metadata(files["README.md"].data.decode()) if "README.md" in files else None
        repository = self.repository(id)
        told = {"id": id, "modelId": id, "sha": sha, "private": repository.private, "siblings": siblings}
        return {**told, "cardData": card, "tags": [], "downloads": 0, "likes": 0, "gated": False}

    def tree(self, id: str, revision: str, folder: str = "") -> list[dict[str, Any]]:
        _, files = self.commit_of(id, revision)
        return [
            {"type": "file", "path": path, **file.described("oid", "oid")}
            for path, file in files.items()
            if path.startswith(folder)
        ]

    def refs(self, id: str) -> dict[str, Any]:
        branches = self.repository(id).branches.items()
        told = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        return {"branches": told, "converts": [], "tags": []}

    def branch(self, id: str, name: str) -> dict[str, Any]:
        repository = self.repository(id, write=True)
        if name in repository.branches:
            raise Refused(409, message="Reference already exists")
        repository.branches[name] = repository.branches["main"]
        return {}

    def may(self, id: str, write: str | None = None) -> dict[str, Any]:
        self.repository(id, write=self.path.endswith("/write"))
        return {}

    def preupload(self, id: str, revision: str) -> dict[str, Any]:
        self.repository(id, write=True)
        _, there = self.commit_of(id, revision)
        files = []
        for asked in json.loads(self.body)["files"]:
            path, old = asked["path"], there.get(asked["path"])
            mode = "lfs" if path.endswith(LARGE) else "regular"
            told = {"oid": old.etag} if old is not None else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **told})
        return {"files": files}

    def batch(self, id: str) -> dict[str, Any]:
        self.repository(id, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            href = f"{self.server.url}/large/{asked['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append({**asked, **({} if asked["oid"] in self.server.large else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def upload(self, oid: str) -> dict[str, Any]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, message="the content does not have the announced SHA-256")
        self.server.large[oid] = self.body
        return {}

    def verify(self, oid: str) -> dict[str, Any]:
        if len(self.server.large.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Refused(404, message="no such object")
        return {}

    def commit(self, id: str, revision: str) -> dict[str, Any]:
        repository = self.repository(id, write=True)
        _, there = self.commit_of(id, revision)
        files, message = dict(there), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value, path = entry["value"], entry["value"].get("path", "")
            match entry["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[path] = File(base64.b64decode(value["content"]), large=False)
                case "lfsFile":
                    files[path] = File(self.server.large[value["oid"]], large=True)
                case "deletedFile":
                    del files[path]
        sha = repository.commit(revision, files, message)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{id}/commit/{sha}"}

    def resolve(self, id: str, revision: str, path: str) -> None:
        sha, files = self.commit_of(id, revision)
        headers = {"X-Repo-Commit": sha}
        if path not in files:
            self.send_json(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        file = files[path]
        if file.large and not self.path.startswith("/content/"):
            linked = {"X-Linked-Size": str(len(file.data)), "X-Linked-ETag": f'"{file.sha256}"'}
            location = {"Location": f"{self.server.url}/content/{id}/resolve/{sha}/{path}"}
            self.send_bytes(302, b"", {**headers, **linked, **location})
            return
        self.send_file(path, file, {**headers, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"})

    def send_file(self, path: str, file: File, headers: dict[str, str]) -> None:
        """The content, or the part that was asked for; broken as `break_file` said."""
        data, status = file.data, 200
        how = self.server.broken.get(path) if self.command == "GET" else None
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start:
            first = int(start[1])
            if first >= len(data):
                raise Refused(416, message="range not satisfiable")
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            data, status = data[first:], 206
        if how == "swap":
            data = data[:-1] + bytes([data[-1] ^ 1])
        elif how == "short":
            data = data[: len(data) // 2]
        elif how == "drop":
            self.send_bytes(status, b"", {**headers, "Content-Length": str(len(data))})
            self.close_connection = True
            return
        self.send_bytes(status, data, headers)


ROUTES = [
    (("GET",), r"/api/whoami-v2", Handler.whoami),
    (("POST",), r"/api/repos/create", Handler.create_repository),
    (("POST",), r"/api/validate-yaml", Handler.validate_yaml),
    (("GET",), rf"/api/models/{ID}/auth-check(?:/write)?", Handler.may),
    (("GET",), rf"/api/models/{ID}/refs", Handler.refs),
    (("GET",), rf"/api/models/{ID}/revision/(?P<revision>[^/]+)", Handler.info),
    (("GET",), rf"/api/models/{ID}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    (("GET",), rf"/api/models/{ID}", Handler.info),
    (("POST",), rf"/api/models/{ID}/branch/(?P<name>[^/]+)", Handler.branch),
    (("POST",), rf"/api/models/{ID}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (("POST",), rf"/api/models/{ID}/commit/(?P<revision>[^/]+)", Handler.commit),
    (("POST",), rf"/{ID}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), r"/large/(?P<oid>\w+)", Handler.upload),
    (("POST",), r"/large/(?P<oid>\w+)/verify", Handler.verify),
    (("GET", "HEAD"), rf"(?:/content)?/{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]
