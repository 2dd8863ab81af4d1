"""Paths of objects in a bucket: what `pathlib` has for a disk, as far as a cache needs it."""

import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lazyload.errors import CacheError

if TYPE_CHECKING:
    from lazyload.bucket.bucket import Bucket

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<rest>.*)", re.DOTALL)
SCHEMES = {"gs": "gs", "gcs": "gs", "s3": "s3"}


@functools.total_ordering
class BucketPath:
    """Where an object is, or what the names of several begin with: a folder, which is there while they are.

    Attributes:
        bucket: The bucket.
        key: The object's name in the bucket; empty for the bucket itself.
    """

    __slots__ = ("bucket", "key")

    bucket: "Bucket"
    key: str

    def __init__(self, bucket: "Bucket", key: str = ""):
        self.bucket = bucket
        self.key = key

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}".rstrip("/")

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __fspath__(self) -> str:
        """The URL, which Orbax takes for a path."""
        return str(self)

    def __hash__(self) -> int:
        return hash(str(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __lt__(self, other: Self) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str) -> "BucketPath":
        return BucketPath(self.bucket, "/".join(part for part in (self.key, name) if part))

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "BucketPath":
        """The folder that it is in."""
        return BucketPath(self.bucket, self.key.rpartition("/")[0])

    @property
    def parents(self) -> list["BucketPath"]:
        """The folders that it is in, the innermost first, and the bucket last."""
        found, path = [], self
        while path.key:
            path = path.parent
            found.append(path)
        return found

    def with_name(self, name: str) -> "BucketPath":
        """What is beside it by another name."""
        return self.parent / name

    def exists(self) -> bool:
        """Whether there is such an object, or any below it."""
        objects, folders = self.bucket.children(f"{self.parent.key}/".lstrip("/"))
        return self.name in objects or self.name in folders

    def read_bytes(self) -> bytes:
        """The object's content.

        Raises:
            FileNotFoundError: There is no such object.
            CacheError: It cannot be read now.
        """
        return self.bucket.read(self.key)

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Writes the object as a whole, whatever its content was.

        Raises:
            CacheError: It cannot be written.
        """
        self.bucket.write(self.key, content)

    def write_text(self, text: str) -> None:
        """The same with a text as its content."""
        self.write_bytes(text.encode())


Folder = Path | BucketPath
"""A folder, or a file in it, on a disk or in a bucket."""


def is_url(text: str) -> bool:
    """Whether a text is a URL, also one in which `pathlib.Path` has made one slash of two."""
    return "://" in text or (_URL.match(text) is not None and not os.path.exists(text))


def bucket_path(url: str) -> BucketPath:
    """The path that a URL names.

    Raises:
        CacheError: It is none of a bucket.
    """
    match = _URL.fullmatch(url)
    # Who writes secrets into a URL does not want to read them in messages.
    shown = re.sub("//[^/]*@", "//...@", url)
    scheme = SCHEMES.get(match["scheme"].lower()) if match else None
    if match is None or scheme is None:
        raise CacheError(
            f"{shown}: a cache is a folder, or in a bucket; give a path, gs://bucket/path or s3://bucket/path"
        )
    name, _, key = match["rest"].lstrip("/").partition("/")
    parts = [part for part in key.split("/") if part]
    if not re.fullmatch(r"[\w.-]+", name) or re.search(r"[\s?#*\\]", url) or {".", ".."} & {name, *parts}:
        raise CacheError(f"{shown} is not the URL of a folder in a bucket; give {scheme}://bucket/path")
    # A cache on a disk does without it.
    from lazyload.bucket.bucket import Bucket

    return BucketPath(Bucket(scheme, name), "/".join(parts))


def kvstore(folder: Folder) -> dict[str, Any]:
    """How TensorStore opens a folder.

    What it reads of the environment is what fsspec's file systems read, but for the address of a store that is not
    Amazon's.
    """
    # No URLs, in which `%41` is an A, and `?`, `#` and `|` end a path.
    if isinstance(folder, Path):
        return {"driver": "file", "path": f"{folder}/"}
    where = {"bucket": folder.bucket.name, "path": f"{folder.key}/"}
    if folder.bucket.scheme == "gs":
        return {"driver": "gcs", **where}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    elsewhere = {"endpoint": endpoint, "aws_region": region or "us-east-1"} if endpoint else {}
    return {"driver": "s3", **where, **elsewhere}
