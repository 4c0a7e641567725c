"""Classifiers, against Detoxify's own `predict` and plain forward passes of a tiny BERT in Detoxify's format."""

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stillhouse.schemas.config import ConfigError, DetoxifyConfig, ProfanityCheckConfig
from stillhouse.stages import filters as classifiers
from stillhouse.stages.filters.detoxify import DetoxifyClassifier, _groups, _max_tokens, _released_digest
from tests.support.data import ROOT

LABELS = ("toxicity", "severe_toxicity", "threat")
MAX_TOKENS = 96
NUM_OUTPUTS = 5
"""More than labels, as in Detoxify's `unbiased`, whose 16 outputs have 7 names."""


class Tiny(NamedTuple):
    folder: Path
    checkpoint: Path
    model: Any
    """The model the checkpoint was made from, never loaded from it."""

    def config(self, **changes: Any) -> DetoxifyConfig:
        values = {"checkpoint": str(self.checkpoint), "huggingface_config_path": str(self.folder), "thresholds": {}}
        values["trust_checkpoint"] = True
        return DetoxifyConfig(name="detoxify", **(values | changes))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine cost a model this small ten times its arithmetic."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    rows = pq.read_table(ROOT / "data/quickstart/conversations.parquet", columns=["conversation"])
    return [turns[0]["content"] for turns in rows["conversation"].slice(0, 1500).to_pylist() if turns]


@pytest.fixture(scope="session")
def tiny(prompts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = [word for word, _ in Counter(" ".join(prompts).lower().split()).most_common(2000) if word.isalpha()]
    characters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), *words]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    BertTokenizer(vocab=vocab).save_pretrained(folder)  # without a model_max_length
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_TOKENS,
        num_labels=NUM_OUTPUTS,
        initializer_range=0.3,
    )
    config.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = BertForSequenceClassification(config).eval()
    return Tiny(folder, save(folder / "released.ckpt", model, "bert-base-uncased"), model)


def save(path: Path, model: Any, model_type: str, classes: Sequence[str] = ("toxic", "severe_toxic", "threat")) -> Path:
    """A checkpoint as Detoxify publishes them: it names its config on the hub, and its first labels by old names."""
    import torch

    arch = {
        "model_type": model_type,
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
        "num_classes": NUM_OUTPUTS,
    }
    config = {"dataset": {"args": {"classes": list(classes)}}, "arch": {"args": arch}}
    torch.save({"config": config, "state_dict": model.state_dict(), "epoch": 3}, path)
    return path


@pytest.fixture(scope="session")
def detoxify(tiny: Tiny) -> Any:
    """Detoxify itself, with a checkpoint whose model_type is a folder: the only one it takes without the hub."""
    from detoxify import Detoxify

    checkpoint = save(tiny.folder / "local.ckpt", tiny.model, str(tiny.folder))
    return Detoxify(checkpoint=str(checkpoint), huggingface_config_path=str(tiny.folder))


@pytest.fixture(scope="session")
def classifier(tiny: Tiny) -> DetoxifyClassifier:
    return DetoxifyClassifier(tiny.config(batch_size=7))


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
    texts = [text for text in prompts if len(detoxify.tokenizer(text)["input_ids"]) <= MAX_TOKENS]
    texts = [*texts[:300], "", " \t\n", "\0 \u200b \U0001f642 \ud7ff", "[SEP] [PAD] [CLS]"]
    lengths = {len(detoxify.tokenizer(text)["input_ids"]) for text in texts}
    assert len(texts) > 250
    assert len(lengths) > 40, "mixed lengths, or sorting by length proves nothing"
    expected = np.array([[detoxify.predict([text])[label] for label in LABELS] for text in texts], np.float32)
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
    classifier, text = DetoxifyClassifier(tiny.config(batch_size=64)), "lorem ipsum " * 33_000
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


def test_a_wrong_digest_stops_before_unpickling(tiny: Tiny, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "unpickled",))

    import torch

    trap = tmp_path / "trap.ckpt"
    torch.save({"config": Touch(), "state_dict": {}}, trap)
    digest = hashlib.sha256(trap.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=f"{digest[:12]}…, not {'0' * 12}…; "):
        classifiers.load(tiny.config(checkpoint=str(trap), checkpoint_sha256="0" * 64))
    assert not (tmp_path / "unpickled").exists()
    with pytest.raises(TypeError):  # what an unchecked one does: the trap works
        classifiers.load(tiny.config(checkpoint=str(trap)))
    assert (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("digest", [None, "", "0123abcd", "0" * 63])
def test_a_local_checkpoint_needs_its_digest_or_trust(tiny: Tiny, digest: str | None) -> None:
    with pytest.raises(ValidationError, match="checkpoint_sha256"):
        tiny.config(checkpoint_sha256=digest, trust_checkpoint=False)


def test_every_released_checkpoint_tells_its_digest() -> None:
    from detoxify.detoxify import MODEL_URLS

    digests = {name: _released_digest(Path(url.rpartition("/")[2])) for name, url in MODEL_URLS.items()}
    assert set(digests) == set(get_args(DetoxifyConfig.model_fields["model"].annotation))
    assert digests["original"] == "c1212f89"
    assert all(len(digest) == 8 for digest in digests.values())


def test_the_right_digest_loads(tiny: Tiny, classifier: DetoxifyClassifier) -> None:
    digest = hashlib.sha256(tiny.checkpoint.read_bytes()).hexdigest()
    checked = classifiers.load(tiny.config(checkpoint_sha256=digest.upper()))
    np.testing.assert_array_equal(checked.score(["hello there"]), classifier.score(["hello there"]))


def test_a_released_checkpoint_is_checked_too(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: DetoxifyClassifier
) -> None:
    import torch
    from detoxify.detoxify import MODEL_URLS

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    data = tiny.checkpoint.read_bytes()

    def released(name: str) -> None:
        monkeypatch.setitem(MODEL_URLS, "unbiased", f"https://host/{name}.ckpt")
        (tmp_path / "checkpoints" / f"{name}.ckpt").write_bytes(data)

    released("tiny-01234567")
    with pytest.raises(ConfigError, match=r"has sha256 [0-9a-f]{12}…, not 01234567…"):
        classifiers.load(tiny.config(checkpoint=None))
    released("tiny")
    with pytest.raises(ConfigError, match="tells no digest"):
        classifiers.load(tiny.config(checkpoint=None))
    released(f"tiny-{hashlib.sha256(data).hexdigest()[:8]}")
    with pytest.raises(ConfigError, match="has sha256"):
        classifiers.load(tiny.config(checkpoint=None, checkpoint_sha256="0" * 64))
    loaded = classifiers.load(tiny.config(checkpoint=None))
    np.testing.assert_array_equal(loaded.score(["hello there"]), classifier.score(["hello there"]))


def test_a_missing_checkpoint_and_unknown_labels_are_named(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.ckpt is not a file"):
        classifiers.load(tiny.config(checkpoint=str(tmp_path / "none.ckpt")))
    with pytest.raises(ConfigError, match="names obscene, toxic; the labels are toxicity, severe_toxicity, threat"):
        classifiers.load(tiny.config(thresholds={"obscene": 0.5, "toxic": 0.5, "threat": 0.5}))
    with pytest.raises(ConfigError, match="names toxicity; the labels are profanity"):
        classifiers.load(ProfanityCheckConfig(name="profanity-check", thresholds={"toxicity": 0.5}))


def test_scores_that_are_not_numbers_are_an_error(tiny: Tiny, tmp_path: Path) -> None:
    import copy

    model = copy.deepcopy(tiny.model)
    model.classifier.bias.data[1] = float("nan")
    broken = classifiers.load(tiny.config(checkpoint=str(save(tmp_path / "nan.ckpt", model, "bert-base-uncased"))))
    with pytest.raises(ValueError, match="2 of 2 windows") as error:
        broken.score(["secret words", "other words"])
    assert "words" not in str(error.value)


def test_more_labels_than_outputs_are_refused(tiny: Tiny) -> None:
    classes = [f"label {i}" for i in range(NUM_OUTPUTS + 1)]
    checkpoint = save(tiny.folder / "named.ckpt", tiny.model, "bert-base-uncased", classes)
    with pytest.raises(ConfigError, match="6 labels for a model of 5 outputs"):
        classifiers.load(tiny.config(checkpoint=str(checkpoint)))


def test_profanity_check() -> None:
    classifier = classifiers.load(ProfanityCheckConfig(name="profanity-check"))
    texts = [
        "fuck you, you stupid bitch",
        "What is the capital of France?",
        "",
        " \n",
        "\0\u200b\U0001f642",
        "a" * 100_000,
    ]
    scores = classifier.score(texts)
    assert scores.shape == (6, 1)
    assert scores.dtype == np.float32
    assert scores[0, 0] > 0.9
    assert (scores[1:] < 0.5).all()
    assert classifier.score([]).shape == (0, 1)
    assert classifier.thresholds == {"profanity": 0.9}


def test_combined_concatenates_labels(tiny: Tiny, classifier: DetoxifyClassifier) -> None:
    profanity = ProfanityCheckConfig(name="profanity-check")
    both = classifiers.combined([profanity, tiny.config(thresholds={"threat": 0.4})])
    texts = ["you bitch", "good morning", "hello"]
    assert both.labels == ("profanity", *LABELS)
    assert both.thresholds == {"profanity": 0.9, "threat": 0.4}
    np.testing.assert_allclose(both.score(texts)[:, 1:], classifier.score(texts), atol=2e-6)
    np.testing.assert_array_equal(both.score(texts)[:, :1], classifiers.load(profanity).score(texts))
    assert both.score([]).shape == (0, 4)
    assert classifiers.combined([]).labels == ()
    assert classifiers.combined([]).score(texts).shape == (3, 0)


def test_combined_refuses_a_label_twice() -> None:
    profanity = ProfanityCheckConfig(name="profanity-check")
    with pytest.raises(ConfigError, match="more than one has the label profanity; "):
        classifiers.combined([profanity, profanity])


def test_thresholds_compare_in_float32() -> None:
    scores = np.array([[0.9, 0.0], [np.nextafter(np.float32(0.9), np.float32(0)), 1.0]], np.float32)
    assert classifiers.unsafe_rows(scores, ("a", "b"), {"a": 0.9}).tolist() == [True, False]
    assert classifiers.unsafe_rows(scores, ("a", "b"), {"b": 1.0}).tolist() == [False, True]
    assert classifiers.unsafe_rows(scores, ("a", "b"), {"a": 0.0}).tolist() == [True, True]


def test_importing_is_cheap() -> None:
    script = (
        "import sys, stillhouse.stages.screen, stillhouse.stages.review; "
        "print({'torch', 'detoxify', 'profanity_check'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
