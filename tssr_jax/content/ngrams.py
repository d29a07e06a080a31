"""Text features without an encoder: hashed n-grams, to compare encoders with."""

import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

_WORD = re.compile(r"\w+")
_CHARACTERS = (3, 4, 5)


def ngram_features(texts: Sequence[str], width: int) -> np.ndarray:
    """Unit vectors of texts' words and the character n-grams in them, float32 [num_texts, width].

    Each n-gram adds 1 or -1 at one position; its hash gives sign and position (Weinberger et al.,
    ICML 2009). A text without words has zeros.
    """
    table = np.zeros((len(texts), width), np.float32)
    for row, text in zip(table, texts, strict=True):
        for ngram in _ngrams(text):
            number = zlib.crc32(ngram.encode())
            row[(number >> 1) % width] += 1.0 if number & 1 else -1.0
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(norms > 0, norms, 1.0)


def _ngrams(text: str) -> Iterator[str]:
    """Whole words and their character n-grams; "<" and ">" mark the ends of a word."""
    for word in _WORD.findall(text.lower()):
        marked = f"<{word}>"
        yield marked
        for size in _CHARACTERS:
            if size < len(marked):
                yield from (marked[i : i + size] for i in range(len(marked) - size + 1))
