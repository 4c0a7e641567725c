"""The data contract: Arrow schemas of everything that is written to disk.

Not configuration (that is `schemas.config`). A stage may add columns to these; it never loses, adds or reorders rows.

Shape legend: T tokens of a conversation, S supervised tokens (written by the teacher), K targets kept per token,
N targets of a conversation, D draws per token.
"""

from collections.abc import Sequence

import pyarrow as pa

from stillhouse.schemas.config import TargetsConfig


def scores_type(labels: Sequence[str]) -> pa.StructType:
    """The type of a scores column: struct<label: float32>, one child per label of the configured classifiers.

    A struct and not a map, because `datasets` reads no maps. Parquet has no empty struct: with no classifier
    configured the column is absent.
    """
    return pa.struct([pa.field(label, pa.float32()) for label in labels])


def personal_type(kinds: Sequence[str]) -> pa.StructType:
    """The type of a column that counts personal information: struct<kind: int32>."""
    return pa.struct([pa.field(kind, pa.int32()) for kind in kinds])


PROMPTS = pa.schema(
    [
        # The source's conversation id, or a digest of the user turns where the source has none; unique in a run.
        pa.field("prompt_id", pa.string()),
        # All user turns kept, in order. The source's answers are not read past ingest, unless they are scored (GIVEN).
        pa.field("user_turns", pa.list_(pa.string())),
        # The source's system prompt, kept aside; null where there is none.
        pa.field("system_prompt", pa.string()),
        pa.field("language", pa.string()),
        # The source replaced names by placeholders such as NAME_1.
        pa.field("redacted", pa.bool_()),
        # The source's own moderation flagged one of the user turns kept.
        pa.field("moderation_flagged", pa.bool_()),
        # Tokens of the first prompt as the teacher will read it, chat template included; null where its bytes tell
        # that it is short enough, so that nobody counted.
        pa.field("num_prompt_tokens", pa.int32()),
        # Name of the data set it came from, and the row's ordinal in the source's stream (0-based).
        pa.field("source", pa.string()),
        pa.field("source_row", pa.int64()),
    ]
)


GIVEN = pa.schema(
    [
        pa.field("answers", pa.list_(pa.string())),  # the answer to each of user_turns
        # Of score.ids: source the ids of the conversation [T], and these on supervised tokens, -100 elsewhere [T].
        pa.field("given_ids", pa.list_(pa.int32())),
        pa.field("given_labels", pa.list_(pa.int32())),
        # Of score.asked_ids, flat: Q ids for each supervised token in order.
        pa.field("asked_ids", pa.list_(pa.int32())),
        # Of score.student_logprobs: one for each supervised token in order.
        pa.field("student_logprobs", pa.list_(pa.float32())),
    ]
)
"""What the source's answers add to `PROMPTS` with `task: score`; null where there is none."""


TEACHER = pa.field("teacher", pa.string())
"""Whose a row is, by its name in `teachers`; only where these are configured."""


ROLLED_OUT = pa.schema(
    [
        pa.field("sample_id", pa.string()),  # <prompt_id>/<sample>
        pa.field("finish_reasons", pa.list_(pa.string())),  # one per answer: stop, length
        pa.field("num_target_tokens", pa.int32()),
    ]
)
"""What the stage rollout adds to prompts beside `GIVEN`, a row for each of the student's answers."""


def prompts(kinds: Sequence[str], *, scored: bool = False, several: bool = False) -> pa.Schema:
    """`PROMPTS`, with `GIVEN` where answers are `scored`, `TEACHER` where there are `several`, and, where personal
    information is looked for, `prompt_personal`: how often each kind was found in the user turns kept and the system
    prompt, masked or not."""
    schema = pa.schema([*PROMPTS, *(GIVEN if scored else ()), *((TEACHER,) if several else ())])
    return schema.append(pa.field("prompt_personal", personal_type(kinds))) if kinds else schema


DEDUPED = PROMPTS.append(pa.field("cluster_id", pa.string())).append(pa.field("cluster_size", pa.int32()))
"""`cluster_id`: prompt_id of the cluster's representative; `cluster_size`: how many source prompts it stands for."""


def screened(labels: Sequence[str]) -> pa.Schema:
    """`DEDUPED` plus `prompt_scores`: for each label the highest score of any user turn."""
    return DEDUPED.append(pa.field("prompt_scores", scores_type(labels))) if labels else DEDUPED


CURATED = pa.schema(
    [
        # The language that screen found, by its ISO 639 code; null where it cannot be told (`screen.language`).
        pa.field("prompt_language", pa.string()),
        # What quotas are by: one of `stages.kinds.tasks.TASKS`; the number of a cluster, null where there are no words.
        pa.field("prompt_task", pa.string()),
        pa.field("prompt_topic", pa.int32()),
        # What the row counts, 0 to 1, where balance weights rows and drops none.
        pa.field("weight", pa.float32()),
    ]
)
"""Columns that are there where the configuration asks for them."""


IGNORE_INDEX = -100
"""The label of a token that the teacher did not write. PyTorch's cross-entropy skips it."""

MESSAGES = pa.list_(
    pa.struct(
        [
            pa.field("role", pa.string()),
            pa.field("content", pa.string()),
            # What an assistant thought, where its template keeps it apart; null elsewhere.
            pa.field("reasoning_content", pa.string()),
        ]
    )
)

TOP_K = pa.schema(
    [
        pa.field("target_ids", pa.list_(pa.int32())),  # flat [N], each token's targets in turn, most probable first
        pa.field("target_logprobs", pa.list_(pa.float32())),  # flat [N], nats, temperature 1; values of float16
        # [S] targets of each token: K, fewer with targets.top_p, 0 where targets.keep leaves it out
        pa.field("target_lengths", pa.list_(pa.int32())),
        pa.field("target_tail", pa.list_(pa.float32())),  # [S] log of the mass outside of them; values of float16
    ]
)
"""The most probable tokens (`targets.method` top_k, both)."""

ROUNDED_TOP_K = pa.schema(
    [
        TOP_K.field("target_ids"),
        # flat [N], by how many steps of target_precision a target is below the one before it (the first: below 0)
        pa.field("target_gaps", pa.list_(pa.int16())),
        pa.field("target_precision", pa.float32()),  # nats, the same in every row
        TOP_K.field("target_lengths"),
        TOP_K.field("target_tail"),
    ]
)
"""The same where `targets.precision` is set."""

DRAWS = pa.schema(
    [
        pa.field("draw_ids", pa.list_(pa.int32())),  # flat [N], each token's distinct draws in turn, ascending
        pa.field("draw_counts", pa.list_(pa.int16())),  # flat [N] how often each was drawn
        pa.field(
            "draw_lengths", pa.list_(pa.int32())
        ),  # [S] distinct draws of each token, 0 where targets.keep leaves it out
        pa.field("num_draws", pa.int32()),  # D, the same in every row
    ]
)
"""Independent draws from the whole distribution (`targets.method` sampled, both)."""

PROBE = pa.struct(
    [
        pa.field("token", pa.int32()),  # which supervised token, 0-based
        pa.field("entropy", pa.float32()),  # nats, of the whole distribution
        pa.field("kl_top_k", pa.float32()),  # KL(the stored top K, renormalised || the whole distribution)
        pa.field("kl_top_k_tail", pa.float32()),  # the same with everything else as one event of the stored tail mass
        pa.field("kl_draws", pa.float32()),  # KL(the draws' frequencies || the whole distribution)
    ]
)
"""What storing cost at one token whose whole distribution the engine kept for a moment (`targets.probe_fraction`)."""


ASKED = pa.schema(
    [
        pa.field("asked_ids", pa.list_(pa.int32())),  # flat [S x Q], the source's: Q for each supervised token
        pa.field("asked_logprobs", pa.list_(pa.float32())),  # flat [S x Q], the teacher's, nats, temperature 1
    ]
)
"""More ids that the source asks about (`score.asked_ids`)."""

STUDENT = pa.schema([pa.field("student_logprobs", pa.list_(pa.float32()))])
"""[S] log-probability of the token written, by the student who wrote it, nats (`score.student_logprobs`)."""


def target_fields(settings: TargetsConfig) -> list[pa.Field]:
    """The columns that hold what `targets` asks for."""
    top_k = ROUNDED_TOP_K if settings.precision else TOP_K
    return {"top_k": [*top_k], "sampled": [*DRAWS], "both": [*top_k, *DRAWS]}[settings.method]


ENTROPY = pa.field("teacher_entropy", pa.list_(pa.float32()))
"""[S] entropy of the whole distribution behind each token, nats, temperature 1; values of float16 (`targets.entropy`,
`targets.keep`)."""


def completions(
    labels: Sequence[str],
    settings: TargetsConfig | None = None,
    kinds: Sequence[str] = (),
    curated: Sequence[str] = (),
    *,
    asked: bool = False,
    several: bool = False,
    student: bool = False,
) -> pa.Schema:
    """The table of completions: the columns of `targets` (by default its defaults), `ASKED` where more ids were `asked`
    about, `STUDENT` where a `student` wrote the answers, `TEACHER` where there are `several` and, where there are kinds
    of personal information and labels, the `prompt_personal` of ingest and the `prompt_scores` that screen gave; then
    those of `CURATED` that are named."""
    settings = settings or TargetsConfig()
    fields = [
        pa.field("sample_id", pa.string()),  # <prompt_id>/<sample>
        pa.field("prompt_id", pa.string()),
        pa.field("messages", MESSAGES),  # the whole conversation, the teacher's words in the assistant turns
        pa.field("input_ids", pa.list_(pa.int32())),  # [T] exactly the ids the teacher read and wrote
        pa.field("labels", pa.list_(pa.int32())),  # [T] input_ids on the teacher's tokens, -100 elsewhere
        *target_fields(settings),
        pa.field("token_logprobs", pa.list_(pa.float32())),  # [S] log-probability of the token written
        *([ENTROPY] if settings.has_entropy else []),
        *(ASKED if asked else ()),
        *(STUDENT if student else ()),
        # Why messages, rendered by the teacher's template, are not the text of input_ids (docs/templates.md);
        # null where they are.
        pa.field("rendering_differs", pa.string()),
        pa.field("finish_reasons", pa.list_(pa.string())),  # one per assistant turn: stop, length, given
        pa.field("num_input_tokens", pa.int32()),  # T
        pa.field("num_target_tokens", pa.int32()),  # S
        pa.field("probe", PROBE),  # null in most rows
        pa.field("language", pa.string()),
        pa.field("redacted", pa.bool_()),
        pa.field("cluster_id", pa.string()),
        pa.field("cluster_size", pa.int32()),
        pa.field("source", pa.string()),
        pa.field("source_row", pa.int64()),
        *((TEACHER,) if several else ()),
    ]
    if kinds:
        fields.append(pa.field("prompt_personal", personal_type(kinds)))
    if labels:
        fields.append(pa.field("prompt_scores", scores_type(labels)))
    return pa.schema([*fields, *(field for field in CURATED if field.name in curated)])


def reviewed(
    labels: Sequence[str],
    settings: TargetsConfig | None = None,
    kinds: Sequence[str] = (),
    response_labels: Sequence[str] | None = None,
    curated: Sequence[str] = (),
    *,
    asked: bool = False,
    several: bool = False,
    student: bool = False,
) -> pa.Schema:
    """`completions` plus `loop_tokens` (longest self-repeating stretch of an answer, in tokens; 0 when none),
    `response_scores` (for each of `response_labels`, by default those of prompts, the highest score of any answer) and
    `response_personal` (how often each kind was found in all answers)."""
    schema = completions(labels, settings, kinds, curated, asked=asked, several=several, student=student)
    schema = schema.append(pa.field("loop_tokens", pa.int32()))
    response_labels = labels if response_labels is None else response_labels
    if response_labels:
        schema = schema.append(pa.field("response_scores", scores_type(response_labels)))
    return schema.append(pa.field("response_personal", personal_type(kinds))) if kinds else schema


LEDGER = pa.schema(
    [
        pa.field("prompt_id", pa.string()),  # null where the source row has no usable id
        pa.field("sample_id", pa.string()),  # null before generate
        pa.field("source", pa.string()),
        pa.field("source_row", pa.int64()),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("scores", pa.list_(pa.struct([pa.field("label", pa.string()), pa.field("score", pa.float32())]))),
    ]
)
"""Rows that were dropped, one per row: who, where, why. No text."""

TIMELINE = pa.schema(
    [
        pa.field("stage", pa.string()),
        pa.field("step", pa.string()),  # transform | sketch
        pa.field("shard", pa.string()),  # such as 00017.parquet
        pa.field("outcome", pa.string()),  # written | set_aside | redo; others: another run wrote it meanwhile; part
        pa.field("node", pa.string()),  # host name of the machine; null for ingest, which has no workers
        pa.field("worker", pa.string()),  # null for ingest
        # By the clock of the driver, so that machines need not agree on the time.
        pa.field("queued", pa.timestamp("ms", "UTC")),  # when its step began
        pa.field("started", pa.timestamp("ms", "UTC")),  # when the worker that made it took it up
        pa.field("ended", pa.timestamp("ms", "UTC")),
        pa.field("attempts", pa.int32()),
        pa.field("rows_in", pa.int64()),
        pa.field("rows_out", pa.int64()),
        pa.field("num_target_tokens", pa.int64()),  # 0 before generate
        # Of the filters of a stage that has some: what each took on this shard, by the clock.
        pa.field("filters", pa.list_(pa.struct([pa.field("filter", pa.string()), pa.field("seconds", pa.float32())]))),
    ]
)
"""A row for each shard that one call of `run` made or failed to make, and one more (`part`) for each piece but the last
of a shard that workers shared, with the rows and tokens of that piece."""

DROP_REASON = pa.field("drop_reason", pa.string())
"""Set by a stage on the rows it gives up; the runner removes the column. Null means: keep."""


EVIDENCE = pa.field("evidence", pa.string())
"""What a dropped row was dropped for, such as the item of an evaluation set or its language: the runner moves it into
the ledger, as a label among the scores. Only in tables of stages that have such reasons."""

EVIDENCE_LABELS = {"contaminated": "contamination", "jailbreak_template": "jailbreak", "language": "language"}
"""The reasons that have evidence, and the label of the score that goes with it."""


def marked(schema: pa.Schema) -> pa.Schema:
    """The schema of what a stage returns: `schema` plus `drop_reason`."""
    return schema.append(DROP_REASON)
