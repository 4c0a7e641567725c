"""From source rows to published samples, in words: what each stage did, why rows were dropped, and what is odd."""

from typing import Any

from stillhouse.pipeline.dataset.figures import percent
from stillhouse.pipeline.folder.keys import TEACHERS
from stillhouse.pipeline.look.reasons import decided_by, words
from stillhouse.pipeline.look.report.rows import ENDED, Rows

STAGES = {
    "ingest": "prompts read",
    "dedupe": "without duplicates",
    "screen": "safe prompts",
    "balance": "prompts within the quotas",
    "generate": "answered by the teacher",
    "rollout": "answered by the student",
    "score": "scored by the teacher",
    "review": "good answers",
}
ADVICE = {
    "truncated_answer": "a larger sampling.max_tokens finishes more of them",
    "near_duplicate": "the clusters are below",
    "unsafe_prompt": "the thresholds are below",
    "unsafe_answer": "the thresholds are below",
    "contaminated": "the ledger names the items",
    "degenerate_answer": "a higher temperature loops less",
}
MUCH = 0.1
"""Share of the rows that reach a stage; a reason that drops more than this is worth a look."""
FEW_ROWS = 1000
"""Fewer samples are too few to train on."""
LANGUAGELESS = {None, "unknown"}
SOME = 0.05
"""Share of published rows that are odd in some way; more than this is worth a look."""


def funnel(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages in order: {"stage", "title", "rows_in", "rows_out", "share": rows left of the source's, 0 to 1,
    "dropped": [{"reason", "words", "rows", "decided_by": settings behind it, or null}, ...], most first}.
    From generate or rollout on samples are counted, before these prompts."""
    rows = source_rows(manifest)
    config = manifest["config"]
    samples = config.get("rollout.sampling.n", config.get("sampling.n", 1))
    found = []
    for stage, counts in manifest["stages"].items():
        per_row = samples if stage in (*TEACHERS, "review") else 1
        dropped = [
            {
                "reason": reason,
                "words": words(reason),
                "rows": number,
                "decided_by": decided_by(stage, reason, manifest["config"]),
            }
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


def source_rows(manifest: dict[str, Any]) -> int:
    return int(next(iter(manifest["stages"].values()))["rows_in"])


def worth_a_look(manifest: dict[str, Any], stages: list[dict[str, Any]], rows: Rows) -> list[str]:
    """What the reader of a dataset has to know first, a sentence each: how little is left, and what is odd."""
    found = []
    if rows.num_rows < FEW_ROWS:
        found.append(f"{rows.num_rows:,} samples are too few to train on: they show what a larger run would give.")
    possible = source_rows(manifest) * manifest["config"].get("sampling.n", 1)
    if rows.num_rows < possible:
        found.append(
            f"{rows.num_rows:,} samples are {percent(rows.num_rows / possible)} of the {possible:,} that the source's "
            "rows could have become."
        )
    found += [
        f"{stage['stage']} dropped {percent(reason['rows'] / stage['rows_in'])} of its rows because {reason['words']} "
        f"({reason['reason']}{', ' + reason['decided_by'] if reason['decided_by'] else ''})"
        f"{'; ' + ADVICE[reason['reason']] if reason['reason'] in ADVICE else ''}."
        for stage in stages
        for reason in stage["dropped"]
        if reason["rows"] > MUCH * stage["rows_in"]
    ]
    if not manifest["fidelity"].get("probed_tokens"):
        found.append("No token was compared with the teacher's whole distribution (no KL; Targets says why).")
    if rows.num_rows and "language" in rows.words and _share(rows, "language", LANGUAGELESS.__contains__) == 1:
        others = "" if "prompt_language" in rows.words else "; screen.language can"
        found.append(f"The source names no row's language, so ingest.languages cannot choose{others}.")
    if manifest["set_aside"]:
        found.append(
            f"{len(manifest['set_aside'])} shards were set aside and are not in it; `stillhouse run --retry-set-aside` "
            "tries them again."
        )
    cut_off = _share(rows, ENDED, lambda value: value == "length")
    if cut_off > SOME:
        limit = "teacher.max_model_len" if manifest["config"].get("task") == "score" else "sampling.max_tokens"
        found.append(f"{percent(cut_off)} of the rows have an answer that was cut off ({limit}).")
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
