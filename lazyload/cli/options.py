"""The arguments and options that commands share, and what those about a model mean for Python."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import click

from lazyload.cli import completion, values
from lazyload.cli.command import argument


def _completed(find: Callable[[str], list[str]]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """How click asks for what a word may become."""
    return lambda _context, _parameter, incomplete: find(incomplete)


targets = argument(
    "targets",
    metavar="TARGET",
    meaning="Names of models, or the starts of keys.",
    nargs=-1,
    required=True,
    shell_complete=_completed(completion.targets),
)
some_targets = argument(
    "targets",
    metavar="TARGET",
    meaning="Names of models, or the starts of keys; none for all.",
    nargs=-1,
    shell_complete=_completed(completion.targets),
)
filters = click.option(
    "--filter",
    "-f",
    "filters",
    multiple=True,
    metavar="FILTER",
    help="Only what fulfils a condition: 'size>1GB', 'accessed>30d', 'modified<2w', 'model=Qwen/*', "
    "'revision=main', 'layout=nnx', 'dtype=float32', 'superseded=yes'. May be repeated; all count.",
    shell_complete=_completed(completion.filters),
)
cache_dir = click.option(
    "--cache-dir",
    help="The cache's root: a folder, gs:// or s3://.",
    show_default="$LAZYLOAD_CACHE or ~/.cache/lazyload",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet = click.option("--quiet", "-q", is_flag=True, help="Print nothing but keys or paths, one a line.")
verbose = click.option("--verbose", "-v", is_flag=True, help="Say more.")
dry_run = click.option("--dry-run", is_flag=True, help="Say only what would be done.")
yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
keep_source = click.option(
    "--keep-source/--no-keep-source",
    default=True,
    help="Whether weights that are downloaded from the hub stay in its cache; else they pass through memory, which "
    "takes half the disk. What is here already stays in any case.",
)
token = click.option("--token", help="A hub token; public models need none.", envvar="HF_TOKEN", show_envvar=True)
local_files_only = click.option("--local-files-only", is_flag=True, help="Do not ask the hub.")
subfolder = click.option("--subfolder", help="The folder in the repository, where the model lies.")
variant = click.option("--variant", help="Files of weights of that name: fp16.")
vocab_size = click.option("--vocab-size", type=int, help="MaxText's vocab_size, where it is larger than the model's.")

_OF_A_MODEL = (
    argument(
        "model", metavar="MODEL", meaning="A hub id, a folder or a URL.", shell_complete=_completed(completion.models)
    ),
    click.option("--revision", help="A branch, tag or commit of a hub model."),
    subfolder,
    variant,
    click.option(
        "--dtype",
        multiple=True,
        metavar="[PATTERN=]DTYPE",
        help="bfloat16, float16, float32, or auto for config.json's. With a pattern of roles or paths, such as "
        "'*norm*=float32', for these. May be repeated; of patterns the first that matches counts.",
        show_default="bfloat16",
    ),
    click.option(
        "--layout",
        default="nnx",
        help="nnx, nnx-scanned (layers stacked), maxtext (the same), maxtext-unscanned or tunix.",
    ),
    click.option("--layers", metavar="FIRST:END", help="Only these layers of the decoder, END left out: 0:8."),
    vocab_size,
    click.option("--ocdbt/--no-ocdbt", default=None, help="Store arrays in one OCDBT database."),
    click.option("--zarr3/--no-zarr3", default=None, help="Store arrays in zarr's third format."),
    click.option("--compression", help="none or zstd."),
    click.option("--chunk-bytes", type=int, help="The size of chunks at most."),
    cache_dir,
    click.option(
        "--config",
        multiple=True,
        metavar="FIELD=JSON",
        help="A field of config.json with another value, such as rope_theta=1e6, hidden_act=silu or "
        "text_config.note=null; or an object, '{\"note\": null}'. May be repeated; later ones win.",
    ),
    click.option(
        "--adapter", help="A LoRA adapter in PEFT's format, a hub id, folder or URL, to be merged into the weights."
    ),
    click.option("--strict", is_flag=True, help="Every tensor without use is an error."),
    token,
    local_files_only,
)
_STORAGE = ("ocdbt", "zarr3", "compression", "chunk_bytes")
_AS_TYPED = ("model", "revision", "subfolder", "variant", "cache_dir", "adapter", "strict", "token", "local_files_only")
_READ = ("dtype", "layout", "vocab_size", "layers", "config")


def of_a_model(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what `convert`, `plan` and `explain` have in common.

    Args:
        command: Its first parameter is a dictionary: arguments of `lazyload.convert`, `lazyload.plan` and
            `lazyload.explain`.
    """

    @functools.wraps(command)
    def with_arguments(**typed: Any) -> None:
        of_model = {name: typed.pop(name) for name in (*_AS_TYPED, *_STORAGE, *_READ)}
        command(_arguments(of_model), **typed)

    return functools.reduce(lambda made, add: add(made), reversed(_OF_A_MODEL), with_arguments)


def _arguments(typed: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed of a model, as arguments in Python."""
    # Commands that look after the cache do without it.
    from lazyload.storage import Storage

    return {
        **{name: typed[name] for name in _AS_TYPED},
        "dtype": values.dtypes(typed["dtype"]),
        "layout": values.layout(typed["layout"], typed["vocab_size"]),
        "layers": values.layers(typed["layers"]),
        "storage": Storage(**{name: typed[name] for name in _STORAGE}),
        "config": values.config_fields(typed["config"]),
    }
