"""Which entries are superseded: a later one of the same model, made for the same call, has taken their place.

The same call gets another entry when the model's branch or the files of its folder have changed, when this library
converts it in another way (the mapping), or when it writes entries in another way (the entry format). The earlier entry
is then found by no call of that kind. What differs in anything else, such as dtype, layout, storage, layers, subfolder
or variant, belongs to other calls, and so does what was asked for by another branch or tag, or by commit.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lazyload.bucket.path import Folder
from lazyload.cache.entry import Listed

_CHANGES: Mapping[str, str] = {"mapping": "mapping", "own_head": "mapping", "format": "entry format"}
"""Fields of a key that change with this library, and what people call the change."""

_VERSIONS: Mapping[str, str] = {"commit": "commit", "files": "contents"}
"""Fields of a source that change with the model."""


@dataclass(frozen=True)
class Superseded:
    """Why an entry is superseded.

    Attributes:
        by: The last entry of the same call.
        changes: What is newer about it: `commit`, `contents`, `mapping`, `entry format`.
    """

    by: Listed
    changes: tuple[str, ...]


def find_superseded(entries: Sequence[Listed]) -> dict[Folder, Superseded]:
    """The entries that others of these supersede, by their folders."""
    of_model = Counter(entry.model for entry in entries)
    several = [entry for entry in entries if of_model[entry.model] > 1]
    ordered = [(_call(entry), entry) for entry in sorted(several, key=lambda entry: entry.created)]
    last = dict(ordered)
    return {
        entry.folder: Superseded(newest, _changes(entry, newest))
        for call, entry in ordered
        if (newest := last[call]) is not entry
    }


def _call(entry: Listed) -> str:
    """What the calls that an entry was made for have in common, now and in the future.

    Who asks for a commit goes on asking for it: then it is the revision.
    """
    fields = {name: value for name, value in entry.manifest.fields.items() if name not in _CHANGES}
    fields["source"] = {name: value for name, value in _source(entry).items() if name not in _VERSIONS}
    return json.dumps([entry.model, entry.revision, fields], sort_keys=True)


def _changes(older: Listed, newer: Listed) -> tuple[str, ...]:
    ours, theirs = older.manifest.fields, newer.manifest.fields
    changed = [name for field, name in _VERSIONS.items() if _source(older).get(field) != _source(newer).get(field)]
    changed += [name for field, name in _CHANGES.items() if ours.get(field) != theirs.get(field)]
    return tuple(dict.fromkeys(changed))


def _source(entry: Listed) -> Mapping[str, Any]:
    source = entry.manifest.fields.get("source")
    return source if isinstance(source, Mapping) else {}
