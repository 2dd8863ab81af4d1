"""The command that writes a converted or trained checkpoint as the hub would hold it."""

from collections.abc import Sequence

import click

from lazyload.cli import options, values
from lazyload.cli.command import argument, command


@command(
    "lazyload export run/checkpoints/100 --to trained --like Qwen/Qwen3-8B",
    "lazyload export maxtext/0/items --to trained --like google/gemma-2-2b",
)
@argument(
    "checkpoint", metavar="CHECKPOINT", meaning="The folder of an Orbax checkpoint, of one step of it or an item."
)
@click.option("--to", required=True, metavar="FOLDER", help="Where to; not there yet, or empty.")
@click.option(
    "--like",
    metavar="MODEL",
    help="The Hugging Face model that it was made from: a hub id, folder or URL.",
    show_default="what an entry of the cache says",
)
@click.option("--revision", help="A branch, tag or commit of that model.")
@options.subfolder
@options.variant
@click.option(
    "--layout",
    help="nnx, nnx-scanned, maxtext, maxtext-unscanned or tunix.",
    show_default="the one whose paths it has",
)
@options.vocab_size
@click.option("--dtype", help="bfloat16, float16 or float32.", show_default="the arrays' own")
@click.option("--max-shard-size", default="5GB", metavar="SIZE", help="The size of a file at most.")
@click.option(
    "--config",
    multiple=True,
    metavar="FIELD=JSON",
    help="A field of config.json with another value. May be repeated.",
)
@options.token
@options.local_files_only
def export(
    checkpoint: str,
    to: str,
    like: str | None,
    revision: str | None,
    subfolder: str | None,
    variant: str | None,
    layout: str | None,
    vocab_size: int | None,
    dtype: str | None,
    max_shard_size: str,
    config: Sequence[str],
    token: str | None,
    local_files_only: bool,
) -> None:
    """Write an Orbax checkpoint as the hub would hold it.

    It is one that convert has made, or that MaxText or a training loop has saved. The folder's path is printed.
    """
    import lazyload

    if layout is None and vocab_size is not None:
        raise click.BadParameter("is for --layout maxtext or maxtext-unscanned", param_hint="--vocab-size")
    written = lazyload.export(
        checkpoint,
        to,
        like=like,
        revision=revision,
        subfolder=subfolder,
        variant=variant,
        layout=None if layout is None else values.layout(layout, vocab_size),
        dtype=dtype,  # type: ignore[arg-type]
        max_shard_size=max_shard_size,
        config=values.config_fields(config),
        token=token,
        local_files_only=local_files_only,
    )
    print(written)
