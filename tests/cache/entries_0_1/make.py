"""How the entries beside this file were made: once, with lazyload 0.1.0 (commit 3bddc26) and the tests' own hub.

PYTHONPATH=<lazyload 0.1.0>:tests python tests/cache/entries_0_1/make.py <empty folder>
"""

import os
import sys
import tempfile
from pathlib import Path

from support.hub import running
from support.tiny import make

hub = running()
os.environ["HF_ENDPOINT"] = hub.endpoint
os.environ["HF_HOME"] = tempfile.mkdtemp()

import lazyload  # noqa: E402

assert lazyload.__version__ == "0.1.0"
assert not hasattr(lazyload, "fill"), "this is a later lazyload"
root = Path(sys.argv[1])
folder = make(Path("/tmp/tiny"))
hub.add("org/tiny", folder)
plain = lazyload.Storage(ocdbt=False, zarr3=False)
lazyload.convert("org/tiny", cache_dir=root)
lazyload.convert("org/tiny", cache_dir=root, layout=lazyload.MaxText(scan_layers=True), storage=plain)
lazyload.convert(folder, cache_dir=root, storage=lazyload.Storage(compression="zstd"), dtype="float32")
