"""PyArrow as a program needs it that never holds a pandas object."""

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _Refusing(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def keep_pandas_out() -> None:
    """Has PyArrow believe for this process that pandas is not installed, unless it is imported already.

    PyArrow 26 imports pandas, one to two seconds of CPU, when it first converts a Python object, only to ask whether it
    is one of pandas'. It asks once. Others can still import pandas afterwards; `Table.to_pandas` is then refused.
    """
    if "pandas" in sys.modules:
        return
    refusing = _Refusing()
    sys.meta_path.insert(0, refusing)
    try:
        import pyarrow as pa

        pa.array([0])
    finally:
        sys.meta_path.remove(refusing)
