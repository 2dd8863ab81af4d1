"""The types of what a call accepts."""

import os
from collections.abc import Mapping
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


class TorchDType(Protocol):
    """What tells `torch.bfloat16` and its like from other objects, without PyTorch."""

    @property
    def is_floating_point(self) -> bool:
        """Whether it is of floating-point numbers."""

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""


DTypeName = Literal["bfloat16", "float16", "float32", "bf16", "fp16", "fp32", "half", "float", "auto"]

DTypeOption = DTypeName | type[Any] | np.dtype[Any] | HasDType | TorchDType
"""A dtype of parameters: its name, what JAX takes for a dtype, or PyTorch's; `"auto"` for the one in `config.json`."""

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
    strict: bool
    config: Mapping[str, Any] | None
    lock_timeout: float | None
    verify: bool
    progress: ProgressOption
    family: Family | None
