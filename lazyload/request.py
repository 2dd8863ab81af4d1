"""What a call asks for: its arguments resolved into a source, two layouts and the key of the entry they amount to."""

import functools
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from lazyload import families
from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key
from lazyload.errors import AccessDeniedError, LayoutError, LazyLoadError, SourceNotFoundError, UnsupportedFormatError
from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.formats.nnx import layout as nnx_layout
from lazyload.formats.target import Target, nested
from lazyload.layouts.conversion import Conversion, digest, resolve
from lazyload.layouts.layout import Layout
from lazyload.sources import Source, is_hub_id, open_source
from lazyload.sources.remembered import RememberedSource
from lazyload.storage import Storage

if TYPE_CHECKING:
    import jax
    import jax.typing

    from lazyload.models.decoder import Decoder

logger = logging.getLogger("lazyload")

LayoutOption = str | Layout | MaxText | Target[Any]
"""What a call accepts as its layout."""

ENTRY_FORMAT = 1
"""Raised whenever entries of the same key come to look different on disk."""

_DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}


@dataclass(frozen=True)
class Request:
    """One call's arguments, resolved.

    Attributes:
        source: The checkpoint; its weights have not been looked at.
        family: Its architecture.
        config: What its `config.json` means.
        target: What is wanted.
        dtype: The dtype of floating-point parameters.
        storage: How the entry is stored, every flag concrete.
        cache: Where entries are.
        key: The entry that all of this amounts to.
    """

    source: Source | RememberedSource
    family: Family
    config: Any
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
        return resolve(self.source, self.family.huggingface(self.config), self.target.layout, self.config, self.dtype)


def open_request(
    model: str | os.PathLike[str],
    *,
    revision: str | None,
    dtype: "jax.typing.DTypeLike",
    layout: LayoutOption,
    storage: Storage | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    local_files_only: bool,
    family: Family | None,
) -> Request:
    """Resolves a call's arguments; see `lazyload.from_pretrained` for them and for what is raised."""
    resolved = (storage or Storage()).resolve()
    wanted = _dtype(dtype)
    cache = Cache(cache_dir)
    source = _open_source(model, revision, token, local_files_only, cache)
    try:
        architecture = family or families.find(source.config)
        config = architecture.config(source.config)
        target = _target(layout, architecture, config)
        fields = {
            "source": dict(source.identity),
            "mapping": digest(architecture.huggingface(config), target.layout, config),
            "layout": target.layout.name,
            "container": target.description(),
            "dtype": wanted.name,
            "adapter": None,
            "storage": resolved.fields(),
            "format": ENTRY_FORMAT,
        }
    except LazyLoadError:
        source.close()
        raise
    return Request(source, architecture, config, target, wanted, resolved, cache, Key(fields))


def _open_source(
    model: str | os.PathLike[str], revision: str | None, token: str | bool | None, local_files_only: bool, cache: Cache
) -> Source | RememberedSource:
    """The source, or what the cache remembers of it.

    That is all that a hit needs of a hub model: where the commit is known, nothing else is asked for, and where the hub
    is out of reach, or does not let this user in, not even that.
    """

    def open_at(revision: str | None, offline: bool) -> Source:
        return open_source(model, revision=revision, token=token, local_files_only=offline)

    def remembered(entry: Entry) -> RememberedSource:
        manifest, identity = entry.manifest, entry.manifest.fields["source"]
        # Its commit, not the branch, which may have moved on: the key speaks of this commit.
        reopen = functools.partial(open_at, identity["commit"], local_files_only)
        return RememberedSource(entry.model, manifest.config, identity, manifest.source, reopen)

    name = os.fspath(model)
    recalled = cache.recall(name, revision) if is_hub_id(model) else []
    if not recalled:
        return open_at(revision, local_files_only)
    try:
        commit, offline = _commit_of(name, revision, token, local_files_only), local_files_only
    except (SourceNotFoundError, AccessDeniedError) as error:
        logger.info("using what is cached of %s: %s", name, error)
        commit, offline = None, True
    for entry in recalled:
        if entry.manifest.source.get("commit") == commit:
            return remembered(entry)
    try:
        return open_at(revision, offline)
    except (SourceNotFoundError, AccessDeniedError):
        return remembered(recalled[0])


def _commit_of(model: str, revision: str | None, token: str | bool | None, local_files_only: bool) -> str | None:
    """The commit that a revision is at; None where the hub must not be asked."""
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    if local_files_only:
        return None
    from lazyload.sources.hub import commit_of

    return commit_of(model, revision, token)


def _dtype(dtype: Any) -> np.dtype:
    try:
        name = np.dtype(_DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _DTYPES:
        raise UnsupportedFormatError(f"dtype {name!r} cannot be stored; parameters can be {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _target(layout: "LayoutOption", family: Family, config: Any) -> Target[Any]:
    match layout:
        case Target():
            return layout
        case Layout():
            return Target(layout, nested)
        case MaxText():
            return layout.target(family.name, config)
        case "nnx":
            return Target(nnx_layout(config), _decoder)
    raise LayoutError(
        f"layout {layout!r} is not known; give 'nnx', lazyload.MaxText(...), a lazyload.Layout or a lazyload.Target"
    )


def _decoder(config: Any, arrays: "Mapping[str, jax.Array]") -> "Decoder":
    """The decoder; Flax is imported only where a module is wanted."""
    from lazyload.models.decoder import Decoder
    from lazyload.models.fill import fill

    # Not `nnx.eval_shape`, whose time grows with the square of the number of parameters.
    return fill(Decoder(config, dtype=arrays["embed.embedding"].dtype, rngs=None), arrays)
