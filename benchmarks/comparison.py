"""How the comparison of all sketches grows: the step of dedupe that sees the whole data set, alone.

The sketches are made: a fifth of them repeats another one, half of these to the letter, half in all but one slot.

    python benchmarks/comparison.py 1000000    # with PYTHONPATH=.
"""

import resource
import sys
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from stillhouse.schemas.config import DedupeConfig
from stillhouse.stages import dedupe


def scale(num_rows: int) -> None:
    config, rng, per_shard = DedupeConfig(), np.random.default_rng(0), 10_000

    def sketches() -> Iterator[pa.Table]:
        for shard in range(num_rows // per_shard):
            signature_NP = rng.integers(0, 2**32, (per_shard, config.num_perm), np.uint32)
            copies = np.arange(1, per_shard, 5)
            signature_NP[copies] = signature_NP[copies - 1]
            signature_NP[copies, rng.integers(0, config.num_perm, len(copies))] = 7
            hash_N4 = rng.integers(0, 2**63, (per_shard, 5), np.uint64)
            hash_N4[copies[::2], :5] = hash_N4[copies[::2] - 1, :5]
            digests = [hash_N4[:, :2], hash_N4[:, 2:4], hash_N4[:, 4:]]
            yield pa.table(
                [
                    pa.array([f"{shard:08d}{i:08d}" for i in range(per_shard)]),
                    *(
                        pa.Array.from_buffers(
                            pa.binary(8 * part.shape[1]), per_shard, [None, pa.py_buffer(np.ascontiguousarray(part))]
                        )
                        for part in digests
                    ),
                    pa.FixedSizeListArray.from_arrays(pa.array(signature_NP.ravel()), config.num_perm),
                    pa.array(np.zeros(per_shard, bool)),
                ],
                schema=dedupe.sketch_schema(config.num_perm),
            )

    started = time.process_time()
    for _ in sketches():
        pass
    making, started, wall = time.process_time() - started, time.process_time(), time.monotonic()
    rng = np.random.default_rng(0)
    assignments = dedupe.assign(sketches(), config)
    cpu, seconds = time.process_time() - started - making, time.monotonic() - wall - making
    dropped = sum(len(part) - part["drop_reason"].null_count for part in assignments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{num_rows:,} sketches compared: {seconds:.1f} s, {cpu:.1f} CPU s, {peak:.2f} GiB, {dropped:,} dropped")


if __name__ == "__main__":
    scale(int(sys.argv[1]))
