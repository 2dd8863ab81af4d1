"""A folder is its content: copies hit, other bytes miss, and telling which costs nothing where nothing changed."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support import checkpoints

import lazyload
from lazyload.errors import CorruptSourceError, TensorMismatchError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Reads:
    """Counts the bytes that are read of source files, by inode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.of_file: Counter[int] = Counter()
        self._preadv = os.preadv
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = self._preadv(descriptor, buffers, offset)
        self.of_file[os.fstat(descriptor).st_ino] += count
        return count

    @property
    def nbytes(self) -> int:
        return self.of_file.total()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def key(folder: Path, cache: Path) -> str:
    return lazyload.plan(folder, cache_dir=cache).key


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def flip(file: Path, position: int) -> None:
    """Changes a byte, and keeps size and modification time, as `cp -p` and `rsync -t` do."""
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.with_name("copy"), copy_function=shutil.copy))


def moved(folder: Path) -> Path:
    return folder.rename(folder.with_name("moved"))


def stamped(folder: Path) -> Path:
    for file in folder.iterdir():
        os.utime(file, ns=(1, 1))
    return folder


def linked(folder: Path) -> Path:
    link = folder.with_name("link")
    link.symlink_to(folder)
    return link


@pytest.mark.parametrize("change", [copied, moved, stamped, linked])
def test_the_same_content_is_a_hit(change: Callable[[Path], Path], folder: Path, cache: Path) -> None:
    assert lazyload.convert(folder, cache_dir=cache).converted
    assert not lazyload.convert(change(folder), cache_dir=cache).converted


@pytest.mark.parametrize("position", [8, -1])
def test_any_other_byte_is_a_miss(position: int, folder: Path, cache: Path) -> None:
    """A byte of a header, which means nothing there, and one of a tensor."""
    keys = [key(folder, cache)]
    for file in weights(folder):
        if position == 8:
            content = file.read_bytes()
            assert content[8:9] == b"{"
            nbytes = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + nbytes])
            header["__metadata__"] = {"format": "np"}
            text = json.dumps(header).encode()
            file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + nbytes :])
        else:
            flip(file, position)
        keys.append(key(folder, cache))
    assert len(set(keys)) == len(weights(folder)) + 1


def test_changes_in_quick_succession_are_all_seen(folder: Path, cache: Path) -> None:
    keys = []
    for _ in range(10):
        keys.append(key(folder, cache))
        flip(weights(folder)[0], -2)
    assert len(set(keys[0::2])) == len(set(keys[1::2])) == 1
    assert keys[0] != keys[1]


def test_an_unchanged_folder_is_not_read(folder: Path, cache: Path, reads: Reads) -> None:
    assert lazyload.convert(folder, cache_dir=cache).converted
    assert reads.nbytes > sum(file.stat().st_size for file in weights(folder))
    reads.of_file.clear()
    assert not lazyload.convert(folder, cache_dir=cache).converted
    assert reads.nbytes == 0


def test_a_plan_reads_weights_only_where_they_may_have_been_converted(
    original: Path, folder: Path, cache: Path, reads: Reads
) -> None:
    plan = lazyload.plan(folder, cache_dir=cache)
    assert (plan.hit, len(plan.reasons)) == (False, 1)
    nbytes = sum(file.stat().st_size for file in weights(folder))
    assert reads.nbytes < nbytes
    assert not cache.exists()
    assert lazyload.convert(original, cache_dir=cache).key == plan.key
    assert lazyload.plan(folder, cache_dir=cache).hit
    flip(weights(folder)[0], -1)
    changed = lazyload.plan(folder, cache_dir=cache)
    assert not changed.hit
    assert changed.key != plan.key
    assert [json.loads(path.read_text())["folder"] for path in (cache / ".contents").iterdir()] == [str(original)]


def test_only_the_file_that_changed_is_read_again(folder: Path, cache: Path, reads: Reads) -> None:
    lazyload.convert(folder, cache_dir=cache)
    changed, other = weights(folder)
    changed.touch()
    reads.of_file.clear()
    assert not lazyload.convert(folder, cache_dir=cache).converted
    assert reads.of_file[changed.stat().st_ino] >= changed.stat().st_size
    assert reads.of_file[other.stat().st_ino] < other.stat().st_size


def test_variants_in_one_folder_are_remembered_side_by_side(folder: Path, cache: Path, reads: Reads) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in weights(folder):
        shutil.copy(file, folder / f"variant-{file.name}")
    index["weight_map"] = {name: f"variant-{file}" for name, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.other.json").write_text(json.dumps(index))
    for variant in (None, "other"):
        assert lazyload.convert(folder, variant=variant, cache_dir=cache).converted
    reads.of_file.clear()
    for variant in (None, "other"):
        assert not lazyload.convert(folder, variant=variant, cache_dir=cache).converted
    assert reads.nbytes == 0


def test_snapshots_of_the_hub_are_named_by_their_content(original: Path, tmp_path: Path, cache: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/4f0e"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in original.iterdir():
        is_large = file.suffix == ".safetensors"
        blob = blobs / (hashlib.sha256 if is_large else hashlib.sha1)(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    assert lazyload.convert(original, cache_dir=cache).converted
    (cache / ".contents").rename(tmp_path / "nothing remembered")
    with pytest.MonkeyPatch.context() as patch:
        reads = Reads(patch)
        assert not lazyload.convert(snapshot, cache_dir=cache).converted
        assert reads.nbytes == 0


def test_what_is_remembered_is_not_believed_when_it_is_damaged(folder: Path, cache: Path) -> None:
    expected = lazyload.convert(folder, cache_dir=cache).key
    (memory,) = (cache / ".contents").iterdir()
    sound = memory.read_text()
    sha256 = hashlib.sha256(weights(folder)[0].read_bytes()).hexdigest()
    for damaged in ("", "{", "[]", "null", sound[:-20], sound.replace(sha256, "0" * 64)):
        assert damaged != sound
        memory.write_text(damaged)
        assert lazyload.convert(folder, cache_dir=cache).key == expected
        assert memory.read_text() == sound


def test_a_cache_that_cannot_remember_works(folder: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / ".contents").touch()
    assert lazyload.convert(folder, cache_dir=cache).converted
    assert not lazyload.convert(folder, cache_dir=cache).converted


def test_a_shared_cache_remembers_for_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Reads
) -> None:
    lazyload.convert(folder, cache_dir=tmp_path / "shared")
    reads.of_file.clear()
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path / 'shared'}:{tmp_path / 'own'}")
    assert not lazyload.convert(folder).converted
    assert reads.nbytes == 0


def test_prune_forgets_folders_that_are_gone(original: Path, folder: Path, cache: Path) -> None:
    for place in (original, folder):
        lazyload.convert(place, cache_dir=cache)
    assert lazyload.Cache(cache).prune() == []
    shutil.rmtree(folder)
    (removal,) = lazyload.Cache(cache).prune(dry_run=True)
    assert removal.path.exists()
    assert lazyload.Cache(cache).prune() == [removal]
    assert [json.loads(path.read_text())["folder"] for path in (cache / ".contents").iterdir()] == [str(original)]


def test_a_file_that_is_written_while_it_is_read_is_an_error(folder: Path, cache: Path) -> None:
    def meanwhile(progress: lazyload.Progress) -> None:
        assert (progress.stage, progress.model) == ("fetch", str(folder))
        assert 0 <= progress.done <= progress.total == sum(file.stat().st_size for file in weights(folder))
        for file in weights(folder):
            file.touch()

    with pytest.raises(CorruptSourceError, match="is being written; call again when it is complete"):
        lazyload.convert(folder, cache_dir=cache, progress=meanwhile, force_convert=True)


def test_what_cannot_be_converted_is_said_before_the_weights_are_read(folder: Path, cache: Path, reads: Reads) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] - 1}))
    with pytest.raises(TensorMismatchError):
        lazyload.from_pretrained(folder, cache_dir=cache)
    assert reads.nbytes < sum(file.stat().st_size for file in weights(folder))
    assert not (cache / ".contents").exists()


class Versionless(MemoryFileSystem):
    """A file system that tells versions by nothing but sizes."""

    protocol = "versionless"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("versionless://")))

    def info(self, path: str, **options: object) -> dict:
        return {name: value for name, value in super().info(path, **options).items() if name != "created"}


def test_a_file_system_without_versions_is_read(original: Path, cache: Path) -> None:
    fsspec.register_implementation("versionless", Versionless, clobber=True)
    system = fsspec.filesystem("versionless")
    for file in original.iterdir():
        system.pipe_file(f"/model/{file.name}", file.read_bytes())
    assert lazyload.convert("versionless://model", cache_dir=cache).converted
    assert not lazyload.convert("versionless://model", cache_dir=cache).converted
    name = f"/model/{weights(original)[0].name}"
    content = bytearray(system.cat_file(name))
    content[-1] ^= 1
    system.pipe_file(name, bytes(content))
    assert lazyload.convert("versionless://model", cache_dir=cache).converted
