"""What was found in a file, and in all of them: a bad row is told once, and rows that are bad alike in one sentence."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

MAX_PROBLEMS = 20
"""Named at most; all are counted."""

_NUMBERS = re.compile(r"\d[\d,.e+-]*|\bnan\b|-?\binf\b")


class RowError(ValueError):
    """A row that is not as it should be; the message says what, with numbers, and quotes no text."""


def digests(rows: list[bytes]) -> npt.NDArray[np.uint64]:
    """A short digest of each."""
    return np.array([int.from_bytes(hashlib.blake2b(row, digest_size=8).digest()) for row in rows], np.uint64)


@dataclass
class Findings:
    """What was seen in the file `name`; without a name, in all files."""

    name: str = ""
    rows: int = 0
    target_tokens: int = 0
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    is_left_out: bool = False
    """Of one file: whether it is missing or another one, so that counts over all files mean nothing."""
    shifted: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    """Sums over tokens of the probability that a row gives to the token before the right one, to the right one, and to
    the one after."""
    num_shifted: int = 0
    surplus: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    """Sums of `alignment.own_token`."""
    rarity: list[npt.NDArray[np.float64]] = field(default_factory=list)
    """Of one file: `alignment.rarity` of each row."""
    row_digests: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """[rows] of sample ids, or of an export's whole rows."""
    sample_ids: list[str] = field(default_factory=list)
    """Names of the rows where they have any; left behind in the file's process."""
    teachers: Counter[str] = field(default_factory=Counter)
    """Rows of each of several teachers."""
    schema: str = ""
    not_checked: set[str] = field(default_factory=set)
    """Sentences: which checks could not be made, and why."""
    _alike: dict[str, tuple[int, str, int]] = field(default_factory=dict)

    def problem(self, text: str) -> None:
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def file_problem(self, text: str) -> None:
        """A problem of this file as a whole."""
        self.problem(f"{self.name}: {text}")

    def leave_out(self, text: str) -> None:
        """A problem of this file after which nothing else is to be said about it."""
        self.is_left_out = True
        self.file_problem(text)

    def row_problem(self, row: int, text: str) -> None:
        """A problem of a row (0-based). Told by `close`, once for all rows of which the same is wrong."""
        kind = _NUMBERS.sub("", text)
        first, told, count = self._alike.get(kind, (row, text, 0))
        self._alike[kind] = first, told, count + 1

    @property
    def has_bad_rows(self) -> bool:
        """Whether a row was told, so that sums over rows would tell the same again."""
        return bool(self._alike)

    def close(self) -> None:
        """Makes problems of what was found in rows."""
        for row, text, count in self._alike.values():
            sample = f" (sample {self.sample_ids[row]})" if row < len(self.sample_ids) else ""
            others = f"; the same is wrong in {count - 1:,} more of its {self.rows:,} rows" if count > 1 else ""
            self.problem(f"{self.name} row {row}{sample}: {text}{others}")
        self._alike, self.sample_ids, self.rarity = {}, [], []

    def add(self, other: "Findings") -> None:
        self.rows += other.rows
        self.target_tokens += other.target_tokens
        self.teachers += other.teachers
        self.num_problems += other.num_problems
        self.problems = (self.problems + other.problems)[:MAX_PROBLEMS]
        self.is_left_out |= other.is_left_out
        self.shifted = self.shifted + other.shifted
        self.num_shifted += other.num_shifted
        self.surplus = self.surplus + other.surplus
        self.not_checked |= other.not_checked
