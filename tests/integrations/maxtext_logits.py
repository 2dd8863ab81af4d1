"""Restores checkpoints with MaxText itself, in both of its ways, and writes the logits that its models give.

    python maxtext_logits.py JOBS.json

`JOBS.json` holds a list of `{"settings": {MaxText setting: value}, "tokens": file, "logits": file}`; beside the logits
stands which parameters the trainer restores otherwise than `from_pretrained`. A job with a `model` and a `cache_dir`,
too, has its checkpoint filled in by `lazyload.integrations.maxtext`. A job with a file `refusals` is one whose settings
contradict its checkpoint: what MaxText says of that, and what the integration says, is written there. A job with a file
`internals` writes there what the integration relies on of MaxText's configs; one with a file `trained`, the shapes and
SHA-256 sums of what the trainer restores, in the dtypes that `dtypes` says. Where there is a `saved`, what has been
restored is saved there: by the trainer as the trainer saves it, else as Tunix's trainers save MaxText's module in its
adapter. A program of its own, because MaxText configures JAX for its whole process, and may live in another environment
than the tests.
"""

import hashlib
import json
import os
import pathlib
import sys
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
# One device. Nearly all of the time goes into compiling.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

import jax
import jax.numpy as jnp
import maxtext
import numpy as np
import orbax.checkpoint as ocp
import pydantic
from flax import nnx
from maxtext.common import checkpointing, train_state_nnx
from maxtext.configs import pyconfig
from maxtext.utils import maxtext_utils, model_creation_utils, train_utils

from lazyload.integrations.maxtext import with_checkpoint

BASE = pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"
COMMON = {
    "run_name": "logits",
    "hardware": "cpu",
    "skip_jax_distributed_system": True,
    "log_config": False,
    "override_model_config": True,
    "attention": "dot_product",
    "dtype": "float32",
    "weight_dtype": "float32",
    "float32_qk_product": True,
    "float32_logits": True,
    "per_device_batch_size": 1,
}


def config_of(job: dict[str, Any], length: int) -> pyconfig.HyperParameters:
    settings = {**COMMON, "max_target_length": length, **job["settings"]}
    config = pyconfig.initialize(["", str(BASE), *(f"{name}={value}" for name, value in settings.items())])
    if "model" in job:
        config = with_checkpoint(config, model=job["model"], cache_dir=job["cache_dir"])
    return config


def restored(job: dict[str, Any], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The logits of the model that `from_pretrained` restores, and what the trainer restores otherwise."""
    config = config_of(job, tokens.shape[1])
    model, mesh = model_creation_utils.from_pretrained(config)
    if "saved" in job:
        ocp.PyTreeCheckpointer().save(pathlib.Path(job["saved"]) / "model_params", nnx.state(Adapter(model)))
    # Unlike `from_pretrained`, the trainer does not take `scan_layers` from the checkpoint where nobody has set it.
    trained = trained_from(model_creation_utils.verify_and_sync_scan_layers(config))
    return {"logits": logits(model, mesh, tokens), "otherwise": np.array(otherwise(model, trained), str)}


class Adapter(nnx.Module):
    """How `TunixMaxTextAdapter`, whose module cannot be imported without Tunix, holds a model."""

    def __init__(self, base: nnx.Module):
        self.base = base


def logits(model: nnx.Module, mesh: jax.sharding.Mesh, tokens: np.ndarray) -> np.ndarray:
    batch, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    segments = jnp.ones((batch, length), jnp.int32)

    @nnx.jit
    def forward(model: nnx.Module, tokens: jax.Array) -> Any:
        return model(tokens, positions, decoder_segment_ids=segments, enable_dropout=False)

    with jax.set_mesh(mesh):
        found = forward(model, jnp.asarray(tokens))
    return np.asarray(found[0] if isinstance(found, tuple) else found, np.float32)


def trained_from(config: pyconfig.HyperParameters) -> nnx.State:
    """The parameters that the trainer takes from `load_parameters_path`, as its set-up does."""
    mesh = maxtext_utils.get_mesh_from_config(config)
    make_model, abstract_model = model_creation_utils.create_nnx_abstract_model(config, mesh)
    _, optimizer = train_utils.create_training_optimizer(config, abstract_model, mesh=mesh)

    def make_state() -> train_state_nnx.TrainStateNNX:
        model = make_model()
        return train_state_nnx.TrainStateNNX(model, nnx.Optimizer(model, optimizer, wrt=nnx.Param))

    abstract_state, _, _ = maxtext_utils.get_abstract_state(config, mesh, make_state, True)
    _, parameters = checkpointing.load_state_if_possible(
        None,
        None,
        config.load_parameters_path,
        "",
        config.checkpoint_storage_concurrent_gb,
        abstract_state,
        use_ocdbt=config.checkpoint_storage_use_ocdbt,
        use_zarr3=config.checkpoint_storage_use_zarr3,
    )
    return parameters


def otherwise(model: nnx.Module, parameters: nnx.State) -> list[str]:
    """The paths of a model's parameters that are others, or none, in a state."""
    there = dict(nnx.to_flat_state(parameters))
    wanted = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate))))
    return [
        ".".join(map(str, path))
        for path, parameter in wanted
        if path not in there or not np.array_equal(parameter[...], there[path][...])
    ]


def trained(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The shapes and sums of what the trainer restores, by their paths."""
    found = {}
    state = trained_from(config_of(job, 24))
    if "saved" in job:
        tree = train_state_nnx.to_checkpoint_dict(nnx.State({"model": state}))
        ocp.PyTreeCheckpointer().save(pathlib.Path(job["saved"]) / "items", tree)
    for path, parameter in nnx.to_flat_state(state):
        name, value = "/".join(map(str, path)), np.asarray(parameter[...])
        stored = value.astype(job["dtypes"].get(name, value.dtype.name))
        found[name] = {"shape": list(value.shape), "sha256": hashlib.sha256(stored.tobytes()).hexdigest()}
    return found


def refusals(job: dict[str, Any]) -> list[str]:
    """What MaxText's and the integration's errors say, with the errors' classes."""
    config = config_of(job, 24)
    found = []
    for reader in (model_creation_utils.from_pretrained, with_checkpoint):
        try:
            reader(config)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def internals(job: dict[str, Any]) -> dict[str, Any]:
    """What `integrations/maxtext/settings.py` relies on of MaxText's configs beyond what they document."""
    config = config_of(job, 24)
    inner = config._pydantic_config
    copied = type(config)(inner.model_copy(update={"load_parameters_path": "/elsewhere"}))
    return {
        "is_pydantic": isinstance(inner, pydantic.BaseModel),
        "copied": copied.load_parameters_path,
        "set": {name: name in inner.model_fields_set for name in ("scan_layers", "enable_dropout")},
    }


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    for job in json.loads(pathlib.Path(sys.argv[1]).read_text()):
        if "refusals" in job:
            pathlib.Path(job["refusals"]).write_text(json.dumps(refusals(job)))
        elif "trained" in job:
            pathlib.Path(job["trained"]).write_text(json.dumps(trained(job)))
        elif "internals" in job:
            pathlib.Path(job["internals"]).write_text(json.dumps(internals(job)))
        else:
            np.savez(job["logits"], **restored(job, np.load(job["tokens"])["tokens"]))
