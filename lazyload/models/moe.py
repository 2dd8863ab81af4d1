"""The mixture of experts: tokens sorted by expert, grouped matrix products, experts spread over the mesh.

On a mesh the experts run inside `jax.shard_map`. A device holds its own experts (and its part of their width), works
on the tokens of its data shard that chose them, and the parts are summed. No device ever holds all experts; along
the axes that shard experts or their width the tokens are replicated, along all others they stay apart.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike

from lazyload.architecture import Experts
from lazyload.models.activations import value_of
from lazyload.models.meshes import usable
from lazyload.models.mlp import ACTIVATIONS, MLP, cut_off
from lazyload.models.norm import RMSNorm
from lazyload.models.parameters import Constant, Parameters, computed, partition
from lazyload.models.projection import Projection
from lazyload.models.routing import route


class ExpertProjection(nnx.Module):
    """One linear map an expert: `kernel` is `[expert, input, output]`, `bias` `[expert, output]` or None."""

    axes: tuple[str, ...]
    kernel: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array] | None
    compute_dtype: DTypeLike | None

    def __init__(self, parameters: Parameters):
        zeros = nnx.initializers.zeros_init()
        self.axes = parameters.axes("kernel")
        self.kernel = parameters.declare("kernel", nnx.initializers.lecun_normal(batch_axis=0))
        self.bias = parameters.declare("bias", zeros) if "bias" in parameters else None
        self.compute_dtype = parameters.compute_dtype("kernel")


class _Weights(NamedTuple):
    """The experts' weights, whole or a device's part of them; or in place of each array its `PartitionSpec`."""

    gate: Any | None
    up: Any
    down: Any
    gate_bias: Any = None
    up_bias: Any = None
    down_bias: Any = None


class MixtureOfExperts(nnx.Module):
    """Routed experts, and optionally a shared one that sees every token."""

    router: Projection
    router_norm: RMSNorm
    expert_scale: nnx.Param[jax.Array]
    selection_bias: nnx.Param[jax.Array]
    token_experts: Constant
    gate_proj: ExpertProjection | None
    up_proj: ExpertProjection
    down_proj: ExpertProjection
    latent_in_proj: Projection
    latent_out_proj: Projection
    shared_experts: MLP
    shared_gate: Projection

    def __init__(self, block: Experts, parameters: Parameters):
        self.block = block
        self.router = Projection(parameters["router"])
        if block.router_norm is not None:
            self.router_norm = RMSNorm(parameters["router_norm"], block.router_norm)
        if block.expert_scale:
            self.expert_scale = parameters.declare("expert_scale", nnx.initializers.ones_init())
        if block.selection_bias:
            self.selection_bias = parameters.declare("selection_bias", nnx.initializers.zeros_init())
        if block.by_token:
            self.token_experts = parameters.constant("token_experts")
        self.gate_proj = ExpertProjection(parameters["gate_proj"]) if block.gated else None
        self.up_proj = ExpertProjection(parameters["up_proj"])
        self.down_proj = ExpertProjection(parameters["down_proj"])
        if block.latent_dim is not None:
            self.latent_in_proj = Projection(parameters["latent_in_proj"])
            self.latent_out_proj = Projection(parameters["latent_out_proj"])
        if block.shared is not None:
            self.shared_experts = MLP(block.shared, parameters["shared_experts"])
        if block.shared_gate:
            self.shared_gate = Projection(parameters["shared_gate"])

    def __call__(self, x: jax.Array, routed_by: jax.Array | None = None, tokens: jax.Array | None = None) -> jax.Array:
        """`[batch, length, embed]` to the same. Routing, and the sum over a token's experts, are in float32.

        Args:
            x: The tokens' vectors.
            routed_by: What the router decides by, of the same shape; None for `x`.
            tokens: Which tokens they are, int32 `[batch, length]`, for experts that are chosen by that.
        """
        weights, chosen = self._route(x if routed_by is None else routed_by, tokens)
        latent = self.block.latent_dim is not None
        y = self._run_experts(self.latent_in_proj(x) if latent else x, weights, chosen).astype(x.dtype)
        if latent:
            y = self.latent_out_proj(y)
        if self.block.shared is None:
            return y
        shared = self.shared_experts(x)
        if self.block.shared_gate:
            shared = shared * jax.nn.sigmoid(self.shared_gate(x))
        return y + shared

    def _route(self, x: jax.Array, tokens: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        batch, length, embed = x.shape
        flat = x.reshape(batch * length, embed).astype(jnp.float32)
        if self.block.router_norm is not None:
            flat = self.router_norm(flat) * embed**-0.5
        logits = flat @ self.router.kernel[...].astype(jnp.float32)
        if self.router.bias is not None:
            logits = logits + value_of(self.router.bias).astype(jnp.float32)
        selection_bias = value_of(self.selection_bias).astype(jnp.float32) if self.block.selection_bias else None
        known = None
        if self.block.by_token:
            assert tokens is not None  # the layer passes them
            known = jnp.take(self.token_experts[...], tokens.reshape(-1), axis=0)
        weights, chosen = route(logits, self.block, selection_bias, known)
        if self.block.expert_scale:
            weights = weights * value_of(self.expert_scale).astype(jnp.float32)[chosen]
        return weights.reshape(batch, length, -1), chosen.reshape(batch, length, -1)

    def _run_experts(self, x: jax.Array, weights: jax.Array, chosen: jax.Array) -> jax.Array:
        projections = (self.gate_proj, self.up_proj, self.down_proj)
        parts = _Weights(
            *(projection and computed(projection.kernel, projection.compute_dtype) for projection in projections),
            *(
                computed(projection.bias, projection.compute_dtype)
                for projection in projections
                if projection and projection.bias is not None
            ),
        )
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or AxisType.Manual in mesh.axis_types:
            return self._run_local(x, weights, chosen, parts, (), ())
        expert_axis, _, width_axis = partition(self.up_proj.kernel, self.up_proj.axes)
        expert = usable(mesh, expert_axis, parts.up.shape[0])
        width = tuple(axis for axis in usable(mesh, width_axis, parts.up.shape[2]) if axis not in expert)
        rest = tuple(axis for axis in mesh.axis_names if axis not in expert + width)
        tokens = PartitionSpec(usable(mesh, rest, x.shape[0]) or None)
        e, w = expert or None, width or None
        inner, outer = PartitionSpec(e, None, w), PartitionSpec(e, w)
        specs = _Weights(None if parts.gate is None else inner, inner, outer)
        if parts.gate_bias is not None:
            specs = _Weights(inner, inner, outer, outer, outer, PartitionSpec(e))

        def on_device(x: jax.Array, weights: jax.Array, chosen: jax.Array, parts: _Weights) -> jax.Array:
            part = self._run_local(x, weights, chosen, parts, expert, width)
            return jnp.asarray(jax.lax.psum(part, expert + width))

        # With varying axes checked, JAX 0.8 to 0.12 lose part of the tokens' gradient through `ragged_dot`.
        mapped = jax.shard_map(on_device, in_specs=(tokens, tokens, tokens, specs), out_specs=tokens, check_vma=False)
        return mapped(x, weights, chosen, parts)

    def _run_local(
        self,
        x: jax.Array,
        weights: jax.Array,
        chosen: jax.Array,
        parts: _Weights,
        expert: tuple[str, ...],
        width: tuple[str, ...],
    ) -> jax.Array:
        """What the experts in `parts` add to their tokens, float32 `[batch, length, embed]`.

        Args:
            x: The tokens, `[batch, length, embed]`.
            weights: float32 `[batch, length, selected]`.
            chosen: Which of all experts, int32 `[batch, length, selected]`.
            parts: The experts at hand.
            expert: The mesh axes that shard the experts.
            width: The mesh axes that shard the experts' width.
        """
        count, selected = parts.up.shape[0], chosen.shape[-1]
        first = jax.lax.axis_index(expert) * count if expert else 0
        numbers = chosen.reshape(-1) - first
        here = (numbers >= 0) & (numbers < count)
        numbers = jnp.where(here, numbers, count)
        order = jnp.argsort(numbers)
        group_sizes = jnp.bincount(numbers, length=count).astype(jnp.int32)
        # Rows of experts that are elsewhere lie behind the last group; what is computed for them is dropped below.
        owners = jnp.minimum(numbers[order], count - 1)
        tokens = x.reshape(-1, x.shape[-1])[order // selected]
        if self.block.weighted_inputs:
            tokens, weights = tokens * weights.reshape(-1)[order][:, None].astype(x.dtype), jnp.ones_like(weights)
        up = _grouped(tokens, parts.up, group_sizes, parts.up_bias, owners)
        if parts.gate is None:
            inner = ACTIVATIONS[self.block.activation](up)
        else:
            inner = self._gated(_grouped(tokens, parts.gate, group_sizes, parts.gate_bias, owners), up)
        down_bias = parts.down_bias
        if down_bias is not None and width:
            # Every device along the width adds its part of the product; the bias must be added once.
            down_bias = jnp.where(jax.lax.axis_index(width) == 0, down_bias, 0)
        y = _grouped(inner, parts.down, group_sizes, down_bias, owners)
        y = jnp.where(here[order][:, None], y, 0)[jnp.argsort(order)].reshape(*chosen.shape, -1)
        return jnp.einsum("btkd,btk->btd", y.astype(jnp.float32), weights)

    def _gated(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        if self.block.clamped_swiglu is None:
            gate, up = cut_off(gate, up, self.block.limit)
            return ACTIVATIONS[self.block.activation](gate) * up
        alpha, limit = self.block.clamped_swiglu
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
        return gate * jax.nn.sigmoid(alpha * gate) * (up + 1)


def _grouped(
    rows: jax.Array, kernels: jax.Array, group_sizes: jax.Array, bias: jax.Array | None, owners: jax.Array
) -> jax.Array:
    """Each row times its expert's kernel; the rows are sorted by expert, `owners` names each row's.

    As in `Projection`, the dtype of the parameters may be another one.
    """
    wide = jnp.promote_types(rows.dtype, kernels.dtype)
    product = jax.lax.ragged_dot(rows.astype(wide), kernels.astype(wide), group_sizes)
    return (product if bias is None else product + bias[owners]).astype(rows.dtype)
