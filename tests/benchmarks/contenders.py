"""What is measured call by call, one function a row.

A function gets a job (`Settings.job` makes it), prepares what is not to be measured, and returns what is: a function of
an empty folder that is its own for one call. What that returns is kept until the call has been measured, and closed if
it can be. Each is run by `worker.py` in an environment of its own, in which lazyload, or even JAX, need not be
installed; so nothing is imported that a row does not need.
"""

import contextlib
import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Job = Mapping[str, Any]
Call = Callable[[str], object]

_PIECE = 64 << 20


def read(job: Job) -> Call:
    """The bytes of the source's files in fresh memory, as many threads as cores: no load can be faster."""
    import numpy as np

    pieces = list(_pieces(job))

    def one(piece: tuple[Path, int, int]) -> object:
        path, start, nbytes = piece
        return _read_into(np.empty(nbytes, np.uint8), path, start)

    return lambda _: _in_threads(one, pieces)


def reread(job: Job) -> Call:
    """The same into memory that is there already, which is what a process has that loads a second time at best."""
    import numpy as np

    pieces = list(_pieces(job))
    memory = [np.zeros(nbytes, np.uint8) for _, _, nbytes in pieces]

    def one(number: int) -> object:
        path, start, _ = pieces[number]
        return _read_into(memory[number], path, start)

    return lambda _: _in_threads(one, range(len(pieces)))


def read_and_write(job: Job) -> Call:
    """A bare read of the source, and a file of as many bytes that is written and synced: what a conversion must do."""
    bare = read(job)

    def call(folder: str) -> object:
        pieces: Any = bare(folder)
        with open(Path(folder, "copy"), "wb", buffering=0) as file:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        return pieces

    return call


def device_put(job: Job) -> Call:
    """`jax.device_put` of arrays of the model's shapes, from memory onto the mesh."""
    import jax
    import numpy as np

    abstract = _abstract(job)
    arrays = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), abstract)
    places = jax.tree.map(lambda array: array.sharding, abstract)
    return lambda _: jax.block_until_ready(jax.device_put(arrays, places))


def link(job: Job) -> Call:
    """The same from pinned memory: what the link between host and accelerator can do."""
    import jax
    import numpy as np

    def pinned(array: Any) -> Any:
        host = array.sharding.with_memory_kind("pinned_host")
        return jax.device_put(np.zeros(array.shape, array.dtype), host)

    abstract = _abstract(job)
    arrays = jax.block_until_ready(jax.tree.map(pinned, abstract))
    places = jax.tree.map(lambda array: array.sharding, abstract)
    return lambda _: jax.block_until_ready(jax.device_put(arrays, places))


def load(job: Job) -> Call:
    """`from_pretrained` of what is in the cache already; the first call imports lazyload and all that it needs."""
    mesh = _mesh(job)
    return lambda _: _load(job, mesh, job["cache"])


def cold(job: Job) -> Call:
    """`from_pretrained` with an empty cache: from the source to the mesh, with the entry published."""
    mesh = _mesh(job)
    return lambda folder: _load(job, mesh, folder)


def convert(job: Job) -> Call:
    """`convert` with an empty cache."""

    def call(folder: str) -> object:
        import lazyload

        options = {"storage": lazyload.Storage(**job["storage"]), "layout": job["layout"], "progress": False}
        return lazyload.convert(job["model"], cache_dir=folder, **options)

    return call


def save(job: Job) -> Call:
    """`save_pretrained` of a model that lies on the mesh."""
    import lazyload

    model = lazyload.from_pretrained(job["model"], mesh=_mesh(job), cache_dir=job["cache"], progress=False)
    return lambda folder: lazyload.save_pretrained(model, folder, like=job["model"])


def export(job: Job) -> Call:
    """`export` of a checkpoint in MaxText's layout."""
    import lazyload

    converted = lazyload.convert(job["model"], layout=lazyload.MaxText(), cache_dir=job["cache"], progress=False)
    return lambda folder: lazyload.export(converted.path, folder, like=job["model"])


def decide(job: Job) -> Call:
    """`convert` of what is there: it finds that out, and does nothing else."""
    import lazyload

    def call(_: str) -> object:
        found = lazyload.convert(job["model"], revision=job["revision"], cache_dir=job["cache"], progress=False)
        return found.path

    return call


def download(job: Job) -> Call:
    """The files of a model on a hub, one after another over plain HTTP, to the disk."""

    def call(folder: str) -> object:
        for name in job["files"]:
            address = f"{job['environment']['HF_ENDPOINT']}/{job['model']}/resolve/main/{name}"
            with urllib.request.urlopen(address) as answer, open(Path(folder, name), "wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
        return None

    return call


def get(job: Job) -> Call:
    """The source's files from a bucket over plain HTTP, in ranges of 16 MiB, by as many threads as a load has there."""
    from concurrent.futures import ThreadPoolExecutor

    pieces = [(address, start) for address, size in job["objects"] for start in range(0, size, 16 << 20)]

    def one(piece: tuple[str, int]) -> int:
        address, start = piece
        wanted = urllib.request.Request(address, headers={"Range": f"bytes={start}-{start + (16 << 20) - 1}"})
        with urllib.request.urlopen(wanted) as answer:
            return len(answer.read())

    def call(_: str) -> object:
        with ThreadPoolExecutor(32) as pool:
            return sum(pool.map(one, pieces))

    return call


def convert_into_bucket(job: Job) -> Call:
    """`convert` into a bucket, again each time."""

    def call(_: str) -> object:
        import lazyload

        return lazyload.convert(job["model"], cache_dir=job["cache"], force_convert=True, progress=False).key

    return call


def orbax(job: Job) -> Call:
    """Orbax's own restore of the entry, as its guide has it, onto the same mesh."""
    import jax
    import orbax.checkpoint as ocp

    import lazyload

    path = lazyload.convert(
        job["model"], cache_dir=job["cache"], storage=lazyload.Storage(**job["storage"]), progress=False
    ).path
    abstract = _with_words(_abstract(job))
    restore_args = jax.tree.map(lambda array: ocp.ArrayRestoreArgs(sharding=array.sharding), abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args)
    return lambda _: jax.block_until_ready(ocp.PyTreeCheckpointer().restore(path, args=args))


def orbax_safetensors(job: Job) -> Call:
    """Orbax's safetensors layout: the source's tensors as they are stored, each over all devices where one axis can."""
    import jax
    import orbax.checkpoint.experimental.v1 as ocp
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = _mesh(job)

    def placed(shape: tuple[int, ...]) -> NamedSharding:
        split = next((axis for axis, size in enumerate(shape) if size % mesh.size == 0), None)
        spec = [mesh.axis_names if axis == split else None for axis in range(len(shape))]
        return NamedSharding(mesh, PartitionSpec(*spec))

    def call(_: str) -> object:
        with ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS):
            return jax.block_until_ready(ocp.load(job["model"], abstract))

    with ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS):
        stored = ocp.metadata(job["model"]).metadata
    abstract = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=placed(array.shape))
        for name, array in stored.items()
    }
    return call


def tunix(job: Job) -> Call:
    """Tunix's loader of safetensors, for models that it has."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from tunix.models.qwen3 import model as qwen3
    from tunix.models.qwen3 import params

    values = json.loads(Path(job["model"], "config.json").read_text())
    config = qwen3.ModelConfig(
        num_layers=values["num_hidden_layers"],
        vocab_size=values["vocab_size"],
        embed_dim=values["hidden_size"],
        hidden_dim=values.get("moe_intermediate_size", values["intermediate_size"]),
        num_heads=values["num_attention_heads"],
        head_dim=values["head_dim"],
        num_kv_heads=values["num_key_value_heads"],
        rope_theta=values["rope_theta"],
        norm_eps=values["rms_norm_eps"],
        use_tied_embedding=values["tie_word_embeddings"],
        num_experts=values.get("num_experts"),
        num_experts_per_tok=values.get("num_experts_per_tok"),
        param_dtype=jnp.bfloat16,
    )
    # Its models name both axes.
    mesh = _mesh({**job, "mesh": (*job["mesh"], 1)[:2]})

    def call(_: str) -> object:
        model = params.create_model_from_safe_tensors(job["model"], config, mesh, jnp.bfloat16)
        return jax.block_until_ready(nnx.state(model))

    return call


def transformers(job: Job) -> Call:
    """transformers, into PyTorch's tensors in the host's memory."""
    import torch
    from transformers import AutoModelForCausalLM

    def call(_: str) -> object:
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
        return model, _touched(model.parameters())

    return call


def runai(job: Job) -> Call:
    """Run:ai model streamer, into PyTorch's tensors in the host's memory, or of a GPU where there is one."""
    from runai_model_streamer import SafetensorsStreamer

    files, device = [str(path) for path in _files(job)], _torch_device()

    def call(_: str) -> object:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(files)
            tensors = {name: tensor.to(device) for name, tensor in streamer.get_tensors()}
        return tensors, _touched(tensors.values())

    return call


def fastsafetensors(job: Job) -> Call:
    """fastsafetensors, into PyTorch's tensors in the host's memory, or of a GPU where there is one."""
    from fastsafetensors import SafeTensorsFileLoader

    device = _torch_device()

    def call(_: str) -> object:
        # Without direct storage between disk and device, which few machines have.
        loader = SafeTensorsFileLoader(None, device, nogds=True)
        loader.add_filenames({0: [str(path) for path in _files(job)]})
        buffers = loader.copy_files_to_device()
        _touched([buffers.get_tensor(name) for name in loader.get_keys()])
        # Its tensors are the loader's until it is closed.
        kept = contextlib.ExitStack()
        kept.callback(loader.close)
        kept.callback(buffers.close)
        return kept

    return call


def _load(job: Job, mesh: Any, cache: str) -> object:
    import jax

    import lazyload

    storage = lazyload.Storage(**job["storage"])
    model = lazyload.from_pretrained(job["model"], mesh=mesh, storage=storage, cache_dir=cache, progress=False)
    # By now a load has imported Flax itself, as for the README's first program.
    from flax import nnx

    return jax.block_until_ready(nnx.state(model))


def _mesh(job: Job) -> Any:
    import math

    import jax
    from jax.sharding import AxisType

    sizes = tuple(job["mesh"])
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(sizes, ("fsdp", "tp")[: len(sizes)], types, devices=jax.devices()[: math.prod(sizes)])


def _abstract(job: Job) -> Any:
    import lazyload

    return lazyload.plan(job["model"], mesh=_mesh(job)).abstract()


def _with_words(tree: Any) -> Any:
    """A tree whose keys are all words, as a checkpoint has them on disk."""
    return {str(key): _with_words(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _files(job: Job) -> list[Path]:
    return sorted(Path(job["model"]).glob("*.safetensors"))


def _pieces(job: Job) -> Iterator[tuple[Path, int, int]]:
    """File, offset and size."""
    for path in _files(job):
        nbytes = path.stat().st_size
        yield from ((path, start, min(_PIECE, nbytes - start)) for start in range(0, nbytes, _PIECE))


def _read_into(memory: Any, path: Path, start: int) -> Any:
    done = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while done < len(memory):
            done += file.readinto(memory[done:])
    return memory


def _in_threads(call: Callable[[Any], object], inputs: Any) -> list[object]:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(call, inputs))


def _torch_device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _touched(tensors: Any) -> int:
    """Looks at a byte of every page: files that are mapped, rather than read, are read now."""
    import torch

    return sum(int(tensor.data.reshape(-1).view(torch.uint8)[::4096].sum()) for tensor in tensors if tensor.numel())
