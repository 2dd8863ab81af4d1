"""A golden Llama with parameters of LoRA, and the adapter that they are in PEFT's format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

import lazyload

PATHS = {"layers.0.attn.q_proj": 4, "layers.1.attn.o_proj": 4, "layers.1.mlp.down_proj": 2}
TENSORS = {
    "layers.0.attn.q_proj": "model.layers.0.self_attn.q_proj",
    "layers.1.attn.o_proj": "model.layers.1.self_attn.o_proj",
    "layers.1.mlp.down_proj": "model.layers.1.mlp.down_proj",
}
ALPHA = 6.0


def with_lora(base: Path, tmp_path: Path, paths: Mapping[str, int] = PATHS, **options: Any) -> lazyload.Decoder:
    """The model with parameters of LoRA, as qwix would have made them.

    Args:
        base: The base model.
        tmp_path: Where the cache is.
        paths: From module to rank.
        **options: How it is loaded.
    """
    model = lazyload.from_pretrained(base, dtype="float32", cache_dir=tmp_path / "cache", **options)
    random = np.random.default_rng(0)
    for path, rank in paths.items():
        module: Any = model
        for name in path.split("."):
            module = module[int(name)] if name.isdecimal() else getattr(module, name)
        stack = module.kernel.shape[: module.kernel[...].ndim - len(module.axes)]
        shape, inputs = module.kernel.shape[len(stack) :], module.inputs
        module.kernel_lora_a = nnx.LoRAParam(
            jnp.asarray(random.normal(size=(*stack, *shape[:inputs], rank)), jnp.float32) * 0.2
        )
        module.kernel_lora_b = nnx.LoRAParam(
            jnp.asarray(random.normal(size=(*stack, rank, *shape[inputs:])), jnp.float32) * 0.2
        )
    return model


def save(base: Path, tmp_path: Path, paths: Mapping[str, int] = PATHS, **options: Any) -> tuple[lazyload.Decoder, Path]:
    model = with_lora(base, tmp_path, paths, **options)
    folder = lazyload.save_pretrained(model, tmp_path / "adapter", like=base, adapter_only=True, lora_alpha=ALPHA)
    return model, folder
