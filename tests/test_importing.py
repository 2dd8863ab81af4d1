"""What the first load of a process imports, and how."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lazyload

# What other calls need, or other models.
UNUSED = (
    "huggingface_hub",
    "lazyload.adapting",
    "lazyload.bucket.bucket",
    "lazyload.checkpoint.exchange",
    "lazyload.checkpoint.sharing",
    "lazyload.checkpoint.write",
    "lazyload.display.html",
    "lazyload.display.weights",
    "lazyload.formats.peft",
    "lazyload.models.card",
    "lazyload.results",
    "lazyload.sources.packed.fp8",
    "orbax",
    "safetensors",
    "tensorstore",
)

LOADS = """
import gc, json, sys

collecting = []

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("lazyload.loader", "flax"):
            collecting.append((name, gc.isenabled()))

model, cache, collects = json.loads(sys.argv[1])
import lazyload
if not collects:
    gc.disable()
sys.meta_path.insert(0, Watch())
lazyload.from_pretrained(model, cache_dir=cache)
told = {"modules": sorted(sys.modules), "collecting": collecting, "collects": gc.isenabled()}
print(json.dumps(told | {"hit": lazyload.last_report().hit}))
"""


def told_by_a_first_load(model: Path, cache: Path, *, collects: bool = True) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    command = [sys.executable, "-c", LOADS, json.dumps([str(model), str(cache), collects])]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_a_hit_imports_nothing_that_it_does_not_need(qwen: Path, warm: Path) -> None:
    told = told_by_a_first_load(qwen, warm)
    assert told["hit"]
    assert "flax.nnx" in told["modules"]
    assert [name for name in UNUSED if name in told["modules"]] == []


@pytest.mark.parametrize("collects", [True, False])
def test_what_is_large_is_imported_without_collecting_and_the_collector_is_left_as_it_was(
    qwen: Path, warm: Path, collects: bool
) -> None:
    told = told_by_a_first_load(qwen, warm, collects=collects)
    assert told["collecting"] == [["lazyload.loader", False], ["flax", False]]
    assert told["collects"] is collects


IMPORTS = """
import gc, json, sys

if sys.argv[1] == "freeze":
    import numpy
    gc.freeze()
frozen = gc.get_freeze_count()
gc.collect()
from lazyload.importing import without_collection

def is_young(thing):
    return any(each is thing for each in gc.get_objects(generation=0))

young = []
for name in ("colorsys", "colorsys"):
    with without_collection():
        thing = [name]
        __import__(name)
    young.append(is_young(thing))
print(json.dumps([frozen, gc.get_freeze_count(), young]))
"""


def told_by_imports(how: str) -> Any:
    command = [sys.executable, "-c", IMPORTS, how]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_what_was_imported_is_not_young_and_what_was_not_stays_so() -> None:
    _, _, young = told_by_imports("")
    assert young == [False, True]


def test_what_a_program_has_frozen_stays_frozen() -> None:
    before, after, young = told_by_imports("freeze")
    assert before <= after
    assert young == [True, True]
