"""Detoxify's transformer classifiers. torch and detoxify are imported when one is built.

Shape legend: N texts, L labels, W windows of texts, B windows of a batch, T tokens of a window.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from stillhouse.schemas.config import ConfigError, DetoxifyConfig
from stillhouse.stages.filters.classifier import check_thresholds

GROUP_CHARACTERS = 1_000_000
"""Texts are tokenised in groups of about this size, so that memory depends on the longest text, not on their number."""


class DetoxifyClassifier:
    """A Detoxify checkpoint. A text that fits the model gets the scores of `Detoxify.predict`; none is truncated.

    A longer text is read in windows of the model's length that overlap by a quarter. Its score is the highest of its
    windows, for each label. Raises `ConfigError` when the checkpoint is missing or does not have its digest (then
    nothing is unpickled), or when a threshold names a label that the checkpoint does not have.
    """

    def __init__(self, config: DetoxifyConfig) -> None:
        import torch
        from detoxify import Detoxify

        where = "screen.classifiers (detoxify)"
        path = Path(config.checkpoint) if config.checkpoint else _released_checkpoint(config.model)
        if not path.is_file():
            raise ConfigError(f"{where}: the checkpoint {path} is not a file; correct `checkpoint`")
        with path.open("rb") as file:
            sha256 = config.checkpoint_sha256
            if sha256 is None and config.checkpoint is None:
                sha256 = _released_digest(path)
            if sha256 is not None:
                _check_digest(file, sha256, f"{where}: the checkpoint {path}")
            detoxify = Detoxify(
                config.model,
                checkpoint=_with_local_config(file, config.huggingface_config_path),
                huggingface_config_path=config.huggingface_config_path,
                device="cuda" if torch.cuda.is_available() else "cpu",
            )
        self.labels: tuple[str, ...] = tuple(detoxify.class_names)
        if detoxify.model.config.num_labels < len(self.labels):
            raise ConfigError(
                f"{where}: the checkpoint {path} names {len(self.labels)} labels for a model of "
                f"{detoxify.model.config.num_labels} outputs; use another checkpoint or `huggingface_config_path`"
            )
        self.thresholds = check_thresholds(config.thresholds, self.labels, where)
        self.max_tokens = _max_tokens(detoxify.model, detoxify.tokenizer)
        """Tokens of a window, special ones included."""
        self.overlap = (self.max_tokens - detoxify.tokenizer.num_special_tokens_to_add()) // 4
        """Tokens that a window shares with the one before it."""
        self._model, self._tokenizer = detoxify.model.eval(), detoxify.tokenizer
        self._batch_size = config.batch_size

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities [N, L]. Raises `ValueError` when the model returns something that is not a number."""
        scores_NL = np.zeros((len(texts), len(self.labels)), np.float32)
        for group in _groups(texts):
            windows, text_W = self._windows(texts[group])
            np.maximum.at(scores_NL[group], text_W, self._score_windows(windows))
        return scores_NL

    def _windows(self, texts: Sequence[str]) -> tuple[list[list[int]], NDArray[np.int64]]:
        """Token ids of every window, and for each window the index of its text [W]."""
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_tokens,
            stride=self.overlap,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return encoded["input_ids"], np.asarray(encoded["overflow_to_sample_mapping"], np.int64)

    def _score_windows(self, windows: list[list[int]]) -> NDArray[np.float32]:
        """Scores [W, L]. Windows of similar length share a batch, because padding costs as much as text."""
        import torch

        device, L = self._model.device, len(self.labels)
        scores_WL = np.empty((len(windows), L), np.float32)
        order_W = np.argsort([len(ids) for ids in windows], kind="stable")
        for start in range(0, len(windows), self._batch_size):
            batch = order_W[start : start + self._batch_size]
            ids_BT = np.full((len(batch), len(windows[batch[-1]])), self._tokenizer.pad_token_id, np.int64)
            mask_BT = np.zeros_like(ids_BT)
            for row, window in enumerate(batch):
                ids_BT[row, : len(windows[window])] = windows[window]
                mask_BT[row, : len(windows[window])] = 1
            with torch.inference_mode():
                logits_BL = self._model(
                    input_ids=torch.from_numpy(ids_BT).to(device), attention_mask=torch.from_numpy(mask_BT).to(device)
                )[0]
                scores_WL[batch] = torch.sigmoid(logits_BL)[:, :L].cpu().numpy()
        if num_bad := int((~np.isfinite(scores_WL)).any(axis=1).sum()):
            # NaN is at or above no threshold, so a broken checkpoint would let everything through.
            raise ValueError(
                f"screen.classifiers (detoxify): {num_bad} of {len(windows)} windows got a score that is not a number; "
                "use another checkpoint"
            )
        return scores_WL


def _released_checkpoint(model: str) -> Path:
    """Path of a released checkpoint in torch's cache; downloaded if it is not there yet, as Detoxify itself does."""
    import torch
    from detoxify.detoxify import MODEL_URLS

    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / MODEL_URLS[model].rsplit("/", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # one of the workers on a machine
            if not path.exists():
                torch.hub.download_url_to_file(MODEL_URLS[model], str(path), progress=False)
    return path


def _released_digest(path: Path) -> str:
    """The first digits of a released checkpoint's digest. By torch's convention its name ends with 8 of them."""
    match = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if match is None:
        raise ConfigError(f"screen.classifiers (detoxify): {path} tells no digest; set `checkpoint_sha256`")
    return match[1]


def _check_digest(file: IO[bytes], sha256: str, what: str) -> None:
    """Compare an open file's digest with `sha256`, which may be its first digits only. Rewinds the file, so that the
    bytes that are checked are the bytes that are loaded."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    if digest[: len(sha256)] != sha256.lower():
        raise ConfigError(
            f"{what} has sha256 {digest[:12]}…, not {sha256[:12].lower()}…; get the right file or correct "
            "`checkpoint_sha256`"
        )


def _with_local_config(file: IO[bytes], folder: str | None) -> IO[bytes]:
    """The checkpoint with the model config of `folder` in place of the one it names on the hub.

    Detoxify 0.5.4 looks up that name on the hub even where it then uses `huggingface_config_path`.
    """
    import torch

    if folder is None:
        return file
    loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
    loaded["config"]["arch"]["args"]["model_type"] = folder
    changed = io.BytesIO()
    torch.save({"config": loaded["config"], "state_dict": loaded["state_dict"]}, changed)
    changed.seek(0)
    return changed


def _max_tokens(model: Any, tokenizer: Any) -> int:
    """The longest input, special tokens included, that both the model's positions and its tokenizer allow.

    A tokenizer without a limit says 1e30. RoBERTa numbers positions from `padding_idx + 1` on, so that two of its 514
    positions are never used; only such models have a `padding_idx` in their table of positions.
    """
    positions = next(module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    unused = 0 if positions.padding_idx is None else int(positions.padding_idx) + 1
    return min(int(tokenizer.model_max_length), int(positions.num_embeddings) - unused)


def _groups(texts: Sequence[str]) -> Iterator[slice]:
    """Slices of consecutive texts, each of at most `GROUP_CHARACTERS` characters or of a single longer text."""
    start = num_characters = 0
    for i, text in enumerate(texts):
        if i > start and num_characters + len(text) > GROUP_CHARACTERS:
            yield slice(start, i)
            start, num_characters = i, 0
        num_characters += len(text)
    if start < len(texts):
        yield slice(start, len(texts))
