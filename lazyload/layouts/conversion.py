"""A conversion: two layouts resolved against a checkpoint's tensors into one lazy tensor for each target path.

In the worked example of this folder, `decoder.layers.self_attention.query.kernel` becomes a lazy tensor of shape
`(16, 2, 4, 8)` over two tensors, `model.layers.{0,1}.self_attn.q_proj.weight`. Every tensor of the source is used, or
skipped because a layout says so, or an error; so is every array of the target that has no source.
"""

import fnmatch
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from lazyload.errors import LayoutError, TensorMismatchError
from lazyload.layouts.axes import Axes
from lazyload.layouts.dtypes import DTypes, is_floating
from lazyload.layouts.layout import Layout
from lazyload.layouts.lazy import LazyTensor, Region
from lazyload.layouts.match import StoredRole, fill
from lazyload.layouts.notation import Operations
from lazyload.layouts.part import Part
from lazyload.layouts.pattern import Array, Pattern
from lazyload.layouts.source import TensorSource
from lazyload.layouts.unroll import unroll, unroll_tree

NOTATION_VERSION = 2
"""Raised whenever the same tables come to mean other bytes."""


@dataclass(frozen=True)
class Conversion:
    """Everything that a target layout asks for, as lazy tensors over a source.

    Attributes:
        tensors: By target path, in the order of the target's tables.
        axes: By target path, the logical axis of every dimension, for sharding.
        skipped: Source tensors that are knowingly not used.
        unread: Source tensors that neither layout knows, and that the caller lets pass.
        other_layers: Those of the skipped tensors that belong to layers beside the part that is converted.
    """

    tensors: Mapping[str, LazyTensor]
    axes: Mapping[str, tuple[str, ...]]
    skipped: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    other_layers: tuple[str, ...] = ()


def digest(source: Layout, target: Layout, model: Axes) -> str:
    """Identifies how the source's tensors become the target's bytes, without looking at the tensors."""
    description = {
        "notation": NOTATION_VERSION,
        "source": source.description(),
        "target": target.description(),
        "splits": {axis: list(parts) for axis, parts in model.splits.items()},
        "roles": {
            role: [[list(group.layers), dict(group.sizes)] for group in model.groups(role)]
            for role in sorted(source.roles | target.roles)
        },
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def axes_of(arrays: Mapping[str, Array]) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """The shape and the logical axes of every array."""
    return {path: (array.shape, array.logical_axes) for path, array in arrays.items()}


def form_of(
    arrays: Mapping[str, Array], dtype: np.dtype | DTypes
) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """The shape of every array, and the dtypes that it may have.

    Arrays that are not of floating-point numbers keep the source's dtype instead.
    """
    dtypes = dtype if isinstance(dtype, DTypes) else DTypes(dtype)
    forms: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
    known: dict[tuple[Pattern, np.dtype], tuple[tuple[int, ...], tuple[str, ...]]] = {}
    for path, array in arrays.items():
        pattern, wanted = array.patterns[0], dtypes.of(array)
        if (pattern, wanted) not in known:
            known[pattern, wanted] = pattern.shape, _possible_dtypes(pattern.operations, wanted)
        forms[path] = known[pattern, wanted]
    return forms


def resolve(
    source: TensorSource,
    source_layout: Layout,
    target: Layout,
    model: Axes,
    dtype: np.dtype | DTypes,
    passes: Callable[[str], bool] = lambda name: False,
    part: Part | None = None,
) -> Conversion:
    """Resolves the conversion of a checkpoint.

    Args:
        source: The checkpoint.
        source_layout: How its tensors are named and laid out.
        target: The layout wanted.
        model: The sizes of the axes.
        dtype: What floating-point tensors become, where the target does not name a dtype of its own; or what some of
            them become.
        passes: Whether a tensor that neither layout knows may be left aside.
        part: Where the model is some layers of a larger one: of which, whose tensors the source has.

    Raises:
        LayoutError: A layout does not fit the model, its paths make no tree, or the layouts do not fit each other.
        TensorMismatchError: Tensors are missing, unexpected or of the wrong shape; all of them are listed.
    """
    stored, others = _stored(source, source_layout, model if part is None else part.whole), list[Array]()
    if part is not None:
        stored, others = part.cut(stored, model)
    _require_roles(source_layout, target, model)
    wanted = unroll_tree(target, model)
    regions = _regions(wanted, stored)
    left = _left(source, regions)
    globs = _globs((*source_layout.skipped, *target.skipped), source)
    other_layers = tuple(sorted({array.path for array in others}.intersection(left)))
    skipped = {name for name in left if any(fnmatch.fnmatchcase(name, glob) for glob in globs)}.union(other_layers)
    skipped |= _made_up(stored).intersection(left)
    unknown = sorted(set(left) - skipped)
    unread = tuple(name for name in unknown if passes(name))
    problems = _shape_problems(source, stored) + [
        f"{name}: in the checkpoint, but layout {target.name!r} has no use for it"
        for name in sorted(set(unknown) - set(unread))
    ]
    if problems:
        raise TensorMismatchError(
            f"the checkpoint does not fit layout {source_layout.name!r}; check that config.json belongs to these "
            "files, and that they are complete",
            problems,
        )
    dtypes = dtype if isinstance(dtype, DTypes) else DTypes(dtype)
    return _conversion(source, wanted, regions, dtypes, tuple(sorted(skipped)), unread, other_layers)


def resolve_backwards(
    source: TensorSource, source_layout: Layout, like: TensorSource, target: Layout, model: Axes
) -> Conversion:
    """Resolves the way back: from a model's arrays to the tensors of the checkpoint that such a model comes from.

    Args:
        source: The model's arrays.
        source_layout: How they are named and laid out.
        like: A checkpoint, whose tensors say under which of the names, and in which of the forms, that `target` knows
            of, tensors are to be; nothing of it is read.
        target: How its tensors are named and laid out.
        model: The sizes of the axes.

    Returns:
        What `target` asks for, as float32 where the source has floating-point numbers; `skipped` has the tensors of
        `like` that nothing of the model goes into.

    Raises:
        LayoutError: A layout does not fit the model, or the layouts do not fit each other.
        TensorMismatchError: Arrays are missing, unexpected or of the wrong shape; all of them are listed.
    """
    stored, named = list(unroll(source_layout, model).values()), _stored(like, target, model)
    problems = [
        *_shape_problems(source, stored),
        *(
            f"{name}: is no part of layout {source_layout.name!r}"
            for name in sorted(set(source.tensors) - {array.path for array in stored})
        ),
    ]
    if problems:
        raise TensorMismatchError(f"the arrays are not those of layout {source_layout.name!r}", problems)
    _require_roles(source_layout, target, model)
    wanted = {array.path: array for array in named}
    if differing := _shape_problems(like, [array for array in named if array.path in like.tensors]):
        raise TensorMismatchError(f"the checkpoint does not fit layout {target.name!r}", differing)
    regions = _regions(wanted, stored)
    made_up = _made_up(stored)
    if lost := [name for name in _left(source, regions) if name not in made_up]:
        raise LayoutError(
            f"layout {target.name!r} has no place for {', '.join(lost[:5])}{' and more' * (len(lost) > 5)}"
        )
    skipped = tuple(name for name in like.tensors if name not in wanted)
    return _conversion(source, wanted, regions, DTypes(np.dtype(np.float32)), skipped)


def _made_up(stored: Iterable[Array]) -> set[str]:
    """The arrays that are of no value to anybody else: what their format makes up."""
    return {array.path for array in stored if array.patterns[0].operations.made_up}


def _left(source: TensorSource, regions: Mapping[str, Sequence[Region]]) -> list[str]:
    """The tensors of a source that nothing is filled from."""
    used = {each.tensor for some in regions.values() for region in some for each in region.contributions.values()}
    return [name for name in source.tensors if name not in used]


def _conversion(
    source: TensorSource,
    wanted: Mapping[str, Array],
    regions: Mapping[str, tuple[Region, ...]],
    dtypes: DTypes,
    skipped: tuple[str, ...],
    unread: tuple[str, ...] = (),
    other_layers: tuple[str, ...] = (),
) -> Conversion:
    tensors = {
        path: LazyTensor(array.shape, _dtype(path, regions[path], source, dtypes.of(array)), regions[path], source)
        for path, array in wanted.items()
    }
    axes = {path: array.logical_axes for path, array in wanted.items()}
    return Conversion(tensors, axes, skipped, unread, other_layers)


def _regions(wanted: Mapping[str, Array], stored: Sequence[Array]) -> dict[str, tuple[Region, ...]]:
    """What fills each target array: a region a role."""
    holders: dict[tuple[str, int], list[tuple[Array, Pattern]]] = {}
    for array in stored:
        if array.patterns[0].operations.made_up:
            continue
        for pattern in array.patterns:
            holders.setdefault((pattern.role, pattern.group), []).append((array, pattern))
    roles = {key: StoredRole(arrays) for key, arrays in holders.items()}
    regions: dict[str, tuple[Region, ...]] = {}
    for patterns, group in itertools.groupby(wanted.values(), key=lambda array: array.patterns):
        arrays = list(group)
        filled = []
        for pattern in patterns:
            if (pattern.role, pattern.group) not in roles:
                raise LayoutError(f"{arrays[0].path}: the source has no {pattern.role!r} in these layers")
            filled.append(fill(pattern, arrays, roles[pattern.role, pattern.group]))
        regions |= dict(zip((array.path for array in arrays), zip(*filled, strict=True), strict=True))
    return regions


def _require_roles(source: Layout, target: Layout, model: Axes) -> None:
    """Makes sure that the source has every role that the target wants of this model."""
    there = {role for role in source.roles if model.groups(role)}
    lacking = {role for role in target.roles - there if model.groups(role) or not target.general}
    if lacking:
        raise LayoutError(
            f"layout {target.name!r} wants {', '.join(sorted(lacking))}, which layout {source.name!r} does "
            f"not have for this model; it has {', '.join(sorted(there))}"
        )


def _globs(skipped: Sequence[str], source: TensorSource) -> list[str]:
    """The globs of skipped tensors that count for this checkpoint: `GLOB`, or `GLOB if TENSOR`."""
    conditions = [glob.partition(" if ") for glob in skipped]
    return [glob for glob, _, mark in conditions if not mark or mark in source.tensors]


def _stored(source: TensorSource, layout: Layout, model: Axes) -> list[Array]:
    """The arrays of the source's layout, of its alternatives those that fit the checkpoint better than the usual."""
    stored = [_as_named(array, source, layout) for array in unroll(layout, model).values()]
    for table in layout.alternatives:
        other = Layout(table, name=layout.name, aliases=layout.aliases, general=layout.general)
        arrays = [_as_named(array, source, other) for array in unroll(other, model).values()]
        usual = [array for array in stored if _roles(array) & other.roles]
        if len(_shape_problems(source, arrays)) < len(_shape_problems(source, usual)):
            stored = [*(array for array in stored if not _roles(array) & other.roles), *arrays]
    return stored


def _roles(array: Array) -> set[str]:
    return {pattern.role for pattern in array.patterns}


def _as_named(array: Array, source: TensorSource, layout: Layout) -> Array:
    """The array at the path that it has in this checkpoint, which may use another prefix."""
    path, tensors = array.path, source.tensors
    if path in tensors:
        return array
    others = (other + path[len(prefix) :] for prefix, other in layout.aliases if path.startswith(prefix))
    return replace(array, path=next((name for name in others if name in tensors), path))


def _shape_problems(source: TensorSource, stored: Sequence[Array]) -> list[str]:
    """Tensors that are missing or of another shape than the layout says."""
    problems = []
    for array in stored:
        info = source.tensors.get(array.path)
        if info is None:
            problems.append(f"{array.path}: missing; expected an array of shape {list(array.shape)}")
        elif info.shape != array.shape:
            problems.append(f"{array.path}: has shape {list(info.shape)}, expected {list(array.shape)}")
    return problems


def _dtype(path: str, regions: Sequence[Region], source: TensorSource, wanted: np.dtype) -> np.dtype:
    """The dtype of a target array: the one asked for where the source has floating-point numbers, else the source's."""
    stored = {source.tensors[each.tensor].dtype for region in regions for each in region.contributions.values()}
    operations = regions[0].pattern.operations
    if operations.dtype is not None and operations.dtype.kind == "i":
        if any(map(is_floating, stored)):
            raise LayoutError(f"{path}: {operations.dtype} cannot hold {', '.join(sorted(map(str, stored)))}")
        return operations.dtype
    if all(is_floating(dtype) for dtype in stored):
        if operations.unrounded and not all(_holds(wanted, dtype) for dtype in stored):
            return np.dtype(np.float32)
        return wanted
    if len(stored) > 1 or operations.arithmetic:
        raise LayoutError(f"{path}: cannot combine {', '.join(sorted(str(dtype) for dtype in stored))}")
    return stored.pop()


def _possible_dtypes(operations: Operations, wanted: np.dtype) -> tuple[str, ...]:
    """The names of the dtypes that `_dtype` chooses from for floating-point numbers."""
    usual = wanted.name
    return (usual, "float32") if operations.unrounded and usual != "float32" else (usual,)


def _holds(wanted: np.dtype, stored: np.dtype) -> bool:
    """Whether a dtype has all values of another one."""
    wide, narrow = ml_dtypes.finfo(wanted), ml_dtypes.finfo(stored)
    return bool(wide.nmant >= narrow.nmant and wide.maxexp >= narrow.maxexp and wide.minexp <= narrow.minexp)
