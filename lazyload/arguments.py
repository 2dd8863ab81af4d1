"""What a call asks for, as its arguments say it: which model, in which form, and in which cache."""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyload.families.family import Family
from lazyload.options import DTypeOption, LayoutOption, StorageOption
from lazyload.sources import ModelReference, adapter_reference


# Not shown: a token, and URLs, hold secrets.
@dataclass(frozen=True, repr=False, kw_only=True)
class ModelArguments:
    """The arguments that decide which checkpoint a call is about; see `lazyload.from_pretrained` for each of them.

    Every public function makes one of its own arguments and hands it on; `lazyload.request.open_request` resolves it.

    Attributes:
        model: A hub id, a folder or a URL.
        revision: A branch, tag or commit.
        subfolder: Where in the repository or folder the checkpoint lies.
        variant: Which files of weights.
        dtype: The dtype of floating-point parameters, or dtypes by pattern.
        compute_dtype: The dtype that the decoder computes in; None for the dtype of its parameters.
        layout: The layout, that of stacked layers where `scan_layers` asks for it.
        layers: Which layers of the decoder; None for all.
        storage: How the converted checkpoint is stored.
        cache_dir: The cache's root.
        token: A hub token.
        local_files_only: Whether the hub must not be asked.
        strict: Whether every tensor without use is an error.
        config: Fields of `config.json` that are to have other values.
        family: The architecture, where it is none of those that are known.
        adapter: A LoRA adapter in PEFT's format.
        merge: Whether the adapter is merged into the weights.
    """

    model: str | os.PathLike[str]
    revision: str | None = None
    subfolder: str | None = None
    variant: str | None = None
    dtype: DTypeOption = "bfloat16"
    compute_dtype: np.dtype | None = None
    layout: LayoutOption = "nnx"
    layers: range | None = None
    storage: StorageOption = None
    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    strict: bool = False
    config: Mapping[str, Any] | None = None
    family: Family | None = None
    adapter: str | os.PathLike[str] | None = None
    merge: bool = True

    @functools.cached_property
    def reference(self) -> ModelReference:
        """Which checkpoint is meant.

        Raises:
            ArgumentError: One of the arguments cannot say that.
            SourceNotFoundError: `subfolder` or `variant` is none.
        """
        return ModelReference(
            self.model, self.revision, self.token, self.local_files_only, self.subfolder or "", self.variant or ""
        )

    @functools.cached_property
    def adapter_reference(self) -> ModelReference | None:
        """Which adapter is meant; None for none.

        Raises:
            ArgumentError: It is neither a text nor a path, or no place on the hub.
        """
        return adapter_reference(self.adapter, self.token, self.local_files_only)
