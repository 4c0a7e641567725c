"""Where a `RayPool` puts workers: run as a script in the environment of a driver, it prints a line of JSON for each.

python -m tests.support.placed CONFIG STAGE NUM_SHARDS
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass

from stillhouse.pipeline.run.pool import Job
from stillhouse.pipeline.run.ray_pool import RayPool
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.schemas.config import load


class Placed:
    """A worker that takes a second for a shard, and says where it is."""

    async def process(self, shard: str) -> ShardResult:
        import ray

        await asyncio.sleep(1)
        context = ray.get_runtime_context()
        facts = {"node": context.get_node_id(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid(),
                 "until": time.time()}  # fmt: skip
        return ShardResult("screen", shard, 0.0, message=json.dumps(facts))

    def activity(self, worker: str) -> Activity:
        return Activity(worker, "screen", "transform", False)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class PlacedJob(Job):
    def build(self) -> Placed:  # type: ignore[override]
        return Placed()


def main(file: str, stage: str, num_shards: int) -> None:
    job = PlacedJob(load(file, []), stage, "transform", num_shards, is_async=False)
    pool = RayPool()
    for result in pool.map_shards(job, [f"{n:05}.parquet" for n in range(num_shards)], lambda activity: None):
        print(result.message, flush=True)
    pool.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
