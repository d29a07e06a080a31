"""Eight virtual devices on the processor, and compiled programs shared by all tests."""

import atexit
import os
import shutil
import tempfile

# Read by JAX when it starts, in the processes that tests start as well.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
_compiled = tempfile.mkdtemp(prefix="compiled-")
atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
