"""What a call asks for: its arguments resolved into a source, two layouts and the key of the entry they amount to."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from lazyload import families
from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key
from lazyload.errors import AccessDeniedError, LayoutError, SourceNotFoundError, UnsupportedFormatError
from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.formats.nnx import layout as nnx_layout
from lazyload.formats.target import Target, nested
from lazyload.layouts.conversion import Conversion, digest, resolve
from lazyload.layouts.layout import Layout
from lazyload.options import DTypeOption, LayoutOption
from lazyload.sources import ModelReference, Source, open_source
from lazyload.sources.remembered import RememberedSource
from lazyload.storage import Storage

if TYPE_CHECKING:
    import jax

    from lazyload.models.decoder import Decoder

logger = logging.getLogger("lazyload")

ENTRY_FORMAT = 1
"""Raised whenever entries of the same key come to look different on disk."""

_DTYPES: Mapping[str, np.dtype] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}


@dataclass(frozen=True)
class Request:
    """One call's arguments, resolved.

    Attributes:
        source: The checkpoint; its weights have not been looked at.
        family: Its family.
        architecture: What its `config.json` means.
        target: What is wanted.
        dtype: The dtype of floating-point parameters.
        storage: How the entry is stored, every flag concrete.
        cache: Where entries are.
        key: The entry that all of this amounts to.
    """

    source: Source | RememberedSource
    family: Family
    architecture: Any
    target: Target[Any]
    dtype: np.dtype
    storage: Storage
    cache: Cache
    key: Key

    def conversion(self) -> Conversion:
        """The lazy tensors that the entry consists of; looks at the headers of the source's files.

        Raises:
            CorruptSourceError: A file of the checkpoint is malformed.
            TensorMismatchError: The tensors are not those that the family has.
        """
        source_layout = self.family.huggingface(self.architecture)
        return resolve(self.source, source_layout, self.target.layout, self.architecture, self.dtype)


@contextlib.contextmanager
def open_request(
    reference: ModelReference,
    dtype: DTypeOption,
    layout: LayoutOption,
    storage: Storage | None,
    cache_dir: str | os.PathLike[str] | None,
    family: Family | None,
) -> Iterator[Request]:
    """Resolves a call's arguments; see `lazyload.from_pretrained` for them and for what is raised.

    The source is open while the body runs.
    """
    storage = (storage or Storage()).resolve()
    parameter_dtype = _dtype(dtype)
    cache = Cache(cache_dir)
    with contextlib.closing(_open_source(reference, cache)) as source:
        family = family or families.find(source.config)
        architecture = family.config(source.config)
        target = _target(layout, family, architecture)
        fields = {
            "source": dict(source.identity),
            "mapping": digest(family.huggingface(architecture), target.layout, architecture),
            "layout": target.layout.name,
            "container": target.description(),
            "dtype": parameter_dtype.name,
            "adapter": None,
            "storage": storage.fields(),
            "format": ENTRY_FORMAT,
        }
        yield Request(source, family, architecture, target, parameter_dtype, storage, cache, Key(fields))


def _open_source(reference: ModelReference, cache: Cache) -> Source | RememberedSource:
    """The source, or what the cache remembers of it.

    That is all that a hit needs of a hub model: where the commit is known, nothing else is asked for, and where the hub
    is out of reach, or does not let this user in, not even that.
    """
    entries = cache.recall(reference.name, reference.revision) if reference.is_hub_id else []
    if not entries:
        return open_source(reference)
    reachable = reference
    try:
        commit = _commit_of(reference)
    except (SourceNotFoundError, AccessDeniedError) as error:
        logger.info("using what is cached of %s: %s", reference.name, error)
        reachable, commit = replace(reference, local_files_only=True), None
    for entry in entries:
        if entry.manifest.fields["source"]["commit"] == commit:
            return _remembered(entry, reference)
    try:
        return open_source(reachable)
    except (SourceNotFoundError, AccessDeniedError):
        return _remembered(entries[0], reference)


def _remembered(entry: Entry, reference: ModelReference) -> RememberedSource:
    identity = entry.manifest.fields["source"]
    # Its commit, not the branch, which may have moved on: the key speaks of this commit.
    reopen = functools.partial(open_source, replace(reference, revision=identity["commit"]))
    return RememberedSource(entry.model, entry.manifest.config, identity, entry.manifest.source, reopen)


def _commit_of(reference: ModelReference) -> str | None:
    """The commit that a revision is at; None where the hub must not be asked."""
    if reference.commit or reference.local_files_only:
        return reference.commit
    from lazyload.sources.hub import current_commit

    return current_commit(reference)


def _dtype(dtype: DTypeOption) -> np.dtype:
    try:
        name = np.dtype(_DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _DTYPES:
        raise UnsupportedFormatError(f"dtype {name!r} cannot be stored; parameters can be {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _target(layout: LayoutOption, family: Family, architecture: Any) -> Target[Any]:
    match layout:
        case Target():
            return layout
        case Layout():
            return Target(layout, nested)
        case MaxText():
            return layout.target(family.name, architecture)
        case "nnx":
            return Target(nnx_layout(architecture), _decoder)
    raise LayoutError(
        f"layout {layout!r} is not known; give 'nnx', lazyload.MaxText(...), a lazyload.Layout or a lazyload.Target"
    )


def _decoder(architecture: Any, arrays: "Mapping[str, jax.Array]") -> "Decoder":
    """The decoder; Flax is imported only where a module is wanted."""
    from lazyload.models.decoder import Decoder
    from lazyload.models.fill import fill

    # Not `nnx.eval_shape`, whose time grows with the square of the number of parameters.
    return fill(Decoder(architecture, dtype=arrays["embed.embedding"].dtype, rngs=None), arrays)
