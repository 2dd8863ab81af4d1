r"""OCDBT: the database of keys and values that TensorStore reads, written around data files that are there.

A database is a folder: `manifest.ocdbt` names the root of a B+ tree, whose leaves hold each key's value, or say in
which file and where it lies. The format allows any file to be referred to, wherever it came from
(https://google.github.io/tensorstore/kvstore/ocdbt, "Storage format"); what stands here was read in TensorStore's
sources (`tensorstore/kvstore/ocdbt/format/`), whose documentation leaves out the byte `manifest_kind`, and is read by
TensorStore 0.1.74 to 0.1.86.

Written by TensorStore itself, values take two more copies in fresh memory and three times as long.

Example:
    >>> encoded_keys([b"a/c/0", b"a/c/1", b"b/c/0"])
    (b'\x04\x00', b'\x05\x01\x05', b'a/c/01b/c/0')
"""

import itertools
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import google_crc32c

_MANIFEST, _BTREE_NODE = 0x0CDB3A2A, 0x0CDB20DE
"""How a manifest, and a node of the tree, begin."""

_MAX_INLINE_VALUE_BYTES = 1024
_MAX_DECODED_NODE_BYTES = 1 << 24
_VERSION_TREE_ARITY_LOG2 = 4
"""What whoever writes to the database next is to keep to."""

_NODE_BYTES = 1 << 20
"""How large a node of the tree becomes, about."""


@dataclass(frozen=True)
class Reference:
    """Where a value lies.

    Attributes:
        file: The file's path in the database's folder.
        offset: Where in the file it begins.
        nbytes: Its size.
    """

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class _Node:
    """A node of the tree that is written.

    Attributes:
        first: The first key below it.
        place: Where it lies.
        keys: How many keys there are below it.
        tree_bytes: The size of it and all nodes below it.
        value_bytes: The size of all values below it that are referred to.
    """

    first: bytes
    place: Reference
    keys: int
    tree_bytes: int
    value_bytes: int


_Item = TypeVar("_Item")
_Place = Callable[[bytes], Reference]
"""Keeps a node, and says where."""


def data_file(number: int) -> str:
    """The path of a data file of those that are written at first; later ones have random names of the same form."""
    return f"d/{number:032x}"


def data_file_after(file: str, count: int) -> str:
    """The path of the data file so many numbers after one.

    Raises:
        ValueError: That one has no number for a name.
    """
    return data_file(int(file.removeprefix("d/"), 16) + count)


def database_files(values: Mapping[bytes, bytes | Reference], file: str) -> dict[str, bytes]:
    """What makes a folder with data files a database: the contents of further files, by path.

    Args:
        values: What each key stands for: bytes, or where they lie in a file of the folder. At least one.
        file: The path of the data file that holds the tree; it must not be there. It is to be written first.
    """
    nodes = bytearray()

    def place(node: bytes) -> Reference:
        nodes.extend(node)
        return Reference(file, len(nodes) - len(node), len(node))

    level = [_leaf(part, place) for part in _parts(sorted(values.items()), _leaf_entry_bytes)]
    height = 0
    while len(level) > 1:
        height += 1
        level = [_interior(part, height, place) for part in _parts(level, _interior_entry_bytes)]
    return {file: bytes(nodes), "manifest.ocdbt": _manifest(level[0], height)}


def encoded_keys(keys: Sequence[bytes]) -> tuple[bytes, bytes, bytes]:
    """Sorted keys: the lengths of what each shares with the one before, of what is left of it, and that itself."""
    shared = [_shared(*pair) for pair in itertools.pairwise(keys)]
    rest = [key[start:] for key, start in zip(keys, [0, *shared], strict=True)] if keys else []
    return _varints(shared), _varints(map(len, rest)), b"".join(rest)


def _shared(first: bytes, second: bytes) -> int:
    """How many bytes two keys begin with in common."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _parts(items: Sequence[_Item], size: Callable[[_Item], int]) -> Iterator[Sequence[_Item]]:
    """Items by nodes: at least two in each but the last, and no more than a node is to hold."""
    start = nbytes = 0
    for number, item in enumerate(items):
        nbytes += size(item)
        if nbytes >= _NODE_BYTES and number > start:
            yield items[start : number + 1]
            start, nbytes = number + 1, 0
    if start < len(items):
        yield items[start:]


def _leaf_entry_bytes(item: tuple[bytes, bytes | Reference]) -> int:
    key, value = item
    return len(key) + (16 if isinstance(value, Reference) else len(value))


def _interior_entry_bytes(node: _Node) -> int:
    return len(node.first) + 32


def _leaf(items: Sequence[tuple[bytes, bytes | Reference]], place: _Place) -> _Node:
    keys = [key for key, _ in items]
    inline = [value for _, value in items if isinstance(value, bytes)]
    places = [value for _, value in items if isinstance(value, Reference)]
    shared, lengths, rest = encoded_keys(keys)
    table, numbers = _file_table(place.file for place in places)
    entries = b"".join(
        (
            shared,
            lengths,
            rest,
            _varints(len(value) if isinstance(value, bytes) else value.nbytes for _, value in items),
            bytes(isinstance(value, Reference) for _, value in items),
            _varints(numbers[place.file] for place in places),
            _varints(place.offset for place in places),
            *inline,
        )
    )
    node = _framed(_BTREE_NODE, b"\0" + table + _varint(len(items)) + entries)
    return _Node(keys[0], place(node), len(items), len(node), sum(place.nbytes for place in places))


def _interior(children: Sequence[_Node], height: int, place: _Place) -> _Node:
    shared, lengths, rest = encoded_keys([child.first for child in children])
    table, numbers = _file_table(child.place.file for child in children)
    entries = b"".join(
        (
            shared,
            lengths,
            # No child leaves a prefix out of its keys.
            bytes(len(children)),
            rest,
            _varints(numbers[child.place.file] for child in children),
            _varints(child.place.offset for child in children),
            _varints(child.place.nbytes for child in children),
            _varints(child.keys for child in children),
            _varints(child.tree_bytes for child in children),
            _varints(child.value_bytes for child in children),
        )
    )
    node = _framed(_BTREE_NODE, bytes([height]) + table + _varint(len(children)) + entries)
    return _Node(
        children[0].first,
        place(node),
        sum(child.keys for child in children),
        len(node) + sum(child.tree_bytes for child in children),
        sum(child.value_bytes for child in children),
    )


def _manifest(root: _Node, height: int) -> bytes:
    """A database of one version; nothing of it is kept in nodes of a version tree."""
    config = b"".join(
        (
            uuid.uuid4().bytes,
            b"\0",  # The kind of manifest: the only one.
            _varint(_MAX_INLINE_VALUE_BYTES),
            _varint(_MAX_DECODED_NODE_BYTES),
            bytes([_VERSION_TREE_ARITY_LOG2]),
            b"\0",  # No compression.
        )
    )
    table, _ = _file_table([root.place.file])
    first_generation, number_of_file = 1, 0
    places = (number_of_file, root.place.offset, root.place.nbytes)
    sizes = (root.keys, root.tree_bytes, root.value_bytes)
    version = b"".join(
        (
            _varints([1, first_generation]),
            bytes([height]),
            _varints([*places, *sizes]),
            struct.pack("<Q", time.time_ns()),
        )
    )
    no_older_versions = _varint(0)
    return _framed(_MANIFEST, config + table + version + no_older_versions)


def _framed(magic: int, body: bytes) -> bytes:
    """A manifest or node around its uncompressed body: magic, size, format version, no compression; CRC-32C."""
    size = 4 + 8 + 2 + len(body) + 4
    content = struct.pack(">I", magic) + struct.pack("<Q", size) + b"\0\0" + body
    return content + struct.pack("<I", google_crc32c.value(content))


def _file_table(files: Iterable[str]) -> tuple[bytes, Mapping[str, int]]:
    """The table of the files that a node refers to, none with a base path; and the number of each in it."""
    paths = sorted(set(files))
    shared, lengths, rest = encoded_keys([path.encode() for path in paths])
    table = _varint(len(paths)) + shared + lengths + bytes(len(paths)) + rest
    return table, {path: number for number, path in enumerate(paths)}


def _varints(numbers: Iterable[int]) -> bytes:
    return b"".join(map(_varint, numbers))


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last one have the highest bit."""
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
