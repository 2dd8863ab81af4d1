"""How commands look: the line of usage, arguments that are explained, examples, `-h`."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}
"""What the help of all commands has in common."""


class Argument(click.Argument):
    """An argument whose meaning the command's help says.

    Attributes:
        meaning: What it is.
    """

    def __init__(self, param_decls: Sequence[str], *, meaning: str, **attributes: Any):
        super().__init__(param_decls, **attributes)
        self.meaning = meaning


class Command(click.Command):
    """A command whose usage names its arguments as people write them: `MODEL`, `[TARGET]...`."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The pieces of the line of usage, behind the command's name."""
        return [self.options_metavar or "", *map(_usage, self._arguments())]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes what arguments and options mean."""
        if arguments := self._arguments():
            with formatter.section("Arguments"):
                formatter.write_dl([(each.human_readable_name, each.meaning) for each in arguments])
        super().format_options(ctx, formatter)

    def _arguments(self) -> list[Argument]:
        return [param for param in self.params if isinstance(param, Argument)]


class Group(click.Group):
    """Commands, each imported when it is called or shown; Ctrl-C ends them with an exit code of its own.

    Attributes:
        places: Where each command is, by its name, in the order in which they are shown: `module:variable`.
    """

    def __init__(self, *arguments: Any, places: Mapping[str, str], **attributes: Any):
        super().__init__(*arguments, **attributes)
        self.places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return [*self.places]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The one of a name."""
        if cmd_name not in self.places:
            return None
        module, _, variable = self.places[cmd_name].partition(":")
        found: click.Command = getattr(importlib.import_module(module), variable)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the one that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def command(*examples: str, name: str | None = None) -> Callable[[Callable[..., None]], Command]:
    """Makes a command of a function, with examples behind its help, under the function's name or another."""
    # Lines behind this sign are not made into a paragraph.
    epilog = "\n".join(["Examples:", "", "\b", *(f"$ {example}" for example in examples)])
    return click.command(name, cls=Command, epilog=epilog, context_settings=SETTINGS)


def argument(name: str, *, metavar: str, meaning: str, **attributes: Any) -> Callable[[Function], Function]:
    """Adds an argument to a command."""
    return click.argument(name, cls=Argument, metavar=metavar, meaning=meaning, **attributes)


def _usage(argument: Argument) -> str:
    name = argument.human_readable_name
    return (name if argument.required else f"[{name}]") + ("..." if argument.nargs == -1 else "")
