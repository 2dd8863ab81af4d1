"""A cache in a bucket: converted once for a laptop, CI and pods, restored from there, with a disk in front if you like.

    python examples/bucket.py                                             # a small Llama, a bucket on loopback
    python examples/bucket.py --cache gs://my-bucket/lazyload --model Qwen/Qwen3-0.6B

The first needs neither credentials nor a network: it starts `tests/support/cloud_storage.py`, a Cloud Storage of a few
hundred lines, in a process of its own, and sets the variables which that prints. They are the ones by which gcsfs,
TensorStore and Orbax find any other emulator; with a bucket of Google's, none of them is set.
"""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from orbax.checkpoint import PyTreeCheckpointer
from quickstart import write_small_llama

import lazyload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", help="a root in a bucket, gs://bucket/path or s3://bucket/path")
    parser.add_argument("--model", help="a hub id or a folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        if arguments.cache is None:
            running.enter_context(store_on_loopback())
        model = arguments.model or write_small_llama(pathlib.Path(folder) / "model")
        show(model, arguments.cache or "gs://bucket/lazyload", pathlib.Path(folder) / "front")


def show(model: str | pathlib.Path, root: str, front: pathlib.Path) -> None:
    """Converts into the bucket, restores from it, has Orbax restore it, and puts a disk in front of it."""
    converted = lazyload.convert(model, cache_dir=root)
    print(f"{'converted into' if converted.converted else 'found in'} {converted.path}")

    started = time.perf_counter()
    lazyload.from_pretrained(model, cache_dir=root)
    assert lazyload.last_report().hit
    print(f"restored from the bucket in {time.perf_counter() - started:.2f} s")

    # What is at Google's is an Orbax checkpoint to everybody.
    if root.startswith("gs://"):
        with converted.in_use():
            tree = PyTreeCheckpointer().restore(str(converted.path))
        print(f"plain Orbax restored {', '.join(tree)}")

    # A disk in front: the first load copies the entry, and later ones find it there.
    os.environ["LAZYLOAD_CACHE"] = f"{front}:{root}"
    for _ in range(2):
        lazyload.from_pretrained(model)
        print(f"restored from {lazyload.last_report().path}")

    for entry in lazyload.Cache(root).entries():
        print(f"{entry.key[:8]}  {entry.model}: {entry.nbytes} bytes, used by {entry.user() or 'nobody'}")


@contextlib.contextmanager
def store_on_loopback() -> Iterator[None]:
    """Runs the store, and sets the variables that it prints, while the body runs."""
    script = pathlib.Path(__file__).parents[1] / "tests" / "support" / "cloud_storage.py"
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as store:
        assert store.stdout is not None
        for line in iter(store.stdout.readline, "\n"):
            name, _, value = line.strip().partition("=")
            os.environ[name] = value
            print(f"{name}={value}")
        try:
            yield
        finally:
            store.kill()


if __name__ == "__main__":
    main()
