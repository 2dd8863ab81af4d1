"""Repairing the cache: what is damaged is converted again from its source, or removed.

A damaged entry's manifest says of the call that made it all that decides its key, as long as the manifest itself is
sound: so the same call can be made again, and its key tells whether it means the same checkpoint.
"""

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lazyload.arguments import ModelArguments
from lazyload.bucket.path import Folder
from lazyload.cache.cache import Cache
from lazyload.cache.manifest import FILE_NAME, Manifest, UnreadableManifestError, read_manifest
from lazyload.errors import (
    AccessDeniedError,
    CacheError,
    CorruptSourceError,
    LayoutError,
    LazyLoadError,
    SourceNotFoundError,
)
from lazyload.formats import tunix
from lazyload.formats.maxtext import MaxText
from lazyload.loader import cached_checkpoint
from lazyload.options import DECODERS, LayoutOption
from lazyload.planning import planned
from lazyload.progress import ProgressOption
from lazyload.storage import Storage
from lazyload.verification import Verification, verify

_OF_VARIANT = re.compile(r"model\.safetensors\.index\.([\w-]+)\.json|model\.([\w-]+)\.safetensors")
"""See `index_name` and `single_name` of `sources/files.py`."""

Outcome = Literal["sound", "converted", "removed", "kept"]


@dataclass(frozen=True)
class Repair:
    """What became of one entry.

    Attributes:
        verification: What was found.
        outcome: `sound` where nothing was wrong; `converted` again; `removed`, because it could not be; or `kept` as it
            is, because its source cannot be seen now, somebody uses it, or the cache cannot be written to.
        reason: Why it was not converted again; empty where it was, or needed not to be.
    """

    verification: Verification
    outcome: Outcome
    reason: str = ""


def repair(
    *targets: str,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    keep_source: bool = True,
    progress: ProgressOption = None,
    dry_run: bool = False,
) -> list[Repair]:
    """Verifies cached checkpoints, converts damaged ones again, and removes those that cannot be.

    An entry cannot be converted again where its source has changed, where its layout is not one of this library, where
    this version would make another checkpoint of it, and where its manifest is damaged, too. The next load of the model
    converts it anew. Where the source cannot be seen now, which is no proof that it is gone, the entry stays.

    Args:
        targets: Names of models, or the starts of keys (4 characters at least); none for all entries.
        cache_dir: The cache's root; None for `$LAZYLOAD_CACHE`, else `~/.cache/lazyload`.
        token: A hub token.
        keep_source: Whether what is downloaded from the hub stays in the hub's cache.
        progress: How progress is shown; see `from_pretrained`.
        dry_run: Whether to say only what would be done.

    Raises:
        CacheError: A target is not in the cache.

    Example:
        >>> lazyload.repair(cache_dir="/nowhere")
        []
    """
    cache = Cache(cache_dir)
    found = verify(*targets, cache_dir=cache_dir)
    return [_repaired(cache, verification, token, keep_source, progress, dry_run) for verification in found]


def _repaired(
    cache: Cache,
    verification: Verification,
    token: str | bool | None,
    keep_source: bool,
    progress: ProgressOption,
    dry_run: bool,
) -> Repair:
    if not verification.problems:
        return Repair(verification, "sound")
    found = _text(verification.folder)

    def discarded(why: str) -> Repair:
        stays = None if dry_run else cache.discard(verification.folder, lambda: _text(verification.folder) == found)
        return Repair(verification, "kept", f"{stays}; {why}") if stays else Repair(verification, "removed", why)

    if verification.folder.parents[1] != cache.root:
        return discarded("it is a copy, which the next load makes again")
    try:
        manifest = read_manifest(verification.folder / FILE_NAME)
    except UnreadableManifestError as error:
        why = f"its manifest does not say what it was made of: {error}"
    else:
        try:
            arguments = _arguments(manifest, cache, token)
            if not dry_run:
                cached_checkpoint(arguments, force_convert=True, keep_source=keep_source, progress=progress)
                _require_sound(cache, manifest.key)
            return Repair(verification, "converted")
        except (CacheError, SourceNotFoundError, AccessDeniedError) as error:
            return Repair(verification, "kept", str(error))
        except LazyLoadError as error:
            why = str(error)
    return discarded(why)


def _arguments(manifest: Manifest, cache: Cache, token: str | bool | None) -> ModelArguments:
    """The arguments of a conversion that makes the same entry.

    Raises:
        LazyLoadError: There are none.
    """
    fields = manifest.fields
    identity = fields.get("source")
    if fields.get("adapter"):
        raise LayoutError("an adapter was merged into it, and nothing says where that is")
    source = {**manifest.source, **(identity if isinstance(identity, Mapping) else {})}
    arguments = ModelArguments(
        model=manifest.model,
        subfolder=source.get("subfolder"),
        variant=source.get("variant") or _variant(source.get("files", ())),
        dtype=_dtypes(fields.get("dtype")),
        layers=_layers(fields.get("layers")),
        storage=Storage.from_fields(fields.get("storage")),
        cache_dir=cache.root,
        token=token,
        config=fields.get("config"),
    )
    # The branch first: an entry that remembers it is found by those who ask for it, even without the hub.
    revisions = dict.fromkeys((manifest.source.get("revision"), source.get("commit")))
    for layout, revision in itertools.product(_layouts(fields.get("layout"), manifest.arrays), revisions):
        same = replace(arguments, layout=layout, revision=revision)
        if planned(same).key == manifest.key:
            return same
    raise CorruptSourceError(f"{manifest.model} has changed since, or this version converts it in another way")


def _layouts(name: Any, arrays: Mapping[str, Mapping[str, Any]]) -> list[LayoutOption]:
    """What a layout of that name can be.

    Raises:
        LayoutError: It is none of this library's.
    """
    if name in DECODERS:
        return [name]
    if name == tunix.NAME:
        return [tunix.Tunix()]
    plain = next((layout for layout in (MaxText(True), MaxText(False)) if layout.name == name), None)
    if plain is None:
        raise LayoutError(f"its layout {name!r} is none that is known by its name")
    rows = [record["shape"][0] for path, record in arrays.items() if path.endswith("token_embedder.embedding")]
    return [plain, *(MaxText(plain.scan_layers, vocab_size=size) for size in rows)]


def _layers(described: Any) -> range | None:
    """The layers that a key describes.

    Raises:
        LayoutError: It does so in another way than this version.
    """
    match described:
        case None:
            return None
        case [int(first), int(end)]:
            return range(first, end)
    raise LayoutError(f"its manifest speaks of layers {described!r:.100}")


def _dtypes(described: Any) -> Any:
    """The dtype, or the dtypes by pattern, that a key describes."""
    if isinstance(described, str):
        return described
    pairs = (str(line).rpartition("=") for line in described or ())
    return {pattern: dtype for pattern, _, dtype in pairs}


def _variant(files: Iterable[str]) -> str | None:
    """The variant that the names of a folder's files speak of."""
    return next((match[1] or match[2] for name in files if (match := _OF_VARIANT.fullmatch(name))), None)


def _require_sound(cache: Cache, key: str) -> None:
    """Makes sure that what has been converted again is what was written.

    Raises:
        CacheError: It is damaged already.
    """
    for verification in verify(key, cache_dir=cache.root):
        if verification.problems:
            raise CacheError(f"damaged again: {verification.problems[0]}; check the disk")


def _text(folder: Folder) -> bytes | None:
    """The manifest as it is now, by which a folder is known to be the one that was looked at."""
    try:
        return (folder / FILE_NAME).read_bytes()
    except OSError:
        return None
