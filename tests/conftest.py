"""What every test runs under: eight simulated devices, a cache of its own, and a hub on loopback."""

import os
import tempfile

from support import hub

pytest_plugins = ["support.skips"]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices share few cores here, and XLA ends a process in which some wait for the others for too long.
_FLAGS = {
    "xla_force_host_platform_device_count": 8,
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": 300,
    "xla_cpu_collective_call_terminate_timeout_seconds": 900,
}
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_GIVEN, *(f"--{name}={n}" for name, n in _FLAGS.items() if name not in _GIVEN)])
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ["LAZYLOAD_CACHE"] = tempfile.mkdtemp(prefix="lazyload-tests-")
# Read when `huggingface_hub` is imported, once.
os.environ["HF_ENDPOINT"] = hub.running().endpoint
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="lazyload-tests-hub-")
os.environ.pop("HF_TOKEN", None)
