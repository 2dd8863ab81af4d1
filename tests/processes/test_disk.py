"""A disk that fills up in the middle of a conversion."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.large import write_large_llama

import lazyload

# The space is looked at before a conversion begins; here it is gone afterwards.
CONVERT = """
import shutil, sys, lazyload
from collections import namedtuple
shutil.disk_usage = lambda path: namedtuple("Usage", "free")(10**12)
flags = sys.argv[3] == "True"
try:
    lazyload.convert(sys.argv[1], cache_dir=sys.argv[2], storage=lazyload.Storage(flags, flags))
except lazyload.errors.CacheError as error:
    print(error)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("flags", [True, False])
def test_a_full_disk_is_an_error_that_leaves_the_cache_as_it_was(small_disk: Path, tmp_path: Path, flags: bool) -> None:
    model = write_large_llama(tmp_path / "model", gigabytes=0.3)
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    command = [sys.executable, "-c", CONVERT, model, small_disk / "cache", str(flags)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "the disk is full; make space (`lazyload cache ls`" in result.stdout
    assert not [
        path for path in (small_disk / "cache").rglob("*") if path.name.startswith(("data-", "manifest", "models-"))
    ]
    assert lazyload.Cache(small_disk / "cache").entries() == []


def test_too_little_space_is_known_before_anything_is_written(small_disk: Path, tmp_path: Path) -> None:
    model = write_large_llama(tmp_path / "model", gigabytes=0.3)
    with pytest.raises(lazyload.errors.CacheError, match=r"takes 0\.\d\d GB, and 0\.03 GB are free"):
        lazyload.convert(model, cache_dir=small_disk / "cache")
