"""A base model's tensors with an adapter merged into them, while they are read.

`W + scaling * B A` is computed in float32, box by box, and rounded once, when the box is copied to where it goes.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lazyload.errors import TensorMismatchError
from lazyload.formats import peft
from lazyload.formats.peft import Adapter, LowRank
from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources.adapter import AdapterFiles
from lazyload.sources.remembered import RememberedSource
from lazyload.sources.source import Source

logger = logging.getLogger("lazyload")

_FLOAT32 = np.dtype(np.float32)
_HEAD = "lm_head.weight"


class Merged:
    """A base model with an adapter, as `lazyload.layouts.source.TensorSource`."""

    def __init__(
        self,
        base: Source | RememberedSource,
        files: AdapterFiles,
        aliases: Sequence[tuple[str, str]],
        tied: tuple[str, str] | None = None,
    ):
        """Looks at the headers of both.

        PEFT wraps embedding and output projection one by one: where they are one tensor and only one of them is
        changed, they are two from then on, unless the adapter ensures that they stay tied.

        Args:
            base: The base model's tensors.
            files: The adapter.
            aliases: Prefixes of tensors, and others that may stand in their place.
            tied: Where the base model's embedding is its output projection, too: the name of that tensor, and what the
                output projection is called where it is one of its own.

        Raises:
            UnsupportedFormatError: The adapter has a feature that is not read.
            TensorMismatchError: It is one of another base model.
        """
        adapter = peft.read_adapter(files.config, files.tensors, files.name)
        # A tied model's embedding may bear the output projection's name, but an adapter means what it says.
        aliases = [(prefix, other) for prefix, other in aliases if prefix.endswith(".")]
        self._base, self._files = base, files
        self._copied = _untied(adapter, aliases, *tied, files) if tied and tied[1] not in base.tensors else {}
        self._own = {**base.tensors, **{name: base.tensors[other] for name, other in self._copied.items()}}
        problems: list[str] = []
        self._added: dict[str, LowRank] = {}
        for weight, low_rank in adapter.added.items():
            name = found(weight, self._own, aliases)
            if name is None:
                problems.append(f"{weight}: the base model has no such tensor")
            elif shape_of(low_rank, files.tensors) != self._own[name].shape:
                shape, own = list(shape_of(low_rank, files.tensors)), list(self._own[name].shape)
                problems.append(f"{weight}: the adapter is for shape {shape}, the base model has {own}")
            else:
                self._added[name] = low_rank
        self._replaced = self._replacements(adapter, aliases, problems)
        if problems:
            raise TensorMismatchError(f"{files.name} is no adapter of this base model", problems)
        changed = {name: TensorInfo(self._own[name].shape, _FLOAT32) for name in self._added}
        replaced = {name: files.tensors[stored] for name, stored in self._replaced.items()}
        self.tensors: Mapping[str, TensorInfo] = {**self._own, **replaced, **changed}

    def read(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of a tensor."""
        if name in self._replaced:
            values = self._files.read(self._replaced[name], index)
        else:
            values = self._base.read(self._copied.get(name, name), index)
        if name not in self._added:
            return values
        merged: np.ndarray = values.astype(_FLOAT32) + self._change(self._added[name], index)
        return merged

    def position(self, name: str) -> int:
        """When a tensor has arrived; what is the adapter's is here."""
        return 0 if name in self._replaced else self._base.position(self._copied.get(name, name))

    def looks_equal(self, one: str, other: str) -> bool | None:
        """Whether two tensors hold the same bits, as `Source.looks_equal` says; None where the adapter changes one."""
        changed = self._added.keys() | self._replaced.keys() | self._copied.keys()
        return None if changed & {one, other} else self._base.looks_equal(one, other)

    def of_base(self, names: Collection[str]) -> set[str]:
        """The base model's tensors that are read for some tensors."""
        return {self._copied.get(name, name) for name in names if name not in self._replaced}

    def _change(self, low_rank: LowRank, index: Box) -> np.ndarray:
        """What is added to a box of a weight, in float32."""
        rows, columns = (index[1], index[0]) if low_rank.of_embedding else index
        rank = self._files.tensors[low_rank.a].shape[0]
        a = self._files.read(low_rank.a, (slice(0, rank), columns)).astype(_FLOAT32)
        b = self._files.read(low_rank.b, (rows, slice(0, rank))).astype(_FLOAT32)
        change: np.ndarray = (b @ a) * np.float32(low_rank.scaling)
        return change.T if low_rank.of_embedding else change

    def _replacements(
        self, adapter: Adapter, aliases: Sequence[tuple[str, str]], problems: list[str]
    ) -> dict[str, str]:
        """The adapter's own tensors by the names of those whose place they take; an output projection may be new."""
        replaced = {}
        for wanted, stored in adapter.replaced.items():
            name = found(wanted, self._own, aliases)
            if name is None and wanted.endswith(_HEAD):
                name = wanted
            elif name is None:
                problems.append(f"{stored}: the base model has no such tensor")
                continue
            elif self._own[name].shape != self._files.tensors[stored].shape:
                own, shape = list(self._own[name].shape), list(self._files.tensors[stored].shape)
                problems.append(f"{stored}: has shape {shape}, the base model has {own}")
                continue
            replaced[name] = stored
        return replaced


def _untied(
    adapter: Adapter, aliases: Sequence[tuple[str, str]], embedding: str, head: str, files: AdapterFiles
) -> dict[str, str]:
    """The output projection as a copy of the embedding, where the adapter changes one without the other."""
    changed = {*adapter.added, *adapter.replaced}
    if any(name.endswith(_HEAD) for name in adapter.replaced):
        return {}
    if any(name.endswith(_HEAD) for name in adapter.added):
        return {head: embedding}
    alone = any(found(name, {embedding: None}, aliases) for name in changed)
    return {head: embedding} if alone and not files.config.get("ensure_weight_tying") else {}


def warn_of_other_base(files: AdapterFiles, base: str) -> None:
    """Says so where an adapter names another base model; it may be the same one by another name."""
    named = str(files.config.get("base_model_name_or_path") or "")
    if named and named.rstrip("/").rpartition("/")[2].lower() != base.rstrip("/").rpartition("/")[2].lower():
        logger.warning("%s was made for %s, and is merged into %s", files.name, named, base)


def found(name: str, tensors: Mapping[str, Any], aliases: Sequence[tuple[str, str]]) -> str | None:
    """A tensor under the name that it has in the files, which may have another prefix than in transformers."""
    if name in tensors:
        return name
    usual = [name, *(prefix + name[len(other) :] for prefix, other in aliases if other and name.startswith(other))]
    others = (other + each[len(prefix) :] for each in usual for prefix, other in aliases if each.startswith(prefix))
    return next((each for each in (*usual, *others) if each in tensors), None)


def shape_of(low_rank: LowRank, tensors: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """The shape of the weight that a pair of matrices is for."""
    rows, columns = tensors[low_rank.b].shape[0], tensors[low_rank.a].shape[1]
    return (columns, rows) if low_rank.of_embedding else (rows, columns)
