"""Pathways, as far as it goes without its workers: what tells of it, who reads, and what they can see."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support import tiny

import lazyload
from lazyload import storage
from lazyload.checkpoint import pathways
from lazyload.errors import CacheError, StorageError

COLOCATED = ocp.pathways.CheckpointingImpl.COLOCATED_PYTHON


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.make(tmp_path / "model")


@pytest.fixture
def platforms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `pathwaysutils` goes by; devices that there are already stay."""
    before = jax.config.jax_platforms
    jax.devices()
    jax.config.update("jax_platforms", "proxy,cpu")
    yield
    jax.config.update("jax_platforms", before)


@pytest.fixture
def registry() -> Iterator[None]:
    """Puts the handlers back that were registered before."""
    types = (jax.Array, np.ndarray, int, float, bytes, np.number)
    before = {kind: ocp.type_handlers.get_type_handler(kind) for kind in types}
    yield
    for kind, handler in before.items():
        ocp.type_handlers.register_type_handler(kind, handler, override=True)


class Persistence(ocp.type_handlers.ArrayHandler):
    """Stands for the handler that gives workers a path, which is no plain one; remembers that it was asked."""

    asked = 0

    async def deserialize(self, *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        return await super().deserialize(*arguments, **options)


def register_persistence() -> Persistence:
    handler = Persistence()
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    return handler


@pytest.mark.usefixtures("platforms")
def test_what_jax_has_been_told_counts_as_much_as_the_environment(model: Path, tmp_path: Path) -> None:
    resolved = lazyload.Storage().resolve({})
    assert (resolved.ocdbt, resolved.zarr3) == (False, False)
    with pytest.raises(StorageError, match="register_type_handlers"):
        lazyload.convert(model, cache_dir=tmp_path / "cache", storage={"ocdbt": True})
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("platforms")
def test_without_a_handler_a_warning_says_which(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lazyload.from_pretrained(model, cache_dir=tmp_path / "cache")
    assert "ocp.pathways.register_type_handlers()" in caplog.text


@pytest.mark.usefixtures("platforms", "registry")
def test_the_registered_handler_reads(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = register_persistence()
    monkeypatch.setattr(pathways, "_OF_ONE_HOST", set())
    found = lazyload.from_pretrained(model, cache_dir=tmp_path, layout=lazyload.MaxText())
    assert handler.asked
    jax.config.update("jax_platforms", "cpu")
    expected = lazyload.from_pretrained(model, cache_dir=tmp_path, layout=lazyload.MaxText())
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.usefixtures("platforms", "registry")
def test_a_cache_that_workers_cannot_see_is_refused_before_any_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_persistence()
    monkeypatch.setattr(pathways, "_kind_of_file_system", lambda root: "ext4")
    with pytest.raises(CacheError, match=r"on a disk of this host \(ext4\)"):
        lazyload.from_pretrained(model, cache_dir=tmp_path / "cache")
    assert not list(tmp_path.rglob("data-*"))


def test_the_kind_of_a_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw,relatime 0 0\nserver:/x /mnt nfs4 rw 0 0\n/dev/sdb /mnt/weights ext4 ro 0 0\n"
        "tmpfs /mntx tmpfs rw 0 0\ngcsfuse /a\\040bucket fuse.gcsfuse rw 0 0\n"
    )
    kinds = {"/home": "ext4", "/mnt/cache": "nfs4", "/mnt/weights/cache": None, "/mntx": "tmpfs"}
    kinds |= {"/a bucket/cache": "fuse.gcsfuse"}
    assert {path: pathways._kind_of_file_system(Path(path), str(mounts)) for path in kinds} == kinds
    assert pathways._kind_of_file_system(tmp_path, str(tmp_path / "none")) is None


@pytest.mark.usefixtures("registry")
@pytest.mark.filterwarnings("ignore:The 'warn' function:DeprecationWarning")
@pytest.mark.parametrize("flags", [{}, {"ocdbt": True}, {"zarr3": True}, {"ocdbt": True, "zarr3": True}], ids=str)
def test_colocated_python_reads_every_format(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool]
) -> None:
    expected = lazyload.from_pretrained(model, cache_dir=tmp_path, layout=lazyload.MaxText())
    monkeypatch.setenv("USE_PATHWAYS", "1")
    assert storage.is_pathways({"USE_PATHWAYS": "1"})
    ocp.pathways.register_type_handlers(checkpointing_impl=COLOCATED)
    assert pathways.reader() is pathways.Reader.COLOCATED_PYTHON
    found = lazyload.from_pretrained(model, cache_dir=tmp_path, layout=lazyload.MaxText(), storage=flags)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
