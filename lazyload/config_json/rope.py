"""The rotary embeddings that `config.json` describes, in both of its forms.

The older form has `rope_theta` beside `rope_scaling`, whose kind is called `rope_type` or `type`; the newer one has
`rope_parameters` with everything, sometimes once for each type of layer. What is missing follows from other fields as
in `transformers.modeling_rope_utils` (version 5).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lazyload.architecture import Rope
from lazyload.config_json.fields import Fields, is_number
from lazyload.errors import ConfigError

_LAYER_TYPES = ("full_attention", "sliding_attention")


def read(
    fields: Fields,
    dim: int,
    *,
    theta: float = 10_000.0,
    partial: bool = False,
    rotated: str = "",
    interleaved: bool = False,
    names: Mapping[str, str] | None = None,
    ignored: Sequence[str] = (),
) -> Rope:
    """The rotary embedding that all layers share.

    Args:
        fields: The model's `config.json`.
        dim: How many dimensions of a head it rotates, before `partial_rotary_factor`.
        theta: The base where the file does not say.
        partial: Whether `partial_rotary_factor` may reduce `dim`.
        rotated: The field that says how many dimensions rotate where there is no `partial_rotary_factor`, if any.
        interleaved: Whether a rotated pair is two neighbours.
        names: What this kind of model means by some kinds of scaling; "ntk_alpha" is one that no file calls so.
        ignored: What stands beside the embedding's parameters and is no matter of it.

    Raises:
        ConfigError: The scaling is unknown, or lacks or has fields that it must or cannot have.
    """
    parameters = parameters_of(fields)
    if any(name in parameters for name in _LAYER_TYPES):
        raise ConfigError(f"{fields.where}: this kind of model cannot have rope_parameters for each type of layer")
    parameters = {name: value for name, value in parameters.items() if name not in ignored}
    if rotated:
        count = fields.size(rotated, dim)
        if count % 2 or count > dim:
            raise ConfigError(f"{fields.where}: {rotated} = {count} must be an even number, and at most {dim}")
        share = fields.get("partial_rotary_factor", count / dim)
        parameters.setdefault("partial_rotary_factor", share)
    rope = _rope(fields, parameters, dim, fields.get("rope_theta", theta), partial=partial, names=names or {})
    return replace(rope, interleaved=interleaved)


def read_by_layer_type(fields: Fields, dim: int, *, theta: float, local_theta: float) -> dict[str, Rope]:
    """The rotary embeddings of layers with full and with sliding attention, by those names.

    In the older form, `rope_scaling` is for the layers with full attention only.

    Args:
        fields: The model's `config.json`.
        dim: How many dimensions of a head they rotate.
        theta: The base of the layers with full attention, where the file does not say.
        local_theta: The same of the layers with sliding attention.

    Raises:
        ConfigError: As for `read`.
    """
    parameters = parameters_of(fields)
    if any(name in parameters for name in _LAYER_TYPES):
        nested = Fields(parameters, where=f"{fields.where}: rope_parameters")
        # What stands beside them is for no layer.
        nested.ignore("rope_type", "rope_theta")
        full, local = (nested.optional(name, dict) or {} for name in _LAYER_TYPES)
        nested.finish()
    elif parameters is fields.optional("rope_parameters", dict):
        raise ConfigError(f"{fields.where}: rope_parameters must be given for each of {', '.join(_LAYER_TYPES)}")
    else:
        full, local = dict(parameters), {}
    return {
        "full_attention": _rope(fields, full, dim, theta),
        "sliding_attention": _rope(fields, local, dim, local_theta),
    }


def read_nested(fields: Fields, parameters: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, Rope]:
    """The rotary embedding of each kind of layer that there is, each described in full.

    Args:
        fields: The model's `config.json`.
        parameters: The descriptions by kind of layer; see `parameters_of`.
        dims: For each kind of layer, how many dimensions of a head it rotates.

    Raises:
        ConfigError: A kind is not described, or as for `read`.
    """
    nested = Fields(parameters, where=f"{fields.where}: rope_parameters")
    nested.ignore(*_LAYER_TYPES)
    described = {kind: nested.need(kind, dict) for kind in dims}
    nested.finish()
    return {kind: _rope(fields, described[kind], dim, None) for kind, dim in dims.items()}


def read_described(fields: Fields, values: Mapping[str, Any], dim: int) -> Rope:
    """One rotary embedding that is described in full, of which neighbours are rotated (DeepSeek V4).

    Args:
        fields: The model's `config.json`.
        values: The description, with `rope_theta` and `partial_rotary_factor`.
        dim: The width of a head.

    Raises:
        ConfigError: As for `read`.
    """
    return replace(_rope(fields, values, dim, None, partial=True), interleaved=True)


def parameters_of(fields: Fields) -> Mapping[str, Any]:
    """The object that describes the embedding, whatever it is called; empty where there is none."""
    new = fields.optional("rope_parameters", dict)
    return fields.optional("rope_scaling", dict) or new or {}


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """YaRN's magnitude for an extension by `factor` (https://arxiv.org/abs/2309.00071, section 3.4)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _rope(
    fields: Fields,
    values: Mapping[str, Any],
    dim: int,
    theta: float | None,
    *,
    partial: bool = False,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Rope:
    name = "rope_scaling" if fields.optional("rope_scaling", dict) else "rope_parameters"
    parameters = Fields(values, where=f"{fields.where}: {name}")
    legacy = parameters.get("type", "default")
    kind = parameters.get("rope_type", legacy)
    if kind == "proportional":
        return _proportional(fields, parameters, dim, theta)
    share = parameters.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
    if share != 1.0 and not partial:
        raise ConfigError(
            f"{fields.where}: partial_rotary_factor = {share!r} is not implemented for this kind of model"
        )
    base = _base(fields, parameters, theta)
    rotated = int(dim * share)
    if share != 1.0 and (rotated % 2 or not 0 < rotated <= dim):
        raise ConfigError(
            f"{fields.where}: partial_rotary_factor = {share!r} makes {rotated} of {dim} dimensions rotate, "
            "which must be an even number of them"
        )
    rope = Rope(theta=base, dim=rotated)
    factor: Any = values.get("factor")
    if is_number(factor) and not factor > 0:
        raise ConfigError(f"{parameters.where}: factor = {factor!r} must be positive")
    # A length where none is needed, how the weights were trained, and a name by which transformers knows no factor.
    parameters.ignore("original_max_position_embeddings", "finetuned", "attn_factor")
    match names.get(kind, kind):
        case "default":
            pass
        case "linear":
            rope = replace(rope, kind="linear", factor=parameters.need("factor", float))
        case "dynamic" | "ntk_alpha" if rotated == 2:
            raise ConfigError(f"{parameters.where}: the rotary embedding 'dynamic' needs more than one rotated pair")
        case "ntk_alpha":
            # A larger base, whatever the length; beside it stands what belongs to other scalings.
            parameters.ignore("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
            alpha = parameters.positive("alpha", 1.0)
            rope = replace(rope, theta=rope.theta * alpha ** (rotated / (rotated - 2)))
        case "dynamic":
            length = fields.size("max_position_embeddings")
            rope = replace(rope, kind="dynamic", factor=parameters.need("factor", float), original_max_position=length)
        case "llama3":
            rope = replace(
                rope,
                kind="llama3",
                factor=parameters.need("factor", float),
                original_max_position=_original_length(fields, parameters),
                low_freq_factor=parameters.need("low_freq_factor", float),
                high_freq_factor=parameters.need("high_freq_factor", float),
            )
        case "yarn":
            rope = _yarn(fields, parameters, rope)
        case "longrope":
            rope = _longrope(fields, parameters, rope)
        case _:
            raise ConfigError(
                f"{parameters.where}: the rotary embedding {kind!r} is not implemented; "
                "there are default, linear, dynamic, llama3, yarn, longrope and proportional"
            )
    parameters.finish()
    return rope


def _base(fields: Fields, parameters: Fields, default: float | None) -> float:
    """The base; without a default, the description must have it."""
    if default is None:
        default = parameters.need("rope_theta", float)
    if default <= 0:
        raise ConfigError(f"{fields.where}: rope_theta = {default!r} must be positive")
    return parameters.positive("rope_theta", default)


def _proportional(fields: Fields, parameters: Fields, dim: int, theta: float | None) -> Rope:
    """All dimensions count for the frequencies, and only the first pairs turn."""
    share = parameters.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
    if not 0 <= share <= 1:
        raise ConfigError(f"{fields.where}: partial_rotary_factor = {share!r} must lie between 0 and 1")
    parameters.ignore("type")
    rope = Rope(
        theta=_base(fields, parameters, theta),
        dim=dim,
        kind="proportional",
        factor=parameters.positive("factor", 1.0),
        turning_pairs=int(share * dim // 2),
    )
    parameters.finish()
    return rope


def _original_length(fields: Fields, parameters: Fields) -> int:
    """The context length before extension; beside the parameters (Phi 3) it counts more than in them."""
    inside = parameters.optional("original_max_position_embeddings", int)
    outside = fields.optional("original_max_position_embeddings", int)
    return outside or inside or fields.size("max_position_embeddings")


def _extension(fields: Fields, parameters: Fields, original: int) -> float:
    if original < 2:
        raise ConfigError(f"{fields.where}: original_max_position_embeddings = {original} must be 2 or more")
    factor = parameters.optional("factor", float)
    return fields.size("max_position_embeddings") / original if factor is None else factor


def _yarn(fields: Fields, parameters: Fields, rope: Rope) -> Rope:
    original = _original_length(fields, parameters)
    factor = _extension(fields, parameters, original)
    attention_factor = parameters.optional("attention_factor", float)
    scale, scale_all = parameters.get("mscale", 0.0), parameters.get("mscale_all_dim", 0.0)
    if attention_factor is None and scale and scale_all:
        attention_factor = yarn_magnitude(factor, scale) / yarn_magnitude(factor, scale_all)
    elif attention_factor is None:
        attention_factor = yarn_magnitude(factor)
    return replace(
        rope,
        kind="yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=parameters.get("beta_fast", 32.0) or 32.0,
        beta_slow=parameters.get("beta_slow", 1.0) or 1.0,
        truncate=parameters.optional("truncate", bool, True) or False,
        attention_factor=attention_factor,
    )


def _longrope(fields: Fields, parameters: Fields, rope: Rope) -> Rope:
    original = _original_length(fields, parameters)
    factor = _extension(fields, parameters, original)
    attention_factor = parameters.optional("attention_factor", float)
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    factors = {}
    for name in ("short_factor", "long_factor"):
        factors[name] = tuple(parameters.need(name, list))
        if not all(map(is_number, factors[name])):
            raise ConfigError(f"{parameters.where}: {name} must hold numbers only")
        if len(factors[name]) != rope.dim // 2:
            raise ConfigError(
                f"{parameters.where}: {name} has {len(factors[name])} values, but {rope.dim // 2} pairs are rotated"
            )
    return replace(
        rope,
        kind="longrope",
        factor=factor,
        original_max_position=original,
        attention_factor=attention_factor,
        short_factor=factors["short_factor"],
        long_factor=factors["long_factor"],
    )
