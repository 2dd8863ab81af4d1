"""LoRA with Tunix's trainer, over weights that qwix has quantised: a small model learns a sequence by heart.

    pip install google-tunix
    python examples/tunix_lora.py [--weights nf4] [--steps 30]

The base is loaded by `lazyload.from_pretrained`; the pattern of modules is the one that Tunix's examples have for its
own models. To try a mesh on a machine without accelerators: XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import argparse
import pathlib
import tempfile

import jax
import numpy as np
import optax
import qwix
from flax import nnx
from jax.sharding import AxisType
from quickstart import write_small_llama
from tunix.rl.reshard import reshard_model_to_mesh
from tunix.sft import utils
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput

import lazyload

MODULES = ".*q_proj|.*k_proj|.*v_proj|.*o_proj|.*gate_proj|.*up_proj|.*down_proj"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", choices=["plain", "int8", "int4", "nf4"], default="nf4")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    mesh = jax.make_mesh((jax.device_count(), 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    with tempfile.TemporaryDirectory() as folder:
        source = write_small_llama(pathlib.Path(folder, "small-llama"))
        base = lazyload.from_pretrained(source, mesh=mesh, dtype="float32", cache_dir=pathlib.Path(folder, "cache"))
    quantised = {} if arguments.weights == "plain" else {"weight_qtype": arguments.weights, "tile_size": 32}
    provider = qwix.LoraProvider(module_path=MODULES, rank=8, alpha=16.0, **quantised)
    with mesh:
        model = qwix.apply_lora_to_model(base, provider, rngs=nnx.Rngs(0), **base.get_model_input())
        model = reshard_model_to_mesh(model, mesh)
        show_sizes(model)
        before = loss(model)
        train(model, arguments.steps)
        after = loss(model)
    print(f"loss {before:.2f} before, {after:.2f} after {arguments.steps} steps")
    if arguments.steps >= 30 and after > before - 1:
        raise SystemExit("the loss has not fallen")


def batch() -> TrainingInput:
    """Eight times the same 16 tokens."""
    tokens = np.tile(np.arange(16, dtype=np.int32) * 37 % 1000 + 3, (8, 1))
    return TrainingInput(input_tokens=tokens, input_mask=np.ones_like(tokens, bool))


def model_input(given: TrainingInput) -> dict[str, jax.Array]:
    """What Tunix's loss takes."""
    return {
        "input_tokens": given.input_tokens,
        "input_mask": given.input_mask,
        "positions": utils.build_positions_from_mask(given.input_mask),
        "attention_mask": utils.make_causal_attn_mask(given.input_mask),
    }


def train(model: nnx.Module, steps: int) -> None:
    """Trains the parameters that LoRA has added."""
    config = TrainingConfig(eval_every_n_steps=steps + 1, max_steps=steps, data_sharding_axis=("fsdp",))
    trainer = PeftTrainer(model, optax.adamw(1e-2), config).with_gen_model_input_fn(model_input)
    trainer.train([batch()] * steps)


@nnx.jit
def loss(model: nnx.Module) -> jax.Array:
    """The mean of the tokens' negative log-likelihoods."""
    given = model_input(batch())
    logits, _ = model(given["input_tokens"], given["positions"], None, given["attention_mask"])
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], given["input_tokens"][:, 1:]).mean()


def show_sizes(model: nnx.Module) -> None:
    """Prints how many parameters are trained, and what the others take."""
    trained = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    print(f"{trained:,} parameters are trained; all take {nbytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
