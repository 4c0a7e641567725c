"""Which tokens keep their targets, by the entropy of the teacher's distribution behind them.

Shape legend: S tokens of an answer.
"""

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import KeepConfig


def stored_entropies(entropies_S: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What `teacher_entropy` holds, and the choice goes by: values of float16, so that whoever reads the column can
    make the choice again."""
    return entropies_S.astype(np.float16).astype(np.float32)


def num_kept(num_tokens: int, fraction: float) -> int:
    """A share of an answer's tokens, rounded up; a product such as 0.2 x 15 is what it is on paper."""
    return int(np.ceil(round(fraction * num_tokens, 6)))


def is_kept(entropies_S: npt.NDArray[np.float32], keep: KeepConfig) -> npt.NDArray[np.bool_]:
    """[S] which tokens of an answer, all of its supervised ones, keep their targets."""
    if keep.fraction is None:
        assert keep.entropy_above is not None
        return np.asarray(entropies_S > keep.entropy_above)
    kept_S = np.zeros(len(entropies_S), dtype=np.bool_)
    # A stable sort: of equal entropies the first.
    kept_S[np.argsort(-entropies_S, kind="stable")[: num_kept(len(entropies_S), keep.fraction)]] = True
    return kept_S
