"""The checkpoints that are loaded: published shapes, and random weights."""

from collections.abc import Mapping
from pathlib import Path

from tests.support.large import QWEN3_1_7B, QWEN_MOE, nbytes_of, write, write_as_large_as

_SHAPES: tuple[Mapping[str, object], ...] = (
    {**QWEN3_1_7B, "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "vocab_size": 32000},
    {**QWEN3_1_7B, "hidden_size": 1024, "intermediate_size": 3072},
    QWEN3_1_7B,
    {**QWEN3_1_7B, "hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32},
    {**QWEN3_1_7B, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32},
)
"""Half of Qwen3-0.6B in all directions, then Qwen3-0.6B, 1.7B, 4B and 8B; the number of layers follows the size."""

_TINY = {"head_dim": 16, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 1024}
_EXPERTS = {**QWEN_MOE, "rope_theta": 1000000}


def dense(folder: Path, gigabytes: float) -> Path:
    """A dense Qwen3 of about a size."""
    if gigabytes < 0.05:
        return write_as_large_as(folder, {**_SHAPES[0], **_TINY, "hidden_size": 128}, gigabytes)
    whole = [shapes for shapes in _SHAPES if nbytes_of({**shapes, "num_hidden_layers": 28}) <= gigabytes * 1.05e9]
    return write_as_large_as(folder, whole[-1] if whole else _SHAPES[0], gigabytes)


def experts(folder: Path, gigabytes: float) -> Path:
    """A Qwen3 with 128 experts a layer, of about a size, but of one layer at least."""
    if gigabytes < 0.5:
        narrow = {"hidden_size": 128, "moe_intermediate_size": 32, "intermediate_size": 128}
        return write_as_large_as(folder, {**_EXPERTS, **_TINY, **narrow}, gigabytes)
    return write_as_large_as(folder, _EXPERTS, gigabytes)


def many_arrays(folder: Path, arrays: int) -> Path:
    """A dense Qwen3 of about a number of arrays, all of them small: 11 a layer, and 2 of no layer."""
    narrow = {"hidden_size": 128, "intermediate_size": 256, **_TINY}
    return write(folder, {**QWEN3_1_7B, **narrow, "num_hidden_layers": max(1, round((arrays - 2) / 11))})


def published(folder: Path, name: str) -> Path:
    """A model that MaxText knows, or "tiny", one that it does not know."""
    if folder.exists():
        return folder
    if name == "tiny":
        return many_arrays(folder, 24)
    return write(folder, {"qwen3-0.6b": _SHAPES[1], "qwen3-1.7b": QWEN3_1_7B}[name])


def nbytes_on_disk(folder: Path, pattern: str = "*.safetensors") -> int:
    """The size of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())
