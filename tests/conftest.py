"""What every test runs under: eight simulated devices, and a cache of its own."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ["LAZYLOAD_CACHE"] = tempfile.mkdtemp(prefix="lazyload-tests-")
