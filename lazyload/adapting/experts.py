"""What an adapter adds to experts, in whatever form the base model's files have them.

transformers keeps all experts of a layer in one parameter, and so does an adapter of it. Files may have a tensor for
each expert, and for gates and up projections, or one with inputs before outputs. The way from the one to the other is
that of a model's arrays back into a checkpoint, so that layouts find it.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lazyload.adapting.matching import found
from lazyload.families.family import Family
from lazyload.formats import peft
from lazyload.formats.peft import LowRank
from lazyload.layouts.conversion import resolve_backwards
from lazyload.layouts.layout import Layout, Table
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box, TensorInfo, TensorSource
from lazyload.layouts.unroll import unroll
from lazyload.sources.adapter import AdapterFiles

logger = logging.getLogger("lazyload")

_FLOAT32 = np.dtype(np.float32)
_ROUTER = re.compile(r"(?:.+\.)?layers\.(?P<layer>\d+)\.(?:.+\.)?(?:gate|router)\.weight")
_INPUTS_FIRST = ("llama4",)
"""Families whose parameters have inputs before outputs without PEFT knowing it: `is_transposed` is not set."""


class Products:
    """The products of the matrices of all experts, as `lazyload.layouts.source.TensorSource`."""

    def __init__(self, files: AdapterFiles, pairs: Mapping[str, LowRank], tensors: Mapping[str, TensorInfo]):
        """Reads nothing.

        Args:
            files: The adapter.
            pairs: Which of its tensors, by parameter; of others, nothing is to be read.
            tensors: All parameters, `[expert, out, in]`.
        """
        self._files, self._pairs, self.tensors = files, pairs, tensors

    def read(self, name: str, index: Box) -> np.ndarray:
        """Computes one box."""
        of, (experts, rows, columns) = self._pairs[name], index
        count = self.tensors[name].shape[0]
        a, b = self._files.whole(of.a), self._files.whole(of.b)
        a = a.reshape(count, -1, a.shape[1])[experts]
        b = b.reshape(b.shape[0], -1, count)[..., experts].transpose(2, 0, 1)
        if of.is_transposed:
            a, b = b.transpose(0, 2, 1), a.transpose(0, 2, 1)
        product: np.ndarray = b[:, rows].astype(_FLOAT32) @ a[:, :, columns].astype(_FLOAT32)
        return product * np.float32(of.scaling)

    def position(self, name: str) -> int:
        """No parameter comes before another."""
        return 0


def added_to_experts(
    files: AdapterFiles,
    adapter: peft.Adapter,
    base: TensorSource,
    family: Family,
    model: Any,
    problems: list[str],
) -> dict[str, LazyTensor]:
    """What is added to each of the base model's tensors.

    Args:
        files: The adapter.
        adapter: What it consists of.
        base: The base model's tensors.
        family: Its family.
        model: What its `config.json` means.
        problems: To which that is added which does not fit.
    """
    layout = peft.experts(family.name, model)
    parameters = {path: array.shape for path, array in unroll(layout, model).items()}
    named = {f"layers.{layer}.{parameter}": pair for (layer, parameter), pair in adapter.experts.items()}
    inputs_first = _are_inputs_first(
        [(pair, parameters[name]) for name, pair in named.items() if name in parameters], files, family
    )
    pairs: dict[str, LowRank] = {}
    for name, pair in named.items():
        if name not in parameters:
            problems.append(f"{pair.a}: the base model has no experts with {name}")
        elif not _fits(pair, parameters[name], files, inputs_first=inputs_first):
            shapes = [list(files.tensors[tensor].shape) for tensor in (pair.a, pair.b)]
            problems.append(f"{pair.a}: has shape {shapes[0]}, its partner {shapes[1]}, for {list(parameters[name])}")
        else:
            pairs[name] = replace(pair, is_transposed=inputs_first)
    if problems:
        return {}
    products = Products(files, pairs, {name: TensorInfo(shape, _FLOAT32) for name, shape in parameters.items()})
    stored = _only(family.stored(model), layout.roles)
    lazies = resolve_backwards(products, layout, base, stored, model).tensors
    return {name: lazy for name, lazy in lazies.items() if any(source in pairs for source in lazy.sources)}


def router_of(weight: str, base: TensorSource, family: Family, model: Any) -> str | None:
    """The base model's tensor of a router, which transformers 5 calls otherwise than some files; None for no router."""
    match = _ROUTER.fullmatch(weight)
    if match is None:
        return None
    stored = _only(family.stored(model), frozenset({"router"}))
    paths = [path for path, array in unroll(stored, model).items() if array.positions["layer"] == int(match["layer"])]
    return next((name for path in paths if (name := found(path, base.tensors, stored.aliases))), None)


def _are_inputs_first(pairs: Sequence[tuple[LowRank, tuple[int, ...]]], files: AdapterFiles, family: Family) -> bool:
    """Whether an adapter's `A` are for outputs, and its `B` for inputs.

    So it is where PEFT takes a parameter's other dimension for its inputs, as it does for families that have them first
    without saying so, and as earlier releases did for most others. The shapes tell, unless all of them are square.
    """
    usual = family.name in _INPUTS_FIRST
    fitting = [way for way in (usual, not usual) if all(_fits(*each, files, inputs_first=way) for each in pairs)]
    if pairs and len(fitting) == 2:
        logger.warning(
            "%s: its matrices of experts fit both ways round, and are taken as PEFT 0.21 makes them", files.name
        )
    return fitting[0] if fitting else usual


def _fits(pair: LowRank, shape: tuple[int, ...], files: AdapterFiles, *, inputs_first: bool) -> bool:
    """Whether matrices are those of a parameter, `[expert, out, in]`."""
    a, b = files.tensors[pair.a].shape, files.tensors[pair.b].shape
    count, rows, columns = shape
    sizes = (rows, columns) if inputs_first else (columns, rows)
    return a[0] == b[1] == count * pair.rank and (a[1], b[0]) == sizes


def _only(layout: Layout, roles: frozenset[str]) -> Layout:
    """The rows of a layout for some roles."""
    return Layout(
        [_some(table, roles) for table in layout.tables],
        name=layout.name,
        aliases=layout.aliases,
        general=True,
        alternatives=[_some(table, roles) for table in layout.alternatives],
    )


def _some(table: Table, roles: frozenset[str]) -> Table:
    lines = zip(table.lines.items(), table.parsed, strict=True)
    return Table(
        {path: array for (path, array), line in lines if roles.issuperset(line.roles)},
        only=table.only,
        split=table.split,
        sizes=table.sizes,
    )
