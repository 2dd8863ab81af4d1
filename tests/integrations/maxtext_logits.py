"""Restores checkpoints with MaxText itself and writes the logits that its models give.

    python maxtext_logits.py JOBS.json

`JOBS.json` holds a list of `{"settings": {MaxText setting: value}, "tokens": file, "logits": file}`; a job with a
`model` and a `cache_dir`, too, has its checkpoint filled in by `lazyload.integrations.maxtext`. A program of its own,
because MaxText configures JAX for its whole process, and may live in another environment than the tests.
"""

import json
import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = ""

import jax
import jax.numpy as jnp
import maxtext
import numpy as np
from maxtext.configs import pyconfig
from maxtext.utils import model_creation_utils

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


def logits(job: dict, tokens: np.ndarray) -> np.ndarray:
    batch, length = tokens.shape
    settings = {**COMMON, "max_target_length": length, **job["settings"]}
    config = pyconfig.initialize(["", str(BASE), *(f"{name}={value}" for name, value in settings.items())])
    if "model" in job:
        from lazyload.integrations.maxtext import with_checkpoint

        config = with_checkpoint(config, model=job["model"], cache_dir=job["cache_dir"])
    model, mesh = model_creation_utils.from_pretrained(config)
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    segments = jnp.ones((batch, length), jnp.int32)
    with jax.set_mesh(mesh):
        found = model(jnp.asarray(tokens), positions, decoder_segment_ids=segments, enable_dropout=False)
    return np.asarray(found[0] if isinstance(found, tuple) else found, np.float32)


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    for job in json.loads(pathlib.Path(sys.argv[1]).read_text()):
        np.savez(job["logits"], logits=logits(job, np.load(job["tokens"])["tokens"]))
