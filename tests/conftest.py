"""What every test runs under: eight simulated devices, a cache of its own, one of programs, and a hub on loopback."""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from support import checkpoints
from support.hub import Hub, running

import lazyload

pytest_plugins = ["support.skips", "support.parts", "support.buckets"]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Shells start what runs in the background deaf to interrupts, and what tests start would be deaf, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Eight devices share few cores here, and XLA ends a process in which some wait for the others for too long.
_FLAGS = {
    "xla_force_host_platform_device_count": 8,
    # Most of the time goes into compiling what runs for milliseconds.
    "xla_backend_optimization_level": 0,
    "xla_llvm_enable_alias_scope_metadata": "false",
    "xla_llvm_enable_noalias_metadata": "false",
    "xla_llvm_enable_invariant_load_metadata": "false",
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": 300,
    "xla_cpu_collective_call_terminate_timeout_seconds": 900,
}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # The emitters of later releases, which know no others, take these twice as long.
    _FLAGS["xla_cpu_use_fusion_emitters"] = "false"
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_GIVEN, *(f"--{name}={n}" for name, n in _FLAGS.items() if name not in _GIVEN)])
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
_FOLDERS = [tempfile.mkdtemp(prefix="lazyload-tests-") for _ in range(2)]
os.environ["LAZYLOAD_CACHE"] = _FOLDERS[0]
# What one test has compiled, no other test, worker of pytest-xdist or process that a test starts compiles again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _FOLDERS.append(tempfile.mkdtemp(prefix="lazyload-tests-programs-"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _FOLDERS[-1]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Read when `huggingface_hub` is imported, once.
os.environ["HF_ENDPOINT"] = running().endpoint
os.environ["HF_HOME"] = _FOLDERS[1]
os.environ.pop("HF_TOKEN", None)


# Thousands of tests are collected, and nothing of them is ever garbage: looking for it takes a fifth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """Has garbage collected from here on, and what there is now never looked at again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Removes the caches that this process made, at the end of all its tests."""
    for folder in _FOLDERS:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub without models; its cache is empty, and nobody is logged in."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub = running()
    yield hub
    hub.reset()


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen 3; tests only read it."""
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def warm(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds it, as `from_pretrained` wants it of itself; tests only read it."""
    root = tmp_path_factory.mktemp("warm")
    lazyload.convert(qwen, cache_dir=root)
    return root
