"""`stillhouse verify FOLDER`: is a dataset, or an export of one, what its manifest says and what its trainer expects?

Needs no source and no teacher. Beside checksums and shapes it tests the alignment on the numbers themselves: the
distribution that produced a token gives that token more probability than its neighbours' distributions do, so of rows
tried one token early, in place and one token late the right ones must win.

Shape legend: T tokens of a conversation, S supervised tokens, K targets per token.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.pipeline import shards
from stillhouse.pipeline.export import MANIFEST, in_processes, open_dataset
from stillhouse.pipeline.report import say
from stillhouse.pipeline.shards import DamagedError, Store
from stillhouse.schemas.config import ConfigError
from stillhouse.schemas.targets import TAIL_FLOOR, decode
from stillhouse.stages.export import EMPTY_LOGPROB, IGNORE, LAYOUTS, num_id_bits

MIN_TOKENS = 100
"""With fewer supervised tokens than these, alignment is not judged: their neighbours might win by chance."""
MAX_PROBLEMS = 20
"""Named at most; all are counted."""


class Row(NamedTuple):
    """One conversation of any layout, as next-token rows."""

    input_ids: npt.NDArray[Any]  # [T]
    is_row: npt.NDArray[np.bool_]  # [T] whether the trainer reads row j
    ids: npt.NDArray[Any]  # [rows read, K], 0 where there is nothing
    probs: npt.NDArray[np.float64]  # [rows read, K], 0 where there is nothing


@dataclass
class Found:
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

    def add(self, other: "Found") -> None:
        self.rows += other.rows
        self.target_tokens += other.target_tokens
        self.num_problems += other.num_problems
        self.problems = (self.problems + other.problems)[:MAX_PROBLEMS]
        self.shifted = self.shifted + other.shifted
        self.num_shifted += other.num_shifted


@dataclass(frozen=True)
class _Task:
    store: Store
    key: str
    file: dict[str, Any]
    layout: str | None
    manifest: dict[str, Any]


def verify(url: str, num_workers: int | None = None) -> dict[str, Any]:
    """What was found: `ok`, `problems` (the first ones, each naming its file and row) and counts.

    `url` is a run, a dataset, or an export. Raises `ConfigError` where there is none of them.
    """
    store = Store(url)
    prefix, manifest = "", _read_manifest(store)
    if manifest is None or "layout" not in manifest:
        dataset = open_dataset(url)
        prefix, manifest = dataset.prefix, dataset.manifest
    layout = manifest.get("layout")
    total = Found()
    tasks = [_Task(store, prefix + file["file"], file, layout, _needed(manifest)) for file in manifest["files"]]
    for found in in_processes(_verify_file, tasks, num_workers):
        total.add(found)
    listed = {file["file"] for file in manifest["files"]}
    for name in sorted(store.list(f"{prefix}data")):
        if f"data/{name}" not in listed:
            total.problem(f"data/{name}: is not in manifest.json, but a loader would read it; delete it")
    for what, counted in (("rows", total.rows), ("target_tokens", total.target_tokens)):
        if counted != manifest[what]:
            total.problem(f"manifest.json: says {manifest[what]:,} {what}, the files hold {counted:,}")
    probabilities = (total.shifted / max(total.num_shifted, 1)).round(4).tolist()
    if total.num_shifted >= MIN_TOKENS and probabilities[1] <= max(probabilities[0], probabilities[2]):
        total.problem(
            f"alignment: rows give the token before theirs a probability of {probabilities[0]}, their own "
            f"{probabilities[1]} and the one after {probabilities[2]}, over {total.num_shifted:,} tokens; they are "
            "shifted"
        )
    alignment = "own-token" if layout is None else LAYOUTS[layout].alignment
    return {
        "folder": url,
        "layout": layout or "native",
        "alignment": alignment,
        "ok": total.num_problems == 0,
        "files": len(tasks),
        "rows": total.rows,
        "target_tokens": total.target_tokens,
        "alignment_tokens": total.num_shifted if total.num_shifted >= MIN_TOKENS else 0,
        "probability_before_own_after": probabilities,
        "num_problems": total.num_problems,
        "problems": total.problems,
    }


def show(result: dict[str, Any]) -> None:
    """`verify` for people, on standard error."""
    say(
        f"{result['folder']}: {result['layout']}, {result['files']} files, {result['rows']:,} conversations, "
        f"{result['target_tokens']:,} supervised tokens"
    )
    if result["alignment"] != "none":
        before, own, after = result["probability_before_own_after"]
        verdict = (
            f"a row gives its own token a mean probability of {own}, the one before {before}, the one after {after}"
            if result["alignment_tokens"]
            else f"not judged, fewer than {MIN_TOKENS} tokens"
        )
        say(f"  alignment ({result['alignment']}): {verdict}")
    for problem in result["problems"]:
        say(f"  {problem}")
    if result["num_problems"] > len(result["problems"]):
        say(f"  and {result['num_problems'] - len(result['problems']):,} more")
    say("  all is as it should be" if result["ok"] else f"  {result['num_problems']:,} problems")


def _read_manifest(store: Store) -> dict[str, Any] | None:
    data = store.get_or_none(MANIFEST)
    if data is None:
        return None
    try:
        return shards.parse_certified(data)
    except ValueError:
        raise ConfigError(f"{store.path(MANIFEST)}: is damaged; make the folder again") from None


def _needed(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a task needs of the manifest, without its list of files."""
    return {key: manifest.get(key) for key in ("teacher", "targets", "settings")}


def _verify_file(task: _Task) -> Found:
    found = Found()
    name = task.file["file"]
    try:
        data = task.store.get(task.key)
    except FileNotFoundError:
        found.problem(f"{name}: is missing; run again to make it again")
        return found
    if hashlib.sha256(data).hexdigest() != task.file["sha256"]:
        found.problem(f"{name}: is not the file that manifest.json names (another sha256); make it again")
        return found
    if task.layout is not None and LAYOUTS[task.layout].is_jsonl:
        _lines(data, task, found)
        return found
    try:
        table = shards.decode(data, name).table
    except DamagedError as error:
        found.problem(str(error))
        return found
    found.rows = table.num_rows
    readers: dict[str | None, Callable[..., None]] = {None: _native, **dict.fromkeys(LAYOUTS, _exported)}
    readers[task.layout](table, task, found)
    return found


def _lines(data: bytes, task: _Task, found: Found) -> None:
    """Lines of `{"messages": [...]}`, each ending with the teacher."""
    lines = data.split(b"\n")[:-1]
    found.rows, found.target_tokens = len(lines), task.file["target_tokens"]  # of which text says nothing
    for i, line in enumerate(lines):
        where = f"{task.file['file']} line {i + 1}"
        try:
            messages = json.loads(line)["messages"]
            roles = [message["role"] for message in messages]
            is_text = all(isinstance(message["content"], str) for message in messages)
        except (ValueError, KeyError, TypeError) as error:
            found.problem(f"{where}: is no object with messages ({type(error).__name__})")
            continue
        if not is_text or not roles or roles[-1] != "assistant" or "user" not in roles:
            found.problem(f"{where}: its messages are no conversation that ends with the teacher's words")


def _native(table: pa.Table, task: _Task, found: Found) -> None:
    """The published layout: own-token targets of each kind that the dataset has."""
    name, vocab_size = task.file["file"], task.manifest["teacher"]["vocab_size"]
    targets = task.manifest["targets"]
    kinds = [kind for kind in ("target", "draw") if f"{kind}_ids" in table.column_names]
    records = list(_records(table.select(["input_ids", "labels", "token_logprobs"])))
    input_ids, labels, written_logprobs = (
        [record[column] for record in records] for column in ("input_ids", "labels", "token_logprobs")
    )
    for i, (ids_T, labels_T) in enumerate(zip(input_ids, labels, strict=True)):
        where = f"{name} row {i}"
        if len(ids_T) != len(labels_T):
            found.problem(f"{where}: {len(ids_T)} input_ids and {len(labels_T)} labels")
            continue
        ours = labels_T != IGNORE
        if (labels_T[ours] != ids_T[ours]).any():
            found.problem(f"{where}: labels differ from input_ids at {int((labels_T != ids_T)[ours].sum())} tokens")
        if not ours.any() or ours[0]:
            found.problem(f"{where}: supervises " + ("its first token" if ours.any() else "nothing"))
        if len(written_logprobs[i]) != ours.sum():
            found.problem(f"{where}: {len(written_logprobs[i])} token_logprobs of {ours.sum()} supervised tokens")
        _check_ids(ids_T, vocab_size, where, "input_ids", found)
        found.target_tokens += int(ours.sum())
    for kind in kinds:
        try:
            rows = decode(table, kind)  # type: ignore[arg-type]
        except ValueError as error:
            found.problem(f"{name}: {error}")
            continue
        for i, row in enumerate(rows):
            where, ours = f"{name} row {i}", labels[i] != IGNORE
            if len(row.tail) != ours.sum():
                found.problem(f"{where}: {len(row.tail)} rows of {kind}s for {ours.sum()} supervised tokens")
                continue
            probs_SK = np.exp(row.logprobs.astype(np.float64))
            ids_SK = row.ids.astype(np.int64)
            _check_ids(ids_SK, vocab_size, where, f"{kind}_ids", found)
            mass_S = probs_SK.sum(axis=1)
            if kind == "target":
                _check_top_k(row.logprobs.astype(np.float32), mass_S, row.tail, targets, where, found)
                _check_written(
                    row.logprobs,
                    ids_SK == input_ids[i][ours][:, None],
                    written_logprobs[i],
                    targets.get("precision") or 0.0,
                    where,
                    found,
                )
            elif (mass_S > 1 + 1e-6).any() or (
                targets["draws_from"].startswith("the whole") and (mass_S < 1 - 1e-6).any()
            ):
                found.problem(f"{where}: draw_counts of a token do not sum to num_draws")
            is_row = np.append(ours[1:], False)
            _count(Row(input_ids[i], is_row, ids_SK, probs_SK), found)


def _check_top_k(
    logprobs_SK: npt.NDArray[np.float32],
    mass_S: npt.NDArray[np.float64],
    tail_S: npt.NDArray[Any],
    targets: dict[str, Any],
    where: str,
    found: Found,
) -> None:
    if (np.diff(np.nan_to_num(logprobs_SK, neginf=-1e9), axis=1) > 0).any():
        found.problem(f"{where}: targets are not in order, most probable first")
    if targets.get("top_p") == 1.0 and logprobs_SK.shape[1] != targets["top_k"]:
        found.problem(f"{where}: {logprobs_SK.shape[1]} targets per token, manifest.json says {targets['top_k']}")
    rounding = 5e-3 + (targets.get("precision") or 0.0)
    rest_S = np.maximum(np.exp(tail_S.astype(np.float64)), np.exp(TAIL_FLOOR))
    off = np.abs(mass_S + rest_S - 1.0) > rounding
    if off.any():
        worst = float((mass_S + rest_S)[off][0])
        found.problem(f"{where}: targets and tail of {int(off.sum())} tokens sum to {worst:.4f}, not to 1")


def _check_written(
    logprobs_SK: npt.NDArray[Any],
    is_written_SK: npt.NDArray[np.bool_],
    token_logprobs: npt.NDArray[np.float32],
    precision: float,
    where: str,
    found: Found,
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
        found.problem(
            f"{where}: targets disagree with token_logprobs about {int(wrong_S.sum())} of {len(wrong_S)} tokens "
            "written; rows belong to other tokens"
        )


class _Rows(NamedTuple):
    """A list of lists of one conversation."""

    lengths: npt.NDArray[np.int64]  # [T]
    values: npt.NDArray[Any]  # [sum of lengths]

    def matrix(self, width: int | None = None) -> npt.NDArray[Any]:
        """[T, width]; raises ValueError where a row has another length."""
        width = int(self.lengths.max(initial=0)) if width is None else width
        if (self.lengths != width).any():
            raise ValueError(f"rows of {self.lengths.min(initial=0)} to {self.lengths.max(initial=0)}, not all {width}")
        return self.values.reshape(len(self.lengths), width)

    def padded(self) -> npt.NDArray[Any]:
        """[T, longest], zeros at the ends."""
        filled = np.zeros((len(self.lengths), int(self.lengths.max(initial=0))), dtype=self.values.dtype)
        filled[np.arange(filled.shape[1]) < self.lengths[:, None]] = self.values
        return filled


def _records(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Each row's columns: arrays, and `_Rows` of lists of lists."""
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        outer = column.offsets.to_numpy()
        if not pa.types.is_list(column.type.value_type):
            columns[name] = (outer, None, column.values.to_numpy(zero_copy_only=False))
        else:
            inner = column.values
            columns[name] = (outer, inner.offsets.to_numpy(), inner.values.to_numpy(zero_copy_only=False))
    for i in range(table.num_rows):
        record: dict[str, Any] = {}
        for name, (outer, inner, values) in columns.items():
            start, end = outer[i], outer[i + 1]
            if inner is None:
                record[name] = values[start:end]
            else:
                ends = inner[start : end + 1].astype(np.int64)
                record[name] = _Rows(np.diff(ends), values[ends[0] : ends[-1]])
        yield record


def _exported(table: pa.Table, task: _Task, found: Found) -> None:
    """A trainer's layout: its own columns and mask, read as that trainer reads them."""
    name, settings = task.file["file"], task.manifest["settings"]
    assert task.layout is not None
    read = {
        "axolotl": _axolotl,
        "distillkit": _distillkit,
        "distillkit-compressed": _distillkit,
        "verl": _verl,
        "tinker": _tinker,
    }[task.layout]
    for i, record in enumerate(_records(table)):
        where = f"{name} row {i}"
        try:
            row = read(record, settings)
        except (ValueError, KeyError, IndexError) as error:
            found.problem(f"{where}: cannot be read as {task.layout} reads it ({type(error).__name__}: {error})")
            continue
        found.target_tokens += int(row.is_row.sum())
        _check_ids(row.input_ids, settings["vocab_size"], where, "input_ids", found)
        _check_ids(row.ids, settings["vocab_size"], where, "target ids", found)
        if not row.is_row.any():
            found.problem(f"{where}: supervises nothing")
            continue
        if row.is_row[-1]:
            found.problem(f"{where}: its last row has targets, which no token follows")
            continue
        mass = row.probs.sum(axis=1)
        if ((mass <= 0) | (mass > 1 + 5e-3)).any():
            found.problem(f"{where}: rows whose probabilities sum to {mass.min():.4g} or {mass.max():.4g}")
        _count(row, found)


def _axolotl(record: dict[str, Any], settings: dict[str, Any]) -> Row:
    ids, logprobs, mask = (record[f"target_{name}"] for name in ("token_ids", "logprobs", "mask"))
    T = len(record["input_ids"])
    if not T == len(record["labels"]) == len(record["attention_mask"]) == len(ids.lengths):
        raise ValueError("columns of different lengths")
    if (ids.lengths != logprobs.lengths).any() or (ids.lengths != mask.lengths).any():
        raise ValueError("rows of different numbers of ids, log-probabilities and marks")
    probs_TK = _Rows(logprobs.lengths, np.exp(logprobs.values.astype(np.float64)) * (mask.values > 0)).padded()
    is_row = np.asarray(probs_TK.any(axis=1))
    if not np.array_equal(is_row, np.append(record["labels"][1:] != IGNORE, False)):
        raise ValueError("the mask marks other positions than those before the labels")
    return Row(record["input_ids"], is_row, ids.padded()[is_row], probs_TK[is_row])


def _distillkit(record: dict[str, Any], settings: dict[str, Any]) -> Row:
    input_ids, labels, width = record["input_ids"], record["labels"], settings["width"]
    if "compressed_logprobs" in record:
        logprobs = np.ascontiguousarray(record["compressed_logprobs"].matrix(2 * width)).view("<f2").astype(np.float64)
        bits = num_id_bits(settings["vocab_size"])
        packed = record["bytepacked_indices"].matrix((width * bits + 7) // 8)
        unpacked = np.unpackbits(packed, axis=1)[:, : width * bits].reshape(len(packed), width, bits)
        ids = unpacked.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
    else:
        ids, logprobs = record["token_ids"].matrix(width), record["top_values"].matrix(width).astype(np.float64)
    if not len(input_ids) == len(labels) == len(ids) == len(logprobs) == settings["max_length"]:
        raise ValueError(f"{len(input_ids)} tokens, {len(ids)} rows, where all have {settings['max_length']}")
    is_row: npt.NDArray[np.bool_] = np.asarray(labels >= 0)
    return Row(input_ids, is_row, ids[is_row], _probs(logprobs[is_row]))


def _verl(record: dict[str, Any], settings: dict[str, Any]) -> Row:
    input_ids = np.concatenate([record["prompts"], record["responses"]])
    ids = record["teacher_ids"].matrix(settings["width"])
    logprobs = record["teacher_logprobs"].matrix(settings["width"]).astype(np.float64)
    if not len(input_ids) == len(ids) == len(logprobs) or len(record["response_mask"]) != len(record["responses"]):
        raise ValueError(f"{len(input_ids)} tokens and {len(ids)} rows")
    is_ours = np.append(np.zeros(len(record["prompts"]), dtype=np.bool_), record["response_mask"] > 0)
    is_row = np.append(is_ours[1:], False)
    return Row(input_ids, is_row, ids[is_row], _probs(logprobs[is_row]))


def _tinker(record: dict[str, Any], settings: dict[str, Any]) -> Row:
    ids = record["target_tokens"].matrix(settings["width"])
    weights = record["weights"].matrix(settings["width"]).astype(np.float64)
    if not len(record["input_ids"]) == len(ids) == len(weights):
        raise ValueError(f"{len(record['input_ids'])} tokens, {len(ids)} target_tokens, {len(weights)} weights")
    is_row = np.asarray(weights.any(axis=1))
    # The last token, which no row reads, is not stored; its row belongs to it all the same.
    return Row(np.append(record["input_ids"], IGNORE), np.append(is_row, False), ids[is_row], weights[is_row])


def _probs(logprobs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(logprobs <= EMPTY_LOGPROB, 0.0, np.exp(logprobs))


def _check_ids(ids: npt.NDArray[Any], vocab_size: int, where: str, what: str, found: Found) -> None:
    known = ids[ids != IGNORE]
    if len(known) and (known.min() < 0 or known.max() >= vocab_size):
        found.problem(f"{where}: {what} from {known.min()} to {known.max()}, outside of a vocabulary of {vocab_size:,}")


def _count(row: Row, found: Found) -> None:
    """Adds what rows give to the tokens before, at and after the one that they are to predict."""
    at = np.flatnonzero(row.is_row) + 1  # the token that each row predicts
    inside = (at + 1 < len(row.input_ids)) & (row.input_ids[np.minimum(at + 1, len(row.input_ids) - 1)] != IGNORE)
    for n, shift in enumerate((-1, 0, 1)):
        tokens = row.input_ids[at[inside] + shift]
        found.shifted[n] += float((row.probs[inside] * (row.ids[inside] == tokens[:, None])).sum())
    found.num_shifted += int(inside.sum())
