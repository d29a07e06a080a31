"""Keeps compiled programs on disk, so that the next run starts without compiling them again."""

import hashlib
import platform
from pathlib import Path

import jax

from data_pipeline.cache import local_folder

_FOLDER = "compiled"
_CPU_INFO = Path("/proc/cpuinfo")


def keep_compiled_programs(cache_dir: str) -> None:
    """Keeps them below `config.data.cache_dir`, unless JAX was told another folder.

    (JAX_COMPILATION_CACHE_DIR=FOLDER tells it; JAX_ENABLE_COMPILATION_CACHE=false switches this
    off.) What was compiled for a processor may not run on another one that reads the same disk:
    each kind has a folder of its own.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = local_folder(cache_dir) / _FOLDER / _kind_of_processor()
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _kind_of_processor() -> str:
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.is_file() else [platform.processor()]
    features = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    described = "\n".join([platform.machine(), *sorted(features)])
    return hashlib.sha256(described.encode()).hexdigest()[:12]
