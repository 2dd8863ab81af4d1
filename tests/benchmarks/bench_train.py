"""A train step of the decoder and of Tunix's own class, and the compilation of deep decoders: the suite `train`.

    LAZYLOAD_BENCH_TUNIX_PYTHON=PYTHON python -m tests.benchmarks --suites train

Both are models of Qwen 3's kind, of the same shapes and in the same Python: AdamW, the state donated, on a mesh of
eight simulated devices, fsdp=4 and tp=2. Temporaries and collectives are what XLA says of the compiled step, and exact.
On CPUs Tunix's class leaves the sharding of activations to the compiler; here it says it as it does on accelerators.

A job has the sizes `layers`, `width` and `length`, `remat`, "none" or "block", and of ours `scan_layers`.
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Job = Mapping[str, Any]

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEADS, _KV_HEADS = 8, 4
_BATCH = 8


class Step(NamedTuple):
    """What a call leaves, and for `worker.py` what is known of it besides."""

    left: Any
    told: Mapping[str, Any]


def lazyload(job: Job) -> Callable[[str], Step]:
    """A step of this library's decoder."""
    return _steps(_lazyload, job)


def tunix(job: Job) -> Callable[[str], Step]:
    """A step of Tunix's Qwen 3."""
    return _steps(_tunix, job)


def compilation(job: Job) -> Callable[[str], Step]:
    """The compilation of a step of this library's decoder, with all that is traced for it."""
    import jax

    mesh = _mesh()
    step, state, tokens = _step(_lazyload(job, mesh), mesh, job)

    def call(_: str) -> Step:
        jax.clear_caches()
        with mesh:
            compiled = step.lower(state, tokens).compile()
        return Step(compiled, {"figures": _figures(compiled)})

    return call


def _steps(made: Callable[[Job, Any], Any], job: Job) -> Callable[[str], Step]:
    """A function that makes one step after another, with what was found while it was compiled."""
    import jax

    mesh = _mesh()
    step, state, tokens = _step(made(job, mesh), mesh, job)
    with mesh:
        started = time.perf_counter()
        compiled = step.lower(state, tokens).compile()
        seconds = time.perf_counter() - started
    figures = {"compile, s": seconds, **_figures(compiled)}
    states = [state]

    def call(_: str) -> Step:
        states[0] = jax.block_until_ready(compiled(states[0], tokens))
        return Step(states[0], {"figures": figures})

    return call


def _figures(compiled: Any) -> dict[str, float]:
    """What XLA says of a compiled step."""
    text = compiled.as_text()
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in COLLECTIVES}
    return {"temporaries, MB": compiled.memory_analysis().temp_size_in_bytes / 1e6, **counts}


def _mesh() -> Any:
    import jax
    from jax.sharding import AxisType

    return jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)


def _step(model: Any, mesh: Any, job: Job) -> tuple[Any, Any, Any]:
    """A step of AdamW, what it starts from, zeros that lie as they will in training, and a batch of tokens."""
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

    by_row = NamedSharding(mesh, PartitionSpec("fsdp"))
    tokens = jax.device_put(jnp.ones((_BATCH, job["length"]), jnp.int32), by_row)
    return jax.jit(step, donate_argnums=0), state, tokens


def _sizes(job: Job) -> dict[str, int]:
    """Those of a Qwen 3 of this width."""
    width = job["width"]
    return {"embed": width, "mlp": 3 * width, "vocab": 16 * width, "head_dim": width // _HEADS}


def _lazyload(job: Job, mesh: Any) -> Any:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from lazyload.architecture import MLP, Attention, DecoderConfig, Layer, Norm, Rope
    from lazyload.models.decoder import Decoder
    from lazyload.models.fill import fill
    from lazyload.sharding import shardings

    sizes = _sizes(job)
    rope = Rope(theta=1e6, dim=sizes["head_dim"])
    attention = Attention(
        num_heads=_HEADS, num_kv_heads=_KV_HEADS, head_dim=sizes["head_dim"], rope=rope, qk_norm="head"
    )
    layer = Layer(mixer=attention, feed_forward=MLP(mlp_dim=sizes["mlp"]), norm=Norm())
    layers = (layer,) * job["layers"]
    config = DecoderConfig(vocab_size=sizes["vocab"], embed_dim=sizes["embed"], layers=layers, norm=Norm())
    scan_layers, remat = job["scan_layers"], job["remat"]
    model = Decoder(config, dtype=jnp.bfloat16, scan_layers=scan_layers, remat=remat, rngs=None)
    nodes = {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)}
    axes = {path: (node.shape, node.get_metadata()["logical_axes"]) for path, node in nodes.items()}
    arrays: dict[str, Any] = {
        path: jax.ShapeDtypeStruct(axes[path][0], nodes[path].dtype, sharding=place)
        for path, place in shardings(mesh, None, axes).items()
    }
    return fill(model, arrays)


def _tunix(job: Job, mesh: Any) -> Any:
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec
    from tunix.models.qwen3 import model as qwen3

    def shard(x: Any, axes: Any) -> Any:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

    qwen3.shard = shard
    sizes = _sizes(job)
    config = qwen3.ModelConfig(
        num_layers=job["layers"],
        vocab_size=sizes["vocab"],
        embed_dim=sizes["embed"],
        hidden_dim=sizes["mlp"],
        num_heads=_HEADS,
        head_dim=sizes["head_dim"],
        num_kv_heads=_KV_HEADS,
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=False,
        dtype=jnp.bfloat16,
        param_dtype=jnp.bfloat16,
        remat_config=qwen3.RematConfig.DECODER if job["remat"] == "block" else qwen3.RematConfig.NONE,
    )
    graphdef, state = nnx.split(nnx.eval_shape(lambda: qwen3.Qwen3(config, rngs=nnx.Rngs(0))))

    def placed(array: Any, spec: Any) -> Any:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))

    return nnx.merge(graphdef, jax.tree.map(placed, state, nnx.get_partition_spec(state)))
