"""A dataset without its prompts: nothing tells them, and with the source it is again the dataset it was."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline import cli
from stillhouse.pipeline.dataset.export import export
from stillhouse.pipeline.dataset.join import join
from stillhouse.pipeline.dataset.seal import MIN_PROMPTS, Chain, groups
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.dataset.withhold import withhold
from stillhouse.pipeline.errors import ShardError
from stillhouse.pipeline.folder import open_folder
from stillhouse.schemas.config import Config, ConfigError
from stillhouse.schemas.targets import decode
from stillhouse.stages.teacher import Answer
from tests.support.command import Command, read
from tests.support.data import CONVERSATIONS, make_raw_config
from tests.support.datasets import read_manifest, write_dataset, write_manifest
from tests.support.fake_teacher import FakeTeacher
from tests.support.inline_pool import run_inline
from tests.support.s3 import bucket  # noqa: F401 (a fixture)

OPEN, CLOSE = "<repo_name>", "<file_sep>"
"""Single tokens of the quick start's tokenizer, here those of thinking."""


class ThinkingTeacher(FakeTeacher):
    """Thinks of two tokens before each answer; opens the thinking itself where its template does not."""

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        super().__init__(config, stop_token_ids)
        from stillhouse.stages.teacher.pretrained import load_tokenizer

        ids = load_tokenizer(config.teacher.model, None, False).convert_tokens_to_ids([OPEN, CLOSE])
        self._marks = ids[1:] if config.generate.thinking == "drop" else ids

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        answer = await super().answer(prompt_ids, request_id, seed, max_tokens)
        ids = answer.token_ids.copy()
        if len(ids) > len(self._marks) + 1:
            ids[0], ids[len(self._marks)] = self._marks[0], self._marks[-1]
        return dataclasses.replace(answer, token_ids=ids)


SYSTEM = "You are a pirate with the number "


def records() -> Iterator[dict[str, Any]]:
    """24 conversations with a system prompt in every other one, and no ids."""
    rows = pq.read_table(CONVERSATIONS, columns=["conversation"]).slice(0, 24).column(0).to_pylist()
    for n, messages in enumerate(rows):
        before = [{"role": "system", "content": f"{SYSTEM}{n}."}] if n % 2 else []
        yield {"messages": [*before, *({"role": m["role"], "content": m["content"]} for m in messages)]}


def make_run(folder: Path, **sections: Any) -> Path:
    raw = make_raw_config(folder)
    source = folder / "source.jsonl"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps(record) + "\n" for record in records()))
    raw["source"] = {"path": str(source)}
    raw["ingest"] |= {"turns": "all", "rows_per_shard": 5}
    for name, section in sections.items():
        raw[name] = raw.get(name, {}) | section
    run_inline(Config.model_validate(raw))
    return Path(raw["run_dir"])


KINDS: dict[str, dict[str, Any]] = {
    "system": {"generate": {"system_prompts": "source"}, "targets": {"method": "both", "top_k": 4}},
    "keep": {
        "generate": {"thinking": "keep", "thinking_tokens": [OPEN, CLOSE], "system_prompts": ["Be brief.", None]},
    },
    "drop": {
        "generate": {"thinking": "drop", "thinking_tokens": [OPEN, CLOSE]},
        "ingest": {"turns": "first"},
        "screen": {"classifiers": []},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, finished: Command, tokenizer: Any) -> Callable[[str], Path]:
    """Finished runs: of several turns, samples and scores with the source's own ids (`ids`), and those of `KINDS`."""
    made = {"ids": finished.run_dir}
    opening = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    assert opening in tokenizer.chat_template.replace("\\n", "\n")
    template = tokenizer.chat_template.replace("\\n", "\n").replace("assistant\n' }}", f"assistant\n{OPEN}' }}}}")

    def of(kind: str) -> Path:
        if kind not in made:
            teacher = {} if kind == "system" else {"backend": f"{__name__}:{ThinkingTeacher.__name__}"}
            teacher |= {"chat_template": template} if kind == "drop" else {}
            made[kind] = make_run(tmp_path_factory.mktemp(kind), teacher=teacher, **KINDS[kind])
        return made[kind]

    return of


def tables(folder: Path) -> dict[str, pa.Table]:
    return {path.name: pq.read_table(path).replace_schema_metadata(None) for path in sorted(folder.glob("*.parquet"))}


@pytest.mark.parametrize("kind", ["ids", *KINDS])
@pytest.mark.long
def test_joined_is_what_it_was(runs: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    run = runs(kind)
    withhold(str(run), str(tmp_path / "masked"), 1)
    masked = read(tmp_path / "masked/data")
    whole = read(run / "dataset/data")
    assert masked.num_rows == whole.num_rows > MIN_PROMPTS
    unsupervised = [
        [i for i, label in zip(*ids, strict=True) if label == -100] for ids in zip(*columns(masked), strict=True)
    ]
    if kind == "keep":  # the teacher's own thinking is no prompt
        assert any(id_ != -100 for ids in unsupervised for id_ in ids)
    else:
        assert {id_ for ids in unsupervised for id_ in ids} == {-100}
    if kind != "drop":
        assert max(sum(m["role"] == "user" for m in row) for row in masked["messages"].to_pylist()) > 1
    joined = join(str(tmp_path / "masked"), str(tmp_path / "joined"))
    before, after = tables(run / "dataset/data"), tables(tmp_path / "joined/data")
    assert before.keys() == after.keys()
    for name, table in before.items():
        assert after[name].schema.equals(table.schema)
        assert after[name].equals(table), name
    # It is a dataset like any other, and so is what is published, but no trainer's.
    if kind in ("ids", "system"):
        for folder in (tmp_path / "masked", tmp_path / "joined"):
            result = verify(str(folder), 1)
            assert result["ok"], result["problems"]
        assert export(str(tmp_path / "joined"), "openai", str(tmp_path / "o"), num_workers=1)["rows"] == joined["rows"]
    with pytest.raises(ConfigError, match="`stillhouse join` it first"):
        export(str(tmp_path / "masked"), "openai", str(tmp_path / "p"), num_workers=1)
    kinds = ["target"] if kind != "system" else ["target", "draw"]
    for targets in kinds:  # a student's loss reads the answers as before
        for mine, theirs in zip(decode(masked, targets), decode(whole, targets), strict=True):  # type: ignore[arg-type]
            assert np.array_equal(mine.ids, theirs.ids)
            assert np.array_equal(mine.logprobs, theirs.logprobs)


def columns(table: pa.Table) -> list[list[list[int]]]:
    return [table[name].to_pylist() for name in ("input_ids", "labels")]


def strings(value: Any) -> Iterator[str]:
    """Every text in a value, and the bytes of binaries as they are."""
    if isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, bytes):
        yield value.decode("latin-1")
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("kind", ["ids", *KINDS])
@pytest.mark.long
def test_nothing_tells_the_prompts(runs: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    run, folder = runs(kind), tmp_path / "masked"
    withhold(str(run), str(folder), 1)
    prompts = read(run / "ingest").to_pylist()
    texts = {text for row in prompts for text in row["user_turns"]}
    if kind == "system":
        texts |= {row["system_prompt"] for row in prompts if row["system_prompt"]}
        assert any(text.startswith(SYSTEM) for text in texts)
    said, ids = [], []
    for row in read(folder / "data").to_pylist():
        assert row.get("prompt_scores") in (None, {"profanity": None})
        for message in row.pop("messages"):
            withheld = message["role"] == "user" or (kind == "system" and message["role"] == "system")
            assert (message["content"] is None) == withheld
            said += [] if withheld else list(strings(message))
        ids.append(row["input_ids"])
        said += strings(row)
    said += [(folder / name).read_text() for name in ("manifest.json", "README.md")]
    said += [str(pq.read_metadata(path).metadata) for path in folder.glob("data/*.parquet")]
    everything = "\n".join(said)
    long = [text for text in texts if len(text) > 25]
    assert len(long) > 10
    assert not [text for text in long if text in everything or json.dumps(text)[1:-1] in everything]
    # Not by their ids either, as numbers or as bytes.
    whole = read(run / "dataset/data")
    for masked, row in zip(ids, whole.to_pylist(), strict=True):
        first = row["input_ids"][: row["labels"].index(next(i for i in row["labels"] if i != -100))]
        thought = len(first) - masked[: len(first)].count(-100)
        assert masked[: len(first) - thought] == [-100] * (len(first) - thought)
        assert thought <= 3
    # Ids that ingest made of a prompt (docs/format.md) would be a test for guesses.
    made = {row["prompt_id"] for row in prompts}
    if kind == "ids":
        assert made & set(read(folder / "data")["prompt_id"].to_pylist())
    else:
        assert all(re.fullmatch("[0-9a-f]{32}", name) for name in made)
        assert not [name for name in made if name in everything]
        assert set(read(folder / "data")["cluster_id"].to_pylist()) == {None}


def test_a_digest_is_of_many_prompts_at_once() -> None:
    """Whoever guesses one prompt and knows everything that is published cannot tell whether the guess is right."""
    first, second = Chain("run"), Chain("run")
    tags = []
    for n in range(12):
        row = (n, [f"prompt {n}"], [b"ids"])
        tags.append((first.add(*row), second.add(n, ["another" if n == 0 else f"prompt {n}"], [b"ids"])))
    assert [mine is None for mine, _ in tags] == [True] * (MIN_PROMPTS - 1) + [False] * (13 - MIN_PROMPTS)
    # The guess for row 11 alone is right in both; the tag needs row 0 as well.
    assert all(mine != theirs for mine, theirs in tags if mine is not None)
    assert first.unseal("a", first.seal("a", {"x": [0.1, None]})) == {"x": [0.1, None]}
    with pytest.raises(ValueError, match=r".*"):
        second.unseal("a", first.seal("a", {"x": [0.1, None]}))
    mine, theirs = Chain("run"), Chain("another run")
    for n in range(MIN_PROMPTS):
        mine.add(n, ["prompt"], [])
        theirs.add(n, ["prompt"], [])
    assert mine.seal("a", "text") != theirs.seal("a", "text")
    samples = Chain("run")  # samples of one prompt are one prompt
    assert [samples.add(0, ["prompt"], [bytes([n])]) for n in range(20)] == [None] * 20
    # Files with few rows, and with several samples of a prompt, are taken together.
    files = [{"rows": rows} for rows in (10, 6, 20, 3)]
    assert groups(files, 2) == [files[:2], files[2:]]
    assert groups(files[:1], 2) == []


def source_lines(run: Path) -> list[str]:
    return Path(json.loads((run / "run.json").read_text())["config"]["source"]["path"]).read_text().splitlines()


def changed_source(run: Path, tmp_path: Path, change: Callable[[list[str]], None]) -> str:
    lines = source_lines(run)
    change(lines)
    (tmp_path / "changed.jsonl").write_text("\n".join(lines) + "\n")
    return f"source.path={tmp_path / 'changed.jsonl'}"


@pytest.mark.long
def test_a_changed_row_is_refused_by_its_number(runs: Callable[[str], Path], tmp_path: Path) -> None:
    run, masked = runs("system"), str(tmp_path / "masked")
    withhold(str(run), masked, 1)
    rows = sorted(set(read(run / "dataset/data")["source_row"].to_pylist()))
    later = rows[-2]

    def swap(line: str) -> str:
        record = json.loads(line)
        user = next(m for m in record["messages"] if m["role"] == "user")
        user["content"] = user["content"].replace(" a ", " one ").replace(" the ", " its ").replace(" to ", " of ")
        return json.dumps(record)

    def edit(number: int, function: Callable[[str], str]) -> Callable[[list[str]], None]:
        def change(lines: list[str]) -> None:
            lines[number] = function(lines[number])

        return change

    def refused(change: Callable[[list[str]], None], match: str) -> None:
        with pytest.raises(ShardError, match=match):
            join(masked, str(tmp_path / "joined"), [changed_source(run, tmp_path, change)])
        assert not (tmp_path / "joined/manifest.json").exists()

    # The same number of tokens, other words: the digest tells. Of a group's first rows it tells one of so many.
    lines = source_lines(run)
    candidates = [n for n in rows if swap(lines[n]) != lines[n]]
    for number in (candidates[0], candidates[-1]):
        refused(edit(number, swap), rf"source row (\d+, or one of .*)?{number}\b.*: is not the row")
    refused(
        edit(later, lambda line: line.replace('"content": "', '"content": "And now: ')),
        rf"source row {later}: .*tokens for",
    )
    refused(edit(later, lambda line: "{}"), rf"source row {later}: .*missing_conversation")
    refused(lambda lines: lines.__delitem__(slice(rows[-1], None)), rf"source row {rows[-1]}: the source ends at row")
    refused(lambda lines: lines.insert(0, lines[0]), r"source row \d+")
    join(masked, str(tmp_path / "joined"), [changed_source(run, tmp_path, lambda lines: None)])


@pytest.mark.long
def test_other_tokenizers_settings_and_folders_are_refused(runs: Callable[[str], Path], tmp_path: Path) -> None:
    run, masked, joined = runs("system"), tmp_path / "masked", str(tmp_path / "joined")
    first = withhold(str(run), str(masked), 1)
    assert withhold(str(run), str(masked), 1) == first
    with pytest.raises(ConfigError, match="its prompts are withheld already"):
        withhold(str(masked), str(tmp_path / "again"), 1)
    with pytest.raises(ConfigError, match="has its prompts"):
        join(str(run), joined)
    with pytest.raises(ConfigError, match=r"--set generate\.thinking: is the dataset's"):
        join(str(masked), joined, ["generate.thinking=drop"])
    manifest = read_manifest(masked)
    for key in ("tokenizer_sha256", "chat_template_sha256"):
        write_manifest(masked, manifest | {"teacher": manifest["teacher"] | {key: "0" * 64}})
        with pytest.raises(ConfigError, match=f"another {key[:-7].replace('_', ' ')} than the dataset's teacher"):
            join(str(masked), joined)
    write_manifest(masked, manifest)
    assert join(str(masked), joined) == join(str(masked), joined)
    small = write_dataset(tmp_path / "small", num_rows=(3,))
    write_manifest(small / "dataset", read_manifest(small / "dataset") | {"config": {"sampling.n": 1}})
    with pytest.raises(ConfigError, match="needs 8 prompts or more"):
        withhold(str(small), str(tmp_path / "s"), 1)


@pytest.mark.long
def test_in_an_object_store(runs: Callable[[str], Path], tmp_path: Path, bucket: str) -> None:  # noqa: F811
    run = runs("system")
    withhold(str(run), f"{bucket}/masked", 1)
    join(f"{bucket}/masked", f"{bucket}/joined")
    folder = open_folder(f"{bucket}/joined")
    (tmp_path / "data").mkdir()
    for name in folder.names("data"):
        (tmp_path / "data" / name).write_bytes(folder.get(f"data/{name}"))
    assert read(tmp_path / "data").equals(read(run / "dataset/data"))


def test_the_commands(runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, masked = str(runs("system")), str(tmp_path / "masked")
    assert cli.main(["export", run, "--no-prompts", "--output", masked, "--workers", "1"]) == 0
    assert f"stillhouse join {masked}" in capsys.readouterr().err
    assert cli.main(["join", masked]) == 0
    assert Path(f"{masked}-joined/manifest.json").exists()
    assert cli.main(["verify", f"{masked}-joined", "--workers", "1"]) == 0
    for folder, command in ((f"{masked}-joined", ["join", masked]), (masked, ["export", run, "--no-prompts"])):
        next(Path(folder, "data").iterdir()).unlink()
        assert cli.main([*command, *(["--output", masked] if command[0] == "export" else [])]) == 0
        assert cli.main(["verify", folder, "--workers", "1"]) == 0
    assert cli.main(["export", run, "--no-prompts", "--max-length", "9"]) == 2
