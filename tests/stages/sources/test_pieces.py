"""Pieces of a source: their rows are the source's, wherever it is cut, whatever is wrong with it."""

import io
import pickle
from itertools import pairwise
from pathlib import Path

import pytest

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import Row, SourceError, json_rows, pieces, read_rows
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.pieces import Piece, pieces_of
from tests.support.source_files import COMPRESS, ROWS, array, conversation, jsonl, parquet

LINES = jsonl(ROWS)
ODD_LINES: dict[str, bytes] = {
    "plain": LINES,
    "byte_order_mark": b"\xef\xbb\xbf" + LINES,
    "no_last_line_break": LINES.rstrip(),
    "windows_line_breaks": LINES.replace(b"\n", b"\r\n"),
    "blank_lines": LINES.replace(b"\n", b"\n\n \n"),
    "broken_rows": LINES.replace(b'"role"', b"role", 3) + b"\xff\xfe\n" + LINES,
    "rows_that_are_too_large": jsonl([*ROWS[:3], {"id": "x" * 3000}, *ROWS[3:6], {"id": "x" * 1025}, *ROWS[6:]]),
    "ends_with_one_too_large": LINES + b"{" + b"x" * 5000,
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1024)


def rows_apart(config: SourceConfig) -> tuple[list[Piece], list[Row]]:
    """The pieces, and the rows of all, each sent to another process and read there."""
    found = list(pieces_of(config))
    sent = [pickle.loads(pickle.dumps(piece)) for piece in found]
    return found, [row for piece in sent for row in piece.rows(Spelling(config))]


@pytest.mark.parametrize("kind", ODD_LINES)
def test_lines_are_cut_anywhere(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(ODD_LINES[kind])
    config = SourceConfig(path=str(tmp_path))
    expected = list(read_rows(config))
    assert len(expected) >= len(ROWS)
    for num_bytes in (1, 2, 25, 249, len(ODD_LINES[kind]) // 8 - 1):
        monkeypatch.setattr(pieces, "PIECE_BYTES", num_bytes)
        found, rows = rows_apart(config)
        assert rows == expected, num_bytes
        assert len(found) > 1


@pytest.mark.parametrize(("group", "num_pieces"), [(1, 24), (5, 6), (100, 2)])
def test_row_groups_of_parquet(group: int, num_pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        made = [conversation(i) | {"conversation_id": f"{name}{i}"} for i in range(23)]
        (tmp_path / f"{name}.parquet").write_bytes(parquet(made, row_group_size=group))
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2000)
    config = SourceConfig(path=str(tmp_path))
    found, rows = rows_apart(config)
    assert rows == list(read_rows(config))
    assert len(rows) == 46
    assert len(found) == num_pieces
    for one, other in pairwise(piece.part for piece in found):
        assert one is None or other is None or other.begin in (one.end, 0)


def test_what_cannot_be_cut_is_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 50)
    files = {
        "a.json": array(ROWS),
        "b.jsonl.gz": COMPRESS["gz"](LINES),
        "c.jsonl.zst": COMPRESS["zst"](LINES),
        "d.jsonl.gz": COMPRESS["gz"](LINES)[:200],
        "e.parquet": parquet(ROWS),
        "f.jsonl": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    config = SourceConfig(path=str(tmp_path))
    found, rows = rows_apart(config)
    assert [Path(piece.file.name).name for piece in found] == [*files]
    assert rows == list(read_rows(config))
    assert "truncated_source" in {row.error for row in rows}


def test_what_is_wrong_with_a_file_is_said_where_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 50)
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl").write_bytes(b"<html>" + LINES)
    (tmp_path / "c.parquet").write_bytes(parquet(ROWS)[:-9])
    *_, html, damaged = pieces_of(config := SourceConfig(path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"b\.jsonl: is HTML or XML"):
        list(html.rows(Spelling(config)))
    with pytest.raises(ValueError, match=r"c\.parquet: is not a readable Parquet file"):
        list(damaged.rows(Spelling(config)))


def test_a_line_longer_than_pieces_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By each piece no further than to its end."""
    monkeypatch.setattr(json_rows, "READ_BYTES", 100)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 500)
    (tmp_path / "a.jsonl").write_bytes(LINES + b'{"id": "' + b"x" * 50_000 + b'"}\n' + LINES)
    config = SourceConfig(path=str(tmp_path))
    found = list(pieces_of(config))
    assert len(found) > 20
    num_bytes, rows = 0, []
    for piece in found:
        assert piece.part is not None
        with Counted(tmp_path / "a.jsonl") as stream:
            rows += list(json_rows.read_lines("a.jsonl", stream, Spelling(config), piece.part))
            num_bytes += stream.num_bytes
    assert rows == list(read_rows(config))
    assert num_bytes < 1.3 * (tmp_path / "a.jsonl").stat().st_size


class Counted(io.BufferedReader):
    """Counts the bytes that lines take, and is never asked where it is."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("rb", buffering=0))
        self.num_bytes = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(-1 if size is None else size)
        self.num_bytes += len(line)
        return line

    def tell(self) -> int:
        raise AssertionError("an object store's client would throw away what it has read ahead")


def test_a_path_that_is_not_there_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    config = SourceConfig(path=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    with pytest.raises(SourceError, match=r"b\.jsonl: does not exist"):
        next(pieces_of(config))
