"""Tunix: its `AutoModel`, its command line and its loaders of safetensors, going through the cache.

    install()       # then AutoModel.from_pretrained(...), or `model_source: huggingface` in a run of tunix.cli, as ever

What is returned is Tunix's own class, filled as `lazyload.Tunix` says; nothing is downloaded into a folder of the
run's, and no token is asked for.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from lazyload.formats.tunix import CLASSES, Tunix
from lazyload.integrations.replacement import Function, Installation, Library
from lazyload.loader import from_pretrained
from lazyload.models.tunix.module import KNOWN_VERSIONS
from lazyload.progress import ProgressOption

if TYPE_CHECKING:
    import os

logger = logging.getLogger("lazyload")

LIBRARY = Library("Tunix", distribution="google-tunix", versions=KNOWN_VERSIONS)

_LOAD = Function(
    "tunix.models.safetensors_loader",
    "load_and_create_model",
    ("file_dir", "model_class", "config", "key_mapping", "mesh", "preprocess_fn", "dtype", "mode"),
)
"""Through which the loaders of all families go."""
_DOWNLOAD = Function(
    "tunix.models.automodel", "download_model", ("model_id_or_path", "model_download_path", "model_source")
)
_HUGGING_FACE = "huggingface"
"""The value of `ModelSource` for models of the hub."""


def install(
    *,
    revision: str | None = None,
    cache_dir: "str | os.PathLike[str] | None" = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    keep_source: bool = True,
    progress: ProgressOption = None,
) -> Installation:
    """Makes Tunix load Hugging Face checkpoints from the cache, until undone.

    That is what `AutoModel.from_pretrained` does for models of the hub, `model_source: huggingface` in a run of
    `tunix.cli`, and the `create_model_from_safe_tensors` of each of Tunix's models for a folder. The path that
    `AutoModel` returns beside a model of the hub is its id, which tokenizers take, too. Models of Kaggle, and Google's
    own checkpoints, are none of the hub's and stay Tunix's to load.

    Args:
        revision: A branch, tag or commit of hub models.
        cache_dir: The cache's root.
        token: A hub token; None for the one that is logged in, False for none. Public models need none.
        local_files_only: Whether the hub must not be asked.
        keep_source: Whether what is downloaded from the hub stays in the hub's cache.
        progress: How progress is shown; see `lazyload.from_pretrained`.

    Returns:
        What undoes it: a context manager, and a method `undo`.

    Raises:
        IntegrationError: Tunix is not installed, of a version that is not known, or has another inside.

    Example:
        >>> with install():  # doctest: +SKIP
        ...     model, path = AutoModel.from_pretrained("Qwen/Qwen3-0.6B", mesh)
    """
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
        "keep_source": keep_source,
        "progress": progress,
    }

    def loading(original: Callable[..., Any]) -> Callable[..., Any]:
        def load_and_create_model(
            file_dir: str,
            model_class: type[Any],
            config: Any,
            key_mapping: Any,
            mesh: Mesh | None = None,
            preprocess_fn: Any = None,
            dtype: Any = None,
            mode: str = "auto",
        ) -> Any:
            if not _is_of_tunix(model_class):
                logger.warning("%s is no class of Tunix: its own loader reads %s", model_class.__name__, file_dir)
                return original(file_dir, model_class, config, key_mapping, mesh, preprocess_fn, dtype, mode)
            # Without a mesh, Tunix takes one device.
            mesh = mesh or Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
            return from_pretrained(file_dir, mesh=mesh, dtype=dtype or "auto", layout=Tunix(config), **options)

        return load_and_create_model

    def downloading(original: Callable[..., Any]) -> Callable[..., Any]:
        def download_model(model_id_or_path: str, model_download_path: str | None, model_source: Any) -> Any:
            if model_source.value == _HUGGING_FACE:
                return model_id_or_path
            logger.info("%s: a model of %s, which Tunix loads itself", model_id_or_path, model_source.value)
            return original(model_id_or_path, model_download_path, model_source)

        return download_model

    return Installation(LIBRARY, {_LOAD: loading, _DOWNLOAD: downloading})


def _is_of_tunix(model_class: type[Any]) -> bool:
    return any(
        model_class.__name__ == name and model_class.__module__ == f"tunix.models.{module}.model"
        for module, name in CLASSES.items()
    )
