"""Tunix's own models as layouts: the paths below its classes, as its loaders of safetensors fill them.

Read from Tunix 0.1.7: `tunix/models/NAME/model.py`, and the `params.py` or `params_safetensors.py` beside it. Kernels
are stored inputs first; Gemma's attention puts heads first, and stacks keys and values, or queries with them where
there are as many heads of both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lazyload.architecture import MLP, Attention, DecoderConfig, Experts, Layer
from lazyload.display.values import named
from lazyload.errors import LayoutError
from lazyload.formats.nnx import layout as nnx_layout
from lazyload.layouts.layout import Layout, Table

Entries = Mapping[str, str]
"""Paths with their roles and axes."""

NAME = "tunix"
"""What messages and keys call the layout."""

CLASSES: Mapping[str, str] = {
    "gemma": "Gemma",
    "gemma3": "Gemma3",
    "gemma4": "Gemma4",
    "llama3": "Llama3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}
"""The class of each module `tunix.models.NAME.model`."""

_MODULES: Mapping[str, str] = {
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3": "gemma3",
    "gemma4": "gemma4",
    "llama": "llama3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3",
}
"""By the name of the family, which of Tunix's modules has its class."""

_LAYER = {
    "input_layernorm.w": "attn_norm : embed",
    "post_attention_layernorm.w": "mlp_norm : embed",
    "attn.q_proj.w": "attn.q : embed head head_dim",
    "attn.k_proj.w": "attn.k : embed kv_head head_dim",
    "attn.v_proj.w": "attn.v : embed kv_head head_dim",
    "attn.o_proj.w": "attn.o : head head_dim embed",
    "mlp.{gate_up:gate,up}_proj.kernel": "mlp.in : embed mlp",
    "mlp.down_proj.kernel": "mlp.out : mlp embed",
}
_QWEN2_LAYER = {
    **_LAYER,
    "attn.q_bias": "attn.q.bias : (head head_dim)",
    "attn.k_bias": "attn.k.bias : (kv_head head_dim)",
    "attn.v_bias": "attn.v.bias : (kv_head head_dim)",
}
_QWEN3_LAYER = {
    **_LAYER,
    "attn.q_norm.w": "attn.q_norm : head_dim",
    "attn.k_norm.w": "attn.k_norm : head_dim",
    "mlp.router.kernel": "router : embed expert",
    "mlp.{gate_up:gate,up}_proj": "experts.in : expert embed expert_mlp",
    "mlp.down_proj": "experts.out : expert expert_mlp embed",
}
_GEMMA_LAYER = {
    "pre_attention_norm.scale": "attn_norm : embed",
    "pre_ffw_norm.scale": "mlp_norm : embed",
    "post_ffw_norm.scale": "post_mlp_norm : embed",
    "attn.attn_vec_einsum.w": "attn.o : head head_dim embed",
    "mlp.{gate_up:gate,up}_proj.kernel": "mlp.in : embed mlp",
    "mlp.down_proj.kernel": "mlp.out : mlp embed",
}
_GEMMA_QK_NORMS = {
    "attn._query_norm.scale": "attn.q_norm : head_dim",
    "attn._key_norm.scale": "attn.k_norm : head_dim",
}
_GEMMA4_LAYER = {
    **_GEMMA_LAYER,
    **_GEMMA_QK_NORMS,
    "post_attention_norm.scale": "post_attn_norm : embed",
    "moe_pre_ffw_norm.scale": "moe_norm : embed",
    "moe_post_ffw_norm.scale": "post_moe_norm : embed",
    "dense_post_ffw_norm.scale": "post_dense_norm : embed",
    "moe.router_logits": "router : embed expert",
    "moe.router_scale": "router.norm : embed",
    "moe.per_expert_scale": "router.expert_scale : expert",
    "moe.gating_einsum": "experts.in : expert gate_up expert_mlp embed",
    "moe.linear": "experts.out : expert expert_mlp embed",
    "per_layer_input_gate.w": "ple.gate : embed ple_dim",
    "per_layer_projection.w": "ple.out : ple_dim embed",
    "post_per_layer_input_norm.scale": "ple.norm : embed",
    "skip_scale": "layer_scalar : 1",
}
_SEPARATE = {"attn.q_einsum.w": "attn.q : head embed head_dim"}
_KEYS = {"attn.k_einsum.w": "attn.k : kv_head embed head_dim"}
_KEYS_AND_VALUES = {"attn.kv_einsum.w": "attn.k | attn.v : (1 | 1) kv_head embed head_dim"}
_FUSED = {"attn.qkv_einsum.w": "attn.q | attn.k | attn.v : (1 | 1 | 1) (head | kv_head | kv_head) embed head_dim"}


@dataclass(frozen=True)
class Tunix:
    """Tunix's own class for the model, such as `tunix.models.qwen3.model.Qwen3`.

    `from_pretrained` returns that module, with its parameters where the class puts them (its `shd_config`) unless
    `rules=` say otherwise; explicit axes of the mesh become automatic ones. The module's config is what `config.json`
    means. What the class computes otherwise all the same is logged as a warning: Tunix 0.1.7 gives Llama 3 and Qwen 3
    the RoPE base 1e6 whatever the config says, and knows no scaling of it in Llama 3. A plan for a mesh follows the
    default rules instead, for which Tunix need not be installed.

    Attributes:
        config: Fields of Tunix's `ModelConfig` that are not `config.json`'s to say, by name (`remat_config`, `dtype`,
            `shd_config`, `use_flash_attention`, ...); or a whole `ModelConfig`, whose sizes must be those of
            `config.json`. None for Tunix's defaults.
    """

    config: Any = field(default=None, hash=False)

    def __repr__(self) -> str:
        if isinstance(self.config, Mapping):
            return named(self, **{name: repr(value) for name, value in self.config.items()})
        return named(self, *([] if self.config is None else [f"{type(self.config).__name__}(...)"]))

    def with_all_parameters(self, config: Any) -> Any:
        """The same model with every parameter of Tunix's class: Gemma 4 keeps projections that nobody reads.

        Args:
            config: What a model's `config.json` means; one that is none of this library's comes back as it is.
        """
        if not isinstance(config, DecoderConfig):
            return config
        return replace(config, layers=tuple(_keeping_kv(layer) for layer in config.layers))

    def layout(self, family: str, config: DecoderConfig) -> Layout:
        """The layout of one model.

        Args:
            family: The name of the model's family.
            config: What its `config.json` means.

        Raises:
            LayoutError: Tunix has no class for the family, or none with all parameters of the model.
        """
        name = module_of(family)
        layout = Layout(_TABLES[name](config), name=NAME, general=True)
        # A head of its own may yet be found beside a model that config.json ties.
        if homeless := nnx_layout(config).roles - layout.roles - {"lm_head"}:
            raise LayoutError(f"Tunix's {CLASSES[name]} has no place for {', '.join(sorted(homeless))} of this model")
        return layout


def module_of(family: str) -> str:
    """The name of Tunix's module with the class of a family.

    Raises:
        LayoutError: Tunix has no class for the family.
    """
    if family not in _MODULES:
        names = ", ".join(sorted(_MODULES))
        raise LayoutError(f"family {family!r} has no class in Tunix; these have one: {names}")
    return _MODULES[family]


def _llama3(config: DecoderConfig) -> list[Table]:
    return [_around(), *_layers(_LAYER)]


def _qwen2(config: DecoderConfig) -> list[Table]:
    return [_around(), *_layers(_QWEN2_LAYER)]


def _qwen3(config: DecoderConfig) -> list[Table]:
    """Qwen 3: a layer has an MLP, or experts in its place."""
    if config.layers_with(Experts) and config.layers_with(MLP):
        raise LayoutError("Tunix's Qwen3 has experts in every layer, or in none; this model has some dense layers")
    return [_around(), *_layers(_QWEN3_LAYER)]


def _gemma(config: DecoderConfig) -> list[Table]:
    """Gemma and Gemma 2."""
    layer = _GEMMA_LAYER | {"post_attn_norm.scale": "post_attn_norm : embed"} | _projections(config)
    return [_gemma_around(), *_layers(layer)]


def _gemma3(config: DecoderConfig) -> list[Table]:
    post_norm = {"post_attention_norm.scale": "post_attn_norm : embed"}
    return [_gemma_around(), *_layers(_GEMMA_LAYER | post_norm | _GEMMA_QK_NORMS | _projections(config))]


def _gemma4(config: DecoderConfig) -> list[Table]:
    """Gemma 4: values are keys in some layers; the inputs of all layers are stacked."""
    mixers = [layer.mixer for layer in config.layers]
    keys_alone = [n for n, mixer in enumerate(mixers) if isinstance(mixer, Attention) and mixer.v_from_k]
    others = [number for number in range(config.num_layers) if number not in keys_alone]
    inputs = Table(
        {
            "embedder.per_layer_input_embedding": "ple.embed : ple_vocab ple_layer ple_width",
            "embedder.per_layer_model_projection.w": "ple.proj : embed ple_layer ple_width",
            "embedder.per_layer_projection_norm.scale": "ple.proj_norm : ple_dim",
        },
        split={"ple_embed": ("ple_layer", "ple_width")},
        sizes={} if config.per_layer_embedding is None else {"ple_width": config.per_layer_embedding.dim},
    )
    return [
        _gemma_around(),
        inputs,
        *_layers(_GEMMA4_LAYER | _SEPARATE),
        *_layers(_KEYS, keys_alone),
        *_layers(_KEYS_AND_VALUES, others),
    ]


_TABLES: Mapping[str, Callable[[DecoderConfig], list[Table]]] = {
    "gemma": _gemma,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "llama3": _llama3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}
"""By the name of Tunix's module."""


def _keeping_kv(layer: Layer) -> Layer:
    mixer = layer.mixer
    if not isinstance(mixer, Attention) or mixer.kv_layer is None:
        return layer
    return replace(layer, mixer=replace(mixer, keeps_kv=True))


def _around() -> Table:
    entries = {
        "embedder.input_embedding": "embed : vocab embed",
        "final_norm.w": "final_norm : embed",
        "lm_head.w": "lm_head : embed vocab",
    }
    return Table(entries)


def _gemma_around() -> Table:
    return Table({"embedder.input_embedding": "embed : vocab embed", "final_norm.scale": "final_norm : embed"})


def _projections(config: DecoderConfig) -> dict[str, str]:
    """Queries, keys and values: one array where there are as many heads of each."""
    return _FUSED if config.num_heads == config.num_kv_heads else _SEPARATE | _KEYS_AND_VALUES


def _layers(entries: Entries, only: Sequence[int] | None = None) -> list[Table]:
    """The table of layers, all or some of them; none where there are none."""
    lines = {f"layers.{{layer}}.{path}": entry for path, entry in entries.items()}
    if only is None:
        return [Table(lines)]
    return [Table(lines, only={"layer": only})] if only else []
