"""Writes files whole or not at all: to a temporary path, which is then renamed."""

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a value as JSON."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def write_arrays(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as a compressed .npz file."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_whole(path, file.getvalue())


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Writes a file so that its path always holds the old content or the new, never a part."""
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)
