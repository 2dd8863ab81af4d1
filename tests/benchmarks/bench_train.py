"""A train step of the decoder beside Tunix's own class: compile time, step time, temporaries, collectives.

    LAZYLOAD_BENCH_TUNIX_PYTHON=PYTHON python -m tests.benchmarks.bench_train [--remat block] [--layers 4] [--repeat 3]

Both are models of Qwen 3's kind, of the same shapes and the same Python, in turn, each step in the process of its side:
AdamW, the state donated, on a mesh of eight devices, fsdp=4 and tp=2. Temporaries and collectives are what XLA says of
the compiled step, and exact; times are told as ratios alone. On CPUs Tunix's class leaves the sharding of activations
to the compiler; here it says it as it does on accelerators. Exits with 1 where a bar is not met.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BARS = ("temporaries", "all-gather", "all-to-all")
"""What is to be at most Tunix's."""


def main() -> None:
    """Measures both sides and prints what they are to each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"layers": 4, "embed": 512, "mlp": 1536, "vocab": 8192, "batch": 8, "length": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="%(default)s")
    parser.add_argument("--repeat", type=int, default=3, help="steps of each side; %(default)s")
    parser.add_argument("--remat", choices=["none", "block"], default="none")
    parser.add_argument("--scan-layers", action="store_true", help="stack our layers; Tunix's class cannot")
    asked = vars(parser.parse_args())
    python = os.environ.get("LAZYLOAD_BENCH_TUNIX_PYTHON", sys.executable)
    sides = {name: _Side(python, name, asked) for name in ("lazyload", "tunix")}
    figures = {name: side.answer() for name, side in sides.items()}
    steps: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(asked["repeat"]):
        for name, side in sides.items():
            steps[name].append(side.ask()["step"])
    ours, theirs = figures["lazyload"], figures["tunix"]
    print(f"{'':20}{'lazyload':>12}{'tunix':>12}{'ratio':>8}")
    for name in ("temporaries", *_COLLECTIVES):
        one, other = ours[name], theirs[name]
        print(f"{name:20}{one:12}{other:12}{one / other if other else float(bool(one)):8.2f}")
    print(f"{'compile time':44}{ours['compile'] / theirs['compile']:8.2f}")
    ratios = [one / other for one, other in zip(*steps.values(), strict=True)]
    print(f"{'step time':44}{statistics.median(ratios):8.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")
    missed = [name for name in _BARS if ours[name] > theirs[name]]
    sys.exit(f"more than Tunix's: {', '.join(missed)}" if missed else 0)


class _Side:
    """A process with the compiled step of one side, which makes a step when it is asked to."""

    def __init__(self, python: str, name: str, asked: dict[str, Any]):
        devices = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
        environment = {"JAX_PLATFORMS": "cpu", **os.environ, "PYTHONPATH": str(_ROOT), "XLA_FLAGS": devices}
        self._process = subprocess.Popen(
            [python, "-P", "-W", "ignore", __file__, name, json.dumps(asked)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """The next line that it says."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                figures: dict[str, Any] = json.loads(line)
                return figures
        sys.exit(f"a side ended with {self._process.wait()}")

    def ask(self) -> dict[str, Any]:
        """One step."""
        assert self._process.stdin is not None
        print("step", file=self._process.stdin, flush=True)
        return self.answer()


def serve(name: str, asked: dict[str, Any]) -> None:
    """Compiles the step of one side, says what it is, and makes a step for every line on stdin."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    model = {"lazyload": _lazyload, "tunix": _tunix}[name](asked, mesh)
    step, state = _step(model, mesh)
    by_row = NamedSharding(mesh, PartitionSpec("fsdp"))
    tokens = jax.device_put(jax.numpy.ones((asked["batch"], asked["length"]), jax.numpy.int32), by_row)
    with mesh:
        lowered = step.lower(state, tokens)
        started = time.perf_counter()
        compiled = lowered.compile()
        compile_time = time.perf_counter() - started
    text = compiled.as_text()
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in _COLLECTIVES}
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    print(json.dumps({"temporaries": temporaries, "compile": compile_time, **counts}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        state = jax.block_until_ready(compiled(state, tokens))
        print(json.dumps({"step": time.perf_counter() - started}), flush=True)


def _step(model: Any, mesh: Any) -> tuple[Any, Any]:
    """A step of AdamW, and what it starts from: zeros that lie as they will in training."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    graphdef, abstract = nnx.split(model)
    places = jax.tree.map(lambda array: array.sharding, abstract)
    optimizer = optax.adamw(1e-3)

    def start() -> Any:
        parameters = jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), abstract)
        return parameters, optimizer.init(parameters)

    (adam, *others) = jax.eval_shape(start)[1]
    whole = NamedSharding(mesh, PartitionSpec())
    rest = jax.tree.map(lambda _: whole, (adam, *others))
    moments = rest[0]._replace(mu=places, nu=places)
    state = jax.jit(start, out_shardings=(places, (moments, *rest[1:])))()

    def step(state: Any, tokens: Any) -> Any:
        parameters, moments = state
        batch, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))

        def loss(parameters: Any) -> Any:
            logits, _ = nnx.merge(graphdef, parameters)(tokens, positions, None, mask)
            scores = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
            return -jnp.take_along_axis(scores, tokens[:, 1:, None], -1).mean()

        updates, moments = optimizer.update(jax.grad(loss)(parameters), moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    return jax.jit(step, donate_argnums=0), state


def _lazyload(asked: dict[str, Any], mesh: Any) -> Any:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from lazyload.architecture import MLP, Attention, DecoderConfig, Layer, Norm, Rope
    from lazyload.models.decoder import Decoder
    from lazyload.models.fill import fill
    from lazyload.sharding import shardings

    rope = Rope(theta=1e6, dim=64)
    attention = Attention(num_heads=8, num_kv_heads=4, head_dim=64, rope=rope, qk_norm="head")
    layer = Layer(mixer=attention, feed_forward=MLP(mlp_dim=asked["mlp"]), norm=Norm())
    layers = (layer,) * asked["layers"]
    config = DecoderConfig(vocab_size=asked["vocab"], embed_dim=asked["embed"], layers=layers, norm=Norm())
    scan_layers, remat = asked["scan_layers"], asked["remat"]
    model = Decoder(config, dtype=jnp.bfloat16, scan_layers=scan_layers, remat=remat, rngs=None)
    nodes = {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)}
    axes = {path: (node.shape, node.get_metadata()["logical_axes"]) for path, node in nodes.items()}
    arrays: dict[str, Any] = {
        path: jax.ShapeDtypeStruct(axes[path][0], nodes[path].dtype, sharding=place)
        for path, place in shardings(mesh, None, axes).items()
    }
    return fill(model, arrays)


def _tunix(asked: dict[str, Any], mesh: Any) -> Any:
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec
    from tunix.models.qwen3 import model as qwen3

    def shard(x: Any, axes: Any) -> Any:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

    qwen3.shard = shard
    config = qwen3.ModelConfig(
        num_layers=asked["layers"],
        vocab_size=asked["vocab"],
        embed_dim=asked["embed"],
        hidden_dim=asked["mlp"],
        num_heads=8,
        head_dim=64,
        num_kv_heads=4,
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=False,
        dtype=jnp.bfloat16,
        param_dtype=jnp.bfloat16,
        remat_config=qwen3.RematConfig.DECODER if asked["remat"] == "block" else qwen3.RematConfig.NONE,
    )
    graphdef, state = nnx.split(nnx.eval_shape(lambda: qwen3.Qwen3(config, rngs=nnx.Rngs(0))))

    def placed(array: Any, spec: Any) -> Any:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))

    return nnx.merge(graphdef, jax.tree.map(placed, state, nnx.get_partition_spec(state)))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("lazyload", "tunix"):
        serve(sys.argv[1], json.loads(sys.argv[2]))
    else:
        main()
