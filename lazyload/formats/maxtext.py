"""MaxText's checkpoints as layouts: the tables of the families that MaxText has a converter for.

Where roles lie is what MaxText's own `checkpoint_conversion/utils/param_mapping.py` says, and its `to_maxtext` saves.
Kernels are stored inputs first. Scanned layers are one array whose second dimension is the layer; a model whose layers
follow each other in cycles of different ones is scanned cycle by cycle, a stack for each place in the cycle.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes

from lazyload.architecture import MLP, DecoderConfig, Experts
from lazyload.errors import LayoutError
from lazyload.formats.target import Target, nested
from lazyload.layouts.layout import Layout, Table

Entries = Mapping[str, str]

_HEAD = "decoder.logits_dense.kernel"
HEAD = f"params.params.{_HEAD}"
"""The output projection, where it is not the embedding."""

_MLP = {
    "wi_{gate_up:0,1}.kernel": "mlp.in : embed mlp",
    "wo.kernel": "mlp.out : mlp embed",
}
_EXPERTS = {
    "gate.kernel": "router : embed expert",
    "gate.bias": "router.selection_bias : expert",
    "wi_{gate_up:0,1}": "experts.in : expert embed expert_mlp",
    "wo": "experts.out : expert expert_mlp embed",
}
_SHARED_EXPERTS = {
    "wi_{gate_up:0,1}.kernel": "shared.in : embed shared_mlp",
    "wo.kernel": "shared.out : shared_mlp embed",
}
_LATENT_ATTENTION = {
    "query.kernel": "attn.q : embed head qk_dim",
    "wq_a.kernel": "attn.q_a : embed q_rank",
    "q_norm.scale": "attn.q_a_norm : q_rank",
    "wq_b.kernel": "attn.q_b : q_rank head qk_dim",
    "wkv_a.kernel": "attn.kv_a : embed kv_rank_rope",
    "kv_norm.scale": "attn.kv_a_norm : kv_rank",
    "wkv_b.kernel": "attn.kv_b : kv_rank head nope_v_dim",
    "out.kernel": "attn.o : head v_dim embed",
}
_NORMS = {
    "pre_self_attention_layer_norm.scale": "attn_norm : embed",
    "post_self_attention_layer_norm.scale": "mlp_norm : embed",
}


@dataclass(frozen=True)
class MaxText:
    """The parameter tree of a MaxText model, as its own converter saves it.

    Attributes:
        scan_layers: Whether layers are stacked, as MaxText's setting of that name says.
        vocab_size: MaxText's `vocab_size` where it is larger than the model's: rows of zeros fill the embedding, and
            columns of zeros the output projection. None for the model's own.
    """

    scan_layers: bool = True
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        size = self.vocab_size
        if not isinstance(self.scan_layers, bool) or isinstance(size, bool) or not isinstance(size, int | None):
            raise LayoutError(f"{self!r}: give scan_layers=True or False, and a number or None as vocab_size")

    @property
    def name(self) -> str:
        """What messages and keys call the layout."""
        return "maxtext" if self.scan_layers else "maxtext-unscanned"

    def target(self, family: str, config: DecoderConfig) -> Target[dict[str, Any]]:
        """The checkpoint of one model: the tree as MaxText's loaders look for it.

        The tree is the item `items` of a composite checkpoint, whose metadata is the only one in which MaxText looks
        `scan_layers` up; `step` is what it restores training from. For arguments and errors see `layout`.
        """
        return Target(
            self.layout(family, config),
            nested,
            metadata={"scan_layers": self.scan_layers},
            scalars={"step": 0},
            item="items",
        )

    def layout(self, family: str, config: DecoderConfig) -> Layout:
        """The layout of one model.

        Args:
            family: The name of the model's family.
            config: What its `config.json` means.

        Raises:
            LayoutError: MaxText has no converter for the family, cannot scan its layers as they are, or is to have a
                smaller vocabulary than the model has.
        """
        if family not in _TABLES:
            names = ", ".join(sorted(_TABLES))
            raise LayoutError(f"family {family!r} has no MaxText layout; these have one: {names}")
        if self.vocab_size is not None and self.vocab_size < config.vocab_size:
            raise LayoutError(
                f"MaxText(vocab_size={self.vocab_size}): the model has {config.vocab_size} rows of embeddings, none of "
                f"which can be left out; give at least {config.vocab_size}, or None for just these"
            )
        return _TABLES[family](config, self.scan_layers, self.vocab_size)


def families() -> tuple[str, ...]:
    """The names of the families that have a MaxText layout."""
    return tuple(sorted(_TABLES))


def layers_in_one(family: str) -> int:
    """How many of a model's layers one of MaxText's layers is."""
    return 2 if family == "gemma2" else 1


def llama(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Llama 3: rotated pairs are neighbours, and the scale of the attention logits is in the query kernel."""
    _refuse("Llama has no biases", config, "attn.q.bias", "attn.o.bias", "mlp.in.bias")
    rotated = {
        "query.kernel": f"attn.q : embed head (pair half) ; scale {_query_scale(config)}",
        "key.kernel": "attn.k : embed kv_head (pair half)",
    }
    layer = _NORMS | _under("self_attention", _attention() | rotated) | _under("mlp", _MLP)
    return _layout(config, _stack(config, scan_layers, layer), scan_layers, vocab_size)


def qwen(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Qwen 2, 2.5 and 3, dense or with experts in every layer."""
    _refuse("Qwen has no bias on what attention puts out", config, "attn.o.bias")
    if config.layers_with(MLP) and config.layers_with(Experts):
        raise LayoutError("MaxText's Qwen has an MLP or experts in all layers alike; this model has both")
    layer = _NORMS | _under("self_attention", _attention()) | _under("mlp", _MLP) | _under("moe_block", _EXPERTS)
    return _layout(config, _stack(config, scan_layers, layer), scan_layers, vocab_size)


def mixtral(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Mixtral: the scale of the attention logits is in the query kernel."""
    query = {"query.kernel": f"attn.q : embed head head_dim ; scale {_query_scale(config)}"}
    layer = _NORMS | _under("self_attention", _attention() | query) | _under("MoeBlock_0", _EXPERTS)
    return _layout(config, _stack(config, scan_layers, layer), scan_layers, vocab_size)


def gemma2(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Gemma 2: a MaxText layer is a pair of layers, a local and a global one."""
    query = {"query.kernel": f"attn.q : embed head head_dim ; scale {_query_scale(config)}"}
    kind = "_{kind:local,global}"
    layer = {
        **_gemma_norms(kind),
        **_under(f"self_attention{kind}", _attention() | query),
        **_under(f"mlp{kind}", _MLP),
    }
    _require_cycles(config, 2, "a MaxText layer is a pair of layers")
    entries = _under("layers", _scanned(layer, "block")) if scan_layers else _under("layers_{block}", layer)
    pairs = Table(_under("decoder", entries), split={"layer": ("block", "kind")}, sizes={"kind": 2})
    return _layout(config, [pairs], scan_layers, vocab_size, embed_scale=math.sqrt(config.embed_dim), norm=_GEMMA_NORM)


def gemma3(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Gemma 3: scanned in cycles of six layers; the layers that are left over stay apart."""
    layer = {
        **_gemma_norms(),
        **_under("self_attention", _attention(norm=_GEMMA_NORM)),
        **_under("mlp", _MLP),
    }
    rest = config.num_layers % 6
    cycles = range(config.num_layers - rest)
    tables = _stack(config, scan_layers, layer)
    if scan_layers:
        left = _under("layers_remainder.layers_{layer:0..}", layer)
        tables = [
            *_stack(config, scan_layers, layer, cycle=6, layers=cycles),
            Table(_under("decoder", left), only={"layer": range(cycles.stop, config.num_layers)}),
        ]
    # MaxText rounds the factor to bfloat16 first, as the model itself does.
    scale = float(ml_dtypes.bfloat16(math.sqrt(config.embed_dim)))
    return _layout(config, tables, scan_layers, vocab_size, embed_scale=scale, norm=_GEMMA_NORM)


def gpt_oss(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """gpt-oss: scanned in cycles of two layers, a local and a global one."""
    biases = {
        "gate.bias": "router.bias : expert",
        "wi_{gate_up:0,1}_bias": "experts.in.bias : expert expert_mlp",
        "wo_bias": "experts.out.bias : expert embed",
    }
    attention = {**_attention(), "out.bias": "attn.o.bias : embed", "sinks": "attn.sinks : head"}
    layer = _NORMS | _under("GptOssAttention", attention) | _under("GptOssMlp", _EXPERTS | biases)
    return _layout(config, _stack(config, scan_layers, layer, cycle=2), scan_layers, vocab_size)


def olmo3(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """OLMo 3: scanned in cycles of four layers, three local ones and a global one; norms come after the blocks."""
    norms = {
        "post_self_attention_layer_norm.scale": "post_attn_norm : embed",
        "post_mlp_layer_norm.scale": "post_mlp_norm : embed",
    }
    attention = _attention() | {
        "query_norm.scale": "attn.q_norm : (head head_dim)",
        "key_norm.scale": "attn.k_norm : (kv_head head_dim)",
    }
    layer = norms | _under("attention", attention) | _under("mlp", _MLP)
    return _layout(config, _stack(config, scan_layers, layer, cycle=4), scan_layers, vocab_size)


def deepseek(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """DeepSeek V2 and V3: the dense layers before, the ones with experts after them, each stacked on their own."""
    dense_layers, sparse_layers = config.layers_with(MLP), config.layers_with(Experts)
    if dense_layers != tuple(range(len(dense_layers))):
        raise LayoutError("MaxText's DeepSeek has its dense layers before those with experts; this model has not")
    _refuse("DeepSeek has no biases", config, "attn.kv_a.bias", "attn.o.bias", "mlp.in.bias", "shared.in.bias")
    common = _NORMS | _under("self_attention", _LATENT_ATTENTION)
    moe = _under("MoeBlock_0", _EXPERTS) | _under("shared_experts", _SHARED_EXPERTS)
    dense, sparse = common | _under("mlp", _MLP), common | _under("DeepSeekMoeBlock_0", moe)
    tables = [
        *_stack(config, scan_layers, dense, "dense_layers", layers=dense_layers),
        *_stack(config, scan_layers, sparse, "moe_layers", layers=sparse_layers),
    ]
    return _layout(config, tables, scan_layers, vocab_size)


def _layout(
    config: DecoderConfig,
    tables: Sequence[Table],
    scan_layers: bool,
    vocab_size: int | None,
    *,
    embed_scale: float = 1.0,
    norm: str = "",
) -> Layout:
    """The whole tree: the layers' tables and what is around them."""
    pad = f" ; pad vocab {vocab_size}" if vocab_size and vocab_size > config.vocab_size else ""
    scale = f" ; scale {embed_scale!r}" if embed_scale != 1 else ""
    entries = {
        "token_embedder.embedding": f"embed : vocab embed{scale}{pad}",
        "decoder.decoder_norm.scale": f"final_norm : embed{norm}",
        _HEAD: f"lm_head : embed vocab{pad}",
    }
    placed = [
        Table(_under("params.params", table.lines), table.only, table.split, table.sizes)
        for table in (Table(entries), *tables)
    ]
    return Layout(placed, name=MaxText(scan_layers).name, general=True)


def _stack(
    config: DecoderConfig,
    scan_layers: bool,
    layer: Entries,
    name: str = "layers",
    *,
    cycle: int = 1,
    layers: Sequence[int] | None = None,
) -> list[Table]:
    """The tables of layers that are alike: numbered, or stacked, or stacked for each place in their cycle.

    Args:
        config: The model.
        scan_layers: Whether to stack.
        layer: The entries of one layer.
        name: What the layers are called.
        cycle: How many layers are scanned at once.
        layers: Which layers they are; None for all.

    Raises:
        LayoutError: The layers are no whole number of cycles.
    """
    only = {} if layers is None else {"layer": layers}
    if not scan_layers:
        return [Table(_under(f"decoder.{name}_{{layer:0..}}", layer), only)]
    if cycle == 1:
        return [Table(_under(f"decoder.{name}", _scanned(layer, "layer")), only)]
    if layers is None:
        _require_cycles(config, cycle, "MaxText scans its layers in cycles; use scan_layers=False")
    entries = _under(f"decoder.{name}.layers_{{place}}", _scanned(layer, "cycle"))
    return [Table(entries, only, split={"layer": ("cycle", "place")}, sizes={"place": cycle})]


def _refuse(rule: str, config: DecoderConfig, *roles: str) -> None:
    """Refuses a model that has one of the roles."""
    if any(config.groups(role) for role in roles):
        raise LayoutError(f"MaxText's {rule}; this model's config.json says otherwise")


def _require_cycles(config: DecoderConfig, cycle: int, why: str) -> None:
    if config.num_layers % cycle:
        raise LayoutError(f"the model's {config.num_layers} layers are not a multiple of {cycle}: {why}")


def _under(prefix: str, entries: Entries) -> dict[str, str]:
    return {f"{prefix}.{path}": entry for path, entry in entries.items()}


def _scanned(entries: Entries, axis: str) -> dict[str, str]:
    """Entries with one more axis, as the second dimension."""
    return {path: re.sub(r" : (\([^)]*\)|\w+)", rf"\g<0> {axis}", entry) for path, entry in entries.items()}


def _attention(norm: str = "") -> dict[str, str]:
    """Attention; `norm` is how the norms of queries and keys are stored."""
    return {
        "query.kernel": "attn.q : embed head head_dim",
        "key.kernel": "attn.k : embed kv_head head_dim",
        "value.kernel": "attn.v : embed kv_head head_dim",
        "out.kernel": "attn.o : head head_dim embed",
        "query.bias": "attn.q.bias : head head_dim",
        "key.bias": "attn.k.bias : kv_head head_dim",
        "value.bias": "attn.v.bias : kv_head head_dim",
        "query_norm.scale": f"attn.q_norm : head_dim{norm}",
        "key_norm.scale": f"attn.k_norm : head_dim{norm}",
    }


_GEMMA_NORM = " ; offset 1 ; as float32"
"""MaxText adds the one of Gemma's norms while converting, in float32, and saves the sum as it is."""


def _gemma_norms(kind: str = "") -> dict[str, str]:
    names = {
        "pre_self_attention_norm": "attn_norm",
        "post_self_attention_norm": "post_attn_norm",
        "pre_ffw_norm": "mlp_norm",
        "post_ffw_norm": "post_mlp_norm",
    }
    return {f"{name}{kind}.scale": f"{role} : embed{_GEMMA_NORM}" for name, role in names.items()}


def _query_scale(config: DecoderConfig) -> str:
    """What MaxText multiplies the query kernel with: always by the head's width, whatever the model scales with."""
    return repr(1 / math.sqrt(config.head_dim))


_TABLES: Mapping[str, Callable[[DecoderConfig, bool, int | None], Layout]] = {
    "deepseek_v2": deepseek,
    "deepseek_v3": deepseek,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gpt_oss": gpt_oss,
    "llama": llama,
    "mixtral": mixtral,
    "olmo3": olmo3,
    "qwen2": qwen,
    "qwen3": qwen,
    "qwen3_moe": qwen,
}
"""By the name of the family."""
