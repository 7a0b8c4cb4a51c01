"""Random numbers by counter, Philox4x32-10, as the kernels of programs draw them.

(Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RANDOM = "pock.random"
"""Name of the input that a program draws numbers by."""
ROUNDS = 10
FACTORS, KEY_STEPS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def words_of(seed: int, step: int, parts: int = 1) -> np.ndarray:
    """Make the input of a step: uint32 [parts, 5], the words of the seed and of the step's number, lower ones first,
    and the number of the part of the batch."""
    words = [seed & WORD, seed >> 32 & WORD, step & WORD, step >> 32 & WORD]
    return np.array([[*words, part] for part in range(parts)], "uint32")


def words_drawn(words: np.ndarray, stream: int, calls: int) -> np.ndarray:
    """Compute the random words of some calls of the generator, for the whole batch: uint32 [calls, 4].

    ``words``: from :func:`words_of`; ``stream``: the number of the operator that draws.
    """
    key = [int(word) for word in words[0, :2]]
    counter = [np.full(calls, value, "uint64") for value in (0, stream, *map(int, words[0, 2:4]))]
    counter[0] += np.arange(calls, dtype="uint64")
    for number in range(ROUNDS):
        first, second = (counter[at] * np.uint64(factor) for at, factor in zip((0, 2), FACTORS, strict=True))
        keys = [np.uint64((part + step * number) & WORD) for part, step in zip(key, KEY_STEPS, strict=True)]
        low, high = np.uint64(WORD), np.uint64(32)
        counter = [
            (second >> high) ^ counter[1] ^ keys[0], second & low, (first >> high) ^ counter[3] ^ keys[1], first & low,
        ]  # fmt: skip
    return np.stack(counter, axis=1).astype("uint32")


def kept(words: np.ndarray, stream: int, shape: Sequence[int], rate: float) -> np.ndarray:
    """Draw bool of a shape, each False with probability ``rate`` in [0, 1); operands as of :func:`words_drawn`."""
    return _one_each(words, stream, shape) >= min(round(rate * 2**32), WORD)


def uniform(words: np.ndarray, stream: int, shape: Sequence[int]) -> np.ndarray:
    """Draw float32 of a shape, uniform in [0, 1); operands as of :func:`words_drawn`."""
    return _fraction(_one_each(words, stream, shape), 0)


def normal(words: np.ndarray, stream: int, shape: Sequence[int]) -> np.ndarray:
    """Draw float32 of a shape, of mean 0 and deviation 1 (Box and Muller); operands as of :func:`words_drawn`."""
    count = math.prod(shape)
    pairs = words_drawn(words, stream, -(-count // 2)).reshape(-1, 2)[:count]
    radius = np.sqrt(np.float32(-2) * np.log(_fraction(pairs[:, 0], 1)))
    return (radius * np.cos(np.float32(2 * math.pi) * _fraction(pairs[:, 1], 0))).reshape(shape)


def _one_each(words: np.ndarray, stream: int, shape: Sequence[int]) -> np.ndarray:
    count = math.prod(shape)
    return words_drawn(words, stream, -(-count // 4)).reshape(-1)[:count].reshape(shape)


def _fraction(word: np.ndarray, added: int) -> np.ndarray:
    return ((word >> np.uint32(8)) + np.uint32(added)).astype("float32") * np.float32(2.0**-24)
