"""A hub on loopback that serves folders as models, as far as `huggingface_hub` asks, and remembers what was asked."""

import contextlib
import functools
import hashlib
import http.server
import json
import re
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_secret"


class Hub(http.server.ThreadingHTTPServer):
    """Models by id: a folder, its branches, and who may read it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
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

        self.sent = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, model: str, folder: Path) -> str:
        """Serves a folder as the branch `main` of a model; returns its commit."""
        self.folders[model] = folder
        return self.commit(model)

    def commit(self, model: str) -> str:
        state = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(self.folders[model].iterdir())
        ]
        return hashlib.sha1(json.dumps([model, state]).encode()).hexdigest()

    def asked(self, pattern: str) -> list[str]:
        return [request for request in self.requests if re.search(pattern, request)]

    def reset(self) -> None:
        """Forgets everything."""
        for collection in (self.folders, self.private, self.gated, self.requests, self.busy, self.spoilt):
            collection.clear()
        self.sent = 0
        self.ranges, self.down = True, False


@functools.cache
def running() -> Hub:
    """The hub of this process, which answers until the process ends."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    return hub


class _Handler(http.server.BaseHTTPRequestHandler):
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
        wanted = self.headers.get("Range", "")
        hub.requests.append(f"{self.command} {path} {wanted}".strip())
        if hub.down:
            self._send(503, b"down")
            return
        for answer in hub.busy:
            if re.search(answer[0], hub.requests[-1]):
                hub.busy.remove(answer)
                self._send(answer[1], b"busy", answer[2])
                return
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:revision|tree)/([^/]+)", path)
        match = file or listing
        if match is None:
            self._send(404, b"")
            return
        model, revision = match[1], match[2]
        if problem := self._problem(model, revision):
            status, code = problem
            self._send(status, code.encode(), {"X-Error-Code": code, "X-Error-Message": code})
        elif file:
            self._send_file(hub.folders[model] / file[3], hub.commit(model), wanted)
        else:
            names = sorted(found.name for found in hub.folders[model].iterdir())
            tree = [{"type": "file", "path": name, "size": 1, "oid": name} for name in names]
            info = {"id": model, "sha": hub.commit(model), "siblings": [{"rfilename": name} for name in names]}
            self._send(
                200, json.dumps(tree if "/tree/" in path else info).encode(), {"Content-Type": "application/json"}
            )

    def _problem(self, model: str, revision: str) -> tuple[int, str] | None:
        hub = self.server
        is_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if model not in hub.folders or (model in hub.private and not is_in):
            return 401, "RepoNotFound"
        if model in hub.gated and not is_in:
            return 403, "GatedRepo"
        if revision not in ("main", hub.commit(model)):
            return 404, "RevisionNotFound"
        return None

    def _send_file(self, path: Path, commit: str, wanted: str) -> None:
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if path.name in self.server.spoilt and not wanted:
            content = content[:-1] + bytes([content[-1] ^ 1])
        limits = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if limits and self.server.ranges:
            start, stop = int(limits[1]), min(int(limits[2] or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self._send(206, content[start:stop], headers)
        else:
            self._send(200, content, headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(content), 1 << 16):
                self.wfile.write(content[start : start + (1 << 16)])
                self.server.sent += 1 << 16
