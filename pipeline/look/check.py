"""What a run would meet and cost, before any of it is paid for: reads the first rows of the source for real."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline import flow
from stillhouse.pipeline.console import message
from stillhouse.pipeline.dataset.given import check_given_ids, check_student
from stillhouse.pipeline.dataset.teachers import check_one_tokenizer
from stillhouse.pipeline.folder.identity import compare_with_folder
from stillhouse.pipeline.look.models import model_problems, slow_models
from stillhouse.schemas import tables
from stillhouse.schemas.config import Config, TargetsConfig, num_parallel
from stillhouse.stages.ingest import REASONS, Ingest
from stillhouse.stages.sources import count_rows, read_rows
from stillhouse.stages.sources.proposal import column_names, proposal
from stillhouse.stages.sources.rules import more_columns

NUM_ROWS_NAMED = 5
"""Refused rows that are named for each reason."""


def bytes_per_token(settings: TargetsConfig) -> float:
    """On disk, all columns: what flat distributions cost, SmolLM2's and Gemma 3 270M's at temperature 1
    (docs/targets.md). Distinct draws grow as a power of their number. `targets.keep.entropy_above` is not foreseen."""
    total = 0.0
    if settings.method != "sampled":
        total += settings.top_k * (2.4 if settings.precision else 3.1)
    if settings.method != "top_k":
        total += 2.3 * settings.num_draws**0.73
    if settings.keep is not None and settings.keep.fraction is not None:
        total *= settings.keep.fraction
    return total + 15.0 + (2.0 if settings.has_entropy else 0.0)


def check(config: Config, rows: int, tokens_per_second: float) -> dict[str, Any]:
    """What `look` finds."""
    return look(config, rows, tokens_per_second)[0]


def look(config: Config, rows: int, tokens_per_second: float) -> tuple[dict[str, Any], pa.Table]:
    """Ingests the first `rows` source rows without writing, and extrapolates. `problems` are why a run would fail.
    Beside the result the rows, as `ingested` returns them.

    Raises `ConfigError` when the run folder belongs to another configuration, and what reading the source or the
    teacher's tokenizer raises. Tokens, bytes and GPU hours are upper bounds: before dedupe and screen, every answer
    as long as `sampling.max_tokens`; with `task: score` as long as those looked at are; with `rollout` a student writes
    at the teacher's speed.
    """
    compare_with_folder(config)
    check_given_ids(config)
    check_one_tokenizer(config)
    check_student(config)
    total = count_rows(config.source)
    table = ingested(config, rows)
    reasons = table.column("drop_reason")
    kept = table.filter(pc.is_null(reasons))
    counts = {item["values"]: item["counts"] for item in pc.value_counts(reasons.drop_null()).to_pylist()}
    result: dict[str, Any] = {
        "rows_looked_at": table.num_rows,
        "rows_accepted": kept.num_rows,
        "refused": dict(sorted(counts.items())),
        "first_refused_rows": {reason: _first_rows(table, reason) for reason in sorted(counts)},
        "rows_with_system_prompt": kept.num_rows - kept.column("system_prompt").null_count,
        "source_rows": total,
    }
    if config.has_rules:
        names = kept.column("teacher").to_pylist()
        result["teachers"] = {name: names.count(name) for name in config.teacher_names}
    result["notes"] = [*filter(None, [*slow_models(config), _set_aside(config, result), _without_rows(result)])]
    problems = [*_source_problems(config, result)]
    if problems:
        result["notes"] += _proposal(config, result)
    result["problems"] = [*problems, *model_problems(config)]
    if kept.num_rows:
        turns = pc.sum(pc.list_value_length(kept.column("user_turns"))).as_py()
        result["mean_prompt_tokens"] = round(pc.mean(kept.column("num_prompt_tokens")).as_py(), 1)
        result["mean_turns"] = round(turns / kept.num_rows, 2)
    if total is not None and table.num_rows:
        prompts = round(total * kept.num_rows / table.num_rows)
        most = config.writing.n * config.writing.max_tokens * result.get("mean_turns", 0)
        tokens = round(prompts * (_answer_tokens(config, kept) if config.reads_answers else most))
        gpus = _gpus(config, result)
        result["estimate"] = {
            "prompts": prompts,
            "max_answer_tokens": tokens,
            "max_bytes": round(tokens * bytes_per_token(config.targets)),
            "max_gpu_hours": round(tokens / tokens_per_second / 3600 * gpus, 1),
            "tokens_per_second_per_replica": tokens_per_second,
        }
    return result, table


def _gpus(config: Config, result: dict[str, Any]) -> float:
    """GPUs of an engine; with several teachers of each by its share of the rows, which in a mixture is all of them.
    With `rollout` the student's too, which writes what the teacher scores."""
    student = 0.0 if config.rollout is None else float(num_parallel(config.writer.teacher.engine))
    of_each = {getattr(view.teacher, "name", None): num_parallel(view.teacher.engine) for view in config.views()}
    rows = result.get("teachers")
    if rows is None:
        return student + sum(of_each.values())
    return student + float(sum(of_each[name] * rows[name] for name in rows) / max(sum(rows.values()), 1))


def _answer_tokens(config: Config, kept: pa.Table) -> float:
    """How many tokens are scored of a row, on average."""
    if config.given_ids:
        counts = [sum(label != tables.IGNORE_INDEX for label in row) for row in kept.column("given_labels").to_pylist()]
    else:
        from stillhouse.stages.teacher.pretrained import load_tokenizer

        teacher = config.teacher
        tokenizer = load_tokenizer(teacher.model, teacher.revision, teacher.trust_remote_code)
        answers = kept.column("answers").to_pylist()
        counts = [sum(len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in row) for row in answers]
    return float(sum(counts) / max(len(counts), 1))


def ingested(config: Config, rows: int) -> pa.Table:
    """The first `rows` source rows as ingest leaves them, marked (`tables.marked(tables.prompts(…))`)."""
    looked = min(filter(None, (rows, config.source.limit)))
    sample = config.model_copy(update={"source": config.source.model_copy(update={"limit": looked})})
    scored, several = config.reads_answers, config.has_rules
    empty = tables.marked(tables.prompts(config.personal_kinds, scored=scored, several=several)).empty_table()
    rows_read = read_rows(sample.source, more_columns=more_columns(config))
    counted = flow.prompt_counters(config) if several else flow.prompt_counter(config)
    return pa.concat_tables([empty, *Ingest(sample, counted)(rows_read)])


def _first_rows(table: pa.Table, reason: str) -> list[int]:
    """Numbers of the first rows that were refused for a reason."""
    is_refused = pc.equal(table.column("drop_reason"), reason)
    return [int(row) for row in table.filter(is_refused).column("source_row").slice(0, NUM_ROWS_NAMED).to_pylist()]


def _set_aside(config: Config, result: dict[str, Any]) -> str | None:
    count = result["rows_with_system_prompt"]
    if not count or any(view.generate.system_prompts == "source" for view in config.views()):
        return None
    return (
        f"source: {count:,} of {result['rows_accepted']:,} accepted rows have a system prompt, which is set aside and "
        "not used; set generate.system_prompts to source to use it"
    )


def _without_rows(result: dict[str, Any]) -> str | None:
    idle = [name for name, count in result.get("teachers", {}).items() if not count]
    if not idle or not result["rows_accepted"]:
        return None
    return (
        f"teachers: {', '.join(idle)} would get none of the {result['rows_accepted']:,} rows accepted here; check the "
        "columns and values of `when`"
    )


def _source_problems(config: Config, result: dict[str, Any]) -> Iterator[str]:
    """Why ingest would fail, as far as the rows looked at can tell."""
    num_rows, accepted = result["rows_looked_at"], result["rows_accepted"]
    budget = config.ingest.max_dropped_fraction
    if not num_rows:
        yield "source: has no rows; check source.path and source.limit"
        return
    if accepted and (num_rows - accepted) / num_rows <= budget:
        return
    named = {
        reason: ", ".join(map(str, rows)) + (", …" if len(rows) < result["refused"][reason] else "")
        for reason, rows in result["first_refused_rows"].items()
    }
    reasons = "; ".join(
        f"{reason} {result['refused'][reason]:,} (rows {rows}: {REASONS[reason]})" for reason, rows in named.items()
    )
    if accepted:
        yield (
            f"source: {num_rows - accepted:,} of {num_rows:,} rows are refused, more than ingest.max_dropped_fraction "
            f"{budget}: {reasons}"
        )
    else:
        yield f"source: none of {num_rows:,} rows is accepted: {reasons}"


def _proposal(config: Config, result: dict[str, Any]) -> Iterator[str]:
    """The columns of rows that were not recognised, and what to write in `source.columns`. Only names, never what the
    columns hold."""
    unread = ("missing_conversation", "malformed_conversation", "unknown_role", "transcript")
    wanted = {row for reason in unread for row in result["first_refused_rows"].get(reason, [])}
    if not wanted:
        return
    rows = islice(read_rows(config.source, every_column=True), max(wanted) + 1)
    values = [row.value for number, row in enumerate(rows) if number in wanted and isinstance(row.value, dict)]
    if not values:
        return
    yield f"source: the columns of row {min(wanted)} are {', '.join(column_names(values[0]))[:500]}"
    if proposed := proposal(values):
        listed = ", ".join(f"{key}: {name}" for key, name in proposed.items())
        yield f"source.columns: try {{{listed}}} (docs/sources.md)"
    if "unknown_role" in result["refused"]:
        yield "source.roles: name the roles that docs/sources.md does not list, such as {narrator: system}"


def show(result: dict[str, Any]) -> None:
    """`check` for people, on standard error."""
    refused = ", ".join(f"{reason} {count:,}" for reason, count in result["refused"].items()) or "none"
    message("configuration: valid")
    if result["rows_with_system_prompt"] and not any("system prompt" in note for note in result["notes"]):
        message(f"system prompts: {result['rows_with_system_prompt']:,} accepted rows bring one, and it is used")
    message(
        f"source: {result['rows_looked_at']:,} rows looked at, {result['rows_accepted']:,} accepted; refused: {refused}"
    )
    if "teachers" in result:
        message("teachers: " + ", ".join(f"{name} {count:,}" for name, count in result["teachers"].items()))
    if "mean_turns" in result:
        message(f"prompts: {result['mean_prompt_tokens']} tokens and {result['mean_turns']} turns on average")
    if "estimate" in result:
        e = result["estimate"]
        message(
            f"estimate (upper bounds, before dedupe and screen): {e['prompts']:,} prompts, {e['max_answer_tokens']:,} "
            f"answer tokens, {e['max_bytes'] / 1e9:,.2f} GB, {e['max_gpu_hours']:,} GPU hours at "
            f"{e['tokens_per_second_per_replica']:,.0f} tokens/s per replica (--tokens-per-second)"
        )
    else:
        message("estimate: the source does not say how many rows it has; set source.limit for one")
    for note in result["notes"]:
        message(f"note: {note}")
    for problem in result["problems"]:
        message(f"a run would fail: {problem}")
