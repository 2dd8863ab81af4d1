"""Which of a base model's tensors an adapter speaks of."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lazyload.formats.peft import LowRank
from lazyload.layouts.source import TensorInfo
from lazyload.sources.adapter import AdapterFiles

logger = logging.getLogger("lazyload")


def warn_of_other_base(files: AdapterFiles, base: str) -> None:
    """Says so where an adapter names another base model; it may be the same one by another name."""
    named = str(files.config.get("base_model_name_or_path") or "")
    if named and named.rstrip("/").rpartition("/")[2].lower() != base.rstrip("/").rpartition("/")[2].lower():
        logger.warning("%s was made for %s, and is merged into %s", files.name, named, base)


def found(name: str, tensors: Mapping[str, Any], aliases: Sequence[tuple[str, str]]) -> str | None:
    """A tensor under the name that it has in the files, which may have another prefix than in transformers."""
    if name in tensors:
        return name
    usual = [name, *(prefix + name[len(other) :] for prefix, other in aliases if other and name.startswith(other))]
    others = (other + each[len(prefix) :] for each in usual for prefix, other in aliases if each.startswith(prefix))
    return next((each for each in (*usual, *others) if each in tensors), None)


def shape_of(low_rank: LowRank, tensors: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """The shape of the weight that a pair of matrices is for."""
    rows, columns = tensors[low_rank.b].shape[0], tensors[low_rank.a].shape[1]
    return (columns, rows) if low_rank.is_transposed else (rows, columns)
