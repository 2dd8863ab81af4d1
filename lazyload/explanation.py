"""Why a call would hit or miss: the entries of its model, and field by field how their keys differ from its own."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lazyload.arguments import ModelArguments
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key
from lazyload.cache.manifest import InaccessibleError
from lazyload.errors import CacheError
from lazyload.families.family import Family
from lazyload.options import DTypeOption, LayoutOption, StorageOption, explains_arguments
from lazyload.request import Request, open_request

_MEANINGS: Mapping[str, str] = {
    "source": "other files",
    "source.commit": "another commit",
    "source.files": "other contents",
    "config": "other values for fields of config.json",
    "mapping": "converted in another way: another version of lazyload, another family or layout",
    "own_head": "converted in another way: another version of lazyload, another family or layout",
    "format": "written by another version of lazyload",
    "container": "other things around the arrays",
}


@dataclass(frozen=True)
class Difference:
    """A field in which an entry is not what the call needs.

    Attributes:
        field: The key's field, parts joined by dots.
        wanted: What the call needs.
        found: What the entry has.
        meaning: What that means; empty where the values say it.
    """

    field: str
    wanted: Any
    found: Any
    meaning: str


@dataclass(frozen=True)
class Comparison:
    """An entry of the call's model beside what the call needs.

    Attributes:
        entry: The entry.
        differences: The fields in which they differ; none for the entry that the call hits.
        damage: What keeps an entry without differences from being used; empty for nothing.
    """

    entry: Entry
    differences: tuple[Difference, ...]
    damage: str = ""

    @property
    def hit(self) -> bool:
        """Whether the call would use this entry."""
        return not self.differences and not self.damage


@dataclass(frozen=True)
class Explanation:
    """Why a call would hit or miss.

    Attributes:
        model: The model's name.
        root: The cache's root.
        key: What the call's entry is called; None where the weights of a folder would have to be read to tell, and no
            entry was made of files of the same sizes.
        comparisons: The entries of the model, the closest first.
        unusable: What there is beside entries, and why it is none.
    """

    model: str
    root: str
    key: str | None
    comparisons: tuple[Comparison, ...]
    unusable: tuple[str, ...]

    @property
    def hit(self) -> bool:
        """Whether the call would convert nothing."""
        return any(comparison.hit for comparison in self.comparisons)


@explains_arguments
def explain(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: DTypeOption = "bfloat16",
    layout: LayoutOption = "nnx",
    layers: range | None = None,
    storage: StorageOption = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    strict: bool = False,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Explanation:
    """Says which entries of a model there are, and field by field why a call would not use them. Nothing is written.

    Args:
        model: See `from_pretrained`, here and below.
        revision: A branch, tag or commit.
        subfolder: Where in the repository or folder the checkpoint lies.
        variant: Which files of weights.
        dtype: The dtype of floating-point parameters, or dtypes by pattern.
        layout: The layout of the converted checkpoint.
        layers: Which layers of the decoder; None for all.
        storage: How it would be stored.
        cache_dir: The cache's root.
        token: A hub token.
        local_files_only: Whether the hub must not be asked.
        strict: Decides no entry; taken because the other calls do.
        config: Fields of `config.json` that are to have other values.
        family: The architecture, where it is none of those that are known.
        adapter: A LoRA adapter in PEFT's format.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`: whatever keeps the model from being opened.

    Example:
        >>> lazyload.explain("Qwen/Qwen3-8B", dtype="float32").hit  # doctest: +SKIP
    """
    arguments = ModelArguments(
        model=model,
        revision=revision,
        subfolder=subfolder,
        variant=variant,
        dtype=dtype,
        layout=layout,
        layers=layers,
        storage=storage,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        strict=strict,
        config=config,
        family=family,
        adapter=adapter,
    )
    with open_request(arguments, dry_run=True) as request:
        return _explained(request)


def _explained(request: Request) -> Explanation:
    cache, name = request.cache, request.source.name
    key = request.key if request.may_be_cached else None
    entries = {entry.folder: entry for entry in cache.visible(name)}
    try:
        found = cache.find(key, request.forms) if key else None
    except CacheError:
        # What keeps it from being looked at is said of what cannot be used.
        found = None
    if found:
        # A folder that was moved: its entry bears the name that it had.
        entries.setdefault(found.folder, found)
    compared = [_compared(entry, request, key, found) for entry in entries.values()]
    return Explanation(
        model=name,
        root=str(cache.root),
        key=key.digest if key else None,
        comparisons=tuple(sorted(compared, key=lambda one: len(one.differences))),
        unusable=tuple(cache.problems(name).values()),
    )


def _compared(entry: Entry, request: Request, key: Key | None, found: Entry | None) -> Comparison:
    if key and entry.key == key.digest:
        is_used = found is not None and found.folder == entry.folder
        return Comparison(entry, (), "" if is_used else _damage(entry, request))
    fields = entry.manifest.fields
    if key:
        return Comparison(entry, _differences(key.compared(Key(fields))))
    rows = Key(request.fields).compared(Key({name: value for name, value in fields.items() if name != "source"}))
    of_source = Difference("source", "files of other sizes", "", _MEANINGS["source"])
    return Comparison(entry, (of_source, *_differences(rows)))


def _differences(rows: Iterable[tuple[str, Any, Any]]) -> tuple[Difference, ...]:
    return tuple(Difference(name, wanted, found, _meaning(name)) for name, wanted, found in rows)


def _damage(entry: Entry, request: Request) -> str:
    """Why an entry of the right key is not used."""
    try:
        problems = entry.lost_files() or [problem for form in request.forms for problem in entry.differences(form)]
    except InaccessibleError as error:
        return str(error)
    return problems[0] if problems else "another root has it, too, and is looked in first"


def _meaning(field: str) -> str:
    *parents, _ = field.split(".")
    named = (".".join(parents[:length]) for length in range(len(parents), 0, -1))
    return next((_MEANINGS[name] for name in (field, *named) if name in _MEANINGS), "")
