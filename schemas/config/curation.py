"""Filters of content, each off until it is configured: evaluation sets, low information, language, identity, refusals,
balance.

docs/curation.md says what each of them finds, and how well.
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from stillhouse.schemas.config.section import Count, Fraction, Section, checked_location, free
from stillhouse.schemas.config.teacher import checked_pin


class EvaluationConfig(Section):
    """A set that a student will be judged by."""

    name: Annotated[str, Field(pattern=r"^[^\s/]+$")]
    """How the ledger calls it: an item is `<name>/<row>`."""
    path: Annotated[str | None, free] = None
    """A file: Parquet, JSONL, JSON (also .gz, .zst) or CSV with a line of names; a path or an object store's URL."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Digest of the file at `path`, which decides the data. Of a local file it is taken when the configuration is
    read; elsewhere it has to be given."""
    dataset: str | None = None
    """Instead of `path`: a data set on the Hugging Face hub."""
    revision: str | None = None
    """Commit, tag or branch of `dataset`; has no default, because it decides the data."""
    config: str | None = None
    """Configuration of `dataset`; by default its only or default one."""
    split: str = "test"
    """Split of `dataset`."""
    columns: Annotated[list[str], Field(min_length=1)]
    """Columns (or dotted paths) that hold what must not be learned: texts, lists of texts, or messages."""

    @field_validator("path")
    @classmethod
    def _known_location(cls, path: str | None) -> str | None:
        return path if path is None else checked_location(path)

    @model_validator(mode="after")
    def _one_place(self) -> "EvaluationConfig":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("set exactly one of `path` and `dataset`")
        if self.dataset is not None and self.revision is None:
            raise ValueError("a hub `dataset` needs a `revision`: the same run must leave out the same rows next month")
        if self.path is not None and "://" in self.path and self.sha256 is None:
            raise ValueError("a `path` that is a URL needs its `sha256`: what the file holds decides the data")
        if self.dataset is not None and self.sha256 is not None:
            raise ValueError("`sha256` is of a file at `path`; the `revision` of a `dataset` says what it holds")
        return self


def _own_names(sets: list[EvaluationConfig]) -> list[EvaluationConfig]:
    names = [one.name for one in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} names more than one set; the ledger needs a name for each")
    return sets


Sets = Annotated[list[EvaluationConfig], Field(min_length=1), AfterValidator(_own_names)]


class MatchesConfig(Section):
    """How much of an item a row has to hold."""

    ngram: Annotated[int, Field(ge=4, le=50)] = 8
    """Words in a row that count as a match; in scripts without spaces, as many characters as hold so much text."""
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Drop a row when matches cover at least this share of an item."""
    max_items: Count = 10
    """Words in a row that more items than this have in common are a phrase, and match nothing."""


class DecontaminationConfig(MatchesConfig):
    """Drop prompts and answers that hold an item of an evaluation set."""

    evaluations: Sets
    """The sets."""


class JailbreaksConfig(MatchesConfig):
    """Drop prompts that hold a known jailbreak template, whatever is asked inside of it."""

    templates: Sets
    """Lists of templates, given as evaluation sets are."""
    max_items: Count = 1000
    """Words in a row that more templates than this have in common match nothing. Lists hold many versions of one
    template, so that this is a large number."""
    keep: Fraction = 0.0
    """Share of them that is kept, chosen by their ids."""


class SemanticConfig(Section):
    """Drop prompts that mean what a kept one means, by the cosine of static embeddings."""

    model: str
    """Folder of a model2vec model, or a hub id (then with `revision`), such as minishlab/potion-multilingual-128M."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Drop a prompt when its cosine similarity to one that is kept is at least this."""

    @model_validator(mode="after")
    def _pinned(self) -> "SemanticConfig":
        checked_pin(self.model, self.revision)
        return self


class LowInformationConfig(Section):
    """Drop most prompts that ask nothing: a greeting, keys struck at random, a lone URL."""

    keep: Fraction = 0.0
    """Share of them that is kept, chosen by their ids."""


class LanguageConfig(Section):
    """Find the language of every prompt, whatever the source says, and how much of it is code."""

    keep: list[Annotated[str, Field(pattern="^[a-z]{2,3}$")]] | None = None
    """Drop prompts in other languages than these, by ISO 639 code such as en; null keeps every language."""
    unsure: Literal["keep", "drop"] = "keep"
    """What becomes of prompts whose language cannot be told (short ones, lists of names, more than one language) where
    `keep` names some."""
    min_score: Fraction = 0.5
    """A language that is less certain than this is none."""


Kind = Literal["language", "length", "task", "topic"]


class QuotaConfig(Section):
    """The most rows that a kind of prompt may have."""

    by: Annotated[list[Kind], Field(min_length=1)]
    """What makes a group; with several, the values that rows have together."""
    max_rows: Count | None = None
    """Rows of each group that are kept."""
    max_share: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """The largest share of the rows that are kept in the end which a group may have."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.max_rows is None) == (self.max_share is None):
            raise ValueError("set exactly one of `max_rows` and `max_share`")
        return self


class BalanceConfig(Section):
    """Keep kinds of prompts from having too many rows. A stage of its own, after screen."""

    quotas: Annotated[list[QuotaConfig], Field(min_length=1)]
    """Applied one after the other."""
    over: Literal["drop", "weight"] = "drop"
    """drop: rows over a quota go, chosen by their ids. weight: all stay, and the column `weight` makes each group count
    as much as its quota allows."""
    topics: Annotated[int, Field(ge=2, le=10_000)] = 64
    """Clusters of prompts, where a quota is by topic."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """Of the clusters."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the quotas need to know of a row, always in the same order."""
        return tuple(kind for kind in get_args(Kind) if any(kind in quota.by for quota in self.quotas))


class IdentityConfig(Section):
    """Drop answers in which the teacher says that it is another model, or made by another company."""

    own: list[str] = []
    """Names that the teacher may call itself and its maker by, such as Gemma and Google."""
    others: list[str] = []
    """Names to look for beside those that docs/curation.md lists."""


class RefusalsConfig(Section):
    """Mark answers that refuse or hedge; drop them where a quota says so."""

    keep_refusals: Fraction = 1.0
    """Share of the answers that refuse which is kept, chosen by their ids."""
    keep_hedges: Fraction = 1.0
    """Share of the answers that talk of being an AI, of knowledge that ends, or of seeing a professional, and do not
    refuse, which is kept."""
