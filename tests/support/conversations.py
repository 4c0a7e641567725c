"""Real conversations: the quick start's."""

import pyarrow.parquet as pq

from tests.support.data import CONVERSATIONS


def conversations(num_rows: int) -> list[list[dict[str, str]]]:
    """The messages of the first conversations. The rest of the file is not read, which takes seconds."""
    with pq.ParquetFile(CONVERSATIONS) as file:
        rows: list[list[dict[str, str]]] = (
            next(file.iter_batches(num_rows, columns=["conversation"])).column(0).to_pylist()
        )
    return rows


def first_user_turns(num_rows: int) -> list[str]:
    """Of the first conversations, each one's first user turn, where there is one."""
    first = [next((m["content"] for m in turns if m["role"] == "user"), None) for turns in conversations(num_rows)]
    return [text for text in first if text is not None]
