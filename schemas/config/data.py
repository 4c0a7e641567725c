"""What becomes of rows: where they come from, and what each stage but generate keeps of them."""

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from stillhouse.schemas.config.curation import (
    IdentityConfig,
    JailbreaksConfig,
    LanguageConfig,
    LowInformationConfig,
    RefusalsConfig,
    SemanticConfig,
)
from stillhouse.schemas.config.guards import GuardConfig
from stillhouse.schemas.config.section import Count, Fraction, Section, added, checked_location, free


class ColumnsConfig(Section):
    """Where a source has what it spells in its own way: names of columns, or paths such as body.messages. What is left
    out is looked for under the names of docs/sources.md; `stillhouse check` proposes what is needed."""

    conversation: str | None = None
    """The conversation: messages, or a text that is the user's."""
    role: str | None = None
    """In a message: who speaks."""
    content: str | None = None
    """In a message: what is said."""
    id: str | None = None
    """The row's id."""
    system: str | None = None
    """A system prompt beside the conversation."""
    language: str | None = None
    """What `ingest.languages` is compared with."""


class SourceConfig(Section):
    path: str | list[str] | None = None
    """File, folder, glob or object-store URL of Parquet, JSONL or JSON (also .gz, .zst); a list is read in order."""
    dataset: str | None = None
    """Instead of `path`: a data set on the Hugging Face hub, such as lmsys/lmsys-chat-1m (token from HF_TOKEN)."""
    revision: str | None = None
    """Commit, tag or branch of `dataset`; has no default, because it decides the data."""
    config: str | list[str] | None = None
    """Configuration of `dataset` (a subset, on the hub); by default its only or default one. A list reads several."""
    split: str | list[str] | None = None
    """Split of `dataset`; by default train, or the only one. A list reads several."""
    format: Literal["auto", "lmsys", "sharegpt", "wildchat", "messages"] = "auto"
    """How rows spell a conversation; auto looks at the columns of each row."""
    columns: ColumnsConfig = ColumnsConfig()
    """Columns that no format knows."""
    roles: dict[str, Literal["user", "assistant", "system", "tool"]] = {}
    """Whose turn a role is that docs/sources.md does not list."""
    name: str | None = None
    """Goes into the `source` column; by default the dataset's id or the path's last part."""
    limit: Count | None = None
    """Read only the first rows of the source."""
    sample: Annotated[Count | None, added] = None
    """Keep only so many rows, drawn by `sampling.seed` from all that would be read: a preview (`run --sample`)."""

    @field_validator("path")
    @classmethod
    def _known_locations(cls, path: str | list[str] | None) -> str | list[str] | None:
        if path is not None:
            for location in [path] if isinstance(path, str) else path or [""]:
                checked_location(location)
        return path

    @model_validator(mode="after")
    def _one_source(self) -> "SourceConfig":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("set exactly one of `path` and `dataset`")
        if self.dataset is not None and self.revision is None:
            raise ValueError("a hub `dataset` needs a `revision`: the same run must read the same rows next month")
        if self.dataset is None and (self.config is not None or self.split is not None):
            raise ValueError("`config` and `split` are of a hub `dataset`; with `path`, name the files")
        return self

    @property
    def paths(self) -> list[str]:
        """`path` as a list; empty with `dataset`."""
        return [self.path] if isinstance(self.path, str) else self.path or []


class IngestConfig(Section):
    turns: Literal["first", "all"] = "first"
    """Keep the first user turn only, or all of them."""
    languages: list[str] | None = None
    """Keep these values of the source's language column; null keeps every language."""
    max_prompt_tokens: Count | None = None
    """Refuse a longer first prompt, counted in the teacher's tokens with its template; by default whatever the
    teacher's context leaves beside `sampling.max_tokens`."""
    rows_per_shard: Count = 1000
    """Source rows per shard. Fixes the partition of the whole run."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.5
    """Fail when more than this share of the source is refused."""


class DedupeConfig(Section):
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Drop a prompt when its estimated Jaccard similarity to one that is kept is at least this."""
    num_perm: Annotated[int, Field(ge=16, le=1024)] = 128
    """MinHash permutations."""
    ngram: Count = 5
    """Words per shingle. A prompt with fewer words than two shingles is only dropped when it asks what another asks."""
    max_per_cluster: Count = 1
    """Different prompts kept of a cluster: of one prompt and those that are like it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """Seed of the MinHash permutations."""
    semantic: Annotated[SemanticConfig | None, added] = None
    """Prompts of another wording and the same meaning; null looks for none."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.95
    """Fail when more than this share is dropped."""


class ProfanityCheckConfig(Section):
    """A small linear classifier that ships inside its wheel (English; label `profanity`)."""

    name: Literal["profanity-check"]
    thresholds: dict[str, Fraction] = {"profanity": 0.9}
    """Drop at or above this score, per label. Labels without a threshold are scored and kept."""


class DetoxifyConfig(Section):
    """Detoxify's transformer classifiers."""

    name: Literal["detoxify"]
    model: Literal["original", "unbiased", "multilingual", "original-small", "unbiased-small"] = "unbiased"
    """Which of Detoxify's released checkpoints."""
    checkpoint: str | None = None
    """A local checkpoint in Detoxify's format instead; needs `checkpoint_sha256` or `trust_checkpoint`."""
    checkpoint_sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None
    """Refuse the checkpoint file unless it has this digest. Without it, a released checkpoint must have the digest that
    its name begins with (8 digits)."""
    trust_checkpoint: Annotated[bool, free] = False
    """Unpickle a local `checkpoint` without `checkpoint_sha256`: a file that anyone could have changed runs as code."""
    huggingface_config_path: str | None = None
    """Folder with the model's config and tokenizer, for machines without the hub."""
    thresholds: dict[str, Fraction] = {"toxicity": 0.8, "severe_toxicity": 0.3, "threat": 0.5}
    """Drop at or above this score, per label. Labels without a threshold are scored and kept."""
    batch_size: Count = 32
    """Windows of full length per forward pass on a GPU; of shorter ones as many as have no more tokens. A CPU takes
    2,048 tokens at most. Decides the data, if only in a score's sixth digit: padding changes rounding."""

    @model_validator(mode="after")
    def _verified(self) -> "DetoxifyConfig":
        if self.checkpoint is not None and self.checkpoint_sha256 is None and not self.trust_checkpoint:
            raise ValueError(
                "a local `checkpoint` is unpickled, which runs whatever code it holds; give its `checkpoint_sha256` "
                "(sha256sum prints it), or set `trust_checkpoint: true` if nobody else can write the file"
            )
        return self


ClassifierConfig = Annotated[ProfanityCheckConfig | DetoxifyConfig | GuardConfig, Field(discriminator="name")]


class ScreenConfig(Section):
    drop_flagged: bool = True
    """Drop prompts that the source's own moderation flagged."""
    classifiers: list[ClassifierConfig] = []
    """Applied to every user turn here and to every answer in review."""
    low_information: Annotated[LowInformationConfig | None, added] = None
    """Prompts that ask nothing; null keeps them, unmarked."""
    jailbreaks: Annotated[JailbreaksConfig | None, added] = None
    """Prompts that hold a known jailbreak template; null keeps them, unmarked."""
    language: Annotated[LanguageConfig | None, added] = None
    """Find the language of prompts; null believes the source."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.5
    """Fail when more than this share is dropped."""


PersonalKind = Literal["credential", "email", "iban", "national_id", "card", "ip", "mac", "street", "phone"]


class PersonalConfig(Section):
    """Personal information in prompts and answers; docs/curation.md says what is found, and how well."""

    prompts: Literal["mask", "drop", "keep"] = "mask"
    """mask: the teacher reads EMAIL_1 in the place of an address, and no file of the run holds it; so in answers of the
    source that are scored. drop: the row goes. keep: it is only counted."""
    answers: Literal["drop", "keep"] = "drop"
    """The same for answers. What a model wrote cannot be masked: its distributions are of those tokens."""
    kinds: Annotated[list[PersonalKind], Field(min_length=1)] = list(get_args(PersonalKind))
    """What is looked for."""
    drop_from: Count = 1
    """Drop a row with at least so many finds."""
    placeholders: Literal["drop", "keep"] | None = None
    """What becomes of rows with placeholders such as NAME_1, which LMSYS-Chat-1M has for names; null does not look."""

    @property
    def counted(self) -> tuple[str, ...]:
        """The kinds that are counted, always in the same order."""
        known = [kind for kind in get_args(PersonalKind) if kind in self.kinds]
        return (*known, *([] if self.placeholders is None else ["placeholder"]))


class ReviewConfig(Section):
    thresholds: dict[str, Fraction] | None = None
    """Per label for answers; by default those of `screen.classifiers`."""
    drop_truncated: bool = False
    """Drop answers that end by length; otherwise they are only marked in `finish_reasons`."""
    loop_tokens: Annotated[int, Field(ge=8)] = 64
    """An answer is degenerate when it repeats itself over a stretch of at least this many tokens ..."""
    loop_repeats: Annotated[int, Field(ge=2)] = 4
    """... with at least this many copies of the repeated piece."""
    max_duplicates: Count = 1
    """Long answers kept of those that say the same."""
    duplicate_words: Annotated[int, Field(ge=0)] = 30
    """An answer of fewer words is never a duplicate: short ones are the right answer to many questions."""
    identity: Annotated[IdentityConfig | None, added] = None
    """Answers of a teacher that takes itself for another model; null keeps them, unmarked."""
    refusals: Annotated[RefusalsConfig | None, added] = None
    """Answers that refuse or hedge; null keeps them, unmarked."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.5
    """Fail when more than this share is dropped."""


class PublishConfig(Section):
    license: Annotated[str, free] = "other"
    """For the dataset card, as the Hub spells it ("other" where it has no name for it). Mind the source's and the
    teacher's terms."""
