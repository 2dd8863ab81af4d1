"""LoRA's parameters of a module, as qwix makes them and Tunix trains them, from PEFT's format and back.

Beside a kernel `k` of the module stand `k_lora_a`, whose last dimension is the rank, and `k_lora_b`, whose first is it;
their other dimensions are the kernel's inputs and outputs (`qwix/_src/providers/lora.py`). PEFT has the same numbers as
matrices, `[rank, in]` and `[out, rank]`.
"""

import collections
import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from flax import nnx

from lazyload.adapting import found, shape_of, warn_of_other_base
from lazyload.errors import InputError, MissingPackageError, TensorMismatchError, UnsupportedFormatError
from lazyload.formats import peft
from lazyload.layouts.conversion import resolve
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box, TensorInfo
from lazyload.layouts.unroll import unroll
from lazyload.models.arrays import require_here
from lazyload.request import Request
from lazyload.sources import AdapterFiles

if TYPE_CHECKING:
    from lazyload.models.decoder import Decoder

Number = TypeVar("Number", int, float)

_A, _B = "_lora_a", "_lora_b"
_ALPHA = "lora_alpha"
"""Of a parameter `_lora_a` that came from an adapter: what it was made with."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of the module that is a matrix of the checkpoint, transposed.

    Attributes:
        path: Its dotted path.
        matrix: The shape of the matrix, `[out, in]`.
    """

    path: str
    matrix: tuple[int, int]


@dataclass(frozen=True)
class Beside:
    """An adapter that is to stand beside the kernels of a model, not to be merged into them.

    Attributes:
        files: The adapter.
        pairs: What belongs to each kernel.
    """

    files: AdapterFiles
    pairs: Mapping[Kernel, peft.LowRank]

    def put_into(self, model: "Decoder") -> "Decoder":
        """The model with LoRA's parameters, which lie where qwix puts them."""
        import qwix

        rules = [
            qwix.LoraRule(
                module_path=re.escape(kernel.path.rpartition(".")[0].replace(".", "/")),
                rank=(rank := self.files.tensors[pair.a].shape[0]),
                alpha=pair.scaling * rank,
            )
            for kernel, pair in self.pairs.items()
        ]
        inputs = model.get_model_input()
        tuned: Decoder = qwix.apply_lora_to_model(model, qwix.LoraProvider(rules), rngs=nnx.Rngs(0), **inputs)
        made = {path: node for path, node in lora_parameters(tuned).items() if path.endswith((_A, _B))}
        for kernel, pair in self.pairs.items():
            # For `peft_files`: qwix keeps it where nobody finds it.
            made[kernel.path + _A].set_metadata(_ALPHA, pair.scaling * self.files.tensors[pair.a].shape[0])
            for ending, name in ((_A, pair.a), (_B, pair.b)):
                _set(made[kernel.path + ending], self._whole(name).T)
        return tuned

    def _whole(self, name: str) -> np.ndarray:
        return self.files.read(name, tuple(slice(0, size) for size in self.files.tensors[name].shape))


def beside(request: Request, files: AdapterFiles) -> Beside:
    """Makes sure that an adapter can stand beside the kernels of the model that a call loads.

    Raises:
        MissingPackageError: qwix is not installed.
        UnsupportedFormatError: The adapter has what can only be merged.
        TensorMismatchError: It is one of another base model.
    """
    if importlib.util.find_spec("qwix") is None:
        raise MissingPackageError("merge=False makes parameters of LoRA as qwix has them: pip install qwix")
    adapter = peft.read_adapter(files.config, files.tensors, files.name)
    warn_of_other_base(files, request.source.name)
    kernels, aliases = kernels_of(request), request.family.stored(request.whole).aliases
    pairs: dict[Kernel, peft.LowRank] = {}
    problems = []
    for weight, pair in adapter.added.items():
        name = found(weight, kernels, aliases)
        if name is None:
            problems.append(f"{weight}: is no matrix of the model that is a kernel of its own")
        elif shape_of(pair, files.tensors) != (size := kernels[name].matrix):
            problems.append(
                f"{weight}: the adapter is for shape {list(shape_of(pair, files.tensors))}, not {list(size)}"
            )
        else:
            pairs[kernels[name]] = pair
    if problems:
        raise TensorMismatchError(f"{files.name} cannot stand beside this base model's kernels", problems)
    if adapter.replaced:
        names = ", ".join(list(adapter.replaced)[:3])
        raise UnsupportedFormatError(f"{files.name} has tensors in place of the model's ({names}): give merge=True")
    return Beside(files, pairs)


def kernels_of(request: Request) -> dict[str, Kernel]:
    """The kernels that are matrices of the checkpoint, by the names that these have first of all."""
    stored = request.family.stored(request.whole)
    described = _Described(
        {path: TensorInfo(array.shape, np.dtype(np.float32)) for path, array in unroll(stored, request.whole).items()}
    )
    conversion = resolve(described, stored, request.target.layout, request.architecture, np.dtype(np.float32))
    kernels = {}
    for path, lazy in conversion.tensors.items():
        if (name := _matrix_of(lazy)) is not None:
            out, inputs = described.tensors[name].shape
            kernels[name] = Kernel(path, (out, inputs))
    return kernels


def peft_files(model: nnx.Module, request: Request, alpha: float) -> tuple[bytes, dict[str, np.ndarray]]:
    """The `adapter_config.json` and the tensors that say of a module's LoRA what PEFT reads.

    Args:
        model: The module.
        request: The call that loads its base model.
        alpha: What LoRA was made with; the product of its matrices is multiplied by it over the rank. What came from an
            adapter is known to have been made with an alpha of its own.

    Raises:
        InputError: The module has no parameters of LoRA, or some beside what is no matrix of the checkpoint.
        SaveError: A part of them lies on devices of another process.
    """
    nodes = lora_parameters(model)
    require_here({path: node[...] for path, node in nodes.items()})
    parameters = {path: np.asarray(node[...]) for path, node in nodes.items()}
    names = {kernel.path: name for name, kernel in kernels_of(request).items()}
    tensors, ranks, alphas = {}, {}, {}
    for path in sorted(parameters):
        if not path.endswith(_A):
            continue
        kernel = path.removesuffix(_A)
        if kernel not in names or kernel + _B not in parameters:
            raise InputError(f"{path}: PEFT has no adapter for it, because {kernel} is no matrix of the checkpoint")
        a, b = parameters[path], parameters[kernel + _B]
        rank, module = a.shape[-1], names[kernel].removesuffix(".weight")
        ranks[module], alphas[module] = rank, float(nodes[path].get_metadata().get(_ALPHA, alpha))
        tensors[f"{peft.PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, rank).T)
        tensors[f"{peft.PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b.reshape(rank, -1).T)
    if len(tensors) != len(parameters) or not tensors:
        raise InputError("adapter_only=True: the model has no parameters of LoRA, such as qwix makes, or others, too")
    return _config(ranks, alphas, request.source.name), tensors


def lora_parameters(model: nnx.Module) -> dict[str, Any]:
    """The `nnx.LoRAParam`s of a module by dotted path."""
    return {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.LoRAParam)}


@dataclass(frozen=True)
class _Described:
    """A checkpoint of which only names and shapes are known; see `lazyload.layouts.source.TensorSource`."""

    tensors: Mapping[str, TensorInfo]

    def read(self, name: str, index: Box) -> np.ndarray:
        """Nothing can be read."""
        raise NotImplementedError(name)

    def position(self, name: str) -> int:
        """No tensor comes before another."""
        return 0


def _matrix_of(lazy: LazyTensor) -> str | None:
    """The one tensor `[out, in]` that an array is, with its inputs first and its axes in the same order."""
    if len(lazy.regions) != 1 or len(lazy.regions[0].contributions) != 1:
        return None
    (given,) = lazy.regions[0].contributions.values()
    dimensions = given.pattern.dimensions
    # Of a fused matrix an array is a part.
    if [math.prod(axis.size for axis in dimension) for dimension in dimensions] != list(given.pattern.sizes):
        return None
    stored = [[axis.name for axis in dimension] for dimension in dimensions]
    if len(stored) != 2 or [axis.name for axis in lazy.regions[0].pattern.axes] != stored[1] + stored[0]:
        return None
    return given.tensor


def _set(parameter: Any, matrix: np.ndarray) -> None:
    """Gives a parameter its numbers, where it lies."""
    old: jax.Array = parameter[...]
    values = np.asarray(matrix).astype(old.dtype).reshape(old.shape)
    # Of several processes each has its own shards.
    parameter[...] = jax.make_array_from_callback(old.shape, old.sharding, lambda index: values[index])


def _config(ranks: Mapping[str, int], alphas: Mapping[str, float], base: str) -> bytes:
    rank, other_ranks = _usual(ranks)
    alpha, other_alphas = _usual(alphas)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": other_ranks,
        "alpha_pattern": other_alphas,
        "target_modules": sorted(ranks),
        "bias": "none",
        "use_rslora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    return (json.dumps(config, indent=2) + "\n").encode()


def _usual(values: Mapping[str, Number]) -> tuple[Number, dict[str, Number]]:
    """The value of most modules, and those of the others by what PEFT takes for a pattern of their names."""
    usual = collections.Counter(values.values()).most_common(1)[0][0]
    return usual, {re.escape(module.partition(".")[2]): own for module, own in values.items() if own != usual}
