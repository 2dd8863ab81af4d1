"""How commands look: the line of usage, examples, `-h`."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

HELP = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command whose usage names its arguments as people write them: `MODEL`, `[TARGET]...`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The pieces of the line of usage, behind the command's name."""
        arguments = [param for param in self.params if param.param_type_name == "argument"]
        return [self.options_metavar or "", *map(_usage, arguments)]


def add(app: typer.Typer, command: Callable[..., None], *examples: str, name: str | None = None) -> None:
    """Adds a command, with examples behind its help, under its own name or another."""
    # Lines behind this sign are not made into a paragraph.
    epilog = "\n".join(["Examples:", "", "\b", *(f"$ {example}" for example in examples)])
    app.command(name, cls=Command, epilog=epilog, context_settings=HELP)(command)


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return (name if argument.required else f"[{name}]") + ("..." if argument.nargs == -1 else "")
