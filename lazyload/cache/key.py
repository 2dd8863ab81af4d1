"""The identity of a converted checkpoint: everything that decides the bytes on disk, hashed."""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ENTRY_FORMAT = 3
"""Raised whenever entries of the same key come to look different on disk."""


@dataclass(frozen=True)
class Key:
    """Everything that decides the bytes of an entry.

    Example:
        >>> Key({"dtype": "float32"}).differences(Key({"dtype": "bfloat16"}))
        ['dtype: float32 instead of bfloat16']

    Attributes:
        fields: JSON values by name, possibly nested.
    """

    fields: Mapping[str, Any]

    @functools.cached_property
    def digest(self) -> str:
        """The first 128 bits of the SHA-256 of the canonical JSON, as 32 hexadecimal digits."""
        text = json.dumps(self.fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def differences(self, other: "Key") -> list[str]:
        """How this key differs from another one, a sentence a field."""
        return [f"{name}: {_shown(ours)} instead of {_shown(theirs)}" for name, ours, theirs in self.compared(other)]

    def compared(self, other: "Key") -> list[tuple[str, Any, Any]]:
        """The fields in which this key differs from another one: the name, parts joined by dots, and both values."""
        ours, theirs = dict(_flat(self.fields)), dict(_flat(other.fields))
        return [
            (name, ours.get(name), theirs.get(name))
            for name in dict.fromkeys([*ours, *theirs])
            if ours.get(name) != theirs.get(name)
        ]


def is_digest(name: str) -> bool:
    """Whether a name is the digest of a key."""
    return re.fullmatch("[0-9a-f]{32}", name) is not None


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else name)
    else:
        # As JSON has it, so that a key compares equal to itself read back from a manifest.
        yield prefix, json.loads(json.dumps(value))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    # Digests differ from their start; long lists may not.
    most = 48 if isinstance(value, str) else 400
    return text if len(text) <= most else f"{text[: most - 16]}..."
