"""The checks of one file of a dataset or an export, on the numbers in it: alignment, tails, written tokens, ids.

Alignment: the distribution that produced a token gives that token more probability than its neighbours' distributions
do, so of rows tried one token early, in place and one token late the right ones must win.

Shape legend: T tokens of a conversation, S supervised tokens, K targets per token.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.schemas.targets import TAIL_FLOOR, Kind, decode
from stillhouse.stages.layouts import Settings, load_layout
from stillhouse.stages.layouts.records import Conversation, records
from stillhouse.stages.teacher import MASS_TOLERANCE

MAX_PROBLEMS = 20
"""Named at most; all are counted."""


@dataclass
class Findings:
    """What was seen in a file, or in all."""

    rows: int = 0
    target_tokens: int = 0
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    shifted: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    """Sums over rows of the probability of the token before the right one, of the right one, and of the one after."""
    num_shifted: int = 0

    def problem(self, text: str) -> None:
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def add(self, other: "Findings") -> None:
        self.rows += other.rows
        self.target_tokens += other.target_tokens
        self.num_problems += other.num_problems
        self.problems = (self.problems + other.problems)[:MAX_PROBLEMS]
        self.shifted = self.shifted + other.shifted
        self.num_shifted += other.num_shifted


def check_lines(data: bytes, file: dict[str, Any], layout_name: str, findings: Findings) -> None:
    """JSON lines, each as the trainer reads it."""
    read_line = load_layout(layout_name).read_line
    assert read_line is not None
    lines = data.split(b"\n")[:-1]
    findings.rows, findings.target_tokens = len(lines), file["target_tokens"]  # text does not say how many
    for i, line in enumerate(lines):
        try:
            read_line(line)
        except ValueError as error:
            findings.problem(f"{file['file']} line {i + 1}: {error}")


def check_export(table: pa.Table, name: str, layout_name: str, settings: Settings, findings: Findings) -> None:
    """A trainer's layout: its own columns and mask, read as that trainer reads them."""
    read_row = load_layout(layout_name).read_row
    assert read_row is not None
    for i, record in enumerate(records(table)):
        where = f"{name} row {i}"
        try:
            row = read_row(record, settings)
        except (ValueError, KeyError, IndexError) as error:
            findings.problem(f"{where}: cannot be read as {layout_name} reads it ({type(error).__name__}: {error})")
            continue
        findings.target_tokens += int(row.is_row.sum())
        _check_ids(row.input_ids, settings.vocab_size, where, "input_ids", findings)
        _check_ids(row.ids, settings.vocab_size, where, "target ids", findings)
        if not row.is_row.any():
            findings.problem(f"{where}: supervises nothing")
            continue
        if row.is_row[-1]:
            findings.problem(f"{where}: its last row has targets, which no token follows")
            continue
        mass = row.probs.sum(axis=1)
        if not ((mass > 0) & (mass <= 1 + 5e-3)).all():  # NaN is neither
            findings.problem(f"{where}: rows whose probabilities sum to {mass.min():.4g} or {mass.max():.4g}")
            continue
        _try_shifted(row, findings)


def check_dataset(table: pa.Table, name: str, manifest: dict[str, Any], findings: Findings) -> None:
    """The published layout: own-token targets of each kind that the dataset has."""
    vocab_size = manifest["teacher"]["vocab_size"]
    kinds: list[Kind] = [kind for kind in ("target", "draw") if f"{kind}_ids" in table.column_names]
    rows = list(records(table.select(["input_ids", "labels", "token_logprobs"])))
    for i, row in enumerate(rows):
        _check_labels(row, vocab_size, f"{name} row {i}", findings)
    for kind in kinds:
        try:
            decoded = decode(table, kind)
        except ValueError as error:
            findings.problem(f"{name}: {error}")
            continue
        for i, (row, targets) in enumerate(zip(rows, decoded, strict=True)):
            where, ours = f"{name} row {i}", row["labels"] != IGNORE_INDEX
            if len(targets.tail) != ours.sum():
                findings.problem(f"{where}: {len(targets.tail)} rows of {kind}s for {ours.sum()} supervised tokens")
                continue
            if kind == "target" and not all(
                (values <= MASS_TOLERANCE).all() for values in (targets.logprobs, targets.tail)
            ):
                findings.problem(f"{where}: {kind}s hold numbers that are no log-probabilities")
                continue
            probs_SK = np.exp(targets.logprobs.astype(np.float64))
            ids_SK = targets.ids.astype(np.int64)
            _check_ids(ids_SK, vocab_size, where, f"{kind}_ids", findings)
            mass_S = probs_SK.sum(axis=1)
            if kind == "target":
                settings = manifest["targets"]
                _check_top_k(targets.logprobs.astype(np.float32), mass_S, targets.tail, settings, where, findings)
                is_written_SK = ids_SK == row["input_ids"][ours][:, None]
                precision = settings.get("precision") or 0.0
                _check_written(targets.logprobs, is_written_SK, row["token_logprobs"], precision, where, findings)
            else:
                is_whole = manifest["config"]["targets.draws_from"] == "engine"
                if (mass_S > 1 + 1e-6).any() or (is_whole and (mass_S < 1 - 1e-6).any()):
                    findings.problem(f"{where}: draw_counts of a token do not sum to num_draws")
            _try_shifted(Conversation(row["input_ids"], np.append(ours[1:], False), ids_SK, probs_SK), findings)


def _check_labels(row: dict[str, Any], vocab_size: int, where: str, findings: Findings) -> None:
    """Labels are the ids of the tokens that are supervised, and each of those has its log-probability."""
    ids_T, labels_T, token_logprobs = row["input_ids"], row["labels"], row["token_logprobs"]
    if len(ids_T) != len(labels_T):
        findings.problem(f"{where}: {len(ids_T)} input_ids and {len(labels_T)} labels")
        return
    ours = labels_T != IGNORE_INDEX
    if (labels_T[ours] != ids_T[ours]).any():
        findings.problem(f"{where}: labels differ from input_ids at {int((labels_T != ids_T)[ours].sum())} tokens")
    if not ours.any() or ours[0]:
        findings.problem(f"{where}: supervises " + ("its first token" if ours.any() else "nothing"))
    if not (np.isfinite(token_logprobs) & (token_logprobs <= MASS_TOLERANCE)).all():
        findings.problem(f"{where}: token_logprobs hold numbers that are no log-probabilities")
    if len(token_logprobs) != ours.sum():
        findings.problem(f"{where}: {len(token_logprobs)} token_logprobs of {ours.sum()} supervised tokens")
    _check_ids(ids_T, vocab_size, where, "input_ids", findings)
    findings.target_tokens += int(ours.sum())


def _check_top_k(
    logprobs_SK: npt.NDArray[np.float32],
    mass_S: npt.NDArray[np.float64],
    tail_S: npt.NDArray[Any],
    settings: dict[str, Any],
    where: str,
    findings: Findings,
) -> None:
    """Targets are in order, as many as `settings` of the manifest say, and sum to 1 with their tail."""
    if (np.diff(np.nan_to_num(logprobs_SK, neginf=-1e9), axis=1) > 0).any():
        findings.problem(f"{where}: targets are not in order, most probable first")
    if settings.get("top_p") == 1.0 and logprobs_SK.shape[1] != settings["top_k"]:
        findings.problem(f"{where}: {logprobs_SK.shape[1]} targets per token, manifest.json says {settings['top_k']}")
    rounding = 5e-3 + (settings.get("precision") or 0.0)
    rest_S = np.maximum(np.exp(tail_S.astype(np.float64)), np.exp(TAIL_FLOOR))
    off = np.abs(mass_S + rest_S - 1.0) > rounding
    if off.any():
        worst = float((mass_S + rest_S)[off][0])
        findings.problem(f"{where}: targets and tail of {int(off.sum())} tokens sum to {worst:.4f}, not to 1")


def _check_written(
    logprobs_SK: npt.NDArray[Any],
    is_written_SK: npt.NDArray[np.bool_],
    token_logprobs: npt.NDArray[np.float32],
    precision: float,
    where: str,
    findings: Findings,
) -> None:
    """Every token written is in its row, with its log-probability, or was less probable than the row's last."""
    stored_SK = logprobs_SK.astype(np.float64)
    is_written_SK = is_written_SK & (stored_SK > -np.inf)  # padding has id 0
    is_there_S = is_written_SK.any(axis=1)
    stored_S = np.where(is_written_SK, stored_SK, 0.0).sum(axis=1)
    written_S = token_logprobs.astype(np.float64)
    lowest_S = np.where(stored_SK > -np.inf, stored_SK, np.inf).min(axis=1)
    # float16 holds a value of 16 to 0.008; a precision rounds by half of it.
    allowed_S = 1e-2 + precision / 2 + 2e-3 * np.abs(written_S)
    wrong_S = np.where(is_there_S, np.abs(stored_S - written_S) > allowed_S, written_S > lowest_S + allowed_S)
    if wrong_S.any():
        findings.problem(
            f"{where}: targets disagree with token_logprobs about {int(wrong_S.sum())} of {len(wrong_S)} tokens "
            "written; rows belong to other tokens"
        )


def _check_ids(ids: npt.NDArray[Any], vocab_size: int, where: str, what: str, findings: Findings) -> None:
    known = ids[ids != IGNORE_INDEX]
    if len(known) and (known.min() < 0 or known.max() >= vocab_size):
        findings.problem(
            f"{where}: {what} from {known.min()} to {known.max()}, outside of a vocabulary of {vocab_size:,}"
        )


def _try_shifted(row: Conversation, findings: Findings) -> None:
    """Adds what rows give to the tokens before, at and after the one that they are to predict."""
    at = np.flatnonzero(row.is_row) + 1  # the token that each row predicts
    inside = (at + 1 < len(row.input_ids)) & (row.input_ids[np.minimum(at + 1, len(row.input_ids) - 1)] != IGNORE_INDEX)
    for n, shift in enumerate((-1, 0, 1)):
        tokens = row.input_ids[at[inside] + shift]
        findings.shifted[n] += float((row.probs[inside] * (row.ids[inside] == tokens[:, None])).sum())
    findings.num_shifted += int(inside.sum())
