"""What a hub can do wrong, and what a user can ask of it: each ends with the right bytes, or with an error of ours.

Either comes within a bound of time, prints no secret, and leaves nothing that keeps the same call from being right once
the hub is well.
"""

import gzip
import json
import re
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support import checkpoints
from support.hub import SIGNATURE, TOKEN, Handler, Hub

import lazyload
from lazyload import errors

MODEL = "org/qwen"
RANGE = r"GET .*\.safetensors bytes="
DOWNLOAD = r"GET .*-of-.*\.safetensors$"
CONFIG = r"/config\.json"
ALL = r"."


@dataclass
class World:
    """What a scenario can change before the call."""

    hub: Hub
    served: Path
    cache: Path
    options: dict[str, Any]
    patch: pytest.MonkeyPatch

    def convert(self, **options: Any) -> lazyload.CachedCheckpoint:
        return lazyload.convert(MODEL, cache_dir=self.cache, **{"progress": False, **self.options, **options})

    def outcome(self) -> lazyload.CachedCheckpoint | errors.LazyLoadError:
        try:
            return self.convert()
        except errors.LazyLoadError as error:
            return error

    def fault(self, pattern: str, answer: Callable[[Handler], bool], times: int | None = None) -> None:
        """The hub answers so to what matches; only so many times, if it is said how many."""
        count = 0

        def counted(handler: Handler) -> bool:
            nonlocal count
            count += 1
            return (times is None or count <= times) and answer(handler)

        self.hub.faults.append((pattern, counted))

    def shard(self, number: int = 0) -> Path:
        return sorted(self.served.glob("*.safetensors"))[number]

    def impatient(self) -> None:
        for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
            self.patch.setattr(constants, name, 0.5)


@dataclass(frozen=True)
class Scenario:
    """A scenario.

    Attributes:
        name: What happens, in words.
        given: Makes it happen.
        words: What the error says; empty where there is none.
        error: The kind of error.
        asked: Holds for the hub afterwards.
        recovers: Whether the same call is right once the hub is well.
        seconds: The bound.
    """

    name: str
    given: Callable[[World], Any]
    words: str = ""
    error: type[errors.LazyLoadError] = errors.SourceNotFoundError
    asked: Callable[[Hub], bool] = lambda hub: True
    recovers: bool = True
    seconds: float = 30.0
    hit: bool = field(default=False)


def answer(status: int, headers: Mapping[str, str] | None = None, content: bytes = b"") -> Callable[[Handler], bool]:
    def send(handler: Handler) -> bool:
        handler.send(status, content, dict(headers or {}))
        return True

    return send


def file_of(handler: Handler) -> tuple[Path, str] | None:
    """The file that a request asks for, and its commit; None where there is no such file."""
    match = re.fullmatch(r"(?:/elsewhere)?/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)(?:\?.*)?", handler.path)
    folder = match and handler.server.folder(match[1], match[2])
    if match is None or folder is None or not (folder / match[3]).is_file():
        return None
    return folder / match[3], handler.server.commit(match[1], match[2])


def changed(
    change: Callable[[bytes], bytes] = lambda content: content, headers: Mapping[str, str] | None = None
) -> Callable[[Handler], bool]:
    """The file with other content, and other headers."""

    def send(handler: Handler) -> bool:
        if not (found := file_of(handler)):
            return False
        path, commit = found
        handler.send_file(path, commit, change(path.read_bytes()), dict(headers or {}))
        return True

    return send


def cut(share: float, *, reset: bool = False) -> Callable[[Handler], bool]:
    """The connection breaks in the middle of the answer, whose length was told."""

    def send(handler: Handler) -> bool:
        if not (found := file_of(handler)):
            return False
        path, commit = found
        content = path.read_bytes()
        if limits := re.fullmatch(r"bytes=(\d+)-(\d*)", handler.range):
            start, stop = int(limits[1]), min(int(limits[2] or len(content)) + 1, len(content))
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            content = content[start:stop]
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("X-Repo-Commit", commit)
        handler.end_headers()
        handler.wfile.write(content[: int(share * len(content))])
        handler.wfile.flush()
        if reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.close_connection = True
        return True

    return send


def short(handler: Handler) -> bool:
    """A range with fewer bytes than it is said to have, and no broken connection."""
    if not (found := file_of(handler)):
        return False
    path, _ = found
    size = path.stat().st_size
    handler.send(206, path.read_bytes()[:100], {"Content-Range": f"bytes 0-{min(size, 1 << 17) - 1}/{size}"})
    return True


def stall(handler: Handler) -> bool:
    handler.server.ended.wait(120)
    handler.close_connection = True
    return True


def stall_in_body(handler: Handler) -> bool:
    if not (found := file_of(handler)):
        return False
    path, commit = found
    size = path.stat().st_size
    handler.send_response(206 if handler.range else 200)
    handler.send_header("Content-Length", str(size))
    handler.send_header("X-Repo-Commit", commit)
    if handler.range:
        handler.send_header("Content-Range", f"bytes 0-{size - 1}/{size}")
    handler.end_headers()
    handler.wfile.write(path.read_bytes()[:100])
    handler.wfile.flush()
    return stall(handler)


def slow(handler: Handler) -> bool:
    handler.server.ended.wait(0.2)
    return False


def written(name: str, content: bytes | Callable[[bytes], bytes]) -> Callable[[World], None]:
    """The model has other content in a file."""

    def write(world: World) -> None:
        for path in world.served.glob(name):
            path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return write


def single(content: bytes) -> Callable[[World], None]:
    """The model's weights are one file with this content."""

    def write(world: World) -> None:
        for path in world.served.glob("*.safetensors*"):
            path.unlink()
        (world.served / "model.safetensors").write_bytes(content)

    return write


def index_naming(name: str) -> Callable[[World], None]:
    def rename(content: bytes) -> bytes:
        index = json.loads(content)
        index["weight_map"][next(iter(index["weight_map"]))] = name
        return json.dumps(index).encode()

    return written("model.safetensors.index.json", rename)


def listing_odd_names(world: World) -> None:
    (world.served / "model.safetensors.index.json").unlink()
    names = [
        "../evil.safetensors",
        "/etc/evil.safetensors",
        "..\\evil.safetensors",
        "a/../../evil.safetensors",
        "..",
        "",
    ]
    names += [path.name for path in world.served.iterdir()]
    info = {"id": MODEL, "sha": world.hub.commit(MODEL), "siblings": [{"rfilename": name} for name in names]}
    content, headers = json.dumps(info).encode(), {"Content-Type": "application/json"}
    world.fault("/api/models/", answer(200, headers, content))


def fetched(world: World) -> None:
    """The hub's own cache has all of the model."""
    world.convert(dtype="float32")
    lazyload.Cache(world.cache).remove(MODEL)
    world.hub.requests.clear()


def converted(world: World) -> None:
    """The cache of converted checkpoints has the model, the hub's own nothing."""
    world.convert()
    shutil.rmtree(constants.HF_HUB_CACHE)
    world.hub.requests.clear()


def gone(world: World) -> None:
    world.hub.folders.clear()


def moving(*, keep: bool) -> Callable[[World], None]:
    """Somebody pushes as soon as `config.json` has been read."""

    def given(world: World) -> None:
        def push(handler: Handler) -> bool:
            path, commit = file_of(handler) or (world.served / "config.json", world.hub.commit(MODEL))
            if keep:
                world.hub.revisions[MODEL, commit] = world.served
            handler.send_file(path, commit)
            newer = world.served.with_name("newer")
            if not newer.exists():
                shutil.copytree(world.served, newer)
                written("*.safetensors", b"newer")(World(world.hub, newer, world.cache, {}, world.patch))
                world.hub.folders[MODEL] = newer
            return True

        world.fault(f"GET .*{CONFIG}", push, times=1)

    return given


def other_branch(name: str) -> Callable[[World], None]:
    """The model is that branch or tag, and `main` is something else."""

    def given(world: World) -> None:
        world.hub.revisions[MODEL, name] = world.served
        world.hub.revisions[MODEL, world.hub.commit(MODEL)] = world.served
        other = world.served.with_name("other")
        other.mkdir()
        (other / "README.md").write_text("not here")
        world.hub.folders[MODEL] = other
        world.options["revision"] = name

    return given


def in_subfolder(world: World) -> None:
    inner = world.served / "text" / "model"
    inner.mkdir(parents=True)
    for path in [path for path in world.served.iterdir() if path.is_file()]:
        path.rename(inner / path.name)
    world.options["subfolder"] = "text/model"


def in_variant(world: World) -> None:
    for path in world.served.glob("*.safetensors"):
        path.rename(path.with_name(path.name.replace("model-", "model.fp16-")))
    index = world.served / "model.safetensors.index.json"
    index.with_name("model.safetensors.index.fp16.json").write_text(
        index.read_text().replace('"model-', '"model.fp16-')
    )
    index.unlink()
    world.options["variant"] = "fp16"


def logged_in(world: World) -> None:
    world.patch.setenv("HF_TOKEN", f"{TOKEN}\n")


def together(*parts: Callable[[World], Any]) -> Callable[[World], None]:
    def given(world: World) -> None:
        for part in parts:
            part(world)

    return given


def faulty(pattern: str, fault: Callable[[Handler], bool], times: int | None = None) -> Callable[[World], None]:
    return lambda world: world.fault(pattern, fault, times)


def options(**values: Any) -> Callable[[World], None]:
    return lambda world: world.options.update(values)


def setting(name: str, value: Any) -> Callable[[World], None]:
    return lambda world: world.patch.setattr(constants, name, value)


def hub_with(**values: Any) -> Callable[[World], None]:
    return lambda world: [setattr(world.hub, name, value) for name, value in values.items()]


def stored_in_xet(status: int) -> Callable[[World], None]:
    """The weights are in Xet, which does not have them; who asks where it is, is answered with that status."""

    def given(world: World) -> None:
        # What is said there once is remembered.
        route = f"/refresh/{status}"
        about = {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": f"{world.hub.endpoint}{route}"}
        access = {
            "X-Xet-Cas-Url": f"{world.hub.endpoint}/xet",
            "X-Xet-Access-Token": TOKEN,
            "X-Xet-Token-Expiration": "4102444800",
        }
        world.fault("HEAD .*-of-", changed(headers=about))
        world.fault(route, answer(status, access, b"{}"))

    return given


def private(world: World) -> None:
    world.hub.private.add(MODEL)


def gated(world: World) -> None:
    world.hub.gated.add(MODEL)


def no_token(hub: Hub) -> bool:
    return hub.told == []


def no_token_elsewhere(hub: Hub) -> bool:
    return not any(told.startswith("localhost") for told in hub.told)


def not_asked(hub: Hub) -> bool:
    return hub.requests == []


LONG, BUSY = {"Retry-After": "3600"}, r"asks to wait 3600 s"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

SCENARIOS = [
    Scenario("nothing is wrong", lambda world: None, asked=no_token),
    # Ranges.
    Scenario("ranges are ignored", hub_with(ranges=False)),
    Scenario(
        "another range than asked for",
        faulty(RANGE, changed(headers={"Content-Range": "bytes 8-1000/100000"})),
        "answers with another range than was asked for",
    ),
    Scenario(
        "a range of an unknown whole",
        faulty(RANGE, changed(headers={"Content-Range": "bytes 0-1000/*"})),
        "answers with another range than was asked for",
    ),
    Scenario(
        "a range of a larger whole",
        faulty(RANGE, changed(headers={"Content-Range": "bytes 0-131071/9000000000000"})),
        "ends too early|bytes",
        errors.CorruptSourceError,
    ),
    Scenario("a range without its whole", faulty(RANGE, changed(headers={"Content-Range": ""})), "another range"),
    Scenario("a short range, once", faulty(RANGE, short, times=1)),
    Scenario("short ranges", faulty(RANGE, short), "ends too early", errors.CorruptSourceError),
    Scenario("a range that breaks off, once", faulty(RANGE, cut(0.5), times=1)),
    Scenario("ranges that break off", faulty(RANGE, cut(0.5)), "cannot be reached"),
    Scenario("a range that is reset, once", faulty(RANGE, cut(0.1, reset=True), times=1)),
    Scenario("ranges that are reset", faulty(RANGE, cut(0.1, reset=True)), "cannot be reached"),
    Scenario("a range that stalls", together(World.impatient, faulty(RANGE, stall_in_body)), "cannot be reached"),
    Scenario(
        "ranges that are compressed",
        faulty(RANGE, changed(headers={"Content-Encoding": "gzip"})),
        "another range|cannot be reached",
    ),
    Scenario("ranges are refused", faulty(RANGE, answer(416)), "answers with 416"),
    # Downloads.
    Scenario("a download that breaks off, once", faulty(DOWNLOAD, cut(0.5), times=1)),
    Scenario("downloads that break off", faulty(DOWNLOAD + "|bytes=[1-9]", cut(0.5)), "cannot be reached|size"),
    Scenario("a download that is reset, once", faulty(DOWNLOAD, cut(0.5, reset=True), times=1)),
    Scenario(
        "a download that stalls",
        together(World.impatient, faulty(DOWNLOAD + "|bytes=[1-9]", stall)),
        "cannot be reached",
    ),
    Scenario(
        "a download with other bytes",
        lambda world: world.hub.spoilt.add(world.shard().name),
        "is not the file that the hub speaks of",
        errors.CorruptSourceError,
    ),
    Scenario(
        "a download with another header",
        faulty(DOWNLOAD, changed(lambda content: content[:40] + b" " + content[41:])),
        "is not the file that the hub speaks of",
        errors.CorruptSourceError,
    ),
    Scenario(
        "a shorter download",
        faulty(DOWNLOAD + "|bytes=[1-9]", changed(lambda content: content[:-1])),
        "size|not the file|416",
    ),
    Scenario("slow answers", faulty(ALL, slow)),
    Scenario(
        "questions that stall", together(World.impatient, faulty("HEAD", stall)), "cannot be reached|does not answer"
    ),
    Scenario("everything stalls", together(World.impatient, faulty(ALL, stall)), "cannot be reached|does not answer"),
    Scenario(
        "the listing stalls",
        together(World.impatient, single(b""), lambda world: world.shard().unlink(), faulty("/api/", stall)),
        "cannot be reached",
        recovers=False,
    ),
    # Too busy.
    *[
        Scenario(
            f"{status} once, at each step",
            together(
                *[
                    faulty(what, answer(status), times=1)
                    for what in ("HEAD .*config", "GET .*config", RANGE, "HEAD .*-of-", DOWNLOAD)
                ]
            ),
        )
        for status in (429, 500, 502, 503, 504)
    ],
    *[
        Scenario(f"{status} for ever", faulty(ALL, answer(status)), f"{status}|does not answer", seconds=45)
        for status in (429, 500, 503)
    ],
    Scenario("503 for ranges", faulty(RANGE, answer(503)), "answers with 503; try again later"),
    Scenario("503 for downloads", faulty(DOWNLOAD, answer(503)), "503", seconds=45),
    Scenario("a short wait is asked for", faulty(ALL, answer(429, {"Retry-After": "1"}), times=1)),
    *[
        Scenario(f"a long wait is asked for: {what}", faulty(pattern, answer(429, LONG)), BUSY, seconds=60)
        for what, pattern in {
            "question": "HEAD",
            "config.json": "GET .*config",
            "range": RANGE,
            "download": DOWNLOAD,
            "all": ALL,
        }.items()
    ],
    Scenario("a long wait, and all is here", together(fetched, faulty(ALL, answer(429, LONG))), seconds=30),
    Scenario(
        "a wait until a date", faulty(RANGE, answer(503, {"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}), times=1)
    ),
    # Who may read.
    Scenario("gated", gated, "is gated: accept its conditions", errors.AccessDeniedError),
    Scenario("gated, for who may", together(gated, options(token=TOKEN))),
    Scenario("private", private, "if it is private"),
    Scenario("private, for who may", together(private, options(token=TOKEN))),
    Scenario("private, for who is logged in", together(private, logged_in)),
    Scenario(
        "a wrong token",
        together(options(token=TOKEN), faulty(ALL, answer(401, content=b"Invalid credentials"))),
        "refuses|shows",
        errors.LazyLoadError,
    ),
    Scenario("forbidden", faulty(ALL, answer(403)), r"refuses org/qwen \(403\)", errors.AccessDeniedError),
    Scenario("forbidden weights", faulty(RANGE, answer(403)), r"refuses org/qwen \(403\)", errors.AccessDeniedError),
    Scenario("a token that ends in a newline", together(private, options(token=f" {TOKEN}\n"))),
    Scenario("no token for a public model", options(token=False), asked=no_token),
    Scenario("no token though logged in", together(logged_in, options(token=False)), asked=no_token),
    # Elsewhere.
    Scenario(
        "signed addresses elsewhere", together(hub_with(elsewhere=True), options(token=TOKEN)), asked=no_token_elsewhere
    ),
    Scenario(
        "signed addresses that have expired",
        together(hub_with(elsewhere=True), options(token=TOKEN), faulty("/elsewhere/", answer(403))),
        "403",
        errors.LazyLoadError,
        asked=no_token_elsewhere,
    ),
    Scenario(
        "a download elsewhere that breaks off",
        together(hub_with(elsewhere=True), options(token=TOKEN), faulty(r"/elsewhere/\S*$|bytes=[1-9]", cut(0.5))),
        "cannot be reached|size",
        asked=no_token_elsewhere,
    ),
    Scenario(
        "a shorter file elsewhere",
        together(hub_with(elsewhere=True), faulty("GET /elsewhere/", changed(lambda content: content[:-4]))),
        "it is truncated",
        errors.CorruptSourceError,
    ),
    Scenario(
        "config.json redirected elsewhere",
        lambda world: (
            options(token=TOKEN)(world),
            world.fault(
                f"GET /org.*{CONFIG}",
                answer(
                    302,
                    {
                        "Location": f"http://localhost:{world.hub.server_address[1]}/elsewhere/{MODEL}/resolve/main/config.json?X-Amz-Signature={SIGNATURE}"
                    },
                ),
            ),
        ),
        asked=no_token_elsewhere,
    ),
    Scenario(
        "redirects in a circle",
        faulty("safetensors", lambda handler: answer(302, {"Location": handler.path})(handler)),
        "redirect",
        errors.LazyLoadError,
    ),
    Scenario(
        "everything redirects in a circle",
        faulty(ALL, lambda handler: answer(302, {"Location": handler.path})(handler)),
        "redirect|cannot be reached",
        errors.LazyLoadError,
    ),
    Scenario(
        "a repository that was renamed",
        lambda world: (
            world.hub.folders.update({"org/newer": world.served}),
            world.hub.renamed.update({MODEL: "org/newer"}),
        ),
    ),
    # What the hub says.
    Scenario("somebody pushes meanwhile", moving(keep=True)),
    Scenario(
        "somebody pushes meanwhile, and history is gone",
        moving(keep=False),
        "has no revision '[0-9a-f]{40}'",
        recovers=False,
    ),
    Scenario(
        "no commit is named",
        faulty("HEAD", changed(headers={"X-Repo-Commit": ""})),
        "X-Repo-Commit|does not seem to be",
    ),
    Scenario("no version is named", faulty("HEAD", changed(headers={"ETag": ""})), "ETag|etag"),
    Scenario("a listing with names outside", listing_odd_names, recovers=False),
    Scenario(
        "an index that names a missing file",
        index_naming("model-9.safetensors"),
        r"names model-9\.safetensors, which is not there",
        recovers=False,
    ),
    Scenario(
        "an index that names a file outside",
        index_naming("../evil.safetensors"),
        "no file inside the checkpoint",
        errors.CorruptSourceError,
        recovers=False,
    ),
    Scenario(
        "an index that names an absolute path",
        index_naming("/etc/evil.safetensors"),
        "no file inside the checkpoint",
        errors.CorruptSourceError,
        recovers=False,
    ),
    Scenario(
        "a shard is gone meanwhile",
        faulty("HEAD .*-of-", answer(404, {"X-Error-Code": "EntryNotFound"})),
        "lacks a file that was there before: .*-of-",
    ),
    Scenario("an unknown revision", options(revision="v9"), "has no revision 'v9'", recovers=False),
    Scenario("a branch", other_branch("dev")),
    Scenario("a tag", other_branch("v1.0")),
    Scenario("a commit", lambda world: options(revision=world.hub.commit(MODEL))(world)),
    Scenario(
        "a branch that is not this one",
        together(other_branch("dev"), options(revision="main")),
        r"no config\.json",
        recovers=False,
    ),
    # Without the hub.
    Scenario(
        "offline, and nothing is here",
        setting("HF_HUB_OFFLINE", True),
        "must not be asked",
        asked=not_asked,
        recovers=False,
    ),
    Scenario("offline, and all is here", together(fetched, setting("HF_HUB_OFFLINE", True)), asked=not_asked),
    Scenario(
        "local files only, and nothing is here",
        options(local_files_only=True),
        "must not be asked",
        asked=not_asked,
        recovers=False,
    ),
    Scenario("local files only, and all is here", together(fetched, options(local_files_only=True)), asked=not_asked),
    Scenario("down, and all is here", together(fetched, hub_with(down=True))),
    Scenario("down, and converted", together(converted, hub_with(down=True)), hit=True),
    Scenario("stalling, and converted", together(converted, World.impatient, faulty(ALL, stall)), hit=True),
    Scenario("deleted, and converted", together(converted, gone), hit=True),
    Scenario("gated by now, and converted", together(converted, gated), hit=True),
    Scenario("offline, and converted", together(converted, setting("HF_HUB_OFFLINE", True)), hit=True, asked=not_asked),
    Scenario(
        "down in the middle",
        lambda world: world.fault(
            "HEAD .*-of-", lambda handler: (hub_with(down=True)(world), handler.send(503, b""), True)[-1]
        ),
        "503|does not answer",
        seconds=45,
    ),
    # Content.
    Scenario(
        "config.json is no JSON",
        written("config.json", b"{model"),
        "config.json is not JSON",
        errors.CorruptSourceError,
        recovers=False,
    ),
    Scenario(
        "config.json is a list",
        written("config.json", b"[]"),
        "holds no JSON object",
        errors.CorruptSourceError,
        recovers=False,
    ),
    Scenario(
        "config.json is empty",
        written("config.json", b""),
        "config.json is not JSON",
        errors.CorruptSourceError,
        recovers=False,
    ),
    Scenario(
        "config.json is a pointer",
        written("config.json", POINTER),
        "Git LFS pointer",
        errors.CorruptSourceError,
        recovers=False,
    ),
    Scenario(
        "config.json is a login page",
        faulty(f"GET .*{CONFIG}", answer(200, {"Content-Type": "text/html"}, b"<html>log in</html>")),
        "size|not JSON|cannot be reached",
        errors.LazyLoadError,
        recovers=False,
    ),
    Scenario(
        "config.json is compressed", faulty(f"GET .*{CONFIG}", changed(gzip.compress, {"Content-Encoding": "gzip"}))
    ),
    Scenario(
        "config.json is huge",
        written("config.json", lambda content: content + b" " * (33 << 20)),
        "more than the 33554432 that it can have",
        errors.CorruptSourceError,
        recovers=False,
    ),
    Scenario(
        "config.json is said to be huge",
        faulty(f"HEAD .*{CONFIG}", changed(headers={"Content-Length": str(10**15)})),
        "more than the 33554432 that it can have|too large|size",
        errors.LazyLoadError,
    ),
    Scenario("weights are empty", single(b""), "model.safetensors", errors.CorruptSourceError, recovers=False),
    Scenario("weights are a pointer", single(POINTER), "Git LFS pointer", errors.CorruptSourceError, recovers=False),
    Scenario(
        "weights are said to be huge",
        faulty(RANGE, changed(headers={"Content-Range": f"bytes 0-131071/{10**18}"})),
        "bytes|too early",
        errors.CorruptSourceError,
    ),
    Scenario(
        "the hub is none",
        faulty(ALL, answer(200, {"Content-Type": "text/html"}, b"<html>hello</html>")),
        "X-Repo-Commit|does not seem to be",
    ),
    Scenario("questions are not allowed", faulty("HEAD", answer(405)), "405", errors.LazyLoadError),
    Scenario("nothing is found at all", faulty(ALL, answer(404)), "404|no config|shows", errors.LazyLoadError),
    # Places.
    Scenario("a subfolder", in_subfolder),
    Scenario("a subfolder that is not there", options(subfolder="text"), r"no config\.json", recovers=False),
    Scenario("a variant", in_variant),
    Scenario("a variant that is not there", options(variant="fp16"), "has no variant 'fp16'", recovers=False),
    Scenario(
        "weights that Xet does not have",
        stored_in_xet(200),
        "cannot be downloaded from where the hub stores it|404 Not Found",
    ),
    Scenario("weights in Xet, which is down", stored_in_xet(503), "503", seconds=90),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def sound(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What the cache knows of the arrays where they are converted from a folder."""
    return lazyload.convert(model, cache_dir=tmp_path_factory.mktemp("sound")).manifest.arrays


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that somebody wanted to sleep; the clock goes on as if he had."""
    seconds: list[float] = []
    monotonic = time.monotonic
    monkeypatch.setattr(time, "sleep", seconds.append)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + sum(seconds))
    return seconds


@pytest.fixture
def world(model: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    served = Path(shutil.copytree(model, tmp_path / "served"))
    hub.add(MODEL, served)
    return World(hub, served, tmp_path / "cache", {}, monkeypatch)


def content_of(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        yield str(path).encode()
        if path.is_file():
            yield path.read_bytes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_right_bytes_or_an_error_of_ours(
    scenario: Scenario,
    world: World,
    sound: Mapping[str, Any],
    slept: list[float],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    scenario.given(world)
    slept.clear()
    started = time.perf_counter()
    outcome = world.outcome()
    said = str(outcome) if isinstance(outcome, errors.LazyLoadError) else ""
    assert bool(said) == bool(scenario.words), outcome
    if isinstance(outcome, errors.LazyLoadError):
        assert isinstance(outcome, scenario.error), repr(outcome)
        assert re.search(scenario.words, said), said
        assert not [path for path in world.cache.rglob("*") if path.name.startswith(("data-", "manifest", "models--"))]
    else:
        assert outcome.converted != scenario.hit
        assert outcome.manifest.arrays == sound
        assert [found.problems for found in lazyload.verify(cache_dir=world.cache)] == [()]
    assert time.perf_counter() - started + sum(slept) < scenario.seconds, slept
    assert scenario.asked(world.hub), (world.hub.told, world.hub.requests)
    printed = capfd.readouterr()
    assert printed.out == ""
    for text in (said, printed.err, caplog.text):
        assert TOKEN not in text
        assert SIGNATURE not in text
    assert not any(secret.encode() in content for secret in (TOKEN, SIGNATURE) for content in content_of(world.cache))
    if said and scenario.recovers:
        world.hub.recover()
        assert world.convert(token=TOKEN).manifest.arrays == sound


def test_there_are_many_scenarios() -> None:
    names = {scenario.name for scenario in SCENARIOS}
    print(f"\n{len(names)} hub scenarios")
    assert len(names) == len(SCENARIOS) >= 45
