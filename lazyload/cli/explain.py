"""The command that says why a call would hit or miss."""

import json
from collections.abc import Collection
from typing import Any

from lazyload.cache.entry import Entry
from lazyload.cli import options, text
from lazyload.cli.command import command


@command("lazyload explain Qwen/Qwen3-8B", "lazyload explain ./my-model --dtype float32 --layers 0:8")
@options.of_a_model
@options.as_json
@options.quiet
@options.verbose
def explain(arguments: dict[str, Any], as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show why a call would hit or miss.

    That is which entries of the model there are, and field by field what this call would need instead; with -v also
    what follows from other fields.
    """
    import lazyload

    explained = lazyload.explain(**arguments)
    if as_json:
        print(json.dumps(_fields(explained), indent=1))
        return
    if quiet:
        for comparison in explained.comparisons:
            if comparison.hit:
                print(comparison.entry.path)
        return
    model = text.printable(explained.model)
    if not explained.comparisons and not explained.unusable:
        print(f"miss: {model} has not been converted into {explained.root}")
        return
    called = explained.key if verbose else (explained.key or "")[:8]
    print(f"{'hit' if explained.hit else 'miss'}: this call needs {called or 'what has not been converted'} of {model}")
    for comparison in explained.comparisons:
        print()
        print(_headline(comparison.entry, "this call uses it" if comparison.hit else comparison.damage))
        _show_differences(comparison.differences, verbose)
    for problem in explained.unusable:
        print(f"\ncannot be used: {text.printable(problem)}")


def _headline(entry: Entry, said: str) -> str:
    stored = f"{entry.manifest.fields.get('layout', '')}, {text.dtypes(entry.manifest.fields.get('dtype', ''))}"
    return f"{entry.key[:8]}  {stored}, {text.size(entry.nbytes)}{f': {text.printable(said)}' if said else ''}"


def _show_differences(differences: Any, verbose: bool) -> None:
    width = 10_000 if verbose else 40
    rows = [
        (
            f"  {each.field}",
            text.middle(_shown(each.wanted), width),
            text.middle(_shown(each.found), width),
            each.meaning,
        )
        for each in differences
        if verbose or not _follows(each.field, {other.field for other in differences})
    ]
    if rows:
        columns = [text.Column(name, least=10) for name in ("  field", "this call", "this entry", "")]
        text.table(columns, rows)


def _follows(field: str, others: Collection[str]) -> bool:
    """Whether a difference is what another one brings about."""
    of_layout = field in ("mapping", "own_head") or field.startswith("container.")
    return (of_layout and "layout" in others) or (field == "own_head" and "mapping" in others)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "-" if value is None else json.dumps(value)


def _fields(explained: Any) -> dict[str, Any]:
    entries = [
        {
            "key": comparison.entry.key,
            "path": str(comparison.entry.path),
            "hit": comparison.hit,
            "damage": comparison.damage,
            "differences": [vars(difference) for difference in comparison.differences],
        }
        for comparison in explained.comparisons
    ]
    return {
        "model": explained.model,
        "key": explained.key,
        "hit": explained.hit,
        "entries": entries,
        "unusable": explained.unusable,
    }
