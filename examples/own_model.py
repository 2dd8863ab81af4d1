"""Load checkpoints into a module of your own, and checkpoints of an architecture of your own.

    python examples/own_model.py

Both parts start from a small Llama with random weights. The first fills a Flax NNX module that this file defines. The
second teaches lazyload a family: the same weights under other names, and a config.json with other fields.
"""

import json
import pathlib
import tempfile
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from quickstart import write_small_llama
from safetensors.numpy import load_file, save_file

import lazyload
from lazyload.architecture import MLP, Attention, DecoderConfig, Layer, Norm, Rope


class Bigrams(nnx.Module):
    """Guesses the next token from the last one alone: what a Llama's embeddings say without its layers."""

    def __init__(self, vocab: int, width: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocab, width, rngs=rngs)
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocab, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.head(self.norm(self.embed(tokens)))


def build(config: DecoderConfig, arrays: Mapping[str, jax.Array]) -> Bigrams:
    """Makes the module from what config.json means and the arrays on their devices; nothing is allocated twice."""
    module = nnx.eval_shape(lambda: Bigrams(config.vocab_size, config.embed_dim, nnx.Rngs(0)))
    return lazyload.fill(module, arrays)


BIGRAMS = lazyload.Target(
    lazyload.Layout(
        {  # where a parameter lies, by dotted path: its role, and its axes as it stores them
            "embed.embedding": "embed : vocab embed",
            "norm.scale": "final_norm : embed",
            "head.kernel": "lm_head : embed vocab",
        },
        name="bigrams",
        skipped=["model.layers.*"],  # what is not used must be named: nothing is left out by accident
    ),
    build=build,
)


def own_config(values: Mapping[str, int]) -> DecoderConfig:
    """Reads the config.json of the family below."""
    width, heads, norm = values["width"], values["heads"], Norm(eps=1e-5)
    head_dim = width // heads
    rope = Rope(theta=10_000.0, dim=head_dim)
    attention = Attention(num_heads=heads, num_kv_heads=heads, head_dim=head_dim, rope=rope)
    layer = Layer(mixer=attention, feed_forward=MLP(mlp_dim=values["inner"]), norm=norm)
    layers = (layer,) * values["depth"]
    return DecoderConfig(vocab_size=values["vocabulary"], embed_dim=width, layers=layers, norm=norm)


def own_names(config: DecoderConfig) -> lazyload.Layout:
    """Where the family's checkpoints keep what: one tensor for q, k and v, and one for gate and up, inputs first."""
    return lazyload.Layout(
        {
            "tokens": "embed : vocab embed",
            "norm": "final_norm : embed",
            "head": "lm_head : vocab embed",
            "blocks.{layer}.norm1": "attn_norm : embed",
            "blocks.{layer}.qkv": "attn.q | attn.k | attn.v : "
            "embed (head head_dim | kv_head head_dim | kv_head head_dim)",
            "blocks.{layer}.out": "attn.o : (head head_dim) embed",
            "blocks.{layer}.norm2": "mlp_norm : embed",
            "blocks.{layer}.gate_up": "mlp.in : embed (gate_up mlp)",
            "blocks.{layer}.down": "mlp.out : mlp embed",
        }
    )


OWN = lazyload.Family("own", ("own",), own_config, own_names)


def main() -> None:
    tokens = jnp.array([[1, 2, 3, 4]])
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        llama = write_small_llama(folder / "small-llama")
        bigrams = lazyload.from_pretrained(llama, layout=BIGRAMS, cache_dir=folder / "cache")
        print("a module of one's own:", type(bigrams).__name__, bigrams(tokens).shape)
        print(lazyload.last_report())

        own = write_own_checkpoint(llama, folder / "own")
        lazyload.register(OWN)  # or from_pretrained(..., family=OWN)
        ours = lazyload.from_pretrained(own, cache_dir=folder / "cache")
        theirs = lazyload.from_pretrained(llama, cache_dir=folder / "cache")
        run = nnx.jit(lambda model, tokens: model(tokens)[0])
        same = np.array_equal(run(ours, tokens), run(theirs, tokens))
        print("a family of one's own:", "says the same as the Llama" if same else "differs from the Llama")
        assert same


def write_own_checkpoint(llama: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Writes the Llama's weights as a checkpoint of the family."""
    stored = load_file(llama / "model.safetensors")
    config = json.loads((llama / "config.json").read_text())
    tensors = {
        "tokens": stored["model.embed_tokens.weight"],
        "norm": stored["model.norm.weight"],
        "head": stored["lm_head.weight"],
    }
    for layer in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}", f"blocks.{layer}"
        qkv = [stored[f"{old}.self_attn.{name}_proj.weight"] for name in "qkv"]
        gate_up = [stored[f"{old}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
        tensors[f"{new}.qkv"] = np.concatenate(qkv).T.copy()
        tensors[f"{new}.out"] = stored[f"{old}.self_attn.o_proj.weight"].T.copy()
        tensors[f"{new}.gate_up"] = np.concatenate(gate_up).T.copy()
        tensors[f"{new}.down"] = stored[f"{old}.mlp.down_proj.weight"].T.copy()
        tensors[f"{new}.norm1"] = stored[f"{old}.input_layernorm.weight"]
        tensors[f"{new}.norm2"] = stored[f"{old}.post_attention_layernorm.weight"]
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    own = {
        "model_type": "own",
        "width": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "inner": config["intermediate_size"],
        "depth": config["num_hidden_layers"],
        "vocabulary": config["vocab_size"],
    }
    (folder / "config.json").write_text(json.dumps(own))
    return folder


if __name__ == "__main__":
    main()
