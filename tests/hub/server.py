"""A Hub on loopback for tests: what the real client asks for when it uploads and downloads.

It keeps repositories in memory, answers as the Hub does (statuses, headers, error codes), stores
large files by checksum before they are committed, and can be told to misbehave.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 4096
"""Files of more bytes are stored by checksum, as git-lfs does."""
TOKEN = "hf_" + "t" * 30
OWNER = "tester"


@dataclass
class Entry:
    """A file of a commit."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return git_sha(self.content)


def git_sha(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, Entry], summary: str) -> str:
        digest = hashlib.sha1(f"{branch} {len(self.log)} {summary}".encode())
        for name in sorted(files):
            digest.update(f"{name} {files[name].oid}".encode())
        sha = digest.hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.log.append(f"{branch}: {summary}")
        return sha


@dataclass
class Fault:
    """Misbehaviour for requests whose ``METHOD path`` matches, ``times`` times.

    ``status`` answers with it; ``drop`` cuts the connection; ``delay`` waits before answering.
    """

    pattern: str
    status: int = 0
    drop: bool = False
    delay: float = 0.0
    times: int = 1
    message: str = "made to fail"


class LoopbackHub:
    """The server and what it has seen.

    Attributes:
        requests: ``METHOD path`` of every request.
        stored: Large files by checksum.
        received: Bytes that came in for each checksum, of uploads that were cut off too.
        pace: Bytes per second at which uploads are read; 0 is as fast as they come.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.received: dict[str, int] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.pace = 0.0
        self.authorised: set[str] = {OWNER}
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients that are killed cut connections
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["LoopbackHub"]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join(10)

    def make(self, name: str, files: dict[str, bytes] | None = None, private=False) -> Repo:
        repo = self.repos[name] = Repo(private)
        attributes = Entry(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)
        repo.commit("main", {".gitattributes": attributes}, "initial commit")
        if files:
            added = {path: Entry(content, len(content) > LARGE) for path, content in files.items()}
            repo.commit("main", {".gitattributes": attributes, **added}, "by hand")
        return repo

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        found = repo.commits[repo.branches[revision]]
        return {path: entry.content for path, entry in found.items() if path != ".gitattributes"}

    def count(self, pattern: str) -> int:
        return sum(re.search(pattern, line) is not None for line in self.requests)

    def fault_for(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    body_read = False
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        self.hub.requests.append(line)
        self.body_read = False
        try:
            fault = self.hub.fault_for(line)
            if fault is not None:
                time.sleep(fault.delay)
                if fault.drop:
                    self.close_connection = True
                    return
                if fault.status:
                    raise _Refused(fault.status, message=fault.message)
            for method, pattern, name in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    getattr(self, name)(**match.groupdict())
                    return
            raise _Refused(404, "EntryNotFound", f"no such route: {line}")
        except _Refused as refused:
            # The client keeps the connection, so it must neither be closed unannounced nor be left
            # with an unread body in it: either one now and then loses the answer.
            if not self.body_read:
                self._body()
            self._send(
                refused.status,
                {"error": refused.message},
                {"X-Error-Code": refused.code, "X-Error-Message": refused.message},
            )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _any

    def _body(self, oid: str | None = None) -> bytes:
        self.body_read = True
        left, parts = int(self.headers.get("Content-Length") or 0), []
        while left:
            part = self.rfile.read(min(left, 2048 if self.hub.pace else 1 << 16))
            if not part:
                raise ConnectionResetError
            parts.append(part)
            left -= len(part)
            if oid is not None:
                self.hub.received[oid] = self.hub.received.get(oid, 0) + len(part)
                if self.hub.pace:
                    time.sleep(len(part) / self.hub.pace)
        return b"".join(parts)

    def _json(self):
        return json.loads(self._body() or b"{}")

    def _send(self, status: int, content, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _known(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, message="Invalid credentials in Authorization header")

    def _may_write(self, owner: str) -> None:
        self._known()
        if owner not in self.hub.authorised:
            raise _Refused(403, message=f"You don't have the rights to write under {owner}")

    def _repo(self, repo: str) -> Repo:
        if repo not in self.hub.repos:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        if self.hub.repos[repo].private:
            self._known()
        return self.hub.repos[repo]

    def _commit_of(self, repo: str, revision: str) -> tuple[str, dict[str, Entry]]:
        found = self._repo(repo)
        sha = found.branches.get(revision, revision)
        if sha not in found.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, found.commits[sha]

    def whoami(self) -> None:
        self._known()
        self._send(200, {"type": "user", "name": OWNER, "orgs": [], "auth": {}})

    def create(self) -> None:
        asked = self._json()
        self._may_write(asked["organization"] or OWNER)
        name = f"{asked['organization'] or OWNER}/{asked['name']}"
        if name in self.hub.repos:
            raise _Refused(409, message="You already created this model repo")
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.make(name, private=bool(private))
        self._send(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def info(self, repo: str, revision: str = "main") -> None:
        sha, files = self._commit_of(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        self._send(
            200,
            {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "tags": []}
            | {"private": self._repo(repo).private, "downloads": 0, "likes": 0},
        )

    def tree(self, repo: str, revision: str) -> None:
        _, files = self._commit_of(repo, revision)
        self._send(200, [_listed(path, entry) for path, entry in files.items()])

    def refs(self, repo: str) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in self._repo(repo).branches.items()
        ]
        self._send(200, {"branches": branches, "tags": [], "converts": []})

    def branch(self, repo: str, branch: str) -> None:
        start = self._json().get("startingPoint") or "main"
        self._may_write(repo.partition("/")[0])
        found = self._repo(repo)
        if branch in found.branches:
            raise _Refused(409, message="Reference already exists")
        found.branches[branch] = self._commit_of(repo, start)[0]
        self._send(200, {})

    def validate(self) -> None:
        content = self._json()["content"]
        ok = content.startswith("---\n")
        self._send(200, {"warnings": [] if ok else [{"message": "no metadata"}], "errors": []})

    def preupload(self, repo: str, revision: str) -> None:
        asked = self._json()
        self._may_write(repo.partition("/")[0])
        _, files = self._commit_of(repo, revision)
        answer = [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["size"] > LARGE else "regular",
                "shouldIgnore": False,
                "oid": files[item["path"]].oid if item["path"] in files else None,
            }
            for item in asked["files"]
        ]
        self._send(200, {"files": answer})

    def batch(self, repo: str) -> None:
        asked = self._json()
        self._may_write(repo.partition("/")[0])
        self._repo(repo)
        objects = []
        for item in asked["objects"]:
            if item["oid"] not in self.hub.stored:
                link = {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}
                verify = {"href": f"{self.hub.url}/lfs/verify", "header": {}}
                item = {**item, "actions": {"upload": link, "verify": verify}}
            objects.append(item)
        self._send(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        content = self._body(oid)
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, message="checksum mismatch")
        self.hub.stored[oid] = content
        self._send(200, {})

    def verify(self) -> None:
        asked = self._json()
        if len(self.hub.stored.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(404, message="object is not there")
        self._send(200, {})

    def commit(self, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines() if line.strip()]
        self._may_write(repo.partition("/")[0])
        found = self._repo(repo)
        _, before = self._commit_of(repo, revision)
        files, summary = dict(before), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                summary = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = Entry(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    raise _Refused(400, message=f"{value['path']} was never uploaded")
                files[value["path"]] = Entry(self.hub.stored[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = found.commit(revision, files, summary)
        url = f"{self.hub.url}/{repo}/commit/{sha}"
        self._send(200, {"commitUrl": url, "commitOid": sha, "success": True})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        sha, files = self._commit_of(repo, revision)
        if path not in files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        entry = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry.oid}"'}
        if entry.large:
            headers |= {"X-Linked-Etag": f'"{entry.oid}"', "X-Linked-Size": str(len(entry.content))}
        self._send(200, entry.content, headers)


def _listed(path: str, entry: Entry) -> dict:
    item = {"type": "file", "path": path, "size": len(entry.content), "oid": git_sha(entry.content)}
    if entry.large:
        item["lfs"] = {"oid": entry.oid, "size": len(entry.content), "pointerSize": 130}
    return item


_R = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/models/{_R}/revision/(?P<revision>.+)", "info"),
    ("GET", rf"/api/models/{_R}/tree/(?P<revision>[^/]+)", "tree"),
    ("GET", rf"/api/models/{_R}/refs", "refs"),
    ("POST", rf"/api/models/{_R}/branch/(?P<branch>.+)", "branch"),
    ("POST", rf"/api/models/{_R}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", rf"/api/models/{_R}/commit/(?P<revision>.+)", "commit"),
    ("GET", rf"/api/models/{_R}", "info"),
    ("POST", rf"/{_R}\.git/info/lfs/objects/batch", "batch"),
    ("POST", r"/lfs/verify", "verify"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "put"),
    ("GET HEAD", rf"/{_R}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
