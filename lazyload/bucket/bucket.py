"""Requests to a bucket. Each is tried again for a while, and what fails for good is told with the object's name.

Google's and Amazon's stores are reached by the file systems that fsspec has for them, gcsfs and s3fs, with whatever
credentials these find. Both list objects, and write them only where there is none, with one order of all requests.
"""

import contextlib
import email.utils
import errno
import functools
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from lazyload.errors import CacheAccessError, CacheError

Result = TypeVar("Result")

logger = logging.getLogger("lazyload")

MOST_AT_ONCE = 32
"""Requests under way at a time."""

_TRIES = 2
"""Of what gcsfs or s3fs has given up, after tries of its own for half a minute."""

_FIRST_WAIT_SECONDS = 0.5

_GIVEN_UP_SECONDS = 10.0
"""For which a bucket that answers nobody is asked nothing more: to clean up there would take minutes."""

_EXTRAS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}
_CREDENTIALS = {
    "gs": "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "`aws configure`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "GoogleAuthError")
_LASTING = (errno.EINVAL, errno.EPERM, errno.ENOSYS)
_NO_ANSWER = ("ConnectionError", "ClientConnectionError", "HTTPClientError", "TimeoutError", "Timeout")
_ANSWERED = ("ProxyError", "ResponseStreamingError")
"""Of these the exceptions: gcsfs makes the first of status 502; the second is an answer that is not complete."""


class Stored(NamedTuple):
    """What a bucket says of an object.

    Attributes:
        size: In bytes.
        time: When it was written, in seconds since 1970, by the store's clock.
        version: What is another one once it is written again.
    """

    size: int
    time: float
    version: str


class Bucket:
    """A bucket.

    Attributes:
        scheme: Whose it is: `gs` or `s3`.
        name: Its name.
        seconds_ahead: How far the store's clock is ahead of ours, as far as that has been found out (`now`).
    """

    scheme: str
    name: str
    seconds_ahead: float

    def __init__(self, scheme: str, name: str):
        """Asks for nothing yet."""
        self.scheme = scheme
        self.name = name
        self.seconds_ahead = 0.0
        self._given_up = self._answered = -math.inf
        self._seen: dict[str, dict[str, Stored]] = {}
        self._contents: dict[tuple[str, str], bytes] = {}

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}"

    @functools.cached_property
    def _system(self) -> Any:
        # It takes a while to import, and caches on disks do without it.
        import fsspec

        # Its tracebacks are for those who have set up a log; what is wrong is raised, too.
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())
        try:
            return fsspec.filesystem(self.scheme, use_listings_cache=False)
        except ImportError as error:
            extra, client = _EXTRAS[self.scheme]
            raise CacheError(f"{self} needs the extra lazyload[{extra}]: `pip install {client}` ({error})") from None
        # Each has its own errors of credentials, with no common base.
        except Exception as error:
            raise self._problem("", error) from error

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """An object's content, or a range of its bytes.

        Raises:
            FileNotFoundError: There is no such object.
            ValueError: It ends before the range does.
            CacheError: It cannot be read now.
        """

        def read() -> bytes:
            content = bytes(self._system.cat_file(f"{self.name}/{key}", start=start, end=stop))
            if start is not None and stop is not None and len(content) != stop - start:
                raise ValueError(f"{self}/{key} gave {len(content)} of {stop - start} bytes from byte {start}")
            return content

        return self._tried(key, read)

    def write(self, key: str, content: bytes | memoryview) -> None:
        """Writes an object as a whole; a large one in parts.

        Raises:
            CacheError: It cannot be written.
        """
        self._changed(key, lambda: self._system.pipe_file(f"{self.name}/{key}", bytes(content)))

    def create(self, key: str, content: bytes) -> bool:
        """Writes an object where there is none, in one step of which others see all or nothing.

        Returns:
            Whether there was none; the content must tell this writer's from all others'.

        Raises:
            CacheError: It cannot be written.
        """
        try:
            self._changed(key, lambda: self._system.pipe_file(f"{self.name}/{key}", content, mode="create"))
        except FileExistsError:
            # The answer to the request that wrote it may have been lost, and the request tried again.
            with contextlib.suppress(FileNotFoundError):
                return self.read(key) == content
            return False
        return True

    def read_version(self, key: str, version: str) -> bytes:
        """The content of an object that has not changed since it was of some version; kept in memory.

        Raises:
            FileNotFoundError: There is no such object.
            CacheError: It cannot be read now.
        """
        if (key, version) not in self._contents:
            self._contents[key, version] = self.read(key)
        return self._contents[key, version]

    def below(self, prefix: str) -> dict[str, Stored]:
        """All objects whose names begin with a folder, `path/`, by the rest of their names."""
        where = f"{self.name}/{prefix}"
        try:
            found: Mapping[str, Any] = self._tried(
                prefix, lambda: self._system.find(where.rstrip("/"), detail=True, withdirs=False)
            )
        except FileNotFoundError:
            return {}
        return {name[len(where) :]: _stored(info) for name, info in found.items() if name.startswith(where)}

    def children(self, prefix: str) -> tuple[dict[str, Stored], list[str]]:
        """The objects in a folder, `path/`, and the names of the folders in it; not what is in these."""
        where = f"{self.name}/{prefix}"
        try:
            found = self._tried(prefix, lambda: self._system.ls(where.rstrip("/"), detail=True))
        except FileNotFoundError:
            return {}, []
        inside = [(info["name"].rstrip("/")[len(where) :], info) for info in found if info["name"].startswith(where)]
        objects = {name: _stored(info) for name, info in inside if name and info["type"] == "file"}
        folders = sorted(name for name, info in inside if name and info["type"] == "directory")
        self._seen[prefix] = objects
        return objects, folders

    def seen(self, prefix: str) -> dict[str, Stored]:
        """The objects in a folder, as `children` saw them last."""
        return self._seen[prefix] if prefix in self._seen else self.children(prefix)[0]

    def remove(self, keys: Iterable[str]) -> None:
        """Removes objects; what is not there is no error.

        Raises:
            CacheError: One cannot be removed.
        """

        def remove(key: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._tried(key, lambda: self._system.rm_file(f"{self.name}/{key}"))

        for _ in self.at_once(remove, keys):
            pass

    def at_once(self, task: "Callable[[Any], Result]", items: Iterable[Any]) -> "Iterator[Result]":
        """What a task makes of items, as many at a time as the store likes."""
        with ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="lazyload-bucket") as pool:
            yield from pool.map(task, items)

    def now(self) -> float:
        """The time by the store's clock, as its answers tell it: the last full second; by ours, where they do not."""
        try:
            found = email.utils.parsedate_to_datetime(self._tried("", self._date)).timestamp()
        except (CacheError, FileNotFoundError, KeyError, ValueError):
            return time.time()
        self.seconds_ahead = found - time.time()
        return found

    def _date(self) -> str:
        """The header `Date` of an answer."""
        if self.scheme == "gs":
            headers, _ = self._system.call("GET", "b/{}/o", self.name, maxResults=1)
            return str(headers["Date"])
        found = self._system.call_s3("list_objects_v2", Bucket=self.name, MaxKeys=1)
        return str(found["ResponseMetadata"]["HTTPHeaders"]["date"])

    def require(self) -> None:
        """Makes sure that there is such a bucket.

        Raises:
            CacheError: There is none, or it cannot be looked into.
        """
        try:
            if self.scheme == "gs":
                self._tried("", lambda: self._system.call("GET", "b/{}/o", self.name, maxResults=1, json_out=True))
            else:
                self._tried("", lambda: self._system.call_s3("list_objects_v2", Bucket=self.name, MaxKeys=1))
        except FileNotFoundError:
            raise self._no_bucket() from None

    def _changed(self, key: str, request: Callable[[], Any]) -> None:
        try:
            self._tried(key, request)
        except FileNotFoundError:
            raise self._no_bucket() from None

    def _no_bucket(self) -> CacheError:
        return CacheError(f"{self}: there is no such bucket; make it, or give another cache_dir (LAZYLOAD_CACHE)")

    def _tried(self, key: str, request: "Callable[[], Result]") -> "Result":
        """What a request gives; made again while it fails for reasons that may pass."""
        began = time.monotonic()
        if began - self._given_up < _GIVEN_UP_SECONDS:
            raise CacheError(f"{self}/{key} is not asked for: {self} has just been out of reach; call again later")
        for number in range(_TRIES):
            try:
                found = request()
            except CacheError:
                raise
            # Each library has its own errors of networks and credentials, with no common base.
            except Exception as error:
                if not _is_silence(error):
                    self._note_answer()
                if isinstance(error, FileNotFoundError | FileExistsError):
                    raise
                if _is_lasting(error) or number == _TRIES - 1:
                    if isinstance(error, ValueError):
                        raise
                    # Where others were answered meanwhile, it is this request that fails, and not the store.
                    if self._answered < began:
                        self._given_up = time.monotonic()
                    raise self._problem(key, error) from error
                logger.debug("%s/%s: trying again: %s", self, key, error)
            else:
                self._note_answer()
                return found
            time.sleep(_FIRST_WAIT_SECONDS * 2**number * random.uniform(0.5, 1.5))
        raise AssertionError("the last try returns or raises")

    def _note_answer(self) -> None:
        self._given_up, self._answered = -math.inf, time.monotonic()

    def _problem(self, key: str, error: Exception) -> CacheError:
        where = f"{self}/{key}".rstrip("/")
        said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        if _is_refusal(error):
            return CacheAccessError(
                f"{where}: access is denied ({said}); give credentials that may use it "
                f"({_CREDENTIALS[self.scheme]}), or another cache_dir (LAZYLOAD_CACHE)",
            )
        return CacheError(
            f"{where} cannot be reached: {type(error).__name__}: {said}; it was tried again and again: call again "
            "later, and see what is between here and the store"
        )


def _is_refusal(error: BaseException) -> bool:
    """Whether it says that the credentials are missing, or not enough."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return (
        isinstance(error, PermissionError)
        or getattr(error, "code", None) in (401, 403, "401", "403")
        or str(error).startswith("Forbidden")
        or not kinds.isdisjoint(_NO_CREDENTIALS)
    )


def _is_lasting(error: BaseException) -> bool:
    """Whether the same request will fail again."""
    code = getattr(error, "code", None)
    is_client_error = isinstance(code, int) and 400 <= code < 500 and code not in (408, 429)
    return _is_refusal(error) or is_client_error or getattr(error, "errno", None) in _LASTING


def _is_silence(error: BaseException) -> bool:
    """Whether it says that the store has not answered: neither what was asked for, nor with a status."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    # s3fs makes a TimeoutError of an answer, too, which it keeps as the cause.
    is_answer = hasattr(error.__cause__, "response") or type(error).__name__ in _ANSWERED
    return not is_answer and not kinds.isdisjoint(_NO_ANSWER)


def _stored(info: Mapping[str, Any]) -> Stored:
    version = info.get("generation") or info.get("ETag") or info.get("etag") or ""
    return Stored(int(info["size"]), _seconds(info.get("LastModified") or info.get("updated")), str(version))


def _seconds(moment: Any) -> float:
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if not isinstance(moment, datetime):
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
