r"""Reads text files in blocks of whole lines, one way for all sources.

A file may be compressed by gzip, whatever its name. It is UTF-8, with or without a byte order mark,
or the encoding that its source names, or UTF-16 with a byte order mark. Lines end at "\n" or
"\r\n"; a file without "\n" has lines that end at "\r". Blocks are UTF-8, their lines end at "\n".
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tssr_jax.errors import UserError, shown

BLOCK_BYTES = 16 * 2**20
_GZIP = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


class Block(NamedTuple):
    r"""Some lines of a file.

    Attributes:
      line: number of the first one, from 1 on.
      content: the lines in UTF-8; each ends with "\n".
    """

    line: int
    content: bytes

    def lines(self) -> list[bytes]:
        """The lines, without their ends."""
        return self.content[:-1].split(b"\n")


def open_bytes(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """Opens a file; decompresses it if its contents are gzip, whatever its name."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    return gzip.open(path, "rb") if packed else path.open("rb")


def read_blocks(path: Path, encoding: str = "") -> Iterator[Block]:
    """Reads a text file.

    Args:
      path: the file.
      encoding: of a file that is not UTF-8, a codec of Python in which a line feed is one byte; ""
        if its source has none.

    Raises:
      UserError: if the file is empty, cut, or in another encoding; names the line.
    """
    reader, rest, line = _Reader(path, encoding), b"", 1
    try:
        for content in _unicode(path):
            rest += content
            if end := reader.end_of_lines(rest):
                text, rest = reader.utf8(rest[:end], line), rest[end:]
                yield Block(line, text)
                line += text.count(b"\n")
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path} is cut or damaged after line {line - 1} ({shown(error)}). Fetch it anew."
        ) from error
    if rest:
        yield Block(line, reader.utf8(rest + reader.newline, line))
    elif line == 1:
        raise UserError(f"{path} is empty.")


def _unicode(path: Path) -> Iterator[bytes]:
    """The bytes of a file without a byte order mark; those of UTF-16 as UTF-8."""
    decoder, first = None, True
    for content in _bytes(path):
        if first and content.startswith(_UTF32):
            raise UserError(f"{path} is UTF-32. Convert it: iconv -f utf32 -t utf8.")
        if first and content.startswith(_UTF16):
            print(f"{path} is UTF-16.", flush=True)
            decoder = codecs.getincrementaldecoder("utf-16")()
        if decoder:
            content = _from_utf16(path, decoder, content)  # noqa: PLW2901
        yield content.removeprefix(codecs.BOM_UTF8) if first else content
        first = False
    if decoder:
        _from_utf16(path, decoder, b"", final=True)


def _from_utf16(
    path: Path, decoder: codecs.IncrementalDecoder, content: bytes, *, final: bool = False
) -> bytes:
    try:
        return decoder.decode(content, final).encode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} begins as UTF-16 does, but is not: {shown(error)}.") from error


def _bytes(path: Path) -> Iterator[bytes]:
    """Parts of a file; of a cut one what there is, before an error."""
    with open_bytes(path) as file:
        whole = False
        while not whole:
            parts: list[bytes] = []
            try:
                while not whole and sum(map(len, parts)) < BLOCK_BYTES:
                    parts.append(file.read1(BLOCK_BYTES))
                    whole = not parts[-1]
            except (EOFError, OSError, zlib.error):
                yield b"".join(parts)
                raise
            if content := b"".join(parts):
                yield content


class _Reader:
    """How the lines of a file end, and how they are encoded.

    Attributes:
      newline: the end of a line.
    """

    def __init__(self, path: Path, encoding: str):
        self._path, self._encoding = path, encoding
        self._is_utf8, self._is_ascii = True, True
        self.newline, self._seen = b"\n", False

    def end_of_lines(self, content: bytes) -> int:
        """Where the last whole line ends; 0 if none does."""
        if not self._seen:
            # A line feed may follow the last byte; and some programs end the file by one.
            whole = content[:-1]
            self._seen = b"\n" in whole or (content.endswith(b"\n") and b"\r" not in whole[:-1])
            if not self._seen and b"\r" in whole:
                self.newline, self._seen = b"\r", True
                print(f"{self._path} has lines that end with a carriage return only.", flush=True)
        return content.rfind(self.newline) + 1

    def utf8(self, content: bytes, line: int) -> bytes:
        """Lines, the first of which has this number, in UTF-8; each ends with a line feed."""
        if self._is_utf8 and not content.isascii():
            self._check(content, line)
        if not self._is_utf8:
            content = content.decode(self._encoding).encode()
        if b"\r" in content:
            content = content.replace(b"\r\n", b"\n")
            if self.newline == b"\r":
                content = content.replace(b"\r", b"\n")
        return content

    def _check(self, content: bytes, line: int) -> None:
        try:
            content.decode()
            self._is_ascii = False
        except UnicodeDecodeError as error:
            before = content[: error.start]
            if self._encoding and self._is_ascii and before.isascii():
                self._is_utf8 = False
                print(f"{self._path} is not UTF-8: it is read as {self._encoding}.", flush=True)
                return
            number = line + before.count(self.newline)
            place = error.start - before.rfind(self.newline)
            raise UserError(
                f"{self._path}, line {number} is not UTF-8 (byte {content[error.start]:#04x} at "
                f"its place {place}). Convert the file, for example: iconv -f latin1 -t utf8."
            ) from error
