"""What every test runs under: eight simulated devices, a cache of its own, and a hub on loopback."""

import os
import tempfile

import hub

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ["LAZYLOAD_CACHE"] = tempfile.mkdtemp(prefix="lazyload-tests-")
# Read when `huggingface_hub` is imported, once.
os.environ["HF_ENDPOINT"] = hub.running().endpoint
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="lazyload-tests-hub-")
os.environ.pop("HF_TOKEN", None)
