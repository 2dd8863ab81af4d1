"""Load one model in all processes of a fleet, and see what each of them did.

    python examples/multi_host.py MODEL --coordinator HOST:PORT --processes N --process I
    python examples/multi_host.py --try 2

The first form runs in every process, on whatever hosts; on Cloud TPUs leave the options out. With `--try`, so many
processes of two simulated devices each are started on this machine, and load a small random Llama.
"""

import argparse
import pathlib
import socket
import subprocess
import sys
import tempfile

import jax
import numpy as np
from quickstart import write_small_llama

import lazyload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a hub id or a folder")
    parser.add_argument("--coordinator", help="the host and port of process 0")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--cache", help="a folder that all hosts see")
    parser.add_argument("--try", type=int, dest="count", metavar="N", help="start N processes here")
    arguments = parser.parse_args()
    if arguments.count:
        sys.exit(start(arguments.count))
    jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    load(arguments.model, arguments.cache)


def load(model: str, cache: str | None) -> None:
    """Loads a model over all devices, twice, and tells what this process did."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))
    for call in ("first", "second"):
        arrays = lazyload.from_pretrained(model, mesh=mesh, layout=lazyload.MaxText(), cache_dir=cache)
        kept = sum(shard.data.nbytes for array in jax.tree.leaves(arrays) for shard in array.addressable_shards)
        did = lazyload.last_report()
        print(f"process {jax.process_index()}, {call} load: keeps {kept / 1e6:.1f} MB; {did}", flush=True)


def start(count: int) -> int:
    """Starts processes on this machine, and returns the first exit status that is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_small_llama(pathlib.Path(folder, "small-llama"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        script = "import jax; jax.config.update('jax_num_cpu_devices', 2); import multi_host; multi_host.main()"
        here = pathlib.Path(__file__).parent
        common = [str(model), "--coordinator", address, "--processes", str(count), "--cache", f"{folder}/cache"]
        running = [
            subprocess.Popen([sys.executable, "-c", script, *common, "--process", str(index)], cwd=here)
            for index in range(count)
        ]
        return next((status for status in [process.wait() for process in running] if status), 0)


if __name__ == "__main__":
    main()
