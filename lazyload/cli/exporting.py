"""The command that writes a converted or trained checkpoint as the hub would hold it."""

from typing import Annotated

import typer

from lazyload.cli import values
from lazyload.cli.options import LocalFilesOnly, Token


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="The folder of an Orbax checkpoint, of one step of it or an item."),
    ],
    to: Annotated[str, typer.Option(metavar="FOLDER", help="Where to; not there yet, or empty.")],
    like: Annotated[
        str,
        typer.Option(metavar="MODEL", help="The Hugging Face model that it was made from: a hub id, folder or URL."),
    ],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of that model.")] = None,
    subfolder: Annotated[str | None, typer.Option(help="The folder in the repository, where the model lies.")] = None,
    variant: Annotated[str | None, typer.Option(help="Files of weights of that name: fp16.")] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="nnx, nnx-scanned, maxtext, maxtext-unscanned or tunix.", show_default="the one whose paths it has"
        ),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="MaxText's vocab_size, where it is larger than the model's.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32.", show_default="the arrays' own")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="The size of a file at most.")] = "5GB",
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=JSON", help="A field of config.json with another value. May be repeated."),
    ] = None,
    token: Token = None,
    local_files_only: LocalFilesOnly = False,
) -> None:
    """Write an Orbax checkpoint as the hub would hold it.

    It is one that convert has made, or that MaxText or a training loop has saved. The folder's path is printed.
    """
    import lazyload

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
        config=values.config_fields(config or ()),
        token=token,
        local_files_only=local_files_only,
    )
    print(written)
