"""PyArrow imports no pandas where it is told so, and works."""

from tests.support.python import run_python

CODE = """
import sys
from stillhouse.schemas.arrow import keep_pandas_out
keep_pandas_out()
import pyarrow as pa
table = pa.Table.from_pylist([{"a": [1, 2]}, {"a": None}])
assert table.to_pylist() == [{"a": [1, 2]}, {"a": None}]
assert "pandas" not in sys.modules
import pandas
"""


def test_pandas_stays_out() -> None:
    run_python(CODE)
