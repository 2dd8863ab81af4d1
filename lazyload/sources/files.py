"""Where the files of a checkpoint lie, and which of them hold its weights."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

from lazyload.errors import CorruptSourceError, LazyLoadError, SourceNotFoundError, UnsupportedFormatError
from lazyload.progress import Advance
from lazyload.sources import strict_json
from lazyload.sources.stretches import Wanted

CONFIG = "config.json"
MODELOPT_CONFIG = "hf_quant_config.json"
"""Where NVIDIA's ModelOpt says how weights are packed; `config.json` may say it, too."""

MOST_JSON_BYTES = 32 << 20
"""Of `config.json` and of an index; that of DeepSeek V3, with 91,991 tensors, has 9 MB."""

_LFS = b"version https://git-lfs.github.com/spec/"
_ADAPTER = "adapter_config.json"
_ORBAX = {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "_sharding"}
_OF_OTHER_PROGRAMS = re.compile(r"(?:adapter_model|consolidated|optimizer|scheduler|mp_rank)\b.*")
_PICKLED = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle)")
_OTHER = re.compile(r".*\.(gguf|h5|msgpack|onnx|npz)")


def most_bytes(name: str) -> float:
    """How large a file can be that is read as a whole; a tokenizer's and an adapter's may have any size."""
    is_small = name.endswith(".json") and not name.startswith(("tokenizer", "vocab"))
    return MOST_JSON_BYTES if is_small else math.inf


class MissingFileError(SourceNotFoundError):
    """It is known that there is no such file; other errors leave that open."""


def index_name(variant: str) -> str:
    """The file that says in which file each tensor is."""
    return f"model.safetensors.index.{variant}.json" if variant else "model.safetensors.index.json"


def single_name(variant: str) -> str:
    """The file of weights, where there is only one."""
    return f"model.{variant}.safetensors" if variant else "model.safetensors"


class NotAsReadError(CorruptSourceError):
    """What was planned or read while weights arrived does not hold for what has arrived; it does when read again."""


def before_each(sizes: Mapping[str, int]) -> dict[str, int]:
    """How many bytes come before each file, where they come one after the other."""
    return dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False))


class Files(Protocol):
    """The files of one checkpoint, readable in part."""

    @property
    def variant(self) -> str:
        """The variant of the weights that is wanted; empty for none."""

    @property
    def name(self) -> str:
        """What messages, and the cache's folders, call the model."""

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where the files came from, for the manifest."""

    def identity(self, advance: Advance | None = None) -> Mapping[str, Any]:
        """What changes whenever the content does, for the key; JSON values.

        Args:
            advance: Called with the numbers of bytes that are read for that; None for the call's own progress.

        Raises:
            CorruptSourceError: A file is being written.
        """

    def status(self) -> Mapping[str, Any]:
        """What tells, without reading any weights, that the files have not changed between two times; JSON values.

        Empty where the identity tells so itself.
        """

    @property
    def is_identified(self) -> bool:
        """Whether `identity` is known to read no weights as a whole."""

    @property
    def is_far(self) -> bool:
        """Whether reading costs time on the way, so that nothing should be read twice."""

    def answers(self) -> Mapping[str, Any]:
        """What another process needs to read the same files without asking for anything but their bytes: JSON."""

    def names(self) -> list[str]:
        """The names of all files at the top."""

    def find(self, name: str) -> bytes | None:
        """The whole content of a small file; None where there is no such file."""

    def size(self, name: str) -> int:
        """The size of a file in bytes.

        Raises:
            MissingFileError: There is no such file.
        """

    def is_here(self, name: str) -> bool:
        """Whether reading a file asks nobody."""

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` from a position on; safe to call from several threads.

        Raises:
            CorruptSourceError: The file ends before.
        """

    def nbytes_to_fetch(self, wanted: Wanted, *, keep: bool, is_shared: bool = False) -> int:
        """How many bytes `arriving` downloads."""

    def arriving(
        self, wanted: Wanted, advance: Advance, *, keep: bool, is_shared: bool = False
    ) -> AbstractContextManager[Mapping[str, int]]:
        """Brings what is far away, while the body runs: `read_into` waits there for what has not arrived.

        Leaving the context waits for the rest, and makes sure that it is what was meant. After an error of the body it
        ends what is under way.

        Args:
            wanted: What of which files, in the order in which it is wanted.
            advance: Called with the numbers of bytes that have arrived, from any thread.
            keep: Whether files are to be stored where their library stores them.
            is_shared: Whether other processes bring the rest, so that hardly more is to be brought than is wanted.

        Returns:
            Yields when the first byte of each file arrives: as so many bytes that come before.

        Raises:
            CorruptSourceError: What has arrived is not what headers and checksums speak of.
        """

    def versions(self) -> Mapping[str, Any]:
        """Which versions of files parts have arrived of, where their identity does not tell; see `Versions.as_json`."""

    def stop_arriving(self, error: BaseException) -> None:
        """Ends what is under way, and whoever waits for it, with an error."""

    def close(self) -> None:
        """Lets go of what is open."""


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a checkpoint's weights.

    Attributes:
        names: The files, in order.
        tensors: From tensor to file, where an index says so; empty without one.
    """

    names: tuple[str, ...]
    tensors: Mapping[str, str] = field(default_factory=dict)


def weight_files(files: Files) -> WeightFiles:
    """Finds the files that hold the weights.

    That is `model.safetensors`, as in transformers, else the files that `model.safetensors.index.json` names, else
    whatever safetensors files there are.

    Raises:
        CorruptSourceError: The index is malformed, or names a file outside the checkpoint.
        SourceNotFoundError: There are no weights, or a file that the index names is missing.
        UnsupportedFormatError: There are weights, but not as safetensors.
    """
    single, index = single_name(files.variant), index_name(files.variant)
    if _exists(files, single):
        return WeightFiles((single,))
    content = files.find(index)
    if content is not None:
        tensors = _parse_index(f"{files.name}: {index}", content)
        names = tuple(sorted(set(tensors.values())))
        missing = [name for name in names if not _exists(files, name)]
        if missing:
            raise SourceNotFoundError(
                f"{files.name}: {index} names {', '.join(missing[:5])}{' and more' * (len(missing) > 5)}, which "
                "is not there; download the checkpoint again"
            )
        return WeightFiles(names, tensors)
    present = files.names()
    found = tuple(
        sorted(name for name in present if name.endswith(".safetensors") and not _OF_OTHER_PROGRAMS.match(name))
    )
    if files.variant:
        raise SourceNotFoundError(
            f"{files.name} has no variant {files.variant!r}: neither {index} nor {single} is there; it has "
            f"{', '.join(found) or 'no safetensors files'}"
        )
    if not found:
        raise _no_weights(files.name, present)
    return WeightFiles(found)


def no_config(model: str, present: Iterable[str]) -> LazyLoadError:
    """What to say of a model without `config.json`, from the names of its files."""
    return _other_kind(model, list(present)) or SourceNotFoundError(
        f"{model} has no {CONFIG}; give the folder or repository of a Hugging Face checkpoint"
    )


def require_no_pointer(where: str, content: bytes) -> None:
    """Refuses the small file that Git has in place of a large one.

    Raises:
        CorruptSourceError: It is one (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
    """
    if content.startswith(_LFS):
        raise CorruptSourceError(
            f"{where} is a Git LFS pointer and not the file itself; run `git lfs pull` in its folder"
        )


def parse_json(where: str, content: bytes, *, infinity: Any = None) -> dict[str, Any]:
    """A JSON object.

    Args:
        where: What messages call the file.
        content: Its content.
        infinity: What to read for `Infinity`, see `strict_json.loads`.

    Raises:
        CorruptSourceError: It is none.
    """
    require_no_pointer(where, content)
    try:
        parsed = strict_json.loads(content, MOST_JSON_BYTES, infinity=infinity)
    except ValueError as error:
        raise CorruptSourceError(f"{where} is not JSON ({error}); download it again") from None
    if not isinstance(parsed, dict):
        raise CorruptSourceError(f"{where} holds no JSON object; download it again")
    return parsed


def _exists(files: Files, name: str) -> bool:
    try:
        files.size(name)
    except MissingFileError:
        return False
    return True


def _parse_index(where: str, content: bytes) -> dict[str, str]:
    tensors = parse_json(where, content).get("weight_map")
    if not isinstance(tensors, dict) or not tensors:
        raise CorruptSourceError(f"{where} has no weight_map, which says where the tensors are; download it again")
    # Thousands of tensors are in a few files.
    odd = [name for name in tensors.values() if not isinstance(name, str)]
    for name in odd[:1] or dict.fromkeys(tensors.values()):
        if not isinstance(name, str) or not _is_inside(name):
            raise CorruptSourceError(f"{where} names {name!r}, which is no file inside the checkpoint; do not trust it")
        if not name.endswith(".safetensors"):
            raise UnsupportedFormatError(f"{where} names {name}; only safetensors are read. {_CONVERT}")
    return tensors


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    odd = "\\" in name or ":" in name or "\0" in name
    return bool(name) and not odd and not path.is_absolute() and ".." not in path.parts


_CONVERT = """Convert the checkpoint once: python -c "import sys, transformers; \
m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype='auto'); m.save_pretrained(sys.argv[2])" \
MODEL FOLDER"""


def _other_kind(model: str, present: list[str]) -> LazyLoadError | None:
    """What to say of files that are something else than a checkpoint of Hugging Face's."""
    if _ADAPTER in present:
        return UnsupportedFormatError(
            f"{model} is an adapter (PEFT: {_ADAPTER}), which only changes another model; load that one, "
            "with adapter= for this"
        )
    if _ORBAX & set(present):
        return UnsupportedFormatError(
            f"{model} is an Orbax checkpoint, already converted; restore it with Orbax (in MaxText, that is "
            "load_parameters_path), or give the Hugging Face checkpoint that it was made from"
        )
    if gguf := sorted(name for name in present if name.endswith(".gguf")):
        return UnsupportedFormatError(
            f"{model} has weights as GGUF ({gguf[0]}), which are packed for llama.cpp and not read; give the "
            "repository that they were made from"
        )
    if own := sorted(name for name in present if name.startswith("consolidated.")):
        return UnsupportedFormatError(
            f"{model} has weights in its maker's own form only ({own[0]}); give the repository with the Hugging Face "
            "form (model.safetensors), often named -hf, or convert it with transformers' script"
        )
    return None


def _no_weights(model: str, present: list[str]) -> Exception:
    if other_kind := _other_kind(model, present):
        return other_kind
    pickled = sorted(name for name in present if _PICKLED.fullmatch(name))
    if pickled:
        return UnsupportedFormatError(
            f"{model} has only pickled weights ({pickled[0]}), which can run code and are not read. {_CONVERT}"
        )
    other = sorted(name for name in present if _OTHER.fullmatch(name))
    if other:
        return UnsupportedFormatError(
            f"{model} has weights as {other[0]}, but only safetensors are read; look for the original repository"
        )
    return SourceNotFoundError(
        f"{model} has no weights: neither {index_name('')} nor {single_name('')} is there; it has "
        f"{', '.join(sorted(present)[:8]) or 'no files'}"
    )
