"""A base model's tensors with an adapter merged into them, while they are read.

What is changed is computed in float32, box by box, and rounded once, when the box is copied to where it goes.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lazyload.adapting.changes import Added, Change, Product, Rescaled, WithRows, bias
from lazyload.adapting.experts import added_to_experts, router_of
from lazyload.adapting.matching import found, shape_of
from lazyload.errors import TensorMismatchError
from lazyload.families.family import Family
from lazyload.formats import peft
from lazyload.formats.peft import Adapter
from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources.adapter import AdapterFiles
from lazyload.sources.remembered import RememberedSource
from lazyload.sources.source import Source

_FLOAT32 = np.dtype(np.float32)
_HEAD = "lm_head.weight"


class Merged:
    """A base model with an adapter, as `lazyload.layouts.source.TensorSource`."""

    def __init__(
        self,
        base: Source | RememberedSource,
        files: AdapterFiles,
        family: Family,
        model: Any,
        tied: tuple[str, str] | None = None,
    ):
        """Looks at the headers of both.

        PEFT wraps embedding and output projection one by one: where they are one tensor and only one of them is
        changed, they are two from then on, unless the adapter ensures that they stay tied.

        Args:
            base: The base model's tensors.
            files: The adapter.
            family: The base model's family.
            model: What its `config.json` means.
            tied: Where the base model's embedding is its output projection, too: the name of that tensor, and what the
                output projection is called where it is one of its own.

        Raises:
            UnsupportedFormatError: The adapter has a feature that is not read.
            TensorMismatchError: It is one of another base model.
        """
        adapter = peft.read_adapter(files.config, files.tensors, files.name)
        # A tied model's embedding may bear the output projection's name, but an adapter means what it says.
        self._aliases = [pair for pair in family.stored(model).aliases if pair[0].endswith(".")]
        self._base, self._files = base, files
        self._router = functools.partial(router_of, base=base, family=family, model=model)
        self._copied = _untied(adapter, self._aliases, *tied, files) if tied and tied[1] not in base.tensors else {}
        self._own = {**base.tensors, **{name: base.tensors[other] for name, other in self._copied.items()}}
        problems: list[str] = []
        self._replaced = self._replacements(adapter, problems, is_tied=tied is not None)
        # An output projection of the adapter's own may be changed, too.
        self._own |= {name: files.tensors[stored] for name, stored in self._replaced.items()}
        self._changes: dict[str, Change] = {}
        self._add_pairs(adapter, problems)
        self._add_biases(adapter, problems)
        self._add_tokens(adapter, problems)
        if adapter.experts:
            of_experts = added_to_experts(files, adapter, base, family, model, problems)
            for name, lazy in of_experts.items():
                self._changes[name] = Added(functools.partial(self._unchanged, name), lazy.__getitem__)
        if problems:
            raise TensorMismatchError(f"{files.name} is no adapter of this base model", problems)
        changed = {name: TensorInfo(self._own[name].shape, _FLOAT32) for name in self._changes}
        self.tensors: Mapping[str, TensorInfo] = {**self._own, **changed}

    def read(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of a tensor."""
        change = self._changes.get(name)
        return self._unchanged(name, index) if change is None else change(index)

    def position(self, name: str) -> int:
        """When a tensor has arrived; what is the adapter's is here."""
        return 0 if name in self._replaced else self._base.position(self._copied.get(name, name))

    def looks_equal(self, one: str, other: str) -> bool | None:
        """Whether two tensors hold the same bits, as `Source.looks_equal` says; None where the adapter changes one.

        No where DoRA changes an embedding: lengths of columns are those of all rows, too much to be read only to see
        that they make a difference.
        """
        changes = [self._changes.get(name) for name in (one, other)]
        if any(isinstance(change, Rescaled) and change.of_embedding for change in changes):
            return False
        changed = self._changes.keys() | self._replaced.keys() | self._copied.keys()
        return None if changed & {one, other} else self._base.looks_equal(one, other)

    def of_base(self, names: Collection[str]) -> list[str]:
        """The base model's tensors that are read for some tensors, each as often as it is read."""
        return [
            self._copied.get(name, name)
            for name in names
            if name not in self._replaced
            for _ in range(self._changes[name].reads if name in self._changes else 1)
        ]

    def _unchanged(self, name: str, index: Box) -> np.ndarray:
        if name in self._replaced:
            return self._files.read(self._replaced[name], index)
        return self._base.read(self._copied.get(name, name), index)

    def _add_pairs(self, adapter: Adapter, problems: list[str]) -> None:
        """What is added to weights."""
        for weight, low_rank in adapter.added.items():
            name = self._name(weight, shape_of(low_rank, self._files.tensors), problems)
            if name is None:
                continue
            self._changes[name] = added = Added(
                functools.partial(self._unchanged, name), Product(self._files, low_rank)
            )
            if low_rank.magnitude is not None:
                rows, columns = self._own[name].shape
                magnitude = self._files.whole(low_rank.magnitude)
                if magnitude.shape != (size := (columns if low_rank.is_transposed else rows,)):
                    shapes = f"{list(magnitude.shape)}, not {list(size)}"
                    problems.append(f"{low_rank.magnitude}: has shape {shapes}")
                    continue
                self._changes[name] = Rescaled(added, (rows, columns), magnitude, of_embedding=low_rank.is_transposed)

    def _add_biases(self, adapter: Adapter, problems: list[str]) -> None:
        """What is added to biases; where there is none, PEFT cannot merge it either."""
        for weight, of in adapter.biases.items():
            if (name := self._name(weight, self._files.tensors[of.tensor].shape, problems)) is not None:
                read = functools.partial(self._unchanged, name)
                self._changes[name] = Added(read, bias(self._files, of.tensor, of.scaling))

    def _add_tokens(self, adapter: Adapter, problems: list[str]) -> None:
        """Rows of embeddings."""
        for weight, tokens in adapter.tokens.items():
            name, shape = self._found(weight), self._files.tensors[tokens.tensor].shape
            if name is None:
                problems.append(f"{tokens.tensor}: the base model has no {weight}")
            elif self._own[name].shape[1:] != shape[1:] or max(tokens.indices, default=0) >= self._own[name].shape[0]:
                own = list(self._own[name].shape)
                problems.append(f"{tokens.tensor}: has shape {list(shape)} for other tokens than {weight} has, {own}")
            elif name in self._changes:
                problems.append(f"{tokens.tensor}: {weight} has matrices, too; merge the adapter with peft first")
            else:
                self._changes[name] = WithRows(functools.partial(self._unchanged, name), self._files, tokens)

    def _found(self, wanted: str) -> str | None:
        """The base model's tensor that transformers calls so."""
        return found(wanted, self._own, self._aliases) or self._router(wanted)

    def _name(self, wanted: str, shape: tuple[int, ...], problems: list[str]) -> str | None:
        """The base model's tensor of that name, if it has that shape."""
        name = self._found(wanted)
        if name is None:
            problems.append(f"{wanted}: the base model has no such tensor")
        elif shape != self._own[name].shape:
            own = list(self._own[name].shape)
            problems.append(f"{wanted}: the adapter is for shape {list(shape)}, the base model has {own}")
        else:
            return name
        return None

    def _replacements(self, adapter: Adapter, problems: list[str], *, is_tied: bool) -> dict[str, str]:
        """The adapter's own tensors by the names of those whose place they take; a tied model may get a head."""
        replaced = {}
        for wanted, stored in adapter.replaced.items():
            name = self._found(wanted)
            if name is None and is_tied and wanted.endswith(_HEAD):
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
