"""Adapters in PEFT's format: `adapter_config.json`, and small tensors for the weights that are changed.

With plain LoRA a weight becomes `W + scaling * B A`, with DoRA `magnitude / |W + scaling * B A|` times that, row by row
(`peft/tuners/lora/dora.py`). Experts that transformers keeps in one parameter have the matrices of all in one pair, the
experts outermost in `A` and innermost in `B` (`ParamWrapper` of `peft/tuners/lora/layer.py`).
"""

import collections
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lazyload.errors import TensorMismatchError, UnsupportedFormatError
from lazyload.formats.peft_config import CONFIG, parameters_of, rank_of, require_read, scaling_of, tokens_of
from lazyload.layouts.axes import Axes
from lazyload.layouts.layout import Layout
from lazyload.layouts.source import TensorInfo

__all__ = ["CONFIG", "PREFIX", "WEIGHTS", "Adapter", "Bias", "LowRank", "Tokens", "experts", "read_adapter"]

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the model that it wraps."""

_OF_LORA = re.compile(
    r"(?P<module>.+?)(?P<nested>(?:\.base_layer)*)"
    r"\.(?P<part>lora_(?:embedding_)?[AB]|lora_B\.bias|lora_magnitude_vector)(?:\.weight)?"
)
_TOKENS = ".token_adapter.trainable_tokens_delta"
_EXPERTS = re.compile(
    r"(?:.+\.)?layers\.(?P<layer>\d+)\.(?:.+\.)?"
    r"(?:(?P<parameter>gate_up_proj|up_proj|down_proj)|block_sparse_moe\.(?P<granite>input|output)_linear\.weight)"
)
"""Parameters with the matrices of all experts of a layer; Granite's as transformers 4 calls them, too."""

_OF_GRANITE = {"input": "gate_up_proj", "output": "down_proj"}
_INTERLEAVED = ("gpt_oss",)
"""Families whose gates and up projections take turns."""


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight, or to those of all experts of a layer.

    Attributes:
        a: The tensor `A`, `[rank, in]`; for an embedding `[rank, vocab]`, for experts `[(expert rank), in]`.
        b: The tensor `B`, `[out, rank]`; for an embedding `[embed, rank]`, for experts `[out, (rank expert)]`.
        rank: The rank; of each expert's.
        scaling: What their product is multiplied by.
        is_transposed: Whether `(B A)` is added transposed, as to an embedding, `[vocab, embed]`.
        magnitude: DoRA's tensor, of the length that the sum has, `[out]`, or for an embedding `[embed]`; None for none.
    """

    a: str
    b: str
    rank: int
    scaling: float
    is_transposed: bool = False
    magnitude: str | None = None


@dataclass(frozen=True)
class Bias:
    """What is added to a bias: that of a layer's `lora_B`.

    Attributes:
        tensor: The tensor.
        scaling: What it is multiplied by.
    """

    tensor: str
    scaling: float


@dataclass(frozen=True)
class Tokens:
    """Rows of an embedding that take the place of the base model's.

    Attributes:
        tensor: The rows, `[token, embed]`.
        indices: Which tokens they are.
    """

    tensor: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Adapter:
    """An adapter, by the names that its base model has in transformers.

    Attributes:
        added: What is added to weights, by weight.
        replaced: Tensors that take the place of the base model's, by the name of that (`modules_to_save`, `bias`).
        experts: What is added to the weights of a layer's experts, by layer and parameter.
        biases: What is added to biases, by bias.
        tokens: Rows of embeddings, by weight.
    """

    added: Mapping[str, LowRank]
    replaced: Mapping[str, str]
    experts: Mapping[tuple[int, str], LowRank] = field(default_factory=dict)
    biases: Mapping[str, Bias] = field(default_factory=dict)
    tokens: Mapping[str, Tokens] = field(default_factory=dict)


def experts(family: str, model: Axes) -> Layout:
    """The weights of experts as PEFT's matrices have them, each multiplied out: outputs before inputs.

    Args:
        family: The family's name.
        model: The sizes of the axes.
    """
    ungated = model.groups("experts.up")
    # These may work on something narrower than the tokens.
    width = "expert_latent" if ungated and "expert_latent" in ungated[0].sizes else "embed"
    both = "(expert_mlp gate_up)" if family in _INTERLEAVED else "(gate_up expert_mlp)"
    rows = {
        "layers.{layer}.gate_up_proj": f"experts.in : expert {both} embed",
        "layers.{layer}.up_proj": f"experts.up : expert expert_mlp {width}",
        "layers.{layer}.down_proj": f"experts.out : expert {width} expert_mlp",
    }
    return Layout(rows, name="peft", general=True)


def read_adapter(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> Adapter:
    """Reads an adapter's config, and sorts its tensors.

    Args:
        config: The content of `adapter_config.json`.
        tensors: The tensors of the adapter's weights.
        where: What messages call it.

    Raises:
        UnsupportedFormatError: It is none of LoRA's, or has a feature that is not read.
        TensorMismatchError: A matrix is without its partner, there twice, or of another rank than the config says.
    """
    require_read(config, where)
    modules: dict[tuple[str, int], dict[str, str]] = {}
    replaced: dict[str, str] = {}
    rows: dict[str, str] = {}
    problems: list[str] = []
    for name in tensors:
        inner = name.removeprefix(PREFIX)
        if match := _OF_LORA.fullmatch(inner):
            depth = match["nested"].count(".base_layer")
            _put(modules.setdefault((match["module"], depth), {}), match["part"], name, problems)
        elif "lora_" in inner:
            raise UnsupportedFormatError(
                f"{where}: {name} is of a kind of adapter that is not read; there are LoRA and DoRA"
            )
        elif inner.endswith(_TOKENS):
            _put(rows, inner.removesuffix(_TOKENS), name, problems)
        else:
            _put(replaced, inner.replace(".modules_to_save.", ".").replace(".base_layer.", "."), name, problems)
    tokens = {f"{module}.weight": Tokens(name, tuple(tokens_of(config, module))) for module, name in rows.items()}
    counts = collections.Counter(module for module, _ in modules)
    pairs = [_read_pair(config, module, depth, counts[module], parts) for (module, depth), parts in modules.items()]
    problems += [problem for pair in pairs for problem in pair.problems(config, tensors, where)]
    problems += [
        f"{each.tensor}: has shape {list(tensors[each.tensor].shape)}, and trainable_token_indices {len(each.indices)}"
        for each in tokens.values()
        if tensors[each.tensor].shape[:1] != (len(each.indices),)
    ]
    if problems or not (pairs or replaced or tokens):
        raise TensorMismatchError(f"{where}: its weights are not those of {CONFIG}", problems or ["there are none"])
    added, of_experts, biases = {}, {}, {}
    for pair in pairs:
        low_rank = pair.low_rank(config)
        if match := _EXPERTS.fullmatch(pair.weight):
            of_experts[int(match["layer"]), match["parameter"] or _OF_GRANITE[match["granite"]]] = low_rank
        elif pair.weight.endswith(".weight"):
            added[pair.weight] = low_rank
        else:
            raise UnsupportedFormatError(
                f"{where}: {CONFIG} has target_parameters={config['target_parameters']!r:.100}, and adapters of "
                f"{pair.weight} are not read; those of linear maps, embeddings and experts are"
            )
        if "lora_B.bias" in pair.parts:
            biases[f"{pair.weight.removesuffix('weight')}bias"] = Bias(pair.parts["lora_B.bias"], low_rank.scaling)
    return Adapter(added, replaced, of_experts, biases, tokens)


def _put(tensors: dict[str, str], what: str, name: str, problems: list[str]) -> None:
    """A tensor by what it is, which no other one is."""
    if (first := tensors.setdefault(what, name)) != name:
        problems.append(f"{name}: is the same {what} as {first}")


@dataclass(frozen=True)
class _Pair:
    """The tensors of an adapter that belong to one weight.

    Attributes:
        weight: The weight.
        name: What patterns of ranks and alphas are compared with.
        parts: The tensors, by PEFT's names of them.
    """

    weight: str
    name: str
    parts: Mapping[str, str]

    @property
    def of_embedding(self) -> bool:
        return any(part.startswith("lora_embedding_") for part in self.parts)

    @property
    def halves(self) -> tuple[str, str]:
        return ("lora_embedding_A", "lora_embedding_B") if self.of_embedding else ("lora_A", "lora_B")

    def low_rank(self, config: Mapping[str, Any]) -> LowRank:
        a, b = (self.parts[half] for half in self.halves)
        magnitude = self.parts.get("lora_magnitude_vector")
        return LowRank(a, b, rank_of(config, self.name), scaling_of(config, self.name), self.of_embedding, magnitude)

    def problems(self, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> Iterable[str]:
        """What keeps them from being read."""
        some = next(iter(self.parts.values()))
        if not self.weight:
            yield f"{some}: no target_parameters of {where}'s {CONFIG} say which parameter it belongs to"
            return
        if not set(self.halves) <= self.parts.keys():
            yield f"{some}: its partner, lora_A or lora_B, is missing"
            return
        is_of_experts = _EXPERTS.fullmatch(self.weight) is not None
        rank = rank_of(config, self.name)
        for half, dimension in zip(self.halves, (0, 1), strict=True):
            tensor = self.parts[half]
            shape = tensors[tensor].shape
            # Those of all experts lie in one.
            if len(shape) != 2 or (shape[dimension] % rank if is_of_experts else shape[dimension] != rank):
                yield f"{tensor}: has shape {list(shape)}, but the rank of {self.name} is {rank} in {where}'s {CONFIG}"
        for part, switch in (("lora_magnitude_vector", "use_dora"), ("lora_B.bias", "lora_bias")):
            # PEFT has no bias for an embedding.
            expected = bool(config.get(switch)) and not (part == "lora_B.bias" and self.of_embedding)
            if expected != (part in self.parts):
                said = config.get(switch, False)
                yield f"{some}: {'has no' if expected else 'has a'} {part}, and {where}'s {CONFIG} has {switch}={said}"


def _read_pair(config: Mapping[str, Any], module: str, depth: int, count: int, parts: Mapping[str, str]) -> _Pair:
    """What the tensors of a module belong to; of several of its parameters, the first is wrapped innermost.

    Args:
        config: The content of `adapter_config.json`.
        module: The module.
        depth: How many others are wrapped around this one of its parameters.
        count: How many of them have tensors.
        parts: The tensors, by PEFT's names of them.
    """
    targeted = parameters_of(config, module)
    parameters = targeted or ["weight"]
    if len(parameters) != count or depth >= count:
        return _Pair("", module, parts)
    weight = f"{module}.{parameters[count - 1 - depth]}"
    return _Pair(weight, weight if targeted else module, parts)
