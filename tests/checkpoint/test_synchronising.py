"""What is written reaches the disk before anybody is told that it is there."""

import errno
import os
import resource
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support.in_memory import SIZES, Arrays

from lazyload.checkpoint import write as writing
from lazyload.errors import CacheError
from lazyload.layouts.conversion import resolve
from lazyload.layouts.layout import Layout
from lazyload.layouts.lazy import LazyTensor
from lazyload.storage import Storage

STORAGES = [Storage(flag, flag, "none", 4096) for flag in (True, False)]


def tensors() -> dict[str, LazyTensor]:
    array = np.arange(64 * 512).reshape(64, 512).astype(ml_dtypes.bfloat16)
    layout = Layout({"a.matrix": "role : rows columns"})
    sizes = type(SIZES)({"rows": 64, "columns": 512, "layer": 1}, {})
    return resolve(Arrays({"a.matrix": array}), layout, layout, sizes, array.dtype).tensors


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_every_file_and_folder_is_synchronised_once_it_is_complete(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[int, int] = {}

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        sizes[status.st_ino] = status.st_size

    monkeypatch.setattr(os, "fsync", fsync)
    writing.write(tmp_path, tensors(), storage, item="items")
    for path in (tmp_path, *tmp_path.rglob("*")):
        assert sizes[path.stat().st_ino] == path.stat().st_size, path


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_large_files_are_synchronised_while_others_are_written(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threading.Event()
    monkeypatch.setattr(writing, "_SECONDS_BETWEEN_LOOKS", 0.001)
    monkeypatch.setattr(writing, "_LARGE_BYTES", 1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.set())
    synchronised = []

    def advance(nbytes: int) -> None:
        synchronised.append(seen.wait(10))

    writing.write(tmp_path, tensors(), storage, advance=advance)
    assert all(synchronised)


@pytest.mark.parametrize("large", [1, 1 << 30], ids=["meanwhile", "at the end"])
def test_a_disk_that_fails_late_is_an_error(large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "_SECONDS_BETWEEN_LOOKS", 0.001)
    monkeypatch.setattr(writing, "_LARGE_BYTES", large)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CacheError, match="disk is full"):
        writing.write(tmp_path, tensors(), STORAGES[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="files grow as they are written to")
def test_a_disk_without_the_space_is_an_error_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, limits = tensors(), resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(LazyTensor, "read_into", lambda *_: pytest.fail("it was read"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (array["a.matrix"].nbytes - 1, limits[1]))
    try:
        with pytest.raises(CacheError, match="disk is full"):
            writing.write(tmp_path, array, STORAGES[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
