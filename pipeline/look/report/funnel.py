"""From source rows to published samples, in words: what each stage did, why rows were dropped, and what is odd."""

from typing import Any

from stillhouse.pipeline.look.report.rows import ENDED, Rows
from stillhouse.pipeline.look.report.targets import percent

STAGES = {
    "ingest": "prompts read",
    "dedupe": "without duplicates",
    "screen": "safe prompts",
    "generate": "answered by the teacher",
    "review": "good answers",
}
REASONS = {
    "invalid_json": "not JSON",
    "undecodable": "bytes that are no text",
    "truncated_source": "a file that ends in the middle",
    "row_too_large": "larger than any conversation",
    "not_an_object": "not a row",
    "missing_conversation": "no conversation in it",
    "malformed_conversation": "a conversation that is no list of messages",
    "transcript": "a whole conversation in one text",
    "unknown_role": "a role that nobody knows",
    "no_user_turn": "nothing from a user",
    "starts_with_assistant": "begins with an answer",
    "not_text": "an image or the like",
    "empty": "an empty prompt",
    "purged": "deleted on request (stillhouse purge)",
    "duplicate_id": "the same id and text again",
    "language": "another language",
    "exact_duplicate": "a prompt that is there already",
    "near_duplicate": "a prompt like one that is there",
    "moderation_flagged": "flagged by the source",
    "unsafe_prompt": "unsafe, by the classifier",
    "template_refused": "refused by the chat template",
    "too_long": "a prompt that is too long",
    "teacher_failed": "the teacher failed",
    "unfinished_answer": "no room for the answer",
    "invalid_logprobs": "broken log-probabilities",
    "no_answer": "no answer",
    "empty_answer": "an empty answer",
    "degenerate_answer": "an answer that repeats itself",
    "unsafe_answer": "an unsafe answer, by the classifier",
    "truncated_answer": "an answer that was cut off",
    "duplicate_answer": "an answer that another row has",
}
ADVICE = {
    "truncated_answer": "a larger sampling.max_tokens finishes more of them",
    "too_long": "ingest.max_prompt_tokens and teacher.max_model_len decide",
    "near_duplicate": "dedupe.threshold decides; the clusters are below",
    "unsafe_prompt": "the thresholds are below",
    "unsafe_answer": "the thresholds are below",
    "language": "ingest.languages decides",
    "degenerate_answer": "review.loop_tokens decides; a higher temperature loops less",
}
MUCH = 0.3
"""Share of the rows that reach a stage; a reason that drops more than this is worth a look."""
SOME = 0.05
"""Share of published rows that are odd in some way; more than this is worth a look."""


def funnel(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages in order: {"stage", "title", "rows_in", "rows_out", "share": rows left of the source's, 0 to 1,
    "dropped": [{"reason", "words", "rows"}, ...], most first}. generate counts samples, stages before it prompts."""
    rows = next(iter(manifest["stages"].values()))["rows_in"]
    samples = manifest["config"].get("sampling.n", 1)
    found = []
    for stage, counts in manifest["stages"].items():
        per_row = samples if stage in ("generate", "review") else 1
        dropped = [
            {"reason": reason, "words": REASONS.get(reason, reason.replace("_", " ")), "rows": number}
            for reason, number in sorted(counts["dropped"].items(), key=lambda item: (-item[1], item[0]))
        ]
        found.append(
            {
                "stage": stage,
                "title": STAGES.get(stage, stage),
                "rows_in": counts["rows_in"],
                "rows_out": counts["rows_out"],
                "share": counts["rows_out"] / max(rows * per_row, 1),
                "dropped": dropped,
            }
        )
    return found


def reasons(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every reason of every stage, most rows first, each with its stage."""
    every = [{**reason, "stage": stage["stage"]} for stage in stages for reason in stage["dropped"]]
    return sorted(every, key=lambda reason: -reason["rows"])


def worth_a_look(manifest: dict[str, Any], stages: list[dict[str, Any]], rows: Rows) -> list[str]:
    """What is odd about a dataset, a sentence each."""
    found = []
    for stage in stages:
        for reason in stage["dropped"]:
            share = reason["rows"] / max(stage["rows_in"], 1)
            if share > MUCH:
                advice = ADVICE.get(reason["reason"])
                found.append(
                    f"{stage['stage']} dropped {percent(share)} of its rows for {reason['reason']}"
                    f"{f'; {advice}' if advice else ''}."
                )
    if manifest["set_aside"]:
        found.append(
            f"{len(manifest['set_aside'])} shards were set aside and are not in it; `stillhouse run --retry-set-aside` "
            "tries them again."
        )
    cut_off = _share(rows, ENDED, lambda value: value == "length")
    if cut_off > SOME:
        found.append(f"{percent(cut_off)} of the rows have an answer that was cut off (sampling.max_tokens).")
    differs = _share(rows, "rendering_differs", lambda value: value not in (None, "cut_off"))
    if differs > 0:
        found.append(
            f"In {percent(differs)} of the rows the messages, rendered again, are not the teacher's tokens "
            "(rendering_differs says why): train on input_ids."
        )
    return found


def _share(rows: Rows, column: str, is_odd: Any) -> float:
    if column not in rows.words or not rows.num_rows:
        return 0.0
    words = rows.words[column]
    names = words.dictionary.to_pylist()
    codes = words.indices.to_pylist()
    return sum(bool(is_odd(None if code is None else names[code])) for code in codes) / rows.num_rows
