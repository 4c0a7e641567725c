"""Marks answers that are empty, repeat themselves, are unsafe, hold an item of an evaluation set, say that they are
another model's, refuse, hedge, are cut off, or repeat a long answer to another prompt.

Does not judge quality or truth. Equal answers can be in any two shards, so there are three steps: `Sketch` reads one
shard, `assign` compares the sketches of all shards at once, `Review` marks one shard.

Shape legend: R rows of a table, M messages, A assistant turns, D rows of all sketches.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.schemas.config import ClassifierConfig, PersonalConfig, ReviewConfig
from stillhouse.schemas.tables import DROP_REASON, EVIDENCE
from stillhouse.stages.filters import (
    Combined,
    check_thresholds,
    combined,
    read_by,
    score_rows,
    scores_column,
    unsafe_rows,
)
from stillhouse.stages.filters.contamination import Contamination
from stillhouse.stages.filters.quota import beyond
from stillhouse.stages.filters.tags import Tags
from stillhouse.stages.personal import Finder, counts_column
from stillhouse.stages.text.loops import longest_loops
from stillhouse.stages.text.reading import reading
from stillhouse.stages.text.shingles import has_words

SKETCH = pa.schema([pa.field("sample_id", pa.string()), pa.field("answer_hash", pa.binary(16))])
"""`answer_hash` is null where the answer is no duplicate whatever others say: it is short, or some turn is empty."""

ASSIGNMENT = pa.schema([pa.field("sample_id", pa.string()), DROP_REASON])
"""What `assign` decides for each row of a shard. By the ids, `Review` refuses the assignment of another shard."""


class Sketch:
    """Reduces each long answer to a hash: blake2b-128 of what its assistant turns say. Completions in, `SKETCH` out,
    row for row. All turns of a conversation together are long or short."""

    def __init__(self, config: ReviewConfig) -> None:
        self._num_words = config.duplicate_words

    def __call__(self, table: pa.Table) -> pa.Table:
        texts, row_A = assistant_turns(table)
        turns_of: list[list[str]] = [[] for _ in range(table.num_rows)]
        for text, row in zip(texts, row_A.tolist(), strict=True):
            turns_of[row].append(reading(text))
        hashes = [self._hash(turns) for turns in turns_of]
        return pa.table([table["sample_id"], pa.array(hashes, pa.binary(16))], schema=SKETCH)

    def _hash(self, turns: list[str]) -> bytes | None:
        if not turns or not all(turns) or not has_words(" ".join(turns), self._num_words):
            return None
        # A reading holds no empty line, so ["a b"] and ["a", "b"] stay different answers.
        return _blake2b("\n\n".join(turns))


def assign(sketches: Iterable[pa.Table], config: ReviewConfig) -> list[pa.Table]:
    """Sketches of all shards in, one `ASSIGNMENT` per shard out, row for row, in the same order.

    Of equal answers, the first `max_duplicates` are kept and the others are `duplicate_answer`. They are ordered by the
    blake2b of their sample_id, so that neither the order of rows nor of shards matters, and no part of the source is
    favoured.
    """
    shards = list(sketches)
    sketch = pa.concat_tables([SKETCH.empty_table(), *shards]).combine_chunks()
    reasons = np.full(sketch.num_rows, None, dtype=object)
    reasons[_surplus(sketch, config.max_duplicates)] = "duplicate_answer"
    assignment = pa.table([sketch["sample_id"], pa.array(reasons, pa.string())], schema=ASSIGNMENT)
    ends = np.cumsum([shard.num_rows for shard in shards], dtype=np.int64)
    return [assignment.slice(end - shard.num_rows, shard.num_rows) for shard, end in zip(shards, ends, strict=True)]


class Review:
    """Adds `loop_tokens`, `response_scores` (absent when no filter is configured), `response_personal` (absent when
    personal information is not looked for) and `drop_reason`, and `evidence` where evaluation sets are looked for.

    Each assistant turn is judged on its own, and the worst one counts. A row gets the first reason that applies:
    `empty_answer`, `degenerate_answer`, `unsafe_answer`, `placeholder_names`, `personal_information`, `contaminated`,
    `mistaken_identity`, `refusal`, `hedge`,
    `truncated_answer`, `duplicate_answer`. Raises `ConfigError` when a classifier or a threshold cannot be used as
    configured, `ValueError` when the assignment is another shard's.
    """

    def __init__(
        self,
        config: ReviewConfig,
        classifiers: Sequence[ClassifierConfig],
        contamination: Contamination | None = None,
        personal: PersonalConfig | None = None,
    ) -> None:
        self._config = config
        self._personal = None if personal is None else Finder(personal)
        unsafe = combined(read_by(classifiers, "answers"))
        self._unsafe = unsafe
        self._contamination = contamination
        self._classifier = Combined([unsafe, contamination] if contamination else [unsafe])
        self._thresholds = (
            unsafe.thresholds
            if config.thresholds is None
            else check_thresholds(config.thresholds, unsafe.labels, "review")
        )
        self._tags = Tags(config)

    def __call__(self, table: pa.Table, assignment: pa.Table) -> pa.Table:
        if not assignment["sample_id"].equals(table["sample_id"]):
            raise ValueError(
                f"review: the duplicate assignment of {assignment.num_rows} rows is not for this shard of "
                f"{table.num_rows} rows; sketch and assign again"
            )
        labels, num_rows = self._classifier.labels, table.num_rows
        texts, row_A = assistant_turns(table)
        loop_tokens_R = longest_loops(table["labels"], self._config.loop_repeats)
        scores_RL = score_rows(self._classifier, texts, row_A, num_rows, _questions(table))
        is_tagged_RL = np.zeros((num_rows, 0), bool)
        if self._tags.labels:
            is_tagged_RL = self._tags.of_rows(texts, _assistant_texts(table)[1], row_A, _asked(table))
        labels = (*labels, *self._tags.labels)
        scores_RL = np.concatenate([scores_RL, is_tagged_RL.astype(np.float32)], axis=1)

        # From the weakest reason to the strongest: each overwrites the one before.
        reasons = np.array(assignment["drop_reason"].to_pylist(), dtype=object)
        if self._config.drop_truncated:
            reasons[_truncated(table)] = "truncated_answer"
        for reason in ("hedge", "refusal", "mistaken_identity"):
            if reason in self._tags.labels:
                is_kind_R = is_tagged_RL[:, self._tags.labels.index(reason)]
                reasons[beyond(is_kind_R, table["sample_id"], self._tags.keep[reason], reason)] = reason
        if self._contamination is not None:
            reasons[unsafe_rows(scores_RL, labels, self._contamination.thresholds)] = "contaminated"
        if self._personal is not None:
            counts = _personal(self._personal, texts, row_A, table["language"].to_pylist())
            for row, found in enumerate(counts):
                reasons[row] = self._personal.answer_reason(found) or reasons[row]
        reasons[unsafe_rows(scores_RL, labels, self._thresholds)] = "unsafe_answer"
        reasons[loop_tokens_R >= self._config.loop_tokens] = "degenerate_answer"
        reasons[_empty(texts, row_A, num_rows)] = "empty_answer"

        table = table.append_column("loop_tokens", pa.array(loop_tokens_R))
        if labels:
            table = table.append_column("response_scores", scores_column(scores_RL, labels))
        if self._personal is not None:
            table = table.append_column("response_personal", counts_column(counts, self._personal.kinds))
        if self._contamination is not None:
            table = table.append_column(EVIDENCE, self._contamination.found(texts, row_A, reasons))
        return table.append_column(DROP_REASON, pa.array(reasons, pa.string()))

    @property
    def broken(self) -> bool:
        """Whether a classifier has failed for good: only a new process helps."""
        return self._unsafe.broken

    def close(self) -> None:
        """End what the classifiers started."""
        self._unsafe.close()


def assistant_turns(table: pa.Table) -> tuple[list[str], NDArray[np.int64]]:
    """What all assistant turns say in order, thinking before content, and the row [A] that each belongs to."""
    thought, said, row_A = _assistant_texts(table)
    return ["\n\n".join(filter(None, parts)) for parts in zip(thought, said, strict=True)], row_A


def _assistant_texts(table: pa.Table) -> tuple[list[str | None], list[str | None], NDArray[np.int64]]:
    """Thinking and content of all assistant turns in order, and the row [A] that each belongs to."""
    messages = table["messages"].combine_chunks()
    flat = pc.list_flatten(messages)
    is_assistant_M = pc.fill_null(pc.equal(pc.struct_field(flat, "role"), "assistant"), False)
    thought, said = (
        pc.filter(pc.struct_field(flat, name), is_assistant_M).to_pylist() for name in ("reasoning_content", "content")
    )
    return thought, said, pc.filter(pc.list_parent_indices(messages), is_assistant_M).to_numpy()


def _questions(table: pa.Table) -> list[str]:
    """The user's turn before each assistant turn [A]; empty where there is none."""
    found = []
    for messages in table["messages"].to_pylist():
        last = ""
        for message in messages:
            if message["role"] == "assistant":
                found.append(last)
            elif message["role"] == "user":
                last = message["content"] or ""
    return found


def _asked(table: pa.Table) -> list[str]:
    """[R]: what all turns say that are no answers."""
    return [
        "\n".join(message["content"] or "" for message in messages if message["role"] != "assistant")
        for messages in table["messages"].to_pylist()
    ]


def _personal(
    finder: Finder, texts: Sequence[str], row_A: NDArray[np.int64], languages: Sequence[str | None]
) -> list[dict[str, int]]:
    """For each row how often each kind of personal information is in its answers."""
    texts_of: list[list[str]] = [[] for _ in languages]
    for text, row in zip(texts, row_A.tolist(), strict=True):
        texts_of[row].append(text)
    return [finder.count(turns, language) for turns, language in zip(texts_of, languages, strict=True)]


def _empty(texts: Sequence[str], row_A: NDArray[np.int64], num_rows: int) -> NDArray[np.bool_]:
    """[R]: whether some assistant turn is blank, or there is none at all."""
    is_empty_R: NDArray[np.bool_] = np.bincount(row_A, minlength=num_rows) == 0
    is_empty_R[row_A[np.array([not text.strip() for text in texts], bool)]] = True
    return is_empty_R


def _truncated(table: pa.Table) -> NDArray[np.bool_]:
    """[R]: whether some assistant turn ended because it reached its maximum length."""
    finish_reasons = table["finish_reasons"].combine_chunks()
    by_length = pc.fill_null(pc.equal(pc.list_flatten(finish_reasons), "length"), False)
    is_truncated_R = np.zeros(table.num_rows, bool)
    is_truncated_R[pc.filter(pc.list_parent_indices(finish_reasons), by_length).to_numpy()] = True
    return is_truncated_R


def _surplus(sketch: pa.Table, max_duplicates: int) -> NDArray[np.int64]:
    """Rows of the answers beyond the first `max_duplicates` of each hash. The table must have one chunk."""
    row_D = np.flatnonzero(pc.is_valid(sketch["answer_hash"]).to_numpy())
    high_D, low_D = _halves(sketch["answer_hash"].take(pa.array(row_D)))
    order_D = np.lexsort((low_D, high_D))
    row_D, high_D, low_D = row_D[order_D], high_D[order_D], low_D[order_D]
    is_first_D = np.ones(len(row_D), bool)
    is_first_D[1:] = (high_D[1:] != high_D[:-1]) | (low_D[1:] != low_D[:-1])
    group_D = np.cumsum(is_first_D) - 1
    # Only groups that are too large are put in order: the others are kept whole.
    crowded_D = np.bincount(group_D, minlength=1)[group_D] > max_duplicates
    row_D, group_D = row_D[crowded_D], group_D[crowded_D]
    sample_ids = sketch["sample_id"].take(pa.array(row_D)).to_pylist()
    high_D, low_D = _halves(pa.chunked_array([[_blake2b(sample_id) for sample_id in sample_ids]], pa.binary(16)))
    order_D = np.lexsort((low_D, high_D, group_D))
    row_D, group_D = row_D[order_D], group_D[order_D]
    place_D = np.arange(len(group_D)) - np.searchsorted(group_D, group_D)
    surplus_D: NDArray[np.int64] = row_D[place_D >= max_duplicates]
    return surplus_D


def _halves(hashes: pa.ChunkedArray) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """16-byte hashes, none of them null, as two big-endian integers each, which sort as the bytes do."""
    halves_D2 = np.frombuffer(b"".join(hashes.to_pylist()), ">u8").reshape(-1, 2).astype(np.uint64)
    return halves_D2[:, 0], halves_D2[:, 1]


def _blake2b(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
