"""Which entries pruning removes: a choice among those that nobody uses, by rules that a call switches on."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lazyload.bucket.path import Folder
from lazyload.cache.entry import Listed
from lazyload.cache.superseded import find_superseded
from lazyload.errors import ArgumentError


@dataclass(frozen=True)
class Rules:
    """What pruning removes of complete entries; see `Cache.prune`.

    Attributes:
        older_than: What has not been used for so many seconds.
        max_bytes: What was used longest ago, beyond so many bytes.
        superseded: What a later entry has taken the place of.
        keep_last: Never the so many entries of each model that were used last; and without another rule, all others.
        everything: All.
    """

    older_than: float | None = None
    max_bytes: int | None = None
    superseded: bool = False
    keep_last: int | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        if self.keep_last is not None and self.keep_last < 1:
            raise ArgumentError(f"keep_last={self.keep_last}: give how many entries of each model to keep, 1 or more")

    @property
    def is_none(self) -> bool:
        """Whether no rule is switched on."""
        return self == Rules()

    def choose(
        self, entries: Sequence[Listed], unused: Sequence[Listed], sizes: Mapping[Folder, int], total: int
    ) -> Iterator[tuple[Listed, str]]:
        """The entries to remove, each with the reason.

        Args:
            entries: All entries.
            unused: Those that nobody uses.
            sizes: What each of these takes on disk, by its folder.
            total: What the cache takes on disk, without what is removed anyway.
        """
        kept = self._kept(entries)
        superseded = find_superseded(entries) if self.superseded else {}
        candidates = sorted((e for e in unused if e.folder not in kept), key=lambda entry: entry.last_used)
        left = []
        for entry in candidates:
            age = time.time() - entry.last_used
            if entry.folder in superseded:
                found = superseded[entry.folder]
                reason = f"superseded by {found.by.key[:8]}: newer {' and '.join(found.changes)}"
            elif self.older_than is not None and age > self.older_than:
                reason = f"not used for {age / 86400:.1f} days"
            elif self.everything:
                reason = "nobody uses it"
            elif self == Rules(keep_last=self.keep_last) and self.keep_last is not None:
                reason = f"not among the {self.keep_last} of its model used last"
            else:
                left.append(entry)
                continue
            total -= sizes[entry.folder]
            yield entry, reason
        for entry in left:
            if self.max_bytes is None or total <= self.max_bytes:
                return
            total -= sizes[entry.folder]
            yield entry, "used longest ago"

    def _kept(self, entries: Sequence[Listed]) -> set[Folder]:
        """The entries that are never removed."""
        kept: set[Folder] = set()
        counts: dict[str, int] = {}
        for entry in sorted(entries, key=lambda entry: (entry.last_used, entry.created), reverse=True):
            counts[entry.model] = counts.get(entry.model, 0) + 1
            if counts[entry.model] <= (self.keep_last or 0):
                kept.add(entry.folder)
        return kept
