"""Which rows of a kind are kept where only a share of them is: chosen by their ids, not by shard, order or machine."""

from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def beyond(is_kind_R: NDArray[np.bool_], ids: pa.ChunkedArray, keep: float, kind: str) -> NDArray[np.bool_]:
    """[R]: the rows of the kind that are not among those kept. A row kept at one share is kept at every larger one;
    each `kind` draws its own lots."""
    is_beyond_R = is_kind_R.copy()
    for row in np.flatnonzero(is_kind_R).tolist():
        is_beyond_R[row] = lot(kind, ids[row].as_py()) >= keep * 2**64
    return is_beyond_R


def lot(kind: str, name: str) -> int:
    """What a row draws by its id, 0 to 2^64 - 1; another one for each `kind`."""
    return int.from_bytes(blake2b(f"{kind}/{name}".encode(), digest_size=8).digest())
