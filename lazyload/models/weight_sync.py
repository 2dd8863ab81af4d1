"""What Tunix asks a model for to bring its weights into vLLM's or SGLang's JAX models, which sample for a trainer.

`tunix.generate.mappings.MappingConfig` (seen in Tunix 0.1.7) takes tables *own path -> name there, and how it is split
there*; the layer's number is `*`. The other program's models store kernels as this library does, inputs first, under
the names that the hub has, or nearly so: the tables follow from the layouts of both. Where the hub has one tensor for
several projections, those models have them apart, by their usual names; the experts of a layer are one array there, too
(seen in tpu-inference 0.28 to 0.32 and in sglang-jax of August 2026).

Where vLLM has gates and ups in one array, `tensor_parallel_size` devices share it, and its columns are in the order of
these: of each device the gate, then the up. Tunix sees to that for experts (`_align_shape` of its `generate/utils.py`).
For others it has no rule, and its hooks get one array and not the number of devices, so that this number is asked for.

Of layers in stacks Tunix cuts an array into those of the layers where the entry's split has `layer` for the dimension;
the name there is then a regular expression whose one group is the layer's number.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from flax import nnx

from lazyload.architecture.stacking import stacks
from lazyload.errors import InputError
from lazyload.models.projection import Projection

logger: logging.Logger = logging.getLogger("lazyload")

Backend = Literal["vllm_jax", "sglang_jax"]
Entry = tuple[str, tuple[str | None, ...]]

_SPLIT = ("head", "kv_head", "mlp", "expert_mlp", "vocab")
"""The axes that tensor parallelism splits there."""

_TENSOR_AXIS = {"vllm_jax": "model", "sglang_jax": "tensor"}
_LORA_NAMES = {"vllm_jax": ("{}_lora_a", "{}_lora_b"), "sglang_jax": ("{}.A_buffer", "{}.B_buffer")}

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Tensors of the hub that hold several projections, and what these are called by themselves."""

_JAX_MODELS = ("gemma4", "llama", "qwen2", "qwen3")
"""The families of which tpu-inference has models in JAX, by names of the hub or nearly so.

All others vLLM runs as it has them in PyTorch: their weights are a plain dictionary, in which tensor parallelism
interleaves `qkv_proj` and `gate_up_proj` (`process_linear_weights` of tpu-inference). Tunix fills an `nnx.State`.
"""

_GATE, _UP, _DOWN = (f".moe.{name}_proj.kernel" for name in ("gate", "up", "down"))
_GATE_AND_UP = ".moe.gating_einsum"
"""What Tunix calls `[expert, 2, mlp, embed]`, and makes `[expert, embed, 2 mlp]` of, as vLLM splits it over devices."""

_DENSE_GATE, _DENSE_UP, _DENSE_BOTH = (f".mlp.{name}_proj.kernel" for name in ("gate", "up", "gate_up"))
_MERGED = {"vllm_jax": ("gemma4",), "sglang_jax": ()}
"""The families whose models have gate and up in one array there, `[embed, 2 mlp]`."""

_BEFORE = {"gemma4": r"(?:model\.)?(?:language_model\.)?"}
"""What vLLM has in place of `model.`, as a regular expression: versions differ, and models that take images."""

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


def mappings(
    model: nnx.Module, names: Mapping[str, str], family: str, backend: str, parts: int | None = None
) -> dict[str, Entry]:
    """For each parameter its name in the other program, and how it is split there.

    Args:
        model: The decoder.
        names: For each parameter its name in the hub's checkpoint, as `tensor_names` gives it.
        family: The model's family.
        backend: `"vllm_jax"` or `"sglang_jax"`.
        parts: Over how many devices tensor parallelism splits a layer there; None for not known.

    Raises:
        InputError: There is no such backend, or there is no array there for a parameter; or an array there depends on
            `parts`, and that is not known or does not divide it.
    """
    _require_backend(backend)
    found = _parameters(model)
    _require_parts(model, found, family, backend, parts)
    if backend == "vllm_jax" and family not in _JAX_MODELS:
        logger.warning(
            "vllm_jax: tpu-inference has no model of family %r in JAX that Tunix can fill, but runs vLLM's of PyTorch, "
            "in which tensor parallelism interleaves qkv_proj and gate_up_proj; where that is so, write the weights "
            "with lazyload.save_pretrained and have vLLM load that folder, or sample with Tunix's own sampler",
            family,
        )
    parameters = _sent(found, family, backend)
    table: dict[str, Entry] = {}
    unknown = []
    for path, parameter in parameters.items():
        name = _name(parameter.general, names, family, backend)
        if name is None:
            unknown.append(parameter.general)
        else:
            table[path] = (_numbered(name, parameter.layers, family, backend), _split(parameter.axes, backend))
    if unknown:
        raise InputError(
            f"{backend}: there is no array there, by any name known here, that is {', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''} of family {family!r}, so that weights cannot be brought there; "
            "write them with lazyload.save_pretrained, and have that program load the folder"
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
        if name is None or _is_merged(general, family, backend):
            continue
        stem = name.rpartition(".")[0] if backend == "sglang_jax" else name
        first, second = (_numbered(form.format(stem), layers, family, backend) for form in _LORA_NAMES[backend])
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


def preprocessing(
    model: nnx.Module, family: str, backend: str, parts: int | None = None
) -> Callable[[nnx.State[Any, Any]], nnx.State[Any, Any]] | None:
    """What is made of the parameters before they are mapped: of gates and ups one array for vLLM; or None.

    Raises:
        InputError: There is no such backend, or an array there depends on `parts`, and that is not known.
    """
    _require_backend(backend)
    found = _parameters(model)
    _require_parts(model, found, family, backend, parts)
    if not any(path.endswith(_GATE) or _is_merged(path, family, backend) for path in found) or backend != "vllm_jax":
        return None
    return partial(with_gates_and_ups, parts=parts if family in _MERGED[backend] else None)


def with_gates_and_ups(state: nnx.State[Any, Any], *, parts: int | None = None) -> nnx.State[Any, Any]:
    """Parameters with one array in place of each gate and up projection, in stacks with one dimension more in front.

    Those of experts become `gating_einsum`, `[expert, 2, mlp, embed]`.

    Args:
        state: The parameters.
        parts: Into how many the columns of other projections are split; these become `gate_up_proj`, `[embed, 2 mlp]`,
            each part with its gate before its up. None to leave them as they are.
    """
    found = dict(nnx.to_flat_state(state))
    changed = dict(found)
    for path, gate in found.items():
        up, name = (*path[:-2], "up_proj", "kernel"), ".".join(map(str, path))
        if up not in found:
            continue
        if name.endswith(_GATE):
            gate_and_up = jnp.stack([gate[...], found[up][...]], axis=-3)
            changed[(*path[:-2], "gating_einsum")] = nnx.Param(jnp.swapaxes(gate_and_up, -1, -2))
            del changed[path], changed[up]
        elif name.endswith(_DENSE_GATE) and parts is not None:
            *before, width = gate.shape
            pieces = [array[...].reshape(*before, parts, width // parts) for array in (gate, found[up])]
            both = jnp.concatenate(pieces, axis=-1).reshape(*before, 2 * width)
            changed[(*path[:-2], "gate_up_proj", "kernel")] = nnx.Param(both)
            del changed[path], changed[up]
    return nnx.from_flat_state(changed)


def _require_backend(backend: str) -> None:
    if backend not in get_args(Backend):
        raise InputError(f"backend {backend!r} is not known; there are {', '.join(get_args(Backend))}")


def _require_parts(
    model: Any, parameters: Mapping[str, _Parameter], family: str, backend: str, parts: int | None
) -> None:
    """Makes sure that it is known in which order the columns are of what is one array there."""
    if parts is not None and (type(parts) is not int or parts < 1):
        raise InputError(f"tensor_parallel_size={parts!r:.100}: give over how many devices {backend} splits a layer")
    merged = [path for path in parameters if _is_merged(path, family, backend)]
    if not merged:
        return
    if parts is None:
        raise InputError(
            f"{backend}: gates and ups of family {family!r} are one array there, mlp.gate_up_proj, whose columns "
            "tensor parallelism interleaves, so that their order depends on the number of devices: give it, by "
            f"RolloutConfig(rollout_mapping_config=model.mapping_config({backend!r}, tensor_parallel_size=...))"
        )
    widths = {node.shape[-1] for place, _, _, node in _nodes(model) if place in merged}
    if undivided := sorted(width for width in widths if width % parts):
        raise InputError(f"tensor_parallel_size={parts} does not divide the model's width of {undivided[0]}")


def _is_merged(path: str, family: str, backend: str) -> bool:
    """Whether a projection is one array with another one there."""
    return family in _MERGED[backend] and path.endswith((_DENSE_GATE, _DENSE_UP))


def _parameters(model: Any) -> dict[str, _Parameter]:
    """The parameters that are no adapters, by the paths that Tunix's tables have for them."""
    return {
        place: _Parameter(general, tuple(node.get_metadata().get("logical_axes", ())), layers)
        for place, general, layers, node in _nodes(model)
        if isinstance(node, nnx.Param) and not isinstance(node, nnx.LoRAParam)
    }


def _sent(parameters: Mapping[str, _Parameter], family: str, backend: str) -> dict[str, _Parameter]:
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
        elif _is_merged(path, family, backend):
            if path.endswith(_DENSE_GATE):
                general = parameter.general.removesuffix(_DENSE_GATE) + _DENSE_BOTH
                both = _Parameter(general, parameter.axes, parameter.layers)
                sent[path.removesuffix(_DENSE_GATE) + _DENSE_BOTH] = both
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


def _numbered(name: str, layers: tuple[int, ...] | None, family: str, backend: str) -> str:
    """A name for a stack's layers: a regular expression, which is what Tunix takes one with parentheses for."""
    before = _BEFORE.get(family) if backend == "vllm_jax" and name.startswith("model.") else None
    if layers is None and before is None:
        return name
    number = r"\d+" if layers is None else "|".join(map(str, layers))
    own = name if before is None else name.removeprefix("model.").removeprefix("language_model.")
    return (before or "") + own.replace(".", r"\.").replace("*", f"({number})")


def _name(path: str, names: Mapping[str, str], family: str, backend: str) -> str | None:
    """The name of a parameter in the other program; None for none."""
    known = _EXPERT_NAMES[backend]
    if path.endswith(_DENSE_BOTH):
        hub = _own_name(path.removesuffix(_DENSE_BOTH) + _DENSE_GATE, names)
        return None if hub is None else hub.replace("gate_proj", "gate_up_proj")
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
