"""The fields that mean the same in every family's `config.json`, as the blocks that they describe."""

from collections.abc import Sequence
from typing import Any

from lazyload.architecture import MLP, Activation, Attention, DecoderConfig, Layer, LayerNorm, Norm, ScoreHead
from lazyload.config_json.fields import Fields
from lazyload.errors import ConfigError

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
_MOST_EXPERTS = 1 << 17
"""Of all layers; DeepSeek V3 has 14,848."""


def attention(fields: Fields, **options: Any) -> Attention:
    """Plain attention, without a rotary embedding and a window.

    Without `num_key_value_heads` there are as many as query heads; without `head_dim`, a head's width is the model's
    by the number of heads.

    Args:
        fields: The model's `config.json`.
        options: Further arguments of `Attention`.

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
    return Attention(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, **options)


def mlp(
    fields: Fields, name: str = "hidden_act", default: str = "silu", *, gated: bool = True, bias: bool = False
) -> MLP:
    """The MLP.

    Args:
        fields: The model's `config.json`.
        name: The field that names the activation.
        default: The activation where the file does not say.
        gated: Whether it has a gate.
        bias: Whether its projections have biases.

    Raises:
        ConfigError: A field is missing, or the activation is not implemented.
    """
    return MLP(
        mlp_dim=fields.size("intermediate_size"),
        activation=activation(fields, name, default),
        gated=gated,
        bias=bias,
    )


def norm(fields: Fields, *, offset: float = 0.0) -> Norm:
    """The RMS norm that all layers share.

    Raises:
        ConfigError: `rms_norm_eps` is no number above zero.
    """
    return Norm(eps=fields.positive("rms_norm_eps", 1e-6), offset=offset)


def layer_norm(fields: Fields, name: str = "layer_norm_eps", *, bias: bool = False) -> LayerNorm:
    """The layer norm that all layers share.

    Args:
        fields: The model's `config.json`.
        name: The field that holds what is added to the variance.
        bias: Whether it has a bias.

    Raises:
        ConfigError: The field is no number above zero.
    """
    return LayerNorm(eps=fields.positive(name, 1e-5), bias=bias)


def decoder(fields: Fields, layers: Sequence[Layer], *, tied: bool = False, **options: Any) -> DecoderConfig:
    """The whole model, the last thing that is read: what nobody has asked for is refused.

    Args:
        fields: The model's `config.json`.
        layers: One value a layer; their norm is the last one's, too.
        tied: What `tie_word_embeddings` is where the file does not say.
        options: Further arguments of `DecoderConfig`.

    Raises:
        ConfigError: A field is missing, or there are fields that are not known.
    """
    experts = sum(getattr(block, "num_experts", 0) for layer in layers for block in layer.blocks)
    if experts > _MOST_EXPERTS:
        raise ConfigError(f"{fields.where}: {experts} experts in all layers are more than {_MOST_EXPERTS}")
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size"),
        embed_dim=fields.size("hidden_size"),
        layers=tuple(layers),
        norm=layers[0].norm,
        tied=fields.get("tie_word_embeddings", tied),
        head=_head(fields),
        **options,
    )
    fields.finish()
    return config


def _head(fields: Fields) -> ScoreHead | None:
    """What scores tokens, as the class says that the model was saved with.

    Raises:
        ConfigError: `num_labels` is no positive whole number.
    """
    classes = [str(name) for name in fields.optional("architectures", list) or ()]
    if any(name.endswith("ForSequenceClassification") for name in classes):
        labels: dict[str, Any] = fields.optional("id2label", dict) or {}
        return ScoreHead(name="score", size=len(labels) or fields.size("num_labels", 2))
    # TRL saves the class of the model that the head was added to: whoever wants the head names this one.
    if "AutoModelForCausalLMWithValueHead" in classes:
        return ScoreHead(name="v_head", bias=True)
    return None


def num_experts(fields: Fields, name: str, *aliases: str, selected: str = "num_experts_per_tok") -> int:
    """The number of experts; which of its names transformers writes depends on the release, and it reads them all.

    Args:
        fields: The model's `config.json`.
        name: The field's own name.
        aliases: Its other names.
        selected: The field that says how many experts a token is sent to.

    Raises:
        ConfigError: It is missing, not positive, or less than a token is sent to, or its names have several values.
    """
    fields.ignore(name, *aliases)
    given = {used: fields.size(used) for used in (name, *aliases) if used in fields}
    if len({*given.values()}) > 1:
        said = ", ".join(f"{used} = {count}" for used, count in given.items())
        raise ConfigError(f"{fields.where}: {said} are names of one number, the experts of a layer; one is wrong")
    used = next(iter(given), name)
    count, chosen = fields.size(used), fields.size(selected)
    if chosen > count:
        raise ConfigError(f"{fields.where}: {selected} = {chosen}, but {used} = {count}")
    return count


def activation(fields: Fields, name: str = "hidden_act", default: str = "silu") -> Activation:
    """The activation of a gate.

    Raises:
        ConfigError: It is not implemented.
    """
    value = fields.get(name, default)
    if value not in _ACTIVATIONS:
        raise ConfigError(f"{fields.where}: {name} = {value!r} is not implemented; there are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def layer_types(fields: Fields, default: Sequence[str], *known: str, name: str = "layer_types") -> list[str]:
    """The kind of each layer.

    Args:
        fields: The model's `config.json`.
        default: The same where the file does not say.
        known: The kinds that the family has; none for `full_attention` and `sliding_attention`.
        name: The field that says it.

    Raises:
        ConfigError: The field has another length or holds another kind.
    """
    known = known or ("full_attention", "sliding_attention")
    types = fields.optional(name, list)
    if types is None:
        return list(default)
    if len(types) != len(default):
        raise ConfigError(f"{fields.where}: {name} has {len(types)} values for {len(default)} layers")
    unknown = sorted({str(kind) for kind in types if kind not in known})
    if unknown:
        raise ConfigError(f"{fields.where}: {name} holds {', '.join(unknown)}, which is not implemented")
    return [str(kind) for kind in types]


def sliding(fields: Fields, default: Sequence[bool]) -> list[bool]:
    """For each layer, whether its attention is a sliding window.

    Args:
        fields: The model's `config.json`.
        default: The same where the file has no `layer_types`.

    Raises:
        ConfigError: `layer_types` has another length or holds another kind.
    """
    kinds = ["sliding_attention" if slides else "full_attention" for slides in default]
    return [kind == "sliding_attention" for kind in layer_types(fields, kinds)]


def window(fields: Fields, *, default: int | None = None, used: bool = True) -> int | None:
    """The width of the sliding window.

    Args:
        fields: The model's `config.json`.
        default: The same where the file does not say.
        used: Whether it is switched on; where it is not, 0 stands for none, too.

    Raises:
        ConfigError: It is not positive.
    """
    value = fields.optional("sliding_window", int, default)
    if value == 0 and not used:
        return None
    if value is not None and value <= 0:
        raise ConfigError(f"{fields.where}: sliding_window = {value} must be positive, or null for none")
    return value


def windows(fields: Fields) -> list[int | None]:
    """For each layer of a model that has a sliding window from some layer on (Qwen), its width; None for none.

    Raises:
        ConfigError: The fields contradict each other.
    """
    used = fields.get("use_sliding_window", False)
    width = window(fields, default=4096, used=used)
    if not used:
        width = None
    first = fields.get("max_window_layers", 28)
    slides = sliding(fields, [width is not None and n >= first for n in range(fields.size("num_hidden_layers"))])
    return [width if slid else None for slid in slides]
