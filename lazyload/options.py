"""The types of what a call accepts."""

import os
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

import numpy as np

from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.formats.target import Target
from lazyload.layouts.layout import Layout
from lazyload.progress import ProgressOption
from lazyload.storage import Storage

if TYPE_CHECKING:
    import jax

    from lazyload.sharding import Rules


class HasDType(Protocol):
    """An object that stands for its dtype, such as `jnp.bfloat16`."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype."""


DTypeOption = Literal["bfloat16", "float16", "float32"] | type[Any] | np.dtype[Any] | HasDType
"""A dtype of parameters: its name, or what JAX takes for a dtype."""

LayoutOption = Literal["nnx"] | Layout | MaxText | Target[Any]


class LoadOptions(TypedDict, total=False):
    """The options of `from_pretrained` that do not decide what it returns."""

    revision: str | None
    mesh: "jax.sharding.Mesh | None"
    rules: "Rules | None"
    dtype: DTypeOption
    storage: Storage | None
    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None
    local_files_only: bool
    force_convert: bool
    lock_timeout: float | None
    verify: bool
    progress: ProgressOption
    family: Family | None
