"""Multi-head latent attention (DeepSeek V2, https://arxiv.org/abs/2405.04434, section 2.1)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lazyload.architecture.decoder import DecoderConfig, LatentAttention
from lazyload.models.attention import attend
from lazyload.models.kv_cache import LayerCache, append
from lazyload.models.norm import RMSNorm
from lazyload.models.projection import Projection
from lazyload.models.rope import Rotation, rotate

# DeepSeek's models fix the epsilon of the two inner norms, whatever `rms_norm_eps` is.
_INNER_EPS = 1e-6


class MultiHeadLatentAttention(nnx.Module):
    """Keys and values of all heads come from one latent vector a token, and from one rotated key shared by all heads.

    Without a cache the latents are expanded to keys and values. With one, the latents themselves are what is kept and
    attended to: the key part of `kv_b` is applied to the queries instead, the value part to what was attended.
    """

    def __init__(self, config: DecoderConfig, latent: LatentAttention, *, dtype: DTypeLike, rngs: nnx.Rngs | None):
        self.config = config
        self.latent = latent
        sizes = config.axes

        def project(inputs: tuple[str, ...], outputs: tuple[str, ...], *, bias: bool = False) -> Projection:
            return Projection(inputs, outputs, sizes, bias=bias, dtype=dtype, rngs=rngs)

        if latent.q_rank is None:
            self.q = project(("embed",), ("head", "qk_dim"))
        else:
            self.q_a = project(("embed",), ("q_rank",), bias=config.qkv_bias)
            self.q_a_norm = RMSNorm(("q_rank",), sizes, eps=_INNER_EPS, dtype=dtype, rngs=rngs)
            self.q_b = project(("q_rank",), ("head", "qk_dim"))
        self.kv_a = project(("embed",), ("kv_rank_rope",), bias=config.qkv_bias)
        self.kv_a_norm = RMSNorm(("kv_rank",), sizes, eps=_INNER_EPS, dtype=dtype, rngs=rngs)
        self.kv_b = project(("kv_rank",), ("head", "nope_v_dim"))
        self.o = project(("head", "v_dim"), ("embed",), bias=config.o_bias)

    def __call__(
        self, x: jax.Array, rotation: Rotation | None, seen: jax.Array, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Attends from `x`, `[batch, length, embed]`; arguments and results are those of `Attention`."""
        latent = self.latent
        query = self.q(x) if latent.q_rank is None else self.q_b(self.q_a_norm(self.q_a(x)))
        q_nope, q_rope = jnp.split(query, [latent.nope_dim], axis=-1)
        compressed, k_rope = jnp.split(self.kv_a(x), [latent.kv_rank], axis=-1)
        compressed, k_rope = self.kv_a_norm(compressed)[:, :, None], k_rope[:, :, None]
        if rotation is not None:
            q_rope, k_rope = rotate(q_rope, rotation), rotate(k_rope, rotation)
        if cache is None:
            mixed = self._attend_expanded(q_nope, q_rope, compressed, k_rope, seen)
        else:
            cache = append(cache, compressed, k_rope)
            compressed, k_rope = cache["k"].astype(x.dtype), cache["v"].astype(x.dtype)
            mixed = self._attend_compressed(q_nope, q_rope, compressed, k_rope, seen)
        return self.o(mixed), cache

    def _attend_expanded(
        self, q_nope: jax.Array, q_rope: jax.Array, compressed: jax.Array, k_rope: jax.Array, seen: jax.Array
    ) -> jax.Array:
        k_nope, value = jnp.split(self.kv_b(compressed[:, :, 0]), [self.latent.nope_dim], axis=-1)
        shared = jnp.broadcast_to(k_rope, (*k_nope.shape[:-1], self.latent.rope_dim))
        query, key = jnp.concatenate([q_nope, q_rope], axis=-1), jnp.concatenate([k_nope, shared], axis=-1)
        return attend(query, key, value, seen, scale=self.config.query_scale, softcap=self.config.attn_softcap)

    def _attend_compressed(
        self, q_nope: jax.Array, q_rope: jax.Array, compressed: jax.Array, k_rope: jax.Array, seen: jax.Array
    ) -> jax.Array:
        to_key, to_value = jnp.split(self.kv_b.kernel[...], [self.latent.nope_dim], axis=-1)
        query = jnp.concatenate([jnp.einsum("btnh,rnh->btnr", q_nope, to_key), q_rope], axis=-1)
        key = jnp.concatenate([compressed, k_rope], axis=-1)
        mixed = attend(query, key, compressed, seen, scale=self.config.query_scale, softcap=self.config.attn_softcap)
        return jnp.einsum("btnr,rnv->btnv", mixed, to_value)
