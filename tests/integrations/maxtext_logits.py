"""Restores checkpoints with MaxText itself and writes the logits that its models give.

    python maxtext_logits.py JOBS.json

`JOBS.json` holds a list of `{"settings": {MaxText setting: value}, "tokens": file, "logits": file}`; a job with a
`model` and a `cache_dir`, too, has its checkpoint filled in by `lazyload.integrations.maxtext`. A job with a file
`refusals` is one whose settings contradict its checkpoint: what MaxText says of that, and what the integration says,
is written there. A job with a file `internals` writes there what the integration relies on of MaxText's configs. A
program of its own, because MaxText configures JAX for its whole process, and may live in another
environment than the tests.
"""

import json
import os
import pathlib
import sys
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = ""

import jax
import jax.numpy as jnp
import maxtext
import numpy as np
import pydantic
from maxtext.configs import pyconfig
from maxtext.utils import model_creation_utils

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


def logits(job: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    batch, length = tokens.shape
    model, mesh = model_creation_utils.from_pretrained(config_of(job, length))
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    segments = jnp.ones((batch, length), jnp.int32)
    with jax.set_mesh(mesh):
        found = model(jnp.asarray(tokens), positions, decoder_segment_ids=segments, enable_dropout=False)
    return np.asarray(found[0] if isinstance(found, tuple) else found, np.float32)


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
    """What `integrations/maxtext.py` relies on of MaxText's configs beyond what they document."""
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
        elif "internals" in job:
            pathlib.Path(job["internals"]).write_text(json.dumps(internals(job)))
        else:
            np.savez(job["logits"], logits=logits(job, np.load(job["tokens"])["tokens"]))
