import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoders import EXPERTS

from lazyload.architecture import Experts
from lazyload.models.moe import MixtureOfExperts
from lazyload.models.parameters import Parameters
from lazyload.models.routing import route


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(moe, x, weights, chosen):
    """Every token through each of its experts, one after the other."""
    projections = {name: getattr(moe, f"{name}_proj") for name in ("gate", "up", "down")}
    kernel = {name: np.asarray(projection.kernel[...], np.float64) for name, projection in projections.items()}
    bias = {
        name: np.zeros(kernel[name].shape[::2]) if projection.bias is None else projection.bias[...]
        for name, projection in projections.items()
    }
    y = np.zeros(x.shape)
    for b, t in np.ndindex(*x.shape[:2]):
        for weight, expert in zip(weights[b, t], chosen[b, t], strict=True):
            before, after = (weight, 1) if moe.block.weighted_inputs else (1, weight)
            gate, up = (x[b, t] * before @ kernel[name][expert] + bias[name][expert] for name in ("gate", "up"))
            if moe.block.clamped_swiglu:
                alpha, limit = moe.block.clamped_swiglu
                gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
                hidden = gate * sigmoid(alpha * gate) * (up + 1)
            else:
                hidden = gate * sigmoid(gate) * up
            y[b, t] += after * (hidden @ kernel["down"][expert] + bias["down"][expert])
    return y


def mixture(experts):
    sizes = {"embed": 12, **experts.axes}
    moe = MixtureOfExperts(experts, Parameters(experts.parameters, sizes, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    for projection in (moe.gate_proj, moe.up_proj, moe.down_proj):
        if projection.bias is not None:
            projection.bias[...] = jnp.asarray(random.normal(size=projection.bias.shape), jnp.float32)
    return moe


@pytest.mark.parametrize(
    "experts",
    [
        EXPERTS,
        Experts(num_experts=8, num_selected=3, mlp_dim=16, bias=True, clamped_swiglu=(1.702, 0.7)),
        Experts(num_experts=8, num_selected=8, mlp_dim=16),
        Experts(num_experts=8, num_selected=2, mlp_dim=16, scores="sigmoid", normalize=False, weighted_inputs=True),
    ],
)
def test_grouped_products_equal_one_expert_at_a_time(experts):
    moe = mixture(experts)
    x = np.random.default_rng(1).normal(size=(2, 5, 12)).astype(np.float32)
    weights, chosen = moe._route(jnp.asarray(x))
    np.testing.assert_allclose(moe(jnp.asarray(x)), reference(moe, x, weights, chosen), atol=1e-5)


def test_the_gradient_is_that_of_the_dense_sum():
    moe = mixture(EXPERTS)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 6, 12)), jnp.float32)
    weights, chosen = moe._route(x)

    def grouped(moe):
        return jnp.sum(moe._run_experts(x, weights, chosen) ** 2)

    up, down, gate = moe.up_proj.kernel[...], moe.down_proj.kernel[...], moe.gate_proj.kernel[...]

    def dense(kernel):
        hidden = jax.nn.silu(jnp.einsum("btd,edf->btef", x, kernel)) * jnp.einsum("btd,edf->btef", x, up)
        every = jnp.einsum("btef,efd->bted", hidden, down)
        share = jnp.sum(jax.nn.one_hot(chosen, 8) * weights[..., None], axis=2)
        return jnp.sum(jnp.einsum("bted,bte->btd", every, share) ** 2)

    found = nnx.grad(grouped)(moe).gate_proj.kernel[...]
    np.testing.assert_allclose(found, jax.grad(dense)(gate), atol=1e-4)


def numpy_route(logits, experts, bias):
    """Token by token, with sorting in place of top-k."""
    all_weights, all_chosen = [], []
    for row in logits.astype(np.float64):
        exponents = np.exp(row - row.max())
        scores = sigmoid(row) if experts.scores == "sigmoid" else exponents / exponents.sum()
        preference = scores + (0 if bias is None else bias)
        groups = preference.reshape(experts.num_groups, -1)
        members = 2 if experts.group_score == "top2" else 1
        best = np.argsort(-np.sort(groups, axis=1)[:, -members:].sum(axis=1))[: experts.num_selected_groups]
        allowed = np.isin(np.arange(experts.num_groups), best).repeat(groups.shape[1])
        chosen = np.argsort(np.where(allowed, -preference, np.inf))[: experts.num_selected]
        weights = scores[chosen]
        if experts.normalize or experts.scores == "topk_softmax":
            weights = weights / weights.sum()
        all_weights.append(weights * experts.scale)
        all_chosen.append(chosen)
    return np.array(all_weights), np.array(all_chosen)


@given(
    experts=st.builds(
        Experts,
        num_experts=st.just(12),
        num_selected=st.integers(1, 4),
        mlp_dim=st.just(1),
        scores=st.sampled_from(["softmax", "sigmoid"]),
        normalize=st.booleans(),
        scale=st.sampled_from([1.0, 2.5]),
        group_score=st.sampled_from(["max", "top2"]),
    ),
    groups=st.sampled_from([(1, 1), (3, 1), (3, 2), (3, 3)]),
    biased=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=50)
def test_routing(experts, groups, biased, seed):
    experts = dataclasses.replace(experts, num_groups=groups[0], num_selected_groups=groups[1])
    random = np.random.default_rng(seed)
    logits = random.normal(size=(5, 12)).astype(np.float32)
    bias = random.normal(size=12).astype(np.float32) if biased else None
    weights, chosen = route(jnp.asarray(logits), experts, bias)
    expected_weights, expected_chosen = numpy_route(logits, experts, bias)
    np.testing.assert_array_equal(chosen, expected_chosen)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-5)


def test_routing_one_after_the_other():
    """Each of the two experts has its share among those whose score is not much worse than its own."""
    experts = Experts(num_experts=5, num_selected=2, mlp_dim=1, scores="sparsemixer", margin=0.1)
    logits = np.array([[1.0, 2.0, -3.0, 1.7, 0.2], [-1.0, -1.1, -4.0, -1.3, -0.9]], np.float32)
    weights, chosen = route(jnp.asarray(logits), experts, None)
    np.testing.assert_array_equal(chosen, [[1, 3], [4, 0]])
    first = [1 / (1 + np.exp(-0.3)), 1 / (1 + np.exp(-0.1) + np.exp(-0.2))]
    second = [1.0, 1 / (1 + np.exp(-0.1))]
    np.testing.assert_allclose(weights, np.stack([first, second], axis=1), rtol=1e-5)


def test_weights_are_divided_by_no_less_than_the_least_sum():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 12)), jnp.float32)
    experts = Experts(num_experts=12, num_selected=3, mlp_dim=1, normalize=False)
    plain, _ = route(logits, experts, None)
    bounded, _ = route(logits, dataclasses.replace(experts, normalize=True, least_sum=0.5), None)
    expected = plain / np.maximum(np.sum(plain, axis=-1, keepdims=True), 0.5)
    assert (np.sum(plain, axis=-1) < 0.5).any()
    np.testing.assert_allclose(bounded, expected, rtol=1e-5)


def test_routing_by_the_softmax_of_the_selected():
    experts = Experts(num_experts=12, num_selected=3, mlp_dim=1, scores="topk_softmax")
    logits = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    weights, chosen = route(jnp.asarray(logits), experts, None)
    expected_weights, expected_chosen = numpy_route(logits, experts, None)
    np.testing.assert_array_equal(chosen, expected_chosen)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-5)
