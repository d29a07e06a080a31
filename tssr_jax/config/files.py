"""Writes files whole or not at all: to a temporary path, which is then renamed."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tssr_jax.errors import UserError, shown

_DIGEST = "sha256"


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a value as JSON."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def write_signed(path: epath.Path, fields: Mapping[str, Any]) -> None:
    """Writes fields as JSON, and a digest of them, by which `read_signed` finds changes."""
    write_json(path, {**fields, _DIGEST: _digest(fields)})


def read_signed(path: epath.Path) -> dict[str, Any]:
    """The fields of a file that `write_signed` wrote, or of an older one without a digest.

    Raises:
      UserError: if the file is no JSON object, or has changed since.
    """
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Copy the whole folder of the run.") from error
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise UserError(f"{path} is damaged ({shown(error)}). Copy it anew.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} is damaged (it holds no object). Copy it anew.")
    digest = fields.pop(_DIGEST, None)
    if digest not in (None, _digest(fields)):
        raise UserError(
            f"{path} has changed since it was written: its digest is another. Restore it. To keep "
            f"your edit, delete its line {_DIGEST!r}; the run then counts as a different run."
        )
    return fields


def _digest(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_arrays(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as a compressed .npz file."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_whole(path, file.getvalue())


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file.

    Raises:
      OSError: if it can't be written.
    """
    try:
        save_file(dict(arrays), path)
    except SafetensorError as error:
        raise OSError(f"{path} can't be written: {error}") from error


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Writes a file so that its path always holds the old content or the new, never a part."""
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)
