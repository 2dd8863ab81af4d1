"""The other programs, and the Python that each is installed in."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from tests.benchmarks.measure import environment

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "tunix": ("google-tunix", "jax"),
    "transformers": ("transformers", "torch"),
    "runai": ("runai-model-streamer", "torch"),
    "fastsafetensors": ("fastsafetensors", "torch"),
    "maxtext": ("maxtext", "jax"),
}
"""What has to be installed for each; the first one is the program itself."""

_VERSIONS = """
import importlib.metadata, sys
print(*(f"{name} {importlib.metadata.version(name)}" for name in sys.argv[1:]), sep=", ")
"""


@dataclass(frozen=True)
class Peer:
    """Another program, or that it is not there.

    Attributes:
        name: What it is called here.
        python: The Python that has it; empty for none.
        said: The versions of what was found, or why it cannot be run.
    """

    name: str
    python: str
    said: str


def variable(name: str) -> str:
    """The environment variable that names a peer's Python."""
    return f"LAZYLOAD_BENCH_{name.upper()}_PYTHON"


def find(name: str, given: Mapping[str, str]) -> Peer:
    """Looks for a peer in the Python that is given for it, by an option or the environment, or else in this one."""
    python = given.get(name) or os.environ.get(variable(name)) or sys.executable
    command = [python, "-P", "-c", _VERSIONS, *PACKAGES[name]]
    try:
        found = subprocess.run(command, env=environment(python, {}), capture_output=True, text=True, check=False)
    except OSError as error:
        return Peer(name, "", f"{python} cannot be run: {error.strerror}")
    if found.returncode == 0:
        return Peer(name, python, found.stdout.strip())
    where = "this Python" if python == sys.executable else "the Python that was given for it"
    return Peer(
        name, "", f"{' and '.join(PACKAGES[name])} are not installed in {where}; name another by {variable(name)}"
    )
