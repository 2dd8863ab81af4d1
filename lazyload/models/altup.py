"""AltUp, alternating updates (https://arxiv.org/abs/2301.13310): a residual stream of several, of which layers see one.

Streams are `[batch, length, stream, embed]`. In the einsums: b batch, t token, s stream, r stream that is read, d and e
embed.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lazyload import architecture
from lazyload.models.norm import RMSNorm
from lazyload.models.parameters import Parameters, computed
from lazyload.models.projection import Projection

_LEAST_MEAN_SQUARE = 1e-5


class AltUp(nnx.Module):
    """What a layer does with the streams around its blocks."""

    router_norm: RMSNorm
    modality_router: Projection
    prediction_coefs: Projection
    correction_coefs: Projection
    output_scale: nnx.Param[jax.Array]

    def __init__(self, block: architecture.AltUp, parameters: Parameters):
        self.block = block
        self.router_norm = RMSNorm(parameters["router_norm"], block.norm)
        self.modality_router = Projection(parameters["modality_router"])
        self.prediction_coefs = Projection(parameters["prediction_coefs"])
        self.correction_coefs = Projection(parameters["correction_coefs"])
        if block.scaled:
            self.output_scale = parameters.declare("output_scale", nnx.initializers.ones_init())

    def predict(self, streams: jax.Array) -> jax.Array:
        """The streams as they are expected to be after the layer, each a mixture of all of them."""
        coefficients = self.prediction_coefs(self._modalities(self.active(streams)))
        return streams + jnp.einsum("btsr,btrd->btsd", coefficients, streams)

    def active(self, streams: jax.Array) -> jax.Array:
        """The stream that the layer's blocks work on, `[batch, length, embed]`."""
        return streams[:, :, self.block.active]

    def correct(self, predicted: jax.Array, activated: jax.Array) -> jax.Array:
        """The streams after the layer.

        Args:
            predicted: What `predict` expected.
            activated: What the layer's blocks made of the active one, `[batch, length, embed]`.
        """
        coefficients = self.correction_coefs(self._modalities(activated)) + 1
        surprise = activated - self.active(predicted)
        return predicted + coefficients[..., None] * surprise[:, :, None]

    def scaled(self, active: jax.Array) -> jax.Array:
        """The active stream, as the layer's own input is combined with it."""
        return active * self.output_scale[...].astype(active.dtype) if self.block.scaled else active

    def _modalities(self, x: jax.Array) -> jax.Array:
        """How much of each way of mixing, `[batch, length, modality]`."""
        routed = self.modality_router(self.router_norm(x) / x.shape[-1])
        return jnp.tanh(routed.astype(jnp.float32)).astype(x.dtype)


class AltUpStreams(nnx.Module):
    """The streams of the tokens' embeddings, and what the last layer leaves of them as one."""

    split: "StreamProjections"
    join: "StreamProjections"

    def __init__(self, block: architecture.AltUpStreams, parameters: Parameters):
        self.split = StreamProjections(parameters["split"])
        self.join = StreamProjections(parameters["join"])

    def spread(self, x: jax.Array) -> jax.Array:
        """`[batch, length, embed]` to the streams."""
        further = jnp.einsum("btd,sde->btse", x, self.split.value()).astype(x.dtype)
        first = x[:, :, None]
        return jnp.concatenate([first, _as_large_as(first, further)], axis=2)

    def gathered(self, streams: jax.Array) -> jax.Array:
        """The streams to `[batch, length, embed]`."""
        first, further = streams[:, :, :1], streams[:, :, 1:]
        further = jnp.einsum("btsd,sde->btse", further, self.join.value()).astype(streams.dtype)
        return jnp.mean(jnp.concatenate([first, _as_large_as(first, further)], axis=2), axis=2)


class StreamProjections(nnx.Module):
    """One linear map for each stream but the first: `kernel` is `[stream, input, output]`."""

    kernel: nnx.Param[jax.Array]
    compute_dtype: DTypeLike | None

    def __init__(self, parameters: Parameters):
        self.kernel = parameters.declare("kernel", nnx.initializers.lecun_normal(batch_axis=0))
        self.compute_dtype = parameters.compute_dtype("kernel")

    def value(self) -> jax.Array:
        """The kernel, as it is multiplied with."""
        return computed(self.kernel, self.compute_dtype)


def _as_large_as(first: jax.Array, further: jax.Array) -> jax.Array:
    """Streams, each with the root mean square that the first one has; in float32."""
    target, found = (
        jnp.mean(jnp.square(streams.astype(jnp.float32)), axis=-1, keepdims=True) for streams in (first, further)
    )
    return (further * jnp.sqrt(target / jnp.maximum(found, _LEAST_MEAN_SQUARE))).astype(further.dtype)
