import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from lazyload.models.gated_delta_net import causal_conv, gated_delta_rule

LENGTHS = [1, 5, 64, 65, 200]
COLLECTIVES = re.compile(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")
rule = jax.jit(gated_delta_rule)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def inputs(length, *, batch=2, key_heads=2, value_heads=6, key_dim=16, value_dim=24):
    """Keys that resemble each other, and heads that forget as slowly and as fast as those of Qwen3-Next."""
    rate = np.linspace(0.01, 16, value_heads, dtype=np.float32)
    return {
        "query": normal(0, batch, length, key_heads, key_dim),
        "key": normal(1, batch, length, key_heads, key_dim) + 0.5,
        "value": normal(2, batch, length, value_heads, value_dim),
        "log_decay": -rate * np.log1p(np.exp(normal(3, batch, length, value_heads) - 2)),
        "beta": sigmoid(normal(4, batch, length, value_heads) + 1),
        "state": normal(5, batch, value_heads, key_dim, value_dim),
    }


def recurrence(query, key, value, log_decay, beta, state):
    """The rule token by token."""
    group = value.shape[2] // key.shape[2]
    query, key = (
        jnp.repeat(x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-6), group, axis=2) for x in (query, key)
    )

    def step(state, token):
        query, key, value, log_decay, beta = token
        state = jnp.exp(log_decay)[..., None, None] * state
        error = value - jnp.sum(key[..., None] * state, axis=-2)
        state += beta[..., None, None] * key[..., None] * error[..., None, :]
        return state, jnp.sum(query[..., None] * state, axis=-2) * query.shape[-1] ** -0.5

    tokens = [jnp.moveaxis(x, 1, 0) for x in (query, key, value, log_decay, beta)]
    state, outputs = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(outputs, 0, 1), state


def tokens_between(arrays, start, stop):
    return {name: x if name == "state" else x[:, start:stop] for name, x in arrays.items()}


def padded(x, left, right):
    """Each row of `x`, between rows of nonsense as long as `left` and `right` say for it."""
    total = max(a + b for a, b in zip(left, right, strict=True)) + x.shape[1]
    y = normal(9, x.shape[0], total, *x.shape[2:])
    for row, start in enumerate(left):
        y[row, start : start + x.shape[1]] = x[row]
    return y


def assert_close(found, expected, atol=5e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_equal_the_recurrence(length):
    arrays = inputs(length)
    assert_close(rule(**arrays), recurrence(**arrays), atol=2e-5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_the_rule_is_that_of_transformers(name, length):
    torch = pytest.importorskip("torch")
    qwen3_next = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    arrays = inputs(length)
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    expected = getattr(qwen3_next, name)(
        *(tensors[name] for name in ("query", "key", "value")),
        g=tensors["log_decay"],
        beta=tensors["beta"],
        initial_state=tensors["state"],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    assert_close(rule(**arrays), [x.numpy() for x in expected], atol=2e-5)


def test_equal_keys_fully_corrected_leave_the_last_value():
    """The worst triangular system: every coefficient is 1."""
    arrays = inputs(128, batch=1)
    arrays["key"] = np.broadcast_to(arrays["key"][:, :1], arrays["key"].shape)
    arrays |= {"log_decay": np.zeros_like(arrays["log_decay"]), "beta": np.ones_like(arrays["beta"])}
    arrays["query"] = arrays["key"]
    outputs, _ = rule(**arrays)
    np.testing.assert_allclose(outputs * 16**0.5, arrays["value"], atol=2e-5)


@pytest.mark.parametrize("split", [0, 1, 6, 64, 69, 70])
def test_a_sequence_may_be_split_anywhere(split):
    arrays = inputs(70)
    outputs, state = rule(**arrays)
    first, between = rule(**tokens_between(arrays, 0, split))
    second, end = rule(**tokens_between(arrays, split, 70) | {"state": between})
    assert_close([np.concatenate([first, second], axis=1), end], [outputs, state])


def test_no_state_is_a_state_of_zeros():
    arrays = inputs(5)
    expected = rule(**arrays | {"state": np.zeros_like(arrays["state"])})
    del arrays["state"]
    assert_close(rule(**arrays), expected, atol=0)


@pytest.mark.parametrize(("left", "right"), [((3, 70), (0, 0)), ((0, 0), (70, 3)), ((60, 1), (2, 80))])
def test_padding_changes_no_row(left, right):
    arrays = inputs(66)
    outputs, state = rule(**arrays)
    filled = {name: x if name == "state" else padded(x, left, right) for name, x in arrays.items()}
    real = padded(np.ones((2, 66), np.float32), left, right) == 1
    found, end = rule(**filled, real=real)
    assert_close([found[real], end], [outputs.reshape(found[real].shape), state])


def test_a_row_of_padding_keeps_its_state():
    arrays = inputs(7)
    _, state = rule(**arrays, real=np.zeros((2, 7), bool))
    np.testing.assert_array_equal(state, arrays["state"])


@pytest.mark.parametrize("length", [1, 70])
def test_gradients_are_those_of_the_recurrence(length):
    def loss(function):
        def weighted(arrays):
            outputs, state = function(**arrays)
            return jnp.sum(outputs * normal(6, *outputs.shape)) + jnp.sum(state * normal(7, *state.shape))

        return jax.jit(jax.grad(weighted))

    arrays = inputs(length)
    found, expected = loss(gated_delta_rule)(arrays), loss(recurrence)(arrays)
    for name in arrays:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5 * scale, err_msg=name)


def test_gradients_are_the_slopes():
    arrays = inputs(20, batch=1, key_heads=1, value_heads=2, key_dim=4, value_dim=4)
    check_grads(lambda arrays: rule(**arrays), (arrays,), order=1, modes=("fwd", "rev"), atol=0.02, rtol=0.02)


def test_gradients_are_finite_where_everything_is_forgotten():
    arrays = inputs(130)
    arrays["log_decay"] = np.full_like(arrays["log_decay"], -50)
    arrays["key"] = np.zeros_like(arrays["key"])
    gradients = jax.jit(jax.grad(lambda arrays: sum(jnp.sum(x) for x in rule(**arrays))))(arrays)
    assert all(np.isfinite(x).all() for x in gradients.values())
    assert np.abs(gradients["value"]).max() == 0
    assert np.abs(gradients["key"]).max() > 0


def test_no_tokens():
    arrays = inputs(0, batch=1)
    outputs, state = rule(**arrays)
    assert outputs.shape == (1, 0, 6, 24)
    np.testing.assert_array_equal(state, arrays["state"])


def test_bfloat16_comes_out_as_bfloat16_and_the_state_as_float32():
    arrays = inputs(65, batch=1)
    expected = rule(**arrays)
    narrow = {name: x if name == "state" else jnp.asarray(x, jnp.bfloat16) for name, x in arrays.items()}
    found = rule(**narrow)
    assert [x.dtype for x in found] == [jnp.bfloat16, jnp.float32]
    assert_close([found[0].astype(jnp.float32), found[1]], expected, atol=0.05)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("length", [0, 1, 2, 9])
def test_the_convolution_looks_back(width, length):
    x, kernel, state = normal(0, 2, length, 3), normal(1, width, 3), normal(2, 2, width - 1, 3)
    before = np.concatenate([state, x], axis=1)
    y, last = causal_conv(x, kernel, state)
    expected = [np.sum(before[:, t : t + width] * kernel, axis=1) for t in range(length)]
    np.testing.assert_allclose(y, np.stack(expected, axis=1) if expected else x, atol=1e-6)
    np.testing.assert_array_equal(last, before[:, length:])


def test_the_convolution_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    qwen3_next = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    x, kernel = normal(0, 2, 9, 3), normal(1, 4, 3)
    expected = qwen3_next.causal_conv1d_fn(torch.from_numpy(x).mT, torch.from_numpy(kernel).T)
    np.testing.assert_allclose(causal_conv(x, kernel)[0], expected.mT.numpy(), atol=1e-6)


@pytest.mark.parametrize("split", range(8))
def test_a_convolved_sequence_may_be_split_anywhere(split):
    x, kernel = normal(0, 2, 7, 3), normal(1, 4, 3)
    whole, end = causal_conv(x, kernel)
    first, between = causal_conv(x[:, :split], kernel)
    second, last = causal_conv(x[:, split:], kernel, between)
    assert_close([np.concatenate([first, second], axis=1), last], [whole, end], atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 6])
@pytest.mark.parametrize(("left", "right"), [((3, 0), (0, 3)), ((5, 1), (0, 0)), ((1, 0), (2, 4))])
def test_padding_changes_no_convolved_row(left, right, length):
    x, kernel, state = normal(0, 2, length, 3), normal(1, 4, 3), normal(2, 2, 3, 3)
    real = padded(np.ones((2, length), np.float32), left, right) == 1
    for before in (None, state):
        y, last = causal_conv(x, kernel, before)
        found, end = causal_conv(padded(x, left, right), kernel, before, real)
        np.testing.assert_array_equal(end, last)
        np.testing.assert_allclose(found[real], y.reshape(-1, 3), atol=1e-6)


def test_a_row_of_padding_keeps_the_state_of_its_convolution():
    state = normal(2, 2, 3, 3)
    _, last = causal_conv(normal(0, 2, 5, 3), normal(1, 4, 3), state, np.zeros((2, 5), bool))
    np.testing.assert_array_equal(last, state)


def test_the_state_of_the_convolution_keeps_its_dtype():
    y, last = causal_conv(jnp.ones((1, 2, 3), jnp.bfloat16), jnp.ones((4, 3)), jnp.zeros((1, 3, 3)))
    assert (y.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("is_padded", [False, True])
def test_sharded_heads_exchange_nothing(is_padded):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)

    def shard(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def run(arrays, x, kernel, state, real):
        return gated_delta_rule(**arrays, real=real), causal_conv(x, kernel, state, real)

    whole = inputs(130, batch=4), normal(6, 4, 130, 8), normal(7, 4, 8), normal(8, 4, 3, 8)
    real = np.arange(130) >= np.arange(4)[:, None] if is_padded else None
    arrays, x, kernel, state = whole
    sharded = (
        {name: shard(x, "fsdp", *(("tp",) if name == "state" else (None, "tp"))) for name, x in arrays.items()},
        shard(x, "fsdp", None, "tp"),
        shard(kernel, None, "tp"),
        shard(state, "fsdp", None, "tp"),
    )
    compiled = jax.jit(run).lower(*sharded, real).compile()
    assert not COLLECTIVES.findall(compiled.as_text())
    found = compiled(*sharded, real)
    assert_close(jax.tree.leaves(found), jax.tree.leaves(jax.jit(run)(*whole, real)))
    (_, state), (_, last) = found
    assert state.sharding.spec == PartitionSpec("fsdp", "tp")
    assert last.sharding.spec == PartitionSpec("fsdp", None, "tp")
