"""Prompts that are to be deleted leave every file, whatever is killed meanwhile, and do not come back."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline import cli
from stillhouse.pipeline.dataset.export import default_output, export
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.errors import RunError, ShardError
from stillhouse.pipeline.folder import open_folder, purged
from stillhouse.pipeline.look.status import status as status_of
from stillhouse.pipeline.run import driver
from stillhouse.pipeline.run.purge import purge, read_ids
from stillhouse.schemas.config import Config, ConfigError
from tests.support.children import die_at, in_child
from tests.support.command import contents, read
from tests.support.data import make_raw_config
from tests.support.inline_pool import InlinePool, Kept, run_inline
from tests.support.s3 import bucket  # noqa: F401 (a fixture)

STRIDE = int(os.environ.get("PURGE_STRIDE", "23"))
"""How many steps on the storage lie between two at which a purge is killed; with 1 it is killed at every single one."""
LONG = "Please tell me at length what the old ferryman of {place} saw on his {n} crossings of the wide river in winter"
PLACES = ["Aachen", "Bergen", "Calais", "Dover", "Esbjerg", "Fulda", "Genoa", "Halle", "Iasi", "Jena", "Kiel", "Lund"]


def records() -> Iterator[dict[str, Any]]:
    """24 rows, in shards of 6: 4 near-duplicates of one, a refused one, an unsafe one."""
    for n in range(24):
        text = LONG.format(place=PLACES[n % 12], n=f"{n} {PLACES[n // 2]} {PLACES[-1 - n // 2]} " * 6)
        if n in (1, 8, 14, 20):
            text = LONG.format(place="Malmo", n="many many") + " and in spring and in autumn" * 4 + f" of year {n}."
        if n == 3:
            text = "you stupid fucking idiot, shut the fuck up, asshole"
        language = "German" if n == 4 else "English"
        yield {
            "conversation_id": f"conversation-{n:02}-{'abcdef'[n % 6]}",
            "language": language,
            "conversation": [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}],
        }


def make_config(run_dir: str, folder: Path, **sections: Any) -> Config:
    raw = make_raw_config(folder)
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records()))
    raw |= {"run_dir": run_dir, "source": {"path": str(source)}}
    raw["ingest"] |= {"rows_per_shard": 6, "languages": ["English"]}
    raw["dedupe"] = {"max_per_cluster": 2}
    raw["sampling"]["n"] = 2
    for name, section in sections.items():
        raw[name] |= section
    return Config.model_validate(raw)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Config:
    folder = tmp_path_factory.mktemp("purge")
    config = make_config(str(folder / "run"), folder)
    run_inline(config)
    purged.add(open_folder(config.run_dir), [])  # a key, the same in all copies
    return config


@pytest.fixture
def config(finished: Config, tmp_path: Path) -> Config:
    shutil.copytree(finished.run_dir, tmp_path / "run")
    return finished.model_copy(update={"run_dir": str(tmp_path / "run")})


def everything(folder: Path) -> str:
    """All that is in a folder's files, Parquet files decompressed, and their names."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        found.append(str(path.relative_to(folder)))
        if path.suffix == ".parquet":
            found += [str(pq.read_table(path).to_pylist()), str(pq.read_metadata(path).metadata)]
        found.append(path.read_bytes().decode("latin-1"))
    return "\n".join(found)


def rows_by_id() -> dict[str, str]:
    return {record["conversation_id"]: record["conversation"][0]["content"] for record in records()}


def leader(config: Config) -> tuple[str, list[str]]:
    """A prompt that leads a cluster, and the other ones that were kept of it."""
    rows = read(Path(config.run_dir) / "dedupe").to_pylist()
    (found,) = {row["cluster_id"] for row in rows if row["cluster_size"] > 1}
    return found, [row["prompt_id"] for row in rows if row["cluster_id"] == found and row["prompt_id"] != found]


def test_purged_prompts_are_in_no_file(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, texts = Path(config.run_dir), rows_by_id()
    ids = list(texts)
    first, others = leader(config)
    assert others
    refused, unsafe, plain = ids[4], ids[3], ids[17]
    ledgers = {stage: read(run / "ledger" / stage).to_pylist() for stage in ("ingest", "dedupe", "screen")}
    assert [row["prompt_id"] for row in ledgers["ingest"]] == [refused]
    assert [row["prompt_id"] for row in ledgers["screen"]] == [unsafe]
    assert len(ledgers["dedupe"]) == 2
    before = json.loads((run / "dataset/manifest.json").read_text())
    for layout in ("openai", "verl"):
        export(str(run), layout, default_output(str(run), layout), num_workers=1)
    for name in ("report.html", "dataset/mine.html", "state/damaged/generate/00002.parquet.ab", "state/staged/0123"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(texts[plain])
    (run / "state/parts/generate").mkdir(parents=True)
    for shard in ("00000", "00002"):
        shutil.copy(run / f"generate/{shard}.parquet", run / f"state/parts/generate/{shard}.0-2.parquet")
    gone = [first, refused, unsafe, plain]
    for name in gone:
        assert name in everything(run)

    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").touch()
    for link, place in (("linked", tmp_path / "model"), ("verl/tokenizer", tmp_path / "model"), ("verl/run", run)):
        (run / "exports" / link).symlink_to(place)
    (tmp_path / "ids").write_text("\n".join([first, refused, unsafe, f"{plain}/1", "nobody", f"{plain}/7", ""]))
    assert cli.main(["purge", str(run), "--ids", str(tmp_path / "ids")]) == 0
    err = capsys.readouterr().err
    assert "purged: 4 prompts, in 4 shards" in err
    assert f"unknown: 2 ids, which no prompt of this run has or had:\n  nobody\n  {plain}/7\n" in err
    assert f"deleted: {run}/exports/verl; export it again" in err
    assert f"not touched: {run}/exports/linked is a link; delete what is behind it yourself" in err
    assert (tmp_path / "model/weights").exists(), "what is behind a link may be anybody's"

    left = everything(run)
    for name in gone:
        assert name not in left
        assert texts[name][20:] not in left
    assert all(name in left for name in [*others, ids[0], ids[23]])
    assert verify(str(run), 1)["ok"]
    after = json.loads((run / "dataset/manifest.json").read_text())
    funnel = after["stages"]
    assert funnel["ingest"] == {"rows_in": 24, "rows_out": 20, "dropped": {"purged": 4}}
    # The two duplicates of the purged leader stay dropped.
    assert funnel["dedupe"] == {"rows_in": 20, "rows_out": 18, "dropped": {"near_duplicate": 2}}
    assert funnel["screen"] == {"rows_in": 18, "rows_out": 18, "dropped": {}}
    assert funnel["generate"]["rows_in"] == 36
    for stage, counts in funnel.items():
        assert counts["rows_out"] == read(run / stage).num_rows == counts["rows_in"] - sum(counts["dropped"].values())
    assert (after["rows"], after["rows"]) == (before["rows"] - 4, read(run / "dataset/data").num_rows)
    ledger = read(run / "ledger/ingest").to_pylist()
    register = purged.read(open_folder(str(run)))
    assert {row["prompt_id"] for row in ledger} == {register.name(name) for name in gone}
    assert {(row["reason"], row["source_row"]) for row in ledger} == {("purged", ids.index(name)) for name in gone}
    followers = read(run / "dataset/data").to_pylist()
    assert {row["cluster_id"] for row in followers if row["prompt_id"] in others} == {register.name(first)}

    # A run finds nothing to do, and what it makes again, from the source, is without them.
    undisturbed = contents(run)
    assert run_inline(config)[1] == ""
    assert contents(run) == undisturbed
    lost = ("ingest/00000", "ingest/00002", "dedupe/00002", "screen/00000", "generate/00002", "review/00001")
    for name in (*(f"{shard}.parquet" for shard in lost), "dataset/data/train-00003-of-00004.parquet"):
        (run / name).unlink()
    (run / "dataset/manifest.json").unlink()
    run_inline(config)
    assert contents(run) == undisturbed
    assert everything(run).count(texts[plain][20:]) == 0
    assert cli.main(["purge", str(run), "--ids", str(tmp_path / "ids")]) == 0
    assert "already purged before: 4 ids" in capsys.readouterr().err
    assert contents(run) == undisturbed


@pytest.mark.long
def test_killed_at_any_step_a_purge_goes_on(config: Config, tmp_path: Path) -> None:
    name = leader(config)[0]
    whole = tmp_path / "whole"
    shutil.copytree(config.run_dir, whole)
    purge(str(whole), [name])
    undisturbed = contents(whole)
    assert name not in everything(whole)
    step, num_kills = 1, 0
    while True:
        folder = tmp_path / f"killed-{step}"
        shutil.copytree(config.run_dir, folder)

        def die(folder: Path = folder, step: int = step) -> None:
            die_at(step)
            purge(str(folder), [name])

        code = in_child(die)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        num_kills += 1
        if (folder / "dataset/manifest.json").exists():
            assert verify(str(folder), 1)["ok"]
        for file in folder.glob("*/*.parquet"):
            pq.read_table(file)  # the old one or the new one
        is_begun = (folder / "state/purge.json").exists()
        here = config.model_copy(update={"run_dir": str(folder)})
        assert is_begun == status_of(here)["state"].startswith("being purged")
        if num_kills % 2 and is_begun:  # the command again, or a run
            run_inline(here)
        else:
            purge(str(folder), [name])
        assert contents(folder) == undisturbed, step
        assert name not in everything(folder), step
        assert not (folder / "state/purge.json").exists()
        shutil.rmtree(folder)
        step += STRIDE
    assert num_kills > 5


def test_a_purge_of_an_unfinished_run(tmp_path: Path, weights: Path) -> None:
    config = make_config(str(tmp_path / "run"), tmp_path, source={"limit": 12})
    run = Path(config.run_dir)
    driver.run(config, Kept(), InlinePool(), until="screen")
    name = list(rows_by_id())[7]
    result = purge(str(run), [name])
    assert (result["prompts"], result["rows"]) == (1, [None, None])
    manifest, trouble = run_inline(config)
    assert trouble == ""
    assert manifest["stages"]["ingest"]["dropped"]["purged"] == 1
    assert name not in everything(run)
    assert verify(str(run), 1)["ok"]


def test_a_run_of_which_all_was_purged_ends(tmp_path: Path, weights: Path) -> None:
    config = make_config(str(tmp_path / "run"), tmp_path, source={"limit": 6})
    driver.run(config, Kept(), InlinePool(), until="screen")
    purge(config.run_dir, [*rows_by_id()][:6])
    with pytest.raises(RunError, match=r"^ingest: nothing is left, all of 6 rows were dropped \(purged 6\); look into"):
        run_inline(config)


def test_a_finished_run_of_which_all_was_purged_stays_one(config: Config) -> None:
    purge(config.run_dir, rows_by_id())
    assert run_inline(config)[0]["rows"] == 0


def test_what_cannot_be_purged_is_refused(config: Config, tmp_path: Path) -> None:
    run, name = Path(config.run_dir), next(iter(rows_by_id()))
    for text, message in (("\n \n", "holds no ids"), (None, "cannot be read")):
        file = tmp_path / "ids"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_ids(str(file))
    file.write_bytes(b"\xef\xbb\xbfabc\r\ndef\n")
    assert read_ids(str(file)) == ["abc", "def"], "as some editors write UTF-8"
    with pytest.raises(ConfigError, match="holds no run"):
        purge(str(run / "dataset"), [name])
    (run / "screen/00000.parquet").unlink()
    undisturbed = contents(run)
    with pytest.raises(
        ShardError, match=r"generate/00000.parquet: is there, and the shard that it was made from is gone"
    ):
        purge(str(run), [name])
    (run / "ingest/00001.parquet").rename(tmp_path / "kept")
    with pytest.raises(ShardError, match=r"ingest/00001.parquet: is gone"):
        purge(str(run), [name])
    (tmp_path / "kept").rename(run / "ingest/00001.parquet")
    assert contents(run) == undisturbed
    shutil.copy(run / "ingest/00003.parquet", run / "ingest/00004.parquet")
    with pytest.raises(ShardError, match=r"ingest/00004.parquet: is no shard of this run, and may hold prompts"):
        purge(str(run), [name])


@pytest.mark.long
def test_a_purge_in_an_object_store(bucket: str, tmp_path: Path, weights: Path) -> None:  # noqa: F811
    config = make_config(f"{bucket}/purge", tmp_path, source={"limit": 12})
    run_inline(config)
    name = list(rows_by_id())[7]
    export(config.run_dir, "openai", default_output(config.run_dir, "openai"), num_workers=1)
    assert purge(config.run_dir, [name])["exports"] == ["openai"]
    folder = open_folder(config.run_dir)
    assert folder.walk("exports") == ()
    assert verify(config.run_dir, 1)["ok"]
    copy = tmp_path / "copy"
    for part in ("ingest", "dedupe", "screen", "generate", "review", "dataset", "ledger", "state"):
        for key in folder.walk(part):
            (copy / key).parent.mkdir(parents=True, exist_ok=True)
            (copy / key).write_bytes(folder.get(key))
    assert (copy / "dataset/manifest.json").exists()
    assert name not in everything(copy)
