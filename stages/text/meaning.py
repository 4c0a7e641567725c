"""Texts of the same meaning, by the cosine similarity of static embeddings (model2vec): found exactly, and alike on
every machine.

Embeddings are rounded to small integers. Their products are then whole numbers below 2^24, which float32 holds, so that
a matrix product gives the same whatever the order of its sums, and a threshold decides the same everywhere.

Shape legend: N texts, D dimensions, B texts of a block, L leaders.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.schemas.config import ConfigError, SemanticConfig, is_local_path

_BLOCK = 1024
_LEADERS_AT_ONCE = 1 << 14
_HEAD = 32
"""Dimensions that are compared first: with the lengths of what is left they bound the similarity."""
_SLACK = 1e-4
"""What float32 may get wrong in that bound."""


class Embedder:
    """A model2vec model. Raises `ConfigError` where the library or the model is not there."""

    def __init__(self, config: SemanticConfig) -> None:
        try:
            from model2vec import StaticModel
        except ImportError:
            raise ConfigError(
                "dedupe.semantic: model2vec is not installed; install it (pip install 'stillhouse[semantic]')"
            ) from None
        try:
            self._model: Any = StaticModel.from_pretrained(_folder(config))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"dedupe.semantic.model: {config.model!r} cannot be read as a model2vec model "
                f"({type(error).__name__}); write the folder or hub id of one"
            ) from None

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int8]:
        """[N, D]: the embedding of each text, all of it, as `whole` numbers; zeros of a text without known words."""
        # The empty text goes along, because the library embeds no empty list.
        return whole(
            np.asarray(self._model.encode([*texts, ""], max_length=None, use_multiprocessing=False)[:-1], np.float32)
        )


def _folder(config: SemanticConfig) -> Path:
    if is_local_path(config.model):
        return Path(config.model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(config.model, revision=config.revision, allow_patterns=["*.json", "*.safetensors"]))


def whole(vector_ND: NDArray[np.float32]) -> NDArray[np.int8]:
    """[N, D]: each vector with its largest number at 127, rounded; at less where D is above 1,040."""
    most = min(127, int(np.sqrt((2**24 - 1) / max(vector_ND.shape[1], 1))))
    largest_N1 = np.abs(vector_ND).max(axis=1, keepdims=True, initial=0)
    scale_N1 = np.divide(np.float32(most), largest_N1, out=np.zeros_like(largest_N1), where=largest_N1 > 0)
    rounded_ND: NDArray[np.int8] = np.rint(vector_ND * scale_N1).astype(np.int8)
    return rounded_ND


class Meanings:
    """Tells of texts, in order, which earlier leader means the same: which has the same `kin` and other units, and a
    cosine similarity of at least `threshold`.

    `kin_N` are hashes of what must be the same, `units_N` of what must not (see `minhash.leaders`). `is_led_N` says for
    which texts a leader was found.
    """

    def __init__(
        self, vector_ND: NDArray[np.int8], kin_N: NDArray[np.uint64], units_N: NDArray[np.uint64], threshold: float
    ) -> None:
        num_texts, num_dimensions = vector_ND.shape
        self.is_led_N = np.zeros(num_texts, bool)
        self._vector_ND, self._kin_N, self._units_N = vector_ND, kin_N, units_N
        self._threshold = threshold
        square_N = np.zeros(num_texts, np.int64)
        energy_D = np.zeros(num_dimensions, np.int64)
        for start in range(0, num_texts, _LEADERS_AT_ONCE):
            part = np.square(vector_ND[start : start + _LEADERS_AT_ONCE].astype(np.int64))
            square_N[start : start + len(part)] = part.sum(axis=1)
            energy_D += part.sum(axis=0)
        self._norm_N = np.sqrt(square_N.astype(np.float64))
        self._head_D = np.argsort(-energy_D, kind="stable")[:_HEAD]
        self._leaders = np.empty(num_texts, np.int64)
        self._leader_heads = np.empty((num_texts, len(self._head_D) + 1), np.float32)
        self._num_leaders = 0
        self._first = self._last = 0  # of the block
        self._found_B = np.empty(0, np.int64)

    def leader_of(self, text: int, alone_N: NDArray[np.bool_]) -> int | None:
        """The first leader that means the same; None where there is none. Texts come in ascending order, and of those
        that are not `alone_N` nobody will ask."""
        if text >= self._last:
            self._begin(text, alone_N)
        found = int(self._found_B[text - self._first])
        self.is_led_N[text] = found >= 0
        return found if found >= 0 else None

    def add(self, text: int) -> None:
        """Make `text`, which is the last that was asked for, a leader."""
        self._leaders[self._num_leaders] = text
        self._leader_heads[self._num_leaders] = self._block_heads[text - self._first]
        self._num_leaders += 1
        after = np.arange(text + 1, self._last)
        after = after[self._found_B[after - self._first] < 0]
        alike = self._alike(after, np.array([text]))[:, 0]
        self._found_B[after[alike] - self._first] = text

    def _begin(self, text: int, alone_N: NDArray[np.bool_]) -> None:
        """A block from `text` on: each of its texts against all leaders so far."""
        self._first, self._last = text, min(text + _BLOCK, len(self._kin_N))
        self._found_B = np.full(self._last - self._first, -1, np.int64)
        self._block_heads = self._heads(np.arange(self._first, self._last))
        open_B = np.flatnonzero(alone_N[self._first : self._last])
        for start in range(0, self._num_leaders, _LEADERS_AT_ONCE):
            stop = min(start + _LEADERS_AT_ONCE, self._num_leaders)
            may_be = self._block_heads[open_B] @ self._leader_heads[start:stop].T >= self._threshold - _SLACK
            some_B, some_L = open_B[may_be.any(axis=1)], np.flatnonzero(may_be.any(axis=0)) + start
            if len(some_B):
                leaders = self._leaders[some_L]
                alike = self._alike(some_B + self._first, leaders)
                has_one = alike.any(axis=1)
                self._found_B[some_B[has_one]] = leaders[alike[has_one].argmax(axis=1)]
                open_B = open_B[self._found_B[open_B] < 0]

    def _heads(self, texts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some dimensions of vectors of length 1, and the length of all others: a product of two is no less than the
        vectors' cosine similarity (Cauchy-Schwarz)."""
        norm = np.maximum(self._norm_N[texts], 1)[:, None]
        head = self._vector_ND[texts][:, self._head_D] / norm
        left = np.sqrt(np.maximum(1 - np.square(head).sum(axis=1, keepdims=True), 0))
        heads: NDArray[np.float32] = np.concatenate([head, left], axis=1).astype(np.float32)
        return heads

    def _alike(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[left, right]: which texts mean the same."""
        # Whole numbers below 2^24: exact in float32.
        product = self._vector_ND[left].astype(np.float32) @ self._vector_ND[right].astype(np.float32).T
        limit = self._threshold * self._norm_N[left][:, None] * self._norm_N[right] - 1e-6
        return np.asarray(
            (product >= limit)
            & (product > 0)
            & (self._kin_N[left][:, None] == self._kin_N[right])
            & (self._units_N[left][:, None] != self._units_N[right])
        )
