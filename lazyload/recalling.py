"""The source and the adapter that a call means; or what the cache recalls of it, where nobody can or need be asked."""

import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lazyload.cache.cache import Cache
from lazyload.cache.contents import Contents
from lazyload.cache.entry import Entry
from lazyload.errors import AccessDeniedError, SourceNotFoundError
from lazyload.progress import CallProgress
from lazyload.sources import AdapterFiles, ModelReference, Source, adapter_at, open_adapter, open_source
from lazyload.sources.files import CONFIG
from lazyload.sources.remembered import Open, RememberedSource, Told

logger = logging.getLogger("lazyload")


def source_of(
    reference: ModelReference,
    cache: Cache,
    contents: Contents,
    progress: CallProgress | None,
    told: Told | None = None,
) -> Source | RememberedSource:
    """The source, or what the cache remembers of it.

    That is all that a hit needs of a hub model: where the commit is known, nothing else is asked for, and where the hub
    is out of reach, or does not let this user in, not even that.
    """
    if told is not None:
        return RememberedSource(
            reference.name, told.config, told.identity, told.origin, _reopening(reference, told.identity)
        )
    entries = cache.recall(reference.name, reference.revision) if reference.is_hub_id else []
    entries = [entry for entry in entries if _is_of_place(entry, reference)]
    if not entries:
        try:
            return open_source(reference, contents, progress)
        except SourceNotFoundError as error:
            if outdated := cache.explain_outdated(reference.name):
                raise SourceNotFoundError(f"{error}; {outdated[0]}, which must convert it again") from None
            raise
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


def adapter_of(reference: ModelReference, cache: Cache, model: str, config: str, weights: str) -> AdapterFiles:
    """The adapter, or what the cache remembers of it: a hit needs no more of one on the hub than its commit.

    Args:
        reference: Which one.
        cache: Whose entries say what its revision was.
        model: What it is merged into.
        config: The name of its config.
        weights: The name of its file of weights.
    """
    known = list(_known_adapters(reference, cache, model, config, weights)) if reference.is_hub_id else []
    if not known:
        return open_adapter(reference, config, weights)
    reachable = reference
    try:
        commit = _commit_of(reference, config)
    except (SourceNotFoundError, AccessDeniedError) as error:
        logger.info("using what is cached of %s: %s", reference.name, error)
        reachable, commit = replace(reference, local_files_only=True), None
    for adapter in known:
        if adapter.identity["commit"] == commit:
            return adapter
    try:
        return open_adapter(reachable, config, weights)
    except (SourceNotFoundError, AccessDeniedError):
        return known[0]


def _known_adapters(
    reference: ModelReference, cache: Cache, model: str, config: str, weights: str
) -> Iterator[AdapterFiles]:
    """What the entries of a model say of a revision of a hub adapter that was merged into it, the newest first."""
    for entry in sorted(cache.entries(model), key=lambda entry: entry.created, reverse=True):
        identity, origin = entry.manifest.fields.get("adapter"), entry.manifest.source.get("adapter")
        if not isinstance(identity, Mapping) or not isinstance(origin, Mapping) or "commit" not in identity:
            continue
        at = {"kind": "hub", "id": reference.name, "commit": identity["commit"], **reference.place}
        if identity == at and (reference.revision or "main") in (identity["commit"], origin.get("revision") or "main"):
            # The entry may have been asked for by a branch, and this call asks by the commit: what it makes says so.
            asked = {**origin, "revision": reference.revision}
            yield adapter_at(reference, identity, asked, config, weights)


def _is_of_place(entry: Entry, reference: ModelReference) -> bool:
    """Whether an entry was made of the files of its repository that are meant."""
    identity = entry.manifest.fields["source"]
    return {name: identity[name] for name in ("subfolder", "variant") if identity.get(name)} == reference.place


def _remembered(entry: Entry, reference: ModelReference) -> RememberedSource:
    identity = entry.manifest.fields["source"]
    origin = {**entry.manifest.source, "revision": reference.revision}
    return RememberedSource(entry.model, entry.manifest.config, identity, origin, _reopening(reference, identity))


def _reopening(reference: ModelReference, identity: Mapping[str, Any]) -> Open:
    """What opens the source of an identity: its commit, not the branch, which may have moved on."""
    return functools.partial(open_source, replace(reference, revision=identity["commit"]))


def _commit_of(reference: ModelReference, file: str = CONFIG) -> str | None:
    """The commit that a revision is at, asked for one of its files; None where the hub must not be asked."""
    if reference.commit or reference.local_files_only:
        return reference.commit
    from lazyload.sources.hub import current_commit

    return current_commit(reference, file)
