"""Detoxify's scores, against its own `predict` and plain forward passes of a tiny BERT."""

import copy
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.stages.filters import load
from stillhouse.stages.filters.detoxify import DetoxifyClassifier, _groups, _max_tokens, batches
from tests.support.tiny_bert import LABELS, MAX_TOKENS, Tiny, save

pytestmark = pytest.mark.usefixtures("one_thread")


def forward(tiny: Tiny, tokenizer: Any, ids: Sequence[int]) -> np.ndarray:
    """Scores [L] of one window of content tokens, by one unpadded pass through the original model."""
    import torch

    window = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
    with torch.no_grad():
        return torch.sigmoid(tiny.model(window).logits)[0, : len(LABELS)].numpy()


def windows_of(ids: Sequence[int]) -> list[Sequence[int]]:
    """The windows of a text's content tokens, cut by hand: full ones that share a quarter, the last one shorter."""
    length = MAX_TOKENS - 2
    step = length - length // 4
    starts = range(0, max(len(ids) - length, 0) + step, step)
    return [ids[start : start + length] for start in starts if start == 0 or start + length // 4 < len(ids)]


def test_scores_are_detoxifys_for_texts_of_one_window(
    classifier: DetoxifyClassifier, detoxify: Any, prompts: list[str]
) -> None:
    short = (text for text in prompts if len(detoxify.tokenizer(text)["input_ids"]) <= MAX_TOKENS)
    texts = [*islice(short, 300), "", " \t\n", "\0 \u200b \U0001f642 \ud7ff", "[SEP] [PAD] [CLS]"]
    lengths = {len(detoxify.tokenizer(text)["input_ids"]) for text in texts}
    assert len(texts) > 250
    assert len(lengths) > 40, "mixed lengths, or sorting by length proves nothing"
    alone = [detoxify.predict([text]) for text in texts]
    expected = np.array([[scores[label] for label in LABELS] for scores in alone], np.float32)
    scores = classifier.score(texts)
    assert classifier.labels == LABELS
    assert scores.shape == (len(texts), len(LABELS))
    assert scores.dtype == np.float32
    assert (expected.std(axis=0) > 0.05).all(), "scores must differ, or a wrong order would pass"
    np.testing.assert_allclose(scores, expected, atol=2e-6)


def test_weights_are_the_checkpoints(
    tiny: Tiny, classifier: DetoxifyClassifier, detoxify: Any, prompts: list[str]
) -> None:
    ids = detoxify.tokenizer("how do i write a story", add_special_tokens=False)["input_ids"]
    expected = forward(tiny, detoxify.tokenizer, ids)
    np.testing.assert_allclose(classifier.score(["how do i write a story"])[0], expected, atol=2e-6)


def test_long_texts_score_as_the_highest_of_their_windows(
    tiny: Tiny, classifier: DetoxifyClassifier, detoxify: Any, prompts: list[str]
) -> None:
    tokenizer = detoxify.tokenizer
    texts = [text for text in prompts if 600 < len(text) < 3000][:20]
    ids_of = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    assert min(len(ids) for ids in ids_of) > MAX_TOKENS
    expected = np.array([np.max([forward(tiny, tokenizer, w) for w in windows_of(ids)], axis=0) for ids in ids_of])
    np.testing.assert_allclose(classifier.score(texts), expected, atol=2e-6)


@pytest.mark.parametrize("num_tokens", [93, 94, 95, 94 + 71, 94 + 71 + 1])
def test_no_token_is_lost_at_a_windows_edge(
    tiny: Tiny, classifier: DetoxifyClassifier, detoxify: Any, num_tokens: int
) -> None:
    text = " ".join("abcdefg"[i % 7] for i in range(num_tokens))
    windows, _ = classifier._windows([text])
    assert max(len(window) for window in windows) <= MAX_TOKENS
    covered = [token for window in windows[:1] for token in window[1:-1]]
    for window in windows[1:]:
        assert window[1 : 1 + classifier.overlap] == covered[-classifier.overlap :]
        covered += window[1 + classifier.overlap : -1]
    assert covered == detoxify.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_what_is_only_at_the_end_of_a_long_text_is_seen(
    tiny: Tiny, classifier: DetoxifyClassifier, detoxify: Any
) -> None:
    calm, words = "the " * 1000, [word for word in detoxify.tokenizer.get_vocab() if word.isalpha() and len(word) > 3]
    texts = [calm + f"{word} " * 60 for word in words[:60]]
    scores, calm_scores = classifier.score(texts), classifier.score([calm])
    toxic, label = np.unravel_index((scores - calm_scores).argmax(), scores.shape)
    ids = detoxify.tokenizer(texts[toxic], add_special_tokens=False, verbose=False)["input_ids"]
    by_window = [forward(tiny, detoxify.tokenizer, window)[label] for window in windows_of(ids)]
    assert by_window[0] < max(by_window) - 0.1, "no word of this model is toxic enough for the test"
    assert int(np.argmax(by_window)) >= len(by_window) - 2
    assert scores[toxic, label] == pytest.approx(max(by_window), abs=2e-6)


def test_order_and_batching_do_not_matter(tiny: Tiny, prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for text in prompts if len(text) < 2000][:60]
    small, large = (DetoxifyClassifier(tiny.config(batch_size=size)) for size in (1, 64))
    expected = small.score(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_allclose(large.score([texts[i] for i in order]), expected[order], atol=2e-6)
    monkeypatch.setattr("stillhouse.stages.filters.detoxify.GROUP_CHARACTERS", 2000)
    np.testing.assert_allclose(large.score(texts), expected, atol=2e-6)


def test_batches_have_so_many_tokens_and_follow_from_lengths_alone() -> None:
    lengths = [5, 100, 1, 40, 40, 39, 2, 300, 5, 5]
    found = batches(lengths, 100)
    assert sorted(window for batch in found for window in batch.tolist()) == list(range(len(lengths)))
    assert [[lengths[window] for window in batch] for batch in found] == [[1, 2, 5, 5, 5], [39, 40], [40], [100], [300]]
    for batch, following in pairwise(found):
        longest = max(lengths[window] for window in batch)
        assert longest * len(batch) <= 100 or len(batch) == 1
        assert lengths[following[0]] * (len(batch) + 1) > 100, "one more would have fitted"
    assert batches([], 100) == []


def test_a_batch_is_no_larger_than_configured(tiny: Tiny, prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, seen = DetoxifyClassifier(tiny.config(batch_size=3)), []
    forward = classifier._model.forward

    def counted(input_ids: Any, **values: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **values)

    monkeypatch.setattr(classifier._model, "forward", counted)
    texts = [text for text in prompts if len(text) < 300][:100]
    classifier.score(texts)
    assert max(rows * tokens for rows, tokens in seen) <= 3 * MAX_TOKENS
    assert max(rows for rows, _ in seen) > 3, "short windows share a pass"
    assert sum(rows for rows, _ in seen) == len(classifier._windows(texts)[0])


def test_bytes_do_not_depend_on_how_many_processors_there_are(tiny: Tiny, prompts: list[str]) -> None:
    import torch

    texts = [text for text in prompts if len(text) < 2000][:120]
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        classifier = DetoxifyClassifier(tiny.config(batch_size=4))
        assert classifier.num_threads == threads
        found.append(classifier.score(texts).tobytes())
        assert torch.get_num_threads() == threads, "what others set is left as it was"
    torch.set_num_threads(1)
    assert len(set(found)) == 1


def test_groups_cover_every_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.stages.filters.detoxify.GROUP_CHARACTERS", 10)
    texts = ["", "a" * 4, "b" * 6, "c" * 25, "", "d", "e" * 10]
    groups = list(_groups(texts))
    assert [text for group in groups for text in texts[group]] == texts
    assert [sum(map(len, texts[group])) for group in groups] == [10, 25, 1, 10]
    assert list(_groups([])) == []


def test_few_texts(classifier: DetoxifyClassifier) -> None:
    assert classifier.score([]).shape == (0, 3)
    assert classifier.score([]).dtype == np.float32
    assert classifier.score(["a"]).shape == (1, 3)
    np.testing.assert_allclose(classifier.score([""]), classifier.score(["", "a b"])[:1], atol=2e-6)


def test_a_very_long_text_is_read_to_its_end(tiny: Tiny) -> None:
    classifier, text = DetoxifyClassifier(tiny.config(batch_size=64)), "the " * 99_000
    windows, _ = classifier._windows([text])
    assert len(text) > 394_000
    assert sum(len(window) - 2 - classifier.overlap for window in windows) + classifier.overlap >= 66_000
    assert np.isfinite(classifier.score([text])).all()


@pytest.mark.parametrize(("family", "max_tokens"), [("Bert", 20), ("Albert", 20), ("Roberta", 18), ("XLMRoberta", 18)])
def test_longest_window_of_each_family(family: str, max_tokens: int) -> None:
    import torch
    import transformers

    class Tokenizer:
        model_max_length = int(1e30)

    config = getattr(transformers, f"{family}Config")(
        vocab_size=50,
        hidden_size=8,
        embedding_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=20,
    )
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    assert _max_tokens(model, Tokenizer) == max_tokens
    model(torch.full((1, max_tokens), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, max_tokens + 1), 7))
    Tokenizer.model_max_length = 12
    assert _max_tokens(model, Tokenizer) == 12


def test_scores_that_are_not_numbers_are_an_error(tiny: Tiny, tmp_path: Path) -> None:
    model = copy.deepcopy(tiny.model)
    model.classifier.bias.data[1] = float("nan")
    broken = load(tiny.config(checkpoint=str(save(tmp_path / "nan.ckpt", model, "bert-base-uncased"))))
    with pytest.raises(ValueError, match="2 of 2 windows") as error:
        broken.score(["secret words", "other words"])
    assert "words" not in str(error.value)
