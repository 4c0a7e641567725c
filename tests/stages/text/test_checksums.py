"""Checksums of units and runs against zlib, one by one."""

import random
import zlib

import numpy as np
import pytest

from stillhouse.stages.text.checksums import LONGEST, run_checksums, unit_checksums

RNG = random.Random(0)
UNITS = [RNG.randbytes(length) for length in (1, 1, 2, 7, 8, 9, 15, 16, 17, 40, 63, LONGEST, 1, 5, 3, 8, 4, LONGEST, 2)]
LENGTH_U = np.array([len(unit) for unit in UNITS])


def test_units_are_those_of_zlib() -> None:
    """Some with a byte between them, some without, up to the end of the data; longer ones too."""
    units = [*UNITS, bytes(LONGEST + 1), b"last"]
    data, ends = b"\n" * 8, []
    for i, unit in enumerate(units):
        data += b" " * (i % 2) + unit
        ends.append(len(data))
    length_U = np.array([len(unit) for unit in units])
    found = unit_checksums(np.frombuffer(data, np.uint8), np.array(ends), length_U)
    assert found.tolist() == [zlib.crc32(unit) for unit in units]


@pytest.mark.parametrize("prefix", [b"", b"a system prompt"])
@pytest.mark.parametrize("ngram", [1, 2, 3, 4, 5, 9, len(UNITS), len(UNITS) + 1])
def test_runs_are_those_of_zlib(ngram: int, prefix: bytes) -> None:
    crc_U = np.array([zlib.crc32(unit) for unit in UNITS], np.uint32)
    prefix_U = np.full(len(UNITS), zlib.crc32(prefix), np.uint32) if prefix else None
    expected = [zlib.crc32(prefix + b" ".join(UNITS[i : i + ngram])) for i in range(max(len(UNITS) - ngram + 1, 0))]
    assert run_checksums(crc_U, LENGTH_U, ngram, prefix_U).tolist() == expected


def test_nothing_gives_nothing() -> None:
    none = np.empty(0, np.int64)
    assert len(unit_checksums(np.zeros(9, np.uint8), none, none)) == 0
    assert len(run_checksums(none.astype(np.uint32), none, 5)) == 0
