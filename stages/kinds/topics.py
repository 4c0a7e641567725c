"""What prompts are about: clusters of their words, over the whole data set, by scikit-learn.

TF-IDF of hashed words, reduced to `WIDTH` dimensions (latent semantic analysis), and k-means in mini-batches. A topic
is a number: what is in it is told by its rows. Prompts of one language are in topics of that language, because they
share no words with others.

Shape legend: R rows, H hashes of words, D dimensions.
"""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from stillhouse.stages.text.shingles import units

HASHES = 2**18
"""Words share a number where their hashes do: about one in a hundred of 3,000 words."""
MAX_TERMS = 256
"""Different words of a prompt that count: those of its beginning."""
WIDTH = 64
FITTED_ROWS = 100_000
"""Rows that the clusters are made from; the others are put into them."""
BLOCK = 8192


def terms(text: str) -> NDArray[np.int32]:
    """The hashes of a text's words, each once: runs of letters and digits, and pairs of characters in scripts without
    spaces."""
    found = units(text)
    words = [word for word in found if len(word) > 1]
    pairs = [a + b for a, b in pairwise(found) if len(a) == len(b) == 1 and a.isalpha() and b.isalpha()]
    distinct = list(dict.fromkeys(words + pairs))[:MAX_TERMS]
    return np.unique(np.array([crc32(word.encode()) % HASHES for word in distinct], np.int32))


def topics(terms_R: Sequence[NDArray[np.int32]], num_topics: int, seed: int) -> NDArray[np.int32]:
    """The topic of each row [R], 0 to `num_topics` - 1, the largest first; -1 for a row without words. Of a data set
    with fewer rows than topics each has its own. Rows must come in an order that sharding does not change."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    has_words_R = np.array([len(part) > 0 for part in terms_R], bool)
    found_R = np.full(len(terms_R), -1, np.int32)
    rows = np.flatnonzero(has_words_R)
    if len(rows) <= num_topics:
        found_R[rows] = np.arange(len(rows), dtype=np.int32)
        return found_R
    # One thread: sums in another order are other sums, and could be other topics. The warnings are of equal rows.
    with threadpool_limits(1), np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        topic = _clusters([terms_R[row] for row in rows.tolist()], num_topics, seed)
    sizes = np.bincount(topic, minlength=num_topics)
    place = np.empty(num_topics, np.int32)
    place[np.argsort(-sizes, kind="stable")] = np.arange(num_topics, dtype=np.int32)
    found_R[rows] = place[topic]
    return found_R


def _clusters(terms_R: list[NDArray[np.int32]], num_topics: int, seed: int) -> NDArray[np.int64]:
    from scipy.sparse import csr_matrix
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.preprocessing import normalize

    starts = np.concatenate([[0], np.cumsum([len(part) for part in terms_R])])
    hashes = np.concatenate(terms_R)
    known, column = np.unique(hashes, return_inverse=True)
    counts = csr_matrix((np.ones(len(column), np.float32), column, starts), shape=(len(terms_R), len(known)))
    fitted = counts[:FITTED_ROWS]
    tfidf = TfidfTransformer().fit(fitted)
    width = min(WIDTH, len(known) - 1, fitted.shape[0] - 1)
    reduce = TruncatedSVD(width, random_state=seed).fit(tfidf.transform(fitted)) if width > 1 else None

    def reduced(block: csr_matrix) -> NDArray[np.float32]:
        weighted = tfidf.transform(block)
        return np.asarray(normalize(weighted.toarray() if reduce is None else reduce.transform(weighted)), np.float32)

    blocks = [reduced(counts[start : start + BLOCK]) for start in range(0, counts.shape[0], BLOCK)]
    points = np.concatenate(blocks)
    kmeans = MiniBatchKMeans(num_topics, random_state=seed, batch_size=4096, n_init=3).fit(points[:FITTED_ROWS])
    return np.asarray(kmeans.predict(points), np.int64)
