"""Files that nobody would write, by hypothesis: nothing is lost without a word, made up, or ends the process."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import SourceError, read_rows
from tests.support.fuzzing import NUM_EXAMPLES, PROPERTIES, check, confined


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.long
def test_no_byte_of_a_footer_can_lose_or_make_rows(folder: Path) -> None:
    rows = [{"conversation_id": f"c{n}", "conversation": [{"content": "text", "role": "user"}]} for n in range(40)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=15)
    data = sink.getvalue()
    footer_bytes = int.from_bytes(data[-8:-4], "little")
    file = folder / "footer.parquet"

    def work() -> None:
        for place in range(len(data) - footer_bytes - 8, len(data)):
            for bits in (1, 2, 30):
                file.write_bytes(data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :])
                with contextlib.suppress(SourceError):
                    assert sum(1 for _ in read_rows(SourceConfig(path=str(file)))) == len(rows), (place, bits)

    confined(work)


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.long
def test_short(name: str, folder: Path) -> None:
    check(*PROPERTIES[name], folder, 0, NUM_EXAMPLES)
