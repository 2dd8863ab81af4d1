"""A module that exists and is to be filled: whether a call's arrays fit it, and where they go in it."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, Sharding

from lazyload.architecture import DecoderConfig, Layer
from lazyload.errors import ArgumentError, LayoutError, ShardingError, TensorMismatchError
from lazyload.formats.tunix import Tunix
from lazyload.layouts.layout import Layout
from lazyload.models.fill import fill, misfits, values_of
from lazyload.options import DECODERS, LayoutOption
from lazyload.request import Request


class Filling:
    """A module to fill."""

    def __init__(self, module: nnx.Module, layout: LayoutOption):
        """Looks at the arguments alone.

        Args:
            module: The module.
            layout: By whose paths it is filled.

        Raises:
            ArgumentError: It is no module.
            LayoutError: The layout is none by which a module is filled.
        """
        if not isinstance(module, nnx.Module):
            raise ArgumentError(f"into={type(module).__name__}: give a module of Flax NNX, or None for a new one")
        if layout not in DECODERS and not isinstance(layout, Layout | Tunix):
            raise LayoutError(
                "into= fills a module by the paths of layout 'nnx', lazyload.Tunix() or a lazyload.Layout, not of "
                f"{type(layout).__name__}"
            )
        self._module = module

    def require_fit(self, *candidates: Request) -> None:
        """Makes sure that the module is one of those that a call can load.

        Raises:
            ArgumentError: It has another config.
            TensorMismatchError: It has other parameters.
        """
        errors = [_misfit(self._module, request) for request in candidates]
        if error := None if None in errors else errors[0]:
            raise error

    def places(self, mesh: Mesh) -> dict[str, Sharding]:
        """Where its parameters lie, or are to lie on a mesh; those of which that is open are left out.

        Raises:
            ShardingError: They are to lie on another mesh.
        """
        found = {path: _place(value, mesh) for path, value in values_of(self._module).items()}
        return {path: place for path, place in found.items() if place is not None}

    def fill(self, request: Request, arrays: Mapping[str, jax.Array]) -> nnx.Module:
        """Fills and returns it.

        Raises:
            ArgumentError: It has another config.
            TensorMismatchError: It has other parameters.
        """
        self.require_fit(request)
        return fill(self._module, arrays)


def _place(value: Any, mesh: Mesh) -> Sharding | None:
    """Where a parameter lies, or is to lie; None where that is open."""
    sharding = getattr(value, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, AbstractMesh):
        return sharding if isinstance(sharding, Sharding) else None
    if sharding.mesh != mesh.abstract_mesh:
        raise ShardingError(
            f"into: its parameters are to lie on {sharding.mesh}, which names no devices; give mesh=, or set such "
            "a mesh with jax.set_mesh"
        )
    return NamedSharding(mesh, sharding.spec)


def _misfit(module: nnx.Module, request: Request) -> ArgumentError | TensorMismatchError | None:
    """What keeps a module from being filled with what a request loads."""
    ours, theirs = getattr(module, "config", None), request.architecture
    if request.arguments.layout in DECODERS and isinstance(ours, DecoderConfig) and ours != theirs:
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
