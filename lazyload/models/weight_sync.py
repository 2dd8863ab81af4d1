"""What Tunix asks a model for to bring its weights into vLLM's or SGLang's JAX models, which sample for a trainer.

`tunix.generate.mappings.MappingConfig` (seen in Tunix 0.1.7) takes tables *own path -> name there, and how it is split
there*; the layer's number is `*`. The other program's models store kernels as this library does, inputs first, under
the names that the hub has, or nearly so: the tables follow from the layouts of both. Where the hub has one tensor for
several projections, those models have them apart, by their usual names; the experts of a layer are one array there, too
(seen in tpu-inference and sglang-jax of August 2026).

Of layers in stacks Tunix cuts an array into those of the layers where the entry's split has `layer` for the dimension;
the name there is then a regular expression whose one group is the layer's number.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from flax import nnx

from lazyload.architecture.stacking import stacks
from lazyload.errors import InputError
from lazyload.models.projection import Projection

Backend = Literal["vllm_jax", "sglang_jax"]
Entry = tuple[str, tuple[str | None, ...]]

_SPLIT = ("head", "kv_head", "mlp", "expert_mlp", "vocab")
"""The axes that tensor parallelism splits there."""

_TENSOR_AXIS = {"vllm_jax": "model", "sglang_jax": "tensor"}
_LORA_NAMES = {"vllm_jax": ("{}_lora_a", "{}_lora_b"), "sglang_jax": ("{}.A_buffer", "{}.B_buffer")}

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Tensors of the hub that hold several projections, and what these are called by themselves."""

_GATE, _UP, _DOWN = (f".moe.{name}_proj.kernel" for name in ("gate", "up", "down"))
_GATE_AND_UP = ".moe.gating_einsum"
"""What Tunix calls `[expert, 2, mlp, embed]`, and makes `[expert, embed, 2 mlp]` of, as vLLM splits it over devices."""

_EXPERT_NAMES = {
    "vllm_jax": {_GATE_AND_UP: "kernel_gating_upproj_EDF", _DOWN: "kernel_down_proj_EFD"},
    "sglang_jax": {_GATE: "wi_0", _UP: "wi_1", _DOWN: "wo"},
}
_OTHER_EXPERTS = {"vllm_jax": ("gpt_oss", "llama4"), "sglang_jax": ()}
"""The families with experts whose models bear names there that have nothing to do with the hub's."""

_DIVIDED = ("kv_b_proj",)
"""Projections that are no array of their own in models there, which keep their outputs for keys and values apart."""

_SGLANG_NAMES = {
    "qwen2_moe": {
        ".mlp.gate.weight": ".moe_gate.kernel",
        ".mlp.shared_expert.": ".shared_experts.",
        ".mlp.shared_expert_gate.": ".shared_expert_gate.",
    },
    "qwen3_moe": {".mlp.gate.weight": ".moe_gate.kernel", ".self_attn.o_proj.": ".self_attn.c_proj."},
}
"""What SGLang calls otherwise in its models with experts; of other families it is not known here."""


class _Parameter(NamedTuple):
    """A parameter, or that of all layers.

    Attributes:
        general: Its path, `*` for the layer, whether layers are stacked or not.
        axes: Its logical axes.
        layers: Of a stack, the layers that it holds; None for one array a layer, or for all.
    """

    general: str
    axes: tuple[str, ...]
    layers: tuple[int, ...] | None


def mappings(model: nnx.Module, names: Mapping[str, str], family: str, backend: str) -> dict[str, Entry]:
    """For each parameter its name in the other program, and how it is split there.

    Args:
        model: The decoder.
        names: For each parameter its name in the hub's checkpoint, as `tensor_names` gives it.
        family: The model's family.
        backend: `"vllm_jax"` or `"sglang_jax"`.

    Raises:
        InputError: There is no such backend, or there is no array there for a parameter.
    """
    _require_backend(backend)
    parameters = _sent(_parameters(model), backend)
    table: dict[str, Entry] = {}
    unknown = []
    for path, parameter in parameters.items():
        name = _name(parameter.general, names, family, backend)
        if name is None:
            unknown.append(parameter.general)
        else:
            table[path] = (_numbered(name, parameter.layers), _split(parameter.axes, backend))
    if unknown:
        raise InputError(
            f"{backend}: there is no array there, by any name known here, that is {', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''} of family {family!r}, so that weights cannot be brought there"
        )
    return table


def lora_mappings(model: nnx.Module, names: Mapping[str, str], family: str, backend: str) -> dict[str, Entry]:
    """The same for what qwix adds to each projection of a layer, the factors `kernel_lora_a` and `kernel_lora_b`.

    Of layers in stacks the factors are in stacks, too.

    Raises:
        InputError: There is no such backend, or the model has factors that there is no array for, such as those of the
            output projection or of experts.
    """
    _require_backend(backend)
    table: dict[str, Entry] = {}
    for path, (projection, general, layers) in _projections(model).items():
        name = _name(general, names, family, backend)
        if name is None:
            continue
        stem = name.rpartition(".")[0] if backend == "sglang_jax" else name
        first, second = (_numbered(form.format(stem), layers) for form in _LORA_NAMES[backend])
        stack, split = () if layers is None else ("layer",), _split(projection.axes, backend)
        table[f"{path}_lora_a"] = (first, (*stack, *split[: projection.inputs], None))
        table[f"{path}_lora_b"] = (second, (*stack, None, *split[projection.inputs :]))
    factors = dict.fromkeys(place for place, _, _, node in _nodes(model) if isinstance(node, nnx.LoRAParam))
    unknown = [place for place in factors if place not in table]
    if unknown:
        raise InputError(
            f"{backend}: there is no array there for the LoRA factors {', '.join(unknown[:4])}"
            f"{' ...' if len(unknown) > 4 else ''}"
        )
    return table


def transposed(model: nnx.Module, backend: str) -> dict[str, tuple[int, ...]] | None:
    """The parameters whose dimensions have another order there; None for none.

    Of SGLang it is a table in any case: Tunix puts the one of LoRA into it.
    """
    _require_backend(backend)
    if backend != "sglang_jax":
        return None
    return {"lm_head.kernel": (1, 0)} if "lm_head.kernel" in _parameters(model) else {}


def lora_transposed(model: nnx.Module, backend: str) -> dict[str, tuple[int, ...]] | None:
    """The same for LoRA's factors, which SGLang stores the other way round, behind a dimension for the adapter.

    The paths are regular expressions: Tunix adds that dimension to what such a one matches, and to no other.
    """
    _require_backend(backend)
    if backend != "sglang_jax":
        return None
    table: dict[str, tuple[int, ...]] = {}
    for path, (projection, _, _) in _projections(model).items():
        escaped = path.replace(".", r"\.").replace("*", r"\d+")
        inputs, outputs = projection.inputs, len(projection.axes) - projection.inputs
        table[f"{escaped}_lora_a"] = (0, inputs + 1, *range(1, inputs + 1))
        table[f"{escaped}_lora_b"] = (0, *range(2, outputs + 2), 1)
    return table


def preprocessing(model: nnx.Module, backend: str) -> Callable[[nnx.State[Any, Any]], nnx.State[Any, Any]] | None:
    """What is made of the parameters before they are mapped: of experts' gates and ups one array for vLLM; or None."""
    _require_backend(backend)
    has_gates = any(path.endswith(_GATE) for path in _parameters(model))
    return with_gates_and_ups if backend == "vllm_jax" and has_gates else None


def with_gates_and_ups(state: nnx.State[Any, Any]) -> nnx.State[Any, Any]:
    """Parameters with `gating_einsum`, `[expert, 2, mlp, embed]`, in place of experts' gate and up projections.

    In stacks, that is one dimension more in front.
    """
    found = dict(nnx.to_flat_state(state))
    changed = dict(found)
    for path, gate in found.items():
        up = (*path[:-2], "up_proj", "kernel")
        if ".".join(map(str, path)).endswith(_GATE) and up in found:
            gate_and_up = jnp.stack([gate[...], found[up][...]], axis=-3)
            changed[(*path[:-2], "gating_einsum")] = nnx.Param(jnp.swapaxes(gate_and_up, -1, -2))
            del changed[path], changed[up]
    return nnx.from_flat_state(changed)


def _require_backend(backend: str) -> None:
    if backend not in get_args(Backend):
        raise InputError(f"backend {backend!r} is not known; there are {', '.join(get_args(Backend))}")


def _parameters(model: Any) -> dict[str, _Parameter]:
    """The parameters that are no adapters, by the paths that Tunix's tables have for them."""
    return {
        place: _Parameter(general, tuple(node.get_metadata().get("logical_axes", ())), layers)
        for place, general, layers, node in _nodes(model)
        if isinstance(node, nnx.Param) and not isinstance(node, nnx.LoRAParam)
    }


def _sent(parameters: Mapping[str, _Parameter], backend: str) -> dict[str, _Parameter]:
    """The parameters as they are after `preprocessing`."""
    if backend != "vllm_jax":
        return dict(parameters)
    sent = {}
    for path, parameter in parameters.items():
        if path.endswith(_GATE):
            *before, expert, embed, mlp = parameter.axes
            general = parameter.general.removesuffix(_GATE) + _GATE_AND_UP
            axes = (*before, expert, "gate_up", mlp, embed)
            sent[path.removesuffix(_GATE) + _GATE_AND_UP] = _Parameter(general, axes, parameter.layers)
        elif not (path.endswith(_UP) and path.removesuffix(_UP) + _GATE in parameters):
            sent[path] = parameter
    return sent


def _projections(model: Any) -> dict[str, tuple[Projection, str, tuple[int, ...] | None]]:
    """Each projection of a layer, by its kernel's path in Tunix's tables, with its general path and its layers."""
    return {
        f"{place}.kernel": (node, f"{general}.kernel", layers)
        for place, general, layers, node in _nodes(model)
        if isinstance(node, Projection) and general.startswith("layers.")
    }


def _nodes(model: Any) -> Iterator[tuple[str, str, tuple[int, ...] | None, Any]]:
    """A model's modules and variables: the path that Tunix's tables have for each, the general one, layers, and itself.

    Path and layers are those that a `_Parameter` has.
    """
    numbers = {str(place): tuple(stack) for place, stack in enumerate(stacks(model.config))}
    for path, node in nnx.iter_graph(model):
        if not isinstance(node, nnx.Module | nnx.Variable):
            continue
        general = _template(path)
        if model.scan_layers and len(path) > 1 and path[0] == "layers":
            yield ".".join(map(str, path)), general, numbers[str(path[1])], node
        else:
            yield general, general, None, node


def _template(path: Sequence[Any]) -> str:
    return ".".join("*" if isinstance(step, int) else str(step) for step in path)


def _split(axes: Sequence[str], backend: str) -> tuple[str | None, ...]:
    return tuple("layer" if axis == "layer" else _TENSOR_AXIS[backend] if axis in _SPLIT else None for axis in axes)


def _numbered(name: str, layers: tuple[int, ...] | None) -> str:
    """A name for a stack's layers: a regular expression, which is what Tunix takes one with parentheses for."""
    if layers is None:
        return name
    return name.replace(".", r"\.").replace("*", f"({'|'.join(map(str, layers))})")


def _name(path: str, names: Mapping[str, str], family: str, backend: str) -> str | None:
    """The name of a parameter in the other program; None for none."""
    known = _EXPERT_NAMES[backend]
    if (
        ending := next((ending for ending in (_GATE_AND_UP, _GATE, _UP, _DOWN) if path.endswith(ending)), None)
    ) is None:
        hub = _own_name(path, names)
        return None if hub is None else _spelled(hub, family, backend)
    hub = names.get(path.removesuffix(ending) + _DOWN, "")
    module = hub.partition(".{expert}")[0] if "{expert}" in hub else hub.rpartition(".")[0]
    of_others = family in _OTHER_EXPERTS[backend] or (backend == "sglang_jax" and family not in _SGLANG_NAMES)
    if ending not in known or of_others or not module.endswith(".experts"):
        return None
    return f"{module if backend == 'vllm_jax' else module.removesuffix('.experts')}.{known[ending]}"


def _own_name(path: str, names: Mapping[str, str]) -> str | None:
    """The hub's name of a parameter, or the usual one of what the hub has together with others; None for neither."""
    name, own = names.get(path), path.split(".")[-2]
    if name is None or "{" in name or own in _DIVIDED:
        return None
    if sum(name == other for other in names.values()) == 1:
        return name
    module, _, leaf = name.rpartition(".")
    block, _, fused = module.rpartition(".")
    return f"{block}.{own}.{leaf}" if own in _FUSED.get(fused, ()) else None


def _spelled(name: str, family: str, backend: str) -> str:
    """A name of the hub as the other program spells it: SGLang has its own for norms and embeddings, vLLM for Llama."""
    for hub, there in _SGLANG_NAMES.get(family, {}).items() if backend == "sglang_jax" else ():
        if hub in name:
            return name.replace(hub, there)
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
