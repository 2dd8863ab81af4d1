"""Small decoders on meshes of simulated devices, for the tests of the models."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lazyload.architecture import DecoderConfig
from lazyload.models.decoder import Decoder
from lazyload.sharding import Rules, shardings
from support.decoders import abstract, build, weights

RULES = {
    "embed": "fsdp",
    "mlp": "tp",
    "expert_mlp": "tp",
    "head": "tp",
    "vocab": "tp",
    "expert": "expert",
    "ple_vocab": "tp",
    "ple_embed": "fsdp",
}
MESHES = {"fsdp=4,tp=2": ((4, 2), ("fsdp", "tp")), "fsdp=2,expert=2,tp=2": ((2, 2, 2), ("fsdp", "expert", "tp"))}


def mesh_named(name: str, axis_type: AxisType) -> Mesh:
    shape, names = MESHES[name]
    return jax.make_mesh(shape, names, axis_types=(axis_type,) * len(names))


def on_mesh(config: DecoderConfig, mesh: Mesh) -> Decoder:
    arrays = {}
    params = {".".join(map(str, path)): param for path, param in nnx.to_flat_state(nnx.state(abstract(config)))}
    for path, array in weights(config).items():
        axes = [RULES.get(axis) if RULES.get(axis) in mesh.shape else None for axis in params[path].logical_axes]
        axes = [axis if axis not in axes[:number] else None for number, axis in enumerate(axes)]
        arrays[path] = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
    return build(config, jnp.float32, arrays)


def by_rules(config: DecoderConfig, mesh: Mesh, rules: Rules | None = None) -> Decoder:
    """A decoder that lies where `from_pretrained` would put it."""
    params = nnx.to_flat_state(nnx.state(abstract(config)))
    arrays = {".".join(map(str, path)): (param.shape, param.logical_axes) for path, param in params}
    places = shardings(mesh, rules, arrays)
    placed = {path: jax.device_put(array, places[path]) for path, array in weights(config).items()}
    return build(config, jnp.float32, placed)
