"""A cache that several users share, and one's own behind a shared one that is only read."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import checkpoints

import lazyload

TWO_USERS = """
import os, sys
import jax, lazyload
model, root = sys.argv[1:]
os.umask(0o022)
lazyload.from_pretrained(model, cache_dir=root)
lazyload.convert(model, cache_dir=root, dtype="float16")
# In the root's group, as another user.
os.setgroups([0])
os.setgid(65534)
os.setuid(65534)
lazyload.from_pretrained(model, cache_dir=root)
assert lazyload.last_report().hit
assert lazyload.convert(model, cache_dir=root, dtype="float32").converted
assert not lazyload.convert(model, cache_dir=root, dtype="float32").converted
lazyload.Cache(root).prune(older_than=0)
print("done")
"""


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    """A checkpoint that every user can read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    model = checkpoints.make("llama3_tied", folder)
    for path in (model, *model.rglob("*")):
        path.chmod(0o755)
    yield model
    shutil.rmtree(folder)


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o2775])
def test_a_second_user_of_an_open_root_converts_and_loads(model: Path, mode: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("a file system cannot be mounted here, nor can another user be")
    root = Path(tempfile.mkdtemp(dir=model.parent))
    root.chmod(mode)
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1]), "HOME": str(root)}
    command = [sys.executable, "-c", TWO_USERS, model, root]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout == "done\n", result.stderr
    for folder in root.glob("models--*"):
        assert folder.stat().st_mode & mode & (stat.S_IWGRP | stat.S_IWOTH) == mode & (stat.S_IWGRP | stat.S_IWOTH)


def test_a_shared_cache_is_read_and_one_s_own_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    converted = lazyload.convert(model, cache_dir=shared)
    before = set(shared.rglob("*"))
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{shared}{os.pathsep}{own}")
    lazyload.from_pretrained(model)
    assert lazyload.last_report().hit
    assert lazyload.last_report().path == converted.path
    again = lazyload.convert(model, dtype="float32")
    assert again.converted
    assert again.path.is_relative_to(own)
    cache = lazyload.Cache()
    assert (cache.shared, cache.root) == ((shared,), own)
    assert [entry.key for entry in cache.entries()] == [again.key]
    cache.prune(older_than=0)
    assert set(shared.rglob("*")) - before <= {converted.path.parent / "last-used"}
    assert converted.path.exists()
    (converted.path.parent / "manifest.json").write_text("{")
    assert lazyload.convert(model).path.is_relative_to(own)
