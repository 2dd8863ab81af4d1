"""`save_pretrained`: a model as the checkpoint that the hub would hold.

Names, forms and everything beside the weights are those of a checkpoint that such a model comes from. The layouts that
convert it are resolved backwards, and what nothing of the model goes into, such as the vision tower of a multimodal
repository, is taken over as it is.
"""

import collections
import contextlib
import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lazyload.architecture import DecoderConfig
from lazyload.arguments import ModelArguments
from lazyload.cache.termination import cleaning_up
from lazyload.config_json.overrides import overridden
from lazyload.errors import ArgumentError, TensorMismatchError
from lazyload.families.family import Family
from lazyload.formats import peft
from lazyload.formats.maxtext import MaxText
from lazyload.formats.maxtext.tree import names_in_tree
from lazyload.layouts.boxes import normalised
from lazyload.layouts.conversion import Conversion, resolve_backwards
from lazyload.layouts.copying import copy_cast
from lazyload.layouts.dtypes import is_floating
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box, TensorSource
from lazyload.low_rank import peft_files
from lazyload.options import DTypeOption, LayoutOption, decoder_layout, dtype_patterns, explains_arguments
from lazyload.request import Request, open_request
from lazyload.saving.config import config_json
from lazyload.saving.files import (
    WRITES_AT_ONCE,
    Readable,
    new_folder,
    shard_bytes,
    write_file,
    write_one,
    write_tensors,
    written_order,
)
from lazyload.saving.held import HeldArrays, arrays_of
from lazyload.sources.beside import files_beside

if TYPE_CHECKING:
    from flax import nnx

logger = logging.getLogger("lazyload")

SHARD_SIZE = "5GB"
"""What transformers writes into one file at most."""


@explains_arguments
def save_pretrained(
    model: "nnx.Module | Mapping[str, Any]",
    folder: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str],
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    layout: LayoutOption = "nnx",
    dtype: DTypeOption | None = None,
    max_shard_size: int | str = SHARD_SIZE,
    token: str | bool | None = None,
    local_files_only: bool = False,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
    adapter_only: bool = False,
    lora_alpha: float | None = None,
) -> Path:
    """Writes a model as the hub would hold it: safetensors, `config.json`, and what stands beside them.

    The files are written beside the folder and moved there when all are complete, from where the arrays lie and in
    bounded memory, whatever the model's size. transformers reads them, and so does `from_pretrained`.

    Args:
        model: A module that `from_pretrained` has returned, trained or not; or its parameters as an `nnx.State` or a
            nested dictionary. All of its arrays lie on devices of this process.
        folder: Where to; not there yet, or empty. It appears when it is complete. What is left beside it of a process
            that was killed while it saved there, `.NAME.<hex>`, is removed.
        like: What the model was loaded from: a hub id, a folder or a URL. Names of tensors, `config.json`, tokenizer
            and licence are those of it; of its weights, only what the model does not have is read, such as a vision
            tower or layers that predict further tokens, and taken over as it is. Where its weights are packed, they are
            written unpacked.
        revision: A branch, tag or commit of it.
        subfolder: Where in the repository or folder it lies.
        variant: Which of its files of weights.
        layout: The layout by whose paths the arrays are named, as `from_pretrained` was given it. A `Decoder` knows
            itself whether its layers are stacked.
        dtype: What floating-point tensors are written as; None for the dtypes of the arrays. What the layout keeps in
            a dtype of its own, such as `delta.a_log`, is written as wide as `like` has it at least.
        max_shard_size: The size of a file at most, in bytes or as a text.
        token: A hub token.
        local_files_only: Whether the hub must not be asked.
        config: Fields of `config.json` that had other values when the model was loaded; they are written so.
        family: The architecture, where it is none of those that are known.
        adapter_only: Whether only the `nnx.LoRAParam`s of a module are written, as an adapter that PEFT loads; by the
            names of the text model.
        lora_alpha: With `adapter_only`, the alpha that LoRA was made with.

    Returns:
        The folder.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`; there is no folder then.

    Example:
        >>> lazyload.save_pretrained(model, "trained", like="Qwen/Qwen3-8B")  # doctest: +SKIP
    """
    target = folder_of(folder)
    if (lora_alpha is not None) != adapter_only:
        raise ArgumentError("adapter_only=True and lora_alpha= belong together: give the alpha that LoRA was made with")
    if lora_alpha is not None and not (type(lora_alpha) in (int, float) and 0 < lora_alpha < math.inf):
        raise ArgumentError(f"lora_alpha={lora_alpha!r:.100}: give a number above 0")
    most = shard_bytes(max_shard_size)
    arguments = ModelArguments(
        model=like,
        revision=revision,
        subfolder=subfolder,
        variant=variant,
        layout=decoder_layout(layout, layout == "nnx" and getattr(model, "scan_layers", False)),
        token=token,
        local_files_only=local_files_only,
        config=config,
        family=family,
    )
    with open_request(arguments, dry_run=True) as opened:
        if lora_alpha is not None:
            _write_adapter(model, opened, target, lora_alpha)
            return target
        found = arrays_of(model)
        if isinstance(layout, MaxText):
            names = names_in_tree(found, opened.axes)
            found = {names[path]: array for path, array in found.items() if path in names}
        arrays = HeldArrays(found)
        # Classes of others have configs of their own.
        config_of_model = getattr(model, "config", None)
        of_ours = config_of_model if isinstance(config_of_model, DecoderConfig) else None
        request = request_for(arrays, opened, of_ours)
        write_checkpoint(arrays, request, target, Manner(dtype, most, config))
    return target


def _write_adapter(model: Any, request: Request, folder: Path, alpha: float) -> None:
    """Writes the LoRA of a module as PEFT has it.

    Raises:
        InputError: There is none.
    """
    config, arrays = peft_files(model, request, alpha)
    held = HeldArrays(arrays)
    tensors = {name: Kept(held, name) for name in arrays}
    with cleaning_up(), new_folder(folder, sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        write_file(temporary / peft.CONFIG, config)
        write_one(temporary / peft.WEIGHTS, tensors)


@dataclass(frozen=True)
class Manner:
    """How a checkpoint is written.

    Attributes:
        dtype: What floating-point tensors are written as; None for the dtypes of the arrays.
        max_shard_bytes: The size of a file at most.
        config: Fields of `config.json` with other values.
    """

    dtype: DTypeOption | None
    max_shard_bytes: int
    config: Mapping[str, Any] | None


def folder_of(folder: str | os.PathLike[str]) -> Path:
    """The folder that is meant.

    Raises:
        ArgumentError: It is none of a file system here.
    """
    path = os.fspath(folder) if isinstance(folder, str | os.PathLike) else ""
    if not isinstance(path, str) or not path or "://" in path or "\0" in path:
        raise ArgumentError(f"folder={folder!r:.200}: give a folder of a file system here")
    return Path(os.path.abspath(os.path.expanduser(path)))


def request_for(arrays: TensorSource, request: Request, config: Any = None) -> Request:
    """The request for the model that arrays are of: one that `config.json` calls tied may have a head of its own.

    Args:
        arrays: The arrays.
        request: What `like` and the layout say.
        config: What the model itself says that it is; None where it says nothing.

    Raises:
        TensorMismatchError: They are of another model.
    """
    candidates = [each for each in request.candidates if config is None or each.architecture == config]
    for candidate in candidates:
        if candidate.axes.keys() == arrays.tensors.keys():
            return candidate
    theirs = {path: shape for path, (shape, _) in (candidates or request.candidates)[0].axes.items()}
    problems = [f"{path}: {request.source.name} has none" for path in arrays.tensors if path not in theirs]
    problems += [
        f"{path}: missing, shape {list(shape)}" for path, shape in theirs.items() if path not in arrays.tensors
    ]
    problems += [
        f"{path}: has shape {list(arrays.tensors[path].shape)}, {request.source.name} has {list(shape)}"
        for path, shape in theirs.items()
        if path in arrays.tensors and arrays.tensors[path].shape != shape
    ]
    raise TensorMismatchError(
        f"like={request.source.name!r}: its arrays in layout {request.target.layout.name!r} are not those that are to "
        "be saved; give what the model was loaded from, with the same layout= and config=",
        problems or ["the model's config is another one: its sizes agree, and what it computes does not"],
    )


class Arrays(TensorSource, Protocol):
    """The arrays of a model that is saved."""

    def scratch_bytes(self, readers: Sequence[Collection[str]], at_once: int) -> int:
        """How many bytes of them are on the disk, at most, while they are read in an order.

        Args:
            readers: The names of the arrays that are read for one tensor, tensor by tensor.
            at_once: For how many tensors at most.
        """


def write_checkpoint(arrays: Arrays, request: Request, folder: Path, manner: Manner) -> None:
    """Writes the arrays of a model into a folder that is not there yet.

    Raises:
        LazyLoadError: They do not fit what the request speaks of, or cannot be read or written.
    """
    layout = request.family.stored(request.whole)
    conversion = resolve_backwards(arrays, request.target.layout, request.source, layout, request.whole)
    main, wanted = _main_dtype(conversion, arrays), _one_dtype(manner.dtype, request)
    tensors: dict[str, Readable] = {
        name: replace(lazy, dtype=_dtype(name, lazy, wanted or main, wanted, request.source))
        for name, lazy in conversion.tensors.items()
    }
    kept = _kept(conversion, request)
    tensors |= {name: Kept(request.source, name) for name in kept}
    values = overridden(request.source.config, manner.config)
    untied = _is_tied(request.family.read(values)) and not _is_tied(request.whole)
    config = config_json(values, wanted or main, untied=untied)
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    order = written_order(tensors, manner.max_shard_bytes)
    readers = [conversion.tensors[name].sources for name in order if name in conversion.tensors]
    scratch_bytes = arrays.scratch_bytes(readers, WRITES_AT_ONCE)
    with cleaning_up(), new_folder(folder, nbytes, scratch_bytes) as temporary:
        for name, content in files_beside(request.source):
            write_file(temporary / name, content)
        write_file(temporary / "config.json", config)
        with request.source.arriving(kept) if kept else contextlib.nullcontext():
            overflowed = write_tensors(temporary, tensors, manner.max_shard_bytes)
    if overflowed:
        logger.warning("%s: %d values are too large for float16 and have become infinite", folder, overflowed)
    logger.info("%s: saved as a checkpoint like %s, %.2f GB", folder, request.source.name, nbytes / 1e9)


@dataclass(frozen=True)
class Kept:
    """A tensor of another checkpoint, as it is there.

    Attributes:
        source: The checkpoint.
        name: The tensor's name.
    """

    source: TensorSource
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.source.tensors[self.name].shape

    @property
    def dtype(self) -> np.dtype:
        """Its dtype."""
        return self.source.tensors[self.name].dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read_into(self, out: np.ndarray, index: Box) -> int:
        """Reads one block."""
        return copy_cast(out, self.source.read(self.name, normalised(index, self.shape)))


def _kept(conversion: Conversion, request: Request) -> list[str]:
    """The tensors that are taken over: all that the model has nothing to do with.

    The output projection of a tied model is its embedding, so that another copy of it would be stale.
    """
    tied = _is_tied(request.whole)
    return [name for name in conversion.skipped if not (tied and name.endswith("lm_head.weight"))]


def _is_tied(architecture: Any) -> bool:
    return bool(getattr(architecture, "tied", False))


def _one_dtype(dtype: DTypeOption | None, request: Request) -> np.dtype | None:
    if dtype is None:
        return None
    patterns = dtype_patterns(dtype)
    if set(patterns) != {"*"} or patterns["*"] is None:
        raise ArgumentError(f"dtype={dtype!r:.200}: give one dtype, or None for those of the arrays")
    return patterns["*"]


def _main_dtype(conversion: Conversion, arrays: TensorSource) -> np.dtype:
    """The dtype of most values that no table gives a dtype of its own."""
    counts: dict[np.dtype, int] = collections.Counter()
    for lazy in conversion.tensors.values():
        if not _has_own_dtype(lazy) and is_floating(lazy.dtype):
            for name in lazy.sources:
                counts[arrays.tensors[name].dtype] += lazy.nbytes
    return max(counts, key=lambda dtype: counts[dtype]) if counts else np.dtype(np.float32)


def _dtype(name: str, lazy: LazyTensor, main: np.dtype, wanted: np.dtype | None, like: TensorSource) -> np.dtype:
    """What a tensor is written as."""
    if not is_floating(lazy.dtype):
        return like.tensors[name].dtype if name in like.tensors else lazy.dtype
    if _has_own_dtype(lazy):
        return _wider(main, like.tensors[name].dtype if name in like.tensors else main)
    stored = [lazy.source.tensors[source].dtype for source in lazy.sources]
    return wanted or (stored[0] if len(set(stored)) == 1 else np.dtype(np.float32))


def _has_own_dtype(lazy: LazyTensor) -> bool:
    """Whether the arrays that a tensor is made of have a dtype of their own in their layout."""
    operations = [each.pattern.operations for region in lazy.regions for each in region.contributions.values()]
    return any(every.dtype is not None or every.unrounded for every in operations)


def _wider(one: np.dtype, other: np.dtype) -> np.dtype:
    """The narrowest of the dtypes of parameters that holds the values of both."""
    if one == other or not is_floating(other) or other.itemsize < 2:
        return one
    return np.dtype(np.float32)
