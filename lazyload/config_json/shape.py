"""The fields that mean the same in every family's `config.json`."""

from collections.abc import Sequence
from typing import Any, Literal

from lazyload.architecture.decoder import Layer, Rope
from lazyload.config_json.fields import Fields
from lazyload.errors import ConfigError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


def shape(fields: Fields) -> dict[str, Any]:
    """The arguments of `DecoderConfig` that give the sizes of plain attention and of the MLP.

    Without `num_key_value_heads` there are as many as query heads; without `head_dim`, a head's width is the model's
    by the number of heads.

    Raises:
        ConfigError: A field is missing, or the numbers do not fit each other.
    """
    embed_dim, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_kv_heads = fields.size("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ConfigError(
            f"{fields.where}: num_attention_heads = {num_heads} is no multiple of num_key_value_heads = {num_kv_heads}"
        )
    if "head_dim" not in fields and embed_dim % num_heads:
        raise ConfigError(
            f"{fields.where}: lacks head_dim, and hidden_size = {embed_dim} is no multiple of "
            f"num_attention_heads = {num_heads}"
        )
    head_dim = fields.size("head_dim", embed_dim // num_heads)
    return {
        "vocab_size": fields.size("vocab_size"),
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "mlp_dim": fields.size("intermediate_size"),
        "norm_eps": fields.get("rms_norm_eps", 1e-6),
        "query_scale": head_dim**-0.5,
    }


def num_experts(fields: Fields, name: str, *aliases: str) -> int:
    """The number of experts; which of its names transformers writes depends on the release, and it reads them all.

    Raises:
        ConfigError: It is missing, or not positive.
    """
    fields.ignore(name, *aliases)
    return fields.size(next((given for given in (name, *aliases) if given in fields), name))


def activation(fields: Fields, name: str = "hidden_act", default: str = "silu") -> Activation:
    """The activation of the MLP's gate.

    Raises:
        ConfigError: It is not implemented.
    """
    value = fields.get(name, default)
    if value not in _ACTIVATIONS:
        raise ConfigError(f"{fields.where}: {name} = {value!r} is not implemented; there are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def layer_types(fields: Fields, default: Sequence[bool]) -> list[bool]:
    """For each layer, whether its attention is a sliding window.

    Args:
        fields: The model's `config.json`.
        default: The same where the file has no `layer_types`.

    Raises:
        ConfigError: `layer_types` has another length or holds another type.
    """
    types = fields.optional("layer_types", list)
    if types is None:
        return list(default)
    if len(types) != len(default):
        raise ConfigError(f"{fields.where}: layer_types has {len(types)} values for {len(default)} layers")
    unknown = sorted({str(kind) for kind in types if kind not in ("full_attention", "sliding_attention")})
    if unknown:
        raise ConfigError(f"{fields.where}: layer_types holds {', '.join(unknown)}, which is not implemented")
    return [kind == "sliding_attention" for kind in types]


def window(fields: Fields, *, default: int | None = None) -> int | None:
    """The width of the sliding window.

    Raises:
        ConfigError: It is not positive.
    """
    value = fields.optional("sliding_window", int, default)
    if value is not None and value <= 0:
        raise ConfigError(f"{fields.where}: sliding_window = {value} must be positive, or null for none")
    return value


def windowed(fields: Fields, rope: Rope, count: int) -> tuple[Layer, ...]:
    """The layers of a model that has a sliding window from some layer on (Qwen).

    Raises:
        ConfigError: The fields contradict each other.
    """
    width = window(fields, default=4096)
    if not fields.get("use_sliding_window", False):
        width = None
    first = fields.get("max_window_layers", 28)
    sliding = layer_types(fields, [width is not None and number >= first for number in range(count)])
    return tuple(Layer(rope=rope, window=width if slides else None) for slides in sliding)
