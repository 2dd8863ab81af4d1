"""Makes a golden case: a small checkpoint fixed byte by byte, and what transformers says of it.

    PYTHONPATH=tests python -m support.new_case NAME CONFIG.json

The `config.json` should be as small as the architecture allows (a few hundred thousand parameters) and switch on what
the family is about. Writes `tests/golden/specs/NAME.json` (names, dtypes and shapes as transformers stores them) and
`tests/golden/logits/NAME.npz` (tokens int32 `[2, 24]`, logits float32 `[2, 24, vocab]`, eager attention, every weight
widened to float32). Needs PyTorch and transformers.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open

from support import checkpoints


def write_spec(name: str, config: Path) -> None:
    """Writes the spec: the tensors that transformers saves for such a model."""
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.AutoConfig.from_pretrained(config)
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        tensors = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, "np") as stored:
                slices = {key: stored.get_slice(key) for key in stored.keys()}  # noqa: SIM118
                tensors |= {key: [part.get_dtype(), part.get_shape()] for key, part in slices.items()}
    spec = {"config": json.loads(config.read_text()), "shards": 1, "tensors": dict(sorted(tensors.items()))}
    (checkpoints.GOLDEN / "specs" / f"{name}.json").write_text(json.dumps(spec, indent=1))


def write_logits(name: str) -> None:
    """Writes what transformers says of the checkpoint that the spec describes."""
    with tempfile.TemporaryDirectory() as folder:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoints.make(name, Path(folder)), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tokens = np.random.default_rng(0).integers(3, model.config.vocab_size, (2, 24)).astype(np.int32)
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens).long(), use_cache=False).logits
    np.savez_compressed(checkpoints.GOLDEN / "logits" / f"{name}.npz", tokens=tokens, logits=logits.float().numpy())


if __name__ == "__main__":
    case, config_json = sys.argv[1], Path(sys.argv[2])
    write_spec(case, config_json)
    write_logits(case)
    print(f"golden case {case}: run `pytest tests/families/test_golden_logits.py -k {case}`")
