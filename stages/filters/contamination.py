"""Finds items of lists in texts, by the runs of words that they share: of evaluation sets, of jailbreak templates.

An item is found where runs of `ngram` words, standing in the text in any order and any wrapping, cover `threshold` of
it; a shorter one where it is a whole sentence, line or text. Runs that many items share are phrases, and count nothing.

Shape legend: N texts, P places in items, G runs of a text.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillhouse.schemas.config import MatchesConfig
from stillhouse.schemas.tables import EVIDENCE_LABELS
from stillhouse.stages.text.ngrams import WORD, Words

CONTAMINATION = EVIDENCE_LABELS["contaminated"]
JAILBREAK = EVIDENCE_LABELS["jailbreak_template"]
MIN_LETTERS = 15
"""What the units of an item must count (3 words): a shorter one, such as "Paris", would be found anywhere."""
LONGEST_WHOLE = 3
"""So many runs' words may an item have that is looked for as a whole too: short ones can consist of phrases."""
LEAST = 1.5
"""Matches must hold so many runs' words, or all of the item: 8 words of a question of 10 may be a figure of speech."""


class Contamination:
    """A classifier (`filters.classifier`) with one label, the share of an item that a text holds: `contamination` for
    items of evaluation sets.

    The index is two sorted arrays and two beside them: 20 bytes for each run of words of the sets.
    """

    def __init__(self, config: MatchesConfig, items: Iterable[tuple[str, str]], label: str = CONTAMINATION) -> None:
        """`items`: texts with the names of their items; an item may have several, and each is looked for by itself."""
        self.labels: tuple[str, ...] = (label,)
        self.thresholds = {label: config.threshold}
        self.num_too_short = 0
        """Texts of the sets that are too short to be told."""
        self._ngram = config.ngram
        self._names: list[str] = []
        totals, parts, shorts = [], [], []
        for name, text in items:
            words = Words(text)
            if words.total < MIN_LETTERS:
                self.num_too_short += 1
                continue
            found, number = words.runs(config.ngram), len(self._names)
            if words.total <= LONGEST_WHOLE * config.ngram * WORD:
                shorts.append((words.whole(), number))
            parts.append((found.hashes, np.full(len(found.hashes), number, np.int32), found.starts, found.lengths))
            self._names.append(name)
            totals.append(words.total)
        self._wholes = dict(reversed(shorts))
        self._totals = np.array(totals, np.int64)
        hashes, texts, starts, lengths = (
            np.concatenate([np.zeros(0, kind), *(part[i] for part in parts)])
            for i, kind in enumerate((np.uint64, np.int32, np.int32, np.int32))
        )
        order = np.argsort(hashes, kind="stable")
        order = order[_is_rare(hashes[order], self._items_of(texts[order]), config.max_items)]
        self._hashes, self._texts = hashes[order], texts[order]
        self._starts, self._lengths = starts[order], lengths[order]

    @property
    def num_bytes(self) -> int:
        """What the index's arrays take."""
        return sum(array.nbytes for array in (self._hashes, self._texts, self._starts, self._lengths))

    @property
    def num_runs(self) -> int:
        return len(self._hashes)

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shares [N, 1] of the item that a text holds most of."""
        return np.array([[self.find(text)[0]] for text in texts], np.float32).reshape(-1, 1)

    def find(self, text: str) -> tuple[float, str | None]:
        """The item that `text` holds most of: the share of it, 0 to 1, and its name; (0, None) where there is none."""
        words = Words(text)
        for part in words.sentences(MIN_LETTERS, LONGEST_WHOLE * self._ngram * WORD):
            if (item := self._wholes.get(part)) is not None:
                return 1.0, self._names[item]
        found = words.runs(self._ngram).hashes
        left_G = np.searchsorted(self._hashes, found, side="left")
        is_known_G = left_G < len(self._hashes)
        is_known_G[is_known_G] = self._hashes[left_G[is_known_G]] == found[is_known_G]
        if not is_known_G.any():
            return 0.0, None
        left_G = left_G[is_known_G]
        right_G = np.searchsorted(self._hashes, found[is_known_G], side="right")
        place_P = np.unique(np.concatenate([np.arange(a, b) for a, b in zip(left_G, right_G, strict=True)]))
        shares = self._shares(place_P)
        best = max(shares, key=lambda item: (shares[item], -item))
        return (shares[best], self._names[best]) if shares[best] else (0.0, None)

    def found(self, texts: Sequence[str], row_N: NDArray[np.int64], reasons_R: NDArray[np.object_]) -> pa.Array:
        """What goes into the column `EVIDENCE`: for the rows that are dropped for their items, the name of the item
        that one of their texts holds most of. Text i belongs to row `row_N[i]`."""
        is_dropped_R = np.array([EVIDENCE_LABELS.get(reason) in self.labels for reason in reasons_R], bool)
        best: dict[int, tuple[float, str | None]] = {}
        for i in np.flatnonzero(is_dropped_R[row_N]).tolist():
            row, found = int(row_N[i]), self.find(texts[i])
            if found[0] > best.get(row, (0.0, None))[0]:
                best[row] = found
        return pa.array([best.get(row, (0.0, None))[1] for row in range(len(reasons_R))], pa.string())

    def _shares(self, place_P: NDArray[np.int64]) -> dict[int, float]:
        """By text of the sets, the share of it that the runs at these places cover together."""
        covered: dict[int, int] = {}
        end: dict[int, int] = {}
        for place in place_P[np.lexsort((self._starts[place_P], self._texts[place_P]))].tolist():
            text, start = int(self._texts[place]), int(self._starts[place])
            stop, reached = start + int(self._lengths[place]), end.get(text, 0)
            covered[text] = covered.get(text, 0) + max(stop - max(start, reached), 0)
            end[text] = max(stop, reached)
        least = LEAST * self._ngram * WORD
        totals = {text: int(self._totals[text]) for text in covered}
        return {
            text: count / totals[text] if count >= min(least, totals[text]) else 0.0 for text, count in covered.items()
        }

    def _items_of(self, text_P: NDArray[np.int32]) -> NDArray[np.int64]:
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self._names))}
        of_text = np.array([numbers[name] for name in self._names], np.int64)
        return of_text[text_P]


def _is_rare(hash_P: NDArray[np.uint64], item_P: NDArray[np.int64], max_items: int) -> NDArray[np.bool_]:
    """[P]: whether at most `max_items` items have a run; `hash_P` is sorted."""
    order = np.lexsort((item_P, hash_P))
    hashes, items = hash_P[order], item_P[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (hashes[1:] != hashes[:-1]) | (items[1:] != items[:-1])
    starts = np.ones(len(order), bool)
    starts[1:] = hashes[1:] != hashes[:-1]
    group = np.cumsum(starts) - 1
    # A run that an item has twice is one item's.
    is_rare = np.bincount(group, weights=is_first, minlength=1)[group] <= max_items
    found = np.empty(len(order), bool)
    found[order] = is_rare
    return found
