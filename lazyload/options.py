"""What a call accepts: the types of its arguments, and what it says of others."""

import dataclasses
import difflib
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypedDict, TypeVar, get_args

import ml_dtypes
import numpy as np

from lazyload.architecture import AttentionKernel
from lazyload.errors import ArgumentError, StorageError, UnsupportedFormatError
from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.formats.target import Target
from lazyload.formats.tunix import Tunix
from lazyload.layouts.dtypes import ALL, DTypes
from lazyload.layouts.layout import Layout
from lazyload.progress import ProgressOption
from lazyload.storage import Storage

if TYPE_CHECKING:
    import jax

    from lazyload.models.stack import Remat
    from lazyload.sharding import Rules


_DTYPES: Mapping[str, np.dtype] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
_SPELLINGS = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}

P = ParamSpec("P")
T = TypeVar("T")


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

OneDType = DTypeName | type[Any] | np.dtype[Any] | HasDType | TorchDType
"""A dtype of parameters: its name, what JAX takes for a dtype, or PyTorch's; `"auto"` for the one in `config.json`."""

DTypeOption = OneDType | Mapping[str, OneDType]
"""The dtype of all parameters, or dtypes by pattern: `{"*norm*": "float32", "*": "bfloat16"}`, see `DTypes`."""

LayoutOption = Literal["nnx", "nnx-scanned"] | Layout | MaxText | Tunix | Target[Any]

DECODERS = ("nnx", "nnx-scanned")
"""The layouts of this library's decoder: with a parameter for each layer, and with alike layers stacked."""

StorageOption = Storage | Mapping[str, bool | str | int | None] | None


class LoadOptions(TypedDict, total=False):
    """The options of `from_pretrained` that do not decide what it returns."""

    revision: str | None
    subfolder: str | None
    variant: str | None
    mesh: "jax.sharding.Mesh | None"
    rules: "Rules | None"
    dtype: DTypeOption
    compute_dtype: OneDType | None
    layers: range | None
    scan_layers: bool
    remat: "Remat | None"
    attention: AttentionKernel | None
    storage: StorageOption
    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None
    local_files_only: bool
    force_convert: bool
    keep_source: bool
    strict: bool
    config: Mapping[str, Any] | None
    lock_timeout: float | None
    patience: float | None
    verify: bool
    progress: ProgressOption
    family: Family | None
    adapter: str | os.PathLike[str] | None
    merge: bool


class ConfigOptions(TypedDict, total=False):
    """The options of `config` that do not decide what it returns."""

    revision: str | None
    subfolder: str | None
    variant: str | None
    layers: range | None
    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None
    local_files_only: bool
    config: Mapping[str, Any] | None


_SHARDED = "parameters go where mesh= and rules= say"
_DTYPE = "packed weights are unpacked to dtype=, and nothing is quantised"
_ATTENTION = "give attention=, or leave it out for the platform's best"
_STREAMED = "weights are always streamed; leave it out"
_SAFETENSORS = "only safetensors are read"
_GENERATION = "it is none of the weights'; leave it out"
INSTEAD: Mapping[str, str] = {
    "torch_dtype": "give dtype=",
    "device_map": _SHARDED,
    "device": _SHARDED,
    "max_memory": _SHARDED,
    "tp_plan": _SHARDED,
    "tp_size": _SHARDED,
    "device_mesh": _SHARDED,
    "distributed_config": _SHARDED,
    "trust_remote_code": "no code of a repository is ever run; describe the architecture with family=",
    "code_revision": "no code of a repository is ever run; describe the architecture with family=",
    "quantization_config": _DTYPE,
    "load_in_8bit": _DTYPE,
    "load_in_4bit": _DTYPE,
    "attn_implementation": _ATTENTION,
    "experts_implementation": "there is one implementation of experts",
    "use_flash_attention_2": _ATTENTION,
    "use_kernels": _ATTENTION,
    "low_cpu_mem_usage": _STREAMED,
    "offload_folder": _STREAMED,
    "offload_state_dict": _STREAMED,
    "offload_buffers": _STREAMED,
    "disable_mmap": _STREAMED,
    "use_safetensors": f"{_SAFETENSORS}; leave it out",
    "from_tf": _SAFETENSORS,
    "from_flax": _SAFETENSORS,
    "from_pt": _SAFETENSORS,
    "gguf_file": _SAFETENSORS,
    "weights_only": f"{_SAFETENSORS}; leave it out",
    "state_dict": "weights come from the checkpoint only; `lazyload.fill` fills a module with arrays of your own",
    "key_mapping": "describe the names of tensors with family=",
    "ignore_mismatched_sizes": "every tensor must fit; give config= where config.json is wrong",
    "output_loading_info": "lazyload.plan(...) says what is used of the checkpoint",
    "use_auth_token": "give token=",
    "force_download": "give force_convert=True",
    "resume_download": "downloads are always resumed; leave it out",
    "proxies": "set HTTPS_PROXY",
    "mirror": "set HF_ENDPOINT",
    "adapter_kwargs": "give adapter=",
    "adapter_name": "give adapter=",
    "generation_config": _GENERATION,
    "use_cache": _GENERATION,
    "output_attentions": _GENERATION,
    "output_hidden_states": _GENERATION,
}
"""Arguments of `transformers.PreTrainedModel.from_pretrained` that are none here, and what there is instead."""


def explains_arguments(call: Callable[P, T]) -> Callable[P, T]:
    """Makes a function say what to write instead of an argument that it does not have.

    For a type checker, and for `inspect.signature`, its arguments are as before.
    """
    signature = inspect.signature(call)

    @functools.wraps(call)
    def explained(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs.keys() - signature.parameters.keys():
            raise ArgumentError(_unknown_argument(call.__name__, name, list(signature.parameters)))
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{call.__name__}: {error}") from None
        return call(*args, **kwargs)

    return explained


def _unknown_argument(call: str, name: str, known: list[str]) -> str:
    if name in INSTEAD:
        return f"{call} has no argument {name!r}: {INSTEAD[name]}"
    close = difflib.get_close_matches(name, known, n=1)
    return f"{call} has no argument {name!r}" + (
        f"; is {close[0]!r} meant?" if close else f"; it has {', '.join(known)}"
    )


def storage_of(option: StorageOption) -> Storage:
    """The flags of storage, however they are given.

    Raises:
        StorageError: They are neither a `Storage` nor its flags by name.
    """
    if option is None or isinstance(option, Storage):
        return option or Storage()
    known = [flag.name for flag in dataclasses.fields(Storage)]
    if not isinstance(option, Mapping) or not set(option) <= set(known):
        raise StorageError(
            f"storage={option!r:.200}: give lazyload.Storage({'=, '.join(known)}=), or a dictionary of these"
        )
    flags: dict[str, Any] = dict(option)
    return Storage(**flags)


def require_layers(layers: range | None, count: int | None = None) -> None:
    """Makes sure that layers are a part of a model.

    Args:
        layers: Which ones; None for all.
        count: How many the model has; None while that is not known.

    Raises:
        ArgumentError: They are none: no range, an empty one, one with gaps, or beyond the last layer.
    """
    if layers is None:
        return
    if not isinstance(layers, range) or layers.step != 1 or not layers or layers.start < 0:
        raise ArgumentError(f"layers={layers!r:.200}: give layers that follow each other, such as range(0, 8)")
    if count is not None and layers.stop > count:
        raise ArgumentError(f"layers={layers!r}: the model has {count} layers, the last one is {count - 1}")


def decoder_layout(layout: LayoutOption, scan_layers: bool) -> LayoutOption:
    """The layout that a call with `scan_layers` means.

    Raises:
        ArgumentError: `scan_layers` is given with a layout that is not of this library's decoder.
    """
    if not isinstance(scan_layers, bool):
        raise ArgumentError(f"scan_layers={scan_layers!r:.200}: give True or False")
    if not scan_layers:
        return layout
    if isinstance(layout, str) and layout in DECODERS:
        return "nnx-scanned"
    raise ArgumentError(
        "scan_layers=True is for this library's decoder, layout='nnx'; MaxText(scan_layers=) for MaxText"
    )


def require_remat(remat: object, layout: LayoutOption, into: object) -> None:
    """Makes sure that what is loaded can compute again what is wanted.

    Raises:
        ArgumentError: There is no such rematerialisation, or what is loaded is no decoder of this library.
    """
    if remat is None:
        return
    if remat not in ("none", "block", "dots"):
        raise ArgumentError(f"remat={remat!r:.200}: give 'none', 'block' or 'dots'")
    if layout not in DECODERS or not (into is None or hasattr(into, "remat")):
        raise ArgumentError(f"remat={remat!r} is for this library's decoder, layout='nnx'")


def require_attention(attention: object, layout: LayoutOption, into: object) -> None:
    """Makes sure that what is loaded can compute attention as it is wanted.

    Raises:
        ArgumentError: There is no such implementation, or what is loaded is no decoder of this library.
    """
    if attention is None:
        return
    if attention not in get_args(AttentionKernel):
        raise ArgumentError(
            f"attention={attention!r:.200}: give None, {', '.join(map(repr, get_args(AttentionKernel)))}"
        )
    if layout not in DECODERS or not (into is None or hasattr(into, "attention")):
        raise ArgumentError(f"attention={attention!r} is for this library's decoder, layout='nnx'")


def dtype_patterns(option: DTypeOption) -> Mapping[str, np.dtype | None]:
    """The dtypes asked for, by pattern; None where `config.json` is to say which.

    Raises:
        ArgumentError: A pattern is no text, or stands behind `"*"`, where it cannot count.
        UnsupportedFormatError: Parameters cannot be of such a dtype.
    """
    patterns: Mapping[str, OneDType] = option if isinstance(option, Mapping) else {ALL: option}
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise ArgumentError(f"dtype: {pattern!r:.200} is no pattern of roles or paths, such as '*norm*'")
    if ALL in patterns and list(patterns)[-1] != ALL:
        raise ArgumentError("dtype: the first pattern that matches counts, and '*' matches everything: put it last")
    return {pattern: None if _is_auto(dtype) else _dtype(dtype) for pattern, dtype in patterns.items()}


def dtypes_for(patterns: Mapping[str, np.dtype | None], config: Mapping[str, Any]) -> DTypes:
    """The dtypes of one model.

    Args:
        patterns: The dtypes asked for.
        config: The model's `config.json`.

    Raises:
        UnsupportedFormatError: `config.json` does not say which dtype, or one that parameters cannot be of.
    """
    known = {pattern: dtype or _dtype_of(config) for pattern, dtype in patterns.items()}
    default = known.pop(ALL, _DTYPES["bfloat16"])
    return DTypes(default, tuple(known.items()))


def compute_dtype_of(option: OneDType | None, layout: LayoutOption, into: Any) -> np.dtype | None:
    """The dtype that a decoder computes in; None for that of its parameters.

    Raises:
        ArgumentError: No decoder of this library is built, or it is "auto".
        UnsupportedFormatError: It is no dtype that parameters can be of.
    """
    if option is None:
        return None
    if layout not in DECODERS or into is not None:
        what = f"of layout {layout!r:.100} no decoder of this library is built" if into is None else "into= has its own"
        raise ArgumentError(f"compute_dtype={option!r}: {what}; leave it out")
    if _is_auto(option):
        raise ArgumentError(f"compute_dtype={option!r}: give {', '.join(_DTYPES)}, or None for the parameters' own")
    return _dtype(option)


def _is_auto(dtype: OneDType) -> bool:
    return isinstance(dtype, str) and dtype == "auto"


def _dtype(dtype: OneDType) -> np.dtype:
    """The dtype of floating-point parameters, however it is written."""
    inner = getattr(dtype, "dtype", None)
    given: Any = inner if isinstance(inner, np.dtype) else dtype
    try:
        # NumPy would take None for float64, and does not know bfloat16 by name.
        name = str(given) if given is None or isinstance(given, str) else np.dtype(given).name
    except (TypeError, ValueError):
        # PyTorch's are called `torch.bfloat16`.
        name = str(given)
    name = name.removeprefix("torch.")
    name = _SPELLINGS.get(name, name)
    if name not in _DTYPES:
        raise UnsupportedFormatError(
            f"dtype {dtype!r}: parameters can be {', '.join(_DTYPES)}, or 'auto' for what config.json says"
        )
    return _DTYPES[name]


def _dtype_of(config: Mapping[str, Any]) -> np.dtype:
    """The dtype that `config.json` says its weights are in."""
    parts = (config, config.get("text_config"))
    named = (part.get(name) for part in parts if isinstance(part, Mapping) for name in ("dtype", "torch_dtype"))
    name = next((name for name in named if name is not None), None)
    if not isinstance(name, str) or name == "auto":
        raise UnsupportedFormatError(f"dtype 'auto': config.json does not say which; give {', '.join(_DTYPES)}")
    return _dtype(name)  # type: ignore[arg-type]
