"""What comparing the sketches of a whole data set takes: seconds, memory and disk of `assign` of dedupe and of review.

python benchmarks/assign.py dedupe|review ROWS [--alike 0.25]

Sketches are made up as they are read, and making them is not counted. `--alike`: share of the rows that are in families
of 2 to tens of thousands, each 0.8 to 0.9 like the others.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.schemas.config import DedupeConfig, ReviewConfig
from stillhouse.stages import dedupe, review

ROWS_PER_SHARD = 10_000
NUM_FAMILIES = 2000


class Made:
    """Sketches, and the seconds that making them took."""

    def __init__(self, what: str, rows: int, alike: float) -> None:
        self._what, self._rows, self._alike, self.seconds = what, rows, alike, 0.0
        rng = np.random.default_rng(0)
        self._bases = rng.integers(0, 2**32, (NUM_FAMILIES, 128), dtype=np.uint32)
        # As in Zipf's law: the first family holds an eighth of all that are alike.
        self._weights = 1 / np.arange(1, NUM_FAMILIES + 1)
        self._weights /= self._weights.sum()

    def __iter__(self) -> Iterator[pa.Table]:
        for start in range(0, self._rows, ROWS_PER_SHARD):
            began = time.monotonic()
            table = self._table(start, min(ROWS_PER_SHARD, self._rows - start))
            self.seconds += time.monotonic() - began
            yield table

    def _table(self, start: int, num: int) -> pa.Table:
        rng = np.random.default_rng([1, start])
        ids = pa.array([f"{row * 2654435761 % 2**32:08x}{row:024x}" for row in range(start, start + num)])
        in_family = rng.random(num) < self._alike
        family = rng.choice(NUM_FAMILIES, num, p=self._weights)
        if self._what == "review":
            hashes = rng.integers(0, 256, (num, 16), dtype=np.uint8)
            hashes[in_family] = (family[in_family, None] % 251 + np.arange(16)).astype(np.uint8)
            return pa.table([ids, _binary(hashes)], schema=review.SKETCH)
        signature = rng.integers(0, 2**32, (num, 128), dtype=np.uint32)
        kept = in_family[:, None] & (rng.random((num, 128)) < 0.93)
        signature[kept] = self._bases[family][kept]
        columns: list[Any] = [ids, *(_binary(rng.integers(0, 256, (num, w), dtype=np.uint8)) for w in (16, 16, 8))]
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(signature.ravel()), 128))
        columns.append(pa.array(rng.random(num) < 0.1))
        return pa.table(columns, schema=dedupe.sketch_schema(128))


def _binary(values: "np.ndarray[Any, Any]") -> pa.Array:
    return pa.Array.from_buffers(pa.binary(values.shape[1]), len(values), [None, pa.py_buffer(values.tobytes())])


def memory_bytes() -> int:
    """What this process holds, without pages of files."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["dedupe", "review"])
    parser.add_argument("rows", type=int)
    parser.add_argument("--alike", type=float, default=0.25)
    arguments = parser.parse_args()
    sketches = Made(arguments.what, arguments.rows, arguments.alike)
    before, free = memory_bytes(), os.statvfs(tempfile.gettempdir())
    peak, least, ended = before, free.f_bavail, threading.Event()

    def watch() -> None:
        nonlocal peak, least
        while not ended.wait(0.05):
            peak, least = max(peak, memory_bytes()), min(least, os.statvfs(tempfile.gettempdir()).f_bavail)

    threading.Thread(target=watch, daemon=True).start()
    began = time.monotonic()
    if arguments.what == "dedupe":
        assignments = dedupe.assign(sketches, DedupeConfig())
    else:
        assignments = review.assign(sketches, ReviewConfig())
    dropped = sum(len(table) - table["drop_reason"].null_count for table in assignments)
    seconds = time.monotonic() - began - sketches.seconds
    ended.set()
    print(
        f"{arguments.what}: {arguments.rows:,} rows, {arguments.alike:.0%} in families: {seconds:.1f} s, "
        f"{(peak - before) / arguments.rows:.0f} bytes of memory and "
        f"{(free.f_bavail - least) * free.f_frsize / arguments.rows:.0f} of disk for each; {dropped:,} dropped"
    )


if __name__ == "__main__":
    main()
