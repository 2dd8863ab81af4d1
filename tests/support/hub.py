"""A hub on loopback that serves folders as models, as far as `huggingface_hub` asks, and remembers what was asked.

It can be as unwell as hubs are (`Hub.faults`), and weights can lie on another host, behind addresses that are signed
(`Hub.elsewhere`).
"""

import contextlib
import functools
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_secret"
SIGNATURE = "5ec2e7"


class Hub(http.server.ThreadingHTTPServer):
    """Models by id: a folder, its branches, and who may read it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders: dict[str, Path] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.ranges = True
        self.down = False
        self.busy: list[tuple[str, int, dict[str, str]]] = []
        """What is answered once each to requests that match: pattern, status, headers."""

        self.spoilt: set[str] = set()
        """Files that arrive with another last byte than they have."""

        self.faults: list[tuple[str, Callable[[Handler], bool]]] = []
        """What is asked before an answer is sent to a request that matches; if it says yes, it has sent one."""

        self.meanwhile: Callable[[str, int], object] = _do_nothing
        """Called before each piece of a file is sent, with the request's path and the piece's size."""

        self.revisions: dict[tuple[str, str], Path] = {}
        """Branches, tags and commits beside the newest one of `main`."""

        self.renamed: dict[str, str] = {}
        self.elsewhere = False
        """Whether weights lie on another host."""

        self.told: list[str] = []
        """The tokens that came with requests, where one did: host and token."""

        self.ended = threading.Event()
        self.sent = 0
        self.rate: float | None = None
        """Bytes a second that it sends at most, to all who ask together; None for no limit."""

        self._free, self._sending = 0.0, threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, model: str, folder: Path) -> str:
        """Serves a folder as the branch `main` of a model; returns its commit."""
        self.folders[model] = folder
        return self.commit(model)

    def commit(self, model: str, revision: str = "main") -> str:
        folder = self.folder(model, revision)
        assert folder is not None
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        state = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha1(json.dumps([model, state]).encode()).hexdigest()

    def folder(self, model: str, revision: str) -> Path | None:
        """What a revision of a model is; None where there is no such revision."""
        if (model, revision) in self.revisions:
            return self.revisions[model, revision]
        is_newest = revision == "main" or revision == self.commit(model)
        return self.folders[model] if is_newest else None

    def wait_for_link(self, nbytes: int) -> None:
        """Returns when the link has sent that many bytes more, after what it is sending already."""
        if self.rate is None:
            return
        with self._sending:
            self._free = max(self._free, time.monotonic()) + nbytes / self.rate
            wait = self._free - time.monotonic()
        time.sleep(max(wait, 0))

    def asked(self, pattern: str) -> list[str]:
        return [request for request in self.requests if re.search(pattern, request)]

    def reset(self) -> None:
        """Forgets everything."""
        self.folders.clear()
        self.private.clear()
        self.gated.clear()
        self.requests.clear()
        self.told.clear()
        self.revisions.clear()
        self.sent = 0
        self.recover()

    def recover(self) -> None:
        """Is well again."""
        self.busy.clear()
        self.spoilt.clear()
        self.faults.clear()
        self.renamed.clear()
        self.ranges, self.down, self.elsewhere, self.rate = True, False, False, None
        self.meanwhile = _do_nothing
        self.ended.set()
        self.ended = threading.Event()


@functools.cache
def running() -> Hub:
    """The hub of this process, which answers until the process ends."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    return hub


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request after another of a connection."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.server, unquote(self.path.split("?")[0])
        self.range = self.headers.get("Range", "")
        hub.requests.append(f"{self.command} {path} {self.range}".strip())
        if token := self.headers.get("Authorization"):
            hub.told.append(f"{self.headers['Host'].split(':')[0]} {token}")
        if hub.down:
            self.send(503, b"down")
            return
        for answer in hub.busy:
            if re.search(answer[0], hub.requests[-1]):
                hub.busy.remove(answer)
                self.send(answer[1], b"busy", answer[2])
                return
        request = hub.requests[-1]
        if any(re.search(pattern, request) and fault(self) for pattern, fault in list(hub.faults)):
            return
        file = re.fullmatch(r"(?:/elsewhere)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:revision|tree)/([^/]+)", path)
        match = file or listing
        if match is None:
            self.send(404, b"")
            return
        model, revision = match[1], match[2]
        if model in hub.renamed:
            self.send(307, b"", {"Location": self.path.replace(model, hub.renamed[model])})
        elif path.startswith("/elsewhere/"):
            is_signed = self.path.endswith(f"?X-Amz-Signature={SIGNATURE}")
            self.send_file(*self._found(match)) if is_signed else self.send(403, b"no signature")
        elif problem := self._problem(model, revision):
            status, code = problem
            self.send(status, code.encode(), {"X-Error-Code": code, "X-Error-Message": code})
        elif file:
            found, commit = self._found(match)
            if hub.elsewhere and found.suffix == ".safetensors" and found.is_file():
                self._send_elsewhere(found, commit)
            else:
                self.send_file(found, commit)
        else:
            self._send_listing(model, revision, as_tree="/tree/" in path)

    def _found(self, match: re.Match[str]) -> tuple[Path, str]:
        folder = self.server.folder(match[1], match[2])
        assert folder is not None
        return folder / match[3], self.server.commit(match[1], match[2])

    def _send_listing(self, model: str, revision: str, *, as_tree: bool) -> None:
        folder = self.server.folder(model, revision)
        assert folder is not None
        names = sorted(str(found.relative_to(folder)) for found in folder.rglob("*") if found.is_file())
        tree = [{"type": "file", "path": name, "size": 1, "oid": name} for name in names]
        siblings = [{"rfilename": name} for name in names]
        info = {"id": model, "sha": self.server.commit(model, revision), "siblings": siblings}
        self.send(200, json.dumps(tree if as_tree else info).encode(), {"Content-Type": "application/json"})

    def _send_elsewhere(self, path: Path, commit: str) -> None:
        headers = {
            "Location": f"http://localhost:{self.server.server_address[1]}/elsewhere{self.path}"
            f"?X-Amz-Signature={SIGNATURE}",
            "X-Linked-ETag": f'"{_sha256(path)}"',
            "X-Linked-Size": str(path.stat().st_size),
            "X-Repo-Commit": commit,
        }
        self.send(302, b"", headers)

    def _problem(self, model: str, revision: str) -> tuple[int, str] | None:
        hub = self.server
        is_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if model not in hub.folders or (model in hub.private and not is_in):
            return 401, "RepoNotFound"
        if model in hub.gated and not is_in:
            return 403, "GatedRepo"
        if hub.folder(model, revision) is None:
            return 404, "RevisionNotFound"
        return None

    def send_file(
        self, path: Path, commit: str, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """Sends a file, or the part of it that is asked for; `content` is other content than it has."""
        if not path.is_file():
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        about = {
            "ETag": f'"{_sha256(path)}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        limits = re.fullmatch(r"bytes=(\d+)-(\d*)", self.range)
        if limits and self.server.ranges:
            size = path.stat().st_size if content is None else len(content)
            start, stop = int(limits[1]), min(int(limits[2] or size) + 1, size)
            if start >= size:
                self.send(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            about["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            part = _part(path, start, stop) if content is None else content[start:stop]
            self.send(206, part, about | (headers or {}))
            return
        content = path.read_bytes() if content is None else content
        if path.name in self.server.spoilt and not self.range:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send(200, content, about | (headers or {}))

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends an answer; a header that is empty is left out."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(content), 1 << 16):
                part = content[start : start + (1 << 16)]
                self.server.wait_for_link(len(part))
                self.server.meanwhile(self.path, len(part))
                self.wfile.write(part)
                self.server.sent += len(part)


def _do_nothing(path: str, nbytes: int) -> None:
    pass


def _sha256(path: Path) -> str:
    status = path.stat()
    return _sha256_of_state(path, status.st_ino, status.st_ctime_ns)


@functools.lru_cache
def _sha256_of_state(path: Path, inode: int, changed_ns: int) -> str:
    """The digest of a file as it is, hashed once: large ones are asked for often."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _part(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)
