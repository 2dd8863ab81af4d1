"""Large checkpoints with the shapes of real models, for tests of processes and for benchmarks.

The bytes repeat a block of random weights: nothing about loading depends on their values, and writing stays quick.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from lazyload import families
from lazyload.layouts.unroll import unroll

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
QWEN_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 32000,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
QWEN3_1_7B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
}


def write_large_llama(folder: Path, gigabytes: float) -> Path:
    """Writes a Llama of about the given size in bfloat16, in several shards."""
    return write_as_large_as(folder, LLAMA, gigabytes)


def write_as_large_as(folder: Path, config: Mapping[str, object], gigabytes: float) -> Path:
    """Writes a checkpoint with a config's shapes and as many layers as make it about as large as is given."""
    base = nbytes_of({**config, "num_hidden_layers": 0})
    layer = nbytes_of({**config, "num_hidden_layers": 1}) - base
    layers = max(1, round((gigabytes * 1e9 - base) / layer))
    return write(folder, {**config, "num_hidden_layers": layers})


def write(folder: Path, config: Mapping[str, object], shard_bytes: float = 1e9) -> Path:
    """Writes a checkpoint of random bfloat16 weights with the shapes that a config gives."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    block = (np.random.default_rng(0).standard_normal(1 << 21) * 0.02).astype(ml_dtypes.bfloat16).tobytes()
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes_of(config).items():
        if _nbytes(shards[-1]) > shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    weight_map = {}
    for number, shapes in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shapes, file)
        _write_shard(folder / file, shapes, block)
    index = {"metadata": {"total_size": nbytes_of(config)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_headers(folder: Path, config: Mapping[str, object]) -> Path:
    """Writes a checkpoint of which there are only the headers, whatever its size: for plans."""
    family = families.find(config)
    architecture = family.read(config)
    shapes = {name: array.shape for name, array in unroll(family.stored(architecture), architecture).items()}
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / "model.safetensors"
    _write_shard(file, shapes, b"")
    with file.open("ab") as weights:
        weights.truncate(file.stat().st_size + _nbytes(shapes))
    return folder


def _write_shard(path: Path, shapes: Mapping[str, tuple[int, ...]], block: bytes) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        nbytes = _nbytes({name: shape})
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while block and end > 0:
            file.write(block[:end])
            end -= len(block)


def shapes_of(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama-like model."""
    width, mlp, vocab = (int(str(config[k])) for k in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, kv_heads = (
        int(str(config["head_dim"])) * int(str(config[f"num_{k}_heads"])) for k in ("attention", "key_value")
    )
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    for layer in range(int(str(config["num_hidden_layers"]))):
        own = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        own |= {"self_attn.q_proj": (heads, width), "self_attn.o_proj": (width, heads)}
        own |= {"self_attn.k_proj": (kv_heads, width), "self_attn.v_proj": (kv_heads, width)}
        if "qwen3" in str(config["model_type"]):
            own |= {f"self_attn.{name}_norm": (int(str(config["head_dim"])),) for name in "qk"}
        if "num_experts" in config:
            experts, inner = int(str(config["num_experts"])), int(str(config["moe_intermediate_size"]))
            own["mlp.gate"] = (experts, width)
            for expert in range(experts):
                own |= {f"mlp.experts.{expert}.{name}_proj": (inner, width) for name in ("gate", "up")}
                own[f"mlp.experts.{expert}.down_proj"] = (width, inner)
        else:
            own |= {"mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width), "mlp.down_proj": (width, mlp)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return shapes


def nbytes_of(config: Mapping[str, object]) -> int:
    """The size of a config's tensors in bfloat16."""
    return _nbytes(shapes_of(config))


def _nbytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(2 * int(np.prod(shape)) for shape in shapes.values())
