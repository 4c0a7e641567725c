"""Which checkpoints of Detoxify are loaded: none is unpickled before its digest is checked."""

import hashlib
import threading
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from stillhouse.schemas.config import ConfigError, DetoxifyConfig
from stillhouse.stages.filters import load
from stillhouse.stages.filters.detoxify import DetoxifyClassifier, _released_checkpoint, _released_digest
from tests.support.tiny_bert import NUM_OUTPUTS, Tiny, save

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_wrong_digest_stops_before_unpickling(tiny: Tiny, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "unpickled",))

    import torch

    trap = tmp_path / "trap.ckpt"
    torch.save({"config": Touch(), "state_dict": {}}, trap)
    digest = hashlib.sha256(trap.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=f"{digest[:12]}…, not {'0' * 12}…; "):
        load(tiny.config(checkpoint=str(trap), checkpoint_sha256="0" * 64))
    assert not (tmp_path / "unpickled").exists()
    with pytest.raises(TypeError):  # what an unchecked one does: the trap works
        load(tiny.config(checkpoint=str(trap)))
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
    checked = load(tiny.config(checkpoint_sha256=digest.upper()))
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
        load(tiny.config(checkpoint=None))
    released("tiny")
    with pytest.raises(ConfigError, match="tells no digest"):
        load(tiny.config(checkpoint=None))
    released(f"tiny-{hashlib.sha256(data).hexdigest()[:8]}")
    with pytest.raises(ConfigError, match="has sha256"):
        load(tiny.config(checkpoint=None, checkpoint_sha256="0" * 64))
    loaded = load(tiny.config(checkpoint=None))
    np.testing.assert_array_equal(loaded.score(["hello there"]), classifier.score(["hello there"]))


def test_a_missing_checkpoint_and_unknown_labels_are_named(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.ckpt is not a file"):
        load(tiny.config(checkpoint=str(tmp_path / "none.ckpt")))
    with pytest.raises(ConfigError, match="names obscene, toxic; the labels are toxicity, severe_toxicity, threat"):
        load(tiny.config(thresholds={"obscene": 0.5, "toxic": 0.5, "threat": 0.5}))


def test_more_labels_than_outputs_are_refused(tiny: Tiny) -> None:
    classes = [f"label {i}" for i in range(NUM_OUTPUTS + 1)]
    checkpoint = save(tiny.folder / "named.ckpt", tiny.model, "bert-base-uncased", classes)
    with pytest.raises(ConfigError, match="6 labels for a model of 5 outputs"):
        load(tiny.config(checkpoint=str(checkpoint)))


def test_workers_of_one_machine_fetch_a_checkpoint_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    fetched: list[str] = []
    others: list[threading.Thread] = []

    def fetch(url: str, place: str, progress: bool) -> None:
        fetched.append(place)
        if len(others) < 3:  # while it is under way, three more begin
            others.extend(threading.Thread(target=_released_checkpoint, args=("original",)) for _ in range(3))
            for other in others:
                other.start()
            time.sleep(0.3)
        Path(place).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    path = _released_checkpoint("original")
    for other in others:
        other.join(10)
        assert not other.is_alive()
    assert fetched == [str(path)]
