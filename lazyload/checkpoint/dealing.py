"""Dealing: which chunks of a checkpoint each of several processes writes.

A chunk is written by one process, and what can only be written as a whole, an object in a bucket, too. Where the source
is far away, chunks that are made of the same rows of a tensor are one process's as well, so that each byte is fetched
once; and processes take stretches of the source, in order, so that files are fetched by few processes, many by one as a
whole, which can check them. Shares of few chunks are too uneven for that: they are dealt by size alone.
"""

import heapq
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.ranges import are_placed, file_of
from lazyload.checkpoint.records import ArrayRecord
from lazyload.checkpoint.sharing import Place, Share
from lazyload.layouts.boxes import Range
from lazyload.layouts.lazy import LazyTensor
from lazyload.storage import Storage

_MOST = 1.03
"""How much of an equal share the largest one may be for the source to be dealt in order."""

_NOWHERE = math.inf, 0


@dataclass
class _Group:
    """Chunks that one process writes.

    Attributes:
        places: Which.
        nbytes: Their bytes.
        cost: The bytes that are read for them.
        rows: Of a source that is far away, the rows of tensors that they are made of.
        position: When the first of these comes in the source: the tensor's position, and the row.
        is_first: Whether the first process writes them, because it writes what is in the same object.
    """

    places: list[Place] = field(default_factory=list)
    nbytes: int = 0
    cost: float = 0
    rows: list[tuple[str, Range]] = field(default_factory=list)
    position: tuple[float, int] = _NOWHERE
    is_first: bool = False


def dealt(
    tensors: Mapping[str, LazyTensor],
    records: Mapping[str, ArrayRecord],
    storage: Storage,
    count: int,
    *,
    in_bucket: bool = False,
    stored_bytes: Callable[[str], int] | None = None,
) -> list[Share]:
    """Deals the chunks of arrays to processes: all of them read about as many bytes. It comes out the same in each.

    Args:
        tensors: The arrays.
        records: What they will be, and the numbers beside them, which the first process writes.
        storage: How they are stored.
        count: How many processes there are.
        in_bucket: Whether they are written to a bucket.
        stored_bytes: How many bytes of the source a tensor takes, if each of them should be read by one process only,
            and in order; None for a source that is near.
    """
    groups = _groups(tensors, records, has_objects=in_bucket and are_placed(storage), stored_bytes=stored_bytes)
    hands = _evenly(groups, count) if stored_bytes is None else _in_order(groups, count)
    if _largest(hands) * count > _MOST * sum(group.cost for group in groups):
        hands = min(hands, _evenly(groups, count), key=_largest)
    return [
        Share(
            index,
            records,
            {place for group in hand for place in group.places},
            sum(group.nbytes for group in hand),
            _rows(hand),
        )
        for index, hand in enumerate(hands)
    ]


def _groups(
    tensors: Mapping[str, LazyTensor],
    records: Mapping[str, ArrayRecord],
    *,
    has_objects: bool,
    stored_bytes: Callable[[str], int] | None,
) -> list[_Group]:
    """The chunks by what keeps them together: the object that they are in, the rows that they are made of."""
    ties = _Ties()
    readers: dict[str, list[tuple[Range, Place]]] = {}
    sizes: dict[Place, int] = {}
    for path, lazy in tensors.items():
        for number, box in enumerate(boxes(lazy.shape, records[path].chunks)):
            place = path, number
            sizes[place] = math.prod(cut.stop - cut.start for cut in box) * lazy.dtype.itemsize
            for name, rows in lazy.rows_of(box).items() if stored_bytes else ():
                readers.setdefault(name, []).append((rows, place))
            if has_objects:
                ties.tie(place, _object(records[path], number))
    read = {name: _tied_by_rows(ties, of) for name, of in readers.items()}
    beside = records.keys() - tensors.keys() if has_objects else set()
    firsts = {ties.root(_object(records[path], 0)) for path in beside}
    groups: dict[Hashable, _Group] = {}
    for place, nbytes in sizes.items():
        root = ties.root(place)
        group = groups.setdefault(root, _Group(is_first=root in firsts))
        group.places.append(place)
        group.nbytes += nbytes
        group.cost += 0 if stored_bytes else nbytes
    if stored_bytes is not None:
        for name, parts in read.items():
            source = tensors[parts[0][1][0]].source
            position, row_bytes = source.position(name), stored_bytes(name) / source.tensors[name].rows
            for rows, place in parts:
                group = groups[ties.root(place)]
                group.rows.append((name, rows))
                group.cost += (rows[1] - rows[0]) * row_bytes
                group.position = min(group.position, (position, rows[0]))
    return list(groups.values())


def _tied_by_rows(ties: "_Ties", readers: Iterable[tuple[Range, Place]]) -> list[tuple[Range, Place]]:
    """Ties the chunks that are made of the same rows of a tensor; returns rows that only one process reads."""
    found: list[tuple[Range, Place]] = []
    for rows, place in sorted(readers):
        if found and rows[0] < found[-1][0][1]:
            before, holder = found[-1]
            ties.tie(holder, place)
            found[-1] = (before[0], max(before[1], rows[1])), holder
        else:
            found.append((rows, place))
    return found


def _rows(hand: Iterable[_Group]) -> dict[str, list[Range]]:
    """The rows of each tensor that a process reads, in order, those that lie together as one range."""
    found: dict[str, list[Range]] = {}
    for name, (start, stop) in sorted(rows for group in hand for rows in group.rows):
        ranges = found.setdefault(name, [])
        if ranges and ranges[-1][1] == start:
            ranges[-1] = ranges[-1][0], stop
        else:
            ranges.append((start, stop))
    return found


def _object(record: ArrayRecord, number: int) -> Hashable:
    return "object", file_of(record, number)[0]


class _Ties:
    """What is tied together: trees, in which all that is tied has one root."""

    def __init__(self) -> None:
        self._parents: dict[Hashable, Hashable] = {}

    def root(self, thing: Hashable) -> Hashable:
        """What stands for all that a thing is tied to."""
        above = self._parents.setdefault(thing, thing)
        while above != thing:
            # The way becomes shorter for whoever comes next.
            self._parents[thing] = thing = self._parents[above]
            above = self._parents[thing]
        return thing

    def tie(self, thing: Hashable, *others: Hashable) -> None:
        """Ties others to a thing."""
        for other in others:
            self._parents[self.root(other)] = self.root(thing)


def _largest(hands: Iterable[Sequence[_Group]]) -> float:
    return max(sum(group.cost for group in hand) for hand in hands)


def _evenly(groups: Iterable[_Group], count: int) -> list[list[_Group]]:
    """Large groups come first, each to whoever has the least."""
    ordered = sorted(groups, key=lambda group: -group.cost)
    hands: list[list[_Group]] = [[] for _ in range(count)]
    hands[0] = [group for group in ordered if group.is_first]
    held = [(sum(group.cost for group in hand), index) for index, hand in enumerate(hands)]
    heapq.heapify(held)
    for group in ordered:
        if not group.is_first:
            cost, index = held[0]
            hands[index].append(group)
            heapq.heapreplace(held, (cost + group.cost, index))
    return hands


def _in_order(groups: Sequence[_Group], count: int) -> list[list[_Group]]:
    """One stretch of the source after the other."""
    hands: list[list[_Group]] = [[] for _ in range(count)]
    total, before = sum(group.cost for group in groups), 0.0
    for group in sorted(groups, key=lambda group: (not group.is_first, group.position)):
        middle = before + group.cost / 2
        index = 0 if group.is_first else min(count - 1, int(middle * count / max(1, total)))
        hands[index].append(group)
        before += group.cost
    return hands
