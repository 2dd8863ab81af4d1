"""MaxText's DeepSeek V4, as its `to_maxtext` saves it.

Beside the collection `params` there are two that no optimizer sees: `MoEBiasVar` with the routers' biases, and
`Tid2EidVar` with the experts of each token.
"""

from typing import NamedTuple

from lazyload.architecture import CompressedAttention, DecoderConfig
from lazyload.errors import LayoutError
from lazyload.formats.maxtext import blocks
from lazyload.formats.maxtext.blocks import Entries
from lazyload.formats.maxtext.tree import layout, layout_name, padding, refuse, scanned, under
from lazyload.layouts.layout import Layout, Table

_CSA, _HCA, _NONE = "csa_compressor", "hca_compressor", ""
_SCANNED = {_HCA: 128, _CSA: 4}
"""The two layers that MaxText scans at once, by what makes their compressed keys, with the tokens of a window."""

_OF_PAIRS = "MaxText scans a DeepSeek V4 in pairs of layers"

_WIDE = " ; unrounded"
_ATTENTION = {
    "wq_a.kernel": "attn.q_a : embed q_rank",
    "q_norm.scale": f"attn.q_a_norm : q_rank{_WIDE}",
    "wq_b.kernel": "attn.q_b : q_rank head head_dim",
    "wkv.kernel": "attn.kv : embed 1 head_dim",
    "kv_norm.scale": f"attn.kv_norm : head_dim{_WIDE}",
    "o_a_proj.kernel": "attn.o_a : group_head (member head_dim) o_rank",
    "o_b_proj.kernel": "attn.o_b : (group_head o_rank) embed",
    "sinks": f"attn.sinks : head{_WIDE}",
}
_INDEXER = {
    "q_proj.kernel": "indexer.q : q_rank (index_head index_dim)",
    "weights_proj.kernel": "indexer.weights : embed index_head",
}
_HEAD = {
    "hc_fn": f"hyper_head.pre : (stream embed) pre_stream{_WIDE}",
    "hc_base": f"hyper_head.pre.bias : pre_stream{_WIDE}",
    "hc_scale": f"hyper_head.pre.scale : one{_WIDE}",
}
_EXPERTS = {path: entry for path, entry in blocks.EXPERTS.items() if path != "gate.bias"}


class _Stack(NamedTuple):
    """Layers that are alike.

    Attributes:
        path: Where they lie below the decoder.
        compressor: What makes their compressed keys, by MaxText's name; empty for none.
        layers: Their numbers.
        scanned: Whether they are one array each.
    """

    path: str
    compressor: str
    layers: list[int]
    scanned: bool


def deepseek_v4(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """DeepSeek V4: layers whose experts a table chooses are numbered, the others scanned in pairs, or numbered, too."""
    refuse("DeepSeek V4 has no biases (mlp_bias)", config, "shared.in.bias")
    tables = [Table(under("decoder.hc_head", _HEAD))]
    beside = []
    for stack in _stacks(config, scan_layers):
        only = {"layer": stack.layers}
        tables += [
            Table(_placed(stack, _layer(stack.compressor)), only),
            # MaxText makes up a norm, whose place is that of one of the rows of another parameter.
            Table(_placed(stack, _norms_of_streams()), only | {"pre_stream": (0,)}),
        ]
        bias = f"router.selection_bias : {'layer ' * stack.scanned}expert{_WIDE}"
        experts = f"router.token_experts : vocab selected{padding(config, vocab_size)} ; as int32"
        further = {"MoEBiasVar": {"gate.bias": bias}, "Tid2EidVar": {"tid2eid": experts}}
        for collection, rows in further.items():
            placed = _placed(stack, under("mlp.MoeBlock_0", rows))
            beside.append(Table(under(f"params.{collection}", placed), only))
    whole = layout(config, tables, scan_layers, vocab_size, norm=_WIDE)
    return Layout([*whole.tables, *beside], name=layout_name(scan_layers), general=True)


def hash_layers(config: DecoderConfig) -> int:
    """How many layers choose experts by token, which must be the first ones.

    Raises:
        LayoutError: They are not.
    """
    layers = [layer for group in config.groups("router.token_experts") for layer in group.layers]
    if sorted(layers) != list(range(len(layers))):
        raise LayoutError("MaxText's DeepSeek V4 has experts by token in its first layers; this model's are others")
    return len(layers)


def compress_ratios(config: DecoderConfig) -> list[int]:
    """For each layer, how many tokens make a window; 0 for none."""
    mixers = [layer.mixer for layer in config.layers if isinstance(layer.mixer, CompressedAttention)]
    return [mixer.compressor.rate if mixer.compressor else 0 for mixer in mixers]


def _stacks(config: DecoderConfig, scan_layers: bool) -> list[_Stack]:
    first, count = hash_layers(config), config.num_layers
    compressors = [_compressor_of(layer.mixer) for layer in config.layers]
    numbered = range(first if scan_layers else count)
    stacks = [
        _Stack("layers_{layer}", kind, [number for number in numbered if compressors[number] == kind], False)
        for kind in dict.fromkeys(compressors[number] for number in numbered)
    ]
    if not scan_layers:
        return stacks
    ratios = compress_ratios(config)[first:]
    if len(ratios) % 2 or ratios != [*_SCANNED.values()] * (len(ratios) // 2):
        raise LayoutError(
            f"{_OF_PAIRS}, whose windows are of {' and '.join(map(str, _SCANNED.values()))} tokens; those of this "
            f"model's layers from {first} on are of {', '.join(map(str, ratios))}. Use scan_layers=False"
        )
    return stacks + [
        _Stack(f"scanned_blocks.layers_{place}", kind, list(range(first + place, count, 2)), True)
        for place, kind in enumerate(_SCANNED)
        if first < count
    ]


def _compressor_of(mixer: object) -> str:
    """What MaxText calls that which makes a layer's compressed keys; it goes by the tokens in a window."""
    if not isinstance(mixer, CompressedAttention) or mixer.compressor is None:
        return _NONE
    kind = _CSA if mixer.compressor.overlapping else _HCA
    rate = mixer.compressor.rate
    if (rate == _SCANNED[_CSA]) != (kind == _CSA) or rate < _SCANNED[_CSA]:
        raise LayoutError(
            f"MaxText's DeepSeek V4 has overlapping windows of {_SCANNED[_CSA]} tokens, and others of more; this "
            f"model's compress_rates say {rate}"
        )
    return kind


def _placed(stack: _Stack, entries: Entries) -> Entries:
    return under(f"decoder.{stack.path}", scanned(entries, "layer") if stack.scanned else entries)


def _layer(compressor: str) -> Entries:
    """One layer of the collection `params`."""
    attention = dict(_ATTENTION)
    if compressor:
        attention |= under(compressor, _compressor("compressor", "") | under("indexer", _indexer()))
    return {
        **{path: entry + _WIDE for path, entry in blocks.NORMS.items()},
        **under("self_attention", attention),
        **under("mlp", under("MoeBlock_0", _EXPERTS) | under("shared_experts", blocks.SHARED_EXPERTS)),
        **under("mhc_attention", _connection("attn_hc")),
        **under("mhc_mlp", _connection("mlp_hc")),
    }


def _indexer() -> dict[str, str]:
    return _INDEXER | _compressor("indexer", "index_")


def _compressor(role: str, prefix: str) -> dict[str, str]:
    return {
        "kv_proj.kernel": f"{role}.kv : embed {prefix}window_dim",
        "gate_proj.kernel": f"{role}.gate : embed {prefix}window_dim",
        "position_bias": f"{role}.position_bias : window {prefix}window_dim{_WIDE}",
        "kv_norm.scale": f"{role}.norm : {prefix}key_dim{_WIDE}",
    }


def _connection(role: str) -> dict[str, str]:
    outputs = {"pre": "pre_stream", "post": "post_stream", "res": "(from_stream to_stream)"}
    rows: dict[str, str] = {}
    for name, axes in outputs.items():
        own = f"{role}.{'comb' if name == 'res' else name}"
        rows |= {
            f"{name}_alpha": f"{own} : (stream embed) {axes}{_WIDE}",
            f"{name}_alpha_scale": f"{own}.scale : one{_WIDE}",
            f"{name}_beta": f"{own}.bias : {axes.strip('()')}{_WIDE}",
        }
    return rows


def _norms_of_streams() -> dict[str, str]:
    places = {"mhc_attention": "attn_hc", "mhc_mlp": "mlp_hc"}
    return {
        f"{module}.mhc_norm.{{pre_stream:scale}}": f"{role}.pre : (stream embed) ; fill 1 ; as float32"
        for module, role in places.items()
    }
