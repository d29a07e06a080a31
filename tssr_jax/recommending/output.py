"""Where lists go: one file, or a folder with a file for each block of histories.

    --output=lists.jsonl      one file, which appears only when it is complete
    --output=lists.parquet/   lists.parquet/part-000000.parquet, ..., and _SUCCESS at the end

Both are made of parts, which any worker writes. A folder keeps its whole parts: the same command
goes on from them.
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from etils import epath

from tssr_jax.config.files import write_json
from tssr_jax.errors import UserError, shown
from tssr_jax.recommending.lists_file import OUTPUTS, SCHEMA

_REQUEST, _SUCCESS = "request.json", "_SUCCESS"
# Histories of a part. Parts of one file only bound what is computed again after a failure.
_OF_A_FILE, _OF_A_FOLDER = 4_096, 65_536


class Output:
    """The lists of a request.

    Attributes:
      histories_of_a_part: number of histories.

    Args:
      value: --output; a folder's ends with "/".

    Raises:
      UserError: if a file's name ends otherwise than `OUTPUTS`, or its folder does not exist.
    """

    def __init__(self, value: str):
        self._value = value
        self._path = path = Path(value).expanduser().absolute()
        self._is_folder = value.endswith("/") or path.is_dir()
        self.histories_of_a_part = _OF_A_FOLDER if self._is_folder else _OF_A_FILE
        self._ending = path.suffix
        if self._is_folder and path.suffix not in OUTPUTS:
            self._ending = ".jsonl"
        if value.endswith("/") and path.is_file():
            raise UserError(f"--output is {value}, but {path} is a file. Name another folder.")
        if self._ending not in OUTPUTS:
            raise UserError(
                f"--output is {value}; its name must end in {', '.join(OUTPUTS)}, or in / for a "
                "folder of such files."
            )
        if not path.parent.is_dir():
            raise UserError(f"--output is {value}: there is no folder {path.parent}.")
        name = f".{path.name}.parts-{uuid.uuid4().hex[:12]}"
        self._parts = path if self._is_folder else path.with_name(name)

    def __str__(self) -> str:
        return self._value

    def require_apart(self, histories: Path) -> None:
        """Raises UserError if the output would replace the input, or be read as input later."""
        own, other = self._path.resolve(), histories.expanduser().resolve()
        if own == other or (other.is_dir() and other in own.parents):
            raise UserError(
                f"--output={self} is --input, or lies inside of it ({histories}). Name a place "
                "outside of it."
            )

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self._parts / f"part-{number:06}{self._ending}"

    def has(self, number: int) -> bool:
        """Whether this part is there."""
        return self.part(number).is_file()

    def require(self, number: int) -> None:
        """Raises UserError if this machine does not find a part that a worker has written."""
        if not self.has(number):
            raise UserError(
                f"--output={self}: a worker wrote {self.part(number)}, which this machine does not "
                "find. The machines of a cluster must share the folder of the output."
            )

    @contextlib.contextmanager
    def written(self, request: dict[str, Any]) -> Iterator[None]:
        """Makes the folder of parts; completes the output if there is no error.

        Args:
          request: what the lists depend on, to go on only with the same.

        Raises:
          UserError: if the folder holds something else.
        """
        if self._is_folder:
            self._claim(request)
            try:
                yield
            except BaseException:
                self._release_if_empty()
                raise
            self._remove_leftovers()
            (self._path / _SUCCESS).write_text("")
            return
        self._parts.mkdir()
        try:
            yield
            whole = self._parts / f"whole{self._ending}"
            _join(sorted(self._parts.glob("part-*")), whole)
            whole.replace(self._path)
        finally:
            shutil.rmtree(self._parts, ignore_errors=True)

    def _claim(self, request: dict[str, Any]) -> None:
        path = self._path / _REQUEST
        self._path.mkdir(exist_ok=True)
        if path.is_file():
            before = json.loads(path.read_text())
            other = [name for name in request if before.get(name) != request[name]]
            if other:
                told = f"{other[0]} was {shown(before.get(other[0]))}, not {request[other[0]]}"
                raise UserError(
                    f"--output={self}: the folder holds lists of another request ({told}). Name "
                    "another folder, or remove this one."
                )
        elif any(self._path.iterdir()):
            raise UserError(f"--output={self}: the folder holds other files. Name a new folder.")
        else:
            write_json(epath.Path(path), request)

    def _release_if_empty(self) -> None:
        """Removes the folder if no part was written, so that another request can use its name."""
        self._remove_leftovers()
        if [path.name for path in self._path.iterdir()] == [_REQUEST]:
            (self._path / _REQUEST).unlink()
            self._path.rmdir()

    def _remove_leftovers(self) -> None:
        """Removes what workers left that ended in the middle of a part."""
        for path in self._path.glob(".part-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _join(parts: list[Path], whole: Path) -> None:
    """Writes all parts into one file, in order."""
    if whole.suffix == ".parquet":
        frames = pl.scan_parquet(parts, glob=False) if parts else pl.LazyFrame(schema=SCHEMA)
        frames.sink_parquet(whole)
        return
    with whole.open("wb") as file:
        if not parts and whole.suffix == ".csv":
            file.write((",".join(SCHEMA) + "\r\n").encode())
        for number, part in enumerate(parts):
            with part.open("rb") as own:
                if number and whole.suffix == ".csv":
                    own.readline()  # the names of columns
                shutil.copyfileobj(own, file)
