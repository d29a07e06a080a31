"""A folder in the place of a bucket."""

from pathlib import Path

import pytest
from etils import epath


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets paths below gs://b lie in a folder."""
    as_epath = epath.Path
    monkeypatch.setattr(
        epath, "Path", lambda path: as_epath(str(path).replace("gs://b", str(folder)))
    )
