"""The blocks that several families share, by their names below the block in MaxText's trees.

Kernels are stored inputs first.
"""

import math
from collections.abc import Mapping

from lazyload.architecture import DecoderConfig

Entries = Mapping[str, str]
"""Paths below a layer or a block, with their roles and axes."""

MLP = {
    "wi_{gate_up:0,1}.kernel": "mlp.in : embed mlp",
    "wo.kernel": "mlp.out : mlp embed",
}
EXPERTS = {
    "gate.kernel": "router : embed expert",
    "gate.bias": "router.selection_bias : expert",
    "wi_{gate_up:0,1}": "experts.in : expert embed expert_mlp",
    "wo": "experts.out : expert expert_mlp embed",
}
SHARED_EXPERTS = {
    "wi_{gate_up:0,1}.kernel": "shared.in : embed shared_mlp",
    "wo.kernel": "shared.out : shared_mlp embed",
}
LATENT_ATTENTION = {
    "query.kernel": "attn.q : embed head qk_dim",
    "wq_a.kernel": "attn.q_a : embed q_rank",
    "q_norm.scale": "attn.q_a_norm : q_rank",
    "wq_b.kernel": "attn.q_b : q_rank head qk_dim",
    "wkv_a.kernel": "attn.kv_a : embed kv_rank_rope",
    "kv_norm.scale": "attn.kv_a_norm : kv_rank",
    "wkv_b.kernel": "attn.kv_b : kv_rank head nope_v_dim",
    "out.kernel": "attn.o : head v_dim embed",
}
INDEXER = {
    "wq_b.kernel": "indexer.q : q_rank index_head index_dim",
    "wk.kernel": "indexer.k : embed index_dim",
    "k_norm.scale": "indexer.k_norm : index_dim ; unrounded",
    "k_norm.bias": "indexer.k_norm.bias : index_dim ; unrounded",
    "weights_proj.kernel": "indexer.weights : embed index_head ; unrounded",
}
NORMS = {
    "pre_self_attention_layer_norm.scale": "attn_norm : embed",
    "post_self_attention_layer_norm.scale": "mlp_norm : embed",
}


def attention(norm: str = "") -> dict[str, str]:
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


def query_scale(config: DecoderConfig) -> str:
    """What MaxText multiplies the query kernel with: always by the head's width, whatever the model scales with."""
    return repr(1 / math.sqrt(config.head_dim))
