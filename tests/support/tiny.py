"""A Llama of a few kilobytes, byte for byte the same on every machine and at every time."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "float32",
}
_WHEN = 1_700_000_000
"""When its files were written, in seconds since 1970: the hub of the tests makes commits of it."""


def make(folder: Path) -> Path:
    """Writes the checkpoint into a folder, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    embed, mlp, heads, kv_heads, head_dim, vocab = 16, 32, 2, 1, 8, 24
    shapes = {
        "model.embed_tokens.weight": (vocab, embed),
        "model.norm.weight": (embed,),
        "lm_head.weight": (vocab, embed),
    }
    for layer in range(2):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (embed,),
                "post_attention_layernorm": (embed,),
                "self_attn.q_proj": (heads * head_dim, embed),
                "self_attn.k_proj": (kv_heads * head_dim, embed),
                "self_attn.v_proj": (kv_heads * head_dim, embed),
                "self_attn.o_proj": (embed, heads * head_dim),
                "mlp.gate_proj": (mlp, embed),
                "mlp.up_proj": (mlp, embed),
                "mlp.down_proj": (embed, mlp),
            }.items()
        }
    tensors = {
        name: (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 61 + number) / 64
        for number, (name, shape) in enumerate(shapes.items())
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    for path in folder.iterdir():
        os.utime(path, (_WHEN, _WHEN))
    return folder
