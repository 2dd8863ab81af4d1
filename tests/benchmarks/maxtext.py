"""The commands that convert into MaxText's layout: ours, and MaxText's own converter."""

import sys
from collections.abc import Sequence
from pathlib import Path

# Of some models MaxText does not know where the hub has them; without that its converter refuses even a folder.
_CONVERTER = """
import runpy, sys
from maxtext.utils.globals import HF_IDS
HF_IDS.setdefault(sys.argv.pop(1), "a folder")
runpy.run_module("maxtext.checkpoint_conversion.to_maxtext", run_name="__main__", alter_sys=True)
"""


def theirs(python: str, name: str, model: Path, out: Path, *, scanned: bool) -> Sequence[str]:
    """MaxText's converter with the settings that its `from_pretrained` calls it with."""
    settings = {
        "model_name": name,
        "base_output_directory": out,
        "scan_layers": scanned,
        "use_multimodal": "false",
        "skip_jax_distributed_system": True,
        "hardware": "cpu",
        "checkpoint_storage_use_ocdbt": True,
        "checkpoint_storage_use_zarr3": True,
    }
    own = ["--lazy_load_tensors=True", "--simulated_cpu_devices_count=16", f"--hf_model_path={model}"]
    return [python, "-c", _CONVERTER, name, *(f"{key}={value}" for key, value in settings.items()), *own]


def ours(model: Path, out: Path, *, scanned: bool) -> Sequence[str]:
    """The command that a user types."""
    layout = "maxtext" if scanned else "maxtext-unscanned"
    return lazyload("convert", model, "--layout", layout, "--ocdbt", "--zarr3", "--cache-dir", out)


def lazyload(*words: object) -> Sequence[str]:
    """Our command, wherever its script may lie."""
    return [sys.executable, "-c", "from lazyload.cli import main; main()", *map(str, words)]
