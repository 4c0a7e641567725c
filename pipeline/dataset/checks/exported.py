"""The rows of an exported file: what its trainer would read, and, where the dataset is at hand, whether that is what
the dataset says. The layouts' readers are used and not their writers, so a writer's mistake is none of the reader's.

Shape legend: T tokens of a conversation, R rows that the trainer reads (supervised tokens), K targets per row.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.dataset.checks import alignment
from stillhouse.pipeline.dataset.checks.findings import Findings, RowError, digests
from stillhouse.pipeline.dataset.checks.published import check_distinct, check_ids
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.schemas.targets import Targets, decode
from stillhouse.stages.layouts import Layout, Settings, load_layout
from stillhouse.stages.layouts.records import Conversation, records
from stillhouse.stages.teacher import MASS_TOLERANCE

RELATIVE, ABSOLUTE = 2e-3, 1e-5
"""By how much a log-probability may differ from the dataset's: float16 rounds to 5e-4 of it."""


def is_judged(sampling: dict[str, Any] | None) -> bool:
    """Whether `alignment.own_token` holds for what was written with `sampling` (of a manifest)."""
    return sampling is not None and sampling["temperature"] <= 1.0 and sampling["repetition_penalty"] == 1.0


def check_lines(data: bytes, file: dict[str, Any], layout: Layout, source: pa.Table | None, findings: Findings) -> None:
    """JSON lines, each as the trainer reads it, and the messages that they are to be."""
    assert layout.read_line is not None
    lines = data.split(b"\n")
    if lines.pop():
        findings.file_problem("its last line has no end; export again")
    findings.rows = len(lines)
    if len(lines) != file["rows"]:
        findings.leave_out(f"holds {len(lines):,} lines, and manifest.json says {file['rows']:,}")
        return
    findings.row_digests = digests(lines)
    sources = _sources(source, ["messages"], len(lines), findings)
    for i, line in enumerate(lines):
        try:
            messages = layout.read_line(line)
        except ValueError as error:
            findings.row_problem(i, str(error))
            continue
        if sources is not None and messages != [_as_text(message) for message in sources[i]["messages"]]:
            findings.row_problem(i, "its messages are not those of the dataset")


def _as_text(message: dict[str, str | None]) -> dict[str, str | None]:
    thought = message["reasoning_content"]
    before = "" if thought is None else f"<think>\n{thought}\n</think>\n\n"  # docs/templates.md
    return {"role": message["role"], "content": f"{before}{message['content']}"}


def check_exported(
    table: pa.Table,
    layout_name: str,
    settings: Settings,
    manifest: dict[str, Any],
    source: pa.Table | None,
    findings: Findings,
) -> None:
    """All rows of an exported file, whose columns are right. A row is told once, with the first thing that is wrong.

    `source` is the file of the dataset that it was made from, without the rows that were too long.
    """
    layout = load_layout(layout_name)
    assert layout.read_row is not None
    sources = _sources(source, ["input_ids", "labels"], table.num_rows, findings)
    targets: list[Targets] = []
    if source is not None and sources is not None:
        targets = decode(source, settings.kind)
    contents: list[bytes] = []
    suspects: list[tuple[int, Findings]] = []
    by_numbers = source is None and is_judged(manifest.get("sampling"))
    for i, record in enumerate(records(table)):
        contents.append(b"")
        try:
            row = _read(layout, layout_name, record, settings)
            _check_row(row, settings)
            if sources is not None:
                _compare(row, sources[i], targets[i], layout, settings)
        except RowError as error:
            findings.row_problem(i, str(error))
            continue
        contents[i] = b"".join(part.tobytes() for part in (row.input_ids, row.ids, row.probs))
        is_normalised = layout.is_normalised and settings.kind == "target"
        seen = Findings(target_tokens=int(row.is_row.sum()))
        seen.surplus = alignment.own_token(row, is_draws=settings.kind == "draw", is_normalised=is_normalised)
        seen.shifted, seen.num_shifted = alignment.tried_shifted(row)
        if by_numbers and alignment.is_misaligned(seen.surplus):
            suspects.append((i, seen))
        else:
            findings.add(seen)
    findings.row_digests = digests(contents)
    if sum(seen.target_tokens for _, seen in suspects) <= findings.target_tokens:
        for i, seen in suspects:
            findings.row_problem(i, misalignment(seen, manifest) or "")
    else:  # the file is wrong, and not some of its rows
        for _, seen in suspects:
            findings.add(seen)
    if source is None and not findings.num_problems and not findings.has_bad_rows:
        text = misalignment(findings, manifest)
        if text is not None:
            findings.file_problem(text)


def misalignment(found: Findings, manifest: dict[str, Any]) -> str | None:
    """Why the rows of a file, or of all, do not seem to belong to their tokens; None where they do."""
    before, own, after = (found.shifted / max(found.num_shifted, 1)).tolist()
    is_low = is_judged(manifest.get("sampling")) and alignment.is_misaligned(found.surplus)
    if not is_low and (found.num_shifted < alignment.MIN_TOKENS or own > max(before, after)):
        return None
    return (
        f"alignment: rows give their own tokens a mean probability of {own:.4f} where "
        f"{found.surplus[0] / found.num_shifted:.4f} is to be expected, those before {before:.4f}, those after "
        f"{after:.4f}, over {found.num_shifted:,} tokens; they are shifted, or belong to other conversations"
    )


def _read(layout: Layout, name: str, record: dict[str, Any], settings: Settings) -> Conversation:
    assert layout.read_row is not None
    try:
        return layout.read_row(record, settings)
    except (ValueError, KeyError, IndexError) as error:
        raise RowError(f"cannot be learned from as {name} reads it: {error}") from None


def _check_row(row: Conversation, settings: Settings) -> None:
    check_ids(row.input_ids[row.input_ids != IGNORE_INDEX], settings.vocab_size, "input_ids")
    if not row.is_row.any() and not settings.is_partial:
        raise RowError("supervises nothing")
    num_tokens = len(row.input_ids) if row.num_tokens is None else row.num_tokens
    if row.is_row[num_tokens - 1 :].any():
        raise RowError("its last row has targets, which no token follows")
    mass_R = row.probs.sum(axis=1)
    tolerance = MASS_TOLERANCE if settings.kind == "target" else 1e-3
    if not ((mass_R > 0) & (mass_R <= 1 + tolerance)).all():
        raise RowError(f"rows whose probabilities sum to {mass_R.min():.4g} or {mass_R.max():.4g}")
    is_kept_RK = row.probs > 0
    check_distinct(row.ids, is_kept_RK, "target ids")
    if settings.kind == "target" and (np.diff(row.probs, axis=1) > 0).any():
        raise RowError("targets are not in order, most probable first")


def _sources(
    source: pa.Table | None, names: list[str], num_rows: int, findings: Findings
) -> list[dict[str, Any]] | None:
    """The dataset's rows, by which the file's are named; None where there are none or other ones."""
    if source is None:
        return None
    if source.num_rows != num_rows:
        findings.leave_out(f"holds {num_rows:,} rows, and the dataset's file has {source.num_rows:,} for it")
        return None
    findings.sample_ids = source.column("sample_id").to_pylist()
    if names == ["messages"]:
        return [{"messages": value} for value in source.column("messages").to_pylist()]
    return list(records(source.select(names)))


def without_long(source: pa.Table, max_length: int) -> pa.Table:
    """The rows that an export of `max_length` (0: of any) takes."""
    return source.filter(pc.less_equal(source.column("num_input_tokens"), max_length)) if max_length else source


def _compare(row: Conversation, source: dict[str, Any], targets: Targets, layout: Layout, settings: Settings) -> None:
    """Raises `RowError` where the trainer would read other tokens, positions or distributions than the dataset has."""
    ids_T, ours = source["input_ids"], source["labels"] != IGNORE_INDEX
    num_tokens = len(row.input_ids) if row.num_tokens is None else row.num_tokens
    if num_tokens != len(ids_T):
        raise RowError(f"has {num_tokens} tokens, and the dataset's row has {len(ids_T)}")
    found_T = row.input_ids[:num_tokens]
    differs = (found_T != ids_T) & (found_T != IGNORE_INDEX)
    if differs.any():
        raise RowError(
            f"input_ids differ from the dataset's at {int(differs.sum())} tokens, first at {differs.argmax()}"
        )
    expected = np.append(ours[1:], False)
    if settings.is_partial:
        has_S = np.asarray((targets.logprobs > -np.inf).any(axis=1))
        expected[expected] = has_S
        targets = Targets(targets.ids[has_S], targets.logprobs[has_S], targets.tail[has_S])
    if not np.array_equal(row.is_row[:num_tokens], expected):
        raise RowError(
            f"rows before {int(row.is_row.sum())} tokens are read, and the dataset has {int(expected.sum())}, others"
        )
    logprobs_RK = targets.logprobs.astype(np.float64)
    probs_RK = np.exp(logprobs_RK)
    if layout.is_normalised:
        probs_RK /= probs_RK.sum(axis=1, keepdims=True)
    width = max(probs_RK.shape[1], row.probs.shape[1])
    found_RK, wanted_RK = _wide(row.probs, width), _wide(probs_RK, width)
    both_RK = (found_RK > 0) & (wanted_RK > 0)
    is_other_RK = (found_RK > 0) != (wanted_RK > 0)
    is_other_RK |= both_RK & (_wide(row.ids, width) != _wide(targets.ids, width))
    if is_other_RK.any():
        raise RowError(
            f"target ids of {int(is_other_RK.any(axis=1).sum())} of {len(ids_T[ours])} tokens are not the dataset's"
        )
    logs = np.log(np.where(both_RK, wanted_RK, 1.0))
    off_RK = np.abs(np.log(np.where(both_RK, found_RK, 1.0)) - logs)
    wrong_RK = off_RK > ABSOLUTE + RELATIVE * np.abs(logs)
    if wrong_RK.any():
        raise RowError(
            f"probabilities of {int(wrong_RK.any(axis=1).sum())} of {len(found_RK)} tokens are not the dataset's, by "
            f"up to {off_RK.max():.4g} nats"
        )


def _wide(values: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """[R, width], zeros at the ends."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))
