"""The experiments there are: what is loaded, converted, saved, trained and started, beside what others do."""

import contextlib
import importlib.metadata
import importlib.util
import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lazyload
from lazyload.display import text
from tests.benchmarks import maxtext, models, packings
from tests.benchmarks.bars import Bar, Round, figure, memory, ratio
from tests.benchmarks.experiments import Experiment, Row
from tests.benchmarks.measure import once
from tests.benchmarks.peers import Peer
from tests.support import cloud_storage, entries
from tests.support.cloud_storage import CloudStorage
from tests.support.hub import Hub

Storage = Mapping[str, bool]


@dataclass(frozen=True)
class Settings:
    """What is measured, and where.

    Attributes:
        folder: Where models and caches are written.
        gigabytes: The sizes of models.
        kinds: "dense", "moe".
        meshes: The meshes; with the first one everything is measured.
        storages: The storage flags; none are the default.
        peers: The other programs.
        memory: Bytes of the machine's memory.
        devices: The number of devices.
        accelerated: Whether these have a memory of their own.
        packings: The packings of packed weights.
        packed_gigabytes: The size of a model with packed weights, unpacked.
        maxtext: What MaxText calls the model that is converted into its layout, or "tiny", which it does not know.
        arrays: The numbers of arrays of models that are of many small ones.
        entries: The number of entries in the cache that is listed.
        rate: Bytes a second that the hub sends.
        train_layers: The layers of a model that is trained.
        train_width: Its width.
        remat: What is computed again in its backward pass: "none", "block".
        depths: The layers, in stacks, of models whose train step is compiled.
        processes: How many processes load a model together.
    """

    folder: Path
    gigabytes: Sequence[float]
    kinds: Sequence[str]
    meshes: Sequence[tuple[int, ...]]
    storages: Sequence[Storage]
    peers: Mapping[str, Peer]
    memory: int
    devices: int
    accelerated: bool
    packings: Sequence[str]
    packed_gigabytes: float
    maxtext: str
    arrays: Sequence[int]
    entries: int
    rate: float
    train_layers: int
    train_width: int
    remat: Sequence[str]
    depths: Sequence[int]
    processes: Sequence[int]

    def job(self, model: Path | str, **values: object) -> dict[str, Any]:
        """What a contender is told."""
        told: dict[str, Any] = {
            "model": str(model),
            "revision": None,
            "cache": str(self.folder / "cache"),
            "mesh": self.meshes[0],
            "storage": {},
            "layout": "nnx",
            "environment": {},
        }
        return told | values

    def by(self, peer: str) -> dict[str, Any]:
        """Who runs another program's row, or why nobody does."""
        found = self.peers.get(peer)
        if found is None:
            return {"by": peer, "missing": "not among the peers that were asked for"}
        return {"by": peer, "python": found.python, "missing": "" if found.python else found.said}

    def held(self, nbytes: int) -> int:
        """Of arrays on the devices, the bytes that lie in the host's memory."""
        return 0 if self.accelerated else nbytes


Suite = Callable[[Settings], Iterator[Experiment]]

_PYTHON = sys.executable
_WRITE = {"dense": models.dense, "moe": models.experts}
_KINDS = {"dense": "dense", "moe": "128 experts a layer"}


def loads(settings: Settings) -> Iterator[Experiment]:
    """Loads of what is in the cache, beside bare reads and other loaders."""
    for title, model, storage in _cases(settings):
        nbytes = models.nbytes_on_disk(model)
        held = settings.held(nbytes)
        job = settings.job(model, storage=storage)
        files = len(list(model.glob("*.safetensors")))
        row = partial(Row, job=job, nbytes=nbytes, python=_PYTHON)
        bare = partial(row, by="the machine", files=files)
        torch = partial(Row, job=job, nbytes=nbytes, files=files, held=held)
        # What these keep in memory all the time must leave room for the others.
        large = f"{text.size(nbytes)} kept in memory are too much here" if nbytes > settings.memory / 6 else ""
        no_link = "" if settings.accelerated else "there is no accelerator, and so no link to it"
        rows = [
            bare("read-first", "bare read, first of a process", function="read", first=True, held=nbytes),
            bare("read", "bare read into fresh memory", function="read", held=nbytes),
            bare("reread", "bare read into memory that is there", function="reread", missing=large),
            row("device-put", "`device_put` of the same bytes", "the machine", "device_put", held=held, missing=large),
            row("link", "`device_put` from pinned memory", "the machine", "link", missing=no_link),
            row("first", "load, first of a process, with imports", "lazyload", "load", first=True, held=held),
            row("warm", "load", "lazyload", "load", held=held),
            row("orbax", "Orbax's restore of the same entry", "Orbax", "orbax", held=held),
            row(
                "orbax-safetensors",
                "Orbax v1, safetensors layout",
                "Orbax",
                "orbax_safetensors",
                held=held,
                files=files,
                missing=_orbax_is_old(),
            ),
            torch("tunix", "Tunix's loader", function="tunix", **settings.by("tunix")),
            torch("transformers", "transformers, to the host", function="transformers", **settings.by("transformers")),
            torch("runai", "Run:ai model streamer, one device", function="runai", **settings.by("runai")),
            torch(
                "fastsafetensors",
                "fastsafetensors, one device",
                function="fastsafetensors",
                **settings.by("fastsafetensors"),
            ),
        ]
        bars = [
            ratio("warm load / bare read, repeated in one process", "warm", "read", 2.5),
            Bar(
                "first load of a process, above the bare read / (0.35 s + 1.5 reads)",
                ("first", "read-first"),
                _above,
                1,
            ),
            ratio("warm load / Orbax's restore of the same entry", "warm", "orbax", 0.5),
            memory("warm load: peak above parameters and imports", "warm", 128, held),
        ]
        for mesh in settings.meshes[1:]:
            name = ",".join(map(str, mesh))
            few = math.prod(mesh) > settings.devices
            other = partial(
                row,
                job={**job, "mesh": mesh},
                held=held,
                missing=f"the mesh needs {math.prod(mesh)} devices, and there are {settings.devices}" if few else "",
            )
            rows += [
                other(f"warm@{name}", f"load, mesh ({name})", "lazyload", "load"),
                other(f"orbax@{name}", f"Orbax's restore, mesh ({name})", "Orbax", "orbax"),
            ]
            first = ",".join(map(str, settings.meshes[0]))
            bars += [
                ratio(f"warm load, mesh ({name}) / mesh ({first})", f"warm@{name}", "warm", 1.2),
                ratio(f"warm load / Orbax's restore, mesh ({name})", f"warm@{name}", f"orbax@{name}", 0.5),
            ]
        yield Experiment(f"load, {title}", rows, bars, "read")


def storages(settings: Settings) -> Iterator[Experiment]:
    """Loads beside Orbax's, for each way in which a checkpoint can be stored without compression."""
    for kind in settings.kinds:
        model = _model(settings, kind, min(settings.gigabytes))
        nbytes = models.nbytes_on_disk(model)
        rows, bars = [], []
        for ocdbt, zarr3 in itertools.product((True, False), repeat=2):
            name = f"{'ocdbt' if ocdbt else 'files'},{'zarr3' if zarr3 else 'zarr2'}"
            job = settings.job(model, storage={"ocdbt": ocdbt, "zarr3": zarr3})
            row = partial(Row, job=job, nbytes=nbytes, python=_PYTHON, held=settings.held(nbytes))
            rows += [
                row(f"warm-{name}", f"load, {name}", "lazyload", "load"),
                row(f"orbax-{name}", f"Orbax's restore, {name}", "Orbax", "orbax"),
            ]
            bars.append(ratio(f"warm load / Orbax's restore, {name}", f"warm-{name}", f"orbax-{name}", 0.5))
        yield Experiment(f"storage flags, {_KINDS[kind]}, {_size(model)}", rows, bars, rows[0].name)


def conversions(settings: Settings) -> Iterator[Experiment]:
    """Conversions and cold loads, beside copies of as many bytes."""
    for title, model, storage in _cases(settings):
        nbytes, files = models.nbytes_on_disk(model), len(list(model.glob("*.safetensors")))
        held = settings.held(nbytes)
        job = settings.job(model, storage=storage)
        row = partial(Row, job=job, nbytes=nbytes, files=files, python=_PYTHON)
        flags = [f"--{'' if on else 'no-'}{name}" for name, on in storage.items()]

        def copy(folder: Path, model: Path = model) -> Sequence[str]:
            return ["sh", "-c", 'cp -r "$1" copy && sync copy/*', "sh", str(model)]

        def convert(folder: Path, model: Path = model, flags: Sequence[str] = tuple(flags)) -> Sequence[str]:
            return maxtext.lazyload("convert", model, "--cache-dir", folder, *flags)

        rows = [
            row("read-write", "bare read; write and sync as much", "the machine", "read_and_write", held=nbytes),
            row("cold", "load with an empty cache", "lazyload", "cold", held=held),
            row("cold-first", "the same, first of a process, with imports", "lazyload", "cold", first=True, held=held),
            row("convert", "convert", "lazyload", "convert"),
            row("copy", "`cp -r` and `sync`, process", "the machine", words=copy),
            row("convert-process", "`lazyload convert`, process", "lazyload", words=convert),
        ]
        bars = [
            ratio("cold load / (bare read + writing and syncing as many bytes)", "cold", "read-write", 1.5),
            ratio("`lazyload convert`, process / `cp -r` and `sync`", "convert-process", "copy", 2),
            memory("cold load: peak above parameters and imports", "cold", 300, held),
            memory("convert: peak above imports", "convert", 300),
        ]
        yield Experiment(f"convert, {title}", rows, bars, "read-write")


def hub(settings: Settings) -> Iterator[Experiment]:
    """A cold load from a hub that sends at a known rate, beside the bare download."""
    for gigabytes in settings.gigabytes:
        model = _model(settings, "dense", gigabytes)
        with _serving(model) as served:
            served.rate = settings.rate
            job = _from_hub(settings, served, files=sorted(path.name for path in model.iterdir()))
            job["environment"]["HF_HUB_CACHE"] = "{scratch}/hub"
            row = partial(Row, job=job, nbytes=models.nbytes_on_disk(model), python=_PYTHON, first=True)
            rows = [
                row("download", "bare download", "the machine", "download"),
                row("from-hub", "load with an empty cache, first of a process", "lazyload", "cold"),
            ]
            bars = [ratio("cold load from the hub / the bare download", "from-hub", "download", 1.15)]
            title = f"hub at {settings.rate / 1e6:.0f} MB/s, dense, {_size(model)}"
            yield Experiment(title, rows, bars, "download")


def bucket(settings: Settings) -> Iterator[Experiment]:
    """A cache in a bucket on loopback, beside the bare requests; and how many requests a hit makes."""
    missing = "" if importlib.util.find_spec("gcsfs") else "gcsfs is not installed"
    for gigabytes in settings.gigabytes:
        model = _model(settings, "dense", gigabytes)
        store = cloud_storage.start()
        files = sorted(model.glob("*.safetensors"))
        for path in files:
            store.put("bucket", f"source/{path.name}", path.read_bytes(), {})
        objects = [(f"{store.url}/download/storage/v1/b/bucket/o/source%2F{p.name}", p.stat().st_size) for p in files]
        job = settings.job(model, cache="gs://bucket/cache", environment=store.environment(), objects=objects)
        row = partial(Row, job=job, nbytes=models.nbytes_on_disk(model), python=_PYTHON, missing=missing)
        rows = [
            row("get", "bare requests for the source's bytes", "the machine", "get"),
            row("hit-bucket", "load from a bucket", "lazyload", "load"),
            row("convert-bucket", "conversion into a bucket", "lazyload", "convert_into_bucket"),
        ]
        bars = [ratio("load from a bucket / bare requests", "hit-bucket", "get", 2)]
        if not missing:
            further = _requests_of_a_hit(settings, store, model, job) - -(-models.nbytes_on_disk(model) // (16 << 20))
            title = "requests of a hit, beyond one for every 16 MiB"
            bars.append(Bar(title, ("hit-bucket",), lambda _, number=further: number, 20, "requests"))
        yield Experiment(f"bucket on loopback, dense, {_size(model)}", rows, bars, "get")


def _requests_of_a_hit(settings: Settings, store: CloudStorage, model: Path, job: Mapping[str, Any]) -> int:
    told = {**job, "scratch": str(settings.folder)}
    once(_PYTHON, "convert_into_bucket", told, timeout=600)
    store.forget_counts()
    once(_PYTHON, "load", told, timeout=600)
    return sum(store.requests.values())


def decisions(settings: Settings) -> Iterator[Experiment]:
    """How long it takes to find that a converted checkpoint is there."""
    model = _model(settings, "dense", min(settings.gigabytes))
    with _serving(model) as served:
        from_hub = _from_hub(settings, served, revision=served.commit(_ID))
        from_hub["environment"]["HF_HUB_CACHE"] = str(settings.folder / "hub")
        row = partial(Row, by="lazyload", function="decide", python=_PYTHON)
        rows = [
            row("hit-folder", "a folder", job=settings.job(model)),
            row("hit-hub", "a commit of the hub, cached", job=from_hub),
        ]
        bars = [
            Bar(f"deciding that it is a hit: {row.title}", (row.name,), _milliseconds(row.name), 10, "ms")
            for row in rows
        ]
        yield Experiment("deciding that it is a hit", rows, bars)


def start(settings: Settings) -> Iterator[Experiment]:
    """What imports and the command take."""
    yield Experiment(
        "start",
        [
            _python_row("import-jax", "`import jax`", "the machine", "import jax"),
            _python_row("import-lazyload", "`import jax, lazyload`", "lazyload", "import jax, lazyload"),
            _python_row("import-loader", "`import jax, lazyload.loader`", "lazyload", "import jax, lazyload.loader"),
            _python_row("import-flax", "`import jax, flax.nnx`", "Flax", "import jax, flax.nnx"),
        ],
        [
            Bar(
                "`import lazyload` beyond `import jax`",
                ("import-lazyload", "import-jax"),
                lambda found: (found["import-lazyload"].seconds - found["import-jax"].seconds) * 1e3,
                50,
                "ms",
            )
        ],
        "import-jax",
    )
    root = settings.folder / "many-entries"
    small = models.dense(settings.folder / "models" / "listed", 0.02)
    arrays = lazyload.convert(small, cache_dir=settings.folder / "cache", progress=False).manifest.arrays
    for number in range(settings.entries):
        entries.publish(root, f"org/model-{number}", arrays=arrays)
    words = maxtext.lazyload("cache", "ls", "--cache-dir", root)
    yield Experiment(
        f"`lazyload cache ls`, {settings.entries:,} entries",
        [
            _python_row("import-typer-rich", "`import typer, rich`", "the machine", "import typer, rich"),
            Row("ls", "`lazyload cache ls`", "lazyload", words=lambda _: words),
        ],
        [ratio("`lazyload cache ls` / `python -c 'import typer, rich'`", "ls", "import-typer-rich", 2)],
        "import-typer-rich",
    )


def packed(settings: Settings) -> Iterator[Experiment]:
    """Conversions of packed weights, beside one of bfloat16."""
    rows, bars = [], []
    width = 2048 if settings.packed_gigabytes >= 0.2 else 512
    for name in settings.packings:
        folder = settings.folder / "models" / f"packed {name}"
        if not folder.exists():
            packings.write(folder, name, settings.packed_gigabytes, width)
        job = settings.job(folder)
        nbytes = lazyload.plan(folder).nbytes
        rows.append(Row(f"packed-{name}", name, "lazyload", "convert", job, python=_PYTHON, nbytes=nbytes))
        bars.append(memory(f"convert, {name}: peak above imports", f"packed-{name}", 300))
    yield Experiment("convert packed weights, a size of unpacked bfloat16", rows, bars, "packed-plain")


def to_maxtext(settings: Settings) -> Iterator[Experiment]:
    """Whole processes that convert into MaxText's layout."""
    name = settings.maxtext
    model = models.published(settings.folder / "models" / name, name)
    row = partial(Row, nbytes=models.nbytes_on_disk(model))
    theirs = settings.by("maxtext")
    if name == "tiny" and not theirs["missing"]:
        theirs |= {"missing": "MaxText has no model of these shapes"}
    for form in ("scanned", "unscanned"):
        scanned = form == "scanned"

        def own(folder: Path, scanned: bool = scanned) -> Sequence[str]:
            return maxtext.ours(model, folder, scanned=scanned)

        def other(folder: Path, scanned: bool = scanned) -> Sequence[str]:
            return maxtext.theirs(theirs["python"], name, model, folder, scanned=scanned)

        rows = [
            row(f"to-maxtext-{form}", "`lazyload convert`, process", "lazyload", words=own),
            row(f"maxtext-{form}", "MaxText's converter, process", words=other, **theirs),
        ]
        # MaxText's converter is measured where layers are scanned: so it is fastest.
        limit = 8 if scanned else 16
        title = f"MaxText's converter, {form} / `lazyload convert`"
        bars = [ratio(title, f"maxtext-{form}", f"to-maxtext-{form}", limit, at_least=True)]
        yield Experiment(f"into MaxText's layout, {form}, {_size(model)}", rows, bars, f"to-maxtext-{form}")


def growth(settings: Settings) -> Iterator[Experiment]:
    """Larger and larger models, and models of more and more small arrays."""
    sizes = [_model(settings, "dense", gigabytes) for gigabytes in sorted(settings.gigabytes)]
    if len(sizes) > 1:
        yield _growing(settings, "bytes", {models.nbytes_on_disk(model): model for model in sizes})
    many = {
        number: models.many_arrays(settings.folder / "models" / f"{number} arrays", number)
        for number in sorted(settings.arrays)
    }
    yield _growing(settings, "arrays", many)


def _growing(settings: Settings, unit: str, found: Mapping[int, Path]) -> Experiment:
    """Loads and conversions of models, by how large they are: the last one beside the one before, and the first."""
    rows: list[Row] = []
    for amount, model in found.items():
        nbytes = models.nbytes_on_disk(model)
        row = partial(Row, by="lazyload", job=settings.job(model), python=_PYTHON, nbytes=nbytes)
        held = settings.held(nbytes)
        rows += [
            row(f"warm-{amount}-{unit}", f"load, {amount:,} {unit}", function="load", held=held),
            row(f"convert-{amount}-{unit}", f"convert, {amount:,} {unit}", function="convert"),
        ]
    by_name = {row.name: row for row in rows}
    bars = []
    if len(found) > 1:
        first, *_, few, many = found if len(found) > 2 else [min(found), *found]
        for what in ("warm", "convert"):
            of = partial(_per_unit, f"{what}-{many}-{unit}", many, f"{what}-{few}-{unit}", few)
            pair = (f"{what}-{many}-{unit}", f"{what}-{few}-{unit}")
            bars.append(Bar(f"{what}: time by {unit}, {many:,} / {few:,}", pair, of, 1.2))
            most, least = by_name[f"{what}-{many}-{unit}"], by_name[f"{what}-{first}-{unit}"]
            title = f"{what}: peak above rest, {many:,} {unit} - {first:,}"
            bars.append(Bar(title, (most.name, least.name), partial(_more_memory, most, least), 64, "MB", peak=True))
    return Experiment(f"growth with the number of {unit}", rows, bars)


def saves(settings: Settings) -> Iterator[Experiment]:
    """A model that is written as the hub would hold it, from memory and from the cache."""
    for gigabytes in sorted(settings.gigabytes, reverse=True):
        model = _model(settings, "dense", gigabytes)
        row = partial(Row, by="lazyload", job=settings.job(model), nbytes=models.nbytes_on_disk(model), python=_PYTHON)
        rows = [
            row("save", "`save_pretrained` of a model", function="save"),
            row("export", "`export` of a checkpoint of MaxText's, with stacked layers", function="export"),
        ]
        bars = [memory(f"{row.name}: peak above rest", row.name, 512) for row in rows]
        yield Experiment(f"save, dense, {_size(model)}", rows, bars)


def train(settings: Settings) -> Iterator[Experiment]:
    """A train step beside that of Tunix's own class, and how long deep models take to compile."""
    job = settings.job("", layers=settings.train_layers, width=settings.train_width, length=128)
    # Whatever devices there are: what is compared is exact on simulated ones, too.
    alone = partial(Row, by="lazyload", function="lazyload", python=_PYTHON, file="bench_train.py")
    simulated = {"JAX_PLATFORMS": "cpu"}
    theirs = settings.by("tunix")
    beside = partial(alone, python=theirs.get("python") or _PYTHON)
    if beside.keywords["python"] != _PYTHON:
        simulated = {**simulated, "PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    for remat in settings.remat:
        told = {**job, "environment": simulated, "remat": remat, "scan_layers": False}
        ours, other = f"step-{remat}", f"step-{remat}-tunix"
        rows = [
            Row(other, "Tunix's Qwen 3", function="tunix", job=told, file="bench_train.py", **theirs),
            beside(ours, "the decoder", job=told),
        ]
        bars = [
            figure(f"a step's {name} / Tunix's", ours, other, name, 1)
            for name in ("temporaries, MB", "all-gather", "all-to-all")
        ]
        bars += [
            figure("a step's compile time / Tunix's", ours, other, "compile, s", 1.25),
            ratio("a step's time / Tunix's", ours, other, 1.1),
        ]
        yield Experiment(f"train step, {settings.train_layers} layers, remat {remat}", rows, bars, other)
    deep = {**job, "width": 64, "environment": {"JAX_PLATFORMS": "cpu"}, "remat": "none", "scan_layers": True}
    rows = [
        alone(f"compile-{count}", f"{count} layers in a stack", function="compilation", job={**deep, "layers": count})
        for count in sorted(settings.depths)
    ]
    title = f"compile time, {max(settings.depths)} layers / {min(settings.depths)}"
    bars = [ratio(title, rows[-1].name, rows[0].name, 1.5)]
    yield Experiment("compilation of a train step, layers in stacks", rows, bars, rows[0].name)


def fleets(settings: Settings) -> Iterator[Experiment]:
    """Loads by several processes together, and what share each of them reads."""
    # Of a small one a share is a few chunks, which cannot be dealt evenly.
    model = _model(settings, "dense", max(settings.gigabytes))
    nbytes = models.nbytes_on_disk(model)
    kinds = (("miss", "of a folder that is not converted", 1.05), ("hit", "of what is in the cache", 1.2))
    for kind, what, most in kinds:
        rows = [
            Row(
                f"{kind}-{count}",
                f"{count} process{'es' if count > 1 else ''}",
                "lazyload",
                kind,
                settings.job(model, processes=count, nbytes=nbytes),
                python=_PYTHON,
                nbytes=nbytes,
                file="bench_fleet.py",
            )
            for count in settings.processes
        ]
        bars = [
            Bar(f"{row.title}: the most that one reads, of a share", (row.name,), partial(_of_a_share, row.name), most)
            for row in rows
        ]
        yield Experiment(f"loads {what}, {_size(model)}", rows, bars, rows[0].name)


def _of_a_share(row: str, found: Round) -> float:
    return found[row].figures["of a share"]


SUITES: Mapping[str, Suite] = {
    "load": loads,
    "storage": storages,
    "convert": conversions,
    "hub": hub,
    "bucket": bucket,
    "hit": decisions,
    "start": start,
    "packed": packed,
    "maxtext": to_maxtext,
    "growth": growth,
    "save": saves,
    "train": train,
    "fleet": fleets,
}


_ID = "org/model"


def _cases(settings: Settings) -> Iterator[tuple[str, Path, Storage]]:
    """Models, the largest of a kind first, and how they are stored."""
    for kind in settings.kinds:
        for gigabytes in sorted(settings.gigabytes, reverse=True):
            model = _model(settings, kind, gigabytes)
            for storage in settings.storages:
                stored = ", ".join(f"{'' if on else 'no '}{name}" for name, on in storage.items())
                yield f"{_KINDS[kind]}, {_size(model)}, {stored or 'default storage'}", model, storage


def _orbax_is_old() -> str:
    """Why Orbax's safetensors layout cannot be measured; empty if it can."""
    version = importlib.metadata.version("orbax-checkpoint")
    old = tuple(map(int, version.split(".")[:2])) < (0, 12)
    return f"needs Orbax 0.12, and this is {version}" if old else ""


def _model(settings: Settings, kind: str, gigabytes: float) -> Path:
    """A model, written once."""
    folder = settings.folder / "models" / f"{kind} {gigabytes:g}"
    return folder if folder.exists() else _WRITE[kind](folder, gigabytes)


def _size(model: Path) -> str:
    return text.size(models.nbytes_on_disk(model))


@contextlib.contextmanager
def _serving(model: Path) -> Iterator[Hub]:
    """A hub that has a model, by `_ID`."""
    served = Hub()
    served.add(_ID, model)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.shutdown()
        thread.join()
        served.server_close()


def _from_hub(settings: Settings, served: Hub, **values: object) -> dict[str, Any]:
    return settings.job(_ID, environment={"HF_ENDPOINT": served.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}, **values)


def _python_row(name: str, title: str, by: str, code: str) -> Row:
    return Row(name, title, by, words=lambda _: [_PYTHON, "-c", code])


def _above(found: Round) -> float:
    """The first load's time above the bare read, as a share of what it may be."""
    read = found["read-first"].seconds
    return (found["first"].seconds - read) / (0.35 + 1.5 * read)


def _milliseconds(row: str) -> Callable[[Round], float]:
    return lambda found: found[row].seconds * 1e3


def _per_unit(row: str, amount: int, other: str, less: int, found: Round) -> float:
    """How many times as long as the other row one takes for each of its bytes or arrays."""
    return found[row].seconds / amount / (found[other].seconds / less)


def _more_memory(row: Row, other: Row, found: Round) -> float | None:
    """The megabytes by which a row's peak, without what it keeps, is above another's."""
    peak, less = found[row.name].peak, found[other.name].peak
    return None if peak is None or less is None else ((peak - row.held) - (less - other.held)) / 1e6
