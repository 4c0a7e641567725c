"""Marks prompts that the source's moderation flagged, that a classifier finds unsafe, that hold an item of an
evaluation set or a jailbreak template, that ask nothing, or that are in a language that is not wanted.

Not a safety guarantee. The scores stay beside every prompt, so that a trainer can filter again.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.schemas.config import ScreenConfig
from stillhouse.schemas.tables import CURATED, DROP_REASON, EVIDENCE
from stillhouse.stages.filters import Clock, Combined, combined, read_by, score_rows, scores_column, unsafe_rows
from stillhouse.stages.filters.contamination import JAILBREAK, Contamination
from stillhouse.stages.filters.low_information import LOW_INFORMATION, asks_nothing
from stillhouse.stages.filters.quota import beyond
from stillhouse.stages.kinds.code import CODE, code_share
from stillhouse.stages.kinds.language import LANGUAGE, Languages


class Screen:
    """Adds `prompt_scores` (absent when no filter is configured) and `drop_reason` to a table of prompts, and
    `evidence` where evaluation sets or jailbreak templates are looked for or languages are chosen, and
    `prompt_language` where languages are found.

    Each user turn is scored on its own, and a row has the highest score of its turns, for each label; of
    `low_information` the lowest. `clock` knows what each filter took. A row gets the first reason that applies:
    `moderation_flagged`, `unsafe_prompt`, `contaminated`, `jailbreak_template`, `low_information`, `language`. Raises
    `ConfigError` when a classifier cannot be used as configured.
    """

    def __init__(
        self, config: ScreenConfig, contamination: Contamination | None = None, jailbreaks: Contamination | None = None
    ) -> None:
        self._config = config
        self._unsafe = combined(read_by(config.classifiers, "prompts"))
        self._contamination, self._jailbreaks = contamination, jailbreaks
        self._lists = [items for items in (contamination, jailbreaks) if items is not None]
        self.clock = Clock()
        self._classifier = Combined([self._unsafe, *self._lists], self.clock)
        self._languages = None if config.language is None else Languages(config.language.min_score)

    def __call__(self, table: pa.Table) -> pa.Table:
        labels, num_rows = self._classifier.labels, table.num_rows
        turns = table["user_turns"].combine_chunks()
        texts = pc.fill_null(pc.list_flatten(turns), "").to_pylist()
        row_N = pc.list_parent_indices(turns).to_numpy()
        scores_RL = score_rows(self._classifier, texts, row_N, num_rows)

        # From the weakest reason to the strongest: each overwrites the one before.
        reasons = np.full(num_rows, None, dtype=object)
        if self._languages is not None:
            with self.clock.of(LANGUAGE):
                codes, found_R2 = self._told(table["user_turns"].to_pylist())
            labels = (*labels, LANGUAGE, CODE)
            scores_RL = np.concatenate([scores_RL, found_R2], axis=1)
            reasons[self._foreign(codes)] = "language"
        if (low_information := self._config.low_information) is not None:
            with self.clock.of(LOW_INFORMATION):
                is_low_R = asks_nothing(texts, row_N, num_rows)
            labels = (*labels, LOW_INFORMATION)
            scores_RL = np.concatenate([scores_RL, is_low_R[:, None].astype(np.float32)], axis=1)
            reasons[beyond(is_low_R, table["prompt_id"], low_information.keep, LOW_INFORMATION)] = "low_information"
        if self._jailbreaks is not None and self._config.jailbreaks is not None:
            is_jailbreak_R = unsafe_rows(scores_RL, labels, self._jailbreaks.thresholds)
            beyond_R = beyond(is_jailbreak_R, table["prompt_id"], self._config.jailbreaks.keep, JAILBREAK)
            reasons[beyond_R] = "jailbreak_template"
        if self._contamination is not None:
            reasons[unsafe_rows(scores_RL, labels, self._contamination.thresholds)] = "contaminated"
        reasons[unsafe_rows(scores_RL, labels, self._unsafe.thresholds)] = "unsafe_prompt"
        if self._config.drop_flagged:
            flagged = pc.fill_null(table["moderation_flagged"], False)
            reasons[np.asarray(flagged.to_numpy(), bool)] = "moderation_flagged"
        if labels:
            table = table.append_column("prompt_scores", scores_column(scores_RL, labels))
        names = [items.found(texts, row_N, reasons) for items in self._lists]
        if self._config.language is not None and self._config.language.keep is not None:
            pairs = zip(codes, reasons, strict=True)
            names.append(pa.array([code if why == "language" else None for code, why in pairs], pa.string()))
        if names:
            table = table.append_column(EVIDENCE, pc.coalesce(*names))
        if self._languages is not None:
            table = table.append_column(CURATED.field("prompt_language"), pa.array(codes, pa.string()))
        return table.append_column(DROP_REASON, pa.array(reasons, pa.string()))

    @property
    def broken(self) -> bool:
        """Whether a classifier has failed for good: only a new process helps."""
        return self._unsafe.broken

    def close(self) -> None:
        """End what the classifiers started."""
        self._unsafe.close()

    def _told(self, turns: list[list[str | None] | None]) -> tuple[list[str | None], NDArray[np.float32]]:
        """The language of each row, and [R, 2] how certain it is and how much of the row is code."""
        assert self._languages is not None
        texts = ["\n".join(filter(None, of_row or [])) for of_row in turns]
        found = [self._languages.find(text) for text in texts]
        scores = [(score, code_share(text)) for (_, score), text in zip(found, texts, strict=True)]
        return [code for code, _ in found], np.array(scores, np.float32).reshape(-1, 2)

    def _foreign(self, codes: list[str | None]) -> NDArray[np.bool_]:
        """[R]: the rows whose language is not to be kept."""
        wanted = self._config.language
        if wanted is None or wanted.keep is None:
            return np.zeros(len(codes), bool)
        kept = {*wanted.keep, None} if wanted.unsure == "keep" else set(wanted.keep)
        return np.array([code not in kept for code in codes], bool)
