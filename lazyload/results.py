"""What `convert` and `plan` return."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lazyload.bucket.path import Folder
from lazyload.cache.entry import Entry
from lazyload.cache.manifest import Manifest
from lazyload.checkpoint.reads import Kind, better_split, nbytes_read
from lazyload.display import text, weights
from lazyload.display.html import Html, facts, page
from lazyload.display.picture import Picture
from lazyload.display.values import named
from lazyload.errors import ArgumentError
from lazyload.partition import pieces

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh, Mesh, NamedSharding

    from lazyload.sharding import Rules


@dataclass(frozen=True)
class CachedCheckpoint:
    """A converted checkpoint in the cache.

    Attributes:
        path: The Orbax checkpoint folder; plain Orbax reads it, but for one at `s3://`. In a bucket it is no
            `pathlib.Path`, but its text is the URL.
        key: Its key.
        converted: Whether this call converted it; False for a hit.
        manifest: What the cache knows of it.
    """

    path: Folder
    key: str
    converted: bool
    manifest: Manifest

    def __repr__(self) -> str:
        return named(
            self,
            repr(self.manifest.model),
            text.size(self.manifest.nbytes),
            key=self.key,
            converted=self.converted,
            path=str(self.path),
        )

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the checkpoint from being removed while the body runs, for readers that outlive the call.

        Raises:
            EntryRemovedError: It has been removed, or converted again, since the call.

        Example:
            >>> with lazyload.convert("Qwen/Qwen3-8B").in_use():  # doctest: +SKIP
            ...     restore(converted.path)
        """
        folder = self.path.parents[1] if self.manifest.item else self.path.parent
        with Entry(folder, self.manifest).in_use():
            yield


@dataclass(frozen=True)
class Parameter:
    """One array of a plan.

    Attributes:
        shape: Its shape.
        dtype: The name of its dtype.
        axes: The logical axis of each dimension.
        nbytes: Its size in bytes.
        sources: The source tensors that it is made of.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    nbytes: int
    sources: tuple[str, ...]


class FleetReads(NamedTuple):
    """Bytes that all hosts of a fleet read together.

    Attributes:
        apart: If each read what its devices need.
        together: As they do: each byte about once, where devices exchange what they need.
    """

    apart: int
    together: int


@dataclass(frozen=True)
class Plan:
    """What a load would do.

    Attributes:
        model: The model's name.
        family: Its architecture.
        layout: The layout's name.
        parameters: The arrays, by path.
        skipped: Source tensors that are knowingly not used.
        other_layers: Those of them that belong to other layers than the ones asked for.
        unread: Source tensors that are left aside, because no model of this kind reads them.
        nbytes: The size of all arrays.
        hit: Whether the entry is in the cache.
        reasons: If not, why: sentences.
        mesh: The mesh that was asked about; None for none.
        rules: The rules that say how the mesh is used.
    """

    model: str
    family: str
    layout: str
    parameters: Mapping[str, Parameter]
    skipped: tuple[str, ...]
    other_layers: tuple[str, ...]
    unread: tuple[str, ...]
    nbytes: int
    hit: bool
    reasons: tuple[str, ...]
    mesh: "Mesh | AbstractMesh | None" = None
    rules: "Rules | None" = None
    _key: Callable[[], str] = field(repr=False, compare=False, kw_only=True)
    _kinds: Mapping[str, Kind] = field(repr=False, compare=False, kw_only=True)

    @functools.cached_property
    def key(self) -> str:
        """The key of the entry; of a folder that has never been loaded, the weights are read to tell it.

        Raises:
            LazyLoadError: The folder is gone, or is being written.
        """
        return self._key()

    @functools.cached_property
    def shardings(self) -> "Mapping[str, NamedSharding] | None":
        """Where every array goes on the mesh, by path; None without a mesh."""
        if self.mesh is None:
            return None
        # JAX takes a while to import, and without a mesh nothing here needs it.
        from lazyload.sharding import shardings

        return shardings(self.mesh, self.rules, self._axes)

    @property
    def bytes_per_device(self) -> int | None:
        """The bytes of all arrays that each device of the mesh holds; None without a mesh."""
        if self.mesh is None:
            return None
        from lazyload.sharding import partitions

        places = partitions(self.mesh, self.rules, self._axes)
        return sum(self.parameters[path].nbytes // pieces(place, self.mesh.shape) for path, place in places.items())

    def bytes_read(self, hosts: int) -> FleetReads:
        """What the hosts of a fleet read together of the converted checkpoint, if it is stored uncompressed.

        Args:
            hosts: How many there are; each has so many of the mesh's devices, in their order.

        Raises:
            ArgumentError: There is no mesh, or its devices are not divided by the hosts.
        """
        if self.mesh is None or hosts < 1 or self.mesh.size % hosts:
            devices = "no mesh" if self.mesh is None else f"a mesh of {self.mesh.size} devices"
            raise ArgumentError(f"hosts={hosts}: there is {devices}; give a mesh whose devices the hosts divide")
        from lazyload.sharding import grid_of, partitions

        owners = [device * hosts // self.mesh.size for device in range(self.mesh.size)]
        grid = grid_of(self.mesh)
        apart = together = 0
        for path, place in partitions(self.mesh, self.rules, self._axes).items():
            kind, limits = self._kinds[path], grid.limits(place)
            split = better_split(kind, limits, owners)
            nbytes = nbytes_read(kind, limits, owners)
            apart += nbytes
            together += nbytes_read(kind, split.limits(kind, len(owners)), owners) if split else nbytes
        return FleetReads(apart, together)

    def abstract(self) -> dict[str, Any]:
        """The arrays as `jax.ShapeDtypeStruct`s, with their shardings if there is a mesh: a nested dictionary.

        It has the structure of what a load returns: of `nnx.to_pure_dict(nnx.state(model))`, for the layout `"nnx"`,
        and of the nested dictionary itself for others.

        Example:
            Compile for a mesh of 256 devices that are not there, before anything is downloaded:

            >>> mesh = AbstractMesh((64, 4), ("fsdp", "tp"))  # doctest: +SKIP
            >>> plan = lazyload.plan("Qwen/Qwen3-8B", mesh=mesh)  # doctest: +SKIP
            >>> plan.abstract()["embed"]["embedding"].sharding.spec  # doctest: +SKIP
            PartitionSpec('tp', 'fsdp')
        """
        import jax
        from jax.numpy import dtype

        places: Mapping[str, Any] = self.shardings or {}
        tree: dict[str, Any] = {}
        for path, array in self.parameters.items():
            *parents, name = (self._step(part) for part in path.split("."))
            below = tree
            for parent in parents:
                below = below.setdefault(parent, {})
            below[name] = jax.ShapeDtypeStruct(array.shape, dtype(array.dtype), sharding=places.get(path))
        return tree

    def show(self) -> Picture:
        """Where the bytes go: by block, by layer, and by kind of array."""
        arrays = self._weights
        return Picture(f"{self._title}\n\n{weights.as_text(arrays)}", self._page(weights.as_html(arrays)))

    def __repr__(self) -> str:
        return named(
            self,
            repr(self.model),
            f"{len(self.parameters)} arrays",
            text.size(self.nbytes),
            family=self.family,
            layout=self.layout,
            hit=self.hit,
            **({} if self.mesh is None else {"mesh": text.mesh(self.mesh.shape)}),
        )

    def _repr_html_(self) -> str:
        return self._page(weights.bar(self._weights)).text

    @property
    def _axes(self) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
        return {path: (array.shape, array.axes) for path, array in self.parameters.items()}

    @property
    def _weights(self) -> dict[str, weights.Array]:
        return {path: weights.Array(p.shape, p.dtype, p.nbytes) for path, p in self.parameters.items()}

    @property
    def _title(self) -> str:
        return f"{self.model}: family {self.family}, layout {self.layout}, {self._amount}"

    @property
    def _amount(self) -> str:
        count = sum(math.prod(parameter.shape) for parameter in self.parameters.values())
        return f"{text.count(count)} parameters in {len(self.parameters)} arrays, {text.size(self.nbytes)}"

    def _page(self, shown: Html) -> Html:
        rows = [
            ("family", self.family),
            ("layout", self.layout),
            ("dtype", weights.dtypes(self._weights)),
            ("cache", "converted already" if self.hit else f"not converted yet: {'; '.join(self.reasons)}"),
        ]
        if self.mesh is not None and self.bytes_per_device is not None:
            rows.append(("mesh", f"{text.mesh(self.mesh.shape)}: {text.size(self.bytes_per_device)} on each device"))
        return page(self.model, f"plan: {self._amount}", facts(rows), shown)

    def _step(self, part: str) -> Any:
        """One step of a path, as the tree that a load returns has it: layers of a module are numbers."""
        return int(part) if self.layout in ("nnx", "nnx-scanned") and part.isdecimal() else part
