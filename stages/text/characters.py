"""What is known of each character, as numbers that are looked up for all characters of many texts at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_NUM_CODES = 0x110000
_UNKNOWN = np.uint32(0xFFFFFFFF)


class CharacterTable:
    """A number for each character, from 0 to 2^32 - 2: what `number` says of it, asked when it is first met."""

    def __init__(self, number: Callable[[str], int]) -> None:
        self._number = number
        self._table = np.full(_NUM_CODES, _UNKNOWN)
        self._learn(range(256))
        self.of_ascii = bytes(self._table[:256].astype(np.uint8))
        """The low 8 bits of the numbers of characters below 256, for `bytes.translate`."""

    def take(self, code: NDArray[np.uint8] | NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The number of each code point."""
        numbers: NDArray[np.uint32] = self._table.take(code)
        unknown = code[numbers == _UNKNOWN]
        if len(unknown):
            self._learn(np.unique(unknown).tolist())
            numbers = self._table.take(code)
        return numbers

    def _learn(self, codes: Iterable[int]) -> None:
        for code in codes:
            self._table[code] = self._number(chr(code))


def together(numbers: list[int], texts: Sequence[str], at_once: int) -> Iterator[list[int]]:
    """Parts the numbers of texts into such as have up to `at_once` characters together, or are of one longer text."""
    end_of = np.cumsum([len(texts[i]) for i in numbers], dtype=np.int64)
    begin = 0
    while begin < len(numbers):
        most = at_once + (int(end_of[begin - 1]) if begin else 0)
        end = max(int(np.searchsorted(end_of, most, side="right")), begin + 1)
        yield numbers[begin:end]
        begin = end
