"""The benchmarks run, and say what they could not measure; how long anything takes is not asked here."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--gigabytes", "0.005", "--models", "dense", "--mesh", "8", "--mesh", "4,2", "--mesh", "16", "--repeat", "1"),
    *("--packings", "plain", "awq", "--packed-gigabytes", "0.01", "--maxtext-model", "tiny"),
    *("--arrays", "13", "24", "--entries", "3", "--processes", "2"),
    *("--train-layers", "1", "--train-width", "64", "--remat", "none", "--depths", "1", "2"),
]
PEERS = ["tunix", "transformers", "runai", "fastsafetensors", "maxtext"]

# What each suite measures without any other program, and what else it has.
SUITES = {
    "load": (
        "read-first read reread device-put first warm warm@4,2 orbax orbax@4,2 orbax-safetensors",
        "link tunix transformers runai fastsafetensors warm@16 orbax@16",
    ),
    "convert": ("read-write cold cold-first convert copy convert-process", ""),
    "hub": ("download from-hub", ""),
    "bucket": ("get hit-bucket convert-bucket", ""),
    "hit": ("hit-folder hit-hub", ""),
    "start": ("import-jax import-lazyload import-loader import-flax import-typer-rich ls", ""),
    "packed": ("packed-plain packed-awq", ""),
    "maxtext": ("to-maxtext-scanned to-maxtext-unscanned", "maxtext-scanned maxtext-unscanned"),
    "growth": ("warm-13-arrays convert-13-arrays warm-24-arrays convert-24-arrays", ""),
    "save": ("save export", ""),
    "train": ("step-none compile-1 compile-2", "step-none-tunix"),
    "fleet": ("miss-2 hit-2", ""),
}


def benchmarks(folder: Path, *words: str) -> tuple[str, dict[str, Any]]:
    """Runs the command; what it printed, and its JSON."""
    out = folder / "out.json"
    command = [sys.executable, "-m", "tests.benchmarks", *SMALL, "--folder", str(folder), "--json", str(out), *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, json.loads(out.read_text())


@pytest.mark.parametrize(
    "suites",
    [
        ["load", "hub"],
        ["convert", "hit", "bucket", "start"],
        ["packed", "maxtext", "growth"],
        ["save", "train", "fleet"],
    ],
    ids=" ".join,
)
def test_suites_measure_every_row_and_say_which_they_could_not(suites: list[str], tmp_path: Path) -> None:
    # A Python that there is not: what is installed beside this library makes no difference.
    nowhere = [word for peer in PEERS for word in ("--python", f"{peer}={tmp_path / 'no-python'}")]
    printed, found = benchmarks(tmp_path, "--suites", *suites, *nowhere)
    measured, missing = ({name for suite in suites for name in SUITES[suite][part].split()} for part in (0, 1))
    if "load" in suites and importlib.metadata.version("orbax-checkpoint").startswith("0.11."):
        missing, measured = missing | {"orbax-safetensors"}, measured - {"orbax-safetensors"}
    if "bucket" in suites and importlib.util.find_spec("gcsfs") is None:
        buckets = set(SUITES["bucket"][0].split())
        missing, measured = missing | buckets, measured - buckets
    rows = {row["name"]: row for experiment in found["experiments"] for row in experiment["rows"]}
    assert {name for name, row in rows.items() if row["samples"]} == measured
    assert {name for name, row in rows.items() if row["missing"]} == missing
    for name in measured:
        assert [sample["seconds"] > 0 for sample in rows[name]["samples"]] == [True], name
        assert rows[name]["title"] in printed
    for name in missing:
        assert f"not measured: {name}: {rows[name]['missing']}" in printed
    for name in missing & {*PEERS, "step-none-tunix"}:
        assert "no-python cannot be run" in rows[name]["missing"]
    for bar in (bar for experiment in found["experiments"] for bar in experiment["bars"]):
        assert (bar["met"] is None) == (bar["why"] != ""), bar["title"]
        assert bar["title"] in printed
    assert set(found["machine"]["peers"]) == set(PEERS)


def test_the_tables_and_the_chart(tmp_path: Path) -> None:
    markdown, picture = tmp_path / "out.md", tmp_path / "out.svg"
    out = ("--markdown", str(markdown), "--chart", str(picture))
    benchmarks(tmp_path, "--suites", "load", "--rows", "read", "reread", "--peers", *out)
    lines = markdown.read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| bare")] == [
        "| bare read into fresh memory",
        "| bare read into memory that is there",
    ]
    bars = ElementTree.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 2


def test_a_row_of_ours_that_fails_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks", *SMALL, "--folder", str(tmp_path), "--suites", "load"]
    words = ["--rows", "read", "--timeout", "0", "--peers"]
    ended = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "not measured: read: failed: no answer within 0 s" in ended.stdout
    assert "failed: read" in ended.stderr


@pytest.mark.parametrize("option", [["--folder", "none"], ["--json", "none/out.json"]], ids=lambda option: option[0])
def test_a_folder_that_is_not_there_is_said_at_once(option: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks", *SMALL, option[0], str(tmp_path / option[1])]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"{tmp_path / 'none'} is no folder" in ended.stderr
    assert "Traceback" not in ended.stderr
