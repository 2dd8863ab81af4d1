"""LoRA's parameters of a module, as qwix makes them and Tunix trains them, from PEFT's format and back.

Beside a kernel `k` of the module stand `k_lora_a`, whose last dimension is the rank, and `k_lora_b`, whose first is it;
their other dimensions are the kernel's inputs and outputs (`qwix/_src/providers/lora.py`). PEFT has the same numbers as
matrices, `[rank, in]` and `[out, rank]`.
"""

import collections
import functools
import importlib.util
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lazyload.adapting import found, shape_of, warn_of_other_base
from lazyload.architecture import DecoderConfig
from lazyload.errors import InputError, MissingPackageError, TensorMismatchError, UnsupportedFormatError
from lazyload.formats import peft
from lazyload.kernels import Kernel, kernels_of
from lazyload.models.arrays import require_here
from lazyload.request import Request
from lazyload.sources import AdapterFiles

if TYPE_CHECKING:
    from lazyload.models.decoder import Decoder

Number = TypeVar("Number", int, float)

_A, _B = "_lora_a", "_lora_b"
_NAMED_OTHERWISE = ("deepseek_v4",)
"""Families whose modules transformers 5.24 calls otherwise than the tensors of their checkpoints."""

_ALPHA = "lora_alpha"
"""Of a parameter `_lora_a` that came from an adapter: what it was made with."""


@dataclass(frozen=True)
class Beside:
    """An adapter that is to stand beside the kernels of a model, not to be merged into them.

    Attributes:
        files: The adapter.
        pairs: What belongs to each kernel, layer by layer where layers are stacked; all of one rank and scaling.
    """

    files: AdapterFiles
    pairs: Mapping[Kernel, Sequence[peft.LowRank]]

    def put_into(self, model: "Decoder") -> "Decoder":
        """The model with LoRA's parameters, which lie where qwix puts them."""
        import qwix

        rules = []
        for kernel, pairs in self.pairs.items():
            rank = self.files.tensors[pairs[0].a].shape[0]
            alpha = pairs[0].scaling * rank
            name, _, parameter = kernel.path.rpartition(".")
            rules.append(qwix.LoraRule(module_path=re.escape(name.replace(".", "/")), rank=rank, alpha=alpha))
            self._put_beside(_module(model, name), parameter, kernel, alpha)
        # It finds the parameters that are there, and needs no random numbers for others.
        inputs = model.get_model_input()
        tuned: Decoder = qwix.apply_lora_to_model(model, qwix.LoraProvider(rules), rngs=None, **inputs)
        return tuned

    def _put_beside(self, module: nnx.Module, parameter: str, kernel: Kernel, alpha: float) -> None:
        """Gives the module of a kernel its two parameters."""
        old: nnx.Param[jax.Array] = getattr(module, parameter)
        halves = list(zip(kernel.matrices, self.pairs[kernel], strict=True))
        a = [self.files.whole(pair.a).T[matrix.columns] for matrix, pair in halves]
        b = [np.moveaxis(self.files.whole(pair.b)[matrix.rows], -1, 0) for matrix, pair in halves]
        stack = range(kernel.is_stacked)
        split = kernel.is_stacked + kernel.num_inputs
        ndim = old[...].ndim
        for ending, layers, dimensions in (
            (_A, a, (*range(split), None)),
            (_B, b, (*stack, None, *range(split, ndim))),
        ):
            values = np.stack(layers) if kernel.is_stacked else layers[0]
            setattr(module, parameter + ending, _parameter_like(old, values, dimensions))
        # For `peft_files`: qwix keeps it where nobody finds it.
        getattr(module, parameter + _A).set_metadata(_ALPHA, alpha)


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
    if others := _only_merged(adapter):
        raise UnsupportedFormatError(
            f"{files.name} has {others}, which parameters of LoRA beside kernels cannot say: give merge=True"
        )
    warn_of_other_base(files, request.source.name)
    kernels, aliases = kernels_of(request), request.family.stored(request.whole).aliases
    users = kernels.of_matrices()
    known = {**{name: [] for name in kernels.other_layers}, **users}
    layers: dict[Kernel, dict[int, peft.LowRank]] = collections.defaultdict(dict)
    problems = []
    for weight, pair in adapter.added.items():
        name = found(weight, known, aliases)
        if name is None:
            problems.append(f"{weight}: is no matrix that kernels of the model consist of; merge=True merges it")
            continue
        for kernel, layer in known[name]:
            if shape_of(pair, files.tensors) != (size := kernel.matrices[layer].shape):
                problems.append(
                    f"{weight}: the adapter is for shape {list(shape_of(pair, files.tensors))}, not {list(size)}"
                )
                break
            layers[kernel][layer] = pair
    problems += [problem for kernel, of_it in layers.items() for problem in _uneven(kernel, of_it, files)]
    if problems:
        raise TensorMismatchError(f"{files.name} cannot stand beside this base model's kernels", problems)
    return Beside(files, {kernel: [of_it[layer] for layer in sorted(of_it)] for kernel, of_it in layers.items()})


def _only_merged(adapter: peft.Adapter) -> str:
    """What an adapter has that can only be merged; empty for nothing."""
    kinds: Mapping[str, Collection[str]] = {
        "tensors in place of the model's": adapter.replaced,
        "DoRA's magnitudes (use_dora)": [pair.magnitude for pair in adapter.added.values() if pair.magnitude],
        "biases (lora_bias)": adapter.biases,
        "matrices for experts (target_parameters)": [pair.a for pair in adapter.experts.values()],
        "rows of embeddings (trainable_token_indices)": adapter.tokens,
    }
    found = [f"{what}, such as {next(iter(names))}" for what, names in kinds.items() if names]
    return " and ".join(found)


def _uneven(kernel: Kernel, pairs: Mapping[int, peft.LowRank], files: AdapterFiles) -> Iterable[str]:
    """What keeps the layers of a stack from having one array of LoRA's parameters."""
    without = [matrix.tensor for layer, matrix in enumerate(kernel.matrices) if layer not in pairs]
    kinds = {(files.tensors[pair.a].shape[0], pair.scaling) for pair in pairs.values()}
    if without:
        yield f"{without[0]}: has no adapter, and others of its stack have one; load with scan_layers=False"
    elif len(kinds) > 1:
        yield f"{kernel.path}: its layers have adapters of several ranks or scalings; load with scan_layers=False"


def peft_files(model: nnx.Module, request: Request, alpha: float) -> tuple[bytes, dict[str, np.ndarray]]:
    """The `adapter_config.json` and the tensors that say of a module's LoRA what PEFT reads.

    Of kernels that are rows of one matrix of the checkpoint, the pairs become one pair of that matrix: the same `A`
    where theirs is the same, else theirs one below the other, and in `B` zeros for the rows that each does not have.

    Args:
        model: The module.
        request: The call that loads its base model.
        alpha: What LoRA was made with; the product of its matrices is multiplied by it over the rank. What came from an
            adapter is known to have been made with an alpha of its own.

    Raises:
        InputError: The module has no parameters of LoRA, or some beside what is no matrix of the checkpoint.
        TensorMismatchError: It is another model than the request's.
        UnsupportedFormatError: PEFT knows the model's modules by names that are not known here.
        SaveError: A part of them lies on devices of another process.
    """
    if request.family.name in _NAMED_OTHERWISE:
        raise UnsupportedFormatError(
            f"adapter_only=True: transformers, and so PEFT, has other names for what a model of family "
            f"{request.family.name!r} consists of; save the whole model"
        )
    nodes = lora_parameters(model)
    require_here({path: node[...] for path, node in nodes.items()})
    kernels = kernels_of(_request_of(model, request)).all
    pairs: dict[str, list[_Pair]] = collections.defaultdict(list)
    count = 0
    for path in sorted(nodes):
        if not path.endswith(_A) or (partner := path.removesuffix(_A) + _B) not in nodes:
            continue
        if (kernel := kernels.get(path.removesuffix(_A))) is None:
            raise InputError(
                f"{path}: no adapter of PEFT is written for it, because {path.removesuffix(_A)} is no single matrix of "
                "the checkpoint; merge it into the kernel, and save the whole model"
            )
        own_alpha = float(nodes[path].get_metadata().get(_ALPHA, alpha))
        for pair in _pairs(kernel, np.asarray(nodes[path][...]), np.asarray(nodes[partner][...]), own_alpha, path):
            pairs[pair.tensor].append(pair)
        count += 2
    if count != len(nodes) or not nodes:
        raise InputError("adapter_only=True: the model has no parameters of LoRA, such as qwix makes, or others, too")
    aliases = request.family.stored(request.whole).aliases
    joined = {
        in_transformers(name, aliases).removesuffix(".weight"): functools.reduce(_joined, of_it)
        for name, of_it in pairs.items()
    }
    tensors = {
        f"{peft.PREFIX}{module}.lora_{half}.weight": np.ascontiguousarray(matrix)
        for module, pair in joined.items()
        for half, matrix in (("A", pair.a), ("B", pair.b))
    }
    ranks = {module: len(pair.a) for module, pair in joined.items()}
    alphas = {module: pair.scaling * len(pair.a) for module, pair in joined.items()}
    return _config(ranks, alphas, request.source.name), tensors


@dataclass(frozen=True)
class _Pair:
    """A pair of PEFT's matrices, `[rank, in]` and `[out, rank]`, for rows of a matrix of the checkpoint.

    Attributes:
        tensor: The matrix.
        a: All of `A`.
        b: All of `B`, with zeros for other rows.
        scaling: What their product is multiplied by.
    """

    tensor: str
    a: np.ndarray
    b: np.ndarray
    scaling: float


def _pairs(kernel: Kernel, a: np.ndarray, b: np.ndarray, alpha: float, path: str) -> Iterable[_Pair]:
    """The pairs of a kernel's matrices.

    Raises:
        TensorMismatchError: The parameters have other shapes than the kernel has.
    """
    rank, layers = a.shape[-1], len(kernel.matrices)
    first = kernel.matrices[0]
    if (a.size, b.size) != (layers * first.columns.size * rank, layers * first.rows.size * rank):
        raise TensorMismatchError(
            "the model's parameters of LoRA are not those of the base model",
            [f"{path}: has shape {list(a.shape)}, and its partner {list(b.shape)}"],
        )
    of_inputs, of_outputs = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
    for layer, matrix in enumerate(kernel.matrices):
        whole_a = np.empty((rank, matrix.shape[1]), a.dtype)
        whole_a[:, matrix.columns.reshape(-1)] = of_inputs[layer].T
        whole_b = np.zeros((matrix.shape[0], rank), b.dtype)
        whole_b[matrix.rows.reshape(-1)] = of_outputs[layer].T
        yield _Pair(matrix.tensor, whole_a, whole_b, alpha / rank)


def _joined(one: _Pair, other: _Pair) -> _Pair:
    """One pair that says of all rows what two say of some."""
    if one.scaling == other.scaling and np.array_equal(one.a, other.a):
        return replace(one, b=one.b + other.b)
    b = other.b
    if one.scaling != other.scaling:
        b = (b.astype(np.float32) * np.float32(other.scaling / one.scaling)).astype(b.dtype)
    return replace(one, a=np.concatenate([one.a, other.a]), b=np.concatenate([one.b, b], axis=1))


def _request_of(model: nnx.Module, request: Request) -> Request:
    """The request for the model that a module is, which may have an output projection of its own.

    Raises:
        TensorMismatchError: It is another one.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, DecoderConfig):
        return request
    fitting = [each for each in request.candidates if each.architecture == config]
    if not fitting:
        raise TensorMismatchError(
            f"like={request.source.name!r}: it is another model than the one whose adapter is to be saved",
            ["their configs differ; give what the whole model was loaded from, with the same config="],
        )
    return fitting[0]


def in_transformers(name: str, aliases: Iterable[tuple[str, str]]) -> str:
    """What transformers calls a tensor: it has every decoder's layers below `model.`.

    Example:
        >>> in_transformers("backbone.layers.0.mixer.q_proj.weight", [("backbone.", "model.")])
        'model.layers.0.mixer.q_proj.weight'
        >>> in_transformers("model.norm.weight", [("model.", "language_model.model.")])
        'model.norm.weight'
    """
    fitting = (prefix for prefix, other in aliases if other == "model." and name.startswith(prefix))
    prefix = next(fitting, None)
    return name if prefix is None else f"model.{name.removeprefix(prefix)}"


def lora_parameters(model: nnx.Module) -> dict[str, Any]:
    """The `nnx.LoRAParam`s of a module by dotted path."""
    return {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.LoRAParam)}


def _module(model: nnx.Module, path: str) -> Any:
    """The module at a dotted path."""
    node: Any = model
    for name in path.split("."):
        node = node[int(name)] if name.isdecimal() else getattr(node, name)
    return node


def _parameter_like(kernel: "nnx.Param[jax.Array]", values: np.ndarray, dimensions: Sequence[int | None]) -> Any:
    """A parameter that lies as a kernel does in the dimensions that it shares with it; None for one of its own.

    Its metadata are those that qwix gives it.
    """
    array, metadata = kernel[...], kernel.get_metadata()
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        spec = (*sharding.spec, *(None,) * (array.ndim - len(sharding.spec)))
        sharding = sharding.update(spec=PartitionSpec(*_picked(spec, dimensions)))
    for name in ("out_sharding", "sharding_names"):
        if isinstance(places := metadata.get(name), tuple | list | PartitionSpec):
            metadata[name] = _picked((*places, *(None,) * (array.ndim - len(places))), dimensions)
    values = values.astype(array.dtype)
    # Of several processes each has its own shards.
    own = jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
    return nnx.LoRAParam(own, **metadata)


def _picked(places: Sequence[Any], dimensions: Sequence[int | None]) -> tuple[Any, ...]:
    return tuple(None if dimension is None else places[dimension] for dimension in dimensions)


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
    others = {module: own for module, own in values.items() if own != usual}
    # The models that wrap the text model have its modules below other names.
    return usual, {re.escape(module.partition(".")[2] or module): own for module, own in others.items()}
