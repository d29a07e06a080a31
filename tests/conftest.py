"""Eight virtual devices on the processor, and compiled programs shared by all tests."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

# No test is timed: an example may wait for a busy processor.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Read by JAX when it starts, in the processes that tests start as well. Programs run once or
# twice here: what the compiler would spend on making them fast is not earned back.
_SHARED = "TSSR_TESTS_SHARE"
if _SHARED not in os.environ:  # those that share the tests (pytest -n) find it set
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    )
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # 0.12 does not know this flag
        # Half the compile time. And one thread for it: there are as many workers as cores.
        os.environ["XLA_FLAGS"] += (
            " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        )
    _compiled = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ[_SHARED] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture(autouse=True, scope="session")
def fixture_no_pictures():
    """A picture takes half a second or more; tests that look at one ask for `drawn`."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second

    draw = Figure.savefig

    def leave_out(figure, file, **settings):
        if settings.get("format") == "svg":
            draw(figure, file, **settings)
        elif isinstance(file, str | os.PathLike):
            Path(file).touch()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", leave_out)
        yield draw


@pytest.fixture(name="drawn")
def fixture_drawn(fixture_no_pictures, monkeypatch):
    """Pictures are drawn."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fixture_no_pictures)


@pytest.fixture(autouse=True, scope="module")
def fixture_free_programs():
    """Each program takes memory mappings; a process that has all of its 65,530 is killed."""
    yield
    import jax  # noqa: PLC0415 - not before the flags above are set

    jax.clear_caches()
