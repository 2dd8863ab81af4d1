"""Kernels compute the attention that dense products compute, and are taken where they can."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from support.decoders import ATTENTION, CONFIGS, LATENT, build, config, layer, run, weights
from support.meshes import by_rules, mesh_named

from lazyload.architecture import DecoderConfig
from lazyload.errors import InputError
from lazyload.models import attention_kernels
from lazyload.models.attention_kernels import Call, chosen
from lazyload.models.decoder import Decoder

# Longer than a block of the kernel, and no multiple of it; odd, which cuDNN's gradient does not take.
LENGTH = 131
TOKENS = (np.arange(4 * LENGTH).reshape(4, LENGTH) * 7 % 61).astype(np.int32)
REAL = np.arange(LENGTH) >= np.array([[0], [40], [129], [7]])
SEGMENTS = np.broadcast_to(np.arange(LENGTH, dtype=np.int32) // 75, TOKENS.shape)
PAIRS = REAL[:, None] & np.tri(LENGTH, dtype=bool)

MIXED = config(
    layer(replace(ATTENTION, num_kv_heads=1, window=90, softcap=2.0, sinks=True)),
    layer(LATENT),
)
CHUNKED = replace(ATTENTION, chunk=50)

TPU = Call(platform="tpu", dtype=jnp.dtype(jnp.bfloat16), length=2048)
GPU = replace(TPU, platform="gpu")


def decoder(config: DecoderConfig) -> Decoder:
    return build(config, jnp.float32, {path: jnp.asarray(array) for path, array in weights(config).items()})


def loss_and_gradient(model: Decoder, attention: str, **kwargs: Any) -> tuple[Any, Any]:
    """The loss of the tokens that are real, their logits, and the loss's gradient."""
    model.attention = attention  # type: ignore[assignment]
    graphdef, state = nnx.split(model)

    def loss(state: Any, kwargs: Any) -> tuple[jax.Array, jax.Array]:
        logits, _ = nnx.merge(graphdef, state)(TOKENS, **kwargs)
        logits = jnp.where(REAL[..., None], logits, 0)
        return jnp.mean(jax.nn.log_softmax(logits) * np.sin(np.arange(64))), logits

    ((_, logits), gradient) = jax.jit(jax.value_and_grad(loss, has_aux=True))(state, kwargs)
    return logits, gradient


@pytest.mark.parametrize(
    ("config", "kwargs", "axis_type"),
    [
        (MIXED, {"attention_mask": REAL, "segment_ids": SEGMENTS}, AxisType.Auto),
        (config(layer()), {"attention_mask": PAIRS}, AxisType.Explicit),
    ],
    ids=["padded and packed", "a mask of pairs"],
)
def test_splash_attention_is_dense_attention(
    config: DecoderConfig, kwargs: dict[str, Any], axis_type: AxisType
) -> None:
    logits, gradient = loss_and_gradient(decoder(config), "dense", **kwargs)
    on_mesh = by_rules(config, mesh_named("fsdp=4,tp=2", axis_type))
    same_logits, same_gradient = loss_and_gradient(on_mesh, "splash", **kwargs)
    np.testing.assert_allclose(same_logits, logits, atol=2e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), same_gradient, gradient)


def test_rules_alone_make_causal_attention_windows_and_chunks() -> None:
    model = decoder(config(layer(replace(CHUNKED, window=30))))
    model.attention = "splash"
    same = run(model, TOKENS)[0]
    model.attention = "dense"
    np.testing.assert_allclose(same, run(model, TOKENS)[0], atol=2e-5)


def lowered(model: Decoder, tokens: jax.Array, platform: str) -> str:
    """The program of the gradient, for a platform that need not be there."""
    graphdef, state = nnx.split(model)

    def loss(state: Any, tokens: jax.Array) -> jax.Array:
        return jnp.mean(nnx.merge(graphdef, state)(tokens)[0])

    return jax.jit(jax.grad(loss)).trace(state, tokens).lower(lowering_platforms=(platform,)).as_text()


def test_on_tpus_splash_attention_is_compiled_into_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")
    model = Decoder(config(layer(replace(ATTENTION, head_dim=64, softcap=3.0))), rngs=nnx.Rngs(0))
    program = lowered(model, jnp.zeros((2, 1000), jnp.int32), "tpu")
    # Forwards, of the queries, and of keys and values.
    assert program.count("tpu_custom_call") == 3
    assert "1000x1000" not in program


def test_on_gpus_cudnn_is_called_by_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(attention_kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(attention_kernels, "_compute_capability", lambda: (9, 0))
    model = Decoder(config(layer(replace(ATTENTION, window=100))), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    program = lowered(model, jnp.zeros((2, 1000), jnp.int32), "cuda")
    assert program.count("__cudnn$fmhaSoftmax(") == program.count("__cudnn$fmhaSoftmaxBackward(") == 1
    assert '"mask_type": "CAUSAL"' in program.replace("\\22", '"')
    assert '"sliding_window_length": 100' in program.replace("\\22", '"')
    assert "1000x1000" not in program


def test_inside_a_shard_map_that_checks_what_varies_attention_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")
    graphdef, state = nnx.split(Decoder(config(layer()), rngs=nnx.Rngs(0)))
    mesh, over = mesh_named("fsdp=4,tp=2", AxisType.Auto), PartitionSpec("fsdp")

    def program(check: bool, attention: str | None = None) -> str:
        def logits(state: Any, tokens: jax.Array) -> jax.Array:
            model = nnx.merge(graphdef, state)
            model.attention = attention  # type: ignore[assignment]
            return model(tokens)[0]

        places = (PartitionSpec(), over)
        sharded = jax.jit(jax.shard_map(logits, mesh=mesh, in_specs=places, out_specs=over, check_vma=check))
        return str(sharded.trace(state, jnp.zeros((4, 128), jnp.int32)).jaxpr)

    assert "pallas_call" in program(check=False)
    assert "pallas_call" not in program(check=True)
    with pytest.raises(InputError, match=r"layer 0: the jax.shard_map around it checks what varies"):
        program(check=True, attention="splash")


def halved(model: Decoder, attention: str) -> Decoder:
    """The model in bfloat16."""
    model.attention = attention  # type: ignore[assignment]
    nnx.update(model, jax.tree.map(lambda array: array.astype(jnp.bfloat16), nnx.state(model)))
    return model


def test_what_cudnn_is_called_with_makes_dense_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(attention_kernels, "_compute_capability", lambda: (9, 0))
    computed = jax.nn.dot_product_attention
    calls = []

    def without_gpu(*args: Any, implementation: str, **kwargs: Any) -> jax.Array:
        assert {array.shape[1] % 2 for array in args} == {0}
        calls.append(implementation)
        return computed(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_gpu)
    inputs: list[dict[str, Any]] = [
        {},
        {"attention_mask": REAL},
        {"segment_ids": SEGMENTS},
        # Tokens see some that come after them, too.
        {"attention_mask": PAIRS | (np.arange(LENGTH) // 8 == 8)},
    ]
    windowed = config(layer(replace(ATTENTION, window=90)), layer())

    @nnx.jit
    def logits(model: Decoder, inputs: list[dict[str, Any]]) -> list[jax.Array]:
        return [jnp.where(REAL[..., None], model(TOKENS, **each)[0], 0) for each in inputs]

    expected = logits(halved(decoder(windowed), "dense"), inputs)
    on_mesh = halved(by_rules(windowed, mesh_named("fsdp=4,tp=2", AxisType.Auto)), "cudnn")
    for each, same, dense in zip(inputs, logits(on_mesh, inputs), expected, strict=True):
        np.testing.assert_allclose(same, dense, atol=0.3, err_msg=str(list(each)))
    assert calls == ["cudnn"] * 2 * len(inputs)
    # What qwix and Tunix call it with for a trial is nothing that it refuses.
    nnx.eval_shape(lambda model: model(**model.get_model_input())[0], on_mesh)
    assert len(calls) == 2 * len(inputs) + 2


@pytest.mark.parametrize(
    ("mixer", "call", "kernel"),
    [
        (ATTENTION, TPU, "splash"),
        (ATTENTION, replace(TPU, length=100), "dense"),
        (ATTENTION, replace(TPU, has_cache=True), "dense"),
        (CHUNKED, TPU, "splash"),
        (CHUNKED, replace(TPU, has_padding=True), "dense"),
        (LATENT, TPU, "splash"),
        (ATTENTION, GPU, "cudnn"),
        (ATTENTION, replace(GPU, dtype=jnp.dtype(jnp.float32)), "dense"),
        (ATTENTION, replace(TPU, is_checked=True), "dense"),
        (replace(ATTENTION, window=90), GPU, "cudnn"),
        (ATTENTION, replace(GPU, has_padding=True), "dense"),
        (ATTENTION, replace(GPU, has_segments=True), "dense"),
        (ATTENTION, replace(GPU, has_pairs=True), "dense"),
        (CHUNKED, GPU, "dense"),
        (replace(ATTENTION, head_dim=256), GPU, "cudnn"),
        (replace(ATTENTION, head_dim=512), GPU, "dense"),
        (replace(ATTENTION, softcap=2.0), GPU, "dense"),
        (replace(ATTENTION, sinks=True), GPU, "dense"),
        (LATENT, GPU, "dense"),
        (ATTENTION, replace(TPU, platform="cpu"), "dense"),
    ],
)
def test_a_layer_is_computed_by_the_kernel_of_the_platform_that_can(
    mixer: Any, call: Call, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "_compute_capability", lambda: (9, 0))
    assert chosen(None, mixer, call) == kernel


def test_the_platform_is_that_of_the_mesh_or_the_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"device_kind": "TPU v5 lite", "num_cores": 1, "platform": "tpu"}
    known = getattr(jax.sharding.AbstractDevice, "__dataclass_fields__", fields)
    device = jax.sharding.AbstractDevice(**{name: value for name, value in fields.items() if name in known})
    assert attention_kernels.platform() == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert attention_kernels.platform() == "gpu"
    for default in ("cpu", jax.devices("cpu")[0]):
        with jax.default_device(default):
            assert attention_kernels.platform() == "cpu"
    with jax.sharding.use_abstract_mesh(AbstractMesh((2,), ("fsdp",), abstract_device=device)):
        assert attention_kernels.platform() == "tpu"


def test_the_platform_is_that_of_arrays_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")
    model, seen = decoder(config(layer())), []
    real = attention_kernels.chosen

    def chosen_for(name: Any, mixer: Any, call: Call) -> Any:
        seen.append(call.platform)
        return real(name, mixer, call)

    monkeypatch.setattr(attention_kernels, "chosen", chosen_for)
    model(TOKENS[:, :2])
    nnx.eval_shape(lambda model: model(TOKENS)[0], model)
    assert seen == ["cpu", "tpu"]


@pytest.mark.parametrize(
    ("config", "attention", "kwargs", "message"),
    [
        (CONFIGS["gemma2"], "cudnn", {}, "attention='cudnn' cannot compute layer 0: cuDNN's kernel has no soft cap"),
        (CONFIGS["deepseek_v32"], "splash", {}, "layer 0: it attends to keys that an indexer selects"),
        (
            config(layer(), layer(CHUNKED)),
            "splash",
            {"attention_mask": REAL},
            "layer 1: its chunks start where padding",
        ),
        (CONFIGS["plain"], "cudnn", {}, "layer 0: cuDNN is for NVIDIA's GPUs, and the model lies on a cpu"),
        (CONFIGS["plain"], "flash", {}, "attention='flash': give None, 'dense', 'cudnn', 'splash'"),
    ],
)
def test_what_cannot_compute_a_layer_is_refused(
    config: DecoderConfig, attention: str, kwargs: dict[str, Any], message: str
) -> None:
    model = decoder(config)
    model.attention = attention  # type: ignore[assignment]
    with pytest.raises(InputError, match=message):
        run(model, TOKENS, **kwargs)
