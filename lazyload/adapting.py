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
from lazyload.layouts.source import Box, TensorInfo, TensorSource
from lazyload.sources.adapter import AdapterFiles

logger = logging.getLogger("lazyload")

_FLOAT32 = np.dtype(np.float32)


class Merged:
    """A base model with an adapter, as `lazyload.layouts.source.TensorSource`."""

    def __init__(self, base: TensorSource, files: AdapterFiles, aliases: Sequence[tuple[str, str]], *, tied: bool):
        """Looks at the headers of both.

        Args:
            base: The base model's tensors.
            files: The adapter.
            aliases: Prefixes of tensors, and others that may stand in their place.
            tied: Whether the base model's embedding is its output projection, too.

        Raises:
            UnsupportedFormatError: The adapter has a feature that is not read.
            TensorMismatchError: It is one of another base model.
        """
        adapter = peft.read_adapter(files.config, files.tensors, files.name)
        # A tied model's embedding may bear the output projection's name, but an adapter means what it says.
        aliases = [(prefix, other) for prefix, other in aliases if prefix.endswith(".")]
        self._base, self._files = base, files
        problems: list[str] = []
        self._added: dict[str, LowRank] = {}
        for weight, low_rank in adapter.added.items():
            name = found(weight, base.tensors, aliases)
            if name is None:
                problems.append(f"{weight}: the base model has no such tensor")
            elif low_rank.of_embedding and tied:
                problems.append(f"{weight}: is the output projection, too, which PEFT leaves as it is")
            elif shape_of(low_rank, files.tensors) != base.tensors[name].shape:
                shape, own = list(shape_of(low_rank, files.tensors)), list(base.tensors[name].shape)
                problems.append(f"{weight}: the adapter is for shape {shape}, the base model has {own}")
            else:
                self._added[name] = low_rank
        self._replaced = self._replacements(adapter, aliases, problems)
        if problems:
            raise TensorMismatchError(f"{files.name} is no adapter of this base model", problems)
        changed = {name: TensorInfo(base.tensors[name].shape, _FLOAT32) for name in self._added}
        replaced = {name: files.tensors[stored] for name, stored in self._replaced.items()}
        self.tensors: Mapping[str, TensorInfo] = {**base.tensors, **replaced, **changed}

    def read(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of a tensor."""
        is_own = name in self._replaced
        values = self._files.read(self._replaced[name], index) if is_own else self._base.read(name, index)
        if name not in self._added:
            return values
        merged: np.ndarray = values.astype(_FLOAT32) + self._change(self._added[name], index)
        return merged

    def position(self, name: str) -> int:
        """When a tensor has arrived; what is the adapter's is here."""
        return 0 if name in self._replaced else self._base.position(name)

    def of_base(self, names: Collection[str]) -> set[str]:
        """Those of some tensors for which the base model is read."""
        return {name for name in names if name not in self._replaced}

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
            name = found(wanted, self._base.tensors, aliases)
            if name is None and wanted.endswith("lm_head.weight"):
                name = wanted
            elif name is None:
                problems.append(f"{stored}: the base model has no such tensor")
                continue
            elif self._base.tensors[name].shape != self._files.tensors[stored].shape:
                own, shape = list(self._base.tensors[name].shape), list(self._files.tensors[stored].shape)
                problems.append(f"{stored}: has shape {shape}, the base model has {own}")
                continue
            replaced[name] = stored
        return replaced


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
