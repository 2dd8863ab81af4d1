"""A source: the tensors of a Hugging Face checkpoint, readable box by box, whatever holds its files."""

import collections
import functools
import hashlib
import itertools
import math
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from lazyload.errors import CorruptSourceError
from lazyload.layouts.scratch import Scratch
from lazyload.layouts.source import Box, TensorInfo
from lazyload.progress import Advance
from lazyload.sources.files import (
    CONFIG,
    MODELOPT_CONFIG,
    Files,
    NotAsReadError,
    WeightFiles,
    before_each,
    parse_json,
    weight_files,
)
from lazyload.sources.packed import (
    Packed,
    Scheme,
    find_packed,
    looks_packed,
    of_activations,
    read_modelopt,
    read_scheme,
)
from lazyload.sources.safetensors import StoredTensor, parse_header, read_box, read_header
from lazyload.sources.stretches import Rows, Stretch, Wanted, cut, joined
from lazyload.sources.versions import counted

_READS_AT_ONCE = 8
_SAMPLES, _SAMPLE_BYTES = 32, 1 << 15
_BYTES_TO_SAMPLE = 4 << 20
"""What is smaller is compared as a whole."""

_MOST_CHECKS = 1024
"""Of packed tensors, while their files may be far away: each is a read of its own. Others are checked when read."""


class Source:
    """A checkpoint in Hugging Face's format; packed weights appear unpacked.

    Attributes:
        name: The model's name.
        config: Its parsed `config.json`.
        compared: Of how many files, read by several processes, what was compared: the SHA-256, the ETag or the size.
    """

    def __init__(self, files: Files, config: Mapping[str, Any]):
        """Looks at no weights.

        Raises:
            UnsupportedFormatError: `config.json` names a quantisation scheme that is not read.
        """
        self._scheme_in_config = read_scheme(config, f"{files.name}: {CONFIG}")
        self.name = files.name
        self.config = config
        self.compared: Mapping[str, int] = {}
        self._files = files
        self._identity: Mapping[str, Any] | None = None
        self._nbytes_read = 0
        self._compared: dict[tuple[str, str], bool] = {}
        self._told_equal: Mapping[tuple[str, str], bool] = {}
        self._starts: Mapping[str, int] = {}
        self._checked: set[str] = set()
        self._scratch, self._unpacked = Scratch(), Scratch()
        self._lock = threading.Lock()

    @property
    def nbytes_read(self) -> int:
        """Bytes of weights that have been read."""
        return self._nbytes_read

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where it came from, for the manifest."""
        return self._files.origin

    def file_names(self) -> list[str]:
        """The names of the files beside `config.json`, the weights among them."""
        return self._files.names()

    def find(self, name: str) -> bytes | None:
        """The whole content of a small file; None where there is no such file."""
        return self._files.find(name)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What changes whenever the content does, for the key; the first use may read the weights as a whole.

        Raises:
            CorruptSourceError: A file is being written.
        """
        # Not a cached property: in Python 3.11 these have one lock for all sources, and this may take minutes.
        return self.identify()

    def identify(self, advance: Advance | None = None) -> Mapping[str, Any]:
        """The same.

        Args:
            advance: Called with the numbers of bytes that are read for that, from any thread; what it raises ends it.
                None for the call's own progress.
        """
        if self._identity is None:
            self._identity = self._files.identity(advance)
        return self._identity

    def know(self, identity: Mapping[str, Any]) -> None:
        """Takes over the identity that another process has found out of the same files."""
        self._identity = identity

    @property
    def status(self) -> Mapping[str, Any]:
        """What changes whenever the content does, without reading it; empty where the identity tells so itself.

        Two copies of the same files have different ones.

        Raises:
            SourceNotFoundError: A file is gone.
        """
        return self._files.status()

    @property
    def is_identified(self) -> bool:
        """Whether `identity` is known to read no weights as a whole."""
        return self._identity is not None or self._files.is_identified

    @property
    def is_far(self) -> bool:
        """Whether nothing of it should be read twice."""
        return self._files.is_far

    @property
    def is_for_all(self) -> bool:
        """Whether processes elsewhere can read it as this one does; not where it has been downloaded for this one."""
        return not self.is_far or not any(map(self._files.is_here, self._weight_files.names))

    def answers(self) -> dict[str, Any]:
        """What another process needs to read the same without asking for anything but weights: JSON."""
        return {
            "files": self._files.answers(),
            "compared": [[*pair, are_equal] for pair, are_equal in self._compared.items()],
            "checked": sorted(self._checked),
        }

    def take_over(self, answers: Mapping[str, Any]) -> None:
        """Takes over what another process has found out about the same files; it compares what looks equal."""
        self._told_equal = {(one, other): are_equal for one, other, are_equal in answers["compared"]}
        self._checked.update(answers["checked"])

    @property
    def unequal(self) -> list[tuple[str, str]]:
        """Pairs of tensors that this process knows to differ."""
        return [pair for pair, are_equal in self._compared.items() if not are_equal]

    def know_unequal(self, pairs: Iterable[Sequence[str]]) -> None:
        """Takes over which pairs another process knows to differ."""
        self._compared.update({(one, other): False for one, other in pairs})

    def versions(self) -> Mapping[str, Any]:
        """Which versions of its files this process has read parts of: JSON."""
        return self._files.versions()

    def compare_versions(self, others: Iterable[Mapping[str, Any]]) -> None:
        """Makes sure that other processes have read the same versions as this one.

        Raises:
            NotAsReadError: They have not.
        """
        self.compared = counted(self.name, filter(None, [self.versions(), *others]))

    @functools.cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name; the first use reads the headers.

        Raises:
            CorruptSourceError: A file is malformed, or contradicts the index.
            UnsupportedFormatError: A tensor has a dtype that is not read.
        """
        inside = {part for packed in self._packed.values() for part in packed.parts} | {*self.skipped}
        plain = {name: info for name, info in self._infos.items() if name not in inside}
        return plain | {name: packed.info for name, packed in self._packed.items()}

    @functools.cached_property
    def skipped(self) -> frozenset[str]:
        """Stored tensors that are known not to matter: what the scheme of packed weights has for activations."""
        return of_activations(self._stored) if self._scheme else frozenset()

    def read(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of a tensor; the array is valid until the thread's next read.

        Raises:
            CorruptSourceError: A file is shorter than its header says, or packed weights contradict themselves.
        """
        packed = self._packed.get(name)
        if packed is None:
            return self._read_stored(name, index)
        if name not in self._checked:
            packed.check(self._read_stored)
            self._checked.add(name)
        return packed.read(self._read_stored, index, self._unpacked.array)

    def position(self, name: str) -> int:
        """When a tensor has arrived: so many bytes come before, in the order in which files are brought.

        Until it is known how they are, that is one after the other.
        """
        starts = self._starts or self._file_starts
        return max(starts.get(part.file, 0) + part.start for part in map(self._stored.__getitem__, self._parts(name)))

    @functools.cached_property
    def _file_starts(self) -> Mapping[str, int]:
        """How many bytes come before each file, in their order."""
        ends: dict[str, int] = {}
        for part in sorted(self._stored.values(), key=lambda part: part.file):
            ends[part.file] = max(ends.get(part.file, 0), _stretch(part).stop)
        return before_each(ends)

    def stored_bytes(self, name: str) -> int:
        """How many bytes are read for a tensor, with those of one that it is compared with."""
        compared = {name, *(each for pair in self._pairs(is_shared=True) if name in pair for each in pair)}
        return sum(_stretch(self._stored[part]).nbytes for each in compared for part in self._parts(each))

    def nbytes_to_fetch(self, tensors: Collection[str], *, keep: bool, rows: Rows | None = None) -> int:
        """How many bytes `arriving` downloads."""
        return self._files.nbytes_to_fetch(self._wanted(tensors, rows), keep=keep, is_shared=rows is not None)

    @contextmanager
    def arriving(
        self,
        tensors: Collection[str],
        advance: Advance = lambda nbytes: None,
        *,
        keep: bool = True,
        rows: Rows | None = None,
    ) -> Iterator[None]:
        """Brings weights from far away while the body runs: what reads them waits for what has not arrived.

        Leaving the context waits for the rest, and makes sure that it is what was meant.

        Args:
            tensors: Those that are read.
            advance: Called with the numbers of bytes that have arrived, from any thread.
            keep: Whether what is downloaded is stored in the hub's cache; else none of it is stored.
            rows: Where other processes read the rest, which rows of these tensors; None for all.

        Raises:
            CorruptSourceError: What has arrived is not what the hub says it is.
        """
        pairs = self._pairs(is_shared=rows is not None)
        # Each process compares the rows that it reads.
        compared = None if rows is None else _rows_of_both(pairs, rows)
        wanted = _together(self._wanted(tensors, rows), self._wanted([*itertools.chain(*pairs)], compared))
        with (
            self._files.arriving(wanted, advance, keep=keep, is_shared=rows is not None) as starts,
            ThreadPoolExecutor(1, thread_name_prefix="lazyload-comparison") as pool,
        ):
            self._starts = starts
            comparisons = [pool.submit(self._compare, pair, compared) for pair in pairs]
            try:
                yield
                for comparison in comparisons:
                    comparison.result()
            except BaseException as error:
                self._files.stop_arriving(error)
                raise

    def stop_arriving(self, error: BaseException) -> None:
        """Ends what is under way, and whoever waits for it, with an error."""
        self._files.stop_arriving(error)

    def looks_equal(self, one: str, other: str) -> bool | None:
        """Whether two tensors hold the same bits, as far as samples tell; None where they are not compared by samples.

        That is where they are near or small, packed, or of different shapes or dtypes, unless another process has told.
        Of those that look equal, all is compared when they arrive.
        """
        pair = one, other
        # Also where this process has the files: all must plan the same model.
        if pair in self._told_equal:
            return self._told_equal[pair]
        stored = [self._stored[name] for name in (one, other) if name not in self._packed]
        is_far = not all(self._files.is_here(tensor.file) for tensor in stored)
        if (
            len(stored) < 2
            or stored[0].info != stored[1].info
            or not is_far
            or _stretch(stored[0]).nbytes < _BYTES_TO_SAMPLE
        ):
            return None
        if pair not in self._compared:
            last = _stretch(stored[0]).nbytes - _SAMPLE_BYTES
            places = [number * last // (_SAMPLES - 1) for number in range(_SAMPLES)]
            with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="lazyload") as pool:
                samples = [list(pool.map(functools.partial(self._sample, tensor), places)) for tensor in stored]
            self._compared[pair] = samples[0] == samples[1]
        return self._compared[pair]

    def _sample(self, tensor: StoredTensor, place: int) -> bytearray:
        sample = bytearray(_SAMPLE_BYTES)
        self._counted_read(tensor.file, tensor.start + place, memoryview(sample))
        return sample

    def _pairs(self, *, is_shared: bool) -> list[tuple[str, str]]:
        """The tensors that look equal: those that this process has found out, and those that others have told it."""
        found = {**self._told_equal, **self._compared} if is_shared else self._compared
        return [pair for pair, are_equal in found.items() if are_equal]

    def _compare(self, pair: tuple[str, str], rows: Rows | None) -> None:
        """Compares two tensors that have looked equal, or some rows of them, each as it arrives."""
        digests = {name: self._sha256(name, rows) for name in sorted(pair, key=self.position)}
        if len(set(digests.values())) > 1:
            self._compared[pair] = False
            raise NotAsReadError(
                f"{self.name}: {' and '.join(pair)} look equal in {_SAMPLES} places, and are not; call again"
            )

    def _sha256(self, name: str, rows: Rows | None) -> bytes:
        sha256, memory = hashlib.sha256(), memoryview(bytearray(_BYTES_TO_SAMPLE))
        for at in cut(self._stretches(name, name, rows), len(memory)):
            self._files.read_into(self._stored[name].file, at.start, memory[: at.nbytes])
            sha256.update(memory[: at.nbytes])
        return sha256.digest()

    def _parts(self, name: str) -> Sequence[str]:
        """The stored tensors that one is read from."""
        packed = self._packed.get(name)
        return (name,) if packed is None else tuple(packed.parts)

    def _wanted(self, tensors: Collection[str], rows: Rows | None = None) -> Wanted:
        """Where these tensors lie, or rows of them, by file; what is read twice, twice."""
        stretches = [
            (self._stored[part].file, stretch)
            for name in tensors
            for part in self._parts(name)
            for stretch in self._stretches(name, part, rows)
        ]
        return _by_file(stretches)

    def _stretches(self, name: str, part: str, rows: Rows | None) -> list[Stretch]:
        """Where a part of a tensor lies, or rows of it; of one that is packed, its scales are wanted as a whole."""
        at = _stretch(self._stored[part])
        count = self._stored[part].info.rows
        if (
            rows is None
            or not count
            or at.nbytes < max(_stretch(self._stored[each]).nbytes for each in self._parts(name))
        ):
            return [at]
        row_bytes, of = at.nbytes // count, self.tensors[name].rows
        # A row of what is packed may stand for several ones.
        limits = [(start * count // of, -(-stop * count // of)) for start, stop in rows.get(name, ())]
        return [Stretch(at.start + start * row_bytes, at.start + stop * row_bytes) for start, stop in limits]

    def check_unchanged(self, status: Mapping[str, Any]) -> None:
        """Makes sure that what has been read is what the identity stands for.

        Args:
            status: What `status` was before anything was read.

        Raises:
            CorruptSourceError: The files have changed since.
        """
        if self._files.identity() != self.identity:
            raise self._changed()
        self.require_status(status)

    def require_status(self, status: Mapping[str, Any]) -> None:
        """Makes sure of the same, as far as the status tells.

        Raises:
            CorruptSourceError: It is another one.
        """
        if self._files.status() != status:
            raise self._changed()

    def _changed(self) -> CorruptSourceError:
        return CorruptSourceError(
            f"{self.name} has been changed while it was being converted; call again when its files are complete"
        )

    def close(self) -> None:
        """Lets go of what is open."""
        self._files.close()

    @functools.cached_property
    def _weight_files(self) -> WeightFiles:
        return weight_files(self._files)

    @functools.cached_property
    def _stored(self) -> Mapping[str, StoredTensor]:
        """What the files hold, by name."""
        names = self._weight_files.names
        with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="lazyload") as pool:
            headers = list(pool.map(self._tensors_of, names))
        stored: dict[str, StoredTensor] = {}
        for tensors in headers:
            for name, tensor in tensors.items():
                if self._weight_files.tensors.get(name, tensor.file) != tensor.file:
                    continue
                if name in stored:
                    raise CorruptSourceError(
                        f"{self.name}: {name} stands in {stored[name].file} and in {tensor.file}, and no index says "
                        "which one counts; remove the files that are not part of the checkpoint"
                    )
                stored[name] = tensor
        for name, file in self._weight_files.tensors.items():
            if name not in stored:
                raise CorruptSourceError(
                    f"{self.name}: the index says that {name} is in {file}, but it is not; download both again"
                )
        return stored

    @functools.cached_property
    def _infos(self) -> Mapping[str, TensorInfo]:
        return {name: tensor.info for name, tensor in self._stored.items()}

    @functools.cached_property
    def _scheme(self) -> Scheme | None:
        """How weights are packed; another file than `config.json` is asked for only where some look so."""
        if self._scheme_in_config or not looks_packed(self._infos):
            return self._scheme_in_config
        content, where = self._files.find(MODELOPT_CONFIG), f"{self.name}: {MODELOPT_CONFIG}"
        return None if content is None else read_modelopt(parse_json(where, content), where)

    @functools.cached_property
    def _packed(self) -> Mapping[str, Packed]:
        if self._scheme is None:
            return {}
        packed = find_packed(self._scheme, self._infos, self._read_stored, self.name)
        if len(packed) <= _MOST_CHECKS:
            with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="lazyload") as pool:
                unchecked = [tensor for name, tensor in packed.items() if name not in self._checked]
                collections.deque(pool.map(lambda tensor: tensor.check(self._read_stored), unchecked), maxlen=0)
            self._checked.update(packed)
        return packed

    def _tensors_of(self, file: str) -> dict[str, StoredTensor]:
        where = f"{self.name}: {file}"
        size = self._files.size(file)
        header = read_header(functools.partial(self._files.read_into, file), size, where)
        return parse_header(header, size, file, where)

    def _read_stored(self, name: str, index: Box) -> np.ndarray:
        tensor = self._stored[name]
        return read_box(functools.partial(self._counted_read, tensor.file), tensor, index, self._scratch.array)

    def _counted_read(self, file: str, start: int, out: memoryview) -> None:
        self._files.read_into(file, start, out)
        with self._lock:
            self._nbytes_read += len(out)


def _rows_of_both(pairs: Iterable[tuple[str, str]], rows: Rows) -> Rows:
    """The rows of two tensors of which either's are read, each once."""
    of_pairs = {pair: joined((Stretch(*limits) for name in pair for limits in rows.get(name, ())), 0) for pair in pairs}
    return {name: ranges for pair, ranges in of_pairs.items() for name in pair}


def _together(*several: Wanted) -> Wanted:
    """What is wanted for one purpose and for another: what both want, twice."""
    return _by_file((file, stretch) for wanted in several for file, found in wanted.items() for stretch in found)


def _by_file(stretches: Iterable[tuple[str, Stretch]]) -> Wanted:
    wanted: dict[str, list[Stretch]] = {}
    for file, stretch in sorted(stretches):
        wanted.setdefault(file, []).append(stretch)
    return wanted


def _stretch(tensor: StoredTensor) -> Stretch:
    """Where in its file a tensor lies."""
    nbytes = math.prod(tensor.info.shape) * tensor.info.dtype.itemsize
    return Stretch(tensor.start, tensor.start + nbytes)
