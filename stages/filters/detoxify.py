"""Detoxify's transformer classifiers. torch and detoxify are imported when one is built.

Shape legend: N texts, L labels, W windows of texts, B windows of a batch, T tokens of a window.
"""

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from stillhouse.schemas.config import ConfigError, DetoxifyConfig
from stillhouse.stages.filters.classifier import check_thresholds

GROUP_CHARACTERS = 1_000_000
"""Texts are tokenised in groups of about this size, so that memory depends on the longest text, not on their number."""

CPU_TOKENS = 2048
"""Tokens of a pass on a CPU at most: what is computed of more does not stay in its caches. With 4,096 a token takes a
fifth longer, with 16,384 twice as long."""


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
        self.num_threads = 1 if self._model.device.type == "cuda" else torch.get_num_threads()
        """Batches that are under way at once: as many as there are processors for this process."""
        full = config.batch_size * self.max_tokens
        self.batch_tokens = full if self._model.device.type == "cuda" else min(full, CPU_TOKENS)
        """Tokens of a batch, padding included."""

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
        """Scores [W, L]. Windows of similar length share a batch, because padding costs as much as text; a batch has
        so many tokens, not windows, because short ones keep no processor busy."""
        scores_WL = np.empty((len(windows), len(self.labels)), np.float32)
        found = batches([len(ids) for ids in windows], self.batch_tokens)[::-1]  # the last to end is a short one
        with _one_thread_for_each(self.num_threads), ThreadPoolExecutor(self.num_threads) as pool:
            for batch, scores_BL in zip(found, pool.map(lambda b: self._score_batch(windows, b), found), strict=True):
                scores_WL[batch] = scores_BL
        if num_bad := int((~np.isfinite(scores_WL)).any(axis=1).sum()):
            # NaN is at or above no threshold, so a broken checkpoint would let everything through.
            raise ValueError(
                f"screen.classifiers (detoxify): {num_bad} of {len(windows)} windows got a score that is not a number; "
                "use another checkpoint"
            )
        return scores_WL

    def _score_batch(self, windows: list[list[int]], batch: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores [B, L] of the windows with these numbers, the longest last, in one pass."""
        import torch

        ids_BT = np.full((len(batch), len(windows[batch[-1]])), self._tokenizer.pad_token_id, np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for row, window in enumerate(batch):
            ids_BT[row, : len(windows[window])] = windows[window]
            mask_BT[row, : len(windows[window])] = 1
        device = self._model.device
        with torch.inference_mode():
            # Without padding no mask is needed, and attention without one is faster.
            mask = None if mask_BT.all() else torch.from_numpy(mask_BT).to(device)
            logits_BL = self._model(input_ids=torch.from_numpy(ids_BT).to(device), attention_mask=mask)[0]
            scores_BL: NDArray[np.float32] = torch.sigmoid(logits_BL)[:, : len(self.labels)].cpu().numpy()
        return scores_BL


@contextlib.contextmanager
def _one_thread_for_each(num_batches: int) -> Iterator[None]:
    """While several batches are under way on a CPU, torch computes each of them in one thread: sums that are divided
    among threads would depend on how many there are, and so on the machine. It is faster, too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if num_batches > 1 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def batches(lengths: Sequence[int], budget: int) -> list[NDArray[np.int64]]:
    """Windows of these lengths in batches, by number: sorted by length, as many as fit into `budget` tokens with
    padding, a longer one alone. They follow from the lengths alone, so that a shard's scores do not depend on who makes
    it."""
    order_W = np.argsort(lengths, kind="stable")
    found, start = [], 0
    for end, window in enumerate(order_W.tolist()):
        if end > start and lengths[window] * (end - start + 1) > budget:
            found.append(order_W[start:end])
            start = end
    return [*found, order_W[start:]] if len(order_W) else []


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
