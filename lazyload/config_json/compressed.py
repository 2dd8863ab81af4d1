"""Fields of compressed attention and hyper-connections, in both of the forms that DeepSeek V4's `config.json` has.

DeepSeek's own files have `compress_ratios`, `num_hash_layers`, `qk_rope_head_dim` and `rope_scaling`; what transformers
saves has `layer_types`, `compress_rates`, `mlp_layer_types` and `rope_parameters` for each kind of embedding. What is
missing follows as in transformers' `DeepseekV4Config` (5.24).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lazyload.architecture import CompressedAttention, CompressedIndexer, Compressor, HyperConnection, Norm, Rope
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields, is_number
from lazyload.config_json.shape import norm
from lazyload.errors import ConfigError

_LOCAL, _SPARSE, _HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
_OF_RATIO = {0: _LOCAL, 4: _SPARSE, 128: _HEAVY}
_ROPES = ("main", "compress")
_USUAL_RATES = {kind: rate for rate, kind in _OF_RATIO.items() if rate}


def mixers(fields: Fields) -> list[CompressedAttention]:
    """The attention of each layer.

    Raises:
        ConfigError: A field is missing, or says what is not implemented.
    """
    fields.refuse("num_key_value_heads", 1)
    heads, groups = fields.size("num_attention_heads"), fields.size("o_groups")
    if heads % groups:
        raise ConfigError(f"{fields.where}: num_attention_heads = {heads} is no multiple of o_groups = {groups}")
    rates = _rates(fields)
    ropes = _ropes(fields)
    plain = CompressedAttention(
        num_heads=heads,
        head_dim=fields.size("head_dim"),
        q_rank=fields.size("q_lora_rank"),
        num_groups=groups,
        o_rank=fields.size("o_lora_rank"),
        window=fields.size("sliding_window"),
        rope=ropes["main"],
        norm=norm(fields),
    )
    by_kind = {_LOCAL: plain}
    for kind, rate in rates.items():
        compressor = Compressor(rate=rate, dim=plain.head_dim, overlapping=kind == _SPARSE)
        indexer = _indexer(fields, compressor, ropes["compress"].dim) if kind == _SPARSE else None
        by_kind[kind] = replace(plain, rope=ropes["compress"], compressor=compressor, indexer=indexer)
    return [by_kind[kind] for kind in _kinds(fields)]


def are_hashed(fields: Fields) -> list[bool]:
    """For each layer, whether a table says which experts a token is sent to.

    Raises:
        ConfigError: A field has the wrong length or holds another kind of layer.
    """
    count = fields.size("num_hidden_layers")
    first = fields.get("num_hash_layers", 3)
    default = ["hash_moe" if number < first else "moe" for number in range(count)]
    return [kind == "hash_moe" for kind in _of_layers(fields, "mlp_layer_types", default, ("hash_moe", "moe"))]


def hyper_connection(fields: Fields) -> HyperConnection:
    """How blocks are connected with the residual streams.

    Raises:
        ConfigError: A number is not positive.
    """
    return HyperConnection(
        num_streams=fields.size("hc_mult"),
        num_iterations=fields.size("hc_sinkhorn_iters"),
        eps=fields.positive("hc_eps", 1e-6),
        norm=Norm(eps=fields.positive("rms_norm_eps", 1e-6)),
    )


def _indexer(fields: Fields, compressor: Compressor, rotated: int) -> CompressedIndexer:
    if fields.size("index_head_dim") < rotated:
        raise ConfigError(f"{fields.where}: index_head_dim is less than the {rotated} dimensions that are rotated")
    return CompressedIndexer(
        num_heads=fields.size("index_n_heads"),
        compressor=replace(compressor, dim=fields.size("index_head_dim"), prefix="index_"),
        num_selected=fields.size("index_topk"),
    )


def _kinds(fields: Fields) -> list[str]:
    """The kind of each layer's attention."""
    count = fields.size("num_hidden_layers")
    ratios = fields.optional("compress_ratios", list)
    default = [_HEAVY if number < 2 or number % 2 == 0 else _SPARSE for number in range(count)]
    if ratios is not None:
        unknown = [ratio for ratio in ratios if not is_number(ratio) or ratio not in _OF_RATIO]
        if unknown:
            known = ", ".join(map(str, _OF_RATIO))
            raise ConfigError(
                f"{fields.where}: compress_ratios holds {unknown[0]!r}, which is not implemented; {known} are"
            )
        default = [_OF_RATIO[ratio] for ratio in ratios]
    return _of_layers(fields, "layer_types", default, (_LOCAL, _SPARSE, _HEAVY), default_name="compress_ratios")


def _of_layers(
    fields: Fields, name: str, default: Sequence[str], known: Sequence[str], *, default_name: str = ""
) -> list[str]:
    """What a field says of each layer; further ones are of the layers that predict further tokens."""
    count = fields.size("num_hidden_layers")
    given = fields.optional(name, list)
    if given is None:
        given, name = list(default), default_name or name
    if len(given) < count:
        raise ConfigError(f"{fields.where}: {name} has {len(given)} values for {count} layers")
    unknown = sorted({str(kind) for kind in given[:count] if kind not in known})
    if unknown:
        raise ConfigError(f"{fields.where}: {name} holds {', '.join(unknown)}, which is not implemented")
    return [str(kind) for kind in given[:count]]


def _rates(fields: Fields) -> dict[str, int]:
    """How many tokens make a window in each kind of layer."""
    given = Fields(fields.optional("compress_rates", dict) or _USUAL_RATES, where=f"{fields.where}: compress_rates")
    old = {_SPARSE: "compress_rate_csa", _HEAVY: "compress_rate_hca"}
    rates = {kind: fields.size(name) if name in fields else given.size(kind) for kind, name in old.items()}
    fields.ignore(*old.values())
    given.ignore(*old)
    given.finish()
    return rates


def _ropes(fields: Fields) -> Mapping[str, Rope]:
    """The rotary embeddings: `main` of layers without compressed keys, `compress` of the others.

    A description that is not for each of them is of the second one only, which has a base of its own; YaRN then
    leaves the size of vectors alone.
    """
    head_dim = fields.size("head_dim")
    rotated = fields.size("qk_rope_head_dim", 64)
    share = fields.optional("partial_rotary_factor", float)
    if share is None:
        share = rotated / head_dim if "qk_rope_head_dim" in fields else 64 / 512
    parameters = dict(rope.parameters_of(fields))
    base, compressed_base = fields.positive("rope_theta", 10_000.0), fields.positive("compress_rope_theta", 160_000.0)
    if isinstance(parameters.get("main"), dict) and isinstance(parameters.get("compress"), dict):
        inner = {"partial_rotary_factor": fields.get("partial_rotary_factor", 1.0), "rope_theta": base}
        described = {name: {**inner, **parameters[name]} for name in _ROPES}
    else:
        flat = {name: value for name, value in parameters.items() if name not in _ROPES}
        own = {"partial_rotary_factor": share, "rope_theta": compressed_base}
        is_yarn = "yarn" in (flat.get("rope_type"), flat.get("type"))
        described = {
            "main": {"partial_rotary_factor": share, "rope_theta": base},
            "compress": {**({"attention_factor": 1.0} if is_yarn else {}), **flat, **own},
        }
    ropes = {name: rope.read_described(fields, described[name], head_dim) for name in _ROPES}
    for name in _ROPES:
        if ropes[name].kind in ("dynamic", "longrope"):
            raise ConfigError(
                f"{fields.where}: rope_parameters ({name}): {ropes[name].kind!r} depends on the sequence's length, "
                "which is not implemented for keys of windows"
            )
    return ropes
