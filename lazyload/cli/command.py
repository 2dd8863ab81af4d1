"""How commands look, and how they take what is typed: the line of usage, examples, `-h`, and texts as they are.

In some versions (seen in 0.29.2) Typer converts each value by pydantic, which takes longer to import than a command
that looks at the cache takes in all: a parameter's `get_runtime_param()` gives the object whose `coerce` does so.
Values that are of their type need no conversion, and most calls then no pydantic. Other versions have no such method.
"""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

HELP = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command whose usage names its arguments as people write them: `MODEL`, `[TARGET]...`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, those for help included."""
        return _without_needless_conversions(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The pieces of the line of usage, behind the command's name."""
        arguments = [param for param in self.params if param.param_type_name == "argument"]
        return [self.options_metavar or "", *map(_usage, arguments)]


class Group(TyperGroup):
    """A command that has others."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, those for help included."""
        return _without_needless_conversions(super().get_params(ctx))


def _without_needless_conversions(params: list[Any]) -> list[Any]:
    for param in params:
        if hasattr(param, "get_runtime_param") and "get_runtime_param" not in vars(param):
            vars(param)["get_runtime_param"] = _Lenient(param, param.get_runtime_param).itself
    return params


class _Lenient:
    """Stands for what converts a parameter's values, and leaves those alone that are of their type."""

    def __init__(self, param: Any, convert: Callable[[], Any]):
        """`convert` makes what does it."""
        self._of_type = getattr(getattr(param, "type_descriptor", None), "annotation", None)
        self._convert = convert

    def itself(self) -> "_Lenient":
        """As `get_runtime_param` is called."""
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value as the command takes it."""
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if self._of_type == list[str] and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return list(value)
        if isinstance(self._of_type, type) and type(value) is self._of_type:
            return value
        return self._convert().coerce(value, param=param, ctx=ctx)


def add(app: typer.Typer, command: Callable[..., None], *examples: str, name: str | None = None) -> None:
    """Adds a command, with examples behind its help, under its own name or another."""
    # Lines behind this sign are not made into a paragraph.
    epilog = "\n".join(["Examples:", "", "\b", *(f"$ {example}" for example in examples)])
    app.command(name, cls=Command, epilog=epilog, context_settings=HELP)(command)


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return (name if argument.required else f"[{name}]") + ("..." if argument.nargs == -1 else "")
