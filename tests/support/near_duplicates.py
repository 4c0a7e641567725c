"""Prompts that repeat each other, and how alike two texts are: exactly, without a line of the code under test.

Shape legend: N texts, V distinct shingles.
"""

import hashlib
import random
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from stillhouse.schemas import tables
from stillhouse.schemas.config import DedupeConfig
from stillhouse.stages import dedupe

NGRAM = 5
"""The default of `DedupeConfig`."""

UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR", "BOPOMOFO"}


def prompts(
    turns: Sequence[str | list[str]],
    ids: Sequence[str] | None = None,
    demoted: Sequence[str | None] | None = None,
    systems: Sequence[str | None] | None = None,
) -> pa.Table:
    """A prompts table; ids default to p0000, p0001, ...; `demoted` holds 'redacted', 'flagged' or None."""
    num = len(turns)
    why = list(demoted) if demoted is not None else [None] * num
    columns = {
        "prompt_id": list(ids) if ids is not None else [f"p{i:04d}" for i in range(num)],
        "user_turns": [[turn] if isinstance(turn, str) else turn for turn in turns],
        "system_prompt": list(systems) if systems is not None else [None] * num,
        "language": ["English"] * num,
        "redacted": [reason == "redacted" for reason in why],
        "moderation_flagged": [reason == "flagged" for reason in why],
        "num_prompt_tokens": [1] * num,
        "source": ["test"] * num,
        "source_row": list(range(num)),
    }
    return pa.table(columns, schema=tables.PROMPTS)


def run(shards: Sequence[pa.Table], config: DedupeConfig | None = None) -> pa.Table:
    """All three steps; the marked shards as one table."""
    config = config or DedupeConfig()
    sketch = dedupe.Sketch(config)
    assignments = dedupe.assign((sketch(shard) for shard in shards), config)
    return pa.concat_tables([dedupe.mark(*pair) for pair in zip(shards, assignments, strict=True)])


def reasons(*turns: str | list[str], config: DedupeConfig | None = None) -> list[str | None]:
    return run([prompts(turns)], config)["drop_reason"].to_pylist()


def variants(num: int, words: int = 60, seed: int = 0) -> list[str]:
    """Distinct texts of one template: near-duplicates of each other."""
    rng = random.Random(seed)
    template = " ".join(f"word{rng.randrange(10**6)}" for _ in range(words))
    return [f"{template} item{i}" for i in range(num)]


@cache
def _is_unspaced(char: str) -> bool:
    return unicodedata.name(char, "?").split()[0] in UNSPACED


def oracle_shingles(text: str, punctuation: bool = False) -> set[tuple[str, ...]]:
    """Runs of five units of the text in NFKC, case-folded; all of it as one where it is short. With `punctuation` it is
    among the units."""
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
        if _is_unspaced(char):
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
            if punctuation or char not in ".,;:!?،؛؟۔।॥。、":
                units.append(char)
            glue = False
    if num_words >= 2 * NGRAM:
        return {tuple(units[i : i + NGRAM]) for i in range(len(units) - NGRAM + 1)}
    return {("".join(flat).strip(),)}


def jaccard(left: set[Any], right: set[Any]) -> float:
    return len(left & right) / len(left | right)


def all_jaccards(sets: Sequence[set[Any]]) -> np.ndarray:
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
    positions = rng.sample(range(5, len(words) - 5), len(words) - 10)

    def replaced(num: int) -> list[str]:
        changed = list(words)
        for made, position in enumerate(positions[:num]):
            changed[position] = f"zq{made}x{rng.randrange(10**6)}"
        return changed

    low, high = 0, len(positions)  # as many replaced as leave it at or above the level
    while low < high:
        middle = (low + high + 1) // 2
        if jaccard(original, oracle_shingles(" ".join(replaced(middle)))) < level:
            high = middle - 1
        else:
            low = middle
    words = replaced(low)
    for _ in range(400):
        if jaccard(original, oracle_shingles(" ".join(words))) < level + 0.005:
            break
        words.append(f"yk{rng.randrange(10**6)}")
    similarity = jaccard(original, oracle_shingles(" ".join(words)))
    return " ".join(words) if level - 0.005 <= similarity < level + 0.005 else None


def varied(text: str, level: float, rng: random.Random) -> str:
    """`text`, of any script, with units replaced by others from it until its exact Jaccard similarity to `text` is
    below `level`."""
    original, parts = oracle_shingles(text), text.split() if " " in text else list(text)
    glue = " " if " " in text else ""
    while jaccard(original, oracle_shingles(glue.join(parts))) >= level:
        before = list(parts)
        parts[rng.randrange(len(parts))] = rng.choice(parts)
        if jaccard(original, oracle_shingles(glue.join(parts))) < level:
            return glue.join(before if rng.random() < 0.5 else parts)
    return glue.join(parts)


def digest() -> str:
    """A hash of everything that the three steps give on some texts."""
    texts = [*variants(50), "what is 2+2", "", "请用简单的语言解释一下什么是量子计算机", "x " * 3000]
    config = DedupeConfig()
    sketch = dedupe.Sketch(config)(prompts(texts))
    hash_ = hashlib.sha256()
    for table in (sketch, *dedupe.assign([sketch], config)):
        hash_.update(repr(table.to_pydict()).encode())
    return hash_.hexdigest()
