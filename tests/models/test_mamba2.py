"""The state space model in chunks is the recurrence, however sequences are cut and padded; so are its gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from lazyload.models.mamba2 import state_space

COLLECTIVES = re.compile(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")
run = jax.jit(state_space)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(length, *, batch=2, heads=6, groups=2, head_dim=8, state_dim=10):
    """Heads that forget as slowly and as fast as those of Granite 4."""
    return {
        "x": normal(0, batch, length, heads, head_dim),
        "step": np.log1p(np.exp(normal(1, batch, length, heads) - 2)),
        "rate": -np.linspace(0.01, 16, heads, dtype=np.float32),
        "b": normal(2, batch, length, groups, state_dim),
        "c": normal(3, batch, length, groups, state_dim),
        "state": normal(4, batch, heads, head_dim, state_dim),
    }


def recurrence(x, step, rate, b, c, state):
    """Token by token."""
    b, c = (jnp.repeat(array, x.shape[2] // array.shape[2], axis=2) for array in (b, c))

    def one(state, token):
        x, step, b, c = token
        state = jnp.exp(step * rate)[..., None, None] * state + (step[..., None] * x)[..., None] * b[..., None, :]
        return state, jnp.sum(state * c[..., None, :], axis=-1)

    state, outputs = jax.lax.scan(one, state, [jnp.moveaxis(array, 1, 0) for array in (x, step, b, c)])
    return jnp.moveaxis(outputs, 0, 1), state


def between(arrays, start, stop):
    return {name: x if name in ("rate", "state") else x[:, start:stop] for name, x in arrays.items()}


def assert_close(found, expected, atol=5e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("length", [1, 5, 64, 65, 200])
def test_chunks_equal_the_recurrence(length):
    arrays = inputs(length)
    assert_close(run(**arrays), recurrence(**arrays), atol=2e-5)


@pytest.mark.parametrize("split", [0, 1, 64, 69, 70])
def test_a_sequence_may_be_split_anywhere(split):
    arrays = inputs(70)
    first, state = run(**between(arrays, 0, split))
    second, end = run(**between(arrays, split, 70) | {"state": state})
    whole, expected = run(**arrays)
    assert_close([np.concatenate([first, second], axis=1), end], [whole, expected], atol=2e-5)


def test_padding_leaves_the_state_alone():
    arrays = inputs(9)
    real = np.ones((2, 14), bool)
    real[0, :5], real[1, 9:] = False, False
    padded = {name: normal(7, 2, 14, *x.shape[2:]) for name, x in arrays.items() if name not in ("rate", "state")}
    for name, x in padded.items():
        x[real] = arrays[name].reshape(-1, *x.shape[2:])
    outputs, state = run(**arrays | padded | {"step": np.abs(padded["step"])}, real=real)
    expected, end = run(**arrays)
    assert_close([outputs[real].reshape(expected.shape), state], [expected, end], atol=2e-5)


def test_no_state_is_a_state_of_zeros():
    arrays = inputs(5)
    expected = run(**arrays | {"state": np.zeros_like(arrays["state"])})
    assert_close(run(**{name: x for name, x in arrays.items() if name != "state"}), expected)


def test_gradients_are_those_of_the_recurrence():
    arrays = inputs(70, batch=1, heads=2, groups=1, head_dim=3, state_dim=4)

    def loss(function, arrays):
        outputs, state = function(**arrays)
        return jnp.sum(jnp.sin(outputs)) + jnp.sum(jnp.cos(state))

    found, expected = (jax.jit(jax.grad(lambda a, f=f: loss(f, a)))(arrays) for f in (state_space, recurrence))
    for name in arrays:
        assert np.any(expected[name]), name
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, atol=2e-4, err_msg=name)
    short = inputs(3, batch=1, heads=2, groups=1, head_dim=2, state_dim=2)
    check_grads(lambda a: loss(state_space, a), (short,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_sharded_heads_need_no_exchange():
    mesh = jax.make_mesh((2,), ("tp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    axes = {"x": 2, "step": 2, "rate": 0, "b": 2, "c": 2, "state": 1}
    arrays = {
        name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*[None] * axes[name], "tp")))
        for name, x in inputs(70).items()
    }
    compiled = run.lower(**arrays).compile()
    assert not COLLECTIVES.search(compiled.as_text())
    assert_close(compiled(**arrays), run(**inputs(70)), atol=2e-5)
