"""Conversations as they grow, and the table of completions that they become.

Shape legend: S tokens of an answer.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas import tables, targets
from stillhouse.schemas.config import TargetsConfig
from stillhouse.schemas.lists import lists
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.teacher import Answer, fidelity
from stillhouse.stages.teacher.kept import is_kept, stored_entropies


@dataclass
class Sample:
    """One conversation as it grows: parts to be joined once, at the end."""

    sample_id: str
    row: int  # of the prompts table
    input_ids: list[npt.NDArray[np.int32]] = field(default_factory=list)
    labels: list[npt.NDArray[np.int32]] = field(default_factory=list)
    top_k: list[targets.TopK] = field(default_factory=list)
    draws: list[targets.Draws] = field(default_factory=list)
    probe: dict[str, Any] | None = None
    token_logprobs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    entropies: list[npt.NDArray[np.float32]] = field(default_factory=list)
    asked_ids: list[npt.NDArray[np.int32]] = field(default_factory=list)
    asked_logprobs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    student_logprobs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    messages: list[dict[str, str | None]] = field(default_factory=list)
    rendering_differs: str | None = None
    drop_reason: str | None = None

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.input_ids))

    def add_prompt(self, text: str, ids: npt.NDArray[np.int32]) -> None:
        self.messages.append({"role": "user", "content": text})
        self.input_ids.append(ids)
        self.labels.append(np.full(len(ids), IGNORE_INDEX, dtype=np.int32))

    def add_unsupervised(self, message: dict[str, str | None], ids: npt.NDArray[np.int32], finish_reason: str) -> None:
        """An answer that is read and not learned."""
        self.messages.append(message)
        self.input_ids.append(ids)
        self.labels.append(np.full(len(ids), IGNORE_INDEX, dtype=np.int32))
        self.finish_reasons.append(finish_reason)

    def cut_end(self) -> None:
        """Take back the last token of the last answer, with its targets."""
        self.input_ids[-1], labels = self.input_ids[-1][:-1], self.labels[-1]
        self.labels[-1] = labels[:-1]
        if labels[-1] == IGNORE_INDEX:
            return
        number = sum(map(len, self.token_logprobs)) - 1
        self.token_logprobs[-1] = self.token_logprobs[-1][:-1]
        if self.entropies:
            self.entropies[-1] = self.entropies[-1][:-1]
        if self.top_k:
            self.top_k[-1] = _without_last(self.top_k[-1])
        if self.draws:
            self.draws[-1] = _without_last(self.draws[-1])
        if self.probe is not None and self.probe["token"] == number:
            self.probe = None

    def add_answer(
        self,
        message: dict[str, str | None],
        answer: Answer,
        supervised: npt.NDArray[np.bool_],
        settings: TargetsConfig,
    ) -> None:
        """`supervised` [S]: which of the answer's tokens get labels, and targets unless `targets.keep` leaves them
        out."""
        self.messages.append(message)
        self.input_ids.append(answer.token_ids)
        self.labels.append(np.where(supervised, answer.token_ids, IGNORE_INDEX).astype(np.int32))
        kept = slice(None) if supervised.all() else supervised  # a mask would copy
        asked = None
        if settings.has_entropy:
            assert answer.entropies is not None
            self.entropies.append(stored_entropies(answer.entropies[kept]))
            asked = None if settings.keep is None else is_kept(self.entropies[-1], settings.keep)
        # Encoded here, not at the shard's end: what the engine returned would double what a shard in flight holds.
        top_k = draws = None
        if settings.method != "sampled":
            top_k = targets.encode_top_k(
                answer.target_ids[kept], answer.target_logprobs[kept], settings.top_p, settings.precision, asked
            )
            self.top_k.append(top_k)
        if settings.method != "top_k":
            assert answer.draws is not None
            draws_SD = answer.draws[kept]
            draws = targets.encode_draws(draws_SD if asked is None else np.where(asked[:, None], draws_SD, -1))
            self.draws.append(draws)
        if answer.probe is not None and supervised[answer.probe[0]]:
            number = int(supervised[: answer.probe[0]].sum())
            found = fidelity.probe(answer.probe[1], top_k, draws, number, settings.precision)
            self.probe = found | {"token": number + sum(map(len, self.token_logprobs))}
        self.token_logprobs.append(answer.token_logprobs[kept])
        if answer.asked_logprobs is not None:
            self.asked_logprobs.append(answer.asked_logprobs[kept].ravel())
        assert answer.finish_reason is not None  # an answer that was given up is none
        self.finish_reasons.append(answer.finish_reason)


def _without_last(part: Any) -> Any:
    """A `TopK` or `Draws` of all tokens but the last."""
    num_values = len(part.ids) - int(part.lengths[-1])
    parts = {
        name: value if value is None else value[:-1] if name in ("tail", "lengths") else value[:num_values]
        for name, value in part._asdict().items()
    }
    return part._replace(**parts)


def completions(
    prompts: pa.Table, samples: list[Sample], settings: TargetsConfig, *, asked: bool = False, student: bool = False
) -> pa.Table:
    """The table of completions: one row per sample, with what its prompt carries through, what was `asked` about it,
    and what the `student` said of it that wrote it."""
    carried = prompts.take(pa.array([sample.row for sample in samples], type=pa.int64()))
    columns: dict[str, Any] = {
        "sample_id": pa.array([s.sample_id for s in samples], type=pa.string()),
        "messages": pa.array([s.messages for s in samples], type=tables.MESSAGES),
        "input_ids": _joined([s.input_ids for s in samples], pa.int32()),
        "labels": _joined([s.labels for s in samples], pa.int32()),
        "token_logprobs": _joined([s.token_logprobs for s in samples], pa.float32()),
        tables.ENTROPY.name: _joined([s.entropies for s in samples], pa.float32()),
        "asked_ids": _joined([s.asked_ids for s in samples], pa.int32()),
        "asked_logprobs": _joined([s.asked_logprobs for s in samples], pa.float32()),
        "student_logprobs": _joined([s.student_logprobs for s in samples], pa.float32()),
        "rendering_differs": pa.array([s.rendering_differs for s in samples], type=pa.string()),
        "finish_reasons": pa.array([s.finish_reasons for s in samples], type=pa.list_(pa.string())),
        "num_input_tokens": pa.array([s.num_tokens for s in samples], type=pa.int32()),
        "num_target_tokens": pa.array([sum(map(len, s.token_logprobs)) for s in samples], type=pa.int32()),
        "probe": pa.array([s.probe for s in samples], type=tables.PROBE),
        "num_draws": pa.array([settings.num_draws] * len(samples), type=pa.int32()),
        "target_precision": pa.array([settings.precision] * len(samples), type=pa.float32()),
        "drop_reason": pa.array([s.drop_reason for s in samples], type=pa.string()),
    }
    for field_ in tables.target_fields(settings):
        kind, _, name = field_.name.partition("_")
        if field_.name not in columns:
            rows = [[getattr(part, name) for part in (s.top_k if kind == "target" else s.draws)] for s in samples]
            columns[field_.name] = _joined(rows, field_.type.value_type)
    labels = carried.schema.field("prompt_scores").type.names if "prompt_scores" in carried.column_names else ()
    kinds = carried.schema.field("prompt_personal").type.names if "prompt_personal" in carried.column_names else ()
    names = carried.column_names
    more = {"asked": asked, "student": student, "several": tables.TEACHER.name in names}
    schema = tables.marked(tables.completions(labels, settings, kinds, names, **more))
    return pa.table(
        [columns[name] if name in columns else carried.column(name) for name in schema.names], schema=schema
    )


def _joined(rows: list[list[npt.NDArray[Any]]], value_type: pa.DataType) -> pa.ListArray:
    """list<value_type>: each row holds the arrays of one inner list, joined.

    Raises ValueError when a shard holds more values than Arrow's 32-bit offsets can count.
    """
    lengths = [sum(map(len, row)) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if offsets[-1] >= 2**31:
        raise ValueError(f"a shard of {offsets[-1]} target values exceeds 2^31; lower ingest.rows_per_shard")
    parts = [part for row in rows for part in row]
    values = np.concatenate(parts) if parts else np.empty(0)
    return lists(offsets, pa.array(values.astype(value_type.to_pandas_dtype(), copy=False), type=value_type))
