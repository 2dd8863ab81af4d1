"""Dealing: which chunks of a checkpoint each of several processes writes.

A chunk is written by one process, and what can only be written as a whole, an object in a bucket, too. Where the source
is far away, what is made of one tensor is one process's as well, so that each byte is fetched once; and processes take
stretches of the source, in order, so that most files are fetched by one process as a whole, and can be checked.
"""

import heapq
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.ranges import are_placed, file_of
from lazyload.checkpoint.records import ArrayRecord
from lazyload.checkpoint.sharing import Place, Share
from lazyload.layouts.lazy import LazyTensor
from lazyload.storage import Storage


@dataclass
class _Group:
    """Chunks that one process writes.

    Attributes:
        places: Which.
        nbytes: Their bytes.
        position: When the first byte of what they are made of comes in the source, where it is far away.
        is_first: Whether the first process writes them, because it writes what is in the same object.
    """

    places: list[Place] = field(default_factory=list)
    nbytes: int = 0
    position: float = math.inf
    is_first: bool = False


def dealt(
    tensors: Mapping[str, LazyTensor],
    records: Mapping[str, ArrayRecord],
    storage: Storage,
    count: int,
    *,
    in_bucket: bool = False,
    is_far: bool = False,
) -> list[Share]:
    """Deals the chunks of arrays to processes: all of them get about as many bytes. It comes out the same in each.

    Args:
        tensors: The arrays.
        records: What they will be, and the numbers beside them, which the first process writes.
        storage: How they are stored.
        count: How many processes there are.
        in_bucket: Whether they are written to a bucket.
        is_far: Whether what is read of the source should be read by one process only, and in order.
    """
    groups = _groups(tensors, records, has_objects=in_bucket and are_placed(storage), is_far=is_far)
    hands = _in_order(groups, count) if is_far else _evenly(groups, count)
    return [
        Share(index, records, {place for group in hand for place in group.places}, sum(group.nbytes for group in hand))
        for index, hand in enumerate(hands)
    ]


def _groups(
    tensors: Mapping[str, LazyTensor], records: Mapping[str, ArrayRecord], *, has_objects: bool, is_far: bool
) -> list[_Group]:
    """The chunks by what keeps them together: the object that they are in, the tensors that they are made of."""
    ties = _Ties()
    sources: dict[Place, tuple[str, ...]] = {}
    sizes: dict[Place, int] = {}
    for path, lazy in tensors.items():
        for number, box in enumerate(boxes(lazy.shape, records[path].chunks)):
            place = path, number
            sizes[place] = math.prod(cut.stop - cut.start for cut in box) * lazy.dtype.itemsize
            sources[place] = lazy.sources_of(box) if is_far else ()
            ties.tie(place, *(("tensor", name) for name in sources[place]))
            if has_objects:
                ties.tie(place, _object(records[path], number))
    beside = records.keys() - tensors.keys() if has_objects else set()
    firsts = {ties.root(_object(records[path], 0)) for path in beside}
    groups: dict[Hashable, _Group] = {}
    for place, nbytes in sizes.items():
        root = ties.root(place)
        group = groups.setdefault(root, _Group(is_first=root in firsts))
        group.places.append(place)
        group.nbytes += nbytes
        positions = map(tensors[place[0]].source.position, sources[place])
        group.position = min([group.position, *positions])
    return list(groups.values())


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


def _evenly(groups: Iterable[_Group], count: int) -> list[list[_Group]]:
    """Large groups come first, each to whoever has the least."""
    ordered = sorted(groups, key=lambda group: -group.nbytes)
    hands: list[list[_Group]] = [[] for _ in range(count)]
    hands[0] = [group for group in ordered if group.is_first]
    held = [(sum(group.nbytes for group in hand), index) for index, hand in enumerate(hands)]
    heapq.heapify(held)
    for group in ordered:
        if not group.is_first:
            nbytes, index = held[0]
            hands[index].append(group)
            heapq.heapreplace(held, (nbytes + group.nbytes, index))
    return hands


def _in_order(groups: Sequence[_Group], count: int) -> list[list[_Group]]:
    """One stretch of the source after the other."""
    hands: list[list[_Group]] = [[] for _ in range(count)]
    total, before = sum(group.nbytes for group in groups), 0
    for group in sorted(groups, key=lambda group: (not group.is_first, group.position)):
        middle = before + group.nbytes / 2
        index = 0 if group.is_first else min(count - 1, int(middle * count / max(1, total)))
        hands[index].append(group)
        before += group.nbytes
    return hands
