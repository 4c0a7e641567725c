"""Exports: each layout against the published table, read back by code of the test's own; resume; what is refused.

The trainers' own losses are in `tests/trainers`. Shape legend: T tokens, S supervised tokens, K targets per token.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from stillhouse.pipeline import cli, export, shards, verify
from stillhouse.pipeline.shards import ShardError, ShardInfo, Store
from stillhouse.schemas import targets
from stillhouse.schemas.config import ConfigError
from stillhouse.stages.export import LAYOUTS
from tests.support.children import die_at, in_child

V, K, D = 300, 8, 16
RNG = np.random.default_rng(5)


def conversation(num_turns: int, top_p: float, precision: float) -> dict[str, Any]:
    """A row of a published table, its tokens drawn from the distributions it stores."""
    input_ids: list[int] = []
    labels: list[int] = []
    logprobs_SV = []
    for _ in range(num_turns):
        prompt = RNG.integers(0, V, int(RNG.integers(2, 9))).tolist()
        S = int(RNG.integers(1, 12))
        logits_SV = RNG.normal(0, 3.0, (S, V))
        answer_SV = logits_SV - np.log(np.exp(logits_SV).sum(axis=1, keepdims=True))
        answer = [int(RNG.choice(V, p=np.exp(row) / np.exp(row).sum())) for row in answer_SV]
        input_ids += prompt + answer
        labels += [-100] * len(prompt) + answer
        logprobs_SV.append(answer_SV)
    written = [token for token in labels if token != -100]
    p_SV = np.concatenate(logprobs_SV)
    order_SK = np.argsort(-p_SV, axis=1)[:, :K]
    top = targets.encode_top_k(
        order_SK, np.take_along_axis(p_SV, order_SK, axis=1).astype(np.float32), top_p, precision
    )
    draws_SD = np.stack([RNG.choice(V, D, p=np.exp(row) / np.exp(row).sum()) for row in p_SV]).astype(np.int32)
    draws = targets.encode_draws(draws_SD)
    row: dict[str, Any] = {
        "messages": [{"role": "user", "content": '{\u2028<b>\n"'}, {"role": "assistant", "content": "ja\u0000"}],
        "input_ids": input_ids,
        "labels": labels,
        "target_ids": top.ids.tolist(),
        "target_lengths": top.lengths.tolist(),
        "target_tail": top.tail.tolist(),
        "draw_ids": draws.ids.tolist(),
        "draw_counts": draws.counts.tolist(),
        "draw_lengths": draws.lengths.tolist(),
        "num_draws": D,
        "token_logprobs": p_SV[np.arange(len(written)), written].tolist(),
        "num_input_tokens": len(input_ids),
        "num_target_tokens": len(written),
    }
    values = {"target_logprobs": top.logprobs} if precision == 0 else {"target_gaps": top.gaps}
    row |= {name: array.tolist() for name, array in values.items() if array is not None}
    return row | ({"target_precision": precision} if precision else {})


def schema(precision: float) -> pa.Schema:
    from stillhouse.schemas import tables
    from stillhouse.schemas.config import TargetsConfig

    fields = tables.completions([], TargetsConfig(method="both", precision=precision))
    names = conversation(1, 1.0, precision).keys()
    return pa.schema([fields.field(name) for name in fields.names if name in names])


def write_dataset(folder: Path, top_p: float = 1.0, precision: float = 0.0, method: str = "both") -> Path:
    """A finished dataset of two files and an empty one, as a run leaves it."""
    dropped = {"top_k": "draw", "sampled": "target"}.get(method, "none")
    store, files = Store(str(folder)), []
    for n, num_rows in enumerate([14, 6, 0]):
        rows = [conversation(1 + i % 2, top_p, precision) for i in range(num_rows)]
        table = pa.Table.from_pylist(rows, schema=schema(precision))
        kept = [name for name in table.column_names if not name.startswith(dropped) and name != f"num_{dropped}s"]
        table = table.select(kept)
        tokens = int(pc.sum(table.column("num_target_tokens")).as_py() or 0)
        data = shards.encode(table, ShardInfo("publish", shards.shard_name(n), "0" * 64, num_rows, num_rows, tokens))
        name = f"data/train-{n:05d}-of-00003.parquet"
        store.put_if_absent(f"dataset/{name}", data)
        files.append(
            {"file": name, "rows": num_rows, "target_tokens": tokens, "bytes": len(data),
             "sha256": hashlib.sha256(data).hexdigest()}
        )  # fmt: skip
    found = {"method": method, "alignment": "own-token", "top_k": K, "top_p": top_p, "precision": precision,
             "num_draws": D, "draws_from": "the whole distribution"}  # fmt: skip
    manifest = {
        "config_hash": "0" * 64,
        "teacher": {"vocab_size": V, "final_logit_softcapping": None},
        "targets": found,
        "rows": sum(file["rows"] for file in files),
        "target_tokens": sum(file["target_tokens"] for file in files),
        "bytes": sum(file["bytes"] for file in files),
        "files": files,
    }
    write_manifest(folder / "dataset", manifest)
    return folder


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(shards.certified(json.loads(json.dumps(manifest)))))


def read_manifest(folder: Path) -> dict[str, Any]:
    return shards.parse_certified((folder / "manifest.json").read_bytes())


def published(run: Path) -> list[tuple[dict[str, Any], dict[str, targets.Targets]]]:
    """Each row and its targets of each kind."""
    found = []
    for file in sorted((run / "dataset/data").glob("*.parquet")):
        table = pq.read_table(file)
        kinds = [kind for kind in ("target", "draw") if f"{kind}_ids" in table.column_names]
        decoded = {kind: targets.decode(table, kind) for kind in kinds}  # type: ignore[arg-type]
        found += [(row, {kind: decoded[kind][i] for kind in kinds}) for i, row in enumerate(table.to_pylist())]
    return found


def make(run: Path, layout: str, **options: Any) -> tuple[Path, dict[str, Any]]:
    output = export.default_output(str(run), layout)
    return Path(output), export.export(str(run), layout, output, num_workers=1, **options)


def exported(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((folder / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def expected_rows(row: dict[str, Any], found: targets.Targets) -> dict[int, dict[int, float]]:
    """For each position before a supervised token: its targets and their log-probabilities."""
    supervised = [t for t, label in enumerate(row["labels"]) if label != -100]
    return {
        t - 1: {int(i): float(lp) for i, lp in zip(ids, logprobs, strict=True) if lp > -np.inf}
        for t, ids, logprobs in zip(supervised, found.ids, found.logprobs, strict=True)
    }


DATASETS = [
    pytest.param({}, id="top_k"),
    pytest.param({"top_p": 0.7, "precision": 1 / 64}, id="top_p"),
]


@pytest.mark.parametrize("kind", ["target", "draw"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_axolotl(tmp_path: Path, dataset: dict[str, float], kind: Any) -> None:
    run = write_dataset(tmp_path, **dataset)
    folder, _ = make(run, "axolotl", kind=kind)
    rows = exported(folder)
    assert len(rows) == 20
    for row, (source, found) in zip(rows, published(run), strict=True):
        assert row["input_ids"] == source["input_ids"]
        assert row["labels"] == source["labels"]
        assert row["attention_mask"] == [1] * len(source["input_ids"])
        expected = expected_rows(source, found[kind])
        for t in range(len(source["input_ids"])):
            want = expected.get(t, {})
            assert dict(zip(row["target_token_ids"][t], row["target_logprobs"][t], strict=True)) == pytest.approx(want)
            assert row["target_mask"][t] == [1] * len(want)


@pytest.mark.parametrize("layout", ["distillkit", "distillkit-compressed"])
@pytest.mark.parametrize("kind", ["target", "draw"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_distillkit(tmp_path: Path, dataset: dict[str, float], kind: Any, layout: str) -> None:
    run = write_dataset(tmp_path, **dataset)
    folder, manifest = make(run, layout, kind=kind)
    L, width = manifest["settings"]["max_length"], manifest["settings"]["width"]
    sources = published(run)
    assert max(source["num_input_tokens"] for source, _ in sources) == L
    for row, (source, found) in zip(exported(folder), sources, strict=True):
        T = len(source["input_ids"])
        assert row["input_ids"] == source["input_ids"] + [0] * (L - T)
        assert row["attention_mask"] == [1] * T + [0] * (L - T)
        expected = expected_rows(source, found[kind])
        # Its mask reads labels[j] for row j, and the model's own cross-entropy shifts the same labels.
        assert row["labels"] == [source["input_ids"][t] if t in expected else -100 for t in range(T)] + [-100] * (L - T)
        if layout == "distillkit":
            ids, logprobs = row["token_ids"], row["top_values"]
        else:
            logprobs = np.array(row["compressed_logprobs"], dtype=np.uint8).view("<f2").astype(float)
            ids = [unpacked(bytes(packed), 9, width) for packed in row["bytepacked_indices"]]
        assert len(ids) == len(logprobs) == L
        for t in range(L):
            assert len(ids[t]) == len(logprobs[t]) == width
            got = {i: lp for i, lp in zip(ids[t], logprobs[t], strict=True) if lp > -110}
            assert got == pytest.approx(expected.get(t, {}), abs=1e-5 if layout == "distillkit" else 4e-3)


def unpacked(data: bytes, bits: int, count: int) -> list[int]:
    """Integers of `bits` bits each, most significant bit first."""
    text = "".join(f"{byte:08b}" for byte in data)
    return [int(text[n * bits : (n + 1) * bits], 2) for n in range(count)]


def replace(run: Path, number: int, table: pa.Table) -> None:
    """Writes another table in the place of a file, with a manifest that says so."""
    manifest = read_manifest(run / "dataset")
    file = manifest["files"][number]
    data = shards.encode(table, ShardInfo("publish", "x", "0" * 64, table.num_rows, table.num_rows))
    (run / "dataset" / file["file"]).write_bytes(data)
    file |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write_manifest(run / "dataset", manifest)


@pytest.mark.parametrize("kind", ["target", "draw"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_verl(tmp_path: Path, dataset: dict[str, float], kind: Any) -> None:
    run = write_dataset(tmp_path, **dataset)
    folder, manifest = make(run, "verl", kind=kind)
    for row, (source, found) in zip(exported(folder), published(run), strict=True):
        first = next(t for t, label in enumerate(source["labels"]) if label != -100)
        assert row["prompts"] == source["input_ids"][:first]
        assert row["responses"] == source["input_ids"][first:]
        assert row["response_mask"] == [int(label != -100) for label in source["labels"][first:]]
        assert len(row["teacher_ids"]) == len(source["input_ids"])
        expected = expected_rows(source, found[kind])
        for t, (ids, logprobs) in enumerate(zip(row["teacher_ids"], row["teacher_logprobs"], strict=True)):
            assert len(ids) == manifest["settings"]["width"]
            got = {i: lp for i, lp in zip(ids, logprobs, strict=True) if lp > -110}
            assert got == pytest.approx(expected.get(t, {}))


@pytest.mark.parametrize("kind", ["target", "draw", None])
def test_tinker(tmp_path: Path, kind: Any) -> None:
    run = write_dataset(tmp_path)
    folder, manifest = make(run, "tinker", kind=kind)
    assert manifest["settings"]["kind"] == (kind or "draw")
    for row, (source, found) in zip(exported(folder), published(run), strict=True):
        assert row["input_ids"] == source["input_ids"][:-1]
        expected = expected_rows(source, found[kind or "draw"])
        assert len(row["target_tokens"]) == len(row["weights"]) == len(row["input_ids"])
        for t, (ids, weights) in enumerate(zip(row["target_tokens"], row["weights"], strict=True)):
            want = {i: np.exp(lp) for i, lp in expected.get(t, {}).items()}
            mass = sum(want.values())
            got = {i: w for i, w in zip(ids, weights, strict=True) if w > 0}
            assert got == pytest.approx({i: p / mass for i, p in want.items()}, rel=1e-4)


def test_openai(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    folder, manifest = make(run, "openai")
    lines = [line for file in sorted((folder / "data").glob("*.jsonl")) for line in file.read_bytes().split(b"\n")[:-1]]
    assert [json.loads(line) for line in lines] == [{"messages": row["messages"]} for row, _ in published(run)]
    assert manifest["rows"] == 20


def test_longer_conversations_are_left_out_and_counted(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    lengths = sorted(row["num_input_tokens"] for row, _ in published(run))
    folder, manifest = make(run, "distillkit", max_length=lengths[5])
    kept = [length for length in lengths if length <= lengths[5]]
    assert manifest["rows"] == len(exported(folder)) == len(kept) < 20
    assert manifest["rows_too_long"] == 20 - len(kept)
    assert verify.verify(str(folder), 1)["ok"]


def test_a_part_at_a_time_is_the_same_as_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_dataset(tmp_path)
    whole = exported(make(run, "verl")[0])
    monkeypatch.setattr("stillhouse.stages.export.BATCH_BYTES", 3000)
    parts = export.export(str(run), "verl", str(tmp_path / "parts"), num_workers=1)
    assert exported(tmp_path / "parts") == whole
    file = pq.ParquetFile(tmp_path / "parts" / parts["files"][0]["file"])
    assert file.num_row_groups > 1


def test_resume_makes_what_is_missing_and_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_dataset(tmp_path)
    folder, manifest = make(run, "axolotl")
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in (folder / "data").iterdir()}
    assert not list(folder.glob(".*"))
    (folder / "manifest.json").unlink()
    gone = folder / manifest["files"][1]["file"]
    gone.unlink()
    assert make(run, "axolotl")[1] == manifest
    for file in (folder / "data").iterdir():
        assert file.read_bytes() == before[file.name][1]
        assert (file.stat().st_mtime_ns == before[file.name][0]) == (file != gone)
    monkeypatch.setattr(export, "_make", None)  # nothing is looked at once it is finished
    assert make(run, "axolotl")[1] == manifest


def test_killed_at_every_step_it_goes_on(tmp_path: Path) -> None:
    run = write_dataset(tmp_path / "run")
    undisturbed = make(run, "distillkit-compressed")[1]
    output = tmp_path / "killed"

    def export_and_die(step: int) -> None:
        die_at(step)
        export.export(str(run), "distillkit-compressed", str(output), num_workers=1)

    step = 0
    while True:
        step += 1
        shutil.rmtree(output, ignore_errors=True)
        if in_child(lambda step=step: export_and_die(step)) == 0:
            break
        for file in output.glob("data/*.parquet"):
            shards.read(Store(str(output)), f"data/{file.name}")  # whole, or not there
        assert export.export(str(run), "distillkit-compressed", str(output), num_workers=1) == undisturbed
        assert verify.verify(str(output), 1)["ok"]
    assert step > 20


def test_processes_make_the_same(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    alone = make(run, "axolotl")[1]
    together = export.export(str(run), "axolotl", str(tmp_path / "two"), num_workers=2)
    assert [file["sha256"] for file in alone["files"]] == [file["sha256"] for file in together["files"]]


@pytest.mark.parametrize("layout", ["axolotl", "openai"])
def test_a_damaged_file_is_not_taken_for_done(tmp_path: Path, layout: str) -> None:
    run = write_dataset(tmp_path)
    folder, manifest = make(run, layout)
    (folder / "manifest.json").unlink()
    file = folder / manifest["files"][0]["file"]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ShardError, match=r"train-00000-of-00003.*delete it"):
        make(run, layout)


def test_another_export_is_not_mixed_in(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    folder, _ = make(run, "axolotl", kind="target")
    with pytest.raises(ConfigError, match="other settings"):
        make(run, "axolotl", kind="draw")
    (folder / "manifest.json").unlink()
    with pytest.raises(ShardError, match="not axolotl"):
        make(run, "axolotl", kind="draw")


def test_a_source_file_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    table = pq.read_table(run / "dataset/data/train-00000-of-00003.parquet")
    data = shards.encode(table.slice(1), ShardInfo("publish", "x", "0" * 64, 6, 6))
    (run / "dataset/data/train-00000-of-00003.parquet").write_bytes(data)
    with pytest.raises(ShardError, match="is not the file that manifest"):
        make(run, "axolotl")


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("top_k", ["--to", "axolotl", "--targets", "sampled"], "has no sampled targets"),
        ("sampled", ["--to", "axolotl", "--targets", "top_k"], "has no top-K targets"),
        ("both", ["--to", "axolotl", "--max-length", "99"], "means nothing for axolotl"),
        ("both", ["--to", "distillkit", "--max-length", "1"], "hold no prompt and answer"),
    ],
)
def test_what_cannot_be_made_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, arguments: list[str], message: str
) -> None:
    run = write_dataset(tmp_path, method=method)
    assert cli.main(["export", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--to", "trl"], ["--to", "verl", "--workers", "0"], []])
def test_wrong_arguments_are_usage_errors(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(tmp_path), *arguments])
    assert ended.value.code == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(LAYOUTS) == cli.LAYOUTS
    assert cli.main(["export", str(tmp_path / "nothing"), "--to", "verl"]) == 2
    assert "holds no finished dataset" in capsys.readouterr().err
    run = write_dataset(tmp_path / "run")
    assert cli.main(["export", str(run), "--to", "distillkit-compressed", "--json", "--workers", "1"]) == 0
    output = json.loads(capsys.readouterr().out)
    folder = run / "exports/distillkit-compressed"
    assert output == read_manifest(folder)
    assert yaml.safe_load((folder / "compression_config.yaml").read_text())["k"] == K
    assert "missing_probability_handling: zero" in (folder / "README.md").read_text()
    assert cli.main(["verify", str(folder), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


def test_loads_as_a_hugging_face_dataset(tmp_path: Path) -> None:
    import datasets

    folder, manifest = make(write_dataset(tmp_path / "run"), "axolotl")
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == manifest["rows"]
    assert loaded[0]["target_token_ids"] == exported(folder)[0]["target_token_ids"]


def test_exports_of_two_runs_load_as_themselves(tmp_path: Path) -> None:
    """Their folders have one name, and `datasets` caches by it where a card lists data_files."""
    import datasets

    for name in ("first", "second"):
        folder, _ = make(write_dataset(tmp_path / name), "axolotl")
        loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded["input_ids"][:] == [row["input_ids"] for row, _ in published(tmp_path / name)]


def test_a_softcapped_teacher_is_warned_of(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    manifest = read_manifest(run / "dataset")
    manifest["teacher"]["final_logit_softcapping"] = 30.0
    write_manifest(run / "dataset", manifest)
    folder, made = make(run, "axolotl")
    assert "caps its logits at 30" in made["notes"][0]
    assert "caps its logits at 30" in (folder / "README.md").read_text()


def test_a_supervised_first_token_is_refused(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    table = pq.read_table(run / "dataset/data/train-00000-of-00003.parquet")
    rows = table.to_pylist()
    first = rows[1]["labels"]
    place = next(t for t, label in enumerate(first) if label != -100)
    first[0], first[place] = rows[1]["input_ids"][0], -100
    replace(run, 0, pa.Table.from_pylist(rows, schema=table.schema))
    with pytest.raises(ValueError, match="nothing predicts it"):
        make(run, "verl")


# ---------------------------------------------------------------------------------------------------------------------
# verify: for each thing it looks at, a dataset that is wrong in that and nothing else.


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_verify_finds_nothing_wrong(tmp_path: Path, dataset: dict[str, float], layout: str | None) -> None:
    run = write_dataset(tmp_path, **dataset)
    folder = run if layout is None else make(run, layout)[0]
    result = verify.verify(str(folder), 1)
    assert result["ok"], result["problems"]
    assert (result["rows"], result["target_tokens"]) == (20, read_manifest(run / "dataset")["target_tokens"])
    if layout != "openai":
        before, own, after = result["probability_before_own_after"]
        assert own > 10 * max(before, after)


def shift(values: list[Any]) -> list[Any]:
    return values[1:] + values[:1]


def shift_targets(row: dict[str, Any]) -> None:
    row["target_ids"] = row["target_ids"][K:] + row["target_ids"][:K]
    row["target_logprobs"] = row["target_logprobs"][K:] + row["target_logprobs"][:K]
    row["target_tail"] = shift(row["target_tail"])


def set_at(name: str, index: int, value: Any) -> Any:
    def change(row: dict[str, Any]) -> None:
        row[name][index] = value

    return change


def unsupervise(row: dict[str, Any]) -> None:
    row["labels"] = [-100] * len(row["labels"])


def break_label(row: dict[str, Any]) -> None:
    place = next(t for t, label in enumerate(row["labels"]) if label != -100)
    row["labels"][place] = (row["labels"][place] + 1) % V


def drop_label(row: dict[str, Any]) -> None:
    place = next(t for t, label in enumerate(row["labels"]) if label != -100)
    row["labels"][place] = -100


NATIVE_FAULTS = {
    "disagree with token_logprobs": shift_targets,
    "outside of a vocabulary": set_at("target_ids", 0, V),
    "input_ids from": set_at("input_ids", 0, -7),
    "not in order": set_at("target_logprobs", 1, 0.0),
    "sum to": set_at("target_tail", 0, -0.01),
    "do not sum to num_draws": set_at("draw_counts", 0, 1000),
    "labels differ from input_ids": break_label,
    "supervises nothing": unsupervise,
    "supervised tokens": drop_label,
}


@pytest.mark.parametrize("message", NATIVE_FAULTS)
def test_verify_finds_faults_of_a_dataset(tmp_path: Path, message: str) -> None:
    run = write_dataset(tmp_path)
    table = pq.read_table(run / "dataset/data/train-00000-of-00003.parquet")
    rows = table.to_pylist()
    row = next(n for n, row in enumerate(rows) if row["num_target_tokens"] > 3)
    NATIVE_FAULTS[message](rows[row])
    replace(run, 0, pa.Table.from_pylist(rows, schema=table.schema))
    result = verify.verify(str(run), 1)
    assert not result["ok"]
    assert any(f"train-00000-of-00003.parquet row {row}" in text and message in text for text in result["problems"]), (
        result["problems"]
    )


def test_verify_finds_shifted_draws(tmp_path: Path) -> None:
    """Of draws there is no log-probability to compare with: all rows together tell."""
    run = write_dataset(tmp_path, method="sampled")
    for number in (0, 1):
        table = pq.read_table(run / f"dataset/data/train-0000{number}-of-00003.parquet")
        rows = table.to_pylist()
        for row in rows:
            ends = np.cumsum(row["draw_lengths"])[0]
            for name in ("draw_ids", "draw_counts"):
                row[name] = row[name][ends:] + row[name][:ends]
            row["draw_lengths"] = shift(row["draw_lengths"])
        replace(run, number, pa.Table.from_pylist(rows, schema=table.schema))
    result = verify.verify(str(run), 1)
    assert ["they are shifted" in text for text in result["problems"]] == [True], result["problems"]


SHIFTED = {
    "axolotl": ["target_token_ids", "target_logprobs"],
    "distillkit": ["token_ids", "top_values"],
    "distillkit-compressed": ["bytepacked_indices", "compressed_logprobs"],
    "verl": ["teacher_ids", "teacher_logprobs"],
    "tinker": ["target_tokens", "weights"],
}


@pytest.mark.parametrize("layout", SHIFTED)
def test_verify_finds_shifted_exports(tmp_path: Path, layout: str) -> None:
    """Rows as they were before a shift: own-token where next-token belongs."""
    folder, manifest = make(write_dataset(tmp_path), layout)
    for file in manifest["files"][:2]:
        table = pq.read_table(folder / file["file"])
        rows = table.to_pylist()
        for row in rows:
            for name in [*SHIFTED[layout], *(["target_mask"] if layout == "axolotl" else [])]:
                row[name] = row[name][-1:] + row[name][:-1]
        write_export(folder, manifest, file, pa.Table.from_pylist(rows, schema=table.schema))
    result = verify.verify(str(folder), 1)
    assert not result["ok"]
    expected = "other positions" if layout == "axolotl" else "sum to" if layout != "tinker" else "shifted"
    assert expected in " ".join(result["problems"])


def write_export(folder: Path, manifest: dict[str, Any], file: dict[str, Any], table: pa.Table) -> None:
    data = shards.encode(table, ShardInfo(manifest["layout"], file["file"], manifest["identity"], 0, table.num_rows))
    (folder / file["file"]).write_bytes(data)
    file |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write_manifest(folder, manifest)


@pytest.mark.parametrize("layout", SHIFTED)
def test_verify_finds_ids_outside_of_the_vocabulary(tmp_path: Path, layout: str) -> None:
    folder, manifest = make(write_dataset(tmp_path), layout)
    manifest["settings"]["vocab_size"] = 290 if layout != "distillkit-compressed" else 260
    write_manifest(folder, manifest)
    result = verify.verify(str(folder), 1)
    assert any("target ids from" in text and "outside of a vocabulary" in text for text in result["problems"])


@pytest.mark.parametrize("line", ["{", '{"messages": []}', '{"messages": [{"role": "user", "content": "x"}]}', "[]"])
def test_verify_finds_lines_that_are_no_conversation(tmp_path: Path, line: str) -> None:
    folder, manifest = make(write_dataset(tmp_path), "openai")
    file = manifest["files"][0]
    data = (folder / file["file"]).read_bytes().splitlines(keepends=True)
    data[2] = line.encode() + b"\n"
    (folder / file["file"]).write_bytes(b"".join(data))
    file["sha256"] = hashlib.sha256(b"".join(data)).hexdigest()
    write_manifest(folder, manifest)
    (problem,) = verify.verify(str(folder), 1)["problems"]
    assert "train-00000-of-00003.jsonl line 3" in problem


def test_verify_finds_damage(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    files = [run / "dataset" / file["file"] for file in read_manifest(run / "dataset")["files"]]
    (run / "dataset/data/train-00003-of-00003.parquet").write_bytes(files[0].read_bytes())
    assert "is not in manifest.json" in " ".join(verify.verify(str(run), 1)["problems"])
    (run / "dataset/data/train-00003-of-00003.parquet").unlink()
    data = bytearray(files[0].read_bytes())
    data[100] ^= 1
    files[0].write_bytes(data)
    files[1].unlink()
    text = " ".join(verify.verify(str(run), 1)["problems"])
    assert "train-00000-of-00003.parquet: is not the file that manifest.json names" in text
    assert "train-00001-of-00003.parquet: is missing" in text
    assert "the files hold" in text
    (run / "dataset/manifest.json").write_text("{}")
    assert cli.main(["verify", str(run)]) == 1
