"""Removing from a bucket: what no load can use, and entries that somebody chose; beside `lazyload.cache.removal`.

Nothing can be renamed there, so that who removes a generation removes its manifest first, and looks again for leases. A
reader leaves its lease before it looks whether the manifest is still there: either it sees that it is not, or the lease
is seen, and the manifest is written again, where nobody has published another one meanwhile.
"""

from collections.abc import Iterator, Mapping

from lazyload.bucket.bucket import Stored
from lazyload.bucket.path import BucketPath
from lazyload.cache import heartbeat
from lazyload.cache.entry import named_data
from lazyload.cache.in_bucket import LAST_USED, InBucket
from lazyload.cache.manifest import FILE_NAME, DamagedError, OlderFormatError, UnreadableManifestError
from lazyload.cache.removal import KEPT_SECONDS, Removal


def leftovers(folder: BucketPath) -> list[Removal]:
    """What is in an entry's folder that neither a load nor a conversion can still use."""
    place = InBucket(folder)
    objects, generations = place.children()
    if not objects and not generations:
        return []
    removals = list(_dead_marks(place, objects, generations))
    try:
        named = named_data(folder)
    except DamagedError as error:
        return [*removals, Removal(folder, size(folder), f"damaged: {error}")]
    except OlderFormatError as error:
        in_use = any(place.user_among(objects, data) for data in generations)
        unread = f"made by lazyload {error.version}, which this version does not read"
        return removals if in_use else [*removals, Removal(folder, size(folder), unread)]
    except UnreadableManifestError:
        return removals
    if named and named not in generations:
        return [*removals, Removal(folder, size(folder), f"damaged: its data {named!a} is not there")]
    unpublished = _unpublished(place, objects, generations, named)
    return [*removals, *unpublished, *_replaced(place, objects, generations, named)]


def unfinished(folder: BucketPath) -> list[Removal]:
    """What conversions that did not finish have left in an entry's folder."""
    place = InBucket(folder)
    objects, generations = place.children()
    removals = list(_dead_marks(place, objects, generations))
    try:
        named = named_data(folder)
    except UnreadableManifestError:
        return removals
    return [*removals, *_unpublished(place, objects, generations, named)]


def remove(path: BucketPath, *, force: bool = False) -> str | None:
    """Removes an entry's folder, a data folder, or an object beside one; to be called under the key's lock.

    Args:
        path: What to remove.
        force: Whether to remove also what somebody writes or reads.

    Returns:
        Why it stays, a clause; None if it is gone.

    Raises:
        CacheError: It cannot be removed.
    """
    bucket = path.bucket
    if not path.name.startswith("data-"):
        return _remove_entry(path, force=force)
    if "." in path.name:
        bucket.remove([path.key])
        return None
    return _remove_generation(path, force=force)


def size(path: BucketPath) -> int:
    """What all objects in a folder take, in bytes."""
    return sum(stored.size for stored in path.bucket.below(f"{path.key}/").values())


def _remove_entry(folder: BucketPath, *, force: bool) -> str | None:
    """Removes all generations of an entry; says who uses one that stays."""
    place = InBucket(folder)
    objects, generations = place.children()
    for data in generations:
        if not force and (user := place.user_among(objects, data)):
            return user
    manifest = folder / FILE_NAME
    text = manifest.read_bytes() if FILE_NAME in objects else None
    folder.bucket.remove([manifest.key])
    objects, generations = place.children()
    for data in generations:
        if not force and (user := place.user_among(objects, data)):
            if text is not None:
                folder.bucket.create(manifest.key, text)
            return user
    for data in generations:
        _delete(folder / data)
    folder.bucket.remove((folder / name).key for name in objects if name != FILE_NAME)
    return None


def _remove_generation(data: BucketPath, *, force: bool) -> str | None:
    """Removes a data folder that no manifest names, and its marks."""
    place = InBucket(data.parent)
    if not force and (user := place.user_of(data.name)):
        return user
    _delete(data)
    data.bucket.remove(data.with_name(name).key for name in place.children()[0] if name.startswith(f"{data.name}."))
    objects, generations = place.children()
    if not generations and set(objects) <= {LAST_USED}:
        data.bucket.remove(data.with_name(name).key for name in objects)
    return None


def _delete(data: BucketPath) -> None:
    data.bucket.remove(f"{data.key}/{name}" for name in data.bucket.below(f"{data.key}/"))


def _dead_marks(place: InBucket, objects: Mapping[str, Stored], generations: list[str]) -> Iterator[Removal]:
    marks = {name: stored for name, stored in objects.items() if name.startswith("data-")}
    now = place.now() if marks else 0.0
    for name, stored in marks.items():
        # An owner's mark goes with the data that it tells of.
        is_owner = name.endswith(".owner") and name.removesuffix(".owner") in generations
        if not is_owner and not heartbeat.is_alive(place.folder / name, stored, now):
            yield Removal(place.folder / name, 0, "its process is gone")


def _unpublished(
    place: InBucket, objects: Mapping[str, Stored], generations: list[str], named: str
) -> Iterator[Removal]:
    """What a conversion left that is gone: its data, or beside published data, which the manifest names, its mark."""
    for data in generations:
        owner = f"{data}.owner"
        if owner in objects and not place.user_among(objects, data):
            if data == named:
                yield Removal(place.folder / owner, 0, "its process is gone")
            else:
                yield Removal(place.folder / data, size(place.folder / data), "a conversion that did not finish")


def _replaced(place: InBucket, objects: Mapping[str, Stored], generations: list[str], named: str) -> Iterator[Removal]:
    """Data that a newer conversion replaced, which loads that began before may still read for a while."""
    for data in generations:
        if data == named or f"{data}.owner" in objects or place.user_among(objects, data):
            continue
        stored = place.folder.bucket.below(f"{place.folder.key}/{data}/")
        newest = max([each.time for each in [*stored.values(), *objects.values()]], default=0.0)
        if place.now() - newest > KEPT_SECONDS:
            nbytes = sum(each.size for each in stored.values())
            yield Removal(place.folder / data, nbytes, "replaced by a newer conversion")
