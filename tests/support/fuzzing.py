"""Sources, shards and state files that nobody would write: no crash, no error but those documented, no row lost.

Properties and what they are tried on. The default tests take a few seconds, the same examples each time; those in
tests/slow take new ones for `FUZZ_SECONDS` seconds in all.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import HealthCheck, configuration, given, seed, settings

from stillhouse.pipeline.dataset import manifest
from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder import certified, index, keys, open_folder, partition
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.identity import compare_with_folder
from stillhouse.pipeline.folder.shard import ShardId, ShardInfo
from stillhouse.schemas import tables
from stillhouse.schemas.config import Config, ConfigError, SourceConfig
from stillhouse.stages.ingest import REASONS, Ingest
from stillhouse.stages.sources import SourceError, read_rows
from stillhouse.stages.sources.ids import MAX_ID_CHARACTERS
from tests.support.children import in_child

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir(), "stillhouse-hypothesis"))

CANARY = "answer-canary"
MAX_GROWTH_BYTES = 1 << 30
"""What an example may add to the address space: its files have kilobytes."""
NUM_EXAMPLES = 60
EXAMPLES_PER_ROUND = 300


Property = tuple[st.SearchStrategy[Any], Callable[[Any, Path], None]]


def check(strategy: st.SearchStrategy[Any], hold: Callable[[Any, Path], None], folder: Path, start: int, n: int) -> int:
    """Shows `hold` up to `n` examples made from the seed `start`. Returns how many it was."""
    count = 0

    @seed(start)
    @settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)
    @given(strategy)
    def example(value: Any) -> None:
        nonlocal count
        count += 1
        hold(value, folder)

    example()
    return count


def confined(work: Callable[[], object]) -> None:
    """`work` in a forked child, so that one which dies of it or takes all memory is a failure like any other."""

    def limited() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MAX_GROWTH_BYTES, used + MAX_GROWTH_BYTES))
        work()

    code = in_child(limited, timeout_s=30)
    assert code == 0, f"the child ended with {code}: 70 is an exception (above), below 0 a signal"


# ---------------------------------------------------------------------------------------------------------------------
# Damage


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, int, int, bytes]]:
    """What is done to bytes, wherever they are: (kind, place, other place, bytes)."""
    place = st.one_of(st.integers(0, 1 << 20), st.integers(-1500, -1))  # footers are at the end
    kinds = st.sampled_from(["flip", "flip", "set", "cut", "insert", "delete", "swap", "copy"])
    return draw(st.lists(st.tuples(kinds, place, place, st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))


def damaged(data: bytes, done: list[tuple[str, int, int, bytes]]) -> bytes:
    found = bytearray(data)
    for kind, first, second, payload in done:
        if not found:
            break
        a, b = first % len(found), second % len(found)
        if kind == "flip":
            found[a] ^= 1 << payload[0] % 8
        elif kind == "set":
            found[a] = payload[0]
        elif kind == "cut":
            del found[a:]
        elif kind == "insert":
            found[a:a] = payload
        elif kind == "delete":
            del found[a : a + len(payload)]
        elif kind == "swap":
            found[a], found[b] = found[b], found[a]
        elif kind == "copy":
            found[a : a + 64] = found[b : b + 64]
    return bytes(found)


# ---------------------------------------------------------------------------------------------------------------------
# Sources

hostile_texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "../../etc/passwd", "a/b", "a\nb", "a\0b", "\ud800", "\udfff\ud800", "%n%s", "{0.__class__}",
         "{{ 7*7 }}", "<script>", "\u2028", "\ufeff", "null", "x" * (MAX_ID_CHARACTERS + 1), "<|im_end|>",
         "y" * 1_000_000]
    ),
)  # fmt: skip
numbers = st.one_of(
    st.integers(), st.sampled_from([0, -1, 2**63, 10**400, -(10**400)]), st.floats(), st.booleans(), st.none()
)
ids = st.one_of(hostile_texts, numbers, st.sampled_from(["one", "two"]), st.lists(st.text(max_size=3), max_size=2))


def nested(depth: int) -> Any:
    value: Any = "leaf"
    for n in range(depth):
        value = [value] if n % 2 else {"content": value}
    return value


def contents(texts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    part = st.fixed_dictionaries({"type": st.sampled_from(["text", "text", "image_url", None]), "text": texts})
    return st.one_of(texts, texts, texts, numbers, st.lists(part, max_size=2), st.integers(1, 150).map(nested))


USERS = ("user", "human")
ANSWERERS = ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "tool", "function", "function_call", "observation")


@st.composite
def messages(draw: st.DrawFn, role_key: str, content_key: str) -> Any:
    role = draw(st.sampled_from([*USERS, *USERS, *USERS, "assistant", "gpt", "tool", "system", "narrator", None, 7]))
    # Whatever an answerer says holds the canary, and nothing else does.
    texts = st.just(CANARY) if role in ANSWERERS else hostile_texts
    content = draw(contents(texts)) if role not in ANSWERERS else draw(st.sampled_from([CANARY, [CANARY], None]))
    message = {role_key: role, content_key: content, "toxic": draw(st.sampled_from([True, False, None, "x"]))}
    for key in draw(st.sets(st.sampled_from([role_key, content_key, "toxic"]), max_size=1)):
        if draw(st.integers(0, 5)) == 0:
            del message[key]
    return message if draw(st.integers(0, 15)) else draw(st.sampled_from([None, "text", 3, []]))


@st.composite
def rows(draw: st.DrawFn) -> Any:
    conversation, id_key, role, content = draw(
        st.sampled_from(
            [
                ("conversation", "conversation_id", "role", "content"),
                ("conversation", "conversation_hash", "role", "content"),
                ("conversations", "id", "from", "value"),
                ("messages", "uuid", "role", "content"),
            ]
        )
    )
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(numbers, hostile_texts, st.lists(numbers, max_size=3), st.integers(90, 300).map(nested)))
    row = {
        conversation: draw(st.lists(messages(role, content), max_size=4)),
        id_key: draw(ids),
        "language": draw(st.one_of(st.sampled_from(["English", "French"]), hostile_texts, numbers)),
        "redacted": draw(numbers),
        "openai_moderation": draw(
            st.one_of(st.none(), numbers, st.lists(st.one_of(numbers, st.fixed_dictionaries({"flagged": numbers}))))
        ),
        "answer": CANARY,
    }
    for key in draw(st.sets(st.sampled_from(sorted(row)), max_size=2)):
        row[key] = draw(st.one_of(st.none(), numbers, hostile_texts, st.lists(numbers, max_size=2)))
        if draw(st.booleans()):
            del row[key]
    return row


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": zstandard.compress,
}


@st.composite
def sources(draw: st.DrawFn) -> tuple[list[tuple[str, bytes, int | None]], dict[str, Any]]:
    """Files as (name, bytes, rows where they are known: not in damaged ones), and keys of the configuration."""
    files = []
    for number in range(draw(st.integers(1, 3))):
        values = draw(st.lists(rows(), max_size=6))
        kind = draw(st.sampled_from(["jsonl", "json", "parquet", "csv"]))
        if kind == "parquet":
            data, name = parquet([value for value in values if isinstance(value, dict)], draw), f"{number}.parquet"
            expected = pq.read_metadata(io.BytesIO(data)).num_rows
        else:
            compression = draw(st.sampled_from(sorted(COMPRESS)))
            lines = [json.dumps(value, ensure_ascii=draw(st.booleans())) for value in values]
            text = "\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]" if kind == "json" else table(values)
            data = COMPRESS[compression](text.encode("utf-8", "surrogatepass"))
            name, expected = f"{number}.{kind}{compression}", len(values)
        if draw(st.booleans()):
            data, expected = damaged(data, draw(damages())), None
        files.append((name, data, expected))
    keys = {
        "format": draw(st.sampled_from(["auto", "auto", "lmsys", "sharegpt", "wildchat", "messages"])),
        "turns": draw(st.sampled_from(["first", "all"])),
        "rows_per_shard": draw(st.integers(1, 8)),
        "languages": draw(st.sampled_from([None, None, ["English"]])),
        "place": draw(st.sampled_from(["", "file://"])),  # the latter is read as object stores are
    }
    return files, keys


def table(values: list[Any]) -> str:
    """A CSV file of these rows, as `csv.DictWriter` prints them; not of what Python cannot write or nobody could read
    back."""
    out = io.StringIO(newline="")
    names = sorted({key for value in values if isinstance(value, dict) for key in value}) or ["prompt"]
    writer = csv.DictWriter(out, names, extrasaction="ignore", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(value if isinstance(value, dict) else {} for value in values)
    return out.getvalue()


def parquet(values: list[Any], draw: st.DrawFn) -> bytes:
    """A Parquet file of these rows. A column that Arrow cannot hold (mixed types, half a surrogate pair) becomes JSON
    text, as such data sets have it, or nothing but nulls."""
    columns: dict[str, Any] = {}
    for key in sorted({key for value in values for key in value}):
        column = [value.get(key) for value in values]
        try:
            columns[key] = pa.array(column)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, ValueError, TypeError):
            texts = [json.dumps(value) for value in column]
            columns[key] = pa.array(texts) if draw(st.booleans()) else pa.nulls(len(column), pa.list_(pa.int8()))
    sink = io.BytesIO()
    options = {
        "row_group_size": draw(st.sampled_from([None, 1, 3])),
        "compression": draw(st.sampled_from(["none", "snappy", "zstd"])),
        "use_dictionary": draw(st.booleans()),
        "write_page_checksum": draw(st.booleans()),
    }
    # Parquet has no struct without fields, and Arrow reads no schema deeper than 100.
    with contextlib.suppress(pa.ArrowNotImplementedError, OSError):
        pq.write_table(pa.table(columns), sink, **options)
        pq.read_metadata(pa.BufferReader(sink.getvalue()))
        return sink.getvalue()
    sink = io.BytesIO()
    pq.write_table(pa.table({"conversation": pa.nulls(len(values))}), sink, **options)
    return sink.getvalue()


def num_characters(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def every_row_is_accounted_for(example: tuple[list[tuple[str, bytes, int | None]], dict[str, Any]], at: Path) -> None:
    files, keys = example
    paths = []
    for name, data, _ in files:
        (at / name).write_bytes(data)
        paths.append(f"{keys['place']}{at / name}")
    config = Config.model_validate(
        {
            "run_dir": "run",
            "source": {"path": paths, "format": keys["format"], "name": "fuzz"},
            "ingest": {key: keys[key] for key in ("turns", "rows_per_shard", "languages")},
            "teacher": {"model": "./teacher", "max_model_len": 2_000},
            "sampling": {"max_tokens": 900},
        }
    )

    def work() -> None:
        per_file = []
        for path in paths:
            count = None
            with contextlib.suppress(SourceError):  # "a file that turns out not to be what its name says"
                count = sum(1 for _ in read_rows(SourceConfig(path=path)))
            per_file.append(count)
        for (name, _, expected), count in zip(files, per_file, strict=True):
            assert expected is None or count == expected, f"{name}: {count} rows, not {expected}"
        try:
            made = list(Ingest(config, num_characters)(read_rows(config.source)))
        except SourceError:
            assert None in per_file
            return
        records = [record for shard in made for record in shard.to_pylist()]
        for shard in made:
            assert shard.schema == tables.marked(tables.PROMPTS)
            shard.validate(full=True)
        assert [record["source_row"] for record in records] == list(range(sum(filter(None, per_file))))
        kept = [record for record in records if record["drop_reason"] is None]
        assert {record["drop_reason"] for record in records} <= {None, *REASONS}
        assert len({record["prompt_id"] for record in kept}) == len(kept)
        for record in kept:
            assert record["prompt_id"]
            assert record["user_turns"]
            assert record["source"] == "fuzz"
        for record in records:
            if record["drop_reason"] is not None:
                assert record["user_turns"] is None
                assert record["system_prompt"] is None
        if all(expected is not None for _, _, expected in files):  # damage may make a user's text of an answer's
            assert CANARY not in repr(records)

    confined(work)


# ---------------------------------------------------------------------------------------------------------------------
# Shards

EXPECTED = ShardId("screen", "00000.parquet", "hash")
LEDGER_ROW = {"prompt_id": "a", "source": "s", "source_row": 1, "reason": "x"}


def make_shard(number: int) -> tuple[bytes, pa.Table, ShardInfo]:
    table = pa.table(
        {
            "prompt_id": [f"{number}-{n}" for n in range(5)],
            "user_turns": [["words " * n, "ü\0\n"] for n in range(5)],
            "target_ids": pa.array([list(range(n * number)) for n in range(5)], pa.list_(pa.int32())),
            "prompt_scores": [{"profanity": n / 7} for n in range(5)],
        }
    )
    info = ShardInfo(*EXPECTED, 6, 5, 0, [LEDGER_ROW])
    return shards.encode(table, info), table, info


SHARDS = [make_shard(number) for number in (3, 4)]


@st.composite
def broken_shards(draw: st.DrawFn) -> bytes:
    first, second = (SHARDS[0][0], SHARDS[1][0])
    if draw(st.integers(0, 3)) == 0:
        a, b = draw(st.integers(0, len(first))), draw(st.integers(0, len(second)))
        first = first[:a] + second[b:]
        if draw(st.booleans()):
            return first
    return damaged(first, draw(damages()))


def damage_is_seen(data: bytes, at: Path) -> None:
    originals = {whole: (table, info) for whole, table, info in SHARDS}

    def work() -> None:
        store = open_folder(str(at))
        Path(at, "shard").write_bytes(data)
        for columns in (None, [], ["prompt_id"]):
            try:
                shard = shards.load(store, "shard", columns, EXPECTED)
            except DamagedError:
                assert data not in originals
            else:
                table, info = originals[data]
                assert shard.table.column_names == (table.column_names if columns is None else columns)
                assert not shard.table.num_columns or shard.table.equals(table.select(shard.table.column_names))
                assert shard.info == info
        # Counts are read from footers alone, of bytes that nobody has checked.
        for size in (None, len(data)):
            with contextlib.suppress(DamagedError):
                info, digest, _ = shards.read_footer(store, "shard", size)
                assert info in [info for _, _, info in SHARDS]
                assert isinstance(digest, str)

    confined(work)


# ---------------------------------------------------------------------------------------------------------------------
# State files

STATE_KEYS = (
    "num_shards",
    "num_rows",
    "config_hash",
    "deciding",
    "files",
    "error",
    "sha256",
    "rows",
    "ledger",
    "00000",
)
json_leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**12))
json_keys = st.one_of(st.text(max_size=4), st.sampled_from(STATE_KEYS))


def json_holding(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(json_leaves, st.lists(inner, max_size=3), st.dictionaries(json_keys, inner, max_size=4))


json_values = json_holding(json_holding(json_leaves))


@st.composite
def broken_state(draw: st.DrawFn) -> bytes:
    """Any bytes, any JSON, JSON that nests without end, or a real file that is damaged."""
    kind = draw(st.sampled_from(["bytes", "json", "deep", "real"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "json":
        return json.dumps(draw(json_values)).encode()
    if kind == "deep":
        return draw(st.sampled_from([b"[", b'{"config_hash":', b'{"num_shards":['])) * draw(st.integers(1, 100_000))
    return damaged(draw(st.sampled_from(REAL_STATE)), draw(damages()))


FACTS = index.ShardSummary("1", 2, 3, 4, 5, {"x": 1}, "a", "b")
MANIFEST = {"config_hash": "0", "files": [{"file": "data/train-00000-of-00001.parquet", "bytes": 2}], "rows": 3}
RUN_CONFIG: dict[str, Any] = {
    "run_dir": "/nowhere",
    "source": {"path": "/nowhere/a.jsonl"},
    "teacher": {"model": "/nowhere/teacher", "max_model_len": 100},
    "sampling": {"max_tokens": 10},
}
REAL_STATE = [
    json.dumps(certified.certified({"num_shards": 3, "num_rows": 30})).encode(),
    json.dumps(certified.certified(MANIFEST), indent=1).encode(),
    json.dumps({"config_hash": "0" * 64, "deciding": {"sampling.seed": 1}, "config": {}}).encode(),
    SHARDS[0][2].to_json(),
]


def state_is_right_or_refused(data: bytes, at: Path) -> None:
    store = open_folder(str(at / "run"))
    config = Config.model_validate({**RUN_CONFIG, "run_dir": store.url})
    for key in (keys.PARTITION, keys.MANIFEST, keys.TEACHER, keys.RUN):
        store.put(key, data)
    store.put("state/set_aside/screen/00000.json", data)
    with contextlib.suppress(FileNotFoundError):  # "before that": it is made again
        assert partition.read(store) == [f"{n:05d}.parquet" for n in range(3)]
    found = manifest.finished(store)
    assert found in (None, MANIFEST) or certified.certified(found)["sha256"].encode() in data
    with contextlib.suppress(ConfigError):
        compare_with_folder(config)
        raise AssertionError("run.json of another run was taken for this one's")
    assert isinstance(manifest.set_aside(config, store)[0], str)
    with contextlib.suppress(ValueError, TypeError):
        assert ShardInfo.from_json(data) == SHARDS[0][2]
    # What follows the digest of an index, with and without a digest that fits.
    for written in (data, f"{hashlib.sha256(data).hexdigest()}\n".encode() + data):
        facts = index.parse(written)
        assert all(isinstance(value, index.ShardSummary) for value in facts.values())


PROPERTIES: dict[str, Property] = {
    "sources": (sources(), every_row_is_accounted_for),
    "shards": (broken_shards(), damage_is_seen),
    "state": (broken_state(), state_is_right_or_refused),
}
