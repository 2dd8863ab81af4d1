"""What a call asks for: its arguments resolved into a source, two layouts and the key of the entry they amount to."""

import contextlib
import functools
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from lazyload import families
from lazyload.architecture import DecoderConfig
from lazyload.arguments import ModelArguments
from lazyload.cache.cache import Cache
from lazyload.cache.entry import Form
from lazyload.cache.key import ENTRY_FORMAT, Key
from lazyload.cache.upgrade import tell_outdated
from lazyload.checkpoint.pathways import reads_every_format
from lazyload.config_json.overrides import overridden
from lazyload.errors import ArgumentError, LayoutError, LazyLoadError, TensorMismatchError
from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.formats.stored import has_own_head, may_be_left_aside, require_plausible, tied_names, what_it_is
from lazyload.formats.target import Target
from lazyload.layouts.conversion import Conversion, axes_of, digest, form_of, resolve
from lazyload.layouts.dtypes import DTypes
from lazyload.layouts.part import Part
from lazyload.layouts.pattern import Array
from lazyload.layouts.source import TensorSource
from lazyload.layouts.unroll import unroll_tree
from lazyload.options import LayoutOption, dtype_patterns, dtypes_for, require_layers, storage_of
from lazyload.progress import CallProgress
from lazyload.recalling import adapter_of, source_of
from lazyload.sources import AdapterFiles, ModelReference, Source, open_adapter
from lazyload.sources.remembered import RememberedSource, Told
from lazyload.sources.stretches import Rows
from lazyload.storage import Storage
from lazyload.targets import target_of, with_all_parameters

if TYPE_CHECKING:
    import jax

    from lazyload.adapting import Merged

logger = logging.getLogger("lazyload")


@dataclass(frozen=True)
class Request:
    """One call's arguments, resolved.

    Attributes:
        arguments: The arguments.
        source: The checkpoint; its weights have not been looked at.
        family: Its family.
        whole: What its `config.json` means.
        layers: Which of its layers are wanted; None for all.
        architecture: The model of these layers.
        target: What is wanted.
        dtypes: The dtypes of floating-point parameters.
        storage: How the entry is stored, every flag concrete.
        cache: Where entries are.
        fields: The key's fields, but for the source's identity.
        adapter: What is merged into the source's tensors; None for nothing.
        kept_apart: The adapter that is not merged into them; None for none.
    """

    arguments: ModelArguments
    source: Source | RememberedSource
    family: Family
    whole: Any
    layers: range | None
    architecture: Any
    target: Target[Any]
    dtypes: DTypes
    storage: Storage
    cache: Cache
    fields: Mapping[str, Any]
    adapter: AdapterFiles | None = None
    kept_apart: AdapterFiles | None = None

    @functools.cached_property
    def tensors(self) -> TensorSource:
        """The source's tensors, with the adapter merged into them.

        Raises:
            TensorMismatchError: The adapter is one of another model.
            UnsupportedFormatError: It has a feature that is not read.
        """
        return self._merged or self.source

    @functools.cached_property
    def _merged(self) -> "Merged | None":
        """The source's tensors with the adapter; None for none."""
        if self.adapter is None:
            return None
        # It takes a while to import, and most calls have no adapter.
        from lazyload.adapting import Merged

        tied = None
        if self.fields["own_head"] is not None:
            # By `config.json`, also where this is the request for what turned out to be stored.
            tied = tied_names(self.source, self.family.stored(_with_own_head(self.whole) or self.whole))
        return Merged(self.source, self.adapter, self.family, self.whole, tied)

    def of_source(self, names: Collection[str]) -> list[str]:
        """The source's tensors that are read for some tensors, each as often as it is read."""
        return self._merged.of_base(names) if self._merged else list(names)

    def rows_of_source(self, rows: Rows) -> Rows:
        """The rows of the source's tensors that are read for rows of some tensors, each as often as it is read."""
        return self._merged.rows_of_base(rows) if self._merged else rows

    def stored_bytes(self, name: str) -> int:
        """How many bytes of the source are read for a tensor."""
        return sum(map(self.source.stored_bytes, self.of_source([name])))

    @property
    def origin(self) -> Mapping[str, Any]:
        """What the entry's manifest says of where the tensors come from."""
        # One that is recalled from an entry has what that one's says.
        own = {name: value for name, value in self.source.origin.items() if name not in ("adapter", "compared")}
        if self.source.compared:
            own["compared"] = dict(self.source.compared)
        return own if self.adapter is None else {**own, "adapter": self.adapter.origin}

    @property
    def key(self) -> Key:
        """The entry that all of this amounts to.

        Raises:
            CorruptSourceError: The source's files are being written.
        """
        return Key({"source": dict(self.source.identity), **self.fields})

    @property
    def working_key(self) -> Key:
        """What the entry is called while it is converted, as long as it is not known what the source contains.

        It is the same for all who convert the same files at the same time.

        Raises:
            CorruptSourceError: The source's files are being written.
            SourceNotFoundError: One of them is gone.
        """
        return Key({"source": {"status": dict(self.source.status)}, **self.fields})

    def conversion(self) -> Conversion:
        """The lazy tensors that the entry consists of; looks at the headers of the source's files.

        Raises:
            CorruptSourceError: A file of the checkpoint is malformed.
            ConfigError: `config.json` speaks of far more than is stored.
            TensorMismatchError: The tensors are not those that the family has.
        """
        if self.adapter is not None:
            from lazyload.adapting import warn_of_other_base

            warn_of_other_base(self.adapter, self.source.name)
        source_layout = self.family.stored(self.whole)
        require_plausible(self.tensors, source_layout, self.whole)
        try:
            conversion = resolve(
                self.tensors,
                source_layout,
                self.target.layout,
                self.architecture,
                self.dtypes,
                lambda name: not self.arguments.strict and may_be_left_aside(name, self.tensors),
                None if self.layers is None else Part(self.whole, self.layers),
            )
        except TensorMismatchError as error:
            headline = error.headline + what_it_is(self.source)
            raise TensorMismatchError(headline, error.problems) from None
        if conversion.unread:
            logger.warning(
                "%s: left aside, because no model of this kind reads them: %s; strict=True makes this an error",
                self.source.name,
                ", ".join(conversion.unread),
            )
        skipped = tuple(sorted({*conversion.skipped, *self.source.skipped}))
        if skipped:
            among = f"{len(skipped)} tensors, {skipped[0]} to {skipped[-1]}"
            logger.info("%s: knowingly not used: %s; lazyload.plan(...).skipped lists them", self.source.name, among)
        return replace(conversion, skipped=skipped)

    @property
    def may_be_cached(self) -> bool:
        """Whether the cache may have the entry, by what is known without reading weights as a whole."""
        return self.source.is_identified or not self.cache.names_last or self.cache.has_made(self.source.origin)

    def reasons(self) -> list[str]:
        """Why the cache has no such entry: sentences."""
        if not self.may_be_cached:
            root, name = self.cache.root, self.source.name
            return self.cache.explain_outdated(name) or [
                f"{name} has not been converted into {root}: nothing there was made of files of the same sizes"
            ]
        return self.cache.explain(self.key, self.source.name)

    def settled(self) -> "Request":
        """The request for what is stored: a model that `config.json` calls tied may have a head of its own.

        Looks at the headers of the source's files; reads embedding and head where both are there, of those that are far
        away samples (`Source.looks_equal`). The entry's key is the same: what is stored follows from the source's
        identity, which it covers, and so does how either kind of model is converted.
        """
        untied = self._untied
        if untied is None:
            return self
        looks_equal = (self._merged or self.source).looks_equal
        if not has_own_head(self.tensors, untied.family.stored(untied.whole), looks_equal):
            return self
        logger.warning(
            "%s: config.json ties the output projection to the embedding, but another one is stored: it is used",
            self.source.name,
        )
        return untied

    def build(self, arrays: "Mapping[str, jax.Array]") -> Any:
        """Makes what the call returns.

        Raises:
            LayoutError: The target's `build` fails.
        """
        try:
            return self.target.build(self.architecture, arrays)
        except LazyLoadError:
            raise
        except Exception as error:
            raise LayoutError(
                f"build of layout {self.target.layout.name!r} failed: {type(error).__name__}: {error}"
            ) from error

    def in_layout(self, layout: LayoutOption) -> "Request":
        """The same model in another layout; its key is that of the first one still.

        Raises:
            LayoutError: The model has no such layout.
        """
        arguments = replace(self.arguments, layout=layout)
        whole = with_all_parameters(layout, self.whole)
        architecture = self.architecture if whole is self.whole else _part(whole, self.layers)
        target = target_of(arguments, self.family, architecture)
        return replace(self, arguments=arguments, whole=whole, architecture=architecture, target=target)

    def as_stored(self, arrays: Collection[str]) -> "Request":
        """The request for what an entry of this key holds.

        Args:
            arrays: The paths of the entry's arrays.
        """
        untied, paths = self._untied, set(arrays)
        if untied is None or paths == self.axes.keys() or paths != untied.axes.keys():
            return self
        return untied

    @functools.cached_property
    def axes(self) -> Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]:
        """Shape and logical axes of every array of the entry, by path."""
        return axes_of(self._arrays)

    @property
    def candidates(self) -> list[Self]:
        """What the entry can be: what `config.json` says, or the same with a head of its own."""
        return [self] if self._untied is None else [self, self._untied]

    @property
    def forms(self) -> Iterator[Form]:
        """What the entry's arrays can be, shapes and dtypes by path; each made when it is asked for."""
        return (form_of(request._arrays, request.dtypes) for request in self.candidates)

    @functools.cached_property
    def _arrays(self) -> Mapping[str, Array]:
        return unroll_tree(self.target.layout, self.architecture)

    @functools.cached_property
    def _untied(self) -> Self | None:
        """The same with a head of its own; None where it has one already, or is no decoder of this library."""
        whole = _with_own_head(self.whole)
        if whole is None:
            return None
        untied = _part(whole, self.layers)
        return replace(self, whole=whole, architecture=untied, target=target_of(self.arguments, self.family, untied))


@contextlib.contextmanager
def open_request(
    arguments: ModelArguments,
    progress: CallProgress | None = None,
    *,
    dry_run: bool = False,
    told: Told | None = None,
    adapter: AdapterFiles | None = None,
) -> Iterator[Request]:
    """Resolves a call's arguments; see `lazyload.from_pretrained` for what is raised.

    The source is open while the body runs.

    Args:
        arguments: The arguments.
        progress: The call's, where weights must be read to tell which they are; None for nobody's.
        dry_run: Whether nothing is written, not even what is found out about a folder.
        told: What another process has found out about a hub model, so that nobody is asked; None for nothing.
        adapter: The adapter, where another process has found out which one it is.
    """
    flags = storage_of(arguments.storage).resolve(reads_every_format=reads_every_format)
    _require_family(arguments.family)
    patterns = dtype_patterns(arguments.dtype)
    require_layers(arguments.layers)
    cache = _cache(arguments.cache_dir)
    contents = cache.contents.read_only() if dry_run else cache.contents
    if not dry_run:
        tell_outdated(cache)
    reference = arguments.adapter_reference
    with contextlib.closing(source_of(arguments.reference, cache, contents, progress, told)) as source:
        if reference is not None and adapter is None:
            adapter = _adapter(reference, cache, source.name, merge=arguments.merge)
        merged = adapter if arguments.merge else None
        values = overridden(source.config, arguments.config)
        family = arguments.family or families.find(values)
        whole = with_all_parameters(arguments.layout, family.read(values))
        layers = _fewer(arguments.layers, whole)
        architecture = _part(whole, layers)
        if layers is not None and isinstance(arguments.layout, MaxText):
            _require_places(whole, architecture)
        dtypes = dtypes_for(patterns, values)
        target = target_of(arguments, family, architecture)
        if dtypes.patterns:
            dtypes = _fitted(dtypes, arguments, family, architecture)
        fields: dict[str, Any] = {
            "config": arguments.config,
            "mapping": digest(family.stored(whole), target.layout, architecture),
            "own_head": _own_head_digest(arguments, family, whole, layers),
            "layout": target.layout.name,
            "container": target.description(),
            "dtype": dtypes.description(),
            "adapter": None if merged is None else dict(merged.identity),
            "storage": flags.fields(),
            "format": ENTRY_FORMAT,
        }
        if layers is not None:
            fields["layers"] = [layers.start, layers.stop]
        yield Request(
            arguments=arguments,
            source=source,
            family=family,
            whole=whole,
            layers=layers,
            architecture=architecture,
            target=target,
            dtypes=dtypes,
            storage=flags,
            cache=cache,
            fields=fields,
            adapter=merged,
            kept_apart=None if arguments.merge else adapter,
        )


def _adapter(reference: ModelReference, cache: Cache, model: str, *, merge: bool) -> AdapterFiles:
    """The adapter; of one that is not merged, no entry knows anything."""
    from lazyload.formats import peft

    if merge:
        return adapter_of(reference, cache, model, peft.CONFIG, peft.WEIGHTS)
    return open_adapter(reference, peft.CONFIG, peft.WEIGHTS)


def read_config(arguments: ModelArguments) -> Any:
    """What a model's `config.json` means; see `lazyload.config` for what is raised."""
    _require_family(arguments.family)
    require_layers(arguments.layers)
    cache = _cache(arguments.cache_dir)
    with contextlib.closing(source_of(arguments.reference, cache, cache.contents.read_only(), None)) as source:
        values = overridden(source.config, arguments.config)
        whole = (arguments.family or families.find(values)).read(values)
        return _part(whole, _fewer(arguments.layers, whole))


def _require_family(family: object) -> None:
    if not isinstance(family, Family | None):
        raise ArgumentError(f"family={family!r:.200} is no lazyload.Family")


def _cache(cache_dir: str | os.PathLike[str] | None) -> Cache:
    if not isinstance(cache_dir, str | os.PathLike | None):
        raise ArgumentError(f"cache_dir={cache_dir!r:.200}: give a folder, or a URL such as gs://bucket/path")
    return Cache(cache_dir)


def _with_own_head(architecture: Any) -> DecoderConfig | None:
    """A tied decoder, untied; None for everything else."""
    is_tied = isinstance(architecture, DecoderConfig) and architecture.tied and architecture.head is None
    return replace(architecture, tied=False) if is_tied else None


def _own_head_digest(arguments: ModelArguments, family: Family, whole: Any, layers: range | None) -> str | None:
    """How the model is converted if the checkpoint turns out to have a head of its own."""
    untied = _with_own_head(whole)
    if untied is None:
        return None
    architecture = _part(untied, layers)
    return digest(family.stored(untied), target_of(arguments, family, architecture).layout, architecture)


def _fewer(layers: range | None, whole: Any) -> range | None:
    """The layers that are wanted; None for all, so that all of them are the whole model, however it is asked for.

    Raises:
        ArgumentError: The model has no such layers, or is none whose layers are known.
    """
    if layers is None:
        return None
    if not isinstance(whole, DecoderConfig):
        raise ArgumentError(
            f"layers= is for models that a lazyload.DecoderConfig describes, not {type(whole).__name__}"
        )
    require_layers(layers, whole.num_layers)
    return layers if len(layers) < whole.num_layers else None


def _require_places(whole: DecoderConfig, part: DecoderConfig) -> None:
    """Makes sure that some layers of a model are ones that MaxText would make of their number.

    Raises:
        LayoutError: One is of another kind than the whole model has at that place.
    """
    for number, layer in enumerate(part.layers):
        if layer.mixer != whole.layers[number].mixer:
            raise LayoutError(
                f"layers=: MaxText decides by a layer's number of what kind it is, and layer {number} of the part is "
                f"of another kind than layer {number} of the whole model; begin at 0, or where a cycle of kinds begins"
            )


def _part(whole: Any, layers: range | None) -> Any:
    return whole if layers is None else whole.part(layers)


def _fitted(dtypes: DTypes, arguments: ModelArguments, family: Family, architecture: Any) -> DTypes:
    """The dtypes for the arrays that the target can have: a head of its own may yet turn out to be stored."""
    most = _with_own_head(architecture) or architecture
    return dtypes.fitted(unroll_tree(target_of(arguments, family, most).layout, most).values())
