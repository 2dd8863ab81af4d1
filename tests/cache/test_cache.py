"""The cache: an entry exists when its manifest does, whatever happens to whom; nothing in use is removed."""

import errno
import json
import os
import platform
import shutil
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyload.cache import liveness
from lazyload.cache.cache import Cache
from lazyload.cache.disk import explained
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key
from lazyload.cache.manifest import checksum_of
from lazyload.cli import app
from lazyload.errors import CacheError
from lazyload.verification import verify

STORAGE = {"ocdbt": True, "zarr3": True, "compression": "none", "chunk_bytes": 4096}
FIELDS = {"source": {"kind": "hub", "id": "org/model", "commit": "c0ffee"}, "dtype": "bfloat16", "storage": STORAGE}
KEY = Key(FIELDS)
OTHER = Key({**FIELDS, "source": {"kind": "hub", "id": "org/other", "commit": "c0ffee"}})


def publish(cache: Cache, key: Key = KEY, model: str = "org/model", content: bytes = b"x" * 1000) -> Entry:
    with cache.staging(key, model, len(content)) as staging:
        (staging.path / "array").write_bytes(content)
        return staging.publish(
            arrays={"a": {"shape": [2]}},
            nbytes=len(content),
            source={"id": model, "revision": None, "commit": "c0ffee"},
            config={"model_type": "llama"},
            seconds=0.12345,
        )


def rewritten(path: Path, changes: dict[str, object]) -> None:
    """Changes a manifest as a program would that knows how its checksum is made."""
    content = {**json.loads(path.read_text()), **changes}
    content.pop("checksum")
    path.write_text(json.dumps(content | {"checksum": checksum_of(content)}))


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_published_entry_is_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.find(KEY) is None
    entry = publish(cache)
    assert cache.find(KEY) == entry
    assert cache.entries() == [entry]
    assert entry.folder == tmp_path / "models--org--model" / KEY.digest
    assert (entry.path / "array").read_bytes() == b"x" * 1000
    assert list(entry.folder.glob("*.owner")) == []
    manifest = json.loads((entry.folder / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert manifest["seconds"] == 0.123
    assert manifest["writer"] == {"host": os.uname().nodename, "pid": os.getpid()}
    assert manifest["versions"]["python"] == platform.python_version()
    assert manifest["versions"]["tensorstore"] == metadata.version("tensorstore")


def test_what_is_not_published_is_gone(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(ZeroDivisionError), cache.staging(KEY, "org/model", 10) as staging:
        (staging.path / "array").write_bytes(b"half" * (1 // 0))
    assert files(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, None])
def test_what_is_not_published_is_gone_though_its_removal_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException] | None
) -> None:
    rmtree, calls = shutil.rmtree, []

    def interrupted(path: Path, **options: bool) -> None:
        calls.append(path)
        if len(calls) > 1:
            rmtree(path, **options)
        elif interruption:
            raise interruption

    def convert() -> None:
        with Cache(tmp_path).staging(KEY, "org/model", 10) as staging:
            (staging.path / "array").write_bytes(b"half" * (1 // 0))

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(interruption or ZeroDivisionError):
        convert()
    assert list(tmp_path.iterdir()) == []


def test_two_writers_leave_one_complete_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.staging(KEY, "org/model", 10) as mine:
        (mine.path / "array").write_bytes(b"mine")
        theirs = publish(cache, content=b"theirs")
        published = mine.publish(arrays={}, nbytes=4, source={}, config={}, seconds=1)
    found = cache.find(KEY)
    assert found == published
    assert (found.path / "array").read_bytes() == b"mine"
    assert theirs.path.exists(), "a load that began before may still read it"


JSON = st.recursive(
    st.sampled_from(
        [None, True, 0, -1, 10**400, 1e300, float("nan"), float("inf"), "", "yesterday", "data-", ".", "\0"]
    )
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def paths(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where the values of nested dictionaries are."""
    inner = value.items() if isinstance(value, dict) else ()
    return [*((*path, name) for name, _ in inner), *(p for name, v in inner for p in paths(v, (*path, name)))]


@st.composite
def damaged_manifests(draw: st.DrawFn, text: str) -> bytes:
    """The manifest with a value that is another one, gone, or under another name; or with bytes that are."""
    content = json.loads(text)
    *parents, name = draw(st.sampled_from(paths(content)))
    place = content
    for parent in parents:
        place = place[parent]
    match draw(st.sampled_from(["another", "gone", "renamed", "bytes", "cut"])):
        case "another":
            place[name] = draw(JSON)
        case "gone":
            del place[name]
        case "renamed":
            place[draw(st.text(max_size=8))] = place.pop(name)
        case "bytes":
            damaged = bytearray(text.encode())
            damaged[draw(st.integers(0, len(damaged) - 1))] = draw(st.integers(0, 255))
            return bytes(damaged)
        case "cut":
            return text.encode()[: draw(st.integers(0, len(text)))]
    return json.dumps(content).encode()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_manifest_harms_no_other_entry(tmp_path: Path, data: st.DataObject) -> None:
    cache = Cache(tmp_path)
    entry = cache.find(KEY) or publish(cache)
    sound = cache.find(OTHER) or publish(cache, OTHER, "org/other")
    path = entry.folder / "manifest.json"
    good = path.read_text()
    path.write_bytes(data.draw(damaged_manifests(good)))
    try:
        found = cache.find(KEY)
        assert found is None or found.folder == entry.folder
        assert cache.find(OTHER) == sound
        assert [found for found in cache.entries() if found.folder != entry.folder] == [sound]
        assert sound.folder in {removal.path for removal in cache.prune(max_bytes=0, dry_run=True)}
        assert {removal.path for removal in cache.prune(older_than=3600, dry_run=True)} <= {entry.folder}
        assert cache.select("org/other") == cache.select(OTHER.digest[:8]) == [sound]
        assert cache.recall("org/other", None) == [sound]
        assert cache.recall("org/model", "main") == cache.entries("org/model")
        assert cache.explain(Key({}), "org/model")
        assert sound in [verification.entry for verification in verify(cache_dir=tmp_path)]
        assert len(verify(cache_dir=tmp_path)) == 2
        list_entries(tmp_path)
    finally:
        path.write_text(good)


def list_entries(root: Path) -> None:
    """What `lazyload cache ls` prints, in this process."""
    for options in ([], ["--json"], ["--quiet"]):
        result = CliRunner().invoke(app, ["cache", "ls", "--cache-dir", str(root), *options])
        assert result.exit_code == 0, result.exception


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"format": None},
        {"format": True},
        {"files": {"../array": {"size": 1000}}},
        {"files": {"array": {"size": "1000"}}},
        {"files": None},
        {"data": "../elsewhere"},
        {"created": "yesterday"},
        {"key": "0" * 32},
        {"fields": {"dtype": "float32"}},
        {"data": "data-gone"},
        {"data": "data-empty"},
        {"data": "data-" + "x" * 300},
        {"data": "data-\0"},
        {"data": "data-\ud800"},
        {"item": "items"},
    ],
    ids=lambda change: f"{change!s:.40}",
)
def test_a_manifest_that_does_not_hold_is_a_miss_with_a_reason(
    tmp_path: Path, change: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path)
    path = publish(cache).folder / "manifest.json"
    (path.parent / "data-empty").mkdir()
    rewritten(path, change)
    assert cache.find(KEY) is None
    assert cache.entries() == []
    assert str(path) in caplog.text
    assert publish(cache) == cache.find(KEY)


def test_a_miss_explains_itself_against_the_closest_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.explain(KEY, "org/model") == [f"org/model has not been converted into {tmp_path}"]
    publish(cache)
    publish(cache, Key({**FIELDS, "dtype": "float16", "storage": {**STORAGE, "ocdbt": False}}))
    assert cache.explain(Key({**FIELDS, "dtype": "float32"}), "org/model") == ["dtype: float32 instead of bfloat16"]


def test_a_hub_model_is_recalled_by_branch_and_commit(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    assert (
        cache.recall("org/model", None)
        == cache.recall("org/model", "main")
        == cache.recall("org/model", "c0ffee")
        == [entry]
    )
    assert cache.recall("org/model", "dev") == cache.recall("org/other", None) == []


def test_what_is_recalled_is_read_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    publish(cache)
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), read_bytes(path))[1])
    (recalled,) = cache.recall("org/model", None)
    assert cache.find(KEY) is recalled
    assert [path.name for path in read] == ["manifest.json"]
    changed = publish(Cache(tmp_path))
    assert changed.data != recalled.data
    assert cache.find(KEY) == changed


def test_what_is_recalled_is_the_newest_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number, year in enumerate((2024, 2026, 2025)):
        path = publish(cache, Key({**FIELDS, "n": number})).folder / "manifest.json"
        rewritten(path, {"created": f"{year}-01-01T00:00:00+00:00"})
    assert [entry.manifest.created[:4] for entry in cache.recall("org/model", None)] == ["2026", "2025", "2024"]
    assert [entry.manifest.created[:4] for entry in cache.entries("org/model")] == ["2024", "2025", "2026"]


@pytest.mark.parametrize("model", ["../../etc", "a/b/c", "gs://bucket/some model", "ü" * 300, ".", "models--x", "a--b"])
def test_any_name_is_a_safe_folder(tmp_path: Path, model: str) -> None:
    cache = Cache(tmp_path / "root")
    entry = publish(cache, model=model)
    assert entry.folder.parent.parent == tmp_path / "root"
    assert cache.find(KEY) == entry
    assert [found.model for found in cache.entries()] == [model]


def test_names_that_look_alike_do_not_share_a_folder(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    folders = {
        publish(cache, Key({"n": n}), model).folder.parent for n, model in enumerate(["a/b", "a--b", "a b", "a_b"])
    }
    assert len(folders) == 4


def test_removing_takes_the_entry_and_nothing_else(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    publish(cache)
    kept = publish(cache, Key({"n": 1}), "org/kept")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "models--org--model" / "notes.txt").write_text("mine")
    assert len(cache.remove("org/model", dry_run=True)) == 1
    assert len(cache.entries()) == 2
    (removal,) = cache.remove("org/model")
    assert removal.nbytes > 1000
    assert cache.entries() == [kept]
    assert cache.remove(kept.key[:6])[0].path == kept.folder
    left = {path for path in files(tmp_path) if not path.startswith(".locks/")}
    assert left == {"CACHEDIR.TAG", "notes.txt", "models--org--model/notes.txt"}


def test_nothing_empty_is_left_behind(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    publish(cache)
    cache.remove("org/model")
    assert list(tmp_path.glob("models--*")) == []


def test_a_removal_that_is_cut_short_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    cache.remove("org/model")
    assert list(entry.folder.rglob("array"))
    assert cache.find(KEY) is None
    assert cache.entries() == []


def test_a_key_is_named_by_four_characters_or_more(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    assert cache.select(entry.key[:4]) == cache.select(entry.key, "org/model") == [entry]
    with pytest.raises(CacheError, match="is neither a model nor the start of a key"):
        cache.select(entry.key[:3])


def test_an_unknown_target_removes_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    publish(cache)
    with pytest.raises(CacheError, match=r"'org/other' is neither .* in .*; `lazyload cache ls` shows what there is"):
        cache.remove("org/model", "org/other")
    assert len(cache.entries()) == 1


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    with entry.in_use():
        with pytest.raises(
            CacheError, match=rf"kept {entry.folder}: process {os.getpid()} on .* is reading it.*--force"
        ):
            cache.remove("org/model")
        assert cache.prune(older_than=0, max_bytes=0) == []
        assert cache.find(KEY) == entry
    assert list(entry.folder.glob("*.lease-*")) == []
    assert len(cache.prune(max_bytes=0)) == 1
    with pytest.raises(CacheError, match="has just been removed"), entry.in_use():
        pass


def test_use_is_noted(tmp_path: Path) -> None:
    entry = publish(Cache(tmp_path))
    assert entry.last_used == pytest.approx(time.time(), abs=60), "at first, when it was made"
    used = entry.folder / "last-used"
    for seconds, shown in ((1000, 1000), (2**40, time.time()), (-5, 0)):
        used.touch()
        os.utime(used, (seconds, seconds))
        assert entry.last_used == pytest.approx(shown, abs=60)
    with entry.in_use():
        assert entry.last_used == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("gone", ["manifest", "data"])
def test_an_entry_that_is_being_removed_cannot_be_used(tmp_path: Path, gone: str) -> None:
    entry = publish(Cache(tmp_path))
    if gone == "manifest":
        (entry.folder / "manifest.json").unlink()
    else:
        shutil.rmtree(entry.path)
    with pytest.raises(CacheError, match="has just been removed"), entry.in_use():
        pass
    assert list(entry.folder.glob("lease-*")) == []


def test_what_is_being_written_stays_however_long_it_takes(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.staging(KEY, "org/model", 10) as staging:
        os.utime(staging.path, (0, 0))
        assert cache.prune(older_than=0, max_bytes=0) == []
        (owner,) = staging.folder.glob("*.owner")
        assert liveness.read(owner) is not None
        publish(cache)
        assert staging.path.is_dir(), "another writer of the same key leaves it alone, too"


def test_leaving_is_quiet_where_somebody_has_removed_the_folder(tmp_path: Path) -> None:
    with Cache(tmp_path).staging(KEY, "org/model", 10) as staging:
        shutil.rmtree(staging.folder)
    assert files(tmp_path) == {}


def test_a_manifest_is_on_the_disk_before_anybody_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.fstat(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replaced"), replace(*paths)))
    entry = publish(Cache(tmp_path))
    file, replaced, folder = events
    written = (entry.folder / "manifest.json").stat()
    assert (file.st_ino, file.st_size) == (written.st_ino, written.st_size)
    assert replaced == "replaced"
    assert folder.st_ino == entry.folder.stat().st_ino


def test_pruning_removes_what_a_killed_conversion_left_and_not_what_one_at_work_writes(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    killed = entry.folder / "data-killed"
    killed.mkdir()
    (killed / "array").write_bytes(b"half" * 100)
    owner = killed.with_name("data-killed.owner")
    here = asdict(liveness.this_process())
    owner.write_text(json.dumps(here))
    assert cache.prune() == []
    owner.write_text(json.dumps(here | {"boot": "elsewhere", "pid": 1}))
    assert cache.prune() == []
    owner.write_text(json.dumps(here | {"started": "0"}))
    (removal,) = cache.prune()
    assert removal.path == killed
    assert removal.nbytes == 400
    assert not killed.exists()
    assert not owner.exists()
    assert cache.find(KEY) == entry


def test_the_next_conversion_of_a_key_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    killed = publish(cache).folder / "data-killed"
    killed.mkdir()
    killed.with_name("data-killed.owner").write_text(json.dumps(asdict(liveness.this_process()) | {"started": "0"}))
    with cache.staging(KEY, "org/model", 10):
        assert not killed.exists()


def test_pruning_removes_marks_of_the_dead(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    marks = [entry.folder / name for name in ("lease-1", "manifest.json.1")]
    for mark in marks:
        mark.write_text("{}")
    assert cache.prune() == [], "whose it is cannot be told"
    for mark in marks:
        os.utime(mark, (time.time() - 2 * 86400,) * 2)
    assert {(removal.path, removal.nbytes) for removal in cache.prune()} == {(mark, 0) for mark in marks}
    assert not any(mark.exists() for mark in marks)
    assert cache.entries() == [entry]


def test_what_is_left_behind_goes_before_what_is_of_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache, content=b"x" * 10_000)
    size = sum(len(content) for content in files(tmp_path).values())
    killed = entry.folder / "data-killed"
    killed.mkdir()
    (killed / "array").write_bytes(b"x" * 10_000)
    owner = killed.with_name("data-killed.owner")
    owner.write_text(json.dumps(asdict(liveness.this_process()) | {"started": "0"}))
    size += owner.stat().st_size
    assert [removal.path for removal in cache.prune(max_bytes=size, dry_run=True)] == [killed]
    assert [removal.path for removal in cache.prune(max_bytes=size - 1, dry_run=True)] == [killed, entry.folder]


def test_replaced_data_stays_for_a_while(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old = publish(cache).path
    os.utime(old, (0, 0))
    new = publish(cache).path
    assert cache.prune() == []
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    assert [removal.path for removal in cache.prune()] == [old]
    assert new.exists()


def test_what_is_published_stays_however_old_it_is(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    os.utime(entry.data, (0, 0))
    assert cache.prune() == []
    assert cache.find(KEY) == entry


def test_pruning_by_age_and_size_takes_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entries = [publish(cache, Key({"n": n}), f"org/m{n}", b"x" * 10_000) for n in range(3)]
    for age, entry in zip((30, 10, 20), entries, strict=True):
        used = entry.folder / "last-used"
        used.touch()
        os.utime(used, (time.time() - age * 86400,) * 2)
    assert [r.path for r in cache.prune(max_bytes=15_000, dry_run=True)] == [entries[0].folder, entries[2].folder]
    (removal,) = cache.prune(older_than=25 * 86400)
    assert removal.reason == "not used for 30.0 days"
    assert len(cache.entries()) == 2


def test_links_out_of_the_cache_are_not_followed(tmp_path: Path) -> None:
    outside = Cache(tmp_path / "outside")
    entry = publish(outside)
    cache = Cache(tmp_path / "cache")
    (cache.root / "models--org--model").mkdir(parents=True)
    (cache.root / "models--org--model" / KEY.digest).symlink_to(entry.folder)
    assert cache.entries() == []
    assert cache.prune(max_bytes=0) == []
    assert entry.path.exists()


def test_a_cache_that_cannot_be_written_to_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    with pytest.raises(CacheError, match=r"file/cache.*LAZYLOAD_CACHE"), cache.lock(KEY):
        pass
    assert cache.find(KEY) is None
    assert cache.entries() == []


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (OSError(errno.ENOSPC, "full"), r"{root}: full; make space .*LAZYLOAD_CACHE"),
        (OSError(errno.ENOSPC, "full", "{root}/models--x/file"), r"{root}/models--x/file: full; make space"),
        (OSError(errno.EDQUOT, "quota", "{root}"), r"{root}: quota; make space"),
        (OSError(errno.EACCES, "denied", "{root}/file"), r"{root}/file: denied; check who may write there or"),
        (OSError(errno.EIO, "broken"), r"{root}: broken; check the disk or"),
        (OSError(errno.ESTALE, "stale"), r"{root}: stale; check the disk or"),
        (CacheError("as it is"), "^as it is$"),
    ],
)
def test_what_goes_wrong_while_writing_names_the_file_and_the_remedy(
    tmp_path: Path, error: OSError, complaint: str
) -> None:
    if error.filename:
        error.filename = error.filename.format(root=tmp_path)
    with pytest.raises(CacheError, match=complaint.format(root=tmp_path)), explained(tmp_path):
        raise error


def test_a_disk_that_is_too_small_is_an_error_before_any_work(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with (
        pytest.raises(CacheError, match=r"takes 1000000000\.00 GB, and .* are free"),
        cache.staging(KEY, "org/model", 10**18),
    ):
        pass
    assert files(tmp_path) == {}


def test_the_root_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYLOAD_CACHE", str(tmp_path / "one"))
    assert Cache().root == tmp_path / "one"
    monkeypatch.delenv("LAZYLOAD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    assert Cache().root == tmp_path / "two" / "lazyload"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Cache().root == Path("~/.cache/lazyload").expanduser()
    monkeypatch.setenv("LAZYLOAD_CACHE", "gs://bucket/cache/")
    assert str(Cache().root) == "gs://bucket/cache"
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:s3://bucket/cache:gs://bucket")
    assert [str(root) for root in (*Cache().shared, Cache().root)] == [
        str(tmp_path),
        "s3://bucket/cache",
        "gs://bucket",
    ]


def test_the_root_carries_the_tag_that_backups_look_for(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "not" / "there")
    for _ in range(2):
        with cache.lock(KEY):
            pass
    assert (cache.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
