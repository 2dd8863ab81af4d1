"""Our conversion into MaxText's layout beside MaxText's own converter: time and peak memory of whole processes.

    python tests/benchmarks/bench_maxtext.py [--maxtext-python PYTHON] [--repeat 3] [FOLDER]

Both convert a checkpoint with the shapes of Qwen3-1.7B (3.4 GB of random bfloat16), layers scanned and not, with OCDBT
and zarr3. Between runs, the results are deleted; the checkpoint stays in the page cache for both. FOLDER is where all
of this is written, by default a temporary folder.

Our threads use every core and MaxText's hardly more than one: on a machine that is busy otherwise, compare what the
processors did (`cpu`) rather than how long it took.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from support.large import write_qwen3_1_7b

import lazyload

# MaxText knows the model, but not where the hub has it; without that its converter refuses even a local folder.
MAXTEXT = """
import runpy, sys
from maxtext.utils.globals import HF_IDS
HF_IDS.setdefault("qwen3-1.7b", "Qwen/Qwen3-1.7B")
runpy.run_module("maxtext.checkpoint_conversion.to_maxtext", run_name="__main__", alter_sys=True)
"""


def maxtext(python: str, model: pathlib.Path, out: pathlib.Path, scan_layers: bool) -> Sequence[str]:
    """MaxText's converter with the settings that its `from_pretrained` calls it with."""
    settings = {
        "model_name": "qwen3-1.7b",
        "base_output_directory": out,
        "scan_layers": scan_layers,
        "use_multimodal": "false",
        "skip_jax_distributed_system": True,
        "hardware": "cpu",
        "checkpoint_storage_use_ocdbt": True,
        "checkpoint_storage_use_zarr3": True,
    }
    own = ["--lazy_load_tensors=True", "--simulated_cpu_devices_count=16", f"--hf_model_path={model}"]
    return [python, "-c", MAXTEXT, *(f"{name}={value}" for name, value in settings.items()), *own]


def ours(model: pathlib.Path, out: pathlib.Path, scan_layers: bool) -> Sequence[str]:
    """The command that a user types."""
    layout = "maxtext" if scan_layers else "maxtext-unscanned"
    command = "from lazyload.cli import main; main()"
    flags = ["--layout", layout, "--ocdbt", "--zarr3", "--cache-dir", str(out)]
    return [sys.executable, "-c", command, "convert", str(model), *flags]


class Run(NamedTuple):
    """What a process took: seconds on the clock, seconds of processors, peak resident bytes."""

    seconds: float
    cpu: float
    nbytes: int


def measure(command: Sequence[str], out: pathlib.Path) -> Run:
    """Runs a process, which may write into `out`."""
    path = str(pathlib.Path(lazyload.__file__).parents[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        log.seek(0)
        output = log.read().decode()
    if process.returncode or not list(out.rglob("_METADATA")):
        sys.exit(f"{' '.join(command)} failed:\n{output[-4000:]}")
    shutil.rmtree(out)
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def median(runs: Sequence[Run]) -> Run:
    """The median times, and the highest peak."""
    return Run(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.cpu for run in runs),
        max(run.nbytes for run in runs),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--maxtext-python", default=os.environ.get("LAZYLOAD_MAXTEXT_PYTHON") or sys.executable)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = pathlib.Path(temporary)
        model, out = write_qwen3_1_7b(folder / "qwen3-1.7b"), folder / "out"
        print(f"{'':10}{'MaxText':>30}{'lazyload':>30}{'times faster':>14}{'of the cpu':>12}{'of the memory':>15}")
        for scan_layers in (True, False):
            theirs, mine = [], []
            for _ in range(arguments.repeat):
                theirs.append(measure(maxtext(arguments.maxtext_python, model, out, scan_layers), out))
                mine.append(measure(ours(model, out, scan_layers), out))
            show("scanned" if scan_layers else "unscanned", median(theirs), median(mine))


def show(name: str, theirs: Run, mine: Run) -> None:
    """Prints a line of the table."""
    cells = [f"{run.seconds:.1f} s, cpu {run.cpu:.1f} s, {run.nbytes / 1e9:.2f} GB" for run in (theirs, mine)]
    ratios = f"{theirs.seconds / mine.seconds:>14.1f}{mine.cpu / theirs.cpu:>12.2f}{mine.nbytes / theirs.nbytes:>15.2f}"
    print(f"{name:10}{cells[0]:>30}{cells[1]:>30}{ratios}", flush=True)


if __name__ == "__main__":
    main()
