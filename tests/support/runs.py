"""Finished runs like the quick start's, made in seconds: its conversations, the tests' own teacher, a shard without
rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from stillhouse.pipeline.run.progress import Progress
from stillhouse.pipeline.run.timeline import Timeline
from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Answer
from tests.support.data import CONVERSATIONS, make_raw_config
from tests.support.fake_teacher import FakeTeacher
from tests.support.inline_pool import run_inline

ROWS_PER_SHARD = 5


class ProbedTeacher(FakeTeacher):
    """A `FakeTeacher` whose every other answer has a probe of its first token."""

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        answer = await super().answer(prompt_ids, request_id, seed, max_tokens)
        if len(answer.token_ids) % 2:
            return answer
        rest = (1 - np.exp(answer.target_logprobs[0].astype(np.float64)).sum()) / (self.vocab_size - self._top_k)
        logprobs_V = np.full(self.vocab_size, np.log(rest), dtype=np.float32)
        logprobs_V[answer.target_ids[0]] = answer.target_logprobs[0]
        return Answer(**{**answer.__dict__, "probe": (0, logprobs_V)})


def make_run(folder: Path, targets: dict[str, Any], num_shards: int = 5, **sections: Any) -> Path:
    """A finished run in `folder`, of `num_shards` published files, the last of them without rows: the source's own
    moderation flagged them all."""
    raw = make_raw_config(folder)
    rows = pq.read_table(CONVERSATIONS).slice(0, num_shards * ROWS_PER_SHARD).to_pylist()
    rows[0]["conversation"][0]["content"] += ' {\u2028<b>\n" 写一首关于春天的诗 \U0001f33e'
    for row in rows[-ROWS_PER_SHARD:]:
        for verdict in row["openai_moderation"]:
            verdict["flagged"] = True
    source = folder / "source.jsonl"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw |= {
        "run_dir": str(folder),
        "source": {"path": str(source), "name": "sharegpt"},
        "targets": targets,
        "ingest": {**raw["ingest"], "rows_per_shard": ROWS_PER_SHARD, "turns": "all"},
        "teacher": {**raw["teacher"], "backend": f"{__name__}:{ProbedTeacher.__name__}"},
        **sections,
    }
    config, progress = Config.model_validate(raw), Progress()
    timeline = Timeline(config.run_dir, progress)
    try:
        written, trouble = run_inline(config, progress, timeline)
    finally:
        progress.close()
        timeline.close()
    counts = [file["rows"] for file in written["files"]]
    assert [rows == 0 for rows in counts] == [False] * (num_shards - 1) + [True], trouble
    return folder
