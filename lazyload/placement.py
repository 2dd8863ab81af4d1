"""Where the arrays of a call go, and what is made of them: a module that exists is filled, or a new one is built."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, Sharding

from lazyload.architecture import DecoderConfig, Layer
from lazyload.errors import ArgumentError, LayoutError, ShardingError, TensorMismatchError
from lazyload.layouts.layout import Layout
from lazyload.models.fill import fill, misfits, values_of
from lazyload.options import LayoutOption
from lazyload.request import Request
from lazyload.sharding import Rules, mesh_or_default, shardings


class Placement:
    """What a call says of devices, and the module that it is to fill."""

    def __init__(self, mesh: Mesh | None, rules: Rules | None, layout: LayoutOption, into: nnx.Module | None):
        """Looks at the arguments alone; see `lazyload.from_pretrained` for them.

        Raises:
            ArgumentError: `into` is no module.
            LayoutError: The layout is none by which a module is filled.
            ShardingError: The mesh has no devices.
        """
        _require_fillable(into, layout)
        self._mesh = mesh_or_default(mesh)
        self._rules = rules
        self._into = into
        self._follows_module = into is not None and mesh is None and rules is None
        self._known: tuple[Request, Mapping[str, Sharding]] | None = None

    def require(self, request: Request) -> None:
        """Makes sure that what the call will load can go where it is to go.

        Raises:
            ArgumentError: The module to fill has another config.
            ShardingError: A rule names an axis that the mesh, or the model, does not have, or one twice.
            TensorMismatchError: The module to fill has other parameters.
        """
        self._require_fit(*request.candidates)
        self.of(request)

    def of(self, request: Request) -> Mapping[str, Sharding]:
        """Where every array goes, by path."""
        if self._known is None or self._known[0] is not request:
            self._known = request, self._all_places(request)
        return self._known[1]

    def build(self, request: Request, arrays: Mapping[str, jax.Array]) -> Any:
        """Fills the module, or makes what the layout says.

        Raises:
            ArgumentError: The module to fill has another config.
            LayoutError: The target's `build` fails.
            TensorMismatchError: The module to fill has other parameters.
        """
        if self._into is None:
            return request.build(arrays)
        self._require_fit(request)
        return fill(self._into, arrays)

    def _all_places(self, request: Request) -> Mapping[str, Sharding]:
        places: Mapping[str, Sharding] = shardings(self._mesh, self._rules, request.axes)
        if self._into is None or not self._follows_module:
            return places
        own = {path: self._own_place(value) for path, value in values_of(self._into).items()}
        return {path: own.get(path) or place for path, place in places.items()}

    def _own_place(self, value: Any) -> Sharding | None:
        """Where a parameter lies, or is to lie; None where that is open."""
        sharding = getattr(value, "sharding", None)
        if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, AbstractMesh):
            return sharding if isinstance(sharding, Sharding) else None
        if sharding.mesh != self._mesh.abstract_mesh:
            raise ShardingError(
                f"into: its parameters are to lie on {sharding.mesh}, which names no devices; give mesh=, or set such "
                "a mesh with jax.set_mesh"
            )
        return NamedSharding(self._mesh, sharding.spec)

    def _require_fit(self, *candidates: Request) -> None:
        """Makes sure that the module is one of those that a call can load."""
        if self._into is None:
            return
        errors = [_misfit(self._into, request) for request in candidates]
        if error := None if None in errors else errors[0]:
            raise error


def _require_fillable(into: nnx.Module | None, layout: LayoutOption) -> None:
    if into is None:
        return
    if not isinstance(into, nnx.Module):
        raise ArgumentError(f"into={type(into).__name__}: give a module of Flax NNX, or None for a new one")
    if layout != "nnx" and not isinstance(layout, Layout):
        raise LayoutError(
            f"into= fills a module by the paths of layout 'nnx' or of a lazyload.Layout, not of {type(layout).__name__}"
        )


def _misfit(module: nnx.Module, request: Request) -> ArgumentError | TensorMismatchError | None:
    """What keeps a module from being filled with what a request loads."""
    ours, theirs = getattr(module, "config", None), request.architecture
    if request.layout == "nnx" and isinstance(ours, DecoderConfig) and ours != theirs:
        return ArgumentError(
            f"into: the module is no {request.source.name}: {'; '.join(_differences(ours, theirs))}. Make it of "
            "lazyload.config(...), called with the same arguments"
        )
    problems = misfits(module, {path: shape for path, (shape, _) in request.axes.items()})
    headline = f"into: the module does not have the parameters of {request.source.name}:"
    return TensorMismatchError(headline, problems) if problems else None


def _differences(ours: DecoderConfig, theirs: DecoderConfig) -> list[str]:
    """How two decoders differ, the first differing layer standing for all: clauses."""
    found = [
        f"its {field.name} is {getattr(ours, field.name)!r:.100}, not {getattr(theirs, field.name)!r:.100}"
        for field in fields(DecoderConfig)
        if field.name != "layers" and getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    if ours.num_layers != theirs.num_layers:
        return [*found, f"it has {ours.num_layers} layers, not {theirs.num_layers}"]
    pairs = enumerate(zip(ours.layers, theirs.layers, strict=True))
    number, (own, other) = next(((n, pair) for n, pair in pairs if pair[0] != pair[1]), (0, (None, None)))
    if own is None or other is None:
        return found
    names = [field.name for field in fields(Layer) if getattr(own, field.name) != getattr(other, field.name)]
    return [*found, f"its layer {number} has another {' and '.join(names)}"]
