"""`stages.dedupe`: what counts as a repeat, against exact Jaccard similarity computed another way.

Shape legend: N texts, V distinct shingles, P permutations, E pairs.
"""

import hashlib
import os
import random
import subprocess
import sys
import time
import tracemalloc
import unicodedata
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasketch import MinHash
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from stillhouse.schemas import tables
from stillhouse.schemas.config import DedupeConfig
from stillhouse.stages import dedupe
from stillhouse.stages.text import minhash
from stillhouse.stages.text.shingles import shingles
from tests.support.data import CONVERSATIONS, ROOT

CONFIG = DedupeConfig()


def prompts(
    turns: Sequence[str | list[str]], ids: Sequence[str] | None = None, demoted: Sequence[str | None] | None = None
) -> pa.Table:
    """A prompts table; ids default to p0000, p0001, ...; `demoted` holds 'redacted', 'flagged' or None."""
    num = len(turns)
    why = list(demoted) if demoted is not None else [None] * num
    columns = {
        "prompt_id": list(ids) if ids is not None else [f"p{i:04d}" for i in range(num)],
        "user_turns": [[turn] if isinstance(turn, str) else turn for turn in turns],
        "system_prompt": [None] * num,
        "language": ["English"] * num,
        "redacted": [reason == "redacted" for reason in why],
        "moderation_flagged": [reason == "flagged" for reason in why],
        "num_prompt_tokens": [1] * num,
        "source": ["test"] * num,
        "source_row": list(range(num)),
    }
    return pa.table(columns, schema=tables.PROMPTS)


def run(shards: Sequence[pa.Table], config: DedupeConfig = CONFIG) -> pa.Table:
    """All three steps; the marked shards as one table."""
    sketch = dedupe.Sketch(config)
    assignments = dedupe.assign((sketch(shard) for shard in shards), config)
    return pa.concat_tables([dedupe.mark(*pair) for pair in zip(shards, assignments, strict=True)])


def reasons(*turns: str | list[str], config: DedupeConfig = CONFIG) -> list[str | None]:
    return run([prompts(turns)], config)["drop_reason"].to_pylist()


def verdicts(table: pa.Table) -> dict[str, tuple[str, int, str | None]]:
    rows = table.select(["prompt_id", *dedupe.ASSIGNMENT.names]).to_pylist()
    return {row["prompt_id"]: (row["cluster_id"], row["cluster_size"], row["drop_reason"]) for row in rows}


# The oracle: shingles and similarity without a line of the code under test.

UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR", "BOPOMOFO"}


def oracle_shingles(text: str, config: DedupeConfig = CONFIG) -> set[tuple[str, ...]]:
    text = unicodedata.normalize("NFKC", text).casefold()
    units: list[str] = []
    glue, num_words = False, 0
    spaced = True  # whether the next character starts a new run of white space
    flat: list[str] = []
    for char in text:
        if char.isspace():
            glue = False
            if not spaced:
                flat.append(" ")
            spaced = True
            continue
        spaced = False
        flat.append(char)
        if unicodedata.name(char, "?").split()[0] in UNSPACED:
            units.append(char)
            num_words += char.isalnum() or unicodedata.category(char) in ("Mn", "Mc")
            glue = False
        elif char.isalnum() or char == "_":
            if glue:
                units[-1] += char
            else:
                units.append(char)
                num_words += 1
            glue = True
        else:
            units.append(char)
            glue = False
    if num_words >= 2 * config.ngram:
        return {tuple(units[i : i + config.ngram]) for i in range(len(units) - config.ngram + 1)}
    if flat and flat[-1] == " ":
        flat.pop()
    edge = ["edge"] * (config.char_ngram - 1)
    flat = edge + flat + edge
    return {tuple(flat[i : i + config.char_ngram]) for i in range(len(flat) - config.char_ngram + 1)}


def jaccard(left: set, right: set) -> float:
    return len(left & right) / len(left | right)


def all_jaccards(sets: Sequence[set]) -> np.ndarray:
    """[N, N], by one sparse product."""
    number: dict[object, int] = {}
    indices = [number.setdefault(item, len(number)) for items in sets for item in items]
    sizes = np.array([len(items) for items in sets])
    member_NV = csr_array(
        (np.ones(len(indices), np.int32), indices, np.r_[0, np.cumsum(sizes)]), shape=(len(sets), len(number))
    )
    common_NN = (member_NV @ member_NV.T).toarray()
    return common_NN / np.maximum(sizes[:, None] + sizes[None, :] - common_NN, 1)


def edited(text: str, level: float, rng: random.Random) -> str | None:
    """`text` with words replaced, then words added at its end, until its exact Jaccard similarity to `text` is in
    [level - 0.005, level + 0.005); None if that cannot be had."""
    original = oracle_shingles(text)
    words = text.split()
    made = 0
    for position in rng.sample(range(5, len(words) - 5), len(words) - 10):
        trial = [*words[:position], f"zq{made}x{rng.randrange(10**6)}", *words[position + 1 :]]
        if jaccard(original, oracle_shingles(" ".join(trial))) < level:
            break
        words, made = trial, made + 1
    for _ in range(400):
        if jaccard(original, oracle_shingles(" ".join(words))) < level + 0.005:
            break
        words.append(f"yk{rng.randrange(10**6)}")
    similarity = jaccard(original, oracle_shingles(" ".join(words)))
    return " ".join(words) if level - 0.005 <= similarity < level + 0.005 else None


@pytest.fixture(scope="module")
def real_prompts() -> list[str]:
    """2,000 first user turns, repeats among them as they come."""
    column = pq.read_table(CONVERSATIONS, columns=["conversation"])["conversation"].slice(0, 4000).to_pylist()
    first = [next((m["content"] for m in turns if m["role"] == "user"), None) for turns in column]
    return [text for text in first if text is not None][:2000]


LEVELS = (0.95, 0.9, 0.8, 0.6)


def test_minhash_against_exact_jaccard(real_prompts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    bases = [text for text in real_prompts if 60 <= len(text.split()) <= 400]
    texts, planted = list(real_prompts), {}
    for level in LEVELS:
        rng.shuffle(bases)
        pairs = [(base, copy) for base in bases[:90] if (copy := edited(base, level, rng)) is not None][:60]
        assert len(pairs) >= 50, f"only {len(pairs)} pairs could be planted at {level}"
        planted[level] = [(len(texts) + 2 * i, len(texts) + 2 * i + 1) for i in range(len(pairs))]
        texts += [text for pair in pairs for text in pair]

    exact_NN = all_jaccards([oracle_shingles(text) for text in texts])
    ours_NN = all_jaccards([shingles(text, CONFIG.ngram, CONFIG.char_ngram) for text in texts])
    np.testing.assert_allclose(ours_NN, exact_NN, atol=1e-12)

    sketch = dedupe.Sketch(CONFIG)(prompts(texts))
    signature_NP = np.array(sketch["signature"].to_pylist(), np.uint32)
    edges = np.concatenate(list(minhash.joined_pairs(signature_NP, CONFIG.threshold)))
    (assignment,) = dedupe.assign([sketch], CONFIG)
    _, cluster_N = np.unique(assignment["cluster_id"].to_numpy(), return_inverse=True)

    # Each planted pair on its own, so that no third text connects it.
    with capsys.disabled():
        print(f"\n{len(texts)} texts, exact Jaccard of all pairs\nplanted at  pairs  joined  recall")
        recall = {}
        for level, pairs in planted.items():
            joined = 0
            for pair in pairs:
                found = np.concatenate(list(minhash.joined_pairs(signature_NP[list(pair)], CONFIG.threshold)))
                joined += len(found) > 0
            recall[level] = joined / len(pairs)
            print(f"{level:10} {len(pairs):6} {joined:7} {recall[level]:7.3f}")

        upper = np.triu(np.ones_like(exact_NN, bool), k=1)
        same_NN = cluster_N[:, None] == cluster_N[None, :]
        print("all pairs at or above  pairs  same cluster  recall")
        for level in (*LEVELS, 0.5):
            at_NN = upper & (exact_NN >= level)
            hits = (at_NN & same_NN).sum()
            print(f"{level:21} {at_NN.sum():6} {hits:13} {hits / at_NN.sum():7.3f}")
            recall["all", level] = hits / at_NN.sum()
        edge_E = exact_NN[edges[:, 0], edges[:, 1]]
        in_cluster = exact_NN[upper & same_NN]
        print("below  joined pairs  same-cluster pairs")
        for level in (0.8, 0.75, 0.7, 0.6):
            print(f"{level:5} {(edge_E < level).mean():12.4f} {(in_cluster < level).mean():18.4f}")
        print(f"joined pairs {len(edge_E)}, least similar {edge_E.min():.3f}; same-cluster {in_cluster.min():.3f}")

    assert recall[0.95] >= 0.98
    assert recall[0.9] >= 0.98
    assert recall["all", 0.9] >= 0.98
    assert recall[0.6] == 0
    assert edge_E.min() >= 0.6


def test_bands_lose_nothing_at_the_threshold() -> None:
    assert minhash.bands(0.8, 128) == (18, 7)
    assert minhash.bands(1.0, 128) == (1, 128)
    assert minhash.bands(0.01, 16) == (16, 1)
    for threshold in (0.5, 0.7, 0.9):
        num_bands, num_rows = minhash.bands(threshold, 256)
        assert num_bands * num_rows <= 256
        assert 1 - (1 - threshold**num_rows) ** num_bands >= 0.95
        assert 1 - (1 - threshold ** (num_rows + 1)) ** (256 // (num_rows + 1)) < 0.95


def brute_force_components(signature_NP: np.ndarray, threshold: float) -> np.ndarray:
    """Components of all pairs that share a band and agree in `threshold` of the slots."""
    num_bands, num_rows = minhash.bands(threshold, signature_NP.shape[1])
    equal_NNP = signature_NP[:, None, :] == signature_NP[None, :, :]
    shared = equal_NNP[:, :, : num_bands * num_rows].reshape(*equal_NNP.shape[:2], num_bands, num_rows)
    graph = shared.all(axis=3).any(axis=2) & (equal_NNP.mean(axis=2) >= threshold)
    return connected_components(csr_array(graph), directed=False)[1]


@pytest.mark.parametrize("keep", [0.83, 0.88, 0.92, 0.97])
def test_groups_of_any_size_connect_what_all_pairs_connect(keep: float) -> None:
    """Families whose members agree at about keep squared: bands full of unlike, half alike and alike texts."""
    rng = np.random.default_rng(int(keep * 100))
    families = []
    for size in (300, 60, 33, 32, 5, 2, 1):
        own_NP = rng.integers(0, 2**32, (size, 64), dtype=np.uint32)
        families.append(np.where(rng.random((size, 64)) < keep, own_NP[0], own_NP))
    signature_NP = rng.permutation(np.concatenate(families))
    edges = np.concatenate(list(minhash.joined_pairs(signature_NP, 0.75)))
    num = len(signature_NP)
    ones = np.ones(len(edges), bool)
    found = connected_components(csr_array((ones, (edges[:, 0], edges[:, 1])), shape=(num, num)), directed=False)[1]
    expected = brute_force_components(signature_NP, 0.75)
    np.testing.assert_array_equal(found[:, None] == found[None, :], expected[:, None] == expected[None, :])


def test_exactly_at_the_threshold_is_joined() -> None:
    signature_NP = np.arange(200, dtype=np.uint32).reshape(2, 100)
    signature_NP[1, :55] = signature_NP[0, :55]
    assert sum(len(pairs) for pairs in minhash.joined_pairs(signature_NP, 0.55)) == 1
    signature_NP[1, 0] = 1000
    assert sum(len(pairs) for pairs in minhash.joined_pairs(signature_NP, 0.55)) == 0


def test_equal_after_normalisation() -> None:
    assert reasons("Write  a poem", "write a POEM\n", "ｗｒｉｔｅ a poem", "Write a poem!!!!!!!!!!!!!!!!!") == [
        None,
        dedupe.EXACT,
        dedupe.EXACT,
        None,
    ]


def test_turns_are_told_apart() -> None:
    text = "please explain the difference between a list and a tuple in python"
    table = run([prompts([[text], [text], [text, "and now in french, with examples of both kinds of thing"]])])
    assert table["drop_reason"].to_pylist() == [None, dedupe.EXACT, None]
    assert reasons(["a b"], ["a", "b"]) == [None, dedupe.NEAR]


def test_short_prompts_are_neither_merged_wholesale_nor_skipped() -> None:
    short = [
        "hi",
        "hello",
        "hey",
        "ok",
        "yes",
        "no",
        "thanks",
        "who are you",
        "tell me a joke",
        "write code",
        "?",
        "1",
        "",
    ]
    assert reasons(*short) == [None] * len(short)
    assert reasons("please tell me a funny joke right now", "please tell me a funny joke right now!") == [
        None,
        dedupe.NEAR,
    ]
    assert reasons("", "  \n") == [None, dedupe.EXACT]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("what is 2+2", "what is 2+3"),
        ("what is 2+2", "what is 3+2"),
        ("capital of austria", "capital of australia"),
        ("translate cat", "translate rat"),
    ],
)
def test_short_questions_that_differ_in_a_character(left: str, right: str) -> None:
    assert reasons(left, right) == [None, None]


def test_an_edit_at_the_end_weighs_as_much_as_one_in_the_middle() -> None:
    text = "abcdefghijklmnopqrst"
    whole = shingles(text, CONFIG.ngram, CONFIG.char_ngram)
    similarities = {
        round(jaccard(whole, shingles(f"{text[:i]}#{text[i + 1 :]}", CONFIG.ngram, CONFIG.char_ngram)), 9)
        for i in range(len(text))
    }
    assert similarities == {round((24 - 5) / (24 + 5), 9)}


def test_a_full_stop_does_not_change_the_kind_of_shingle() -> None:
    nine = "write a short poem about the old grey sea"
    assert reasons(nine, f"{nine}.") == [None, dedupe.NEAR]


@pytest.mark.parametrize(
    ("base", "near", "other"),
    [
        (
            "请用简单的语言解释一下什么是量子计算机，它和普通的计算机有什么不同，以及它在未来可能会有哪些实际的应用场景和限制",
            "请用简单的语言解释一下什么是量子计算机，它和普通的计算机有什么不同，以及它在未来可能会有哪些实际的应用场景",
            "请写一首关于秋天的诗，要求每行七个字，押韵，并且包含落叶、月亮和思乡这三个意象，最后再给出一段简短的赏析文字说明",
        ),
        (
            "東京から京都まで新幹線で行く場合の所要時間と料金を教えてください。また、途中で立ち寄れるおすすめの観光地もいくつか紹介してください。",
            "東京から京都まで新幹線で行く場合の所要時間と料金を教えてください。また、途中で立ち寄れるおすすめの観光地もいくつか紹介してください!",
            "日本の伝統的な家庭料理の作り方を初心者にも分かるように説明してください。材料と手順を順番に書いて、注意点も最後にまとめてください。",
        ),
        (
            "ช่วยอธิบายวิธีทำต้มยำกุ้งแบบง่ายๆ สำหรับคนที่ไม่เคยทำอาหารมาก่อน พร้อมบอกส่วนผสมทั้งหมดที่ต้องใช้",
            "ช่วยอธิบายวิธีทำต้มยำกุ้งแบบง่ายๆ สำหรับคนที่ไม่เคยทำอาหารมาก่อน พร้อมบอกส่วนผสมทั้งหมดที่ต้องใช้ครับ",
            "กรุณาเขียนจดหมายลาออกจากงานอย่างสุภาพ โดยระบุเหตุผลส่วนตัวและขอบคุณบริษัทสำหรับโอกาสที่ได้รับตลอดมา",
        ),
    ],
    ids=["chinese", "japanese", "thai"],
)
def test_scripts_without_spaces(base: str, near: str, other: str) -> None:
    assert len(base.split()) < 2 * CONFIG.ngram
    assert len(next(iter(shingles(base, CONFIG.ngram, CONFIG.char_ngram))).decode().split()) == CONFIG.ngram
    assert reasons(base, near, other) == [None, dedupe.NEAR, None]


def test_short_chinese_questions() -> None:
    assert reasons("什么是人工智能", "什么是人工呼吸", "你好", "您好") == [None] * 4


def variants(num: int, words: int = 60, seed: int = 0) -> list[str]:
    """Distinct texts of one template: near-duplicates of each other."""
    rng = random.Random(seed)
    template = " ".join(f"word{rng.randrange(10**6)}" for _ in range(words))
    return [f"{template} item{i}" for i in range(num)]


@pytest.mark.parametrize(("max_per_cluster", "kept"), [(1, 1), (3, 3), (9, 6)])
def test_max_per_cluster_counts_distinct_texts(max_per_cluster: int, kept: int) -> None:
    texts = [text for text in variants(6) for _ in range(2)]
    table = run([prompts(texts)], DedupeConfig(max_per_cluster=max_per_cluster))
    expected = []
    for i in range(6):
        expected += [None, dedupe.EXACT] if i < kept else [dedupe.NEAR, dedupe.NEAR]
    assert table["drop_reason"].to_pylist() == expected
    assert table["cluster_size"].to_pylist() == [12] * 12
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
def test_verdicts_do_not_depend_on_order_or_shards(real_prompts: list[str], seed: int) -> None:
    rng = random.Random(seed)
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


DIGEST_PROGRAM = """
import hashlib, sys
from tests.stages import test_dedupe as t
print(t.digest())
"""


def digest() -> str:
    """Of everything the three steps give on some texts, to the byte."""
    texts = [*variants(50), "what is 2+2", "", "请用简单的语言解释一下什么是量子计算机", "x " * 3000]
    sketch = dedupe.Sketch(CONFIG)(prompts(texts))
    hash_ = hashlib.sha256()
    for table in (sketch, *dedupe.assign([sketch], CONFIG)):
        hash_.update(repr(table.to_pydict()).encode())
    return hash_.hexdigest()


@pytest.mark.parametrize("hash_seed", ["0", "77"])
def test_the_same_in_every_process(hash_seed: str) -> None:
    root = ROOT
    result = subprocess.run(
        [sys.executable, "-c", DIGEST_PROGRAM],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
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
        minhash.update_batch(shingles(text, config.ngram, config.char_ngram))
        assert signature == minhash.hashvalues.tolist()
    assert sketch["signature"][0].as_py()[:3] == [185265540, 514782858, 302966205]


def test_a_very_long_text_needs_little_memory() -> None:
    rng = random.Random(0)
    text = "".join(chr(0x4E00 + rng.randrange(20000)) for _ in range(400_000))
    sketch = dedupe.Sketch(CONFIG)
    tracemalloc.start()
    table = sketch(prompts([text, text + "。"]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6
    assert dedupe.assign([table], CONFIG)[0]["drop_reason"].to_pylist() == [None, dedupe.NEAR]


def test_a_large_cluster_of_spam_takes_seconds() -> None:
    texts = variants(5000)
    sketch = dedupe.Sketch(CONFIG)(prompts(texts))
    started = time.monotonic()
    (assignment,) = dedupe.assign([sketch], CONFIG)
    assert time.monotonic() - started < 20
    assert assignment["drop_reason"].null_count == 1
    assert set(assignment["cluster_size"].to_pylist()) == {5000}


def test_a_large_family_that_is_not_similar_enough_takes_seconds() -> None:
    """The worst case: one band holds thousands of texts that all have to be compared, and none is joined."""
    rng = np.random.default_rng(0)
    own_NP = rng.integers(0, 2**32, (5000, 128), dtype=np.uint32)
    signature_NP = np.where(rng.random((5000, 128)) < 0.8, own_NP[0], own_NP)
    started = time.monotonic()
    pairs = np.concatenate(list(minhash.joined_pairs(signature_NP, 0.8)))
    assert time.monotonic() - started < 20
    equal_E = (signature_NP[pairs[:, 0]] == signature_NP[pairs[:, 1]]).mean(axis=1)
    assert equal_E.min() >= 0.8


def test_no_rows_and_no_shards() -> None:
    empty = dedupe.Sketch(CONFIG)(prompts([]))
    assert empty.schema == dedupe.sketch_schema(CONFIG.num_perm)
    assert dedupe.assign([], CONFIG) == []
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
    assert dedupe.assign([read], CONFIG) == [expected]
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
