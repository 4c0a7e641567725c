"""`report.html`: what it says is what the files hold; without text it holds none; a run writes it and never fails by
it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from stillhouse.pipeline import cli
from stillhouse.pipeline.folder import open_folder
from stillhouse.pipeline.look import report
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.reasons import REASONS
from stillhouse.pipeline.look.report import page, plots
from stillhouse.pipeline.look.report.clusters import clusters
from stillhouse.pipeline.look.tokens import teacher_tokenizer
from tests.support.command import copy_of, read
from tests.support.data import ROOT
from tests.support.reports import CANARY, COPIES, THRESHOLD, Page, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module", autouse=True)
def _quickly(tokenizer: Any) -> Iterator[None]:
    """The plot library takes a second each time (tests/browser has it), and so does a tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "library", lambda: "window.vegaEmbed = null;")
        patch.setattr("stillhouse.pipeline.look.tokens.teacher_tokenizer", lambda place, model: (tokenizer, None))
        yield


@pytest.fixture(scope="module")
def shown(run: Path) -> Page:
    report.write(str(run))
    return Page.of(run / "report.html")


def test_the_first_screen_says_what_became_of_the_rows(run: Path, shown: Page) -> None:
    text = shown.text.partition("Targets: how close")[0]
    dataset = read(run / "dataset/data")
    dropped = Counter(
        (path.name, reason) for path in (run / "ledger").iterdir() for reason in read(path)["reason"].to_pylist()
    )
    source = read(run / "ingest").num_rows + sum(n for (stage, _), n in dropped.items() if stage == "ingest")
    tokens = pc.sum(dataset["num_target_tokens"]).as_py()
    assert f"{source} source rows became {dataset.num_rows} samples with {tokens:,} supervised tokens" in text
    assert len(dropped) > 3
    for (_, reason), count in dropped.items():
        assert f"{count} because {REASONS[reason]} ( {reason}" in text
    hits = tokens_at = 0
    for row in dataset.to_pylist():
        written = [label for label in row["labels"] if label != -100]
        hits += sum(label in row["target_ids"][8 * s : 8 * s + 8] for s, label in enumerate(written))
        tokens_at += len(written)
    share = f"{100 * hits / tokens_at:.1f}".removesuffix(".0")
    assert f"In {share} % of positions the token written is in the stored top 8; the median position has " in text


def test_histograms_count_every_row(run: Path, shown: Page) -> None:
    dataset = read(run / "dataset/data")
    columns = shown.data["columns"]
    assert columns["rows"] == dataset.num_rows == columns["sample"]
    for column in columns["columns"]:
        assert sum(column["counts"]) == dataset.num_rows
        assert np.bincount(column["sample"], minlength=len(column["labels"])).tolist() == column["counts"]
        assert len(set(column["labels"])) == len(column["labels"])
    lengths = dataset["num_target_tokens"].to_numpy()
    column = shown.column("num_target_tokens")
    for label, count in zip(column["labels"], column["counts"], strict=True):
        low, _, high = label.partition(" – ")
        assert ((lengths >= int(low)) & (lengths <= int(high or low))).sum() == count, label
    surprisal = [-np.mean(row) for row in dataset["token_logprobs"].to_pylist()]
    assert shown.column("mean surprisal")["quantiles"]["median"] == f"{np.median(surprisal):.3g}"
    ended = ["length" if "length" in row else "stop" for row in dataset["finish_reasons"].to_pylist()]
    column = shown.column("ended by")
    assert dict(zip(column["labels"], column["counts"], strict=True)) == Counter(ended)


def test_the_sample_is_the_rows_with_the_smallest_hashes(run: Path, shown: Page) -> None:
    ids = read(run / "dataset/data")["sample_id"].to_pylist()
    expected = sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:30]
    assert [one["sample_id"] for one in shown.conversations] == expected
    lengths = dict(zip(ids, read(run / "dataset/data")["num_target_tokens"].to_pylist(), strict=True))
    column = shown.column("num_target_tokens")
    for name, found in zip(expected, column["sample"], strict=False):
        low, _, high = column["labels"][found].partition(" – ")
        assert int(low) <= lengths[name] <= int(high or low)


def test_another_threshold_drops_what_it_says(run: Path, shown: Page) -> None:
    ledger = read(run / "ledger/screen").filter(pc.field("reason") == "unsafe_prompt")
    dropped = np.array([row[0]["score"] for row in ledger["scores"].to_pylist()], np.float32)
    passed = pc.struct_field(read(run / "screen")["prompt_scores"].combine_chunks(), "profanity").to_numpy()
    published = pc.struct_field(read(run / "dataset/data")["prompt_scores"].combine_chunks(), "profanity").to_numpy()
    assert len(dropped) > 1
    curve = next(curve for curve in shown.data["curves"] if curve["stage"] == "screen")
    assert curve["threshold"] == THRESHOLD
    for n in (0, 20, 77, curve["grid"].index(THRESHOLD), 500, 1000):
        at = np.float32(curve["grid"][n])
        assert curve["passed"][n] == (passed >= at).sum()
        assert curve["alone"][n] == (dropped >= at).sum()
        assert curve["published"][n] == (published >= at).sum()
    kept, gone = (sum(bar[place] for bar in curve["bars"]) for place in (2, 3))
    flagged = read(run / "ledger/screen").num_rows - len(dropped)
    assert (kept, gone) == (len(passed), len(dropped) + flagged)


def test_tokens_of_all_rows_are_in_the_distributions(run: Path, shown: Page) -> None:
    tokens = pc.sum(read(run / "dataset/data")["num_target_tokens"]).as_py()
    specs = [spec for spec in shown.data["specs"] if "of all tokens" in spec["description"]]
    assert len(specs) == 4
    for spec in specs:
        assert sum(bar["height"] for bar in spec["data"]["values"]) == tokens


def test_without_text_there_is_none(run: Path, shown: Page, tmp_path: Path) -> None:
    output = tmp_path / "passed on.html"
    report.write(str(run), str(output), with_text=False)
    without, with_text = output.read_text(), (run / "report.html").read_text()
    rows = [*read(run / "dataset/data")["messages"].to_pylist(), *[
        [{"content": text} for text in turns] for turns in read(run / "ingest")["user_turns"].to_pylist()]]  # fmt: skip
    snippets = {m["content"].strip()[:16] for row in rows for m in row if len(m["content"].strip()) >= 12}
    found = Page(with_text)
    everything = json.dumps(found.conversations, ensure_ascii=False)
    assert sum(json.dumps(snippet, ensure_ascii=False)[1:-1] in everything for snippet in snippets) > 20
    plain = without + json.dumps(Page(without).data, ensure_ascii=False) + Page(without).text
    assert [snippet for snippet in snippets if snippet in plain] == []
    rows_of_ids = [one["tokens"]["ids"] for one in found.conversations]
    pairs = {f"{a},{b}" for ids in rows_of_ids for a, b in pairwise(ids) if min(a, b) > 999}
    assert sum(pair in with_text.replace(", ", ",") for pair in pairs) == len(pairs) > 20
    assert [pair for pair in pairs if pair in without.replace(", ", ",")] == []
    assert Page(without).conversations == []
    assert "may be passed on" in Page(without).text


def test_a_conversation_is_that_row(run: Path, shown: Page) -> None:
    dataset = read(run / "dataset/data")
    one = shown.conversations[0]
    row = dataset.filter(pc.field("sample_id") == one["sample_id"]).to_pylist()[0]
    assert one["messages"] == row["messages"]
    assert one["tokens"]["ids"] == row["input_ids"]
    assert [entry[0][0] for entry in one["tokens"]["alternatives"]] == row["target_ids"][::8]


def test_copies_are_a_cluster(run: Path, shown: Page) -> None:
    text = shown.text.partition("Near-duplicates")[2].partition("Conversations")[0]
    dropped = read(run / "ledger/dedupe")["prompt_id"].to_pylist()
    assert f"{COPIES} prompts like copy-0 All of them" in text
    why = f"exact_duplicate : {REASONS['exact_duplicate']}"
    copies = [f"copy-{n} {why if n else 'kept'}" for n in range(COPIES)]
    assert all(copy in text for copy in copies)
    assert {f"copy-{n}" for n in range(1, COPIES)} <= set(dropped)
    sizes = [size for size in read(run / "dedupe")["cluster_size"].to_pylist() if size > 1]
    assert f"{sum(sizes)} prompts are in {len(sizes)} clusters" in text
    without = clusters(open_place(str(run)), with_text=False)
    assert without is not None
    assert {member["text"] for cluster in without["largest"] for member in cluster["members"]} == {None}


def test_text_of_strangers_is_no_markup(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one: dict[str, Any] = {"sample_id": CANARY, "messages": [], "template_added": CANARY, "tokens": {}, "cut": None}
    monkeypatch.setattr(page, "samples", lambda *_: [one])
    largest = {"id": CANARY, "size": 2, "members": [{"id": CANARY, "reason": None, "text": CANARY}]}
    found = {"clusters": 1, "prompts": 2, "sizes": [[2, 1]], "largest": [largest]}
    monkeypatch.setattr(page, "clusters", lambda *_, **__: found)
    report.write(str(run), str(tmp_path / "report.html"))
    html = (tmp_path / "report.html").read_text()
    assert "<script>document" not in html
    assert Page(html).conversations[0]["sample_id"] == CANARY
    assert Page(html).text.count(CANARY) == 4


def test_the_policy_allows_its_own_scripts_and_nothing_else(run: Path, shown: Page) -> None:
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in shown.scripts]
    directives = dict(part.split(" ", 1) for part in shown.policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert "unsafe" not in shown.policy
    assert "http" not in shown.policy


def test_a_large_report_loses_conversations(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Page
) -> None:
    size = (run / "report.html").stat().st_size
    monkeypatch.setattr(page, "MOST_BYTES", size - 20_000)
    report.write(str(run), str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").stat().st_size < size - 20_000
    kept = Page.of(tmp_path / "report.html").conversations
    assert 0 < len(kept) < len(shown.conversations)
    assert kept == shown.conversations[: len(kept)]


def test_a_report_is_written_again_when_it_is_not_of_this_dataset(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "report.html").unlink(missing_ok=True)
    manifest = json.loads((copy / "dataset/manifest.json").read_text())
    manifest.pop("sha256")
    written: list[tuple[int, int]] = []
    for damage in (b"", b"", b"...and cut"):
        if damage:
            (copy / "report.html").write_bytes(damage)
        report.write_after_run(str(copy), manifest)
        stat = (copy / "report.html").stat()
        written.append((stat.st_mtime_ns, stat.st_ino))
    assert written[0] == written[1] != written[2]
    other = json.loads((copy / "dataset/manifest.json").read_text()) | {"license": "mit"}
    other.pop("sha256")
    assert not report._is_current(open_folder(str(copy)), other)


def test_the_same_files_give_the_same_report(run: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        report.write(str(run), str(tmp_path / name))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_copy_of_the_dataset_has_a_report(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "dataset", tmp_path / "given")
    before = {path.name for path in (tmp_path / "given").iterdir()}
    assert report.write(str(tmp_path / "given"))["rows"] == read(run / "dataset/data").num_rows
    assert {path.name for path in (tmp_path / "given").iterdir()} == {*before, "report.html"}
    found = Page.of(tmp_path / "given/report.html")
    assert "only the dataset is here" in found.text
    curve = next(curve for curve in found.data["curves"] if curve["stage"] == "screen")
    assert curve["passed"] is None
    assert curve["published"][0] == read(run / "dataset/data").num_rows


def test_a_run_that_moved_says_so_and_takes_a_tokenizer(
    run: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.pipeline.look.tokens.teacher_tokenizer", teacher_tokenizer)
    moved = shutil.copytree(run, tmp_path / "run")
    facts = json.loads((moved / "run.json").read_text())
    facts["deciding"]["teacher.model"] = "/nowhere/teacher"
    (moved / "run.json").write_text(json.dumps(facts))
    assert cli.main(["report", str(moved)]) == 0
    found = Page.of(moved / "report.html")
    assert "/nowhere/teacher cannot be loaded here (the folder does not exist here)" in found.text
    assert found.conversations[0]["tokens"]["texts"][0].startswith("#")
    assert "The template added" not in found.text
    assert cli.main(["report", str(moved), "--tokenizer", str(weights)]) == 0
    found = Page.of(moved / "report.html")
    assert found.conversations[0]["tokens"]["texts"][0] == "<|im_start|>"
    assert "The template added a system prompt in 30 of the 30 conversations below: “You are a helpful AI" in found.text
    assert cli.main(["report", str(moved), "--tokenizer", str(weights), "--no-text"]) == 2


def test_a_report_that_fails_does_not_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, raw_config: dict[str, Any]
) -> None:
    def fail(*_: Any) -> str:
        raise RuntimeError("a prompt of somebody's")

    monkeypatch.setattr(report, "write_after_run", fail)
    from stillhouse.schemas.config import Config

    cli._report_of_run(Config.model_validate(raw_config), {})
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.match(r"report: +not written \(RuntimeError at test_report.py:\d+\); `stillhouse report \S+` tries", line)
    assert "somebody" not in line


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "{tmp}/nothing"], 2, "holds no run, dataset"),
        (["report", "{run}", "--output", "{tmp}/"], 2, "names a folder; name a file"),
        (["report", "{run}/ingest"], 2, "holds no finished dataset"),
    ],
)
def test_wrong_usage(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert cli.main([argument.format(tmp=tmp_path, run=run) for argument in arguments]) == code
    assert message in capsys.readouterr().err


def test_the_command_writes_where_it_says(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/state").write_text("a file of somebody")
    assert cli.main(["report", str(run), "--no-text", "--output", f"{tmp_path}/new/r.html", "--json"]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"state", "r.html"}
    result = json.loads(capsys.readouterr().out)
    assert result == {
        "report": f"{tmp_path}/new/r.html",
        "bytes": (tmp_path / "new/r.html").stat().st_size,
        "rows": read(run / "dataset/data").num_rows,
        "with_text": False,
    }


def test_a_report_that_is_up_to_date_imports_nothing_heavy(run: Path, shown: Page) -> None:
    code = """
import json, sys
from stillhouse.pipeline.look import report
manifest = json.load(open(sys.argv[1] + "/dataset/manifest.json"))
del manifest["sha256"]
report.write_after_run(sys.argv[1], manifest)
heavy = {"jinja2", "vl_convert", "transformers", "stillhouse.pipeline.look.place"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    found = subprocess.run(
        [sys.executable, "-c", code, str(run)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.long
def test_a_run_writes_its_report(finished: Any, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path)
    command.reports = True
    shutil.rmtree(command.run_dir / "state/timeline", ignore_errors=True)
    (command.run_dir / "dataset/data").joinpath(
        next(iter(sorted((command.run_dir / "dataset/data").iterdir()))).name
    ).unlink()
    _, err = command("run")
    assert f"report:   {command.run_dir}/report.html" in err
    html = (command.run_dir / "report.html").read_text()
    assert 900_000 < len(html) < 5_000_000
    found = Page(html)
    assert "publish" in found.text.partition("1 run of the command")[2]
    before = (command.run_dir / "report.html").stat().st_mtime_ns
    command("run")
    assert (command.run_dir / "report.html").stat().st_mtime_ns == before
