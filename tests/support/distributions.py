"""Distributions and tables of them, made by hand.

Shape legend: S supervised tokens, V vocabulary.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas import tables, targets


def log_softmax(logits_SV: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    shifted_SV: npt.NDArray[Any] = logits_SV - logits_SV.max(axis=1, keepdims=True)
    logprobs_SV: npt.NDArray[Any] = shifted_SV - np.log(np.exp(shifted_SV).sum(axis=1, keepdims=True))
    return logprobs_SV.astype(np.float32)


def table_of(
    rows: list[targets.TopK], draws: list[targets.Draws] | None = None, num_draws: int = 0, precision: float = 0.0
) -> pa.Table:
    schema = [*(tables.ROUNDED_TOP_K if precision else tables.TOP_K), *(tables.DRAWS if draws is not None else [])]
    columns = {f"target_{name}": [getattr(row, name) for row in rows] for name in targets.TopK._fields}
    columns |= {"target_precision": [precision] * len(rows), "num_draws": [num_draws] * len(rows)}
    if draws is not None:
        columns |= {f"draw_{name}": [getattr(row, name) for row in draws] for name in targets.Draws._fields}
    return pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=pa.schema(schema))
