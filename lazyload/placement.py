"""Where the arrays of a call go, and what is made of them: a module that exists is filled, or a new one is built."""

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, Sharding

from lazyload.formats.tunix import Tunix
from lazyload.options import LayoutOption
from lazyload.request import Request
from lazyload.sharding import Rules, mesh_or_default, shardings, with_automatic_axes

if TYPE_CHECKING:
    from flax import nnx

    from lazyload.filling import Filling


class Placement:
    """What a call says of devices, and the module that it is to fill."""

    def __init__(self, mesh: Mesh | None, rules: Rules | None, layout: LayoutOption, into: "nnx.Module | None"):
        """Looks at the arguments alone; see `lazyload.from_pretrained` for them.

        Raises:
            ArgumentError: `into` is no module.
            LayoutError: The layout is none by which a module is filled.
            ShardingError: The mesh has no devices.
        """
        self._filling = None if into is None else _filling(into, layout)
        self._mesh = mesh_or_default(mesh)
        if isinstance(layout, Tunix):
            # Tunix's classes do not run on explicit ones, which `jax.make_mesh` makes.
            self._mesh = with_automatic_axes(self._mesh)
        self._rules = rules
        self._follows_module = mesh is None and rules is None
        self._known: tuple[Request, Mapping[str, Sharding]] | None = None
        self._made: tuple[Request, Filling] | None = None

    @property
    def devices(self) -> Set[jax.Device]:
        """All devices that the arrays may go to, whoever owns them."""
        places = self._filling.places(self._mesh) if self._filling and self._follows_module else {}
        own = {device for place in places.values() for device in place.device_set}
        return own or {*self._mesh.devices.flat}

    @property
    def mesh_shape(self) -> dict[str, int]:
        """The size of each axis of the mesh."""
        return dict(self._mesh.shape)

    def require(self, request: Request) -> None:
        """Makes sure that what the call will load can go where it is to go.

        Raises:
            ArgumentError: The module to fill has another config.
            ShardingError: A rule names an axis that the mesh, or the model, does not have, or one twice.
            TensorMismatchError: The module to fill has other parameters.
        """
        if self._filling:
            self._filling.require_fit(*request.candidates)
        elif made := self._made_for(request):
            made.require_fit(request)
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
        filling = self._filling or self._made_for(request)
        return filling.fill(request, arrays) if filling else request.build(arrays)

    def _all_places(self, request: Request) -> Mapping[str, Sharding]:
        places: Mapping[str, Sharding] = shardings(self._mesh, self._rules, request.axes)
        filling = (self._filling if self._follows_module else None) if self._filling else self._made_for(request)
        own = filling.places(self._mesh) if filling and self._rules is None else {}
        return {path: own.get(path) or place for path, place in places.items()}

    def _made_for(self, request: Request) -> "Filling | None":
        """The module that a call makes before it has arrays for it; None where it makes one of them."""
        if not isinstance(request.arguments.layout, Tunix):
            return None
        if self._made is None or self._made[0] is not request:
            from lazyload.models.tunix.module import abstract_module

            module = abstract_module(request.arguments.layout, request.family.name, request.architecture, self._mesh)
            self._made = request, _filling(module, request.arguments.layout)
        return self._made[1]


def _filling(module: "nnx.Module", layout: LayoutOption) -> "Filling":
    # Flax takes a while to import, and where there is no module to fill it is needed only in the end.
    from lazyload.filling import Filling

    return Filling(module, layout)
