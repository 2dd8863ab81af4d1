"""The options that commands share: typer's declarations, and what they mean for Python."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from lazyload.cli import completion, values
from lazyload.storage import Storage

Targets = Annotated[
    list[str],
    typer.Argument(metavar="TARGET", help="Names of models, or the starts of keys.", autocompletion=completion.targets),
]
SomeTargets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TARGET",
        help="Names of models, or the starts of keys; none for all.",
        autocompletion=completion.targets,
        show_default=False,
    ),
]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        "-f",
        metavar="FILTER",
        help="Only what fulfils a condition: 'size>1GB', 'accessed>30d', 'modified<2w', 'model=Qwen/*', "
        "'revision=main', 'layout=nnx', 'dtype=float32', 'superseded=yes'. May be repeated; all count.",
        autocompletion=completion.filters,
    ),
]
CacheDir = Annotated[
    str | None,
    typer.Option(
        help="The cache's root: a folder, gs:// or s3://.", show_default="$LAZYLOAD_CACHE or ~/.cache/lazyload"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but keys or paths, one a line.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say only what would be done.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
KeepSource = Annotated[
    bool,
    typer.Option(
        "--keep-source/--no-keep-source",
        help="Whether weights that are downloaded from the hub stay in its cache; else they pass through memory, which "
        "takes half the disk. What is here already stays in any case.",
    ),
]
Token = Annotated[
    str | None, typer.Option(help="A hub token; public models need none.", envvar="HF_TOKEN", show_envvar=True)
]

LocalFilesOnly = Annotated[bool, typer.Option("--local-files-only", help="Do not ask the hub.")]


@dataclass(frozen=True, repr=False)
class ModelOptions:
    """What `convert`, `plan` and `explain` have in common, as typed; the fields' metadata are typer's."""

    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A hub id, a folder or a URL.", autocompletion=completion.models)
    ]
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of a hub model.")] = None
    subfolder: Annotated[str | None, typer.Option(help="The folder in the repository, where the model lies.")] = None
    variant: Annotated[str | None, typer.Option(help="Files of weights of that name: fp16.")] = None
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PATTERN=]DTYPE",
            help="bfloat16, float16, float32, or auto for config.json's. With a pattern of roles or paths, such as "
            "'*norm*=float32', for these. May be repeated; of patterns the first that matches counts.",
            show_default="bfloat16",
        ),
    ] = None
    layout: Annotated[
        str, typer.Option(help="nnx, nnx-scanned (layers stacked), maxtext (the same), maxtext-unscanned or tunix.")
    ] = "nnx"
    layers: Annotated[
        str | None, typer.Option(metavar="FIRST:END", help="Only these layers of the decoder, END left out: 0:8.")
    ] = None
    vocab_size: Annotated[
        int | None, typer.Option(help="MaxText's vocab_size, where it is larger than the model's.")
    ] = None
    ocdbt: Annotated[bool | None, typer.Option("--ocdbt/--no-ocdbt", help="Store arrays in one OCDBT database.")] = None
    zarr3: Annotated[bool | None, typer.Option("--zarr3/--no-zarr3", help="Store arrays in zarr's third format.")] = (
        None
    )
    compression: Annotated[str | None, typer.Option(help="none or zstd.")] = None
    chunk_bytes: Annotated[int | None, typer.Option(help="The size of chunks at most.")] = None
    cache_dir: CacheDir = None
    config: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=JSON",
            help="A field of config.json with another value, such as rope_theta=1e6, hidden_act=silu or "
            "text_config.note=null; or an object, '{\"note\": null}'. May be repeated; later ones win.",
        ),
    ] = None
    adapter: Annotated[
        str | None,
        typer.Option(
            help="A LoRA adapter in PEFT's format, NAME@REVISION, a folder or URL, to be merged into the weights."
        ),
    ] = None
    strict: Annotated[bool, typer.Option("--strict", help="Every tensor without use is an error.")] = False
    token: Token = None
    local_files_only: LocalFilesOnly = False

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `lazyload.convert`, `lazyload.plan` and `lazyload.explain`."""
        return {
            "model": self.model,
            "revision": self.revision,
            "subfolder": self.subfolder,
            "variant": self.variant,
            "dtype": values.dtypes(self.dtype or ()),
            "layout": values.layout(self.layout, self.vocab_size),
            "layers": values.layers(self.layers),
            "storage": Storage(self.ocdbt, self.zarr3, self.compression, self.chunk_bytes),
            "cache_dir": self.cache_dir,
            "config": values.config_fields(self.config or ()),
            "adapter": self.adapter,
            "strict": self.strict,
            "token": self.token,
            "local_files_only": self.local_files_only,
        }


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is `ModelOptions`, with a parameter for each field instead, as typer wants it."""
    fields = inspect.signature(ModelOptions).parameters
    _, *others = inspect.signature(command).parameters.values()

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        command(ModelOptions(**{name: values.pop(name) for name in fields}), **values)

    vars(expanded)["__signature__"] = inspect.Signature([*fields.values(), *others])
    return expanded
