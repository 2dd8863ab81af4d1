"""Functions of another library, replaced by ones that load through this library, and put back.

What is replaced is not the other library's to promise. So its version must be one that is known, and every function
must have the parameters that it has there; else nothing is replaced.
"""

import contextlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Self

from lazyload.errors import IntegrationError

Replacing = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes of a function the one that takes its place."""


@dataclass(frozen=True)
class Library:
    """Another library.

    Attributes:
        name: What it is called.
        distribution: What it is installed as.
        versions: Those whose inside is known.
    """

    name: str
    distribution: str
    versions: tuple[str, ...]

    def require_known(self) -> None:
        """Makes sure that a known version is installed.

        Raises:
            IntegrationError: It is not.
        """
        try:
            version = importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            raise IntegrationError(
                f"{self.name} is not installed: pip install {self.distribution}=={self.versions[-1]}"
            ) from None
        if version not in self.versions:
            raise IntegrationError(
                f"{self.name} {version} is installed, whose inside is not known; known are {self._known}. Install one "
                "of them, or load with lazyload.from_pretrained"
            )

    def unknown_inside(self, what: str) -> IntegrationError:
        """The error for an inside that looks different, and what does."""
        return IntegrationError(f"{self.name} looks different inside: {what}. Known are the versions {self._known}")

    @property
    def _known(self) -> str:
        return ", ".join(self.versions)


@dataclass(frozen=True)
class Function:
    """A function of a library.

    Attributes:
        module: The module that has it, in which it is looked up with every call.
        name: Its name there.
        parameters: The names of its parameters.
    """

    module: str
    name: str
    parameters: tuple[str, ...]

    def found(self, library: Library) -> tuple[ModuleType, Callable[..., Any]]:
        """Its module, and what is there.

        Raises:
            IntegrationError: It is not there, or has other parameters.
        """
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            raise library.unknown_inside(f"{self.module} cannot be imported: {error}") from error
        function = getattr(module, self.name, None)
        if not callable(function):
            raise library.unknown_inside(f"{self.module} has no function {self.name}")
        parameters = tuple(inspect.signature(function).parameters)
        if parameters != self.parameters:
            raise library.unknown_inside(
                f"{self.module}.{self.name} has parameters {', '.join(parameters)}, not {', '.join(self.parameters)}"
            )
        return module, function


class Installation(contextlib.AbstractContextManager["Installation"]):
    """Functions of a library while they are replaced; a context manager, whose end puts them back.

    Example:
        >>> with lazyload.integrations.maxtext.install():  # doctest: +SKIP
        ...     train_rl.main(arguments)
    """

    def __init__(self, library: Library, replaced: Mapping[Function, Replacing]):
        """Replaces them, all or none.

        Args:
            library: Whose functions they are.
            replaced: Which functions, and by what.

        Raises:
            IntegrationError: The library is not installed, of a version that is not known, or has another inside.
        """
        library.require_known()
        found = [(*function.found(library), function.name, replacing) for function, replacing in replaced.items()]
        self._library = library
        self._replaced: list[tuple[ModuleType, str, Any, Any]] = []
        for module, original, name, replacing in found:
            replacement = replacing(original)
            setattr(module, name, replacement)
            self._replaced.append((module, name, original, replacement))

    def undo(self) -> None:
        """Puts back what was there; a second time does nothing.

        Raises:
            IntegrationError: Something else has replaced one of the functions since; it must be undone first.
        """
        for module, name, _, replacement in self._replaced:
            if getattr(module, name, None) is not replacement:
                raise IntegrationError(
                    f"{self._library.name}: {module.__name__}.{name} has been replaced again; undo that first"
                )
        while self._replaced:
            module, name, original, _ = self._replaced.pop()
            setattr(module, name, original)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()
