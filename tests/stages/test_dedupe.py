"""Dedupe's three steps: which row of a cluster is kept, that neither order nor shards matter, and what it costs."""

import hashlib
import os
import random
import subprocess
import sys
import time
import tracemalloc
import zlib
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasketch import MinHash

from stillhouse.schemas import tables
from stillhouse.schemas.config import DedupeConfig
from stillhouse.stages import dedupe
from stillhouse.stages.text.reading import reading
from stillhouse.stages.text.shingles import shingles
from tests.support.conversations import first_user_turns
from tests.support.data import ROOT
from tests.support.near_duplicates import digest, prompts, reasons, run, variants
from tests.support.questions import DIFFERENT, SAME

CONFIG = DedupeConfig()


def verdicts(table: pa.Table) -> dict[str, tuple[str, int, str | None]]:
    rows = table.select(["prompt_id", *dedupe.ASSIGNMENT.names]).to_pylist()
    return {row["prompt_id"]: (row["cluster_id"], row["cluster_size"], row["drop_reason"]) for row in rows}


@pytest.mark.parametrize(("max_per_cluster", "kept"), [(1, 1), (3, 3), (9, 6)])
def test_max_per_cluster_counts_different_prompts(max_per_cluster: int, kept: int) -> None:
    """Not how often each was asked, nor in how many spellings."""
    texts = [spelling for text in variants(6) for spelling in (text, text, f"{text}.")]
    table = run([prompts(texts)], DedupeConfig(max_per_cluster=max_per_cluster))
    expected: list[str | None] = []
    for i in range(6):
        expected += [None, dedupe.EXACT, dedupe.NEAR] if i < kept else [dedupe.NEAR] * 3
    assert table["drop_reason"].to_pylist() == expected
    assert table["cluster_size"].to_pylist() == [18] * 18
    assert set(table["cluster_id"].to_pylist()) == {"p0000"}


@pytest.mark.parametrize("why", ["redacted", "flagged"])
def test_a_demoted_row_is_not_the_one_to_keep(why: str) -> None:
    texts = variants(3)
    table = run([prompts([texts[0], texts[1], texts[2], texts[1]], demoted=[why, why, None, None])])
    assert verdicts(table) == {
        "p0000": ("p0002", 4, dedupe.NEAR),
        "p0001": ("p0002", 4, dedupe.NEAR),
        "p0002": ("p0002", 4, None),
        "p0003": ("p0002", 4, dedupe.NEAR),
    }
    table = run([prompts([texts[0], texts[0], texts[0]], ids=["a", "c", "b"], demoted=[why, None, None])])
    assert verdicts(table) == {"a": ("b", 3, dedupe.EXACT), "c": ("b", 3, dedupe.EXACT), "b": ("b", 3, None)}
    assert reasons("one of a kind") == [None]
    assert run([prompts(["one of a kind"], demoted=[why])])["drop_reason"].to_pylist() == [None]


def test_ids_are_ordered_by_code_point() -> None:
    ids = ["é", "a", "Z", "10", "9"]
    table = run([prompts(["same text"] * 5, ids=ids)])
    assert set(table["cluster_id"].to_pylist()) == {min(ids)} == {"10"}


def test_a_singleton_is_its_own_cluster() -> None:
    assert verdicts(run([prompts(["one of a kind", "quite another thing"])])) == {
        "p0000": ("p0000", 1, None),
        "p0001": ("p0001", 1, None),
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_verdicts_do_not_depend_on_order_or_shards(seed: int) -> None:
    rng = random.Random(seed)
    real_prompts = first_user_turns(500)
    texts = real_prompts[:150] + real_prompts[:20] + variants(80) + variants(40, words=22, seed=1)
    why = [rng.choice([None, None, "redacted"]) for _ in texts]
    ids = [f"{rng.randrange(10**9):x}" for _ in texts]
    config = DedupeConfig(max_per_cluster=2)
    rows = list(zip(texts, ids, why, strict=True))
    expected = verdicts(run([prompts(texts, ids, why)], config))
    assert {reason for _, _, reason in expected.values()} == {None, dedupe.EXACT, dedupe.NEAR}

    rng.shuffle(rows)
    cuts = sorted(rng.choices(range(len(rows) + 1), k=5))
    bounds = [0, 0, *cuts, len(rows), len(rows)]  # the first and the last shard are empty
    shards = [
        prompts([r[0] for r in part], [r[1] for r in part], [r[2] for r in part])
        for part in (rows[i:j] for i, j in pairwise(bounds))
    ]
    table = run(shards, config)
    assert table["prompt_id"].to_pylist() == [row[1] for row in rows]
    assert verdicts(table) == expected


def test_the_same_in_every_process() -> None:
    """Python's hashes, and so the order of a set, differ between processes with different seeds."""
    seed = "77" if os.environ.get("PYTHONHASHSEED") == "0" else "0"
    script = "from tests.support.near_duplicates import digest; print(digest())"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == digest()


def test_signatures_are_those_of_datasketch() -> None:
    """Also where the shingles go in by pieces; and pinned, so that no new datasketch changes them unnoticed."""
    rng = random.Random(0)
    texts = ["what is 2+2", " ".join(f"w{rng.randrange(10**6)}" for _ in range(9000))]
    config = DedupeConfig(num_perm=32, seed=7)
    sketch = dedupe.Sketch(config)(prompts(texts))
    for text, signature in zip(texts, sketch["signature"].to_pylist(), strict=True):
        minhash = MinHash(num_perm=32, seed=7, scheme="affine32", hashfunc=zlib.crc32)
        minhash.update_batch(shingles(reading(text), config.ngram))
        assert signature == minhash.hashvalues.tolist()
    assert sketch["signature"][0].as_py()[:3] == [3188188000, 564681835, 963725161]


def test_sketches_are_what_they_were() -> None:
    """Pinned before texts were read together: sketches are stored, and a run may go on with another version."""
    texts = first_user_turns(300) + [text for pair in SAME + DIFFERENT for text in pair]
    turns = [[text, *texts[i : i + i % 3]] for i, text in enumerate(texts)]
    systems = [[None, "", " Be brief. ", "Réponds en français!"][i % 4] for i in range(len(turns))]
    shard = prompts(turns, systems=systems)
    scored = shard.append_column("answers", pa.array([[text, "Yes."] for text in reversed(texts)]))
    digests = []
    for table in (shard, scored):
        sketch = dedupe.Sketch(CONFIG)(table)
        digests.append(hashlib.blake2b(repr(sketch.to_pydict()).encode(), digest_size=8).hexdigest())
    assert digests == ["83376a778e59c142", "c3e77028df3100bd"]


def test_a_very_long_text_needs_little_memory() -> None:
    rng = random.Random(0)
    text = "".join(chr(0x4E00 + rng.randrange(20000)) for _ in range(100_000))
    sketch = dedupe.Sketch(CONFIG)
    tracemalloc.start()
    table = sketch(prompts([text, text + "。"]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 37e6  # with all shingles permuted at once it is 113 MB
    assert next(dedupe.assign([table], CONFIG))["drop_reason"].to_pylist() == [None, dedupe.NEAR]


def test_a_large_cluster_of_spam_takes_seconds() -> None:
    texts = variants(5000)
    sketch = dedupe.Sketch(CONFIG)(prompts(texts))
    started = time.monotonic()
    (assignment,) = dedupe.assign([sketch], CONFIG)
    assert time.monotonic() - started < 20
    assert assignment["drop_reason"].null_count == 1
    assert set(assignment["cluster_size"].to_pylist()) == {5000}


def test_no_rows_and_no_shards() -> None:
    empty = dedupe.Sketch(CONFIG)(prompts([]))
    assert empty.schema == dedupe.sketch_schema(CONFIG.num_perm)
    assert list(dedupe.assign([], CONFIG)) == []
    first, second = dedupe.assign([empty, empty], CONFIG)
    assert first.schema == second.schema == dedupe.ASSIGNMENT
    assert (first.num_rows, second.num_rows) == (0, 0)
    assert dedupe.mark(prompts([]), first).schema == tables.marked(tables.DEDUPED)

    one = dedupe.Sketch(CONFIG)(prompts(["one of a kind"]))
    assert [table.num_rows for table in dedupe.assign([empty, one, empty], CONFIG)] == [0, 1, 0]


def test_schemas_and_rows_are_kept() -> None:
    shard = prompts(variants(4))
    table = run([shard])
    assert table.schema == tables.marked(tables.DEDUPED)
    assert table.select(tables.PROMPTS.names) == shard
    assert dedupe.Sketch(CONFIG)(shard).schema == dedupe.sketch_schema(128)


def test_sketches_survive_parquet_slices_and_pieces(tmp_path: Path) -> None:
    shard = prompts([*variants(6), *variants(6, seed=1)])
    sketch = dedupe.Sketch(CONFIG)(shard)
    (expected,) = dedupe.assign([sketch], CONFIG)
    pq.write_table(sketch, tmp_path / "sketch.parquet", row_group_size=5)
    read = pq.read_table(tmp_path / "sketch.parquet")
    assert list(dedupe.assign([read], CONFIG)) == [expected]
    sliced = pa.concat_tables([sketch.slice(0, 5), sketch.slice(5, 0), sketch.slice(5)])
    assert pa.concat_tables(dedupe.assign([sliced.slice(0, 7), sliced.slice(7)], CONFIG)) == expected
    pieces = pa.concat_tables([shard.slice(0, 5), shard.slice(5)])
    assert dedupe.Sketch(CONFIG)(pieces) == sketch


def test_what_does_not_fit_is_refused() -> None:
    shard = prompts(["one of a kind", "quite another thing"])
    sketch = dedupe.Sketch(CONFIG)(shard)
    with pytest.raises(ValueError, match=r"sketch of shard 1 .* 64 permutations; sketch all shards") as error:
        dedupe.assign([dedupe.Sketch(DedupeConfig(num_perm=64))(shard), sketch], DedupeConfig(num_perm=64))
    assert "kind" not in str(error.value)
    (assignment,) = dedupe.assign([sketch], CONFIG)
    with pytest.raises(ValueError, match=r"has 1 rows and its assignment 2; delete"):
        dedupe.mark(shard.slice(0, 1), assignment)
