"""Safetensors: headers, checked before anything in them is believed, and boxes of tensors read from files.

A file is the header's length as 8 little-endian bytes, the header as JSON, and the tensors row-major, one after the
other without gaps (https://github.com/huggingface/safetensors#format). The reference library reads whole files or maps
local ones, and says of no tensor where in the file it begins, so it serves neither ranges nor files elsewhere; and it
writes only what is in memory as a whole.
"""

import itertools
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from lazyload.errors import CorruptSourceError, UnsupportedFormatError
from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources import strict_json
from lazyload.sources.files import require_no_pointer

_DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
    }.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PREFIX_BYTES = 8
_MOST_HEADER_BYTES = 32 << 20
"""The reference implementation allows 100 MB; a header of 200,000 tensors has 25."""

_FIRST_BYTES = 1 << 16
"""Read at once in the hope that the header is no longer."""

_SHORT_BYTES = 1 << 16
"""Below this length of a stretch, reading a few times more at once is quicker than reading every stretch alone."""

_WIDENING = 4


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        info: Its shape and dtype.
        file: The file.
        start: Where in the file it begins.
    """

    info: TensorInfo
    file: str
    start: int


def read_header(read_into: Callable[[int, memoryview], None], size: int, where: str) -> bytes:
    """The bytes of a file's header, its JSON.

    Args:
        read_into: Fills memory from a position of the file on.
        size: The size of the file.
        where: What messages call it.

    Raises:
        CorruptSourceError: The file is too short for the header that it announces.
    """
    if size < _PREFIX_BYTES:
        raise CorruptSourceError(f"{where} has {size} bytes and is no safetensors file; download it again")
    first = bytearray(min(size, _FIRST_BYTES))
    read_into(0, memoryview(first))
    require_no_pointer(where, bytes(first[:64]))
    (length,) = struct.unpack_from("<Q", first)
    if length > min(size - _PREFIX_BYTES, _MOST_HEADER_BYTES):
        raise CorruptSourceError(
            f"{where} announces a header of {length} bytes, but has {size} bytes in all, and a header has "
            f"{_MOST_HEADER_BYTES} at most; it is truncated or no safetensors file: download it again"
        )
    header = bytearray(length)
    known = min(length, len(first) - _PREFIX_BYTES)
    header[:known] = first[_PREFIX_BYTES : _PREFIX_BYTES + known]
    if known < length:
        read_into(_PREFIX_BYTES + known, memoryview(header)[known:])
    return bytes(header)


def header_of(tensors: Mapping[str, TensorInfo]) -> tuple[bytes, dict[str, int]]:
    """The beginning of a file that is to hold tensors, and where in the file each of them begins.

    As in files of the reference library, wider dtypes come first, so that every tensor lies where its dtype may, and
    spaces fill the header up to a multiple of 8 bytes. `format` is what transformers wants to be told.

    Args:
        tensors: Shape and dtype by name.

    Raises:
        UnsupportedFormatError: A dtype is none that such files can hold.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, (shape, dtype, _) in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if dtype not in _NAMES:
            raise UnsupportedFormatError(f"{name} has dtype {dtype}, which safetensors cannot hold")
        starts[name], end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [starts[name], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _PREFIX_BYTES)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: len(header) + start for name, start in starts.items()}


def parse_header(header: bytes, size: int, file: str, where: str) -> dict[str, StoredTensor]:
    """The tensors of a file, by name.

    Args:
        header: The header's bytes.
        size: The size of the file.
        file: Its name.
        where: What messages call it.

    Raises:
        CorruptSourceError: The header is malformed or contradicts itself or the file's size.
        UnsupportedFormatError: A tensor has a dtype that is not read.
    """
    base = _PREFIX_BYTES + len(header)
    stretches = []
    tensors = {}
    for name, value in _parse(header, where).items():
        if name == "__metadata__":
            continue
        info, (start, stop) = _checked(value, f"{where}: {name}")
        if stop > size - base:
            raise CorruptSourceError(
                f"{where}: {name} ends at byte {base + stop}, but the file has {size}; it is truncated: download it "
                "again"
            )
        tensors[name] = StoredTensor(info, file, base + start)
        stretches.append((start, stop, name))
    end = 0
    for start, stop, name in sorted(stretches):
        if start != end:
            raise CorruptSourceError(
                f"{where}: {name} begins at byte {start} of the data, where {end} is expected: tensors overlap or "
                "leave a gap; download the file again"
            )
        end = stop
    if end != size - base:
        raise CorruptSourceError(
            f"{where} has {size - base - end} bytes more than its header speaks of; download it again"
        )
    return tensors


def read_box(
    read_into: Callable[[int, memoryview], None],
    tensor: StoredTensor,
    box: Box,
    empty: Callable[[Sequence[int], np.dtype], np.ndarray] = np.empty,
) -> np.ndarray:
    """Reads one box of a tensor.

    Stretches that lie close together are read at once, up to four times as much as asked for.

    Args:
        read_into: Fills memory from a position of the tensor's file on.
        tensor: The tensor.
        box: One slice a dimension.
        empty: Makes the array.

    Returns:
        A C-contiguous array of the box's shape and the tensor's dtype.
    """
    shape, dtype, _ = tensor.info
    extents = [cut.stop - cut.start for cut in box]
    partial = [number for number, (extent, size) in enumerate(zip(extents, shape, strict=True)) if extent < size]
    last = partial[-1] if partial else 0
    stretches, nbytes = math.prod(extents[:last]), math.prod(extents[last:]) * dtype.itemsize
    if stretches > 1 and nbytes < _SHORT_BYTES and 0 < shape[last] <= _WIDENING * extents[last]:
        wide = read_box(read_into, tensor, (*box[:last], slice(0, shape[last]), *box[last + 1 :]), empty)
        return np.ascontiguousarray(wide[(slice(None),) * last + (box[last],)])
    array = empty(extents, dtype)
    if not array.size:
        return array
    memory = array.reshape(-1).view(np.uint8).data
    strides = [math.prod(shape[number + 1 :]) * dtype.itemsize for number in range(len(shape))]
    outer = itertools.product(*(range(cut.start, cut.stop) for cut in box[:last]))
    first = sum(cut.start * stride for cut, stride in zip(box[last:], strides[last:], strict=True))
    for number, index in enumerate(outer):
        start = first + sum(i * stride for i, stride in zip(index, strides, strict=False))
        read_into(tensor.start + start, memory[number * nbytes : (number + 1) * nbytes])
    return array


def _parse(header: bytes, where: str) -> dict[str, Any]:
    try:
        values = strict_json.loads(header, _MOST_HEADER_BYTES)
    except ValueError as error:
        raise CorruptSourceError(f"{where}: its header is not valid JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise CorruptSourceError(f"{where}: its header is no JSON object; download it again")
    return values


def _checked(value: Any, where: str) -> tuple[TensorInfo, tuple[int, int]]:
    """Shape and dtype of a tensor and its stretch of the data, from its entry in a header."""
    match value:
        case {"dtype": str(name), "shape": list(shape), "data_offsets": [start, stop]} if (
            all(_is_whole(number) for number in (*shape, start, stop)) and start <= stop
        ):
            pass
        case _:
            raise CorruptSourceError(f"{where}: its entry in the header is malformed; download the file again")
    if name not in _DTYPES:
        raise UnsupportedFormatError(f"{where} has dtype {name}, which is not read; there are {', '.join(_DTYPES)}")
    dtype = _DTYPES[name]
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != stop - start:
        raise CorruptSourceError(
            f"{where}: an array of shape {shape} in {name} takes {nbytes} bytes, but the header gives it "
            f"{stop - start}; download the file again"
        )
    return TensorInfo(tuple(shape), dtype), (start, stop)


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
