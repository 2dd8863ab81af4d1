"""How fast lazyload is, beside the machine and beside other programs, in one run.

    python -m tests.benchmarks --gigabytes 0.1 1.2 --mesh 8 --mesh 4,2 --mesh 1

Rows that are compared with each other are measured in turn, and what counts is the median of the ratios within a round.
tests/benchmarks/README.md says what the rows are, and how the other programs are found.
"""

import argparse
import dataclasses
import fnmatch
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.benchmarks import chart, peers, tables
from tests.benchmarks.experiments import Experiment, Outcome, run
from tests.benchmarks.machine import this_machine
from tests.benchmarks.packings import PACKINGS
from tests.benchmarks.suites import SUITES, Settings, Storage

_STORAGES: dict[str, Storage] = {
    "default": {},
    "ocdbt,zarr3": {"ocdbt": True, "zarr3": True},
    "ocdbt,zarr2": {"ocdbt": True, "zarr3": False},
    "files,zarr3": {"ocdbt": False, "zarr3": True},
    "files,zarr2": {"ocdbt": False, "zarr3": False},
}


def main() -> None:
    """Measures what is asked for; exits with 1 if one of our own rows failed."""
    parser = _parser()
    asked = parser.parse_args()
    written = [path.parent for path in (asked.json, asked.markdown, asked.chart) if path]
    for folder in [asked.folder, *written]:
        if folder and not folder.is_dir():
            parser.error(f"{folder} is no folder: make it first, or name another")
    meshes = [tuple(map(int, mesh.split(","))) for mesh in asked.mesh or ["8"]]
    given = dict(part.partition("=")[::2] for part in asked.python)
    found = {name: peers.find(name, given) for name in asked.peers}
    machine = this_machine({name: f"{name}: {peer.said}" for name, peer in found.items()})
    print(machine, flush=True)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        settings = Settings(
            folder=Path(folder),
            gigabytes=asked.gigabytes,
            kinds=asked.models,
            meshes=meshes,
            storages=[_STORAGES[name] for name in asked.storage or ["default"]],
            peers=found,
            memory=machine.memory,
            devices=machine.devices,
            accelerated=machine.is_accelerated,
            packings=asked.packings,
            packed_gigabytes=asked.packed_gigabytes,
            maxtext=asked.maxtext_model,
            arrays=asked.arrays,
            entries=asked.entries,
            rate=asked.rate * 1e6,
            train_layers=asked.train_layers,
            train_width=asked.train_width,
            remat=asked.remat,
            depths=asked.depths,
            processes=asked.processes,
        )
        outcomes = list(_outcomes(settings, asked))
    elsewhere = ("folder", "python", "json", "markdown", "chart")
    options = {name: value for name, value in vars(asked).items() if name not in elsewhere}
    _write(asked.json, json.dumps(tables.as_json(outcomes, machine, options), indent=1) + "\n")
    if asked.markdown:
        page = asked.markdown.read_text() if asked.markdown.exists() else ""
        _write(asked.markdown, tables.between_marks(page, tables.as_markdown(outcomes, machine)))
    if asked.chart:
        _write(asked.chart, chart.draw(next(outcome for outcome in outcomes if outcome.samples)))
    failed = [name for outcome in outcomes for name in _failed_of_ours(outcome)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def _outcomes(settings: Settings, asked: argparse.Namespace) -> Iterator[Outcome]:
    """Runs what is asked for, and prints each experiment when it is done."""
    for name in asked.suites:
        for experiment in SUITES[name](settings):
            chosen = _chosen(experiment, asked.rows)
            if not chosen.rows:
                continue
            outcome = run(chosen, settings.folder, repeat=asked.repeat, timeout=asked.timeout, say=_say)
            print(f"\n{tables.as_text(outcome)}", flush=True)
            yield outcome


def _chosen(experiment: Experiment, patterns: Sequence[str]) -> Experiment:
    """The rows that are asked for, and the bars that speak of them alone."""
    rows = [row for row in experiment.rows if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)]
    names = {row.name for row in rows}
    bars = [bar for bar in experiment.bars if names.issuperset(bar.rows)]
    return dataclasses.replace(experiment, rows=rows, bars=bars)


def _failed_of_ours(outcome: Outcome) -> list[str]:
    """The rows that failed and are no other program's."""
    ours = {row.name for row in outcome.experiment.rows if row.by in ("lazyload", "the machine") and not row.missing}
    return sorted(ours & outcome.missing.keys())


def _say(what: str) -> None:
    """What is going on, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what[:100]}", end="\r", file=sys.stderr, flush=True)


def _write(path: Path | None, content: str) -> None:
    if path:
        path.write_text(content)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is measured")
    add = what.add_argument
    add("--suites", nargs="+", default=list(SUITES), choices=SUITES, metavar="SUITE", help=f"of {_listed(SUITES)}")
    add("--rows", nargs="+", default=["*"], metavar="ROW", help="rows by name, with wildcards: 'warm*' read; all")
    add("--repeat", type=int, default=5, help="rounds; %(default)s")
    add("--timeout", type=float, default=900, metavar="SECONDS", help="for one call; %(default)s")
    with_ = parser.add_argument_group("with what")
    add = with_.add_argument
    add("--gigabytes", nargs="+", type=float, default=[0.1, 1.2], metavar="SIZE", help="sizes of models; 0.1 1.2")
    add(
        "--models", nargs="+", default=["dense", "moe"], choices=["dense", "moe"], help="dense, of 128 experts, or both"
    )
    add("--mesh", action="append", metavar="SIZES", help="such as 8 or 4,2; may be repeated, the first one counts; 8")
    add("--storage", action="append", choices=_STORAGES, help="storage flags; may be repeated; default")
    add(
        "--packings", nargs="+", default=list(PACKINGS), choices=PACKINGS, metavar="NAME", help="of packed weights; all"
    )
    add("--packed-gigabytes", type=float, default=0.5, metavar="SIZE", help="of each, unpacked; %(default)s")
    add(
        "--maxtext-model",
        default="qwen3-0.6b",
        choices=["qwen3-0.6b", "qwen3-1.7b", "tiny"],
        help="what is converted into MaxText's layout; %(default)s",
    )
    add(
        "--arrays",
        nargs="+",
        type=int,
        default=[13, 200, 2000, 20000],
        metavar="NUMBER",
        help="of small ones; 13 200 2000 20000",
    )
    add("--entries", type=int, default=1000, metavar="NUMBER", help="in the cache that is listed; %(default)s")
    add("--rate", type=float, default=100, metavar="MB", help="megabytes a second that the hub sends; %(default)s")
    add("--train-layers", type=int, default=4, metavar="NUMBER", help="of the model that is trained; %(default)s")
    add("--train-width", type=int, default=512, metavar="SIZE", help="of it, a multiple of 16; %(default)s")
    add("--remat", nargs="+", default=["none", "block"], choices=["none", "block"], help="in its steps; both")
    add("--depths", nargs="+", type=int, default=[8, 64], metavar="NUMBER", help="of layers that are compiled; 8 64")
    add("--processes", nargs="+", type=int, default=[1, 2, 4], metavar="NUMBER", help="that load together; 1 2 4")
    beside = parser.add_argument_group("beside whom")
    add = beside.add_argument
    add("--peers", nargs="*", default=list(peers.PACKAGES), choices=peers.PACKAGES, metavar="PEER",
        help=f"of {_listed(peers.PACKAGES)}; all")  # fmt: skip
    add("--python", action="append", default=[], metavar="PEER=PYTHON", help="the Python that has a peer installed; "
        "else LAZYLOAD_BENCH_<PEER>_PYTHON names it, else it is this one")  # fmt: skip
    out = parser.add_argument_group("what becomes of it")
    add = out.add_argument
    add("--folder", type=Path, help="where models and caches are written, and removed; the temporary folder")
    add("--json", type=Path, metavar="FILE", help="every sample")
    add("--markdown", type=Path, metavar="FILE", help="tables; in a file with marks for them, between these")
    add("--chart", type=Path, metavar="FILE.svg", help="a picture of the first experiment")
    return parser


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


if __name__ == "__main__":
    main()
