"""What the files of a checkpoint hold, read without this library."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open

_DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "I64": np.int64}


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor by name."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        with safe_open(path, "np") as file:
            assert set(header) == set(file.keys())
        for name, entry in header.items():
            assert name not in found, f"{name} stands in two files"
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(content[start:stop], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found
