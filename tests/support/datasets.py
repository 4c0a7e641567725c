"""Finished datasets and exports of them, made by hand and read by code of the tests' own.

Shape legend: S supervised tokens, K targets per token, D draws per token, V vocabulary.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.dataset.export import default_output, export
from stillhouse.pipeline.folder import shard
from stillhouse.pipeline.folder.certified import certified, parse_certified
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.schemas import tables, targets
from stillhouse.schemas.config import TargetsConfig, values_hash

V, K, D = 300, 8, 16
DATASETS = [
    pytest.param({}, id="top_k"),
    pytest.param({"top_p": 0.7, "precision": 1 / 64}, id="top_p"),
]
"""Options of `published_table` and `write_dataset`: rows of one width and of many."""

CONFIG: dict[str, Any] = {
    "targets.draws_from": "engine",
    "sampling.temperature": 1.0,
    "sampling.repetition_penalty": 1.0,
    "sampling.max_tokens": 100,
}

Row = dict[str, Any]


def conversation(random: np.random.Generator, name: str, num_turns: int, top_p: float, precision: float) -> Row:
    """A row of a published table, its tokens drawn from the distributions it stores."""
    input_ids: list[int] = []
    labels: list[int] = []
    logprobs_SV = []
    for _ in range(num_turns):
        prompt = random.integers(0, V, int(random.integers(2, 9))).tolist()
        S = int(random.integers(1, 12))
        logits_SV = random.normal(0, 3.0, (S, V))
        answer_SV = logits_SV - np.log(np.exp(logits_SV).sum(axis=1, keepdims=True))
        answer = [int(random.choice(V, p=np.exp(row) / np.exp(row).sum())) for row in answer_SV]
        input_ids += prompt + answer
        labels += [-100] * len(prompt) + answer
        logprobs_SV.append(answer_SV)
    written = [token for token in labels if token != -100]
    p_SV = np.concatenate(logprobs_SV)
    order_SK = np.argsort(-p_SV, axis=1)[:, :K]
    top = targets.encode_top_k(
        order_SK, np.take_along_axis(p_SV, order_SK, axis=1).astype(np.float32), top_p, precision
    )
    draws_SD = np.stack([random.choice(V, D, p=np.exp(row) / np.exp(row).sum()) for row in p_SV]).astype(np.int32)
    draws = targets.encode_draws(draws_SD)
    row: Row = {
        "sample_id": f"{name}/0",
        "prompt_id": name,
        "messages": [
            {"role": "user", "content": '{\u2028<b>\n"'},
            {"role": "assistant", "content": "ja\u0000"},
        ]
        * num_turns,
        "input_ids": input_ids,
        "labels": labels,
        "target_ids": top.ids.tolist(),
        "target_lengths": top.lengths.tolist(),
        "target_tail": top.tail.tolist(),
        "draw_ids": draws.ids.tolist(),
        "draw_counts": draws.counts.tolist(),
        "draw_lengths": draws.lengths.tolist(),
        "num_draws": D,
        "finish_reasons": ["stop"] * num_turns,
        "loop_tokens": 0,
        "token_logprobs": p_SV[np.arange(len(written)), written].tolist(),
        "num_input_tokens": len(input_ids),
        "num_target_tokens": len(written),
    }
    values = {"target_logprobs": top.logprobs} if precision == 0 else {"target_gaps": top.gaps}
    row |= {name: array.tolist() for name, array in values.items() if array is not None}
    return row | ({"target_precision": precision} if precision else {})


@functools.cache
def published_table(
    num_rows: int = 20, top_p: float = 1.0, precision: float = 0.0, method: str = "both", seed: int = 5
) -> pa.Table:
    """A file of a published dataset: conversations of one turn and of two."""
    random = np.random.default_rng(seed)
    rows = [conversation(random, f"{seed}-{i}", 1 + i % 2, top_p, precision) for i in range(num_rows)]
    table = pa.Table.from_pylist(rows, tables.reviewed([], TargetsConfig(method="both", precision=precision)))
    dropped = {"top_k": "draw", "sampled": "target"}.get(method, "none")
    return table.select(
        [name for name in table.column_names if not name.startswith(dropped) and name != f"num_{dropped}s"]
    )


def write_dataset(
    folder: Path,
    top_p: float = 1.0,
    precision: float = 0.0,
    method: str = "both",
    num_rows: Sequence[int] = (14, 6, 0),
    seed: int = 5,
    config: dict[str, Any] | None = None,
) -> Path:
    """A finished dataset with a file of each of `num_rows`, as a run leaves it, and other values in its `CONFIG`."""
    files = []
    config = CONFIG | (config or {})
    (folder / "dataset/data").mkdir(parents=True)
    for n, rows in enumerate(num_rows):
        table = published_table(rows, top_p, precision, method, seed + n)
        tokens = int(pc.sum(table.column("num_target_tokens")).as_py() or 0)
        data = shard.encode(table, ShardInfo("publish", f"{n:05d}.parquet", values_hash(config), rows, rows, tokens))
        name = f"data/train-{n:05d}-of-{len(num_rows):05d}.parquet"
        (folder / "dataset" / name).write_bytes(data)
        files.append({"file": name, "rows": rows, "target_tokens": tokens, **_bytes_and_digest(data)})
    manifest = {
        "format_version": 2,
        "config_hash": values_hash(config),
        "config": config,
        "teacher": {"vocab_size": V, "final_logit_softcapping": None},
        "targets": {
            "method": method,
            "alignment": "own-token",
            "top_k": K,
            "top_p": top_p,
            "precision": precision,
            "num_draws": D,
            "draws_from": "the whole distribution",
        },
        "rows": sum(file["rows"] for file in files),
        "target_tokens": sum(file["target_tokens"] for file in files),
        "bytes": sum(file["bytes"] for file in files),
        "files": files,
        "set_aside": [],
    }
    write_manifest(folder / "dataset", manifest)
    return folder


def _bytes_and_digest(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(certified(json.loads(json.dumps(manifest)))))


def read_manifest(folder: Path) -> dict[str, Any]:
    return parse_certified((folder / "manifest.json").read_bytes())


def replace_published(run: Path, number: int, rows: list[Row]) -> None:
    """Writes other rows in the place of a published file, with a manifest that says so."""
    manifest = read_manifest(run / "dataset")
    file = manifest["files"][number]
    path = run / "dataset" / file["file"]
    table = pa.Table.from_pylist(rows, schema=pq.read_schema(path))
    _replace(run / "dataset", manifest, file, table)


def replace_exported(folder: Path, manifest: dict[str, Any], file: dict[str, Any], rows: list[Row]) -> None:
    """The same in an export."""
    table = pa.Table.from_pylist(rows, schema=pq.read_schema(folder / file["file"]))
    _replace(folder, manifest, file, table)


def _replace(folder: Path, manifest: dict[str, Any], file: dict[str, Any], table: pa.Table) -> None:
    path = folder / file["file"]
    data = shard.encode(table, shard.decode(path.read_bytes(), "").info)
    path.write_bytes(data)
    file |= _bytes_and_digest(data)
    manifest["bytes"] = sum(file["bytes"] for file in manifest["files"])
    write_manifest(folder, manifest)


def make_export(run: Path, layout: str, **options: Any) -> tuple[Path, dict[str, Any]]:
    """An export where the command puts it, and its manifest."""
    output = default_output(str(run), layout)
    return Path(output), export(str(run), layout, output, num_workers=1, **options)


def published_rows(run: Path) -> list[Row]:
    return [row for file in sorted((run / "dataset/data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def exported_rows(folder: Path) -> list[Row]:
    return [row for file in sorted((folder / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def with_next_token_targets(table: pa.Table, kind: targets.Kind) -> list[tuple[Row, dict[int, dict[int, float]]]]:
    """Each published row, and for each position before a supervised token its targets and their log-probabilities."""
    pairs = []
    for row, decoded in zip(table.to_pylist(), targets.decode(table, kind), strict=True):
        supervised = [t for t, label in enumerate(row["labels"]) if label != -100]
        pairs.append(
            (
                row,
                {
                    t - 1: {int(i): float(lp) for i, lp in zip(ids, logprobs, strict=True) if lp > -np.inf}
                    for t, ids, logprobs in zip(supervised, decoded.ids, decoded.logprobs, strict=True)
                },
            )
        )
    return pairs


def width_of(table: pa.Table, kind: targets.Kind) -> int:
    """The most targets that any token has."""
    return K if kind == "target" else int(pc.max(pc.list_flatten(table.column("draw_lengths"))).as_py())
