"""`from_pretrained` and `convert`: the life of a call.

A call opens the source, derives from two layouts what the conversion is, and looks the resulting key up in the cache.
On a miss it converts under the key's lock, and the devices are given their shards meanwhile; on a hit every device
reads its own from the entry.
"""

import logging
import math
import os
import resource
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from lazyload.architecture import AttentionKernel
from lazyload.arguments import ModelArguments
from lazyload.cache.entry import Entry
from lazyload.cache.termination import cleaning_up
from lazyload.errors import ArgumentError
from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.formats.target import Target
from lazyload.formats.tunix import Tunix
from lazyload.layouts.conversion import Conversion
from lazyload.layouts.layout import Layout
from lazyload.layouts.source import Box
from lazyload.monitoring import tell
from lazyload.obtaining import Manner, Obtained, obtain
from lazyload.options import (
    DECODERS,
    DTypeOption,
    LayoutOption,
    LoadOptions,
    OneDType,
    StorageOption,
    compute_dtype_of,
    decoder_layout,
    explains_arguments,
    require_attention,
    require_remat,
)
from lazyload.progress import ProgressOption, show_progress
from lazyload.report import LoadReport, Stopwatch, in_one_sentence, set_last_report
from lazyload.request import Request, open_request
from lazyload.team.call import Call
from lazyload.team.store import shown_to_peers
from lazyload.team.team import Team

if TYPE_CHECKING:
    import jax
    import numpy as np
    from flax import nnx

    from lazyload.low_rank import Beside
    from lazyload.models.decoder import Decoder
    from lazyload.models.stack import Remat
    from lazyload.results import CachedCheckpoint
    from lazyload.sharding import Rules

Built = TypeVar("Built")
Module = TypeVar("Module", bound="nnx.Module")

logger = logging.getLogger("lazyload")


@overload
def from_pretrained(
    model: str | os.PathLike[str],
    *,
    layout: Literal["nnx", "nnx-scanned"] = "nnx",
    into: None = None,
    **options: Unpack[LoadOptions],
) -> "Decoder": ...
@overload
def from_pretrained(
    model: str | os.PathLike[str], *, layout: Layout | MaxText, into: None = None, **options: Unpack[LoadOptions]
) -> dict[str, Any]: ...
@overload
def from_pretrained(
    model: str | os.PathLike[str], *, layout: Tunix, into: None = None, **options: Unpack[LoadOptions]
) -> "nnx.Module": ...
@overload
def from_pretrained(
    model: str | os.PathLike[str], *, layout: Target[Built], into: None = None, **options: Unpack[LoadOptions]
) -> Built: ...
@overload
def from_pretrained(
    model: str | os.PathLike[str],
    *,
    layout: Literal["nnx", "nnx-scanned"] | Layout | Tunix = "nnx",
    into: Module,
    **options: Unpack[LoadOptions],
) -> Module: ...
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
    compute_dtype: OneDType | None = None,
    layout: LayoutOption = "nnx",
    into: "nnx.Module | None" = None,
    layers: range | None = None,
    scan_layers: bool = False,
    remat: "Remat | None" = None,
    attention: AttentionKernel | None = None,
    storage: StorageOption = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_convert: bool = False,
    keep_source: bool = True,
    lock_timeout: float | None = None,
    patience: float | None = None,
    verify: bool = False,
    progress: ProgressOption = None,
    strict: bool = False,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
    adapter: str | os.PathLike[str] | None = None,
    merge: bool = True,
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
        compute_dtype: The dtype that `"nnx"`'s decoder computes in, whatever its parameters are stored in: with
            `dtype="float32", compute_dtype="bfloat16"` a trainer's small updates are not lost, and products cost what
            they cost in bfloat16. None for the dtype of the parameters. It decides nothing that is stored; a module
            given as `into` has its own.
        layout: `"nnx"` for this library's decoder, or `"nnx-scanned"` (see `scan_layers`), `lazyload.MaxText(...)` for
            MaxText's parameter tree, `lazyload.Tunix(...)` for Tunix's own class of the model, a `lazyload.Layout` of
            your own, or a `lazyload.Target`, which says what to build from it, too.
        into: A module that is filled and returned, instead of a new one: a `Decoder` of the same config, or a module of
            your own whose `nnx.Param`s have the paths of the layout, `"nnx"` or a `Layout`. Each array goes where its
            parameter lies, or is to lie (the sharding of a `jax.ShapeDtypeStruct`), else to the default mesh; `mesh=`
            and `rules=` say otherwise. `nnx.LoRAParam`s that the layout does not have stay as they are. The module
            changes only once all has been read, so that a failed call leaves it as it was; until then its old arrays
            and the new ones exist both, which abstract parameters (`Decoder(config, rngs=None)`, `nnx.eval_shape`)
            avoid.
        layers: Which layers of the decoder, `range(0, 8)`, with embedding, last norm and output projection all the
            same; None for all. What is returned is a model of so many layers, numbered from 0.
        scan_layers: Whether layers that are alike, one after another or in turns, are stacked, each parameter one array
            with an axis `layer` before the others, and run in a loop: a model compiles in the same time however many it
            has. It is short for `layout="nnx-scanned"`, which `convert` and `plan` take, too, and a converted
            checkpoint of its own.
        remat: What the decoder computes again in the backward pass instead of keeping it: `"none"`, all of a layer but
            its input (`"block"`), or all but that and the products with parameters (`"dots"`). It becomes the
            attribute `remat`, which may be set at any time. None for that of `into`, and else `"none"`.
        attention: What the decoder computes attention by: JAX's kernel for TPUs (`"splash"`), cuDNN's for GPUs
            (`"cudnn"`), or all logits at once (`"dense"`). It becomes the attribute `attention`, which may be set at
            any time. None for that of `into`, and else for what suits platform and layers best.
        storage: How the converted checkpoint is stored, a `Storage` or its flags in a dictionary; None for the
            platform's defaults.
        cache_dir: The cache's root, a folder, or a URL such as `gs://bucket/path` or `s3://bucket/path`; None for
            `$LAZYLOAD_CACHE`, else `~/.cache/lazyload`.
        token: A hub token; None for the one that is logged in, False for none. Public models need none.
        local_files_only: Whether the hub must not be asked.
        force_convert: Whether to convert again although the entry is there.
        keep_source: Whether what is downloaded from the hub to be converted stays in the hub's cache. Otherwise weights
            pass through memory and are never stored, which takes half the disk; converting the same model again, in
            another layout or dtype, downloads them again. What is here already, a folder or a file in the hub's cache,
            is read where it is, and stays. What several processes convert together is not stored either.
        lock_timeout: Seconds to wait at most for another process that converts the same checkpoint; None for
            `$LAZYLOAD_LOCK_TIMEOUT`, else for as long as it takes.
        patience: Where the mesh has devices of several processes, seconds for which one of them may not have made the
            same call, or show no sign of life, before all others raise `PeerError`; None for 60. A conversion may take
            as long as it takes.
        verify: Whether to compare what is restored with its checksums while it is read.
        progress: None shows one line where a person is looking, on a terminal or in a notebook: what is downloaded,
            converted, restored, and in the end what was done. True shows it anywhere, False nowhere; a function is
            called with a `lazyload.Progress`. The log has a line for each stage in any case.
        strict: Whether every tensor without use is an error. Otherwise a warning names those that no model reads:
            rotary tables, a value head (`v_head.*`), biases that are zero.
        config: Fields of `config.json` that are to have other values: `{"field": None}` for one that does not matter,
            `{"text_config": {"field": None}}` for one of a part.
        family: The architecture, where it is none of those that are known.
        adapter: A LoRA adapter in PEFT's format that is merged into the weights while they are converted: an id of the
            hub, of a branch, tag or commit `"org/name@revision"`, in a subfolder `"hf://org/name@revision/subfolder"`;
            a folder or a URL. `W + scaling * B A`, with DoRA by its magnitudes, is computed in float32 and rounded
            once; experts, biases and single tokens, too. The hub's commit, or the files' content, is part of the
            entry's identity; the adapter is held in memory meanwhile.
        merge: False leaves the weights as they are, and puts the adapter beside them as parameters of LoRA, those that
            qwix makes and Tunix trains; for the layout `"nnx"`, stacked or not, and with qwix installed. Layers of one
            stack need adapters of one rank and scaling; an adapter that has more than matrices for kernels is refused.

    Returns:
        An `nnx.Module` for `"nnx"`: `model(tokens, positions) -> (logits, cache)`; for another layout the nested
        dictionary of its arrays; for a target what its `build` makes; with `into` that module. Its parameters as a
        plain pytree of arrays, for optax or a step that is written in JAX alone, are `nnx.to_pure_dict(nnx.state(model,
        nnx.Param))`, and `nnx.merge(nnx.graphdef(model), parameters)` is a model again, inside `jax.jit`, too;
        `nnx.update(model, parameters)` puts them back into this one. DeepSeek V4 has tables of whole numbers beside
        them, which are no parameters: `nnx.state(model)` has both.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`; the cache is left as it was.

    Example:
        >>> model = lazyload.from_pretrained("Qwen/Qwen3-8B", mesh=mesh)  # doctest: +SKIP
    """
    # JAX takes a while to import, and what only looks, or converts, does without.
    from lazyload.placement import Placement
    from lazyload.restoring import Restoring
    from lazyload.together import arrays_elsewhere, obtain_together, open_together, place_together

    stopwatch = Stopwatch()
    layout = decoder_layout(layout, scan_layers or (layout == "nnx" and getattr(into, "scan_layers", False)))
    arguments = ModelArguments(
        model=model,
        revision=revision,
        subfolder=subfolder,
        variant=variant,
        dtype=dtype,
        compute_dtype=compute_dtype_of(compute_dtype, layout, into),
        layout=layout,
        layers=layers,
        storage=storage,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        strict=strict,
        config=config,
        family=family,
        adapter=adapter,
        merge=merge,
    )
    require_remat(remat, layout, into)
    require_attention(attention, layout, into)
    _require_merge(arguments, into)
    placement = Placement(mesh, rules, layout, into)
    name = arguments.reference.name
    with (
        Call(Team.of(placement.devices), f"lazyload.from_pretrained of {name}", patience) as call,
        cleaning_up(),
        show_progress(progress, name) as shown,
    ):
        shown.check = call.check
        with stopwatch.entering("open", open_together(call, arguments, shown)) as request:
            placement.require(request)
            if attention is not None:
                _require_able(request, attention)
            kept_apart = _beside(request)
            computed = arguments.compute_dtype
            of_module = {
                "compute_dtype": computed and computed.name,
                "remat": remat,
                "attention": attention,
                "adapter": None if kept_apart is None else dict(kept_apart.files.identity),
            }
            place_together(call, request, placement, of_module)

            def build(stored: Request, arrays: "Mapping[str, jax.Array]") -> Any:
                built = placement.build(stored, arrays)
                built = built if kept_apart is None else kept_apart.put_into(built)
                if remat is not None:
                    built.remat = remat
                if attention is not None:
                    built.attention = attention
                return built

            if not call.team.is_member:
                built = build(*arrays_elsewhere(request, placement, call))
                call.leave_together()
                return built

            restoring = Restoring(request, placement, verify, shown, stopwatch, call)
            manner = Manner(force_convert, keep_source, lock_timeout, shown, stopwatch)
            obtained = obtain_together(request, restoring, manner, call)
            stored, arrays = obtained.used
            with stopwatch.stage("build"):
                built = build(stored, arrays)
            call.leave_together()
            report = _report(
                request, obtained, stopwatch, restored=True, from_cache=restoring.nbytes_read, kept=_nbytes_kept(arrays)
            )
            shown.sentence = in_one_sentence(report, obtained.entry.manifest.arrays, _described(arrays))
    return built


def _require_merge(arguments: ModelArguments, into: object) -> None:
    """Makes sure that an adapter can be kept apart, where that is asked for.

    Raises:
        ArgumentError: It cannot.
    """
    if not isinstance(arguments.merge, bool):
        raise ArgumentError(f"merge={arguments.merge!r:.200}: give True or False")
    is_new_decoder = arguments.layout in DECODERS and into is None
    if not arguments.merge and (arguments.adapter is None or not is_new_decoder):
        raise ArgumentError(
            "merge=False puts an adapter beside the weights of a new Decoder: give adapter=, and no into= or layout="
        )


def _require_able(request: Request, attention: AttentionKernel) -> None:
    """Makes sure that what is to compute attention can do so in every layer.

    Raises:
        InputError: It cannot.
    """
    # Flax takes a while to import, and few calls need it before arrays are read.
    from lazyload.models.attention_kernels import require_able

    require_able(request.architecture, attention)


def _beside(request: Request) -> "Beside | None":
    """An adapter that is not merged, once it is known to fit."""
    if request.kept_apart is None:
        return None
    # Flax takes a while to import, and few calls need it before arrays are read.
    from lazyload.low_rank import beside

    return beside(request, request.kept_apart)


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
    keep_source: bool = True,
    lock_timeout: float | None = None,
    progress: ProgressOption = None,
    strict: bool = False,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> "CachedCheckpoint":
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
        keep_source: Whether what is downloaded from the hub stays in the hub's cache.
        lock_timeout: Seconds to wait at most for another process.
        progress: How progress is shown.
        strict: Whether every tensor without use is an error.
        config: Fields of `config.json` that are to have other values.
        family: The architecture, where it is none of those that are known.
        adapter: A LoRA adapter in PEFT's format.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`; the cache is left as it was.

    Example:
        >>> lazyload.convert("Qwen/Qwen3-8B").path  # doctest: +SKIP
    """
    arguments = ModelArguments(
        model=model,
        revision=revision,
        subfolder=subfolder,
        variant=variant,
        dtype=dtype,
        layout=layout,
        layers=layers,
        storage=storage,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        strict=strict,
        config=config,
        family=family,
        adapter=adapter,
    )
    return cached_checkpoint(
        arguments,
        force_convert=force_convert,
        keep_source=keep_source,
        lock_timeout=lock_timeout,
        progress=progress,
    )


def cached_checkpoint(
    arguments: ModelArguments,
    *,
    force_convert: bool = False,
    keep_source: bool = True,
    lock_timeout: float | None = None,
    progress: ProgressOption = None,
) -> "CachedCheckpoint":
    """The converted checkpoint that arguments mean, once it is in the cache; see `convert`."""
    # A load does without it.
    from lazyload.results import CachedCheckpoint

    stopwatch = Stopwatch()
    name = arguments.reference.name
    with (
        shown_to_peers(f"lazyload.convert of {name}"),
        cleaning_up(),
        show_progress(progress, name) as shown,
        stopwatch.entering("open", open_request(arguments, shown)) as request,
    ):
        manner = Manner(force_convert, keep_source, lock_timeout, shown, stopwatch)
        obtained = obtain(request, _Alone(), manner)
        entry = obtained.entry
        report = _report(request, obtained, stopwatch)
        shown.sentence = in_one_sentence(report, entry.manifest.arrays)
    return CachedCheckpoint(entry.path, entry.key, obtained.reasons is not None, entry.manifest)


class _Alone:
    """What `convert` does with its entry: nothing; see `lazyload.obtaining.Use`."""

    def begin(self, request: Request, conversion: Conversion) -> None:
        """Does nothing."""

    def take(self, path: str, box: Box, values: "np.ndarray") -> None:
        """Does nothing."""

    def of(self, entry: Entry) -> None:
        """Does nothing."""


def _report(
    request: Request,
    obtained: Obtained[Any],
    stopwatch: Stopwatch,
    *,
    restored: bool = False,
    from_cache: int = 0,
    kept: int = 0,
) -> LoadReport:
    """Remembers what the load did, logs it in a line, and tells JAX."""
    entry, reasons = obtained.entry, obtained.reasons
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
        bytes_from_cache=from_cache,
        bytes_kept=kept,
        # In kilobytes on Linux, in bytes on macOS.
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        _arrays=entry.manifest.arrays,
    )
    set_last_report(report)
    logger.info("%s", report)
    tell(report)
    return report


def _nbytes_kept(arrays: "Mapping[str, jax.Array]") -> int:
    """Bytes of arrays that this process's devices hold, each shard once."""
    return sum(
        math.prod(stop - start for start, stop in limits) * array.dtype.itemsize
        for array in arrays.values()
        for limits in {
            tuple(cut.indices(size)[:2] for cut, size in zip(index or (), array.shape, strict=True))
            for index in array.sharding.addressable_devices_indices_map(array.shape).values()
        }
    )


def _described(arrays: "Mapping[str, jax.Array]") -> str:
    """The devices that arrays lie on, in words."""
    devices: set[jax.Device] = {device for array in arrays.values() for device in array.sharding.device_set}
    kinds = sorted({device.device_kind for device in devices})
    return f"{len(devices)} device{'s' if len(devices) > 1 else ''} ({', '.join(kinds)})"
