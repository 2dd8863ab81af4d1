"""The kind of machine that something was measured on: no names."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from tests.benchmarks.measure import Failed, environment

_DEVICES = """
import json, jax
print(json.dumps([jax.device_count(), jax.devices()[0].platform, jax.devices()[0].device_kind]))
"""
_PACKAGES = ("lazyload", "jax", "flax", "orbax-checkpoint", "tensorstore", "numpy")


@dataclass(frozen=True)
class Machine:
    """What the figures depend on.

    Attributes:
        date: The day of the measurement.
        cores: The number of processors that this process may use.
        memory: Bytes of memory; 0 if that cannot be known.
        devices: The number of devices.
        platform: What JAX calls their platform.
        kind: What it calls them.
        versions: Of Python and of what a load goes through.
        peers: The versions of the other programs, or why they are not there.
    """

    date: str
    cores: int
    memory: int
    devices: int
    platform: str
    kind: str
    versions: Mapping[str, str]
    peers: Mapping[str, str]

    @property
    def is_accelerated(self) -> bool:
        """Whether the devices have a memory of their own."""
        return self.platform != "cpu"

    def fields(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        devices = (
            f"{self.devices} x {self.kind}" if self.is_accelerated else f"CPU with {self.devices} simulated devices"
        )
        memory = f"{self.memory / 2**30:.0f} GiB, " if self.memory else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        peers = "; ".join(self.peers.values())
        return f"{self.date}: {self.cores} cores, {memory}{devices}; {versions}; {peers or 'no peers'}"


def this_machine(peers: Mapping[str, str]) -> Machine:
    """Looks at the machine; JAX is asked in a process of its own, which does not keep an accelerator.

    Raises:
        Failed: JAX finds no devices.
    """
    command: Sequence[str] = [sys.executable, "-c", _DEVICES]
    found = subprocess.run(command, env=environment(sys.executable, {}), capture_output=True, text=True, check=False)
    if found.returncode:
        raise Failed(found.stderr[-2000:])
    count, name, kind = json.loads(found.stdout.splitlines()[-1])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    versions = {"Python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    return Machine(date.today().isoformat(), cores, memory, count, name, kind, versions, peers)


def _version(package: str) -> str:
    if package == "lazyload":
        import lazyload

        return lazyload.__version__
    return importlib.metadata.version(package)
