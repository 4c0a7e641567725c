"""The rows of a published file: every sentence of docs/format.md about its columns.

Shape legend: T tokens of a conversation, S supervised tokens, K targets per token.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.pipeline.dataset.checks import alignment
from stillhouse.pipeline.dataset.checks.entropy import check_against_top_k, check_choice, check_entropies
from stillhouse.pipeline.dataset.checks.findings import Findings, RowError, digests
from stillhouse.pipeline.dataset.checks.text import Words
from stillhouse.pipeline.dataset.teachers import one_by_one
from stillhouse.schemas.lists import supervised_runs
from stillhouse.schemas.tables import ASKED, ENTROPY, IGNORE_INDEX, STUDENT, TEACHER
from stillhouse.schemas.targets import TAIL_FLOOR, Kind, Targets, decode
from stillhouse.stages.layouts.records import Conversation, records
from stillhouse.stages.teacher import MASS_TOLERANCE

FLOAT16 = 2.0**-10
"""How far two neighbouring float16 numbers are from each other, relative to them, at most."""


class Settings(NamedTuple):
    """What a manifest says that rows are checked against."""

    vocab_size: int
    method: str
    top_k: int
    top_p: float
    precision: float
    num_draws: int
    draws_are_whole: bool
    """Whether no draw was lost."""
    keep: dict[str, float] | None
    """Which tokens have targets, where not all have."""
    n: int | None
    answers: str | None
    """Of `task: score`, which answers are supervised (all, last)."""
    teachers: frozenset[str | None]
    """Their names; None alone where there is one."""
    max_tokens: int | None
    """Tokens of an answer that ended by length; None where it holds tokens that are not supervised."""


def settings_of(manifest: dict[str, Any]) -> Settings:
    config, targets = manifest["config"], manifest["targets"]
    views = one_by_one(manifest)
    is_whole_answer = all(
        view["config"].get("generate.thinking", "supervise") == "supervise" for view in views.values()
    )
    return Settings(
        vocab_size=manifest["teacher"]["vocab_size"],
        method=targets["method"],
        top_k=targets.get("top_k", 0),
        top_p=targets.get("top_p", 1.0),
        precision=targets.get("precision") or 0.0,
        num_draws=targets.get("num_draws", 0),
        draws_are_whole=config.get("targets.draws_from") == "engine",
        keep=targets.get("keep"),
        n=config.get("rollout.sampling.n", 1) if config.get("task") == "score" else config.get("sampling.n"),
        answers=config.get("score.answers"),
        teachers=frozenset(views),
        max_tokens=config.get("sampling.max_tokens") if is_whole_answer else None,
    )


def check_published(
    table: pa.Table, manifest: dict[str, Any], words: Mapping[str | None, Words], findings: Findings
) -> None:
    """All rows of a published file, whose columns are right. A row is told once, with the first thing that is wrong.
    `words` of each teacher by its name (of a single one by None) as far as they are known."""
    settings = settings_of(manifest)
    kinds: list[Kind] = [kind for kind in ("target", "draw") if f"{kind}_ids" in table.column_names]
    more = [name for name in (ENTROPY.name, *ASKED.names, *STUDENT.names) if name in table.column_names]
    arrays = ["input_ids", "labels", "token_logprobs", *more, *(f"{kind}_lengths" for kind in kinds)]
    names = ["sample_id", "prompt_id", "messages", "rendering_differs", "finish_reasons", "probe", "num_input_tokens"]
    single = ("num_draws", "target_precision", TEACHER.name)
    names += ["num_target_tokens", *(name for name in single if name in table.column_names)]
    rows = table.select(names).to_pylist()
    findings.sample_ids = [row["sample_id"] for row in rows]
    if TEACHER.name in table.column_names:
        findings.teachers.update(row[TEACHER.name] for row in rows)
    findings.row_digests = digests([name.encode() for name in findings.sample_ids])
    is_right = np.ones(len(rows), dtype=np.bool_)
    for i, (row, record) in enumerate(zip(rows, records(table.select(arrays)), strict=True)):
        row |= record
        try:
            _check_names(row, settings)
            _check_tokens(row, settings, kinds)
            _check_turns(row, settings)
        except RowError as error:
            findings.row_problem(i, str(error))
            is_right[i] = False
        else:
            findings.target_tokens += int(row["num_target_tokens"])
    for kind in kinds:
        try:
            decoded = decode(table, kind)
        except ValueError as error:
            if is_right.all():  # or it was told already
                findings.file_problem(str(error))
            return
        for i in np.flatnonzero(is_right).tolist():
            try:
                _check_targets(rows[i], decoded[i], kind, settings, findings)
            except RowError as error:
                findings.row_problem(i, str(error))
                is_right[i] = False
    rarities = np.concatenate(findings.rarity or [np.zeros(0)])
    if alignment.are_rare(rarities) and not findings.has_bad_rows:
        findings.file_problem(
            f"draws hold the {len(rarities):,} tokens written more seldom than token_logprobs say; rows belong to "
            "other tokens"
        )
    for i in np.flatnonzero(is_right).tolist():
        try:
            if (known := words.get(rows[i].get(TEACHER.name))) is not None:
                known.check(rows[i])
        except RowError as error:
            findings.row_problem(i, str(error))


def _check_names(row: dict[str, Any], settings: Settings) -> None:
    prompt, slash, number = row["sample_id"].rpartition("/")
    if not slash or prompt != row["prompt_id"] or not number.isdecimal() or str(int(number)) != number:
        raise RowError("its sample_id is not its prompt_id, a slash and a number")
    if settings.n is not None and int(number) >= settings.n:
        raise RowError(f"is sample {int(number)} of its prompt, and sampling.n is {settings.n}")
    if row.get(TEACHER.name) not in settings.teachers:
        raise RowError(f"its teacher is {row.get(TEACHER.name)!r}, which manifest.json does not name")
    if row.get("num_draws", settings.num_draws) != settings.num_draws:
        raise RowError(f"num_draws is {row['num_draws']}, manifest.json says {settings.num_draws}")
    if row.get("target_precision", settings.precision) != settings.precision:
        raise RowError(f"target_precision is {row['target_precision']}, manifest.json says {settings.precision}")


def _check_tokens(row: dict[str, Any], settings: Settings, kinds: list[Kind]) -> None:
    """Labels are the ids of the supervised tokens, and there is one value of everything for each of those."""
    ids_T, labels_T, logprobs_S = row["input_ids"], row["labels"], row["token_logprobs"]
    if not len(ids_T) == len(labels_T) == row["num_input_tokens"]:
        raise RowError(f"{len(ids_T)} input_ids, {len(labels_T)} labels and {row['num_input_tokens']} num_input_tokens")
    check_ids(ids_T, settings.vocab_size, "input_ids")
    ours = labels_T != IGNORE_INDEX
    if (labels_T[ours] != ids_T[ours]).any():
        raise RowError(f"labels differ from input_ids at {int((labels_T != ids_T)[ours].sum())} tokens")
    S = int(ours.sum())
    if not S:
        raise RowError("supervises nothing")
    if ours[0]:
        raise RowError("supervises its first token, which nothing predicts")
    entropy = [ENTROPY.name] if ENTROPY.name in row else []
    counts = {name: len(row[name]) for name in ("token_logprobs", *entropy, *(f"{kind}_lengths" for kind in kinds))}
    for name, count in {**counts, "num_target_tokens": row["num_target_tokens"]}.items():
        if count != S:
            raise RowError(f"{count} {name} for {S} supervised tokens")
    if not (np.isfinite(logprobs_S) & (logprobs_S <= MASS_TOLERANCE)).all():
        raise RowError("token_logprobs hold numbers that are no log-probabilities")
    if "student_logprobs" in row:
        own_S = row["student_logprobs"]
        if len(own_S) != S or not (np.isfinite(own_S) & (own_S <= MASS_TOLERANCE)).all():
            raise RowError(f"its {len(own_S)} student_logprobs are not a log-probability for each of {S} tokens")
    if "asked_ids" in row:
        _check_asked(row["asked_ids"], row["asked_logprobs"], S, settings)
    if row["probe"] is not None and not 0 <= (row["probe"]["token"] or 0) < S:
        raise RowError(f"its probe is of token {row['probe']['token']} of {S}")
    if entropy:
        check_entropies(row[ENTROPY.name], row["probe"], settings.vocab_size)


def _check_asked(ids: npt.NDArray[Any], logprobs: npt.NDArray[Any], S: int, settings: Settings) -> None:
    """As many more ids for each supervised token, with a log-probability each."""
    if not len(ids) or len(ids) % S or len(logprobs) != len(ids):
        raise RowError(f"{len(ids)} asked_ids and {len(logprobs)} asked_logprobs for {S} supervised tokens")
    check_ids(ids, settings.vocab_size, "asked_ids")
    if not (logprobs <= MASS_TOLERANCE).all():  # NaN is not
        raise RowError("asked_logprobs hold numbers that are no log-probabilities")


def _check_turns(row: dict[str, Any], settings: Settings) -> None:
    """Roles take turns, and each of the teacher's turns is a run of labels with a finish reason."""
    roles = [message["role"] for message in row["messages"]]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        raise RowError(f"its {len(roles)} messages are not one of the user and one of the teacher in turn")
    starts, ends = supervised_runs(row["labels"])
    reasons = row["finish_reasons"]
    num_learned = min(1, len(reasons)) if settings.answers == "last" else len(reasons)
    if not len(turns) // 2 == len(reasons) or len(starts) != num_learned:
        raise RowError(
            f"{len(turns) // 2} answers in messages, {len(starts)} in labels and {len(reasons)} finish_reasons"
        )
    whole = "stop" if settings.answers is None else "given"
    if reasons[-1] not in (whole, "length") or any(reason != whole for reason in reasons[:-1]):
        raise RowError(f"finish_reasons are not {whole} of every answer, or length of the last one")
    if settings.max_tokens is not None:
        lengths = ends - starts
        if lengths.max() > settings.max_tokens:
            raise RowError(f"an answer has {lengths.max()} tokens, and sampling.max_tokens is {settings.max_tokens}")
        if reasons[-1] == "length" and lengths[-1] != settings.max_tokens:
            raise RowError(
                f"its last answer has {lengths[-1]} tokens and finish_reasons say length, which is "
                f"{settings.max_tokens} tokens"
            )


def _check_targets(row: dict[str, Any], targets: Targets, kind: Kind, settings: Settings, findings: Findings) -> None:
    """S: the tokens that have targets, where not all have."""
    is_row_T = np.append(row["labels"][1:] != IGNORE_INDEX, False)
    written_S, lengths_S = row["token_logprobs"].astype(np.float64), row[f"{kind}_lengths"]
    entropies_S = row.get(ENTROPY.name)
    if settings.keep is not None:
        has_targets = lengths_S > 0
        if kind == "target" or settings.draws_are_whole:  # else a token that was kept may have lost all of its draws
            check_choice(row, has_targets, settings.keep)
        if kind == "target" and (targets.tail[~has_targets] != 0).any():
            raise RowError("target_tail of tokens without targets is not 0, all of their mass")
        if not has_targets.any():
            return
        is_row_T[is_row_T] = has_targets
        targets = Targets(targets.ids[has_targets], targets.logprobs[has_targets], targets.tail[has_targets])
        written_S, lengths_S = written_S[has_targets], lengths_S[has_targets]
        entropies_S = row[ENTROPY.name][has_targets]
    logprobs_SK = targets.logprobs.astype(np.float64)
    probs_SK = np.exp(logprobs_SK)
    is_kept_SK = logprobs_SK != -np.inf
    if kind == "target" and not (
        (logprobs_SK <= MASS_TOLERANCE).all()  # NaN is not
        and (targets.tail <= MASS_TOLERANCE).all()
        and np.isfinite(targets.tail).all()
    ):
        raise RowError(f"{kind}s hold numbers that are no log-probabilities")
    check_ids(targets.ids[is_kept_SK], settings.vocab_size, f"{kind}_ids")
    check_distinct(targets.ids, is_kept_SK, f"{kind}_ids")
    conversation = Conversation(row["input_ids"], is_row_T, targets.ids, probs_SK)
    own_S = alignment.given_to_own(conversation)
    if kind == "target":
        _check_top_k(logprobs_SK, probs_SK, targets.tail.astype(np.float64), lengths_S, settings)
        if entropies_S is not None:
            check_against_top_k(entropies_S.astype(np.float64), targets, settings.vocab_size, settings.precision)
        wrong = _not_its_own(logprobs_SK, is_kept_SK, own_S, written_S, settings.precision)
    else:
        mass_S = probs_SK.sum(axis=1)
        if (mass_S > 1 + 1e-6).any() or (settings.draws_are_whole and (mass_S < 1 - 1e-6).any()):
            raise RowError("draw_counts of a token do not sum to num_draws")
        if (np.diff(targets.ids.astype(np.int64), axis=1)[is_kept_SK[:, 1:]] <= 0).any():
            raise RowError("draw_ids of a token do not ascend")
        probs_S = np.exp(written_S)
        # A token outside of the K has no draws where they were taken from the K; one of more than 1/K is inside.
        judged_S = settings.draws_are_whole | (probs_S > 1 / (settings.top_k + 1))
        rarity_S = alignment.rarity((own_S * settings.num_draws)[judged_S], probs_S[judged_S], settings.num_draws)
        findings.rarity.append(rarity_S)
        wrong = int((rarity_S > alignment.LOG_TOKEN).sum())
        wrong = wrong or (len(rarity_S) if alignment.are_rare(rarity_S) else 0)
    if wrong:
        raise RowError(
            f"{kind}s disagree with token_logprobs about {wrong} of {len(own_S)} tokens written; "
            "rows belong to other tokens"
        )
    if kind == "target" or settings.method == "sampled":
        sums, number = alignment.tried_shifted(conversation)
        findings.shifted += sums
        findings.num_shifted += number


def _check_top_k(
    logprobs_SK: npt.NDArray[np.float64],
    probs_SK: npt.NDArray[np.float64],
    tail_S: npt.NDArray[np.float64],
    lengths_S: npt.NDArray[np.int32],
    settings: Settings,
) -> None:
    """Targets are as many as the manifest says, in order, and sum to 1 with their tail."""
    if (
        lengths_S.min() < 1
        or lengths_S.max() > settings.top_k
        or (settings.top_p == 1.0 and lengths_S.min() < settings.top_k)
    ):
        raise RowError(f"{lengths_S.min()} to {lengths_S.max()} targets per token, manifest.json says {settings.top_k}")
    if (np.diff(np.maximum(logprobs_SK, -1e9), axis=1) > 0).any():
        raise RowError("targets are not in order, most probable first")
    rest_S = np.maximum(np.exp(tail_S), np.exp(TAIL_FLOOR))
    sums_S = probs_SK.sum(axis=1) + rest_S
    off_S = np.abs(sums_S - 1.0)
    if (off := off_S > 5e-3 + settings.precision).any():
        raise RowError(f"targets and tail of {int(off.sum())} tokens sum to {sums_S[off_S.argmax()]:.4f}, not to 1")


def _not_its_own(
    logprobs_SK: npt.NDArray[np.float64],
    is_kept_SK: npt.NDArray[np.bool_],
    own_S: npt.NDArray[np.float64],
    written_S: npt.NDArray[np.float64],
    precision: float,
) -> int:
    """How many tokens are in their row with another log-probability than their own, or are missing in it and more
    probable than its last."""
    with np.errstate(divide="ignore"):
        stored_S = np.log(own_S)
    lowest_S = np.where(is_kept_SK, logprobs_SK, np.inf).min(axis=1)
    # Both are one number of the engine's, rounded to float16 or to a precision in the targets.
    allowed_S = precision / 2 + FLOAT16 * np.abs(written_S) + 1e-6
    wrong_S = np.where(own_S > 0, np.abs(stored_S - written_S) > allowed_S, written_S > lowest_S + allowed_S)
    return int(wrong_S.sum())


def check_ids(ids: npt.NDArray[Any], vocab_size: int, what: str) -> None:
    """Raises `RowError` where ids are outside of the vocabulary."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise RowError(f"{what} from {ids.min()} to {ids.max()}, outside of a vocabulary of {vocab_size:,}")


def check_distinct(ids_SK: npt.NDArray[Any], is_kept_SK: npt.NDArray[np.bool_], what: str) -> None:
    """Raises `RowError` where a token has an id twice."""
    # Places that are not kept get ids of their own, which none has.
    ordered_SK = np.sort(np.where(is_kept_SK, ids_SK, -1 - np.arange(ids_SK.shape[1], dtype=ids_SK.dtype)), axis=1)
    twice_S = (np.diff(ordered_SK, axis=1) == 0).any(axis=1)
    if twice_S.any():
        raise RowError(f"{what} of {int(twice_S.sum())} tokens hold an id twice")
