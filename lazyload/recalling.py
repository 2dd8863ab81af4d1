"""The source that a call means; or what the cache recalls of it, where nobody needs to be asked, or can be."""

import functools
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.cache.cache import Cache
from lazyload.cache.contents import Contents
from lazyload.cache.entry import Entry
from lazyload.errors import AccessDeniedError, SourceNotFoundError
from lazyload.progress import CallProgress
from lazyload.sources import ModelReference, Source, open_source
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


def _is_of_place(entry: Entry, reference: ModelReference) -> bool:
    """Whether an entry was made of the files of its repository that are meant."""
    identity = entry.manifest.fields["source"]
    return {name: identity[name] for name in ("subfolder", "variant") if identity.get(name)} == reference.place


def _remembered(entry: Entry, reference: ModelReference) -> RememberedSource:
    identity = entry.manifest.fields["source"]
    return RememberedSource(
        entry.model, entry.manifest.config, identity, entry.manifest.source, _reopening(reference, identity)
    )


def _reopening(reference: ModelReference, identity: Mapping[str, Any]) -> Open:
    """What opens the source of an identity: its commit, not the branch, which may have moved on."""
    return functools.partial(open_source, replace(reference, revision=identity["commit"]))


def _commit_of(reference: ModelReference) -> str | None:
    """The commit that a revision is at; None where the hub must not be asked."""
    if reference.commit or reference.local_files_only:
        return reference.commit
    from lazyload.sources.hub import current_commit

    return current_commit(reference)
