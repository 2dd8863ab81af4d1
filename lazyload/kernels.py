"""Which kernels of a decoder are matrices of the checkpoint, and how: as a whole, or some rows of a fused one.

A matrix `[out, in]` of the checkpoint maps to its rows, a kernel of the module to its last dimensions. Where each row
and column goes is found out by converting their numbers, so that it holds for whatever layouts can say.
"""

import collections
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lazyload.layouts.conversion import resolve
from lazyload.layouts.lazy import Contribution, LazyTensor, Region
from lazyload.layouts.part import Part
from lazyload.layouts.source import Box, TensorInfo
from lazyload.layouts.unroll import unroll, unroll_tree
from lazyload.request import Request

_FLOAT32 = np.dtype(np.float32)
_LAYER = "layer"
_ROUTER = "router"
"""The role of a kernel with which no module calls: experts are chosen with it, in float32."""


@dataclass(frozen=True)
class Matrix:
    """What a kernel, or a layer of a stack of them, has of a matrix `[out, in]` of the checkpoint.

    Attributes:
        tensor: The matrix's name.
        shape: Its shape.
        rows: The row that each output is, in the shape of the kernel's outputs.
        columns: The column that each input is, in the shape of the kernel's inputs.
    """

    tensor: str
    shape: tuple[int, int]
    rows: np.ndarray = field(compare=False)
    columns: np.ndarray = field(compare=False)


@dataclass(frozen=True)
class Kernel:
    """A kernel that is made of matrices, its inputs before its outputs.

    Attributes:
        path: Its dotted path.
        matrices: One for each layer, where layers are stacked; else a single one.
        is_stacked: Whether its first dimension tells layers apart.
    """

    path: str
    matrices: tuple[Matrix, ...]
    is_stacked: bool

    @property
    def num_inputs(self) -> int:
        """How many of its dimensions are inputs."""
        return self.matrices[0].columns.ndim


@dataclass(frozen=True)
class Kernels:
    """The kernels of a model that are made of matrices.

    Attributes:
        all: By path.
        other_layers: The tensors of layers that the model does not have, because `layers=` leaves them out.
    """

    all: Mapping[str, Kernel]
    other_layers: frozenset[str]

    def of_matrices(self) -> dict[str, list[tuple[Kernel, int]]]:
        """The kernels of each matrix, with their layers in the stack; of matrices that lie in kernels as a whole."""
        found: dict[str, list[tuple[Kernel, int]]] = collections.defaultdict(list)
        for kernel in self.all.values():
            for layer, matrix in enumerate(kernel.matrices):
                found[matrix.tensor].append((kernel, layer))
        return {
            name: users
            for name, users in found.items()
            if sum(kernel.matrices[layer].rows.size for kernel, layer in users) == users[0][0].matrices[0].shape[0]
        }


def kernels_of(request: Request) -> Kernels:
    """The kernels of what a request loads, by the names that their matrices have first of all."""
    stored, target = request.family.stored(request.whole), request.target.layout
    of_whole_numbers = {
        pattern.role
        for array in unroll_tree(target, request.architecture).values()
        for pattern in array.patterns
        if pattern.operations.dtype is not None and pattern.operations.dtype.kind == "i"
    }
    described = {
        path: TensorInfo(
            array.shape,
            np.dtype(np.int32) if {each.role for each in array.patterns} & of_whole_numbers else _FLOAT32,
        )
        for path, array in unroll(stored, request.whole).items()
    }
    part = None if request.layers is None else Part(request.whole, request.layers)
    conversion = resolve(_Numbered(described, 0), stored, target, request.architecture, _FLOAT32, part=part)
    kernels = {path: kernel for path, lazy in conversion.tensors.items() if (kernel := _kernel(path, lazy, described))}
    return Kernels(kernels, frozenset(conversion.other_layers))


@dataclass(frozen=True)
class _Numbered:
    """Tensors of known shapes whose values are the indices of one dimension; see `layouts.source.TensorSource`."""

    tensors: Mapping[str, TensorInfo]
    dimension: int

    def read(self, name: str, index: Box) -> np.ndarray:
        """The indices of a box."""
        cut = index[self.dimension]
        numbers = np.arange(cut.start, cut.stop, dtype=np.int64)
        shape = [1] * len(index)
        shape[self.dimension] = len(numbers)
        return np.broadcast_to(numbers.reshape(shape), [cut.stop - cut.start for cut in index])

    def position(self, name: str) -> int:
        """No tensor comes before another."""
        return 0


def _kernel(path: str, lazy: LazyTensor, described: Mapping[str, TensorInfo]) -> Kernel | None:
    """The array as a kernel; None where it is none that is made of matrices."""
    kinds = {_kinds(region, given) for region in lazy.regions for given in region.contributions.values()}
    if len(kinds) != 1 or (kind := kinds.pop()) is None or lazy.regions[0].pattern.role == _ROUTER:
        return None
    is_stacked, inputs = kind
    matrices = []
    for layer in range(lazy.shape[0] if is_stacked else 1):
        at = (slice(layer, layer + 1),) if is_stacked else ()
        names = lazy.sources_of((*at, *map(slice, lazy.shape[len(at) :])))
        if len(names) != 1:
            return None
        out, into = described[names[0]].shape
        ins, outs = lazy.shape[len(at) : len(at) + inputs], lazy.shape[len(at) + inputs :]
        first_out, first_in = (slice(0, 1),) * len(outs), (slice(0, 1),) * len(ins)
        rows = _numbers(lazy, 0, (*at, *first_in, *map(slice, outs)), described).reshape(outs)
        columns = _numbers(lazy, 1, (*at, *map(slice, ins), *first_out), described).reshape(ins)
        matrices.append(Matrix(names[0], (out, into), rows, columns))
    return Kernel(path, tuple(matrices), is_stacked)


def _numbers(lazy: LazyTensor, dimension: int, box: Box, described: Mapping[str, TensorInfo]) -> np.ndarray:
    """The indices of one dimension of the source that a box of an array is read from."""
    numbered = replace(lazy, source=_Numbered(described, dimension), dtype=np.dtype(np.int64))
    return numbered[box]


def _kinds(region: Region, given: Contribution) -> tuple[bool, int] | None:
    """Whether a kernel is stacked, and how many of its dimensions are inputs; None where it is no kernel."""
    if len(given.pattern.stored) != 2 or region.walked not in ((), (_LAYER,)):
        return None
    if region.pattern.operations.arithmetic or given.pattern.operations.arithmetic:
        return None
    outs, ins = (
        {axis.name for number in numbers for axis in given.pattern.dimensions[number]}
        for numbers in given.pattern.stored
    )
    order = []
    for numbers in region.pattern.stored:
        names = {axis.name for number in numbers for axis in region.pattern.dimensions[number]}
        order.append(next((kind for kind, some in enumerate(({_LAYER}, ins, outs)) if names and names <= some), -1))
    is_stacked, inputs = region.walked == (_LAYER,), order.count(1)
    expected = [0] * is_stacked + [1] * inputs + [2] * (len(order) - is_stacked - inputs)
    return (is_stacked, inputs) if order == expected and 0 < inputs < len(order) - is_stacked else None
