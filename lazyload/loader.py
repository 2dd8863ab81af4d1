"""`from_pretrained`, `convert` and `plan`: the life of a call.

A call opens the source, derives from two layouts what the conversion is, and looks the resulting key up in the cache.
On a miss it converts under the key's lock. Either way it ends with an entry, from which every device reads its own
shards.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from lazyload.cache.conversions import in_progress
from lazyload.cache.entry import Entry
from lazyload.cache.termination import cleaning_up
from lazyload.errors import ArgumentError, CacheError, EntryRemovedError
from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.formats.target import Target
from lazyload.layouts.conversion import Conversion
from lazyload.layouts.layout import Layout
from lazyload.options import DTypeOption, LayoutOption, LoadOptions, StorageOption, explains_arguments
from lazyload.progress import ProgressOption, require_progress, show_progress
from lazyload.report import LoadReport, Stopwatch, set_last_report
from lazyload.request import Request, open_request
from lazyload.results import CachedCheckpoint, Parameter, Plan
from lazyload.sources import ModelReference

if TYPE_CHECKING:
    import jax

    from lazyload.models.decoder import Decoder
    from lazyload.sharding import Rules

Built = TypeVar("Built")
Used = TypeVar("Used")

logger = logging.getLogger("lazyload")


@overload
def from_pretrained(
    model: str | os.PathLike[str], *, layout: Literal["nnx"] = "nnx", **options: Unpack[LoadOptions]
) -> "Decoder": ...
@overload
def from_pretrained(
    model: str | os.PathLike[str], *, layout: Layout | MaxText, **options: Unpack[LoadOptions]
) -> dict[str, Any]: ...
@overload
def from_pretrained(
    model: str | os.PathLike[str], *, layout: Target[Built], **options: Unpack[LoadOptions]
) -> Built: ...
@explains_arguments
def from_pretrained(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    mesh: "jax.sharding.Mesh | None" = None,
    rules: "Rules | None" = None,
    dtype: DTypeOption = "bfloat16",
    layout: LayoutOption = "nnx",
    layers: range | None = None,
    storage: StorageOption = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_convert: bool = False,
    lock_timeout: float | None = None,
    verify: bool = False,
    progress: ProgressOption = None,
    strict: bool = False,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
) -> Any:
    """Loads a pretrained model onto the devices of a mesh.

    The first call converts the Hugging Face checkpoint into the cache; every later one restores the converted
    checkpoint, on whatever mesh.

    Args:
        model: A hub id (`"Qwen/Qwen3-8B"`), a local folder, or a URL that fsspec understands (`gs://`, `s3://`, ...).
        revision: A branch, tag or commit of a hub model; None for `main`.
        subfolder: Where in the repository or folder the checkpoint lies.
        variant: Which files of weights: `"fp16"` for `model.fp16.safetensors`, or what its index names.
        mesh: Where the parameters go; None for the mesh that `jax.set_mesh` has set, else all devices on one axis
            `fsdp`.
        rules: From logical axis (`vocab embed layer head kv_head head_dim mlp expert expert_mlp ...`) to mesh axis, to
            several, or to None; what is not named follows the default rules.
        dtype: The stored and returned dtype of floating-point parameters: bfloat16, float16 or float32, as NumPy, JAX,
            PyTorch or a text name it; `"auto"` for the one that `config.json` names. Or dtypes by pattern, `{"*norm*":
            "float32", "router": "float32", "*": "bfloat16"}`: globs, as `fnmatch` reads them, of roles (`attn.q_norm`;
            `lazyload/README.md` lists them) or of the layout's paths (`layers.0.*`). The first one that matches counts,
            and what none matches is bfloat16. What a layout's table stores in a dtype of its own (`as float32`) keeps
            it unless a pattern is its very role or path.
        layout: `"nnx"` for this library's decoder, `lazyload.MaxText(...)` for MaxText's parameter tree, a
            `lazyload.Layout` of your own, or a `lazyload.Target`, which says what to build from it, too.
        layers: Which layers of the decoder, `range(0, 8)`, with embedding, last norm and output projection all the
            same; None for all. What is returned is a model of so many layers, numbered from 0.
        storage: How the converted checkpoint is stored, a `Storage` or its flags in a dictionary; None for the
            platform's defaults.
        cache_dir: The cache's root; None for `$LAZYLOAD_CACHE`, else `~/.cache/lazyload`.
        token: A hub token; None for the one that is logged in, False for none. Public models need none.
        local_files_only: Whether the hub must not be asked.
        force_convert: Whether to convert again although the entry is there.
        lock_timeout: Seconds to wait at most for another process that converts the same checkpoint; None for
            `$LAZYLOAD_LOCK_TIMEOUT`, else for as long as it takes.
        verify: Whether to compare what is restored with its checksums while it is read.
        progress: None shows a bar where a person is looking and logs a line where not; True and False decide that;
            a function is called with `(task, bytes done, bytes in all)`.
        strict: Whether every tensor without use is an error. Otherwise a warning names those that no model reads:
            rotary tables, a value head (`v_head.*`), biases that are zero.
        config: Fields of `config.json` that are to have other values: `{"field": None}` for one that does not matter,
            `{"text_config": {"field": None}}` for one of a part.
        family: The architecture, where it is none of those that are known.

    Returns:
        An `nnx.Module` for `"nnx"`: `model(tokens, positions) -> (logits, cache)`; for another layout the nested
        dictionary of its arrays; for a target what its `build` makes.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`; the cache is left as it was.

    Example:
        >>> model = lazyload.from_pretrained("Qwen/Qwen3-8B", mesh=mesh)  # doctest: +SKIP
    """
    from lazyload.checkpoint.read import read
    from lazyload.sharding import mesh_or_default, shardings

    require_progress(progress)
    stopwatch = Stopwatch()
    mesh = mesh_or_default(mesh)
    reference = ModelReference(model, revision, token, local_files_only, subfolder or "", variant or "")
    opened = open_request(reference, dtype, layout, storage, cache_dir, family, strict, config, progress, layers=layers)
    with cleaning_up(), stopwatch.entering("open", opened) as request:
        wanted = shardings(mesh, rules, request.axes)

        def restore(entry: Entry) -> "tuple[Request, dict[str, jax.Array]]":
            stored = request.as_stored(entry.manifest.arrays)
            places = wanted if stored is request else shardings(mesh, rules, stored.axes)
            with stopwatch.stage("restore"):
                if verify:
                    entry.require_undamaged_files()
                return stored, read(entry.path, entry.manifest.arrays, places, request.storage, verify=verify)

        (stored, arrays), entry, reasons = _used(request, restore, force_convert, progress, lock_timeout, stopwatch)
        with stopwatch.stage("build"):
            built = stored.build(arrays)
        _report(request, entry, reasons, stopwatch, restored=True)
    return built


@explains_arguments
def convert(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: DTypeOption = "bfloat16",
    layout: LayoutOption = "nnx",
    layers: range | None = None,
    storage: StorageOption = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_convert: bool = False,
    lock_timeout: float | None = None,
    progress: ProgressOption = None,
    strict: bool = False,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
) -> CachedCheckpoint:
    """Makes sure that the converted checkpoint is in the cache, without loading it.

    Args:
        model: See `from_pretrained`, here and below.
        revision: A branch, tag or commit.
        subfolder: Where in the repository or folder the checkpoint lies.
        variant: Which files of weights.
        dtype: The stored dtype of floating-point parameters, or dtypes by pattern.
        layout: The layout of the converted checkpoint.
        layers: Which layers of the decoder; None for all.
        storage: How it is stored.
        cache_dir: The cache's root.
        token: A hub token.
        local_files_only: Whether the hub must not be asked.
        force_convert: Whether to convert again although the entry is there.
        lock_timeout: Seconds to wait at most for another process.
        progress: How progress is shown.
        strict: Whether every tensor without use is an error.
        config: Fields of `config.json` that are to have other values.
        family: The architecture, where it is none of those that are known.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`; the cache is left as it was.

    Example:
        >>> lazyload.convert("Qwen/Qwen3-8B").path  # doctest: +SKIP
    """
    require_progress(progress)
    stopwatch = Stopwatch()
    reference = ModelReference(model, revision, token, local_files_only, subfolder or "", variant or "")
    opened = open_request(reference, dtype, layout, storage, cache_dir, family, strict, config, progress, layers=layers)
    with cleaning_up(), stopwatch.entering("open", opened) as request:
        _, entry, reasons = _used(request, lambda entry: None, force_convert, progress, lock_timeout, stopwatch)
        _report(request, entry, reasons, stopwatch)
    return CachedCheckpoint(entry.path, entry.key, reasons is not None, entry.manifest)


@explains_arguments
def plan(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    mesh: "jax.sharding.Mesh | jax.sharding.AbstractMesh | None" = None,
    rules: "Rules | None" = None,
    dtype: DTypeOption = "bfloat16",
    layout: LayoutOption = "nnx",
    layers: range | None = None,
    storage: StorageOption = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    strict: bool = False,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
) -> Plan:
    """Says what a load would do. Nothing is written.

    Nothing is read but `config.json` and the headers of the weights; embedding and output projection where both are
    stored although `config.json` ties them, until they differ; and the weights of a folder that has never been loaded,
    where the cache has an entry that may be made of the same.

    Args:
        model: See `from_pretrained`, here and below.
        revision: A branch, tag or commit.
        subfolder: Where in the repository or folder the checkpoint lies.
        variant: Which files of weights.
        mesh: A mesh to ask about: what of the model each of its devices would hold. It needs no devices
            (`jax.sharding.AbstractMesh`). None for none; the plan then needs no JAX.
        rules: The rules for that mesh.
        dtype: The dtype of floating-point parameters, or dtypes by pattern.
        layout: The layout of the converted checkpoint.
        layers: Which layers of the decoder; None for all.
        storage: How it would be stored.
        cache_dir: The cache's root.
        token: A hub token.
        local_files_only: Whether the hub must not be asked.
        strict: Whether every tensor without use is an error.
        config: Fields of `config.json` that are to have other values.
        family: The architecture, where it is none of those that are known.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`: whatever keeps the model from being loaded, or the mesh
            from being used.

    Example:
        >>> print(lazyload.plan("Qwen/Qwen3-8B").nbytes)  # doctest: +SKIP
    """
    _require_rules_of_a_mesh(mesh, rules)
    reference = ModelReference(model, revision, token, local_files_only, subfolder or "", variant or "")
    opened = functools.partial(
        open_request, reference, dtype, layout, storage, cache_dir, family, strict, config, dry_run=True, layers=layers
    )
    with opened() as request:
        conversion = request.settled().conversion()
        entry = request.cache.find(request.key, *request.forms) if request.may_be_cached else None
        reasons = () if entry else tuple(request.reasons())

    def key() -> str:
        with opened() as request:
            return request.key.digest

    parameters = {
        path: Parameter(lazy.shape, lazy.dtype.name, conversion.axes[path], lazy.nbytes, lazy.sources)
        for path, lazy in conversion.tensors.items()
    }
    made = Plan(
        model=request.source.name,
        family=request.family.name,
        layout=request.target.layout.name,
        parameters=parameters,
        skipped=conversion.skipped,
        other_layers=conversion.other_layers,
        unread=conversion.unread,
        nbytes=sum(parameter.nbytes for parameter in parameters.values()),
        hit=entry is not None,
        reasons=reasons,
        mesh=mesh,
        rules=rules,
        _key=key,
    )
    # Rules that do not fit the model are refused here.
    _ = made.shardings
    return made


def _require_rules_of_a_mesh(mesh: object, rules: object) -> None:
    """Makes sure that a mesh can be asked about, and that rules are for one."""
    if mesh is not None:
        # JAX takes a while to import, and without a mesh a plan does not need it.
        from lazyload.sharding import require_mesh

        require_mesh(mesh)
    elif rules is not None:
        raise ArgumentError("rules= say how a mesh is used: give mesh=, too, such as jax.sharding.AbstractMesh")


def _used(
    request: Request,
    use: Callable[[Entry], Used],
    force: bool,
    progress: ProgressOption,
    lock_timeout: float | None,
    stopwatch: Stopwatch,
) -> tuple[Used, Entry, tuple[str, ...] | None]:
    """Uses the entry, converted if need be; and says why, if this call converted it.

    An entry that is there is used without a lock, so that others may remove it until its lease begins; what is lost
    then, or damaged, is looked for and converted under the lock.
    """
    planned = None
    if request.strict or not request.source.is_identified:
        # An entry does not tell whether tensors were left aside; and weights need not be read to tell which they are
        # where they cannot be converted.
        planned = _planned(request, stopwatch)
    with stopwatch.stage("open"):
        cache, key = request.cache, request.key
    found = cache.find(key, *request.forms)
    if found and not force:
        try:
            with found.in_use():
                return use(found), found, None
        except CacheError as error:
            if not isinstance(error, EntryRemovedError) and not found.lost_files():
                raise
            logger.warning("converting again: %s", error)
    reasons: tuple[str, ...] | None = ("asked to convert again",)
    if not force:
        reasons = tuple(request.reasons())
    request, conversion = planned or _planned(request, stopwatch)
    with contextlib.ExitStack() as lease:
        with stopwatch.entering("wait", cache.lock(key, lock_timeout, request.source.name)):
            published = cache.find(key, *request.forms)
            if published and not (force and published == found):
                lease.enter_context(published.in_use())
                entry, reasons = published, None
            else:
                with stopwatch.stage("fetch"):
                    request.source.fetch(progress is not False)
                with stopwatch.stage("convert"):
                    entry = _convert(request, conversion, progress, lease)
        return use(entry), entry, reasons


def _planned(request: Request, stopwatch: Stopwatch) -> tuple[Request, Conversion]:
    """The request for what is stored, and its conversion."""
    with stopwatch.stage("plan"):
        settled = request.settled()
        return settled, settled.conversion()


def _report(
    request: Request, entry: Entry, reasons: tuple[str, ...] | None, stopwatch: Stopwatch, *, restored: bool = False
) -> None:
    """Remembers what the load did, and logs it in a line."""
    nbytes = entry.nbytes
    report = LoadReport(
        model=request.source.name,
        hit=reasons is None,
        key=entry.key,
        path=entry.path,
        reasons=reasons or (),
        seconds=dict(stopwatch.seconds),
        bytes_read=request.source.nbytes_read,
        bytes_written=0 if reasons is None else nbytes,
        bytes_restored=nbytes if restored else 0,
        _arrays=entry.manifest.arrays,
    )
    set_last_report(report)
    logger.info("%s", report)


def _convert(request: Request, conversion: Conversion, progress: ProgressOption, lease: contextlib.ExitStack) -> Entry:
    """Streams the conversion into a staging folder and publishes it, with a lease that begins before others see it."""
    # TensorStore takes a while to import, and neither plans nor the cache's commands need it.
    from lazyload.checkpoint.write import write

    nbytes = sum(lazy.nbytes for lazy in conversion.tensors.values())
    started = time.perf_counter()
    with request.cache.staging(request.key, request.source.name, nbytes) as staging:
        with (
            show_progress(progress, f"converting {request.source.name}", nbytes) as report,
            in_progress(request.cache.root, request.key, report) as advance,
        ):
            arrays = write(
                staging.path,
                conversion.tensors,
                request.storage,
                metadata=request.target.metadata,
                scalars=request.target.scalars,
                item=request.target.item,
                advance=advance,
            )
        request.source.check_unchanged()
        entry = staging.publish(
            arrays=arrays,
            nbytes=nbytes,
            item=request.target.item,
            source=request.source.origin,
            config=request.source.config,
            seconds=time.perf_counter() - started,
        )
        lease.enter_context(entry.in_use_by_writer())
    return entry
