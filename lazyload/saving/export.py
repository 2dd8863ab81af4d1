"""`export`: an Orbax checkpoint as the checkpoint that the hub would hold, without loading it."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lazyload.arguments import ModelArguments
from lazyload.cache.manifest import FILE_NAME, Manifest, UnreadableManifestError, read_manifest
from lazyload.errors import ArgumentError, InputError, LayoutError, TensorMismatchError
from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.formats.maxtext.tree import EMBEDDING, ROOTS, names_in_tree
from lazyload.formats.tunix import Tunix
from lazyload.options import DTypeOption, LayoutOption, explains_arguments
from lazyload.request import Request, open_request
from lazyload.saving.files import shard_bytes
from lazyload.saving.held import LORA, QUANTISED
from lazyload.saving.save import SHARD_SIZE, Manner, folder_of, request_for, write_checkpoint
from lazyload.saving.stored import StoredArrays


@explains_arguments
def export(
    checkpoint: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    layout: LayoutOption | None = None,
    dtype: DTypeOption | None = None,
    max_shard_size: int | str = SHARD_SIZE,
    token: str | bool | None = None,
    local_files_only: bool = False,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
) -> Path:
    """Writes an Orbax checkpoint as the checkpoint that the hub would hold, in bounded memory and on no device.

    The checkpoint is one that `lazyload.convert` has made, or that MaxText's trainer or its post-training, Tunix's
    trainers, or a training loop with this library's decoder or Tunix's classes has saved, with plain arrays. Random
    states are left out, and so is an optimizer's state that lies in another item than the parameters, or under another
    key than theirs at the top of the tree; arrays that are no parameters, among these, are refused.

    Memory stays bounded, whatever the model's size, but for one chunk as the checkpoint has it: arrays of more than
    128 MB are decoded chunk by chunk onto the disk of `folder` first, which needs room for them meanwhile; where layers
    are stacked, for up to as much as the checkpoint holds.

    Args:
        checkpoint: The folder of an Orbax checkpoint: of one step, or of one of its items.
        folder: Where to; not there yet, or empty.
        like: The Hugging Face checkpoint that the model was made from; see `save_pretrained`, here and below. None for
            what an entry of the cache says that it was made from.
        revision: A branch, tag or commit of it. This and the next two are what such an entry says, too, unless given.
        subfolder: Where in the repository or folder it lies.
        variant: Which of its files of weights.
        layout: The layout of the Orbax checkpoint; None for `"nnx"`, `MaxText` or `Tunix`, whichever has its paths.
        dtype: What floating-point tensors are written as; None for the dtypes of the arrays.
        max_shard_size: The size of a file at most, in bytes or as a text.
        token: A hub token.
        local_files_only: Whether the hub must not be asked.
        config: Fields of `config.json` that are to have other values.
        family: The architecture, where it is none of those that are known.

    Returns:
        The folder.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`; there is no folder then.

    Example:
        >>> lazyload.export("run/checkpoints/100", "trained", like="Qwen/Qwen3-8B")  # doctest: +SKIP
    """
    target = folder_of(folder)
    most = shard_bytes(max_shard_size)
    # Beside the folder itself, where `folder` is a link to it.
    arrays = StoredArrays(folder_of(checkpoint), Path(os.path.realpath(target)).parent)
    _require_plain(arrays)
    if like is None:
        made = _entry_of(arrays.folder)
        like, revision = made.model, revision or made.source.get("commit")
        subfolder = made.source.get("subfolder") if subfolder is None else subfolder
        variant = made.source.get("variant") if variant is None else variant
        config = made.fields.get("config") if config is None else config
    arguments = ModelArguments(
        model=like,
        revision=revision,
        subfolder=subfolder,
        variant=variant,
        layout=layout or "nnx",
        token=token,
        local_files_only=local_files_only,
        config=config,
        family=family,
    )
    with open_request(arguments, dry_run=True) as opened:
        request, named = _fitting(arrays, opened) if layout is None else (opened, _named(arrays, opened))
        named.open(_parameters(named, request))
        for path, tensor in named.tensors.items():
            if tensor.dtype.itemsize == 1:
                raise InputError(f"{named.folder}: {path} is {tensor.dtype}: {QUANTISED}")
        with contextlib.closing(named):
            write_checkpoint(named, request_for(named, request), target, Manner(dtype, most, config))
    return target


def _entry_of(checkpoint: Path) -> Manifest:
    """The manifest of the entry of the cache that a checkpoint is.

    Raises:
        ArgumentError: It is none.
    """
    for data in (checkpoint, checkpoint.parent):
        with contextlib.suppress(UnreadableManifestError):
            manifest = read_manifest(data.parent / FILE_NAME)
            if manifest.data == data.name:
                return manifest
    raise ArgumentError(
        f"{checkpoint} is no entry of the cache, which says what it was made from: give like=, such as 'Qwen/Qwen3-8B'"
    )


def _require_plain(arrays: StoredArrays) -> None:
    """Refuses what says by its paths that it holds more than a model's own parameters, in qwix's and AQT's names.

    Raises:
        InputError: It holds LoRA's parameters, or quantised ones.
    """
    for path in arrays.paths:
        steps = path.split(".")
        if "qvalue" in steps:
            raise InputError(f"{arrays.folder}: {path} is quantised: {QUANTISED}")
        if steps[-1].endswith(("_lora_a", "_lora_b")):
            raise InputError(f"{arrays.folder}: {path} {LORA}")


def _named(arrays: StoredArrays, request: Request) -> StoredArrays:
    """The arrays by the paths of the request's layout, whichever of MaxText's programs has saved them."""
    if not isinstance(request.arguments.layout, MaxText):
        return arrays
    return arrays.renamed(names_in_tree(arrays.paths, request.axes))


def _fitting(arrays: StoredArrays, request: Request) -> tuple[Request, StoredArrays]:
    """The request for the layout whose paths a checkpoint has, and its arrays by these.

    Raises:
        LayoutError: None of those that are known has them.
    """
    fitting = []
    for layout in _known(arrays):
        try:
            there = request.in_layout(layout)
            wanted = there.axes
        except LayoutError:
            # MaxText or Tunix has no such layout for this family.
            continue
        named = _named(arrays, there)
        if wanted.keys() <= set(named.paths):
            fitting.append((there, named))
            named.open(list(wanted))
            if all(named.tensors[path].shape == shape for path, (shape, _) in wanted.items()):
                return there, named
    if fitting:
        return fitting[0]
    raise LayoutError(
        f"{arrays.folder}: its paths are none of those that layout 'nnx', MaxText or Tunix have for "
        f"{request.source.name}; it has {', '.join(arrays.paths[:3])}; give like= what it was made from, and layout= "
        "where it is another one"
    )


def _known(arrays: StoredArrays) -> Iterator[LayoutOption]:
    yield "nnx"
    yield "nnx-scanned"
    embedding = next((root + EMBEDDING for root in ROOTS if root + EMBEDDING in arrays.paths), None)
    rows = None if embedding is None else arrays.rows(embedding)
    for scan_layers in (True, False):
        yield MaxText(scan_layers, vocab_size=rows)
    yield Tunix()


def _parameters(arrays: StoredArrays, request: Request) -> list[str]:
    """The paths of the model's parameters among those of a checkpoint.

    Raises:
        TensorMismatchError: Some are missing, or others stand among them.
    """
    found = [path for path in arrays.paths if any(path in each.axes for each in request.candidates)]
    trees = {path.split(".")[0] for path in found}
    others = [path for path in arrays.paths if path not in found and path.split(".")[0] in trees]
    if others:
        raise TensorMismatchError(
            f"{arrays.folder} has arrays beside those of layout {request.target.layout.name!r}",
            [f"{path}: {request.source.name} has none" for path in others],
        )
    return found
