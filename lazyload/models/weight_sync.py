"""What Tunix asks a model for to bring its weights into vLLM's or SGLang's JAX models, which sample for a trainer.

`tunix.generate.mappings.MappingConfig` (seen in Tunix 0.1.7) takes tables *own path -> name there, and how it is split
there*; the layer's number is `*`. The other program's models store kernels as this library does, inputs first, under
the names that the hub has, or nearly so: the tables follow from the layouts of both.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from flax import nnx

from lazyload.errors import InputError
from lazyload.models.projection import Projection

Backend = Literal["vllm_jax", "sglang_jax"]
Entry = tuple[str, tuple[str | None, ...]]

_SPLIT = ("head", "kv_head", "mlp", "vocab")
"""The axes that tensor parallelism splits there."""

_TENSOR_AXIS = {"vllm_jax": "model", "sglang_jax": "tensor"}
_LORA_NAMES = {"vllm_jax": ("{}_lora_a", "{}_lora_b"), "sglang_jax": ("{}.A_buffer", "{}.B_buffer")}


def mappings(model: nnx.Module, names: Mapping[str, str], family: str, backend: str) -> dict[str, Entry]:
    """For each parameter its name in the other program, and how it is split there.

    Args:
        model: The decoder.
        names: For each parameter its name in the hub's checkpoint, `*` for the layer.
        family: The model's family.
        backend: `"vllm_jax"` or `"sglang_jax"`.

    Raises:
        InputError: There is no such backend, or parameters correspond to no single tensor.
    """
    _require_backend(backend)
    found = _axes(model)
    if missing := sorted(set(found) - set(names)):
        raise InputError(
            f"{backend}: no single tensor of the hub's checkpoint is {', '.join(missing[:5])}"
            f"{' ...' if len(missing) > 5 else ''}, so that there is no name for it there"
        )
    return {path: (_spelled(names[path], family, backend), _split(axes, backend)) for path, axes in found.items()}


def lora_mappings(model: nnx.Module, names: Mapping[str, str], family: str, backend: str) -> dict[str, Entry]:
    """The same for what qwix adds to each projection of a layer, the factors `kernel_lora_a` and `kernel_lora_b`."""
    _require_backend(backend)
    table = {}
    for path, inputs, axes in _projections(model):
        name = _spelled(names[path], family, backend)
        stem = name.rpartition(".")[0] if backend == "sglang_jax" else name
        first, second = (form.format(stem) for form in _LORA_NAMES[backend])
        split = _split(axes, backend)
        table[f"{path}_lora_a"] = (first, (*split[:inputs], None))
        table[f"{path}_lora_b"] = (second, (None, *split[inputs:]))
    return table


def transposed(model: nnx.Module, backend: str) -> dict[str, tuple[int, ...]] | None:
    """The parameters whose dimensions have another order there; None for none."""
    _require_backend(backend)
    own_head = any(path == "lm_head.kernel" for path in _axes(model))
    return {"lm_head.kernel": (1, 0)} if backend == "sglang_jax" and own_head else None


def lora_transposed(model: nnx.Module, backend: str) -> dict[str, tuple[int, ...]] | None:
    """The same for LoRA's factors, which SGLang stores the other way round, behind a dimension for the adapter.

    The paths are regular expressions: Tunix adds that dimension to what such a one matches, and to no other.
    """
    _require_backend(backend)
    if backend != "sglang_jax":
        return None
    table: dict[str, tuple[int, ...]] = {}
    for path, inputs, axes in _projections(model):
        escaped = path.replace(".", r"\.").replace("*", r"\d+")
        outputs = len(axes) - inputs
        table[f"{escaped}_lora_a"] = (0, inputs + 1, *range(1, inputs + 1))
        table[f"{escaped}_lora_b"] = (0, *range(2, outputs + 2), 1)
    return table


def _require_backend(backend: str) -> None:
    if backend not in get_args(Backend):
        raise InputError(f"backend {backend!r} is not known; there are {', '.join(get_args(Backend))}")


def _axes(model: nnx.Module) -> dict[str, tuple[str, ...]]:
    """The logical axes of each parameter that is no adapter, `*` for the layer."""
    found = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param) and not isinstance(node, nnx.LoRAParam):
            found[_template(path)] = tuple(node.get_metadata().get("logical_axes", ()))
    return found


def _projections(model: nnx.Module) -> list[tuple[str, int, tuple[str, ...]]]:
    """Each projection of a layer: its kernel's path, how many of its dimensions are inputs, and their axes."""
    found = {
        f"{_template(path)}.kernel": (node.inputs, node.axes)
        for path, node in nnx.iter_graph(model)
        if isinstance(node, Projection) and path[0] == "layers"
    }
    return [(path, inputs, axes) for path, (inputs, axes) in found.items()]


def _template(path: Sequence[Any]) -> str:
    return ".".join("*" if isinstance(step, int) else str(step) for step in path)


def _split(axes: Sequence[str], backend: str) -> tuple[str | None, ...]:
    return tuple(_TENSOR_AXIS[backend] if axis in _SPLIT else None for axis in axes)


def _spelled(name: str, family: str, backend: str) -> str:
    """A name of the hub as the other program spells it: SGLang has its own for norms and embeddings, vLLM for Llama."""
    module, _, leaf = name.rpartition(".")
    if leaf != "weight" or (backend == "vllm_jax" and family != "llama"):
        return name
    if backend == "vllm_jax" and module in ("lm_head", "model.embed_tokens"):
        return {"lm_head": "model.lm_head", "model.embed_tokens": "model.embed.embedding"}[module]
    if module in ("lm_head", "model.embed_tokens"):
        return f"{module}.embedding"
    if module.endswith("norm"):
        return f"{module}.scale"
    return f"{module}.kernel" if backend == "vllm_jax" else name
