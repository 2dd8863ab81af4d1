"""The `config.json` of well-known repositories on the hub is read, and describes the published model.

`hub_configs` has a file for each: the repository, its number of parameters (of tied embeddings one counts, of Gemma 3
the text model), facts about the decoder by the attribute's path, and the `config.json`; of Nemotron, Granite 4 and
Seed-OSS those of its fields that public copies have kept.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lazyload import families
from lazyload.layouts.conversion import axes_of
from lazyload.layouts.unroll import unroll_tree

MODELS = [json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "hub_configs").glob("*.json"))]


def look_up(value: Any, path: str) -> Any:
    """An attribute's value: `norm.eps`; `layers.*.mixer.window` is a list; what is inside None is None."""
    name, _, rest = path.partition(".")
    if not name or value is None:
        return value
    if name == "*":
        return [look_up(part, rest) for part in value]
    return look_up(value[int(name)] if name.isdigit() else getattr(value, name), rest)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["model"])
def test_a_real_file_describes_the_published_model(model: dict[str, Any]) -> None:
    family = families.find(model["config"])
    config = family.config(model["config"])
    shapes = [shape for shape, _ in axes_of(unroll_tree(family.huggingface(config), config)).values()]
    assert sum(math.prod(shape) for shape in shapes) == model["parameters"]
    for path, expected in model["expected"].items():
        assert look_up(config, path) == pytest.approx(expected), path
