"""Arrays folded by kind: those of all layers whose paths differ in the layer's number only, and that are alike."""

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from lazyload.display.text import ranges

V = TypeVar("V", bound=Hashable)

_NUMBER = re.compile(r"(?:^|(?<=\.)|(?<=\blayers_))\d+(?=\.|$)")


@dataclass(frozen=True)
class Kind(Generic[V]):
    """Arrays that are alike.

    Attributes:
        name: Their path, with a star for the number of the layer: `layers.*.attn.q_proj.kernel`.
        paths: Their paths.
        numbers: The layers' numbers; none for an array of no layer.
        value: What they have in common.
    """

    name: str
    paths: tuple[str, ...]
    numbers: tuple[int, ...]
    value: V

    @property
    def times(self) -> int:
        """How many there are."""
        return len(self.paths)


def folded(values: Mapping[str, V]) -> list[Kind[V]]:
    """Kinds of arrays in the order of their first ones.

    Args:
        values: By path, what must be equal in arrays of one kind: shape, dtype, where they lie.

    Example:
        >>> [(kind.name, kind.times) for kind in folded({"embed": 1, "layers.0.up": 2, "layers.1.up": 2})]
        [('embed', 1), ('layers.*.up', 2)]
    """
    found: dict[tuple[str, V], list[str]] = {}
    for path, value in values.items():
        found.setdefault((_NUMBER.sub("*", path, count=1), value), []).append(path)
    return [
        Kind(name if len(paths) > 1 else paths[0], tuple(paths), _numbers(paths), value)
        for (name, value), paths in found.items()
    ]


def layer_of(path: str) -> int | None:
    """The number of the layer that an array belongs to; None for none."""
    match = _NUMBER.search(path)
    return int(match[0]) if match else None


def block_of(path: str) -> str:
    """The block of the model that an array belongs to: `attn`, `mlp`, `embed`, ...; all norms are one.

    Example:
        >>> [block_of(path) for path in ("layers.3.attn.q_proj.kernel", "layers.3.attn_norm.scale", "embed.embedding")]
        ['attn', 'norms', 'embed']
    """
    below = path[match.end() + 1 :] if (match := _NUMBER.search(path)) else path
    parts = [part for part in below.split(".") if part not in _AROUND]
    first = parts[0] if parts else below
    return "norms" if "norm" in first else first


_AROUND = ("params", "model", "decoder", "layers", "moe_layers", "dense_layers")
"""Parts of paths that hold all or many blocks."""


def which(kind: Kind[V], kinds: Iterable[Kind[V]]) -> str:
    """Which layers a kind is of, where it is not of all; else empty."""
    layers = {number for other in kinds for number in other.numbers}
    return ranges(kind.numbers) if set(kind.numbers) < layers else ""


def _numbers(paths: Iterable[str]) -> tuple[int, ...]:
    return tuple(number for number in map(layer_of, paths) if number is not None)
