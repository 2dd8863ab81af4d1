"""What a call asks for: its arguments resolved into a source, two layouts and the key of the entry they amount to."""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lazyload import families
from lazyload.adapting import Merged, warn_of_other_base
from lazyload.architecture import DecoderConfig
from lazyload.cache.cache import Cache
from lazyload.cache.contents import Contents
from lazyload.cache.entry import Entry, Form
from lazyload.cache.key import ENTRY_FORMAT, Key
from lazyload.cache.upgrade import tell_outdated
from lazyload.checkpoint.pathways import reads_every_format
from lazyload.config_json.overrides import overridden
from lazyload.errors import (
    AccessDeniedError,
    ArgumentError,
    LayoutError,
    LazyLoadError,
    SourceNotFoundError,
    TensorMismatchError,
)
from lazyload.families.family import Family
from lazyload.formats import peft
from lazyload.formats.maxtext import MaxText
from lazyload.formats.nnx import layout as nnx_layout
from lazyload.formats.nnx import stacked_layout
from lazyload.formats.stored import has_own_head, may_be_left_aside, require_plausible, tied_names, what_it_is
from lazyload.formats.target import Target, nested
from lazyload.formats.tensor_names import tensor_names
from lazyload.formats.tunix import Tunix
from lazyload.layouts.conversion import Conversion, axes_of, digest, form_of, resolve
from lazyload.layouts.dtypes import DTypes
from lazyload.layouts.layout import Layout
from lazyload.layouts.part import Part
from lazyload.layouts.pattern import Array
from lazyload.layouts.source import TensorSource
from lazyload.layouts.unroll import unroll_tree
from lazyload.options import (
    DTypeOption,
    LayoutOption,
    StorageOption,
    dtype_patterns,
    dtypes_for,
    require_layers,
    storage_of,
)
from lazyload.progress import CallProgress
from lazyload.sources import AdapterFiles, ModelReference, Source, adapter_at, open_adapter, open_source
from lazyload.sources.files import CONFIG
from lazyload.sources.remembered import RememberedSource, Told
from lazyload.storage import Storage

if TYPE_CHECKING:
    import jax

    from lazyload.models.decoder import Decoder

logger = logging.getLogger("lazyload")


@dataclass(frozen=True)
class Request:
    """One call's arguments, resolved.

    Attributes:
        source: The checkpoint; its weights have not been looked at.
        family: Its family.
        whole: What its `config.json` means.
        layers: Which of its layers are wanted; None for all.
        architecture: The model of these layers.
        target: What is wanted.
        layout: The same, as the call named it.
        compute_dtype: What the decoder that is built computes in; None for the dtype of its parameters.
        strict: Whether a tensor without use is an error even where it cannot matter.
        dtypes: The dtypes of floating-point parameters.
        storage: How the entry is stored, every flag concrete.
        cache: Where entries are.
        fields: The key's fields, but for the source's identity.
        adapter: What is merged into the source's tensors; None for nothing.
    """

    source: Source | RememberedSource
    family: Family
    whole: Any
    layers: range | None
    architecture: Any
    target: Target[Any]
    layout: LayoutOption
    compute_dtype: np.dtype | None
    strict: bool
    dtypes: DTypes
    storage: Storage
    cache: Cache
    fields: Mapping[str, Any]
    adapter: AdapterFiles | None = None

    @functools.cached_property
    def tensors(self) -> TensorSource:
        """The source's tensors, with the adapter merged into them.

        Raises:
            TensorMismatchError: The adapter is one of another model.
            UnsupportedFormatError: It has a feature that is not read.
        """
        if self.adapter is None:
            return self.source
        aliases = self.family.stored(self.whole).aliases
        tied = None
        if self.fields["own_head"] is not None:
            # By `config.json`, also where this is the request for what turned out to be stored.
            tied = tied_names(self.source, self.family.stored(_with_own_head(self.whole) or self.whole))
        return Merged(self.source, self.adapter, aliases, tied)

    def of_source(self, names: Collection[str]) -> set[str]:
        """Those of some tensors for which the source is read."""
        return self.tensors.of_base(names) if isinstance(self.tensors, Merged) else set(names)

    @property
    def origin(self) -> Mapping[str, Any]:
        """What the entry's manifest says of where the tensors come from."""
        return self.source.origin if self.adapter is None else {**self.source.origin, "adapter": self.adapter.origin}

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
                lambda name: not self.strict and may_be_left_aside(name, self.tensors),
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
        looks_equal = {"looks_equal": self.source.looks_equal} if self.adapter is None else {}
        if not has_own_head(self.tensors, untied.family.stored(untied.whole), **looks_equal):
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
        whole = _with_all_parameters(layout, self.whole)
        architecture = self.architecture if whole is self.whole else _part(whole, self.layers)
        target = _target(layout, self.family, architecture)
        return replace(self, layout=layout, whole=whole, architecture=architecture, target=target)

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
        return replace(
            self, whole=whole, architecture=untied, target=_target(self.layout, self.family, untied, self.compute_dtype)
        )


@contextlib.contextmanager
def open_request(
    reference: ModelReference,
    dtype: DTypeOption,
    layout: LayoutOption,
    storage: StorageOption,
    cache_dir: str | os.PathLike[str] | None,
    family: Family | None,
    strict: bool = False,
    config: Mapping[str, Any] | None = None,
    progress: CallProgress | None = None,
    dry_run: bool = False,
    layers: range | None = None,
    compute_dtype: np.dtype | None = None,
    adapter: ModelReference | None = None,
    told: Told | None = None,
) -> Iterator[Request]:
    """Resolves a call's arguments; see `lazyload.from_pretrained` for them and for what is raised.

    The source is open while the body runs. In a dry run nothing is written, not even what is found out about a folder.
    Of a hub model that another process has been `told` of, nobody is asked.
    """
    flags = storage_of(storage).resolve(reads_every_format=reads_every_format)
    _require_family(family)
    patterns = dtype_patterns(dtype)
    require_layers(layers)
    cache = _cache(cache_dir)
    contents = cache.contents.read_only() if dry_run else cache.contents
    if not dry_run:
        tell_outdated(cache)
    with contextlib.closing(_open_source(reference, cache, contents, progress, told)) as source:
        adapter_files = None if adapter is None else _open_adapter(adapter, cache, source.name)
        values = overridden(source.config, config)
        family = family or families.find(values)
        whole = _with_all_parameters(layout, family.read(values))
        layers = _fewer(layers, whole)
        architecture = _part(whole, layers)
        if layers is not None and isinstance(layout, MaxText):
            _require_places(whole, architecture)
        dtypes = dtypes_for(patterns, values)
        target = _target(layout, family, architecture, compute_dtype)
        if dtypes.patterns:
            dtypes = _fitted(dtypes, layout, family, architecture)
        fields: dict[str, Any] = {
            "config": config,
            "mapping": digest(family.stored(whole), target.layout, architecture),
            "own_head": _own_head_digest(layout, family, whole, layers),
            "layout": target.layout.name,
            "container": target.description(),
            "dtype": dtypes.description(),
            "adapter": None if adapter_files is None else dict(adapter_files.identity),
            "storage": flags.fields(),
            "format": ENTRY_FORMAT,
        }
        if layers is not None:
            fields["layers"] = [layers.start, layers.stop]
        yield Request(
            source=source,
            family=family,
            whole=whole,
            layers=layers,
            architecture=architecture,
            target=target,
            layout=layout,
            compute_dtype=compute_dtype,
            strict=strict,
            dtypes=dtypes,
            storage=flags,
            cache=cache,
            fields=fields,
            adapter=adapter_files,
        )


def _with_all_parameters(layout: LayoutOption, whole: Any) -> Any:
    """A model as a layout has it: classes of others may have parameters that nobody reads."""
    return layout.with_all_parameters(whole) if isinstance(layout, Tunix) else whole


def read_config(
    reference: ModelReference,
    cache_dir: str | os.PathLike[str] | None,
    family: Family | None,
    config: Mapping[str, Any] | None,
    layers: range | None,
) -> Any:
    """What a model's `config.json` means; see `lazyload.config` for the arguments and for what is raised."""
    _require_family(family)
    require_layers(layers)
    cache = _cache(cache_dir)
    with contextlib.closing(_open_source(reference, cache, cache.contents.read_only(), None)) as source:
        values = overridden(source.config, config)
        whole = (family or families.find(values)).read(values)
        return _part(whole, _fewer(layers, whole))


def _require_family(family: object) -> None:
    if not isinstance(family, Family | None):
        raise ArgumentError(f"family={family!r:.200} is no lazyload.Family")


def _cache(cache_dir: str | os.PathLike[str] | None) -> Cache:
    if not isinstance(cache_dir, str | os.PathLike | None):
        raise ArgumentError(f"cache_dir={cache_dir!r:.200}: give a folder, or a URL such as gs://bucket/path")
    return Cache(cache_dir)


def _open_source(
    reference: ModelReference,
    cache: Cache,
    contents: Contents,
    progress: CallProgress | None,
    told: Told | None = None,
) -> Source | RememberedSource:
    """The source, or what the cache remembers of it.

    That is all that a hit needs of a hub model: where the commit is known, nothing else is asked for, and where the hub
    is out of reach, or does not let this user in, not even that.
    """
    if told is not None:
        return RememberedSource(
            reference.name, told.config, told.identity, told.origin, _reopening(reference, told.identity)
        )
    entries = cache.recall(reference.name, reference.revision) if reference.is_hub_id else []
    entries = [entry for entry in entries if _is_of_place(entry, reference)]
    if not entries:
        try:
            return open_source(reference, contents, progress)
        except SourceNotFoundError as error:
            if outdated := cache.explain_outdated(reference.name):
                raise SourceNotFoundError(f"{error}; {outdated[0]}, which must convert it again") from None
            raise
    reachable = reference
    try:
        commit = _commit_of(reference)
    except (SourceNotFoundError, AccessDeniedError) as error:
        logger.info("using what is cached of %s: %s", reference.name, error)
        reachable, commit = replace(reference, local_files_only=True), None
    for entry in entries:
        if entry.manifest.fields["source"]["commit"] == commit:
            return _remembered(entry, reference)
    try:
        return open_source(reachable)
    except (SourceNotFoundError, AccessDeniedError):
        return _remembered(entries[0], reference)


def _is_of_place(entry: Entry, reference: ModelReference) -> bool:
    """Whether an entry was made of the files of its repository that are meant."""
    identity = entry.manifest.fields["source"]
    return {name: identity[name] for name in ("subfolder", "variant") if identity.get(name)} == reference.place


def _open_adapter(reference: ModelReference, cache: Cache, model: str) -> AdapterFiles:
    """The adapter, or what entries of the model say of it: a hit needs no more of one on the hub than its commit."""
    known = _known_adapters(reference, cache, model) if reference.is_hub_id else []
    if not known:
        return open_adapter(reference, peft.CONFIG, peft.WEIGHTS)
    reachable = reference
    try:
        commit = _commit_of(reference, peft.CONFIG)
    except (SourceNotFoundError, AccessDeniedError) as error:
        logger.info("using what is cached of %s: %s", reference.name, error)
        reachable, commit = replace(reference, local_files_only=True), None
    for adapter in known:
        if adapter.identity["commit"] == commit:
            return adapter
    try:
        return open_adapter(reachable, peft.CONFIG, peft.WEIGHTS)
    except (SourceNotFoundError, AccessDeniedError):
        return known[0]


def _known_adapters(reference: ModelReference, cache: Cache, model: str) -> list[AdapterFiles]:
    """What is known of a hub adapter's revision from the entries of a model that it is merged into, newest first."""
    found = []
    for entry in sorted(cache.entries(model), key=lambda entry: entry.created, reverse=True):
        identity, origin = entry.manifest.fields.get("adapter"), entry.manifest.source.get("adapter")
        if not isinstance(identity, Mapping) or not isinstance(origin, Mapping) or "commit" not in identity:
            continue
        at = {"kind": "hub", "id": reference.name, "commit": identity["commit"], **reference.place}
        if identity == at and (reference.revision or "main") in (identity["commit"], origin.get("revision") or "main"):
            found.append(adapter_at(reference, identity, origin, peft.CONFIG, peft.WEIGHTS))
    return found


def _remembered(entry: Entry, reference: ModelReference) -> RememberedSource:
    identity = entry.manifest.fields["source"]
    return RememberedSource(
        entry.model, entry.manifest.config, identity, entry.manifest.source, _reopening(reference, identity)
    )


def _reopening(reference: ModelReference, identity: Mapping[str, Any]) -> Callable[[], Source]:
    """What opens the source of an identity: its commit, not the branch, which may have moved on."""
    return functools.partial(open_source, replace(reference, revision=identity["commit"]))


def _commit_of(reference: ModelReference, file: str = CONFIG) -> str | None:
    """The commit that a revision is at, asked for one of its files; None where the hub must not be asked."""
    if reference.commit or reference.local_files_only:
        return reference.commit
    from lazyload.sources.hub import current_commit

    return current_commit(reference, file)


def _with_own_head(architecture: Any) -> DecoderConfig | None:
    """A tied decoder, untied; None for everything else."""
    is_tied = isinstance(architecture, DecoderConfig) and architecture.tied and architecture.head is None
    return replace(architecture, tied=False) if is_tied else None


def _own_head_digest(layout: LayoutOption, family: Family, whole: Any, layers: range | None) -> str | None:
    """How the model is converted if the checkpoint turns out to have a head of its own."""
    untied = _with_own_head(whole)
    if untied is None:
        return None
    architecture = _part(untied, layers)
    return digest(family.stored(untied), _target(layout, family, architecture).layout, architecture)


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


def _fitted(dtypes: DTypes, layout: LayoutOption, family: Family, architecture: Any) -> DTypes:
    """The dtypes for the arrays that the target can have: a head of its own may yet turn out to be stored."""
    most = _with_own_head(architecture) or architecture
    return dtypes.fitted(unroll_tree(_target(layout, family, most).layout, most).values())


def _target(
    layout: LayoutOption, family: Family, architecture: Any, compute_dtype: np.dtype | None = None
) -> Target[Any]:
    match layout:
        case Target():
            return layout
        case Layout():
            return Target(layout, nested)
        case MaxText() | Tunix() if getattr(architecture, "head", None) is not None:
            name = type(layout).__name__
            raise LayoutError(f"layout {name}: the model scores texts, and {name} has no place for its head")
        case MaxText():
            return layout.target(family.name, architecture)
        case Tunix() if isinstance(architecture, DecoderConfig):
            return Target(layout.layout(family.name, architecture), nested)
        case "nnx" | "nnx-scanned" if not isinstance(architecture, DecoderConfig):
            raise LayoutError(
                f"layout {layout!r} is for models that a lazyload.DecoderConfig describes; family "
                f"{family.name!r} reads config.json as {type(architecture).__name__}: give a lazyload.Layout or "
                "lazyload.Target"
            )
        case "nnx":
            return Target(nnx_layout(architecture), functools.partial(_decoder, family, compute_dtype=compute_dtype))
        case "nnx-scanned":
            scanned = functools.partial(_decoder, family, compute_dtype=compute_dtype, scan_layers=True)
            return Target(stacked_layout(architecture), scanned)
    raise LayoutError(
        f"layout {layout!r} is not known for family {family.name!r}; give 'nnx', lazyload.MaxText(...), "
        "lazyload.Tunix(...), a lazyload.Layout or a lazyload.Target"
    )


def _decoder(
    family: Family,
    architecture: Any,
    arrays: "Mapping[str, jax.Array]",
    compute_dtype: np.dtype | None = None,
    scan_layers: bool = False,
) -> "Decoder":
    """The decoder; Flax is imported only where a module is wanted."""
    from lazyload.models.decoder import Decoder
    from lazyload.models.fill import fill

    # Not `nnx.eval_shape`, whose time grows with the square of the number of parameters.
    dtype = arrays["embed.embedding"].dtype
    decoder = Decoder(architecture, dtype=dtype, compute_dtype=compute_dtype, scan_layers=scan_layers, rngs=None)
    decoder.hub_names = tuple(tensor_names(nnx_layout(architecture), family.stored(architecture)).items())
    return fill(decoder, arrays)
