"""Broken checkpoints, each drawn from a number: golden ones of which one file is changed at random.

`python -m support.fuzz FOLDER FIRST COUNT` plans that many in one process and prints what came of them as JSON.
"""

import collections
import contextlib
import json
import random
import shutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lazyload
from lazyload.errors import LazyLoadError
from support import checkpoints
from support.memory import peak_megabytes

BASES = ("qwen3", "qwen3_moe", "gemma3", "granite", "deepseek_v3_fp8", "gpt_oss_mxfp4", "smollm3", "olmo3")
NUMBERS = (0, -1, 1, 2, 3, 7, 1e-6, 1e5, 1e8, 1e9, 2**31, 2**63, 10**30, 1e300, -0.0, 0.5, float("nan"), float("inf"))
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "x" * 100_000,
    "\ud800",
    [],
    {},
    [1, 2],
    {"a": 1},
    [[]] * 3,
    "silu",
    "64",
)
INDEX = "model.safetensors.index.json"

Change = Callable[[random.Random, Path], None]


def change_field(draw: random.Random, folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    fields = draw.choice([config, config.get("text_config", config)])
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        inner = draw.choice([value for value in fields.values() if isinstance(value, dict) and value] or [fields])
        chosen = draw.choice([fields, fields, inner])
        chosen[draw.choice(list(chosen))] = draw.choice(NUMBERS + ODD)
    path.write_text(json.dumps(config))


def drop_field(draw: random.Random, folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name in draw.sample(list(config), draw.choice([1, 2, 5])):
        del config[name]
    path.write_text(json.dumps(config))


def add_field(draw: random.Random, folder: Path) -> None:
    path = folder / "config.json"
    name = draw.choice(["quantization_config", "rope_scaling", "rope_parameters", "layer_types", "text_config",
                        "dtype", "num_local_experts", "is_causal", "sliding_window", "vocab_size", "new"])  # fmt: skip
    text = path.read_text().rstrip().rstrip("}")
    path.write_text(f"{text}, {json.dumps(name)}: {json.dumps(draw.choice(NUMBERS + ODD))}}}")


def nest(draw: random.Random, folder: Path) -> None:
    depth = draw.choice([50, 5000, 500_000])
    (folder / draw.choice(["config.json", INDEX])).write_text('{"a": ' * depth + "[" * depth)


def flip_bytes(draw: random.Random, folder: Path) -> None:
    path = draw.choice(sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")))
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 3, 30])):
        # Most of a file of weights are numbers, of which any is right.
        content[draw.randrange(min(len(content), 4096))] = draw.randrange(256)
    path.write_bytes(content)


def cut(draw: random.Random, folder: Path) -> None:
    path = draw.choice(sorted(folder.iterdir()))
    content = path.read_bytes()
    path.write_bytes(content[: draw.choice([0, 1, 7, 8, 9, len(content) // 2, len(content) - 1])])


def change_header(draw: random.Random, folder: Path) -> None:
    path = draw.choice(sorted(folder.glob("*.safetensors")))
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    name = draw.choice(list(header))
    entry = header[name]
    what = draw.choice(["dtype", "shape", "data_offsets", "entry", "name", "length"])
    if what == "entry" or not isinstance(entry, dict) or what not in entry:
        header[name] = draw.choice(ODD)
    elif what == "dtype":
        entry[what] = draw.choice(["F32", "F64", "I8", "BOOL", "F8_E4M3", "F4", "C64", "U64"])
    else:
        values = entry[what] = list(entry[what]) or [1]
        values[draw.randrange(len(values))] = draw.choice(NUMBERS[:-2])
    if what == "name":
        header[draw.choice(["model.layers.0", "lm_head.weight", "v_head.x", "a.bias", ""])] = header.pop(name)
    new = json.dumps(header).encode()
    announced = len(new) if what != "length" else draw.choice([0, 1, len(new) + 1, 1 << 25, 1 << 40, (1 << 64) - 1])
    path.write_bytes(struct.pack("<Q", announced) + new + content[8 + length :])


def change_index(draw: random.Random, folder: Path) -> None:
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(4)] + ["model.norm.weight", "x"]
    targets = [*files, "../a.safetensors", "no.safetensors", "a.bin", "\0", 7, None]
    index = {"weight_map": {name: draw.choice(targets) for name in draw.sample(names, 3)}}
    (folder / INDEX).write_text(json.dumps(draw.choice([index, index, {}, [], {"weight_map": draw.choice(ODD)}])))


def no_regular_file(draw: random.Random, folder: Path) -> None:
    path = draw.choice(sorted(folder.iterdir()))
    path.unlink()
    if draw.random() < 0.5:
        path.mkdir()
    else:
        path.symlink_to(draw.choice(["/dev/zero", "/dev/null", "nowhere", path.name, "/proc/self/mem"]))


CHANGES: tuple[Change, ...] = (change_field, change_field, change_field, drop_field, add_field, nest, flip_bytes, cut,
                               flip_bytes, change_header, change_header, change_index, no_regular_file)  # fmt: skip


def broken(number: int, bases: Path, folder: Path) -> str:
    """Writes the broken checkpoint of a number; returns what was done."""
    draw = random.Random(number)
    base, change = draw.choice([name for name in BASES if (bases / name).exists()]), draw.choice(CHANGES)
    shutil.copytree(bases / base, folder)
    change(draw, folder)
    return f"{number}: {change.__name__} of {base}"


def main(bases: Path, first: int, count: int) -> dict[str, Any]:
    for name in BASES:
        if name in checkpoints.NAMES:
            checkpoints.make(name, bases)
    outcomes: collections.Counter[str] = collections.Counter()
    foreign, slowest = [], (0.0, "")
    for number in range(first, first + count):
        folder = bases / "broken"
        what = broken(number, bases, folder)
        started = time.perf_counter()
        try:
            lazyload.plan(folder, cache_dir=bases / "cache")
            outcomes["plans"] += 1
        except LazyLoadError as error:
            outcomes[type(error).__name__] += 1
            if len(str(error)) > 10_000:
                foreign.append(f"{what}: a message of {len(str(error))} characters")
        except Exception as error:
            outcomes["foreign errors"] += 1
            foreign.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        slowest = max(slowest, (time.perf_counter() - started, what))
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    megabytes = int(peak_megabytes())
    return {"outcomes": outcomes, "foreign": foreign, "slowest": slowest, "megabytes": megabytes}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
