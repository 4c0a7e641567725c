"""Why rows are dropped, in words: clauses that can follow "because"; and the settings that decide it."""

import re
from typing import Any

REASONS = {
    "invalid_csv": "the row is not CSV",
    "invalid_json": "the row is not JSON",
    "undecodable": "the row's bytes are no text",
    "truncated_source": "the file ends in the middle of the row",
    "row_too_large": "the row is larger than any conversation",
    "not_an_object": "the line holds no row",
    "missing_conversation": "the row has no conversation",
    "malformed_conversation": "the conversation is no list of messages",
    "transcript": "the whole conversation is in one text",
    "unknown_role": "a message has a role that nobody knows",
    "no_user_turn": "no message is from a user",
    "starts_with_assistant": "the conversation begins with an answer",
    "not_text": "a message holds an image or the like",
    "empty": "the prompt is empty",
    "duplicate_id": "the same id and text were there already",
    "language": "the language is another one",
    "no_teacher": "no teacher's rule takes it",
    "purged": "it was to be deleted",
    "personal_information": "it holds personal information",
    "placeholder_names": "names in it were replaced by placeholders",
    "exact_duplicate": "the same prompt was there already",
    "near_duplicate": "a prompt like it was there already",
    "semantic_duplicate": "a prompt of the same meaning was there already",
    "moderation_flagged": "the source flagged it",
    "unsafe_prompt": "the classifier found the prompt unsafe",
    "contaminated": "it holds an item of an evaluation set",
    "jailbreak_template": "it holds a known jailbreak template",
    "low_information": "the prompt asks nothing",
    "over_quota": "enough prompts of its kind are kept",
    "unanswered": "the source has no answer",
    "malformed_ids": "the ids are not those of its answers",
    "control_tokens": "an answer spells a control token",
    "unknown_ids": "its ids are not in the teacher's vocabulary",
    "template_refused": "the chat template refused the prompt",
    "too_long": "the prompt is too long",
    "teacher_failed": "the teacher failed",
    "unfinished_answer": "there was no room for the answer",
    "invalid_logprobs": "the log-probabilities are broken",
    "no_answer": "the teacher gave no answer",
    "empty_answer": "the answer is empty",
    "degenerate_answer": "the answer repeats itself",
    "unsafe_answer": "the classifier found the answer unsafe",
    "mistaken_identity": "the teacher takes itself for another model",
    "refusal": "the answer refuses, and enough of these are kept",
    "hedge": "the answer hedges, and enough of these are kept",
    "truncated_answer": "the answer was cut off",
    "duplicate_answer": "another row has the same answer",
}
_DECIDED_BY = {
    ("ingest", "language"): ("ingest.languages",),
    ("ingest", "too_long"): ("ingest.max_prompt_tokens",),
    ("generate", "too_long"): ("teacher.max_model_len",),
    ("rollout", "too_long"): ("teacher.max_model_len",),
    ("score", "too_long"): ("teacher.max_model_len", "score.cut_long"),
    ("dedupe", "near_duplicate"): ("dedupe.threshold", "dedupe.max_per_cluster"),
    ("dedupe", "semantic_duplicate"): ("dedupe.semantic.threshold", "dedupe.max_per_cluster"),
    ("ingest", "personal_information"): ("personal.prompts", "personal.drop_from"),
    ("review", "personal_information"): ("personal.answers", "personal.drop_from"),
    ("screen", "contaminated"): ("decontamination.threshold",),
    ("review", "contaminated"): ("decontamination.threshold",),
    ("screen", "jailbreak_template"): ("screen.jailbreaks.threshold", "screen.jailbreaks.keep"),
    ("screen", "low_information"): ("screen.low_information.keep",),
    ("review", "refusal"): ("review.refusals.keep_refusals",),
    ("review", "hedge"): ("review.refusals.keep_hedges",),
    ("screen", "language"): ("screen.language.keep",),
    ("balance", "over_quota"): ("balance.quotas",),
    ("screen", "moderation_flagged"): ("screen.drop_flagged",),
    ("screen", "unsafe_prompt"): (r"screen\.classifiers\[\d+\]\.thresholds",),
    ("review", "unsafe_answer"): ("review.thresholds", r"screen\.classifiers\[\d+\]\.thresholds"),
    ("review", "mistaken_identity"): ("review.identity.own",),
    ("generate", "unfinished_answer"): ("teacher.max_model_len", "sampling.max_tokens"),
    ("rollout", "unfinished_answer"): ("teacher.max_model_len", "rollout.sampling.max_tokens"),
    ("review", "degenerate_answer"): ("review.loop_tokens", "review.loop_repeats"),
    ("review", "truncated_answer"): ("sampling.max_tokens", "review.drop_truncated"),
    ("review", "duplicate_answer"): ("review.duplicate_words", "review.max_duplicates"),
}


def words(reason: str) -> str:
    """A clause; of a reason that nobody here knows its own name."""
    return REASONS.get(reason, reason.replace("_", " "))


def decided_by(stage: str, reason: str, settings: dict[str, Any]) -> str | None:
    """The settings behind a reason with their values, such as `ingest.max_prompt_tokens 512`; None where none is."""
    keys = _DECIDED_BY.get((stage, reason), ())
    known = [(name, value) for key in keys for name, value in settings.items() if re.fullmatch(rf"{key}(\[.*)?", name)]
    told = [key if value is True else f"{key} {_said(value)}" for key, value in known if value is not None]
    return ", ".join(told) or None


def _said(value: Any) -> str:
    """A setting's value as people read it."""
    if isinstance(value, dict):
        return " ".join(f"{name} {_said(inner)}" for name, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
