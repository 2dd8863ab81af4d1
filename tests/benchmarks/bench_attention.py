"""The longest sequences that fit the memory of TPUs or GPUs, with their kernel of attention and with dense attention.

    python -m tests.benchmarks.bench_attention [--topology v5e:2x2] [--model 0.6B] [--refine 1]
    python -m tests.benchmarks.bench_attention --topology here

Topologies of TPUs need `libtpu` beside JAX, and no TPU: its compiler compiles for them, and says what does not fit.
With `here` it is the devices that there are; programs that fit are run, too, and the best of three runs is told. A pass
that scores tokens and a step of AdamW are compiled in bfloat16, with stacked layers that are computed again backwards
(`remat="block"`), spread over all chips (`fsdp`), a sequence to each. Logits are computed for 1024 tokens at a time, as
trainers do where vocabularies are large. The length is doubled until it does not fit, and then halved between the two.
"""

import argparse
import dataclasses
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lazyload.architecture import MLP, Attention, DecoderConfig, Layer, Norm, Rope
from lazyload.models.decoder import Decoder
from lazyload.models.fill import fill
from lazyload.sharding import shardings

_AT_A_TIME = 1024

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """The sizes of a Qwen 3."""

    layers: int
    embed: int
    heads: int
    mlp: int
    tied: bool


_MODELS = {"0.6B": _Shapes(28, 1024, 16, 3072, True), "8B": _Shapes(36, 4096, 32, 12288, False)}


def main() -> None:
    """Prints the longest sequences, and the memory that they take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", help="of TPUs, or 'here'; %(default)s")
    parser.add_argument("--model", choices=_MODELS, default="0.6B", help="%(default)s")
    parser.add_argument("--start", type=int, default=4096, help="the first length that is tried; %(default)s")
    parser.add_argument("--most", type=int, default=2**18, help="the last one; %(default)s")
    parser.add_argument("--refine", type=int, default=0, help="halvings between what fits and what does not")
    parser.add_argument("--only", nargs="*", default=["forward", "train"], help="%(default)s")
    parser.add_argument("--kernels", nargs="*", help="dense and the platform's")
    asked = parser.parse_args()
    is_here = asked.topology == "here"
    # There is no TPU to be asked what it is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    devices: list[Any] = (
        jax.devices() if is_here else topologies.get_topology_desc(platform="tpu", topology_name=asked.topology).devices
    )
    mesh = Mesh(np.array(devices), ("fsdp",), axis_types=(AxisType.Auto,))
    kernels = asked.kernels or ["dense", "splash" if devices[0].platform == "tpu" else "cudnn"]
    print(f"{devices[0].device_kind}, {asked.topology}, {asked.model}, jax {jax.__version__}", flush=True)
    for what in asked.only:
        for kernel in kernels:
            model = _model(_MODELS[asked.model], kernel, mesh)
            program = {"forward": _forward, "train": _train}[what](model)
            peak_of = partial(_peak, program, mesh, is_here)
            longest, peak = _longest(peak_of, asked.start, asked.most, asked.refine)
            print(f"{what:8} {kernel:8} {longest:8} tokens a chip, {peak / _GIB:.1f} GiB", flush=True)


def _longest(peak_of: Callable[[int], int | None], start: int, most: int, refine: int) -> tuple[int, int]:
    """The longest length that fits, and the memory it takes."""
    fits: dict[int, int] = {}
    length, too_long = start, None
    while length <= most and too_long is None:
        peak = peak_of(length)
        if peak is None:
            too_long = length
        else:
            fits[length] = peak
            length *= 2
    while not fits and too_long is not None and too_long > _AT_A_TIME:
        too_long //= 2
        peak = peak_of(too_long // 2)
        if peak is not None:
            fits[too_long // 2] = peak
    for _ in range(refine if too_long is not None else 0):
        assert too_long is not None
        middle = (max(fits) + too_long) // 2 // _AT_A_TIME * _AT_A_TIME
        peak = peak_of(middle) if middle > max(fits) else None
        if peak is None:
            too_long = middle
        else:
            fits[middle] = peak
    return max(fits.items(), default=(0, 0))


@dataclasses.dataclass(frozen=True)
class _Program:
    """What is compiled.

    Attributes:
        run: Takes a state and tokens, and returns a state like it first of all, or none.
        state: Abstract arrays.
        is_step: Whether it takes the state away, and returns the next one.
    """

    run: Callable[..., Any]
    state: tuple[Any, ...]
    is_step: bool


def _peak(program: _Program, mesh: Mesh, is_here: bool, length: int) -> int | None:
    """The bytes that a compiled program takes at once of a chip; None where it has not as many."""
    by_row = NamedSharding(mesh, PartitionSpec("fsdp"))
    tokens = jax.ShapeDtypeStruct((mesh.size, length), jnp.int32, sharding=by_row)
    donated = tuple(range(len(program.state))) if program.is_step else ()
    try:
        compiled = jax.jit(program.run, donate_argnums=donated).lower(*program.state, tokens).compile()
        memory = compiled.memory_analysis()
        lasting = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        peak: int = lasting + memory.temp_size_in_bytes if is_here else memory.peak_memory_in_bytes
        seconds = f", {_seconds(program, compiled, tokens):.3f} s" if is_here else ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = re.search(r"required for HLO temporaries \(([^)]*)\)", str(error))
        print(f"    {length}: does not fit{', ' + found[1] if found else ''}", flush=True)
        return None
    print(f"    {length}: {peak / _GIB:.2f} GiB{seconds}", flush=True)
    return peak


def _seconds(program: _Program, compiled: Any, tokens: Any) -> float:
    """The least time that it takes of three, after a first one."""
    random = np.random.default_rng(0)

    def made(array: Any) -> jax.Array:
        key = jax.random.key(int(random.integers(1 << 30)))
        if array.dtype == jnp.int32:
            drawn = jax.random.randint(key, array.shape, 0, 1 << 16)
        else:
            drawn = jax.random.normal(key, array.shape, array.dtype) * 0.02
        return jax.device_put(drawn, array.sharding)

    *state, given = jax.tree.map(made, (*program.state, tokens))
    times = []
    for _ in range(4):
        started = time.perf_counter()
        result = jax.block_until_ready(compiled(*state, given))
        times.append(time.perf_counter() - started)
        state = result if program.is_step else state
    return min(times[1:])


def _forward(model: Decoder) -> _Program:
    graphdef, parameters = nnx.split(model)

    def score(parameters: Any, tokens: jax.Array) -> jax.Array:
        return _log_probabilities(nnx.merge(graphdef, parameters), tokens)

    return _Program(score, (parameters,), is_step=False)


def _train(model: Decoder) -> _Program:
    graphdef, parameters = nnx.split(model)
    optimizer = optax.adamw(1e-5)
    places = jax.tree.map(lambda array: array.sharding, parameters)
    (adam, *rest) = jax.eval_shape(optimizer.init, parameters)

    def placed(tree: Any) -> Any:
        def put(array: Any, place: Any) -> Any:
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

        return jax.tree.map(put, tree, places)

    moments = (adam._replace(mu=placed(adam.mu), nu=placed(adam.nu)), *rest)

    def step(parameters: Any, moments: Any, tokens: jax.Array) -> Any:
        def loss(parameters: Any) -> jax.Array:
            return -_log_probabilities(nnx.merge(graphdef, parameters), tokens).mean()

        updates, moments = optimizer.update(jax.grad(loss)(parameters), moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    return _Program(step, (parameters, moments), is_step=True)


def _log_probabilities(model: Decoder, tokens: jax.Array) -> jax.Array:
    """Those of the tokens after each token, `[chunk, batch, length]`."""
    hidden, _ = model(tokens, skip_lm_head=True)
    batch, _, width = hidden.shape
    chunks = hidden.reshape(batch, -1, _AT_A_TIME, width).swapaxes(0, 1)
    following = jnp.roll(tokens, -1, axis=1).reshape(batch, -1, _AT_A_TIME).swapaxes(0, 1)

    @jax.checkpoint
    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = model.compute_final_logits(chunk[0])
        return jnp.take_along_axis(jax.nn.log_softmax(logits), chunk[1][..., None], axis=-1)[..., 0]

    return jax.lax.map(of_chunk, (chunks, following))


def _model(shapes: _Shapes, kernel: Any, mesh: Mesh) -> Decoder:
    rope = Rope(theta=1e6, dim=128)
    attention = Attention(num_heads=shapes.heads, num_kv_heads=8, head_dim=128, rope=rope, qk_norm="head")
    layer = Layer(mixer=attention, feed_forward=MLP(mlp_dim=shapes.mlp), norm=Norm())
    layers = (layer,) * shapes.layers
    config = DecoderConfig(
        vocab_size=151936, embed_dim=shapes.embed, layers=layers, norm=Norm(), tied=shapes.tied, family="qwen3"
    )
    model = Decoder(config, scan_layers=True, remat="block", attention=kernel, rngs=None)
    nodes = {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)}
    axes = {path: (node.shape, node.get_metadata()["logical_axes"]) for path, node in nodes.items()}
    arrays: dict[str, Any] = {
        path: jax.ShapeDtypeStruct(node.shape, node.dtype, sharding=place)
        for (path, node), place in zip(nodes.items(), shardings(mesh, None, axes).values(), strict=True)
    }
    return fill(model, arrays)


if __name__ == "__main__":
    main()
