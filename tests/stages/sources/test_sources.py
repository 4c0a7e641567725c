"""Reading rows: every format and place, what is broken in them, and how little memory it takes."""

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import Row, SourceError, json_rows, read_rows, source_name
from stillhouse.stages.sources.row import INVALID_JSON, ROW_TOO_LARGE, TRUNCATED_SOURCE, UNDECODABLE
from tests.support.data import ROOT


def conversation(i: int) -> dict[str, Any]:
    text = f'turn {i}: "quoted", [brackets] {{braces}} \\ back\\slash, é 漢 😀\nline'
    return {"conversation_id": f"c{i}", "conversation": [{"content": text, "role": "user"}], "language": "English"}


ROWS = [conversation(i) for i in range(23)]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def array(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def parquet(rows: list[Any], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.compress}


def read(*paths: Path | str) -> list[Row]:
    return list(read_rows(SourceConfig(path=[str(path) for path in paths])))


def values(rows: list[Row]) -> list[Any]:
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.value for row in rows]


def errors(rows: list[Row]) -> list[str | None]:
    return [row.error for row in rows]


ENCODINGS: dict[str, Callable[[list[Any]], bytes]] = {
    "a.parquet": parquet,
    "a.jsonl": jsonl,
    "a.NDJSON": jsonl,
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.jsonl.zst": lambda rows: zstandard.compress(jsonl(rows)),
    "a.ndjson.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.json": array,
    "a.json.gz": lambda rows: gzip.compress(array(rows)),
    "a.json.zst": lambda rows: zstandard.compress(array(rows)),
    "lines.json": jsonl,
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + jsonl(rows),
    "bom.json": lambda rows: b"\xef\xbb\xbf \n" + array(rows),
    "crlf.jsonl": lambda rows: jsonl(rows).replace(b"\n", b"\r\n"),
    "blank.jsonl": lambda rows: b"\n \n" + jsonl(rows).replace(b"\n", b"\n\n\t\n"),
    "no-end.jsonl": lambda rows: jsonl(rows).rstrip(),
    "skippable.jsonl.zst": lambda rows: b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(jsonl(rows)),
    "members.jsonl.gz": lambda rows: gzip.compress(jsonl(rows[:5])) + gzip.compress(jsonl(rows[5:])) + bytes(9000),
    "frames.jsonl.zst": lambda rows: zstandard.compress(jsonl(rows[:5])) + zstandard.compress(jsonl(rows[5:])),
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("place", ["path", "url"])
def test_every_format_locally_and_through_a_store(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ENCODINGS[name](ROWS))
    assert values(read(tmp_path / name if place == "path" else f"file://{tmp_path}/{name}")) == ROWS


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz", "e.json", "e.json.zst"])
def test_an_empty_file_has_no_rows(name: str, tmp_path: Path) -> None:
    empty = b" [ ] \n" if ".json" in name and "jsonl" not in name else b""
    (tmp_path / name).write_bytes(COMPRESS.get(name[-3:].strip("."), bytes)(empty))
    assert read(tmp_path / name) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows 0..5 in sorted files of several kinds, among others that are not data."""
    for i, name in enumerate(
        ["b.jsonl", "c/d/e.jsonl.gz", "c/x y%20é.parquet", "d.json", "p.parquet/part-0.parquet", "z.jsonl"]
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        encode: dict[str, Callable[[list[Any]], bytes]]
        encode = {"parquet": parquet, "gz": lambda rows: gzip.compress(jsonl(rows)), "json": array}
        (tmp_path / name).write_bytes(encode.get(name.rpartition(".")[2], jsonl)([ROWS[i]]))
    for name in [
        "README.md",
        ".hidden.jsonl",
        "_SUCCESS",
        "_tmp/x.jsonl",
        "c/.cache/y.jsonl",
        "x.parquet.gz",
        "Makefile",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([{"not": "data"}]))
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([""], [0, 1, 2, 3, 4, 5]),
        (["/"], [0, 1, 2, 3, 4, 5]),
        (["/c"], [1, 2]),
        (["/p.parquet"], [4]),
        (["/*.jsonl"], [0, 5]),
        (["/[cz]*/*.parquet"], [2]),
        (["/c/d/*"], [1]),
        (["/z.jsonl", "/c", "/b.jsonl"], [5, 1, 2, 0]),
    ],
)
def test_which_files_and_in_which_order(folder: Path, prefix: str, paths: list[str], expected: list[int]) -> None:
    assert values(read(*(f"{prefix}{folder}{path}" for path in paths))) == [ROWS[i] for i in expected]


def test_a_glob_may_cross_folders_and_a_literal_name_beats_a_glob(folder: Path) -> None:
    assert values(read(f"{folder}/**/*.gz")) == [ROWS[1]]
    (folder / "q[1].jsonl").write_bytes(jsonl([ROWS[9]]))
    assert values(read(f"{folder}/q[1].jsonl")) == [ROWS[9]]


def test_a_file_url_is_percent_encoded(folder: Path) -> None:
    assert values(read((folder / "c/x y%20é.parquet").as_uri())) == [ROWS[2]]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}/none.jsonl", "does not exist"),
        ("{}/notes.txt", "no known suffix"),
        ("{}/empty", "matches no data file"),
        ("{}/*.nope", "matches no data file"),
        ("{}/broken.parquet", "footer"),
        ("{}/zero.parquet", "footer"),
        ("{}/plain.jsonl.gz", "not a gzip stream"),
        ("{}/plain.json.zst", "not a zstd stream"),
        ("file://{}/none.jsonl", "matches no data file"),
        ("file://{}/notes.txt", "no known suffix"),
        ("file://{}/*.nope", "matches no data file"),
        ("file://{}/broken.parquet", "footer"),
        ("", "is empty"),
    ],
)
def test_a_wrong_source_is_one_clear_sentence(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_bytes(b"canary")
    (tmp_path / "broken.parquet").write_bytes(parquet(ROWS)[:-6])
    (tmp_path / "zero.parquet").write_bytes(b"")
    (tmp_path / "plain.jsonl.gz").write_bytes(jsonl(ROWS))
    (tmp_path / "plain.json.zst").write_bytes(array(ROWS))
    with pytest.raises(SourceError, match=message) as caught:
        read(path.format(tmp_path))
    text = str(caught.value)
    assert "; " in text
    assert "\n" not in text
    assert caught.value.__cause__ is None
    assert "turn 1" not in text


def test_a_wrong_path_fails_before_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    with pytest.raises(SourceError, match="does not exist"):
        read_rows(SourceConfig(path=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]))


def test_rows_are_read_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    rows = read_rows(SourceConfig(path=str(tmp_path)))
    assert [next(rows).value for _ in ROWS] == ROWS
    with pytest.raises(SourceError, match="footer"):
        next(rows)


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_cut_off_stream_gives_what_came_before_and_one_last_row(compression: str, kind: str, tmp_path: Path) -> None:
    generator = random.Random(1)
    rows = [{"id": i, "noise": generator.randbytes(2000).hex()} for i in range(200)]
    plain = (jsonl if kind == "jsonl" else array)(rows)
    whole = COMPRESS[compression](plain)
    path = tmp_path / f"a.{kind}.{compression}"
    lengths = set()
    for size in [len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        path.write_bytes(whole[:size])
        *before, last = read(path)
        assert last == Row(None, TRUNCATED_SOURCE)
        assert values(before) == rows[: len(before)]
        lengths.add(len(before))
    assert len(lengths) >= 3
    assert max(lengths) >= 160  # a zstd block is 128 KiB, 32 rows
    damaged = bytearray(whole)
    damaged[len(whole) // 2 :] = os.urandom(len(whole) - len(whole) // 2)
    path.write_bytes(damaged)
    *before, last = read(path)
    assert last == Row(None, TRUNCATED_SOURCE)


def test_a_line_that_cannot_be_read_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 5000)
    good = b'{"id": 1}'
    bad = {
        b'{"id": "\xff\xfe"}': UNDECODABLE,
        "{}".encode("utf-16"): UNDECODABLE,
        b'{"id": 1': INVALID_JSON,
        b"{'id': 1}": INVALID_JSON,
        b'{"id": "a\tb"}': INVALID_JSON,
        b'{"id": 1} {"id": 2}': INVALID_JSON,
        b"\x00\x00\x00": INVALID_JSON,
        b'{"id": ' + b"9" * 4500 + b"}": INVALID_JSON,
        b'{"id": ' + b"[" * 101 + b"]" * 101 + b"}": INVALID_JSON,
        b"[" * 4900: INVALID_JSON,
        b'{"id": "' + b"x" * 5000 + b'"}': ROW_TOO_LARGE,
        b'{"id": "' + b"x" * 50000 + b'"}': ROW_TOO_LARGE,
    }
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + b"\n" + b"".join(line + b"\n" + good + b"\n" for line in bad))
    rows = read(path)
    assert errors(rows) == [None, *(error for reason in bad.values() for error in (reason, None))]
    assert values(rows[::2]) == [{"id": 1}] * (len(bad) + 1)


def test_nesting_is_counted_outside_strings(tmp_path: Path) -> None:
    deepest = json.loads("[" * 99 + "]" * 99)
    wide: list[Any] = [[], {}] * 200
    rows = [{"text": '["\\' * 300}, {"wide": wide}, {"deep": deepest}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    assert values(read(tmp_path / "a.jsonl")) == rows


TRICKY: list[Any] = [
    {"a": 'x"],}[{\\'},
    [1, [2, {"b": "]"}]],
    "bare ] , string",
    -12.5e3,
    None,
    {"c": "\\\\", "d": {"e": ["\\\"'", "漢😀\u2028"]}},
    {},
]


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 64, 1 << 20])
def test_an_array_splits_the_same_wherever_its_chunks_end(
    read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    monkeypatch.setattr(json_rows, "READ_BYTES", read_bytes)
    for text in (json.dumps(TRICKY), json.dumps(TRICKY, indent=3, ensure_ascii=False)):
        path.write_text(text)
        assert values(read(path)) == TRICKY


def test_an_array_cut_off_anywhere_gives_its_whole_elements_and_one_last_row(tmp_path: Path) -> None:
    rows = [conversation(i) for i in range(3)]
    text = json.dumps(rows).encode()
    path = tmp_path / "a.json"
    for size in range(1, len(text)):
        path.write_bytes(text[:size])
        *before, last = read(path)
        assert last == Row(None, TRUNCATED_SOURCE)
        assert values(before) == rows[: len(before)]
        num_whole = sum(text[:size].count(json.dumps(row).encode()) for row in rows)
        assert len(before) == num_whole


def test_a_bad_element_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(json_rows, "READ_BYTES", 300)
    large = b'{"a": "' + b"x" * 2000 + b'"}'
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1}, {"a": nope}, {"a": "\xff"}, , ' + large + b', {"a": 2}, {"a": }, {"a": 3},]')
    rows = read(path)
    assert errors(rows) == [None, INVALID_JSON, UNDECODABLE, INVALID_JSON, ROW_TOO_LARGE, None, INVALID_JSON, None]
    path.write_bytes(b'[{"a": 1}] \n')
    assert errors(read(path)) == [None]
    path.write_bytes(b'[{"a": 1}][{"a": 2}]' + b" " * 1000)
    assert errors(read(path)) == [None, INVALID_JSON]
    path.write_bytes(b'[{"a": 1}]' + b" " * 1000 + b"x")
    assert errors(read(path)) == [None, INVALID_JSON]


def test_parquet_reads_only_what_an_importer_needs(tmp_path: Path) -> None:
    row = conversation(1) | {
        "model": "m",
        "openai_moderation": [{"categories": {"hate": True}, "flagged": True, "category_scores": {"hate": 0.5}}],
    }
    row["conversation"][0] |= {"header": "h", "toxic": False}
    (tmp_path / "a.parquet").write_bytes(parquet([row]))
    (value,) = values(read(tmp_path / "a.parquet"))
    assert value == {
        "conversation_id": "c1",
        "language": "English",
        "openai_moderation": [{"flagged": True}],
        "conversation": [{"content": row["conversation"][0]["content"], "role": "user", "toxic": False}],
    }


def test_parquet_files_need_not_agree(tmp_path: Path) -> None:
    tables: list[list[dict[str, Any]]] = [
        [conversation(0)],
        [{"conversation_id": 7, "conversation": ["text"], "openai_moderation": [True]}],
        [{"unrelated": 1}, {"unrelated": 2}],
        [{"id": None, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}],
        [{"conversation": "a string"}],
    ]
    for i, rows in enumerate(tables):
        (tmp_path / f"{i}.parquet").write_bytes(parquet(rows))
    assert values(read(tmp_path)) == [*tables[0], *tables[1], {}, {}, *tables[3], *tables[4]]


def test_invalid_utf8_in_parquet_costs_one_row(tmp_path: Path) -> None:
    texts = [b"caf\xc3\xa9", b"\xff\xfe", b"x", None]
    column = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": column, "messages": [["a"]] * 4}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert errors(rows) == [None, UNDECODABLE, None, None]
    assert [row.value["id"] for row in rows if isinstance(row.value, dict)] == ["café", "x", None]


def test_a_damaged_page_costs_its_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"id": f"row {i}", "language": str(i) * 50} for i in range(300)]
    data = bytearray(parquet(rows, row_group_size=100, compression="zstd", use_dictionary=False))
    meta = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(1).column(0)
    data[meta.data_page_offset : meta.data_page_offset + meta.total_compressed_size] = (
        b"\xff" * meta.total_compressed_size
    )
    path.write_bytes(data)
    read_back = read(path)
    assert errors(read_back) == [None] * 100 + [UNDECODABLE] * 100 + [None] * 100
    assert [row.value for row in read_back if row.error is None] == rows[:100] + rows[200:]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"path": "/data/lmsys/train.parquet"}, "train.parquet"),
        ({"path": "s3://bucket/lmsys/"}, "lmsys"),
        ({"path": ["a/x.jsonl", "b/y.jsonl"]}, "x.jsonl"),
        ({"path": "a.jsonl", "name": "mine"}, "mine"),
        ({"dataset": "lmsys/lmsys-chat-1m", "revision": "main"}, "lmsys/lmsys-chat-1m"),
    ],
)
def test_source_name(config: dict[str, Any], name: str) -> None:
    assert source_name(SourceConfig(**config)) == name


# ---------------------------------------------------------------------------------------------------------------------
# A hub of its own


class Hub(ThreadingHTTPServer):
    """The few endpoints of the hub that a data set's files need."""

    commit = "c0ffee" + "0" * 34

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = files
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        if "org/chats" in path:  # the hub's client also asks for things of its own
            self.server.tokens.add(self.headers.get("Authorization"))
        api, commit = "/api/datasets/org/chats", self.server.commit
        resolve = f"/datasets/org/chats/resolve/{commit}/"
        if path == f"{api}/revision/v1":
            self.reply({"id": "org/chats", "sha": commit, "siblings": []})
        elif path == f"{api}/tree/{commit}":
            self.reply([{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in self.server.files.items()])
        elif path.startswith(resolve) and (data := self.server.files.get(path.removeprefix(resolve))) is not None:
            self.reply(data)
        else:
            self.reply({"error": "not here"}, 404, {"X-Error-Code": "RevisionNotFound"})

    def reply(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        etag = hashlib.sha256(data).hexdigest()
        fixed = {"Content-Length": str(len(data)), "ETag": f'"{etag}"', "X-Repo-Commit": self.server.commit}
        for key, value in (fixed | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    encoded = {"data/b.parquet": parquet(ROWS[5:9]), "data/a.parquet": parquet(ROWS[:5])}
    with Hub({**encoded, "README.md": b"#", "also.jsonl": jsonl(ROWS[:9]), "dataset_infos.json": b"{}"}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_python(code: str, *args: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


READ_HUB = """
import json, sys
from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import SourceError, read_rows
try:
    print(json.dumps([row for row in read_rows(SourceConfig(dataset="org/chats", revision=sys.argv[1]))]))
except SourceError as error:
    print(json.dumps(str(error)))
"""


def test_a_hub_data_set_is_read_at_one_commit(hub: Hub, tmp_path: Path) -> None:
    env = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "hf_canary",
        "HF_HUB_OFFLINE": "0",  # this hub is on the loopback
        "NO_PROXY": "127.0.0.1",
    }
    rows = json.loads(run_python(READ_HUB, "v1", **env))
    assert rows == [[row, None] for row in ROWS[:9]]
    assert hub.tokens == {"Bearer hf_canary"}
    assert not any("jsonl" in path or "README" in path for path in hub.requests)
    error = json.loads(run_python(READ_HUB, "no-such-tag", **env))
    assert error.startswith("org/chats@no-such-tag: cannot be listed (RevisionNotFoundError); check")


# ---------------------------------------------------------------------------------------------------------------------
# Memory

PEAK_GROWTH = """
import sys
from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import read_rows
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
import obstore.store, pyarrow.parquet, zstandard
list(read_rows(SourceConfig(path=sys.argv[2])))
before = peak()
count = sum(1 for row in read_rows(SourceConfig(path=sys.argv[1])) if row.error is None)
print(count, peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("place", ["", "file://"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst", "a.parquet"])
def test_memory_does_not_grow_with_the_file(name: str, place: str, tmp_path: Path) -> None:
    is_parquet, mib = name.endswith("parquet"), 1 << 20
    num_rows = 15_000 if is_parquet else 5000  # 180 or 60 MB of text
    generator = random.Random(1)
    noise = [generator.randbytes(6000).hex() for _ in range(50)]

    def write(path: Path, num_rows: int) -> None:
        rows = ({"id": str(i), "messages": [{"role": "user", "content": noise[i % 50]}]} for i in range(num_rows))
        if name.endswith(".gz"):
            with gzip.open(path, "wb", compresslevel=1) as file:
                file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
        elif name.endswith(".zst"):
            with zstandard.open(path, "wb") as file:
                file.write(b"[" + json.dumps(next(rows)).encode())
                for row in rows:
                    file.write(b"," + json.dumps(row).encode())
                file.write(b"]")
        else:  # one row group, no dictionary to shrink it
            pq.write_table(
                pa.Table.from_pylist(list(rows)), path, use_dictionary=False, compression="none", write_batch_size=64
            )

    write(tmp_path / name, num_rows)
    write(tmp_path / f"small-{name}", 10)
    out = run_python(PEAK_GROWTH, f"{place}{tmp_path}/{name}", f"{place}{tmp_path}/small-{name}")
    count, growth = map(int, out.split())
    assert count == num_rows
    assert growth < (100 if is_parquet else 30) * mib, f"{growth / mib:.0f} MiB"
