"""Publishes what review has kept, as it is: nothing is dropped here, and the columns stay."""

import pyarrow as pa

from stillhouse.schemas.tables import DROP_REASON


def publish(table: pa.Table) -> pa.Table:
    """`table` with an empty `drop_reason`."""
    return table.append_column(DROP_REASON, pa.nulls(table.num_rows, pa.string()))
