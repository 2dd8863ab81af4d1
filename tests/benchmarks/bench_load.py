"""A conversion and the loads after it, beside the reads that they cannot do without: seconds, and memory above rest.

    python tests/benchmarks/bench_load.py [--gigabytes 3] [--repeat 5] [--mesh fsdp=4,tp=2] [FOLDER]

A dense checkpoint and a mixture of 128 experts of the same size, random bfloat16. Each is converted in a process of its
own, then loaded in turn: the bare read of the source files into fresh memory, our load, Orbax's own restore of the same
entry onto the same mesh. FOLDER is where all of this is written, by default a temporary folder.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from support.large import write_large_llama, write_large_moe

import lazyload

STORAGES = {
    "ocdbt+zarr3": lazyload.Storage(ocdbt=True, zarr3=True),
    "zarr2 files": lazyload.Storage(ocdbt=False, zarr3=False),
}

CONVERT = """
import json, sys, time, lazyload, lazyload.loader, tensorstore
def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024
model, cache, ocdbt, zarr3 = sys.argv[1:]
rest, started = memory("VmRSS:"), time.process_time()
lazyload.convert(model, cache_dir=cache, storage=lazyload.Storage(ocdbt == "True", zarr3 == "True"))
report = lazyload.last_report()
cpu, above = time.process_time() - started, memory("VmHWM:") - rest
print(json.dumps({"seconds": report.total_seconds, "cpu": cpu, "nbytes": report.bytes_written, "above": above}))
"""

LOAD = """
import json, pathlib, sys, time, numpy as np
model, cache, ocdbt, zarr3, mesh, repeat = sys.argv[1:]
import jax, lazyload, orbax.checkpoint as ocp
from flax import nnx
sizes = dict(part.split("=") for part in mesh.split(","))
mesh = jax.make_mesh(tuple(map(int, sizes.values())), tuple(sizes))
storage = lazyload.Storage(ocdbt == "True", zarr3 == "True")
def read():
    for file in pathlib.Path(model).glob("*.safetensors"):
        memory = np.empty(file.stat().st_size, np.uint8)
        with open(file, "rb", buffering=0) as opened:
            done = 0
            while done < len(memory):
                done += opened.readinto(memory[done:done + (64 << 20)])
def ours():
    return lazyload.from_pretrained(model, mesh=mesh, storage=storage, cache_dir=cache)
loaded, report = ours(), lazyload.last_report()
assert report.hit
path, restore_args = report.path, {}
for names, variable in nnx.to_flat_state(nnx.state(loaded, nnx.Param)):
    node = restore_args
    for name in names[:-1]:
        node = node.setdefault(str(name), {})
    node[str(names[-1])] = ocp.ArrayRestoreArgs(sharding=variable[...].sharding)
del loaded, variable
def orbax():
    args = ocp.args.PyTreeRestore(item=jax.tree.map(lambda _: 0, restore_args), restore_args=restore_args)
    return jax.block_until_ready(ocp.PyTreeCheckpointer().restore(path, args=args))
times = {"read": [], "ours": [], "orbax": []}
stages = {}
for _ in range(int(repeat)):
    for name, load in (("read", read), ("ours", ours), ("orbax", orbax)):
        started = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(nnx.state(load())) if name == "ours" else load())
        times[name].append(time.perf_counter() - started)
    for stage, seconds in lazyload.last_report().seconds.items():
        stages.setdefault(stage, []).append(seconds)
print(json.dumps([times, stages]))
"""


def run(code: str, *arguments: object) -> object:
    """What a process of its own prints last."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(pathlib.Path(lazyload.__file__).parents[1]),
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stderr[-4000:])
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--mesh", default="fsdp=4,tp=2")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = pathlib.Path(temporary)
        for name, write in (("dense", write_large_llama), ("128 experts", write_large_moe)):
            model = write(folder / name, arguments.gigabytes)
            for stored, storage in STORAGES.items():
                show(f"{name}, {stored}", model, folder / "cache", storage, arguments)


def show(title: str, model: pathlib.Path, cache: pathlib.Path, storage: lazyload.Storage, arguments: object) -> None:
    """Converts, loads and prints."""
    flags = (storage.ocdbt, storage.zarr3)
    converted = run(CONVERT, model, cache, *flags)
    gigabytes = converted["nbytes"] / 1e9
    print(
        f"{title}: {gigabytes:.2f} GB converted in {converted['seconds']:.1f} s, "
        f"{converted['seconds'] / gigabytes:.2f} s/GB, {converted['above'] / 1e6:.0f} MB above rest"
    )
    times, stages = run(LOAD, model, cache, *flags, arguments.mesh, arguments.repeat)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in medians.items():
        print(f"    {name:6} {seconds:6.2f} s   {seconds / medians['read']:5.2f} x the bare read")
    parts = ", ".join(f"{stage} {statistics.median(seconds):.2f}" for stage, seconds in stages.items())
    print(f"    of ours: {parts}", flush=True)


if __name__ == "__main__":
    main()
