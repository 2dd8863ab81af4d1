"""In bfloat16, every golden checkpoint errs no more than it does under transformers, 1.5 times at most.

Both are compared with the golden logits, which are float32's. What counts is the error of a token's logits, and of all
tokens the median's; with experts that of the best twentieth: where rounding sends a token to another expert, by chance,
it and what attends to it say something else in either program.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import checkpoints
from support.decoders import run

import lazyload

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RATIO = 1.5
# After twelve layers with experts, hardly a token is left that no rounding has sent elsewhere.
QUANTILES = {"gemma4_a4b_12": 0.5}


def config(name: str) -> dict[str, Any]:
    text = (checkpoints.GOLDEN / "specs" / f"{name}.json").read_text()
    return dict(json.loads(text)["config"])


# transformers unpacks weights with other libraries, and reads Kimi K2 with code from its repository.
CASES = [name for name in checkpoints.NAMES if not config(name).keys() & {"quantization_config", "auto_map"}]


def of_transformers(model: Path, tokens: np.ndarray) -> np.ndarray:
    settings = transformers.AutoConfig.from_pretrained(model)
    is_whole = hasattr(settings, "vision_config")
    auto = transformers.AutoModelForImageTextToText if is_whole else transformers.AutoModelForCausalLM
    loaded = auto.from_pretrained(
        model, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
    )
    if settings.model_type == "llama4":
        # The whole model cannot do without an image.
        loaded = loaded.language_model
    with torch.no_grad():
        logits = loaded.eval()(input_ids=torch.from_numpy(tokens).long(), use_cache=False).logits
    return np.asarray(logits.float().numpy())


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_errs_no_more_than_that_of_transformers(name: str, tmp_path: Path) -> None:
    model = checkpoints.make(name, tmp_path)
    tokens, expected = checkpoints.reference(name)
    mesh = jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1])
    loaded = lazyload.from_pretrained(model, mesh=mesh, dtype="bfloat16", cache_dir=tmp_path / "cache")
    ours = np.asarray(run(loaded, jnp.asarray(tokens))[0], np.float32)
    quantile = QUANTILES.get(name, 0.05 if "experts" in str(config(name)) else 0.5)

    def error(logits: np.ndarray) -> float:
        of_tokens = np.sqrt(np.mean((logits - expected) ** 2, axis=-1))
        return float(np.quantile(of_tokens, quantile))

    assert 0 < error(ours) <= RATIO * error(of_transformers(model, tokens))
