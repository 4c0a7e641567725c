"""Kinds of answers that review marks by what they say: mistaken identity, refusals, hedges.

Shape legend: A assistant turns, R rows of a table, L labels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stillhouse.schemas.config import ReviewConfig
from stillhouse.stages.filters.clock import Clock
from stillhouse.stages.filters.identity import MISTAKEN_IDENTITY, Identity
from stillhouse.stages.filters.refusals import HEDGE, REFUSAL, kind


class Tags:
    """The kinds that are configured. `keep`: by label, the share of such rows that review keeps. `clock` learns what
    each takes; refusals and hedges are one."""

    def __init__(self, config: ReviewConfig, clock: Clock) -> None:
        self._clock = clock
        self.keep: dict[str, float] = {}
        self._identity = None
        if config.identity is not None:
            self._identity = Identity(config.identity)
            self.keep[MISTAKEN_IDENTITY] = 0.0
        if config.refusals is not None:
            self.keep |= {REFUSAL: config.refusals.keep_refusals, HEDGE: config.refusals.keep_hedges}
        self.labels = tuple(self.keep)

    def of_rows(
        self, texts: Sequence[str], said: Sequence[str | None], row_A: NDArray[np.int64], asked: Sequence[str]
    ) -> NDArray[np.bool_]:
        """[R, L]: whether some answer of a row is of the kind; a row that refuses does not hedge. `texts`
        are answers with what was thought before them, `said` those without; answer i belongs to row `row_A[i]`. `asked`
        has for each row what is no answer."""
        is_kind_RL = np.zeros((len(asked), len(self.labels)), bool)
        for text, answer, row in zip(texts, said, row_A.tolist(), strict=True):
            if self._identity is not None:
                with self._clock.of(MISTAKEN_IDENTITY):
                    is_kind_RL[row, self.labels.index(MISTAKEN_IDENTITY)] |= self._identity.is_mistaken(
                        text, asked[row]
                    )
            if REFUSAL in self.keep:
                with self._clock.of(REFUSAL):
                    found = kind(answer or "")
                if found is not None:
                    is_kind_RL[row, self.labels.index(found)] = True
        if REFUSAL in self.keep:
            is_kind_RL[:, self.labels.index(HEDGE)] &= ~is_kind_RL[:, self.labels.index(REFUSAL)]
        return is_kind_RL
