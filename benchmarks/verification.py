"""How fast `stillhouse verify` is: a run with real prompts and a teacher that costs nothing, verified as it is,
exported to every layout, and verified with and without the dataset. CPU seconds of one process, after a first pass that
loads the tokenizer.

    python benchmarks/verification.py FOLDER [--limit 300] [--tokens 256] [--top-k 64]
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.pipeline.dataset.export import default_output, export
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.run import driver
from stillhouse.pipeline.run.pool import LocalPool
from stillhouse.pipeline.run.progress import Progress
from stillhouse.schemas.config import Config
from stillhouse.stages.layouts import LAYOUTS
from stillhouse.stages.teacher import Answer

QUICKSTART = Path("data/quickstart")


class Quick:
    """Writes `max_tokens` tokens, each out of distributions of the shape of a real teacher's."""

    vocab_size = 49152
    broken = False
    last_token_at = 0.0

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        self._top_k = config.targets.top_k

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        random = np.random.default_rng(seed)
        S, K = max_tokens, self._top_k
        first_S = random.integers(100, self.vocab_size - 100, (S, 1))
        ids_SK = (100 + (first_S + np.arange(K) * 97) % (self.vocab_size - 200)).astype(np.int32)
        logprobs_SK = -np.sort(random.gamma(2.0, 2.0, (S, K)), axis=1)
        logprobs_SK += np.log(0.97) - np.log(np.exp(logprobs_SK).sum(axis=1, keepdims=True))
        p_SK = np.exp(logprobs_SK) / 0.97
        chosen_S = (random.random((S, 1)) > np.cumsum(p_SK, axis=1)).sum(axis=1).clip(max=K - 1)
        at = np.arange(S), chosen_S
        stored_SK = logprobs_SK.astype(np.float32)
        return Answer(ids_SK[at], ids_SK, stored_SK, stored_SK[at], "length")

    def shutdown(self) -> None:
        pass


def measured(name: str, url: str, **options: Any) -> None:
    verify(url, 1, **options)  # the tokenizer is loaded once
    started = time.process_time()
    result = verify(url, 1, **options)
    seconds = time.process_time() - started
    assert result["ok"], result["problems"]
    rows, tokens = result["rows"] / seconds, result["target_tokens"] / seconds
    size = sum(path.stat().st_size for path in Path(url).glob("data/*")) / 1e6 / seconds
    print(f"{name:40} {seconds:6.2f} s {rows:7,.0f} rows/s {tokens:9,.0f} tokens/s {size:6.1f} MB/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=64)
    arguments = parser.parse_args()
    run = arguments.folder / "run"
    config = Config.model_validate(
        {
            "run_dir": str(run),
            "source": {"path": str(QUICKSTART / "conversations.parquet"), "limit": arguments.limit},
            "ingest": {"rows_per_shard": 75, "max_prompt_tokens": 512, "max_dropped_fraction": 1.0},
            "teacher": {
                "model": str((QUICKSTART / "SmolLM2-135M-Instruct").resolve()),
                "max_model_len": 2048,
                "backend": "benchmarks.verification:Quick",
            },
            "sampling": {"max_tokens": arguments.tokens},
            "targets": {"top_k": arguments.top_k},
            "review": {"max_dropped_fraction": 1.0},
        }
    )
    progress = Progress()
    driver.run(config, progress, LocalPool())
    progress.close()
    measured("the dataset", str(run / "dataset"))
    for layout in LAYOUTS:
        output = default_output(str(run), layout)
        export(str(run), layout, output, num_workers=1)
        measured(f"{layout}, beside its dataset", output)
        alone = arguments.folder / "alone" / layout
        shutil.copytree(output, alone, dirs_exist_ok=True)
        measured(f"{layout}, alone", str(alone))


if __name__ == "__main__":
    main()
