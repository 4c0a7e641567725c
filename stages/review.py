"""Marks answers that are empty, repeat themselves, are unsafe, hold an item of an evaluation set, say that they are
another model's, refuse, hedge, are cut off, or repeat a long answer to another prompt.

Does not judge quality or truth. Equal answers can be in any two shards, so there are three steps: `Sketch` reads one
shard, `assign` compares the sketches of all shards at once, `Review` marks one shard.

Shape legend: R rows of a table, M messages, A assistant turns, D rows of all sketches, H of them with a hash.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.schemas.config import ClassifierConfig, PersonalConfig, ReviewConfig
from stillhouse.schemas.tables import DROP_REASON, EVIDENCE
from stillhouse.stages.filters import (
    Clock,
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
from stillhouse.stages.personal import PERSONAL, Finder, counts_column
from stillhouse.stages.text.loops import longest_loops
from stillhouse.stages.text.reading import reading
from stillhouse.stages.text.shingles import has_words

SKETCH = pa.schema([pa.field("sample_id", pa.string()), pa.field("answer_hash", pa.binary(16))])
"""`answer_hash` is null where the answer is no duplicate whatever others say: it is short, or some turn is empty."""

LOOP_TOKENS = "loop_tokens"
"""The column that says how long a stretch of an answer repeats itself."""

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


def assign(sketches: Iterable[pa.Table], config: ReviewConfig) -> Iterator[pa.Table]:
    """Sketches of all shards in, one `ASSIGNMENT` per shard out, row for row, in the same order.

    Of equal answers, the first `max_duplicates` are kept and the others are `duplicate_answer`. They are ordered by the
    blake2b of their sample_id, so that neither the order of rows nor of shards matters, and no part of the source is
    favoured. Memory: about 100 bytes per row and its id.
    """
    ids, hashes = [], []
    for sketch in sketches:
        ids.append(sketch["sample_id"].combine_chunks())
        hashes.append(_halves(sketch["answer_hash"]))
    if not ids:
        return iter([])
    has_hash_D, halves_D2 = (np.concatenate(parts) for parts in zip(*hashes, strict=True))
    del hashes
    is_surplus_D = np.zeros(len(has_hash_D), np.int8)
    is_surplus_D[_surplus(ids, np.flatnonzero(has_hash_D), halves_D2, config.max_duplicates)] = 1
    reasons = pa.array([None, "duplicate_answer"], pa.string())
    ends = np.cumsum([len(part) for part in ids], dtype=np.int64)
    return (
        pa.table([part, reasons.take(pa.array(is_surplus_D[end - len(part) : end]))], schema=ASSIGNMENT)
        for end, part in zip(ends, ids, strict=True)
    )


class Review:
    """Adds `loop_tokens`, `response_scores` (absent when no filter is configured), `response_personal` (absent when
    personal information is not looked for) and `drop_reason`, and `evidence` where evaluation sets are looked for.

    Each assistant turn is judged on its own, and the worst one counts; `clock` knows what each filter took. A row gets
    the first reason that applies:
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
        self.clock = Clock()
        self._classifier = Combined([unsafe, contamination] if contamination else [unsafe], self.clock)
        self._thresholds = (
            unsafe.thresholds
            if config.thresholds is None
            else check_thresholds(config.thresholds, unsafe.labels, "review")
        )
        self._tags = Tags(config, self.clock)

    def __call__(self, table: pa.Table, assignment: pa.Table) -> pa.Table:
        if not assignment["sample_id"].equals(table["sample_id"]):
            raise ValueError(
                f"review: the duplicate assignment of {assignment.num_rows} rows is not for this shard of "
                f"{table.num_rows} rows; sketch and assign again"
            )
        labels, num_rows = self._classifier.labels, table.num_rows
        texts, row_A = assistant_turns(table)
        with self.clock.of(LOOP_TOKENS):
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
            with self.clock.of(PERSONAL):
                counts = _personal(self._personal, texts, row_A, table["language"].to_pylist())
            for row, found in enumerate(counts):
                reasons[row] = self._personal.answer_reason(found) or reasons[row]
        reasons[unsafe_rows(scores_RL, labels, self._thresholds)] = "unsafe_answer"
        reasons[loop_tokens_R >= self._config.loop_tokens] = "degenerate_answer"
        reasons[_empty(texts, row_A, num_rows)] = "empty_answer"

        table = table.append_column(LOOP_TOKENS, pa.array(loop_tokens_R))
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


def _surplus(
    ids: list[pa.Array], row_H: NDArray[np.int64], halves_D2: NDArray[np.uint64], max_duplicates: int
) -> NDArray[np.int64]:
    """Rows of the answers beyond the first `max_duplicates` of each hash. `ids` are those of all rows, `row_H` the rows
    that have a hash."""
    high_H, low_H = halves_D2[row_H].T
    order_H = np.lexsort((low_H, high_H))
    row_H, high_H, low_H = row_H[order_H], high_H[order_H], low_H[order_H]
    is_first_H = np.ones(len(row_H), bool)
    is_first_H[1:] = (high_H[1:] != high_H[:-1]) | (low_H[1:] != low_H[:-1])
    group_H = np.cumsum(is_first_H) - 1
    # Only groups that are too large are put in order: the others are kept whole.
    crowded_H = np.bincount(group_H, minlength=1)[group_H] > max_duplicates
    row_H, group_H = row_H[crowded_H], group_H[crowded_H]
    by_row_H = np.argsort(row_H)
    row_H, group_H = row_H[by_row_H], group_H[by_row_H]
    digests, begin = bytearray(), 0
    for part in ids:
        low, high = np.searchsorted(row_H, [begin, begin + len(part)])
        for sample_id in part.take(pa.array(row_H[low:high] - begin)).to_pylist():
            digests += _blake2b(sample_id)
        begin += len(part)
    high_H, low_H = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    order_H = np.lexsort((low_H, high_H, group_H))
    row_H, group_H = row_H[order_H], group_H[order_H]
    place_H = np.arange(len(group_H)) - np.searchsorted(group_H, group_H)
    surplus_H: NDArray[np.int64] = row_H[place_H >= max_duplicates]
    return surplus_H


def _halves(column: pa.ChunkedArray) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
    """Of 16-byte hashes, which are there, and two integers for each [D, 2]: equal hashes have equal ones."""
    hashes = column.combine_chunks()
    values = np.frombuffer(hashes.buffers()[1], np.uint64)[2 * hashes.offset : 2 * (hashes.offset + len(hashes))]
    return hashes.is_valid().to_numpy(zero_copy_only=False), values.reshape(-1, 2)


def _blake2b(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
