"""Roots of caches on loopback: a folder on the disk, a bucket of Cloud Storage's kind, and one of S3's kind."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import cloud_storage
from support.cloud_storage import CloudStorage

NO_CLIENT = "no client of buckets is installed"
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@functools.cache
def running() -> CloudStorage:
    """The Cloud Storage of this process."""
    return cloud_storage.start()


@functools.cache
def running_s3() -> str:
    """The address of an S3 that runs as long as this process."""
    moto = pytest.importorskip("moto.server", reason=f"{NO_CLIENT}: moto")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def forget_connections() -> None:
    """What fsspec keeps of file systems speaks of earlier environments."""
    import fsspec

    for protocol in ("gs", "s3"):
        with contextlib.suppress(ImportError):
            fsspec.get_filesystem_class(protocol).clear_instance_cache()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudStorage]:
    """An empty Cloud Storage with one bucket, which gcsfs, TensorStore and Orbax find."""
    store = running()
    store.reset()
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    # Some of it is read when it is imported.
    pytest.importorskip("gcsfs", reason=f"{NO_CLIENT}: gcsfs")
    forget_connections()
    # The bucket is another one for the library now.
    monkeypatch.setattr("lazyload.cache.bucket_root._tried", set())
    yield store
    store.reset()


@pytest.fixture
def s3_root(monkeypatch: pytest.MonkeyPatch) -> str:
    """The root of a cache in an empty bucket of an S3."""
    pytest.importorskip("s3fs", reason=f"{NO_CLIENT}: s3fs")
    address = running_s3()
    import boto3

    for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": address}).items():
        monkeypatch.setenv(name, value)
    forget_connections()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for found in client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        client.delete_object(Bucket="bucket", Key=found["Key"])
    return "s3://bucket/cache"


@pytest.fixture(params=["disk", "gs", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The root of an empty cache, in each kind of place."""
    match request.param:
        case "gs":
            request.getfixturevalue("cloud")
            return "gs://bucket/cache"
        case "s3":
            return str(request.getfixturevalue("s3_root"))
    return os.fspath(tmp_path / "cache")
