"""Guard models: language models that are asked whether a text is unsafe. Their sections, and presets for known kinds.

A preset says how a guard's answer is read. What it is asked is its own chat template, which comes with the model.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stillhouse.schemas.config.section import Count, Fraction, Section, free
from stillhouse.schemas.config.teacher import checked_options, checked_pin

_LLAMA = {
    "questions": [{"label": "llama_guard", "yes": ["unsafe"], "no": ["safe"]}],
    "categories": {"after": "unsafe", "labels": {f"S{i}": f"llama_guard_s{i}" for i in range(1, 15)}},
}
PRESETS: dict[str, dict[str, Any]] = {
    "llama-guard-3": _LLAMA,
    "llama-guard-4": _LLAMA,
    "shieldgemma": {"questions": [{"label": "shieldgemma", "yes": ["Yes"], "no": ["No"]}], "max_tokens": 1},
    "wildguard": {
        "questions": [
            {
                "label": "wildguard",
                "yes": ["yes"],
                "no": ["no"],
                "after": "Harmful request:",
                "after_in_answers": "Harmful response:",
            }
        ]
    },
    "qwen3guard": {
        "questions": [
            {"label": "qwen3guard", "yes": ["Unsafe"], "no": ["Safe", "Controversial"], "after": "Safety:"},
            {"label": "qwen3guard_doubtful", "yes": ["Unsafe", "Controversial"], "no": ["Safe"], "after": "Safety:"},
        ],
        "categories": {
            "after": "Categories:",
            "labels": {
                "Violent": "qwen3guard_violent",
                "Non-violent Illegal Acts": "qwen3guard_illegal",
                "Sexual Content or Sexual Acts": "qwen3guard_sexual",
                "PII": "qwen3guard_pii",
                "Suicide & Self-Harm": "qwen3guard_self_harm",
                "Unethical Acts": "qwen3guard_unethical",
                "Politically Sensitive Topics": "qwen3guard_political",
                "Copyright Violation": "qwen3guard_copyright",
                "Jailbreak": "qwen3guard_jailbreak",
            },
        },
        "max_tokens": 64,
    },
}
"""What the kinds of guards that a user can name write, by their model cards."""


class QuestionConfig(Section):
    """A verdict in a guard's answer."""

    label: Annotated[str, Field(pattern=r"^\w+$")]
    """The score's name."""
    yes: Annotated[list[str], Field(min_length=1)]
    """Words for the verdict that the label stands for, such as unsafe. The score is their probability among all words
    given."""
    no: Annotated[list[str], Field(min_length=1)]
    """Words for the other verdicts, such as safe."""
    after: str = ""
    """What stands before the verdict in the answer, such as "Safety:"; empty where the answer begins with it."""
    after_in_answers: str | None = None
    """The same where the guard judges an answer; by default `after`."""
    chat_template_kwargs: dict[str, Any] = {}
    """More variables of the template for this question, such as ShieldGemma's guideline. Questions that differ in them
    are asked one by one."""


class CategoriesConfig(Section):
    """Kinds of unsafe content that a guard names in its answer to its first question."""

    after: str
    """What stands before them; they are parted by commas and line breaks."""
    labels: dict[str, str]
    """The score's name for each kind, such as S1: llama_guard_s1. The score is the first question's where the guard
    names the kind, and 0 elsewhere."""


class GuardConfig(Section):
    """A guard model, run on vLLM like the teacher."""

    name: Literal["guard"]
    preset: Literal["llama-guard-3", "llama-guard-4", "shieldgemma", "wildguard", "qwen3guard"] | None = None
    """Fills in how the answer of a known kind of guard is read; keys beside it go first."""
    model: str
    """Folder of Hugging Face weights, or a hub id (then with `revision`)."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    chat_template: str | None = None
    """Jinja text used instead of the guard's own template. In YAML the name of the file that holds it."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the template."""
    questions: Annotated[list[QuestionConfig], Field(min_length=1)]
    """What is read in its answer; a `preset` has them."""
    categories: CategoriesConfig | None = None
    """Kinds that it names; null reads none."""
    reads: Annotated[list[Literal["prompts", "answers"]], Field(min_length=1)] = ["prompts", "answers"]
    """What it judges: user turns in screen, and in review each answer with the user turn before it."""
    thresholds: dict[str, Fraction]
    """Drop at or above this score, per label. By default 0.5 of the first question, and of `<its label>_unread`, which
    is 1 where no verdict could be had."""
    max_model_len: Annotated[int, Field(ge=128)] = 4096
    """Context of the guard in tokens, template and answer included. A longer text is read in windows."""
    max_tokens: Count = 32
    """Of the guard's answer."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the guard's weights and arithmetic; float32 on a CPU."""
    engine: dict[str, Any] = {}
    """More engine options, as in `teacher.engine`."""
    env: Annotated[dict[str, str], free] = {}
    """Environment variables of the engine's process."""
    stall_timeout_s: Annotated[float, Field(gt=0.0), free] = 600.0
    """Seconds without a new token after which the engine counts as hung."""
    backend: str = "stillhouse.stages.teacher.engine:VLLMTeacher"
    """module:class that implements `stages.teacher.Teacher`."""

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        raw = PRESETS.get(str(raw.get("preset")), {}) | raw
        questions = raw.get("questions")
        if raw.get("thresholds") is None and isinstance(questions, list) and questions:
            first = questions[0]
            label = first.get("label") if isinstance(first, dict) else getattr(first, "label", None)
            raw["thresholds"] = {label: 0.5, f"{label}_unread": 0.5} if isinstance(label, str) else {}
        return raw

    @model_validator(mode="after")
    def _usable(self) -> "GuardConfig":
        checked_pin(self.model, self.revision)
        questions = (question.chat_template_kwargs for question in self.questions)
        checked_options(self.engine, self.chat_template_kwargs, *questions)
        for question in self.questions:
            if both := {word.casefold() for word in question.yes} & {word.casefold() for word in question.no}:
                raise ValueError(f"questions ({question.label}): {sorted(both)} stand for yes and for no; choose one")
        if self.max_tokens > self.max_model_len // 2:
            raise ValueError(f"max_tokens {self.max_tokens} leaves no room for a text in max_model_len; lower it")
        return self

    @property
    def unread(self) -> str:
        """The label of texts without a verdict."""
        return f"{self.questions[0].label}_unread"

    @property
    def labels(self) -> tuple[str, ...]:
        """Of all scores, in order."""
        kinds = () if self.categories is None else tuple(self.categories.labels.values())
        return (*(question.label for question in self.questions), *kinds, self.unread)
