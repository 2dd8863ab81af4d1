"""MaxText: the checkpoint that a run's config asks for, converted in this process instead of by `to_maxtext`.

    config = with_checkpoint(config)        # before model_creation_utils.from_pretrained(config, ...)
    install()                               # or once: whatever calls that function, `train_rl` too, goes through here

What decides the checkpoint is read off the config, so that a run restores with the flags it was converted with.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from lazyload.arguments import ModelArguments
from lazyload.errors import ConfigError
from lazyload.formats.maxtext import MaxText
from lazyload.integrations.maxtext.comparison import require_entry, require_fields, require_head
from lazyload.integrations.maxtext.hub_ids import HUB_IDS
from lazyload.integrations.maxtext.settings import get, replaced, scan_layers, storage_of
from lazyload.integrations.replacement import Function, Installation, Library
from lazyload.loader import cached_checkpoint
from lazyload.options import DTypeOption
from lazyload.progress import ProgressOption, show_progress
from lazyload.request import open_request

if TYPE_CHECKING:
    import os

MaxTextConfig = TypeVar("MaxTextConfig")

LIBRARY = Library("MaxText", distribution="maxtext", versions=("0.2.5",))

_FROM_PRETRAINED = Function(
    "maxtext.utils.model_creation_utils",
    "from_pretrained",
    (
        "config",
        "mesh",
        "devices",
        "model_mode",
        "rng_key",
        "wrap_with_tunix_adapter",
        "tokenizer_pad_id",
        "quant_mode_str",
    ),
)
"""Where MaxText's trainers get their models, and where MaxText itself would convert."""


def install(
    *,
    model: "str | os.PathLike[str] | None" = None,
    revision: str | None = None,
    dtype: DTypeOption = "bfloat16",
    cache_dir: "str | os.PathLike[str] | None" = None,
    local_files_only: bool = False,
    keep_source: bool = True,
    progress: ProgressOption = None,
) -> Installation:
    """Makes MaxText's own `model_creation_utils.from_pretrained` take its checkpoints from the cache, until undone.

    Every config that it is called with, by `train_rl`, `train_sft` and others, first goes through `with_checkpoint`.
    Nothing else of MaxText is touched.

    Args:
        model: See `with_checkpoint`, here and below.
        revision: A branch, tag or commit.
        dtype: What weights are stored in.
        cache_dir: The cache's root.
        local_files_only: Whether the hub must not be asked.
        keep_source: Whether what is downloaded from the hub stays in the hub's cache.
        progress: How progress is shown.

    Returns:
        What undoes it: a context manager, and a method `undo`.

    Raises:
        IntegrationError: MaxText is not installed, of a version that is not known, or has another inside.

    Example:
        >>> with install():  # doctest: +SKIP
        ...     train_rl.main(arguments)
    """
    options: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "dtype": dtype,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "keep_source": keep_source,
        "progress": progress,
    }

    def replacing(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def from_pretrained(config: Any, *args: Any, **kwargs: Any) -> Any:
            return original(with_checkpoint(config, **options), *args, **kwargs)

        return from_pretrained

    return Installation(LIBRARY, {_FROM_PRETRAINED: replacing})


def with_checkpoint(
    config: MaxTextConfig,
    *,
    model: "str | os.PathLike[str] | None" = None,
    revision: str | None = None,
    dtype: DTypeOption = "bfloat16",
    cache_dir: "str | os.PathLike[str] | None" = None,
    local_files_only: bool = False,
    keep_source: bool = True,
    progress: ProgressOption = None,
) -> MaxTextConfig:
    """Fills in `load_parameters_path` with a converted checkpoint, where a config asks for conversion.

    That is where `convert_checkpoint_if_possible` is set and `load_parameters_path` is not; every other config comes
    back as it is. Layout and storage are those of the config: `scan_layers`, `vocab_size`,
    `checkpoint_storage_use_ocdbt` and `checkpoint_storage_use_zarr3`; the hub token is its `hf_access_token`.

    Args:
        config: MaxText's `HyperParameters`, one of its pydantic configs, or a mapping of their fields.
        model: A hub id, folder or URL; None for what MaxText itself takes for `model_name`, else for the
            config's `tokenizer_path`.
        revision: A branch, tag or commit; None for a field of this name, else for `main`.
        dtype: What weights are stored in. MaxText casts to its own `weight_dtype` as it restores.
        cache_dir: The cache's root.
        local_files_only: Whether the hub must not be asked.
        keep_source: Whether what is downloaded from the hub stays in the hub's cache.
        progress: How progress is shown; see `lazyload.from_pretrained`.

    Returns:
        The config, of the type it was given in.

    Raises:
        ConfigError: The config describes another model than `config.json` does, which is said field by field; or its
            `load_parameters_path` is a converted checkpoint of another layout than it asks for.
        LazyLoadError: The checkpoint cannot be had; see `lazyload.convert`.

    Example:
        >>> with_checkpoint({"model_name": "qwen3-8b", "convert_checkpoint_if_possible": False})
        {'model_name': 'qwen3-8b', 'convert_checkpoint_if_possible': False}
    """
    if path := get(config, "load_parameters_path"):
        require_entry(config, path)
        return config
    if not get(config, "convert_checkpoint_if_possible"):
        return config
    arguments = ModelArguments(
        model=model or _model(config),
        revision=revision or get(config, "revision"),
        dtype=dtype,
        storage=storage_of(config),
        cache_dir=cache_dir,
        token=get(config, "hf_access_token") or None,
        local_files_only=local_files_only,
    )
    with (
        show_progress(progress, arguments.reference.name) as shown,
        open_request(arguments, shown) as request,
    ):
        require_fields(config, request)
        commit = request.source.identity.get("commit")
    layout = MaxText(scan_layers(config), get(config, "vocab_size"))
    converted = cached_checkpoint(
        dataclasses.replace(arguments, revision=commit or arguments.revision, layout=layout),
        keep_source=keep_source,
        progress=progress,
    )
    require_head(config, converted)
    filled: MaxTextConfig = replaced(config, load_parameters_path=str(converted.path))
    return filled


def _model(config: Any) -> str:
    """The checkpoint that a config means."""
    name, tokenizer = get(config, "model_name"), get(config, "tokenizer_path")
    if name in HUB_IDS:
        return HUB_IDS[name]
    if tokenizer:
        return str(tokenizer)
    raise ConfigError(f"model_name={name!r} does not say which checkpoint is meant; give model=, a hub id or a folder")
