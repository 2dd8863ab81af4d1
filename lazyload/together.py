"""Together: the processes of a mesh open one request, and use entries of the same content.

The first process asks the hub which commit is meant, and the others take its answer. Where the cache is shared, it also
decides between hit and miss, and converts; the others wait for its entry. Where the cache is not shared, which is found
out and not believed, each process sees for itself. Before anything is restored, all entries are compared.

Where the cache is shared, all take part in a conversion: each reads a part of the source, writes the chunks made of it
into the folder that the first one has made, and tells it their checksums; that one publishes. The hub is asked by the
first one alone, which hands on where the weights lie.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from lazyload.arguments import ModelArguments
from lazyload.bucket.path import Folder
from lazyload.cache import nonce
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key
from lazyload.display import text
from lazyload.errors import AccessDeniedError, CacheError, PeerError, SourceNotFoundError
from lazyload.obtaining import Manner, Obtained, Sharing, Use, obtain, take_part
from lazyload.placement import Placement
from lazyload.progress import CallProgress
from lazyload.request import Request, open_request
from lazyload.restoring import Restored
from lazyload.sources import AdapterFiles, ModelReference, adapter_at
from lazyload.sources.files import NotAsReadError
from lazyload.sources.remembered import Told
from lazyload.team.call import Call

if TYPE_CHECKING:
    from lazyload.checkpoint.sharing import Written
    from lazyload.layouts.conversion import Conversion
    from lazyload.layouts.source import Box

Used = TypeVar("Used")

logger = logging.getLogger("lazyload")


@contextlib.contextmanager
def open_together(call: Call, arguments: ModelArguments, progress: CallProgress) -> Iterator[Request]:
    """The request of a call, the same in all processes that make it.

    Args:
        call: The call.
        arguments: Those of this process.
        progress: The call's progress.

    Raises:
        LazyLoadError: What keeps the request from being opened, in any process; or the processes do not mean the same.
    """
    if call.is_alone:
        with open_request(arguments, progress) as request:
            yield request
    elif call.leads:
        with open_request(arguments, progress) as request:
            _speak(call, request)
            yield request
    else:
        said = call.hear("open")
        if differences := _differences_of_references(arguments, said):
            if not call.team.is_member:
                raise PeerError(f"process {call.team.first} loads something else: {'; '.join(differences)}")
            call.answer("open", differences)
        told, adapter = Told(**said["hub"]) if said["hub"] else None, _adapter_of_first(arguments, said)
        with open_request(arguments, progress, told=told, adapter=adapter) as request:
            if call.team.is_member:
                _compare(call, request, said)
            yield request


def _speak(call: Call, request: Request) -> None:
    """Says what is about to be loaded, and waits until all others mean the same."""
    reference, source = request.arguments.reference, request.source
    hub = {"config": dict(source.config), "identity": dict(source.identity), "origin": dict(source.origin)}
    call.say(
        "open",
        {
            "model": reference.name if reference.is_hub_id else None,
            "revision": reference.revision,
            "hub": hub if reference.is_hub_id else None,
            "adapter": _said_of_adapter(request),
            "files": source.status.get("files"),
            "identity": dict(source.identity) if source.is_identified else None,
            "fields": dict(request.fields),
        },
    )
    if not source.is_identified:
        have_the_same = call.hear_others("open.files").values()
        call.say("open.identity", None if all(have_the_same) else dict(source.identity))
    call.conclude("open")


def _said_of_adapter(request: Request) -> dict[str, Any] | None:
    """What there is to say of the adapter; None where there is none."""
    reference, adapter = request.arguments.adapter_reference, request.adapter or request.kept_apart
    if reference is None or adapter is None:
        return None
    hub = {"identity": dict(adapter.identity), "origin": dict(adapter.origin)}
    return {
        "model": reference.name if reference.is_hub_id else None,
        "revision": reference.revision,
        "hub": hub if reference.is_hub_id else None,
    }


def _adapter_of_first(arguments: ModelArguments, said: Mapping[str, Any]) -> AdapterFiles | None:
    """The adapter of the hub that the first process has resolved; None where there is none."""
    reference, hub = arguments.adapter_reference, (said["adapter"] or {}).get("hub")
    if reference is None or hub is None:
        return None
    from lazyload.formats import peft

    return adapter_at(reference, hub["identity"], hub["origin"], peft.CONFIG, peft.WEIGHTS)


def _differences_of_references(arguments: ModelArguments, said: Mapping[str, Any]) -> list[str]:
    """How model and adapter differ from the first process's.

    Whether there is an adapter, members compare later: with the fields of the key, or, where it is not merged, with
    what else decides what is built (`place_together`).
    """
    differences = _differences_of_reference(arguments.reference, said)
    if arguments.adapter_reference is not None and said["adapter"] is not None:
        of_adapter = _differences_of_reference(arguments.adapter_reference, said["adapter"])
        differences += [f"adapter.{difference}" for difference in of_adapter]
    return differences


def _differences_of_reference(reference: ModelReference, said: Mapping[str, Any]) -> list[str]:
    """How the hub model or adapter that this process means differs from the first one's; a folder may have any name."""
    name = reference.name if reference.is_hub_id else None
    if name != said["model"]:
        return [f"model: {reference.name} instead of {said['model'] or 'a folder or URL'}"]
    if name and reference.revision not in (said["revision"], said["hub"]["identity"].get("commit")):
        return [f"revision: {reference.revision} instead of {said['revision']}"]
    if not name:
        return []
    theirs = {part: said["hub"]["identity"].get(part) for part in ("subfolder", "variant")}
    return Key({part: reference.place.get(part) for part in theirs}).differences(Key(theirs))


def _compare(call: Call, request: Request, said: Mapping[str, Any]) -> None:
    """Compares what this process is about to load with what the first one has said.

    The same files, seen from several hosts, have the same status; then none needs to be read for that. Of copies the
    content is compared.
    """
    source = request.source
    has_the_same = said["files"] is not None and source.status.get("files") == said["files"]
    identity = said["identity"]
    if identity is None:
        call.say("open.files", has_the_same)
        identity = call.hear("open.identity")
    ours, theirs = dict(request.fields), dict(said["fields"])
    if identity is not None:
        if has_the_same:
            source.know(identity)
        ours["source"], theirs["source"] = source.identity, identity
    call.answer("open", Key(ours).differences(Key(theirs)))


def obtain_together(request: Request, use: Use[Used], manner: Manner, call: Call) -> Obtained[Used]:
    """Uses the entry of a request, which has the same content in all processes; see `lazyload.obtaining.obtain`.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`, in any process.
    """
    if call.is_alone:
        return obtain(request, use, manner)
    root = request.cache.root
    if call.leads:
        with nonce.written(root) as name:
            call.say("cache", name)
            shared = call.hear_others("cache.seen")
        apart = 1 + sum(not sees for sees in shared.values())
        agreed = _Agreed(use, call, apart)
        return obtain(request, agreed, replace(manner, shared=agreed.sharing))
    sees = nonce.is_visible(root, call.hear("cache"))
    call.say("cache.seen", sees)
    if sees:
        if staging := call.hear("staging"):
            call.say("share", _share_taken(request, manner, call, staging))
        request.source.know(call.hear("entry")["fields"]["source"])
        manner = replace(manner, force=False)
    return obtain(request, _Agreed(use, call), manner)


def _share_taken(request: Request, manner: Manner, call: Call, staging: Mapping[str, Any]) -> Mapping[str, Any]:
    """Converts this process's share into the first one's folder, and returns what to say of it.

    Nothing is written where this process may not read what the first one may, or has read something else; then the
    first one is told what it has found out.
    """
    folder = request.cache.root
    for name in staging["folder"]:
        folder /= name
    try:
        members = call.team.members
        written = take_part(request, manner, folder, members.index(call.team.me), len(members), staging["answers"])
        return {"written": written.as_json(), "versions": request.source.versions()}
    except (SourceNotFoundError, AccessDeniedError, NotAsReadError) as error:
        logger.warning("%s: this process's share is left to the first one: %s", request.source.name, error)
        return {"written": None, "unequal": request.source.unequal}
    except CacheError:
        # The folder is gone once the first process has given up.
        call.await_failure()
        raise


class _Agreed:
    """What a call does with its entry, once the entries of all processes are the same; see `lazyload.obtaining.Use`."""

    def __init__(self, use: Use[Used], call: Call, apart: int = 1):
        """`apart` is how many caches there are, where this process speaks for all of them."""
        self._use = use
        self._call = call
        self._apart = apart
        self._has_spoken = not call.leads

    def sharing(self, request: Request) -> Sharing | None:
        """Has all processes take part in a conversion, once, where each of them sees source and cache."""
        if self._apart > 1 or self._has_spoken or not request.source.is_for_all:
            return None

        def begin(folder: Folder, answers: Mapping[str, Any]) -> None:
            names = [folder.parent.parent.name, folder.parent.name, folder.name]
            self._call.say("staging", {"folder": names, "answers": answers})

        def gather() -> "list[Written]":
            # A hit does without it.
            from lazyload.checkpoint.sharing import Written

            shares = self._call.hear_others("share")
            if unable := [process for process, share in shares.items() if share["written"] is None]:
                # So that they are not converted once more as what they only seem to be.
                for process in unable:
                    request.source.know_unequal(shares[process]["unequal"])
                raise NotAsReadError(
                    f"{request.source.name} cannot be read by processes {unable}, and is converted by process "
                    f"{self._call.team.me} alone"
                )
            request.source.compare_versions(share["versions"] for share in shares.values())
            return [Written.from_json(share["written"]) for share in shares.values()]

        self._has_spoken = True
        return Sharing(len(self._call.team.members), begin, gather)

    def begin(self, request: Request, conversion: "Conversion") -> None:
        """Says what a shared cache would save."""
        if self._apart > 1:
            nbytes = sum(lazy.nbytes for lazy in conversion.tensors.values())
            logger.warning(
                "%s is not shared by all processes: %s is converted %d times; a cache that all of them see would save "
                "%s of writing, and as much reading of the source",
                request.cache.root,
                request.source.name,
                self._apart,
                text.size((self._apart - 1) * nbytes),
            )
        if self._apart > 1 or not self._call.leads:
            # Where others restore what this process converts, all of them share the reading.
            self._use.begin(request, conversion)

    def take(self, path: str, box: "Box", values: np.ndarray) -> None:
        """Passes a box on."""
        self._use.take(path, box, values)

    def of(self, entry: Entry) -> Any:
        """Uses the entry.

        Raises:
            PeerError: It is not what the other processes have, or is lost, which they are not told before they use it.
        """
        if not self._has_spoken:
            self._call.say("staging", None)
            self._has_spoken = True
        self._call.agree("entry", _content(entry))
        try:
            return self._use.of(entry)
        except CacheError as error:
            if not entry.is_lost(error):
                raise
            # The others use it together with this process, which cannot convert and begin again alone.
            raise PeerError(f"{error}; call again in all processes") from error


def _content(entry: Entry) -> dict[str, Any]:
    """What must be the same in all processes."""
    arrays = {
        path: {name: record.get(name) for name in ("dtype", "checksum")}
        for path, record in entry.manifest.arrays.items()
    }
    return {"fields": dict(entry.manifest.fields), "arrays": arrays}


def place_together(call: Call, request: Request, placement: Placement, built: Mapping[str, Any]) -> None:
    """Makes sure that all processes are about to place the arrays alike, and to build the same of them.

    Args:
        call: The call.
        request: What it loads.
        placement: Where that goes.
        built: What decides what is built, beside the request.

    Raises:
        LazyLoadError: One of them is not.
    """
    if call.is_alone or not call.team.is_member:
        return
    specs = {path: str(place) for path, place in placement.of(request).items()}
    digest = hashlib.sha256(json.dumps(specs, sort_keys=True).encode()).hexdigest()
    call.agree("place", {"mesh": placement.mesh_shape, "shardings": digest, **built})


def arrays_elsewhere(request: Request, placement: Placement, call: Call) -> Restored:
    """The arrays of a mesh of which this process has no device: without shards.

    Raises:
        LazyLoadError: What the processes of the mesh have raised.
    """
    if call.is_alone:
        stored = request.settled()
        dtypes = {path: lazy.dtype.name for path, lazy in stored.conversion().tensors.items()}
    else:
        arrays = call.hear("entry")["arrays"]
        stored = request.as_stored(arrays)
        dtypes = {path: array["dtype"] for path, array in arrays.items()}
    places = placement.of(stored)
    return Restored(
        stored,
        {
            path: jax.make_array_from_single_device_arrays(
                stored.axes[path][0], places[path], [], dtype=jax.numpy.dtype(dtype)
            )
            for path, dtype in dtypes.items()
        },
    )
