"""Data is data: it runs no code, names no file, and is quoted in no log, error, manifest or card; nor are secrets."""

import ast
import base64
import contextlib
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline import cli
from stillhouse.pipeline.dataset import manifest
from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder import keys, open_folder, partition
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.identity import compare_with_folder
from stillhouse.schemas.config import Config, ConfigError, SourceConfig, TeacherConfig
from stillhouse.stages.sources import SourceError, read_rows
from stillhouse.stages.teacher import TemplateError
from stillhouse.stages.teacher.chat import load_chat
from tests.support.children import in_child
from tests.support.command import Command
from tests.support.data import ROOT, TEACHER, make_raw_config
from tests.support.fuzzing import RUN_CONFIG

# ---------------------------------------------------------------------------------------------------------------------
# Code


def with_custom_code(folder: Path, trace: Path) -> Path:
    """The tests' teacher, with a configuration and a tokenizer that are Python code, as models on the hub have it."""
    shutil.copytree(TEACHER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, classes in (
        ("config.json", {"AutoConfig": "code.Config"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "code.Tokenizer"]}),
    ):
        facts = json.loads((folder / name).read_text())
        # Of a type that transformers does not know, so that it has nothing else to take.
        facts = {**facts, "auto_map": classes, "model_type": "unheard", "tokenizer_class": "Tokenizer"}
        (folder / name).write_text(json.dumps(facts))
    (folder / "code.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedTokenizerFast\n"
        "class Config(PretrainedConfig):\n    model_type = 'unheard'\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    return folder


@pytest.mark.parametrize("trusts", [False, True])
def test_code_of_a_model_runs_only_where_the_engine_is_told_so(
    trusts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Where transformers is not told, it asks at the terminal.
    monkeypatch.setattr("builtins.input", lambda *arguments: "y")
    trace = tmp_path / "ran"
    folder = with_custom_code(tmp_path / "model", trace)
    engine = {"trust_remote_code": True} if trusts else {}
    raw = {**RUN_CONFIG, "teacher": {"model": str(folder), "max_model_len": 100, "engine": engine}}
    config = Config.model_validate(raw)
    if trusts:  # the trap works
        load_chat(config)
        assert trace.exists()
        return
    with pytest.raises(TemplateError, match="contains custom code"):
        load_chat(config)
    # The manifest's facts need the model's configuration too.
    tokenizer = json.loads((TEACHER / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    raw_config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw_config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    with contextlib.suppress(TemplateError):
        manifest._read_teacher(config)
    assert not trace.exists()


@pytest.mark.parametrize("value", ["true", 1, "yes"])
def test_nothing_but_true_is_trust(value: object) -> None:
    assert not TeacherConfig(model="./x", max_model_len=100, engine={"trust_remote_code": value}).trust_remote_code


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def extension_parquet(payload: bytes) -> bytes:
    """A column of the extension type that PyArrow before 14.0.1 unpickled when it read a schema (CVE-2023-47248)."""
    kind = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    field = pa.field("messages", pa.list_(pa.string()), metadata=kind)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([pa.array([["a"]])], schema=pa.schema([field], metadata={b"pandas": payload})), sink)
    return bytes(sink.getvalue())


def test_no_pickle_is_read_from_source_or_run_folder(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    payload = pickle.dumps(Trap(trace), protocol=0)
    pickle.loads(payload)  # the trap works
    trace.unlink()
    for protocol in (0, 4):
        payload = pickle.dumps(Trap(trace), protocol=protocol)
        files = {
            **{f"{suffix}{protocol}.{suffix}": payload for suffix in ("pkl", "pickle", "pt", "npy", "joblib", "arrow")},
            **{f"{suffix}{protocol}.{suffix}": payload for suffix in ("jsonl", "json", "parquet", "jsonl.gz")},
            f"extension{protocol}.parquet": extension_parquet(payload),
        }
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)

        def work(files: dict[str, bytes] = files, payload: bytes = payload, protocol: int = protocol) -> None:
            def audit(event: str, arguments: tuple[Any, ...]) -> None:
                if event == "pickle.find_class":
                    os._exit(99)

            sys.addaudithook(audit)
            for name in files:
                try:
                    list(read_rows(SourceConfig(path=str(tmp_path / name))))
                except SourceError:
                    continue
                assert name.split(".")[0][:-1] in ("jsonl", "json", "extension"), f"{name} was not refused"
            store = open_folder(str(tmp_path / f"run{payload[1]}"))
            state = (keys.PARTITION, keys.MANIFEST, keys.TEACHER, keys.RUN)
            for key in (*state, "state/index/screen.json", "screen/00000.parquet", "state/set_aside/screen/00000.json"):
                store.put(key, payload)
            for read in (shards.read, shards.read_info):
                with pytest.raises(DamagedError):
                    read(store, "screen/00000.parquet")
            with pytest.raises(FileNotFoundError):
                partition.read(store)
            assert manifest.finished(store) is None
            with pytest.raises(ConfigError, match="damaged"):
                compare_with_folder(Config.model_validate({**RUN_CONFIG, "run_dir": store.url}))
            manifest.set_aside(Config.model_validate({**RUN_CONFIG, "run_dir": store.url}), store)
            # Even in a shard that is whole.
            shards.decode(shards.encode(pq.read_table(tmp_path / f"extension{protocol}.parquet")), "here")

        assert in_child(work) == 0
    assert not trace.exists()


def test_only_checkpoints_are_unpickled() -> None:
    """By the source: what could unpickle is used in one place, after its digest is checked."""
    found = set()
    for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/**/*.py"), *ROOT.glob("schemas/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Call):
                names.append(ast.unparse(node.func))
            risky = (
                r"(cloud)?pickle.*|marshal|shelve|joblib.*|dill|(torch|np|numpy)\.load|eval|exec|__import__|os\.system"
            )
            found |= {(path.name, name) for name in names if re.fullmatch(risky, name)}
    assert found == {("detoxify.py", "torch.load")}


# ---------------------------------------------------------------------------------------------------------------------
# Canaries, through a whole run

TEXT, ANSWER, IDENT = "canarytext7391", "canaryanswer5512", "canaryid8824"
SECRETS = {"HF_TOKEN": "hf_canarysecret1", "AWS_SECRET_ACCESS_KEY": "canarysecret2"}
ENGINE_SECRET = "canarysecret3"
HOSTILE = (
    "../../../../x", "/etc/passwd", "{0.__class__.__init__.__globals__}", "{{ 7*7 }}", "{% for x in ().__class__ %}",
    "%n%s%d", "${HF_TOKEN}", "$(touch /tmp/x)", "<script>alert(1)</script>", "<|im_end|>", "---\nlicense: mit\n---",
    "a\\..\\b", "| a | b |", "`code`", "\x1b[31mred",
)  # fmt: skip


def source_rows() -> list[Any]:
    """Hostile ids and texts, and rows that every stage drops; each text and id holds its canary."""

    def row(number: Any, text: Any, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": f"{ANSWER} {number}"}]
        return {"id": number, "messages": messages, **more}

    # Ids with control characters are refused.
    rows = [
        row(re.sub(r"[\x00-\x1f]", " ", f"{IDENT} {bad}"), f"{bad} {TEXT} question {n}")
        for n, bad in enumerate(HOSTILE)
    ]
    same = f"{TEXT} is a question that was asked in these very words before"
    rows += [row(f"{IDENT}-s{n}", same) for n in range(2)]
    rows += [row(f"{IDENT}-u", f"fuck you, you stupid bitch {TEXT}")]
    rows += [row(f"{IDENT}-long", f"{TEXT} " * 400)]
    rows += [row(f"{IDENT}-raise{n}", f"{TEXT} raises, whatever else it may be about {n}") for n in range(2)]
    rows += [row(f"{IDENT}\n", TEXT), row(f"{IDENT}-r", [{"type": "image", "text": TEXT}])]
    others: list[Any] = [[TEXT], TEXT]
    rows += others
    rows += [{"id": f"{IDENT}-n", "messages": [{"role": TEXT, "content": TEXT}]}]
    rows += [row(f"{IDENT}-more{n}", f"{TEXT} what is the number {n} times {n + 1}, and why?") for n in range(12)]
    rows += [row(f"{IDENT}-u", f"fuck you, you stupid bitch {TEXT}")]  # a duplicate id, and the same text
    return rows


HOOK = '''
"""Makes every stage fail with an error that quotes its rows: once, and `screen` always on the shard of source row 0."""
import importlib.util, os, sys

FOLDER = os.environ["LEAK_FOLDER"]

def once(name):
    try:
        os.close(os.open(os.path.join(FOLDER, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

class Leaking:
    def __init__(self, name, inner):
        self.name, self.inner = name, inner
    def __getattr__(self, name):
        return getattr(self.inner, name)
    def __call__(self, table, *more):
        if table.num_rows and (once(self.name) or (self.name == "screen" and table["source_row"][0].as_py() == 0)):
            try:
                raise KeyError(repr(table.to_pylist()))
            except KeyError as error:
                raise ValueError(repr(table.to_pylist()), os.environ["HF_TOKEN"]) from error
        return self.inner(table, *more)

def leak_flow(flow):
    import dataclasses
    def leaking(name, build):
        return build and (lambda config: Leaking(name, build(config)))
    stages = flow.of
    flow.of = lambda config: tuple(
        s if s.name in ("ingest", "publish") else
        dataclasses.replace(s, build=leaking(s.name, s.build), sketch=leaking(s.name + "-sketch", s.sketch))
        for s in stages(config)
    )

def leak_ingest(ingest):
    def table(self, verdicts, *more):
        raise LookupError(repr(verdicts), os.environ["HF_TOKEN"])
    ingest.Ingest._table = table

PATCHES = {
    "stages": {"stillhouse.pipeline.flow": leak_flow},
    "ingest": {"stillhouse.stages.ingest": leak_ingest},
}[os.environ["LEAK"]]

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name not in PATCHES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            PATCHES[name](module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
'''


class Leak(NamedTuple):
    """What runs with canaries left behind."""

    run_dir: Path
    outside: set[str]
    """Files beside the run folder."""
    logs: dict[str, bytes]
    """Standard output and error of each command, and every file of Ray's sessions."""
    ray_files: int
    result: dict[str, Any]


@pytest.fixture(scope="module")
def leak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Leak]:
    folder = tmp_path_factory.mktemp("leak")
    hook, flags = folder / "hook", folder / "flags"
    for new in (hook, flags, folder / "data"):
        new.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    (folder / "data/source.jsonl").write_text("\n".join(map(json.dumps, source_rows())) + f'\n{{"{TEXT}": \n')
    raw = make_raw_config(folder)
    raw |= {"source": {"path": str(folder / "data/source.jsonl"), "name": "leak"}, "run_dir": str(folder / "a/b/run")}
    raw["generate"] = {"max_dropped_fraction": 1.0}
    raw["screen"]["max_dropped_fraction"] = 1.0
    raw["teacher"]["env"] = {"VLLM_CPU_KVCACHE_SPACE": "1", "SOME_TOKEN": ENGINE_SECRET}
    raw["resources"] = {"max_attempts": 2}
    before = files_below(folder) | {"config.yaml"}
    command = Command(folder, raw)
    logs: dict[str, bytes] = {}
    # Short, because Ray puts sockets there.
    with tempfile.TemporaryDirectory(prefix="sh", dir="/tmp") as ray_folder:
        environment = SECRETS | {
            "PYTHONPATH": f"{hook}:{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",  # which would be a file beside the run folder
            "RAY_TMPDIR": ray_folder,
            "FAKE_TEACHER_RAISES_ON": f"{IDENT}-raise",
        }

        def go(name: str, *arguments: str, leak: str, expect: int, flags: Path = flags) -> dict[str, Any]:
            process = command.start(*arguments, LEAK=leak, **environment | {"LEAK_FOLDER": str(flags)})
            out, err = process.communicate(timeout=300)
            assert process.returncode == expect, err
            logs[f"{name} stdout"], logs[f"{name} stderr"] = out.encode(), err.encode()
            return json.loads(out) if out.strip() else {}

        go("failing ingest", "run", "--verbose", "--local", leak="ingest", expect=1)
        here = ("--verbose", "--local", "--set", f"run_dir={folder}/local")
        (folder / "local-flags").mkdir()
        go("local run", "run", *here, leak="stages", expect=3, flags=folder / "local-flags")
        result = go("run", "run", "--verbose", leak="stages", expect=3)
        go("status", "status", "--verbose", leak="stages", expect=3)
        assert {path.name for path in flags.iterdir()} >= {"dedupe", "dedupe-sketch", "screen", "generate", "review"}
        ray_files = {str(path): path for path in Path(ray_folder).rglob("*") if path.is_file()}
        logs |= {name: path.read_bytes() for name, path in ray_files.items()}
        run_dir = command.run_dir
        outside = {
            name for name in files_below(folder) if not name.startswith(("a/b/run/", "flags/", "local"))
        } - before
        yield Leak(run_dir, outside, logs, len(ray_files), result)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def canaries_in(data: bytes, *allowed: str) -> list[str]:
    every = (TEXT, ANSWER, IDENT, ENGINE_SECRET, *SECRETS.values())
    forms = {canary: (canary.encode(), base64.b64encode(canary.encode())[:-4]) for canary in every}
    return [canary for canary in every if canary not in allowed and any(form in data for form in forms[canary])]


def test_the_run_was_one_in_which_everything_failed(leak: Leak) -> None:
    """Or the other tests here would prove nothing."""
    dropped = {reason for counts in leak.result["stages"].values() for reason in counts["dropped"]}
    assert dropped >= {"duplicate_id", "not_text", "not_an_object", "unknown_role", "invalid_json", "too_long"}
    assert dropped >= {"exact_duplicate", "unsafe_prompt", "teacher_failed"}
    assert leak.result["rows"] > 5
    (line,) = leak.result["set_aside"]
    assert line.startswith("screen 00000.parquet: set aside after 2 attempts; last: ValueError at sitecustomize.py:")
    err = leak.logs["failing ingest stderr"].decode()
    assert re.search(r"\nstillhouse: LookupError at sitecustomize\.py:\d+\n$", err)
    assert 'File "' in err
    assert leak.ray_files > 10
    assert any(b"an attempt failed" in data for data in leak.logs.values()), "workers' logs are among what is searched"


def test_no_log_holds_a_canary(leak: Leak) -> None:
    assert {name: found for name, data in leak.logs.items() if (found := canaries_in(data))} == {}


def test_run_folder_holds_text_only_where_it_belongs(leak: Leak) -> None:
    seen = set()
    for path in leak.run_dir.rglob("*"):
        if not path.is_file():
            continue
        name = path.relative_to(leak.run_dir)
        if path.suffix != ".parquet":
            assert canaries_in(path.read_bytes()) == [], name
            continue
        is_data = name.parts[0] in ("ingest", "dedupe", "screen", "generate", "review", "dataset")
        table = pq.read_table(path)
        found = canaries_in(repr(table.to_pylist()).encode())
        seen |= {(name.parts[0], canary) for canary in found}
        # Ids are in the ledger and in what dedupe and review know of rows; text is not.
        assert set(found) <= ({TEXT, IDENT} if is_data else {IDENT}), name
        facts = (pq.read_metadata(path).metadata or {}).get(b"stillhouse", b"")
        assert set(canaries_in(facts)) <= {IDENT}, name
        if is_data and table.num_rows:
            texts = {column for column in table.column_names if TEXT in repr(table[column].to_pylist())}
            assert texts <= {"user_turns", "messages"}, name
    assert {("ingest", TEXT), ("dataset", TEXT), ("dataset", IDENT), ("ledger", IDENT)} <= seen


def test_hostile_data_is_no_path_template_or_markup(leak: Leak) -> None:
    assert leak.outside == set()
    shape = re.compile(
        r"run\.json|dataset/(README\.md|manifest\.json|data/train-\d{5}-of-\d{5}\.parquet)"
        r"|(ingest|dedupe|screen|generate|review)/\d{5}\.parquet|ledger/[a-z]+/\d{5}\.parquet"
        r"|state/((dedupe|review)/[a-z]+/\d{5}\.parquet|(partition|teacher)\.json|index/[a-z]+\.json"
        r"|set_aside/screen/00000\.json|attempts/[0-9a-f]{12}/[\w.-]+|timeline/[0-9a-fT-]+\.parquet)"
    )
    assert [name for name in files_below(leak.run_dir) if not shape.fullmatch(name)] == []
    for name in ("dataset/README.md", "dataset/manifest.json", "run.json"):
        text = (leak.run_dir / name).read_text()
        assert [bad for bad in HOSTILE if bad != "---\nlicense: mit\n---" and bad in text] == [], name
    assert (leak.run_dir / "dataset/README.md").read_text().count("\n---\n") == 1
    # As it came, neither filled in nor escaped.
    turns = [turn for path in sorted((leak.run_dir / "ingest").iterdir()) for turn in texts_of(path)]
    assert [f"{bad} {TEXT} question {n}" for n, bad in enumerate(HOSTILE)] == turns[: len(HOSTILE)]
    published = {
        message["content"]
        for path in (leak.run_dir / "dataset/data").iterdir()
        for messages in pq.read_table(path)["messages"].to_pylist()
        for message in messages
    }
    # The first shard was set aside.
    assert {f"{bad} {TEXT} question {n}" for n, bad in enumerate(HOSTILE) if n >= 10} <= published


def texts_of(path: Path) -> list[str]:
    return [turns[0] for turns in pq.read_table(path)["user_turns"].to_pylist()]


def test_configuration_of_a_run_names_the_engines_variables_only(leak: Leak) -> None:
    facts = json.loads((leak.run_dir / "run.json").read_text())
    assert facts["config"]["teacher"]["env"] == ["SOME_TOKEN", "VLLM_CPU_KVCACHE_SPACE"]


# ---------------------------------------------------------------------------------------------------------------------
# Without a run


@pytest.mark.parametrize("section", ["teacher", "rollout", "guard"])
def test_a_token_among_engine_options_is_refused(section: str) -> None:
    raw: dict[str, Any] = {**RUN_CONFIG}
    model: dict[str, Any] = {"model": "/m", "engine": {"hf_token": "hf_secret"}}
    if section == "guard":
        raw["screen"] = {"classifiers": [{"name": "guard", "preset": "llama-guard-3", **model}]}
    else:
        raw[section] = {**raw.get(section, {"sampling": {"max_tokens": 8}}), **model}
    with pytest.raises(ValueError, match="set HF_TOKEN in the environment") as error:
        Config.model_validate(raw)
    assert "hf_secret" not in str(error.value).partition("[type=")[0]


@pytest.mark.parametrize("kind", [KeyError, ValueError, TypeError, MemoryError, pa.ArrowInvalid, AssertionError])
@pytest.mark.parametrize("verbose", [False, True])
def test_error_of_any_kind_is_told_without_its_message(
    kind: type[Exception],
    verbose: bool,
    raw_config: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(config: Config) -> None:
        try:
            raise kind(TEXT)
        except Exception as error:
            raise kind(TEXT) from error

    monkeypatch.setattr("stillhouse.pipeline.look.status.status", fail)
    command = Command(tmp_path, raw_config)
    assert cli.main(["status", str(command.file), *(["--verbose"] if verbose else [])]) == 1
    err = capsys.readouterr().err
    assert TEXT not in err
    assert f"stillhouse: {kind.__name__} at test_security.py:" in err
    assert ('File "' in err) == verbose
