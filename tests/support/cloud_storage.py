"""A Cloud Storage on loopback: its JSON API as far as clients of caches use it, with what goes wrong there, on demand.

Objects are created only where there are none (`ifGenerationMatch=0`) in one step, as Google's store does it, which
emulators that can be installed do not. Requests and bytes are counted.
"""

import base64
import collections
import contextlib
import functools
import hashlib
import itertools
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import google_crc32c

_PATH = re.compile(r"(?P<upload>/upload)?(?:/download)?/storage/v1/b/(?P<bucket>[^/]+)(?:/o(?:/(?P<name>.+))?)?")
_PAGE = 1000


@dataclass
class Fault:
    """Something that goes wrong with requests.

    Attributes:
        kind: The status of an answer; or `reset`, a connection that ends without one; `truncated`, one that ends in the
            middle of the body; `slow`, an answer that takes its time; `lost`, a reset after all was done.
        method: Of the requests; a regular expression.
        name: Of the objects; a regular expression.
        times: How many requests it happens to.
        seconds: How long a slow answer takes.
    """

    kind: int | Literal["reset", "truncated", "slow", "lost"]
    method: str = "GET"
    name: str = ".*"
    times: int = 1
    seconds: float = 0.2


@dataclass(frozen=True)
class Stored:
    """An object."""

    content: bytes
    generation: int
    written: float

    @functools.cached_property
    def checksums(self) -> dict[str, str]:
        """What the store tells of the content."""
        digests = hashlib.md5(self.content).digest(), google_crc32c.Checksum(self.content).digest()
        md5, crc32c = (base64.b64encode(digest).decode() for digest in digests)
        return {"md5Hash": md5, "crc32c": crc32c}


@dataclass
class CloudStorage:
    """The store.

    Attributes:
        url: Where it is.
        buckets: By name, the objects by theirs.
        faults: What is still to go wrong.
        requests: How many there were, by method and kind: `GET object`, `GET list`, `POST`, `DELETE`.
        bytes_in: What was written.
        bytes_out: What was read.
        is_read_only: Whether writing and removing are forbidden.
        needs_credentials: Whether nobody is let in.
        creates_only: Whether conditions are looked at; False for stores that ignore them.
        clock: How many seconds its clock is ahead.
        most_at_once: The most requests that were under way at a time.
    """

    url: str = ""
    buckets: dict[str, dict[str, Stored]] = field(default_factory=lambda: {"bucket": {}})
    faults: list[Fault] = field(default_factory=list)
    requests: collections.Counter[str] = field(default_factory=collections.Counter)
    bytes_in: int = 0
    bytes_out: int = 0
    is_read_only: bool = False
    needs_credentials: bool = False
    creates_only: bool = True
    clock: float = 0.0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    _at_once: int = 0
    _generations: Iterator[int] = field(default_factory=lambda: itertools.count(1_700_000_000_000_000))
    _uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = field(default_factory=dict)

    @property
    def objects(self) -> dict[str, Stored]:
        """The objects of the bucket that is there from the start."""
        return self.buckets["bucket"]

    def environment(self) -> dict[str, str]:
        """What has gcsfs, TensorStore and Orbax find the store."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
        }

    def reset(self) -> None:
        """Empties it, and lets nothing go wrong any more."""
        self.buckets = {"bucket": {}}
        self.faults = []
        self.is_read_only = self.needs_credentials = False
        self.creates_only, self.clock = True, 0.0
        self.forget_counts()

    def forget_counts(self) -> None:
        """Begins to count anew."""
        self.requests.clear()
        self.bytes_in = self.bytes_out = self.most_at_once = 0

    def fault(self, method: str, name: str) -> Fault | None:
        """What goes wrong with a request."""
        with self.lock:
            for fault in self.faults:
                if re.fullmatch(fault.method, method) and re.fullmatch(fault.name, name):
                    fault.times -= 1
                    self.faults = [each for each in self.faults if each.times > 0]
                    return fault
        return None

    def put(self, bucket: str, name: str, content: bytes, query: Mapping[str, str]) -> Stored | None:
        """Writes an object; None where its condition is not met. To look and to write are one step."""
        with self.lock:
            there = self.buckets[bucket].get(name)
            wanted = query.get("ifGenerationMatch") if self.creates_only else None
            if wanted is not None and int(wanted) != (there.generation if there else 0):
                return None
            stored = Stored(content, next(self._generations), time.time() + self.clock)
            self.buckets[bucket][name] = stored
            self.bytes_in += len(content)
            return stored

    def begin(self, bucket: str, name: str, query: dict[str, str]) -> str:
        """Begins an upload in parts; returns what it is called."""
        upload = f"upload{next(self._generations)}"
        self._uploads[upload] = bucket, name, query, bytearray()
        return upload

    def upload(self, upload: str) -> tuple[str, str, dict[str, str], bytearray]:
        """An upload that has begun."""
        return self._uploads[upload]

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts how many requests are under way."""
        with self.lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self.lock:
                self._at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Server"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """By the store's clock."""
        return super().date_time_string(time.time() + self.server.store.clock if timestamp is None else timestamp)

    def _handle(self) -> None:
        store = self.server.store
        with store.counting():
            parts = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(parts.query))
            body = self._body()
            match = _PATH.fullmatch(parts.path)
            if match is None:
                return self._fail(404, parts.path)
            name = urllib.parse.unquote(match["name"] or "")
            if match["upload"]:
                name = query.get("name") or _name_in(body) or name
            with store.lock:
                store.requests[_kind(self.command, name, query)] += 1
            fault = store.fault(self.command, name)
            if fault is not None and fault.kind in ("reset",):
                return self._reset()
            if fault is not None and isinstance(fault.kind, int):
                return self._fail(fault.kind, "as the test wants it")
            if fault is not None and fault.kind == "slow":
                time.sleep(fault.seconds)
            if store.needs_credentials:
                return self._fail(401, "Anonymous caller does not have storage.objects.get access")
            if store.is_read_only and self.command != "GET":
                return self._fail(403, "does not have storage.objects.create access")
            if match["bucket"] not in store.buckets:
                return self._fail(404, "The specified bucket does not exist.")
            self._lost = fault is not None and fault.kind == "lost"
            self._truncated = fault is not None and fault.kind == "truncated"
            if match["upload"]:
                return self._upload(match["bucket"], name, query, body)
            if not name:
                return self._list(match["bucket"], query)
            return self._object(match["bucket"], name, query)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, code: int, body: bytes | dict[str, Any] = b"", headers: Mapping[str, str] | None = None) -> None:
        if getattr(self, "_lost", False):
            return self._reset()
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(code)
        kind = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
        for name, value in {"Content-Length": str(len(content)), **kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if getattr(self, "_truncated", False):
            self.wfile.write(content[: len(content) // 2])
            return self._reset()
        self.wfile.write(content)
        return None

    def _fail(self, code: int, message: str) -> None:
        self._lost = self._truncated = False
        self._answer(code, {"error": {"code": code, "message": message}})

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def _upload(self, bucket: str, name: str, query: dict[str, str], body: bytes) -> None:
        store = self.server.store
        match query.get("uploadType"):
            case "media":
                return self._put(bucket, name, body, query)
            case "multipart":
                return self._put(bucket, name, _content_in(body, self.headers["Content-Type"]), query)
            case "resumable" if "upload_id" not in query:
                upload = store.begin(bucket, name, query)
                where = f"{store.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload}"
                return self._answer(200, b"", {"Location": where})
        bucket, name, query, content = store.upload(query["upload_id"])
        content += body
        if self.headers.get("Content-Range", "").endswith("/*"):
            return self._answer(308, b"", {"Range": f"bytes=0-{len(content) - 1}"} if content else {})
        return self._put(bucket, name, bytes(content), query)

    def _put(self, bucket: str, name: str, content: bytes, query: Mapping[str, str]) -> None:
        stored = self.server.store.put(bucket, name, content, query)
        if stored is None:
            return self._fail(412, "At least one of the pre-conditions you specified did not hold.")
        return self._answer(200, _described(bucket, name, stored))

    def _list(self, bucket: str, query: Mapping[str, str]) -> None:
        store = self.server.store
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        low, high = query.get("startOffset", ""), query.get("endOffset")
        with store.lock:
            found = sorted(store.buckets[bucket].items())
        items, prefixes = [], set()
        for name, stored in found:
            if not name.startswith(prefix) or name < low or (high and name >= high):
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            if cut >= 0:
                prefixes.add(name[: cut + 1])
            else:
                items.append(_described(bucket, name, stored))
        first = int(query.get("pageToken", 0))
        last = first + min(_PAGE, int(query.get("maxResults", _PAGE)))
        further = {"nextPageToken": str(last)} if last < len(items) else {}
        self._answer(200, {"items": items[first:last], "prefixes": sorted(prefixes), **further})

    def _object(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        store = self.server.store
        with store.lock:
            stored = store.buckets[bucket].get(name)
            if self.command == "DELETE" and stored:
                del store.buckets[bucket][name]
        if stored is None:
            return self._fail(404, f"No such object: {bucket}/{name}")
        if self.command == "DELETE":
            return self._answer(204)
        if query.get("alt") != "media" and not self.path.startswith("/download"):
            return self._answer(200, _described(bucket, name, stored))
        content = stored.content
        headers = {"x-goog-generation": str(stored.generation), "ETag": f'"{stored.generation}"'}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match and content:
            start, stop = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
            if start >= len(content):
                return self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            content = content[start:stop]
        with store.lock:
            store.bytes_out += len(content)
        return self._answer(206 if match and stored.content else 200, content, headers)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are none."""

    request_queue_size = 256

    def __init__(self, store: CloudStorage, port: int = 0):
        self.store = store
        super().__init__(("127.0.0.1", port), _Handler)
        store.url = f"http://127.0.0.1:{self.server_address[1]}"


def main() -> None:
    """Runs a store by itself, and says which environment has clients find it."""
    store = CloudStorage()
    server = _Server(store)
    for name, value in store.environment().items():
        print(f"{name}={value}", flush=True)
    print(flush=True)
    server.serve_forever()


def start() -> CloudStorage:
    """A store that runs as long as this process."""
    store = CloudStorage()
    threading.Thread(target=_Server(store).serve_forever, name="cloud-storage", daemon=True).start()
    return store


def _kind(method: str, name: str, query: Mapping[str, str]) -> str:
    if method != "GET":
        return method
    return "GET list" if not name else "GET content" if query.get("alt") == "media" else "GET object"


def _described(bucket: str, name: str, stored: Stored) -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stored.written)) + f".{int(stored.written % 1 * 1000):03d}Z"
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{stored.generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(stored.generation),
        "metageneration": "1",
        "size": str(len(stored.content)),
        **stored.checksums,
        "etag": f"e{stored.generation}",
        "timeCreated": moment,
        "updated": moment,
    }


def _name_in(body: bytes) -> str | None:
    """The name in the description that an upload begins with."""
    match = re.search(rb'"name":\s*("(?:[^"\\]|\\.)*")', body[:4096])
    return json.loads(match[1]) if match else None


def _content_in(body: bytes, kind: str) -> bytes:
    """The content of an upload that has description and content in one request."""
    match = re.search(r'boundary="?([^";]+)"?', kind)
    assert match is not None
    boundary = b"--" + match[1].strip("'").encode()
    part = body[body.index(boundary, len(boundary)) + len(boundary) : body.rindex(boundary)]
    for empty_line in (b"\r\n\r\n", b"\n\n"):
        if empty_line in part[:400]:
            # The content may end as a line does, too.
            return part[part.index(empty_line) + len(empty_line) : -len(empty_line) // 2]
    raise ValueError("an upload without a content")


if __name__ == "__main__":
    main()
