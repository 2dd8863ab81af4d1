"""Pathways' own package, as far as CPUs go: what it sets up is what this library goes by.

The workers are missing here. What stands for them reads what the handler that `pathwaysutils` has registered asks them
for, as they would: arrays of zarr's second format, by their folder and name.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import tiny

pytestmark = pytest.mark.skipif(find_spec("pathwaysutils") is None, reason="pathwaysutils is not installed")

PROGRAM = """
import concurrent.futures, json, sys
from unittest import mock

import jax, numpy as np, tensorstore
import pathwaysutils
from orbax.checkpoint._src.serialization import cloud_pathways_helper

import lazyload
import lazyload.errors
from lazyload.checkpoint import pathways

model, cache = sys.argv[1:]
mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
options = {"mesh": mesh, "layout": lazyload.MaxText()}
expected = lazyload.from_pretrained(model, cache_dir=f"{cache}/here", **options)

# The devices are there by now; from here on all is as it is with Pathways.
jax.config.update("jax_platforms", "proxy,cpu")
pathwaysutils.initialize()
answer = {"used": bool(pathwaysutils.is_pathways_backend_used()), "reader": pathways.reader().name}
answer["storage"] = [lazyload.Storage().resolve({}).ocdbt, lazyload.Storage().resolve({}).zarr3]
try:
    lazyload.from_pretrained(model, cache_dir=f"{cache}/own", **options)
except lazyload.errors.LazyLoadError as error:
    answer["refused"] = str(error)

asked = []

def read(location, names, dtypes, shapes, shardings, devices, timeout=None):
    found = []
    for name, dtype, shape, sharding in zip(names, dtypes, shapes, shardings, strict=True):
        asked.append(name)
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{location}/{name}"}}
        stored = tensorstore.open(spec).result().read().result()
        assert (stored.dtype, stored.shape) == (dtype, tuple(shape))
        found.append(jax.device_put(stored, sharding))
    done = concurrent.futures.Future()
    done.set_result(None)
    return found, done

with (
    mock.patch.object(pathways, "_OF_ONE_HOST", set()),
    mock.patch.object(cloud_pathways_helper, "read_arrays", read),
):
    arrays = lazyload.from_pretrained(model, cache_dir=f"{cache}/workers", **options)
jax.tree.map(np.testing.assert_array_equal, arrays, expected)
assert jax.tree.map(lambda array: array.sharding, arrays) == jax.tree.map(lambda array: array.sharding, expected)
answer["asked"] = [len(asked), len(jax.tree.leaves(arrays))]
print(json.dumps(answer))
"""


def test_what_pathwaysutils_registers_restores(tmp_path: Path) -> None:
    environment = os.environ | {
        "ENABLE_PATHWAYS_PERSISTENCE": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, tiny.make(tmp_path / "model"), tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout.splitlines()[-1])
    assert (answer["used"], answer["reader"], answer["storage"]) == (True, "PERSISTENCE", [False, False])
    assert "on a disk of this host" in answer["refused"]
    asked, arrays = answer["asked"]
    assert asked == arrays > 0
    assert not (tmp_path / "own").exists()
