"""Marks prompts that the source's moderation flagged, or that a classifier finds unsafe.

Not a safety guarantee. The scores stay beside every prompt, so that a trainer can filter again.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.schemas.config import ScreenConfig
from stillhouse.schemas.tables import DROP_REASON
from stillhouse.stages.filters import combined, score_rows, scores_column, unsafe_rows


class Screen:
    """Adds `prompt_scores` (absent when no classifier is configured) and `drop_reason` to a table of prompts.

    Each user turn is scored on its own, and a row has the highest score of its turns, for each label. A row gets the
    first reason that applies: `moderation_flagged`, `unsafe_prompt`. Raises `ConfigError` when a classifier cannot be
    used as configured.
    """

    def __init__(self, config: ScreenConfig) -> None:
        self._drop_flagged = config.drop_flagged
        self._classifier = combined(config.classifiers)

    def __call__(self, table: pa.Table) -> pa.Table:
        labels = self._classifier.labels
        reasons = np.full(table.num_rows, None, dtype=object)
        if labels:
            turns = table["user_turns"].combine_chunks()
            texts = pc.fill_null(pc.list_flatten(turns), "").to_pylist()
            scores_RL = score_rows(
                self._classifier, texts, pc.list_parent_indices(turns).to_numpy(), num_rows=table.num_rows
            )
            reasons[unsafe_rows(scores_RL, labels, self._classifier.thresholds)] = "unsafe_prompt"
            table = table.append_column("prompt_scores", scores_column(scores_RL, labels))
        if self._drop_flagged:
            flagged = pc.fill_null(table["moderation_flagged"], False)
            reasons[np.asarray(flagged.to_numpy(), bool)] = "moderation_flagged"
        return table.append_column(DROP_REASON, pa.array(reasons, pa.string()))
