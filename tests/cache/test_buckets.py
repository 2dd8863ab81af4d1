"""What is particular to a bucket: one request publishes, there are no locks, and much can go wrong on the way."""

import importlib
import json
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import buckets, entries
from support.cloud_storage import CloudStorage, Fault

from lazyload.bucket import bucket as requests
from lazyload.bucket.path import BucketPath, bucket_path
from lazyload.cache import bucket_root, heartbeat, liveness
from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key
from lazyload.errors import CacheAccessError, CacheError, EntryRemovedError, LockTimeoutError

ROOT = "gs://bucket/cache"
KEY = Key({"dtype": "bfloat16"})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has requests be tried again at once, by gcsfs, too."""
    retry = pytest.importorskip("gcsfs.retry", reason=f"{buckets.NO_CLIENT}: gcsfs")

    async def at_once(seconds: float) -> None:
        """Does not wait."""

    monkeypatch.setattr(retry, "asyncio", SimpleNamespace(sleep=at_once))
    monkeypatch.setattr(requests, "_FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(requests, "_GIVEN_UP_SECONDS", 0.0)


def publish(root: str = ROOT, key: Key = KEY, content: bytes = b"x") -> Entry:
    with Cache(root).staging(key, "org/model", 1) as staging:
        (staging.path / "chunk").write_bytes(content)
        return staging.publish(arrays={}, nbytes=1, source={}, config={}, seconds=1)


# Publishing


def test_of_many_writers_one_publishes_and_the_others_use_its_entry(cloud: CloudStorage) -> None:
    together = threading.Barrier(16)

    def write(number: int) -> tuple[Entry, BucketPath]:
        with Cache(ROOT).staging(KEY, "org/model", 1) as staging:
            (staging.path / "chunk").write_bytes(b"x" * (number + 1))
            together.wait()
            return staging.publish(arrays={}, nbytes=1, source={}, config={}, seconds=1), staging.path

    with ThreadPoolExecutor(16) as pool:
        published = list(pool.map(write, range(16)))
    (data,) = {entry.data for entry, _ in published}
    (entry,) = Cache(ROOT).entries()
    assert entry.data == data
    assert entry.lost_files() == []
    assert sum(path == data for _, path in published) == 1
    assert Cache(ROOT).prune() == []
    assert {name.split("/")[3] for name in cloud.objects if "data-" in name} == {data.name}, "the others left nothing"


def test_who_did_not_hear_that_it_has_published_has(cloud: CloudStorage) -> None:
    cloud.faults = [Fault("lost", "POST", ".*manifest.json")]
    entry = publish()
    assert Cache(ROOT).entries() == [entry]
    assert cloud.requests["POST"] == 4, "the lost request was made again"


def test_an_entry_is_replaced_by_who_began_when_it_was_there(cloud: CloudStorage) -> None:
    first = publish()
    with first.in_use():
        second = publish(content=b"second")
        assert Cache(ROOT).entries() == [second]
        assert Cache(ROOT).prune() == [], "loads that began before still read the first one"
        assert (first.data / "chunk").read_bytes() == b"x"
    cloud.clock = 2 * 3600
    # Time goes on for what is written from now on: by the clock of the store, the first one is old.
    (removal,) = Cache(ROOT).prune()
    assert (removal.path, removal.reason) == (first.data, "replaced by a newer conversion")
    assert Cache(ROOT).find(KEY) == second


def test_a_store_that_ignores_preconditions_is_found_out_before_any_work(cloud: CloudStorage) -> None:
    cloud.creates_only = False
    with pytest.raises(CacheError, match="writes an object although there is one"), Cache(ROOT).lock(KEY):
        pytest.fail("never begun")
    assert cloud.objects == {}


# Waiting


def holder() -> BucketPath:
    return bucket_path(ROOT) / ".locks" / f"{KEY.digest}.holder"


def mark(**fields: object) -> bytes:
    return json.dumps(json.loads(heartbeat.content_of_mark()) | fields).encode()


def test_a_holder_elsewhere_is_waited_for_while_it_beats(cloud: CloudStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_root, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(bucket_root, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(bucket_root, "_LONGEST_LOOK_SECONDS", 0.05)
    beats = []

    def beat() -> None:
        for _ in range(20):
            holder().write_bytes(mark(boot="another machine", host="pod-7", pid=12))
            beats.append(1)
            time.sleep(0.1)

    thread = threading.Thread(target=beat)
    thread.start()
    time.sleep(0.1)
    with pytest.raises(LockTimeoutError, match="by process 12 on pod-7"), Cache(ROOT).lock(KEY, 1.0):
        pytest.fail("it beats")
    with Cache(ROOT).lock(KEY):
        assert len(beats) == 20, "only when it beats no more"
    thread.join()


def test_a_holder_here_that_is_dead_is_not_waited_for(cloud: CloudStorage, caplog: pytest.LogCaptureFixture) -> None:
    holder().write_bytes(mark(pid=(1 << 22) + 1, started="0"))
    with caplog.at_level(logging.WARNING, "lazyload"), Cache(ROOT).lock(KEY, 0.5):
        pass
    assert "no longer shows that it is converting" in caplog.text
    assert not holder().exists()


def test_a_holder_elsewhere_that_has_not_beaten_for_minutes_is_removed(cloud: CloudStorage) -> None:
    holder().write_bytes(mark(boot="another machine", host="pod-7", pid=12))
    asked = bucket_path(ROOT) / ".teams" / "nonce"
    asked.write_bytes(b"")
    assert Cache(ROOT).prune() == []
    cloud.clock = 200.0
    assert [(removal.path, removal.reason) for removal in Cache(ROOT).prune(dry_run=True)] == [
        (holder(), "its process is gone")
    ]
    with Cache(ROOT).lock(KEY, 0.0):
        assert holder().exists()
    holder().write_bytes(mark(boot="another machine", host="pod-7", pid=12))
    cloud.clock = 2 * 3600
    assert {removal.path for removal in Cache(ROOT).prune()} == {holder(), asked}
    assert cloud.objects == {}


def test_a_lease_beats(cloud: CloudStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.02)
    entry = publish()
    with entry.in_use():
        (lease,) = [name for name in cloud.objects if ".lease-" in name]
        before = cloud.objects[lease].generation
        time.sleep(0.3)
        assert cloud.objects[lease].generation > before
    assert not [name for name in cloud.objects if ".lease-" in name]


@pytest.mark.parametrize("ahead", [-40 * 86400.0, 40 * 86400.0])
def test_clocks_may_differ(cloud: CloudStorage, ahead: float) -> None:
    cloud.clock = ahead
    entry = publish()
    (entry.data.with_name(f"{entry.data.name}.lease-1")).write_bytes(mark(boot="another machine"))
    assert "is reading it" in (entry.user() or "")
    assert Cache(ROOT).prune(everything=True) == [], "its lease is young by the store's clock"
    assert 0 <= Cache(ROOT).entries()[0].last_used <= time.time()
    written = cloud.bytes_in
    assert Cache(ROOT).prune(older_than=60.0, dry_run=True) == [], "it has just been used, by the store's clock"
    assert cloud.bytes_in == written, "a dry run writes nothing"
    cloud.clock = ahead + 2 * 3600
    removed = Cache(ROOT).prune(everything=True)
    assert {removal.path for removal in removed} >= {entry.folder}


# Removing beside loads


def test_pruning_beside_loads_loses_nothing(cloud: CloudStorage) -> None:
    """What `in_use` has let somebody read is there until they have read it."""
    stop, problems, loads = threading.Event(), [], []

    def load() -> None:
        while not stop.is_set():
            cache = Cache(ROOT)
            found = cache.find(KEY, model="org/model")
            if found is None:
                publish()
                continue
            try:
                with found.in_use():
                    time.sleep(0.005)
                    if (found.data / "chunk").read_bytes() != b"x":
                        problems.append("another content")
                    loads.append(1)
            except EntryRemovedError:
                pass
            except FileNotFoundError as error:
                problems.append(str(error))

    def prune() -> None:
        while not stop.is_set():
            Cache(ROOT).prune(everything=True)
            time.sleep(0.05)

    threads = [threading.Thread(target=task) for task in (load, load, load, prune, prune)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while len(loads) < 20 and not problems and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(loads) >= 20


def test_an_entry_that_is_leased_while_it_is_removed_comes_back(
    cloud: CloudStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = publish()
    lease = entry.data.with_name(f"{entry.data.name}.lease-1")
    remove = requests.Bucket.remove

    def leased_meanwhile(bucket: requests.Bucket, keys: object) -> None:
        keys = list(keys)
        remove(bucket, keys)
        if keys == [(entry.folder / "manifest.json").key]:
            lease.write_bytes(heartbeat.content_of_mark())

    monkeypatch.setattr(requests.Bucket, "remove", leased_meanwhile)
    with pytest.raises(CacheError, match="is reading it"):
        Cache(ROOT).remove("org/model")
    assert Cache(ROOT).entries() == [entry]
    assert entry.lost_files() == []


# Bad input


def test_a_bucket_that_is_not_there(cloud: CloudStorage) -> None:
    cache = Cache("gs://buckets/cache")
    for call in (cache.entries, lambda: cache.lock(KEY).__enter__(), cache.prune):
        with pytest.raises(CacheError, match="gs://buckets: there is no such bucket"):
            call()


def test_without_credentials(cloud: CloudStorage) -> None:
    cloud.needs_credentials = True
    with pytest.raises(CacheAccessError, match=r"access is denied.*gcloud auth application-default login"):
        Cache(ROOT).entries()
    with pytest.raises(CacheAccessError, match=r"gs://bucket/cache/\.locks/.*access is denied"), Cache(ROOT).lock(KEY):
        pass


def test_at_amazon_too(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache("s3://no-such-bucket/cache")
    for call in (cache.entries, lambda: cache.lock(KEY).__enter__()):
        with pytest.raises(CacheError, match="s3://no-such-bucket: there is no such bucket"):
            call()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    buckets.forget_connections()
    with pytest.raises(CacheAccessError, match=r"access is denied.*AWS_ACCESS_KEY_ID"):
        Cache(s3_root).entries()


def test_a_bucket_that_is_read_only_gives_hits_only(cloud: CloudStorage) -> None:
    entry = publish()
    cloud.is_read_only = True
    found = Cache(ROOT).find(KEY)
    assert found == entry
    with found.in_use():
        assert (found.data / "chunk").read_bytes() == b"x"
    other = Key({"dtype": "float32"})
    with pytest.raises(CacheAccessError, match="access is denied"), Cache(ROOT).lock(other):
        pass
    with pytest.raises(CacheAccessError, match="access is denied"):
        Cache(ROOT).remove("org/model")


@pytest.mark.parametrize(("scheme", "extra", "module"), [("gs", "gcs", "gcsfs"), ("s3", "s3", "s3fs")])
def test_without_its_client_the_error_names_the_extra(
    cloud: CloudStorage, monkeypatch: pytest.MonkeyPatch, scheme: str, extra: str, module: str
) -> None:
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, scheme, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CacheError, match=rf"needs the extra lazyload\[{extra}\]: `pip install {module}`"):
        Cache(f"{scheme}://bucket/cache").entries()


@pytest.mark.parametrize(
    "url",
    [
        "https://host/cache",
        "gs:/bucket/cache",
        "gs://",
        "gs://bucket/../x",
        "memory://x",
        "gs://bucket/a b",
        "gs://me:secret@bucket/x",
    ],
)
def test_what_is_no_bucket_is_refused(url: str) -> None:
    if url == "gs:/bucket/cache":
        assert str(Cache(url).root) == "gs://bucket/cache", "what pathlib makes of it"
        return
    with pytest.raises(CacheError, match=r"gs://bucket/path") as raised:
        Cache(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("kind", [429, 500, 503, "reset", "truncated", "slow"])
def test_what_passes_is_tried_again(cloud: CloudStorage, kind: int | str) -> None:
    for method in ("GET", "POST", "DELETE"):
        cloud.faults.append(Fault(kind, method, times=2))
    entry = publish()
    cloud.faults.append(Fault(kind, times=3))
    assert Cache(ROOT).find(KEY) == entry
    with entry.in_use():
        assert (entry.data / "chunk").read_bytes() == b"x"
    assert len(Cache(ROOT).remove("org/model")) == 1
    assert cloud.objects == {}


@pytest.mark.parametrize("kind", [429, 500, "reset"])
def test_what_does_not_pass_is_told_with_the_objects_name(cloud: CloudStorage, kind: int | str) -> None:
    entry = publish()
    name = f"{entry.data.key}/chunk"
    cloud.faults = [Fault(kind, name=name, times=1000)]
    with pytest.raises(CacheError, match=rf"gs://bucket/{name} cannot be reached"):
        (entry.data / "chunk").read_bytes()
    cloud.faults = [Fault(kind, "POST", ".*manifest.json", times=1000)]
    with pytest.raises(CacheError, match=r"manifest.json cannot be reached"):
        publish(key=Key({"dtype": "float32"}))


def test_only_what_is_known_to_be_gone_is_lost(cloud: CloudStorage) -> None:
    entry, error = publish(), CacheError("it cannot be read")
    cloud.faults = [Fault(500, ".*", times=1000)]
    assert not entry.is_lost(error)
    assert entry.is_lost(EntryRemovedError("it has just been removed"))
    cloud.faults = []
    assert not entry.is_lost(error)
    del cloud.objects[f"{entry.data.key}/chunk"]
    assert entry.is_lost(error)


def test_a_bucket_that_dies_while_it_is_written_to_is_given_up_once(
    cloud: CloudStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_GIVEN_UP_SECONDS", 60.0)
    cache = Cache(ROOT)
    with (  # noqa: PT012
        pytest.raises(CacheError, match=r"gs://bucket/cache/.*/chunk cannot be reached"),
        cache.lock(KEY),
        cache.staging(KEY, "org/model", 1) as staging,
    ):
        cloud.faults = [Fault("reset", ".*", times=1000)]
        (staging.path / "chunk").write_bytes(b"x")
    assert 1000 - cloud.faults[0].times < 20, "nothing is cleaned up that cannot be"
    with pytest.raises(CacheError, match="gs://bucket has just been out of reach; call again later"):
        cache.entries()
    cloud.faults = []
    with Cache(ROOT).lock(KEY, 0.0):
        assert [publish()] == Cache(ROOT).entries(), "this process does not wait for the mark that it has left"


@pytest.mark.parametrize("kind", [429, 503, "reset"])
def test_one_object_that_fails_keeps_no_other_from_being_written(
    cloud: CloudStorage, monkeypatch: pytest.MonkeyPatch, kind: int | str
) -> None:
    monkeypatch.setattr(requests, "_GIVEN_UP_SECONDS", 60.0)
    cloud.faults = [Fault(kind, name=".*/mark", method="POST", times=1000)]
    folder = bucket_path(ROOT)
    is_over = threading.Event()

    def write_others() -> int:
        number = 0
        while not is_over.is_set():
            number += 1
            (folder / "chunk").write_bytes(b"x")
        return number

    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(write_others)
        try:
            for _ in range(2):
                with pytest.raises(CacheError, match=r"/mark cannot be reached"):
                    (folder / "mark").write_bytes(b"x")
        finally:
            is_over.set()
        assert others.result() > 2
    (folder / "chunk").write_bytes(b"x")


# A disk in front


def test_a_disk_in_front_is_filled_with_what_is_found_behind(
    cloud: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = publish(content=b"x" * 100)
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:{ROOT}")
    cache = Cache()
    assert [str(root) for root in (*cache.shared, cache.root)] == [str(tmp_path), ROOT]
    found = cache.find(KEY)
    assert found == behind
    copied = cache.brought_here(found)
    assert copied.folder == tmp_path / "models--org--model" / KEY.digest
    assert copied.lost_files() == []
    cloud.forget_counts()
    assert Cache().find(KEY) == copied
    assert not cloud.requests
    assert [entry.data for entry in Cache().entries()] == [behind.data], "it is the last root that commands look after"


def test_several_writable_and_read_only_roots(
    cloud: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:{ROOT}")
    with Cache().lock(KEY):
        assert "cache/.locks" in next(iter(cloud.objects))
    cloud.is_read_only = True
    cache = Cache()
    with caplog.at_level(logging.WARNING, "lazyload"), cache.lock(KEY), cache.staging(KEY, "org/model", 1) as staging:
        assert staging.path.is_relative_to(tmp_path), "the last one that can be written to"
    assert "access is denied" in caplog.text


def test_a_bucket_out_of_reach_does_not_keep_the_disk_in_front_from_answering(
    cloud: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:{ROOT}")
    entry = entries.publish(tmp_path)
    cloud.faults = [Fault("reset", ".*", times=1000)]
    cache = Cache()
    assert cache.recall("org/model", None) == [entry]
    assert cache.find(Key(entry.manifest.fields), model="org/model") == entry
    assert len(cloud.faults) == 1, "nobody has asked it"
    assert cloud.faults[0].times == 1000
    with caplog.at_level(logging.WARNING, "lazyload"):
        assert cache.find(KEY) is None
    assert "not looking for a cached checkpoint in gs://bucket/cache" in caplog.text


@pytest.mark.parametrize("rid", ["convert again", "remove", "prune", "discard"])
def test_what_takes_the_place_of_an_entry_takes_that_of_its_copy(
    cloud: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rid: str
) -> None:
    entry = publish()
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:{ROOT}")
    cache = Cache()
    copy = cache.brought_here(cache.find(KEY))
    match rid:
        case "convert again":
            with cache.staging(KEY, "org/model", 1) as staging:
                (staging.path / "chunk").write_bytes(b"new")
                staging.publish(arrays={}, nbytes=3, source={}, config={}, seconds=1)
        case "remove":
            cache.remove("org/model")
        case "prune":
            cache.prune(everything=True)
        case "discard":
            assert cache.discard(entry.folder, lambda: True) is None
    assert not copy.folder.exists()
    found = Cache().find(KEY)
    assert found is None if rid != "convert again" else isinstance(found.folder, BucketPath)


def test_a_copy_says_what_its_entry_says_and_is_no_copy_of_damage(
    cloud: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = publish()
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:{ROOT}")
    name = f"{entry.data.key}/chunk"
    whole = entry.data.bucket.read(name)
    entry.data.bucket.write(name, b"y" * len(whole))
    cache = Cache()
    found = cache.find(KEY)
    assert cache.brought_here(found) == found, "it is used where it is, and found to be damaged there"
    assert not list(tmp_path.rglob("manifest.json"))
    entry.data.bucket.write(name, whole)
    made = cache.brought_here(found).manifest
    assert (made.created, made.writer, made.versions) == tuple(
        getattr(entry.manifest, field) for field in ("created", "writer", "versions")
    )


def test_a_copy_that_cannot_be_looked_at_is_made_again(
    cloud: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:{ROOT}")
    cache = Cache()
    chunk = Path(cache.brought_here(cache.find(KEY)).data) / "chunk"
    chunk.unlink()
    chunk.symlink_to(chunk)
    found = cache.find(KEY)
    assert isinstance(found.folder, BucketPath)
    assert Path(cache.brought_here(found).data, "chunk").read_bytes() == b"x"


def test_a_copy_that_fails_is_not_gone_on_with(
    cloud: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cache(ROOT).staging(KEY, "org/model", 1) as staging:
        for number in range(200):
            (staging.path / f"chunk{number}").write_bytes(b"x")
        staging.publish(arrays={}, nbytes=1, source={}, config={}, seconds=1)
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:{ROOT}")
    cache = Cache()
    found = cache.find(KEY)
    cloud.forget_counts()
    cloud.faults = [Fault("reset", "GET", ".*chunk.*", times=100_000)]
    assert cache.brought_here(found) == found
    assert 100_000 - cloud.faults[0].times < 2000, "200 chunks would be asked for a dozen times each"


def test_a_bucket_out_of_reach_keeps_no_other_root_from_answering(
    cloud: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{ROOT}:{tmp_path}")
    entry = entries.publish(tmp_path)
    cloud.faults = [Fault("reset", ".*", times=100_000)]
    cache = Cache()
    assert cache.recall("org/model", None) == [entry]
    assert cache.visible("org/model") == [entry]
    assert not cache.has_made({"sizes": {"model.safetensors": 3}})


def test_a_mark_that_has_gone_meanwhile_is_of_nobody(cloud: CloudStorage) -> None:
    mark = bucket_path(f"{ROOT}/mark")
    with heartbeat.marked(mark):
        (stored,) = mark.bucket.below(mark.key).values()
    assert not heartbeat.is_alive(mark, stored, stored.time)


@pytest.mark.parametrize("full", [OSError(28, "No space left on device")])
def test_where_the_disk_in_front_is_full_the_bucket_is_read(
    cloud: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: OSError
) -> None:
    publish()
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:{ROOT}")

    def fail(*arguments: object) -> None:
        raise full

    monkeypatch.setattr("lazyload.cache.disk_root.DiskRoot._require_space", fail)
    cache = Cache()
    found = cache.find(KEY)
    assert cache.brought_here(found) == found


def test_listing_costs_few_requests(cloud: CloudStorage) -> None:
    for number in range(5):
        entries.publish(ROOT, f"org/model{number}")
    cloud.forget_counts()
    entries_found, problems = Cache(ROOT).look()
    assert [entry.last_used > 0 for entry in entries_found] == [True] * 5
    assert problems == {}
    assert dict(cloud.requests) == {"GET list": 1 + 5 + 5, "GET content": 5}
