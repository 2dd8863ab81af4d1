"""What a hit costs beside its bytes: imports, the decision that it is a hit, building the module, and `cache ls`.

    PYTHONPATH=tests python tests/benchmarks/bench_start.py FOLDER [--entries 1000] [--repeat 7]

FOLDER holds a checkpoint; it is converted into a cache that is thrown away. Medians in milliseconds.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from support.entries import publish

_IMPORT = """
import time, jax
started = time.perf_counter()
import lazyload
lazyload.from_pretrained
print(time.perf_counter() - started)
"""


def milliseconds(run: Callable[[], object], repeat: int) -> float:
    """The median of some runs, in milliseconds."""
    taken = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e3


def python(*line: str) -> str:
    """What another Python prints."""
    return subprocess.run([sys.executable, *line], capture_output=True, text=True, check=True).stdout


def measure_hit(folder: Path, cache: Path, repeat: int) -> None:
    """Prints how long it takes to decide that it is a hit, and to build the module."""
    import jax.numpy as jnp

    import lazyload
    from lazyload.arguments import ModelArguments
    from lazyload.models.decoder import Decoder
    from lazyload.models.fill import fill
    from lazyload.request import open_request

    lazyload.convert(folder, cache_dir=cache, progress=False)

    def decide() -> None:
        with open_request(ModelArguments(model=folder, cache_dir=cache)) as request:
            found = request.cache.find(request.key, request.forms)
            assert found is not None
            with found.in_use():
                _ = request.as_stored(found.manifest.arrays).axes

    config = lazyload.config(folder)
    with open_request(ModelArguments(model=folder, cache_dir=cache)) as request:
        alike = {shape: jnp.zeros(shape, jnp.bfloat16) for shape, _ in request.axes.values()}
        arrays = {path: alike[shape] for path, (shape, _) in request.axes.items()}
    print(f"decide that it is a hit   {milliseconds(decide, repeat):7.1f}  ({len(arrays)} arrays)")
    build = milliseconds(lambda: fill(Decoder(config, rngs=None), arrays), repeat)
    print(f"build the module          {build:7.1f}")


def measure_list(root: Path, entries: int, repeat: int) -> None:
    """Prints how long `cache ls` takes beside the imports of what it is made of."""
    for number in range(entries):
        publish(root, f"org/model-{number}", nbytes=1000 + number)
    ours, imports = [], []
    for _ in range(repeat):
        ours.append(milliseconds(lambda: python("-m", "lazyload", "cache", "ls", "--cache-dir", str(root)), 1))
        imports.append(milliseconds(lambda: python("-c", "import typer, rich"), 1))
    ratio = statistics.median(one / other for one, other in zip(ours, imports, strict=True))
    print(f"cache ls, {entries} entries   {statistics.median(ours):7.1f}  ({ratio:.2f} x import typer, rich)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--entries", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    imports = [float(python("-c", _IMPORT)) * 1e3 for _ in range(options.repeat)]
    print(f"import lazyload.loader    {statistics.median(imports):7.1f}  (beyond import jax)")
    with tempfile.TemporaryDirectory() as folder:
        measure_hit(options.folder, Path(folder, "cache"), options.repeat)
        measure_list(Path(folder, "list"), options.entries, options.repeat)


if __name__ == "__main__":
    main()
