"""What a checkpoint stores decides where `config.json` says something else, or nothing.

Three questions are answered from the tensors themselves: whether there can be as many as `config.json` speaks of,
before they are listed one by one; and, as transformers answers it when it loads, whether the output projection of a
model that `config.json` calls tied is one of its own, and whether a tensor without use may be left aside.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator

import numpy as np

from lazyload.errors import ConfigError
from lazyload.layouts.axes import Axes
from lazyload.layouts.layout import Layout, Table
from lazyload.layouts.notation import Line
from lazyload.layouts.source import TensorSource

_BYTES_AT_ONCE = 16 << 20
_MOST_BIAS_BYTES = 16 << 20

# Rotary tables that old releases saved, and the value head that training with rewards leaves behind: no decoder of
# transformers has such parameters.
_NEVER_READ = re.compile(r"(?:.*\.)?rotary_emb\.(?:(?:cos|sin)_cached|original_inv_freq)|(?:v_head|value_head)\..*")


_SCALES = (".weight_scale", ".weight_scale_2", ".input_scale", ".qweight", ".scales", "_packed")
_SCORING_HEAD = re.compile(r"(?:.*\.)?(?:score|classifier|reward_head|regression_head|qa_outputs)\.(?:.*\.)?weight")

# Beyond what is stored: missing layers and other small differences are told tensor by tensor.
_TIMES, _MORE_TENSORS, _MORE_VALUES = 4, 1000, 1_000_000


def require_plausible(source: TensorSource, layout: Layout, model: Axes) -> None:
    """Holds what a model would consist of against what is stored, without listing it.

    Raises:
        ConfigError: The model has several times as many tensors or values.
    """
    sizes = [_sizes(table, line, model) for table in layout.tables for line in table.parsed]
    tensors, values = (sum(numbers) for numbers in zip(*sizes, strict=True)) if sizes else (0, 0)
    stored = sum(math.prod(info.shape) for info in source.tensors.values())
    if tensors > _TIMES * len(source.tensors) + _MORE_TENSORS or values > _TIMES * stored + _MORE_VALUES:
        raise ConfigError(
            f"config.json describes a model of {tensors:,} tensors with {values:,} values, but {len(source.tensors):,} "
            f"with {stored:,} are stored: they do not belong together; check num_hidden_layers, vocab_size, "
            "hidden_size, intermediate_size and the number of experts"
        )


def _sizes(table: Table, line: Line, model: Axes) -> tuple[int, int]:
    """How many arrays a line describes at most, and how many values they hold."""
    arrays = values = 0
    for role, pattern in zip(line.roles, line.patterns, strict=True):
        for group in model.groups(role):
            sizes = {**group.sizes, **table.sizes, "layer": len(group.layers)}
            sizes |= {axis: min(len(only), sizes.get(axis, 0)) for axis, only in table.only.items()}
            in_path = math.prod(len(axis.names) or sizes.get(axis.axis, 1) for axis in line.path_axes)
            arrays += in_path if role == line.roles[0] else 0
            values += in_path * math.prod(sizes.get(axis, 1) for dimension in pattern for axis in dimension)
    return arrays, values


def has_own_head(
    source: TensorSource,
    untied: Layout,
    looks_equal: Callable[[str, str], bool | None] = lambda embedding, head: None,
) -> bool:
    """Whether embedding and output projection are both stored, and differ.

    transformers does not tie them then, whatever `config.json` says (`PreTrainedModel.tie_weights`). Reads nothing
    unless both are stored, and stops at the first difference.

    Args:
        source: The checkpoint.
        untied: How it lies if they are not tied.
        looks_equal: Says whether two tensors are the same where that is known without reading them as a whole.
    """
    embedding, head = (_stored(role, source, untied) for role in ("embed", "lm_head"))
    if embedding is None or head is None:
        return False
    known = looks_equal(embedding, head)
    return not (_are_equal(source, embedding, head) if known is None else known)


def tied_names(source: TensorSource, untied: Layout) -> tuple[str, str] | None:
    """The embedding's name, and what an output projection of its own would be called; None without an embedding.

    Args:
        source: The checkpoint.
        untied: How it lies if they are not tied.
    """
    embedding = _stored("embed", source, untied)
    heads = (line.template for table in untied.tables for line in table.parsed if line.roles == ("lm_head",))
    head = next(heads, None)
    return None if embedding is None or head is None else (embedding, head)


def what_it_is(source: TensorSource) -> str:
    """What a checkpoint that does not fit its model may be, and what to do; empty if nothing is known."""
    names = list(source.tensors)
    if any(name.endswith(_SCALES) for name in names):
        return (
            "; it has scales or codes of packed weights, of which neither quantization_config (config.json) nor NVIDIA "
            "ModelOpt's hf_quant_config.json says what they are: use the repository that they were quantised from"
        )
    head = next((name for name in names if _SCORING_HEAD.fullmatch(name)), None)
    if head is not None:
        return (
            f"; {head} scores texts: this is a reward model or a classifier. One whose config.json names its class "
            '("architectures": ["...ForSequenceClassification"]) is loaded with its head, `score`'
        )
    if any(".lora_" in name for name in names):
        return "; it has adapters beside its weights: merge them, `merge_and_unload()` of peft, and load the result"
    return ""


def may_be_left_aside(name: str, source: TensorSource) -> bool:
    """Whether a tensor that no table speaks of cannot matter to any decoder: nobody reads it, or it adds zero."""
    return _NEVER_READ.fullmatch(name) is not None or _is_zero_bias(name, source)


def _stored(role: str, source: TensorSource, layout: Layout) -> str | None:
    """The name of the tensor that holds a role of the whole model; None where there is none."""
    lines = itertools.chain(*(table.parsed for table in layout.tables))
    paths = [line.template for line in lines if line.roles == (role,) and not line.path_axes]
    names = itertools.chain(*(_names(path, layout) for path in paths))
    return next((name for name in names if name in source.tensors), None)


def _names(path: str, layout: Layout) -> Iterator[str]:
    yield path
    yield from (other + path[len(prefix) :] for prefix, other in layout.aliases if path.startswith(prefix))


def _are_equal(source: TensorSource, one: str, other: str) -> bool:
    """Whether two tensors hold the same bits; of different dtypes, the same numbers."""
    (shape, dtype, _), (other_shape, other_dtype, _) = source.tensors[one], source.tensors[other]
    if shape != other_shape or not shape:
        return False
    rows = max(1, _BYTES_AT_ONCE * shape[0] // max(1, int(np.prod(shape)) * dtype.itemsize))
    for start in range(0, shape[0], rows):
        box = (slice(start, min(start + rows, shape[0])), *(slice(0, size) for size in shape[1:]))
        # What is read is valid until the next read only.
        first = np.array(source.read(one, box))
        second = source.read(other, box)
        if dtype == other_dtype and first.tobytes() != second.tobytes():
            return False
        if dtype != other_dtype and not np.array_equal(first.astype(np.float32), second.astype(np.float32)):
            return False
    return True


def _is_zero_bias(name: str, source: TensorSource) -> bool:
    """Whether a tensor is the bias of a stored matrix or norm, and nothing but zeros."""
    shape, dtype, _ = source.tensors[name]
    weight = source.tensors.get(f"{name.removesuffix('.bias')}.weight")
    is_bias = name.endswith(".bias") and (weight is not None or name.endswith("lm_head.bias"))
    if not is_bias or len(shape) != 1 or shape[0] * dtype.itemsize > _MOST_BIAS_BYTES:
        return False
    return not np.any(source.read(name, (slice(0, shape[0]),)).astype(np.float32))
