"""Load a pretrained model twice, look at what happened, and generate a few tokens.

    python examples/quickstart.py [MODEL] [--mesh fsdp=4,tp=2]

MODEL is a hub id, a folder or nothing: then a small Llama with random weights is written to a temporary folder first.
To try a mesh on a machine without accelerators: XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import argparse
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

import lazyload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a hub id or a folder; default: a small random Llama")
    parser.add_argument("--mesh", help="such as fsdp=4,tp=2; default: all devices on one axis fsdp")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mesh = make_mesh(arguments.mesh)
        cache_dir = None if arguments.model else pathlib.Path(folder, "cache")
        source = arguments.model or write_small_llama(pathlib.Path(folder, "small-llama"))
        for call in ("first", "second"):
            model = lazyload.from_pretrained(source, mesh=mesh, cache_dir=cache_dir)
            show_load(call, lazyload.last_report())
    show_parameters(model)
    show_continuation(model, arguments.model)


def make_mesh(text: str | None) -> jax.sharding.Mesh | None:
    """A mesh from `name=size,...`."""
    if text is None:
        return None
    sizes = dict(part.split("=") for part in text.split(","))
    return jax.make_mesh(tuple(int(size) for size in sizes.values()), tuple(sizes))


def show_load(call: str, report: lazyload.LoadReport) -> None:
    """Prints what a load did: whether a converted checkpoint was there, and the stages that took time."""
    print(f"{call} call: {'hit, restored from the cache' if report.hit else 'miss, converted into the cache first'}")
    moved = {
        "convert": f"{report.bytes_read / 1e6:,.1f} MB read, {report.bytes_written / 1e6:,.1f} MB written",
        "restore": f"{report.bytes_restored / 1e6:,.1f} MB onto the devices",
    }
    for stage, seconds in report.seconds.items():
        print(f"    {stage:8} {seconds:7.3f} s  {moved.get(stage, '')}".rstrip())
    print(f"    in all   {report.total_seconds:7.3f} s  key {report.key[:8]}")


def show_parameters(model: nnx.Module) -> None:
    """Prints a few parameters and the mesh axes that shard their dimensions."""
    parameters = list(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    print(f"\n{'parameter':36} {'shape':>18} {'dtype':>9}  sharding (8 of {len(parameters)} parameters)")
    for path, variable in parameters[:8]:
        array = variable[...]
        name = ".".join(map(str, path))
        print(f"{name:36} {array.shape!s:>18} {array.dtype!s:>9}  {array.sharding.spec}")


def show_continuation(model: lazyload.Decoder, source: str | None) -> None:
    """Prints how the model continues a text, or some tokens where it has no tokenizer."""
    try:
        tokenizer = None if source is None else lazyload.tokenizer(source)
    except lazyload.errors.LazyLoadError as error:
        print(f"\nno text: {error}")
        tokenizer = None
    prompt = [1, 2, 3, 4] if tokenizer is None else tokenizer.encode("The capital of France is")
    made = lazyload.generate(model, [prompt], max_new_tokens=8, eos=tokenizer.eos if tokenizer else None)
    if tokenizer is None:
        print(f"\ngreedy continuation of the tokens {prompt}: {made[0, len(prompt) :].tolist()}")
    else:
        print(f"\n{tokenizer.decode(made[0])}")


def write_small_llama(folder: pathlib.Path) -> pathlib.Path:
    """Writes a Llama of 4 layers with random weights, in Hugging Face's format."""
    width, mlp, vocab, layers, heads, kv_heads = 256, 512, 1024, 4, 8, 8
    kv_width = width // heads * kv_heads
    shapes = {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (width, width) for name in "qo"}
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (kv_width, width) for name in "kv"}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (width, mlp)}
    random = np.random.default_rng(0)
    tensors = {name: random.normal(0, 0.05, shape).astype(jnp.bfloat16) for name, shape in shapes.items()}
    norms = [f"model.layers.{n}.{norm}_layernorm" for n in range(layers) for norm in ("input", "post_attention")]
    tensors |= {f"{norm}.weight": np.ones(width, jnp.bfloat16) for norm in [*norms, "model.norm"]}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    main()
