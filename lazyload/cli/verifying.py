"""`lazyload cache verify`: what differs from what was written, and with `--repair`, what became of it."""

import collections
import json
from collections.abc import Sequence
from typing import Any

import click

from lazyload.cache.root import size
from lazyload.cli import options, text
from lazyload.cli.command import command


@command("lazyload cache verify", "lazyload cache verify Qwen/Qwen3-8B --repair")
@options.some_targets
@click.option(
    "--repair",
    is_flag=True,
    help="Convert what is damaged again from its source, and remove what cannot be converted.",
)
@options.dry_run
@options.as_json
@click.option("--quiet", "-q", is_flag=True, help="Print only the keys of what is damaged.")
@options.verbose
@options.keep_source
@options.token
@options.cache_dir
def verify(
    targets: Sequence[str],
    repair: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    keep_source: bool,
    token: str | None,
    cache_dir: str | None,
) -> None:
    """Compare what was written with its checksums.

    The exit code is 1 if something differs; with --repair, if something stays damaged.
    """
    import lazyload

    if not repair and dry_run:
        raise click.BadParameter("is for --repair; without that nothing is changed", param_hint="--dry-run")
    if repair:
        shown: dict[str, Any] = {"progress": False} if quiet or as_json else {}
        repairs = lazyload.repair(
            *targets, cache_dir=cache_dir, token=token, keep_source=keep_source, dry_run=dry_run, **shown
        )
    else:
        found = lazyload.verify(*targets, cache_dir=cache_dir)
        repairs = [lazyload.Repair(each, "kept" if each.problems else "sound") for each in found]
    if as_json:
        print(json.dumps([_repair_fields(each, told=repair) for each in repairs], indent=1))
    keys = collections.Counter(each.verification.key for each in repairs)
    for each in () if as_json else repairs:
        _tell(
            each, is_copied=keys[each.verification.key] > 1, told=repair, quiet=quiet, verbose=verbose, dry_run=dry_run
        )
    still = {"kept"} if repair and not dry_run else {"kept", "converted", "removed"}
    if any(each.outcome in still for each in repairs):
        raise click.exceptions.Exit(1)


def _repair_fields(each: Any, *, told: bool) -> dict[str, Any]:
    found = each.verification
    fields = {"key": found.key, "model": found.model, "folder": str(found.folder), "problems": found.problems}
    return fields | ({"outcome": each.outcome, "reason": each.reason} if told else {})


def _tell(each: Any, *, is_copied: bool, told: bool, quiet: bool, verbose: bool, dry_run: bool) -> None:
    """Prints what was found of an entry, and what became of it."""
    found = each.verification
    if quiet:
        if found.problems:
            print(found.key)
        return
    where = f" in {found.folder.parents[1]}" if is_copied else ""
    print(f"{found.key[:8]}  {text.printable(found.model)}{where}: {text.printable('; '.join(found.problems)) or 'ok'}")
    if verbose:
        print(f"          {found.folder}, {text.size(size(found.folder))}")
    if told and found.problems:
        would = "would be " if dry_run else ""
        said = {"converted": f"{would}converted again", "removed": f"{would}removed", "kept": "kept"}[each.outcome]
        print(f"          {said}{f': {text.printable(each.reason)}' if each.reason else ''}")
