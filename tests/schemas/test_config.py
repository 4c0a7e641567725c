"""Configuration: every shipped file loads, typos are named, and the hash knows what decides the data."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.schemas.config import (
    Config,
    ConfigError,
    config_hash,
    deciding_values,
    differing_keys,
    load,
    nested_values,
)
from tests.support.data import ROOT


@pytest.fixture
def file(tmp_path: Path, raw_config: dict[str, Any]) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw_config))
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert len(config_hash(load(path))) == 64


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.max_token=3", "sampling.max_token: is not a known key"),
        ("dedupe.threshold=1.5", "dedupe.threshold: "),
        ("sampling.max_tokens=512", "leaves no room"),
        ("ingest.max_prompt_tokens=500", "exceeds teacher.max_model_len"),
        ("ingest.rows_per_shard=100000000", "ingest.rows_per_shard: 100,000,000 rows of up to "),
        ("sampling.n=10000000", "lower targets.top_k, sampling.n or sampling.max_tokens"),
        ("source.dataset=lmsys/lmsys-chat-1m", "exactly one of `path` and `dataset`"),
        ("teacher.model=google/gemma-2-27b-it", "needs a `revision`"),
        ("teacher.engine={max_logprobs: 5}", "max_logprobs"),
        ("screen.classifiers=[{name: nonsense}]", "screen.classifiers.0"),
        ("run_dir.x=1", "not a section"),
        ("run_dir=hdfs://bucket/x", "run_dir: hdfs://bucket/x: hdfs:// is no known object store"),
        ("run_dir=s3:///x", "run_dir: s3:///x: names no bucket"),
        ("run_dir=file://runs/x", "run_dir: file://runs/x: names no absolute path; write file:///"),
        ("run_dir=''", "run_dir: is empty; name a path or a URL"),
        ("run_dir=file://", "run_dir: is empty; name a path or a URL"),
        ("source.path=['', b.jsonl]", "source.path: is empty; name a path or a URL"),
        ("source.path=[]", "source.path: is empty"),
        ("source.path=ftp://host/x.jsonl", "source.path: ftp://host/x.jsonl: ftp:// is no known object store"),
        ("source.split=train", "source: `config` and `split` are of a hub `dataset`"),
        ("source.path=s3://bucket/a//b.jsonl", "source.path: s3://bucket/a//b.jsonl: has an empty segment (//)"),
        ("source.path=[gs://bucket/a/../b]", "source.path: gs://bucket/a/../b: has an empty segment (//), . or .."),
        ("run_dir=s3://bucket//run//x", "run_dir: s3://bucket//run//x: has an empty segment"),
        (
            "targets.precision=0.0009765625",
            "targets: precision 0.0009765625 cannot hold log-probabilities below -32",
        ),
        ("sampling.seed=-1", "sampling.seed: "),
        ("sampling.seed=4294967296", "sampling.seed: "),
        ("generate.thinking_tokens=['', '</think>']", "generate.thinking_tokens.0: "),
        ("teacher.date=2026-11-25 10:00:00", "teacher.date: '2026-11-25 10:00:00' is no day"),
        ("screen.classifiers=[{name: guard, model: ./x, questions: [unsafe]}]", "guard.questions.0: "),
        (
            "screen.classifiers=[{name: guard, model: ./x, questions: [{label: [a], yes: [y], no: [n]}]}]",
            "guard.questions.0.label: ",
        ),
        (
            "decontamination={evaluations: [{name: a, path: ~nouser/a, columns: [b]}]}",
            "~nouser/a: there is no user of that name",
        ),
        ("run_dir=~nouser/a", "~nouser/a: there is no user of that name"),
        ("nonsense", "is not key.path=value"),
    ],
)
def test_wrong_values_are_named(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(file, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_url_of_a_file_system_is_a_path(file: Path) -> None:
    assert load(file, ["run_dir=file:///shared/my%20run"]).run_dir == "/shared/my run"


@pytest.mark.parametrize("value", ["*.jsonl", "[x", "@x", "%a", "*it's", 'a: "b', "2026-13-45"])
def test_a_value_that_is_no_yaml_is_told_with_quotes_that_a_shell_takes(file: Path, value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^--set .*source\.path=.*: its value is not YAML; quote it: --set "
    ) as error:
        load(file, [f"source.path={value}"])
    quoted = shlex.split(str(error.value).rpartition(" --set ")[2])
    assert [Path(path).name for path in load(file, quoted).source.paths] == [value]


@pytest.mark.parametrize("text", [None, "a: [", "- 1", "", "day: 2026-13-45"])
def test_unreadable_files_are_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load(path)


def test_overrides_are_yaml(file: Path) -> None:
    config = load(file, ["sampling.temperature=0.5", "ingest.languages=[English]", "teacher.engine={max_num_seqs: 8}"])
    assert config.sampling.temperature == 0.5
    assert config.ingest.languages == ["English"]
    assert config.teacher.engine == {"max_num_seqs": 8}


def test_a_day_that_there_is_not_is_told_as_other_mistakes(file: Path, tmp_path: Path) -> None:
    days = tmp_path / "days.yaml"
    days.write_text("[2026-02-30]")
    file.write_text(f"{file.read_text()}\ngenerate: {{system_prompts: {days}}}\n")
    with pytest.raises(ConfigError, match=r"generate\.system_prompts: .*days\.yaml is not YAML"):
        load(file)
    file.write_text("teacher: {date: 2026-02-30}")
    with pytest.raises(ConfigError, match=r"config\.yaml: is not YAML; check"):
        load(file)


def test_files_named_by_the_configuration_become_part_of_it(file: Path, tmp_path: Path) -> None:
    prompts, template = tmp_path / "prompts.yaml", tmp_path / "chat.jinja"
    prompts.write_text("- Be brief.\n- null\n- |\n  Two\n  lines.\n")
    template.write_text("{{ messages }}")
    settings = [f"generate.system_prompts={prompts}", f"teacher.chat_template={template}"]
    config = load(file, settings)
    assert config.generate.system_prompts == ["Be brief.", None, "Two\nlines.\n"]
    assert config.teacher.chat_template == "{{ messages }}"
    template.write_text("{{ message }}")
    assert differing_keys(deciding_values(config), deciding_values(load(file, settings))) == ["teacher.chat_template"]
    assert load(file, ["generate.system_prompts=source"]).generate.system_prompts == "source"  # not a file
    prompts.write_text("just text")
    with pytest.raises(ConfigError, match=r"generate\.system_prompts"):
        load(file, settings)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(file, ["teacher.chat_template=/missing"])


FREE = [
    "run_dir=/elsewhere",
    "resources.generate.max_workers=7",
    "resources.max_attempts=9",
    "teacher.env={A: b}",
    "teacher.engine={max_num_seqs: 7, gpu_memory_utilization: 0.5, tensor_parallel_size: 2}",
    "screen.max_dropped_fraction=0.1",
]
DECIDING = [
    "source.limit=7",
    "ingest.rows_per_shard=11",
    "dedupe.threshold=0.7",
    "screen.drop_flagged=false",
    "screen.classifiers=[{name: profanity-check, thresholds: {profanity: 0.5}}]",
    "teacher.max_model_len=600",
    "teacher.engine={quantization: fp8}",
    "sampling.seed=5",
    "targets.top_k=9",
    "review.loop_repeats=5",
]


def test_hash_ignores_resources_and_knows_the_rest(file: Path) -> None:
    config = load(file)
    for override in FREE:
        assert config_hash(load(file, [override])) == config_hash(config), override
    for override in DECIDING:
        other = load(file, [override])
        assert config_hash(other) != config_hash(config), override
        (key,) = differing_keys(deciding_values(config), deciding_values(other))
        assert override.startswith(key.partition("[")[0]), (override, key)


def test_every_key_is_documented() -> None:
    def visit(model: Any, prefix: str) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and hasattr(kind, "model_fields"):
                missing += visit(kind, f"{prefix}{name}.")
            elif field.description is None and prefix != "sampling." and not prefix.startswith("resources."):
                missing.append(prefix + name)
        return missing

    # Sampling's own keys are vLLM's; WorkersConfig's speak for themselves.
    assert [key for key in visit(Config, "") if key not in {"resources", "source"}] == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "{file}", "--set", "sampling.max_token=1"], ["run", "missing.yaml"]]
)
def test_command_answers_at_once(file: Path, arguments: list[str]) -> None:
    """Measured by what is imported, because the machine may be busy; the answer takes 0.2 s on an idle one."""
    command = [sys.executable, "-X", "importtime", "-m", "stillhouse", *(a.format(file=file) for a in arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == (0 if arguments == ["--help"] else 2)
    imported = {
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")
    }
    assert "pydantic" in imported
    assert not imported & {"ray", "torch", "vllm", "transformers", "pyarrow", "numpy", "datasets"}


def test_exit_codes_and_messages(file: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "stillhouse", "run", str(file), "--set", "sampling.max_token=1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("stillhouse: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert (
        subprocess.run([sys.executable, "-m", "stillhouse"], cwd=ROOT, capture_output=True, check=False).returncode == 2
    )


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_manifest_gives_its_configuration_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sections that decide prompts and targets; what stands in a manifest has been JSON."""
    sections = ("source", "ingest", "teacher", "teachers", "sampling", "targets", "generate", "task", "score")
    names = ["source.columns.id=own.id", "source.roles={'bot': 'assistant'}", "source.sample=7"]
    monkeypatch.chdir(ROOT)
    config = load(path, names)
    written = json.loads(json.dumps(deciding_values(config)))
    again = Config.model_validate({"run_dir": "x"} | nested_values(written, sections))
    mine = {key: value for key, value in deciding_values(again).items() if key.startswith(sections)}
    assert json.loads(json.dumps(mine)) == {key: value for key, value in written.items() if key.startswith(sections)}
    assert again.source.columns.id == "own.id"


def test_a_stage_keeps_its_own_defaults_where_some_of_its_keys_are_given(raw_config: dict[str, Any]) -> None:
    resources = {"generate": {"num_gpus": 2}, "ingest": {"num_cpus": 4}, "publish": {"max_workers": 1}}
    found = Config.model_validate({**raw_config, "resources": resources}).resources
    assert (found.generate.num_gpus, found.generate.shards_in_flight) == (2, 2)
    assert (found.ingest.num_cpus, found.ingest.max_workers) == (4, 2)
    assert (found.publish.max_workers, found.dedupe.max_workers, found.score.shards_in_flight) == (1, 2, 2)


def test_custom_resources_of_ingest_are_refused(raw_config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ingest\.resources: the tasks of ingest go to any node"):
        Config.model_validate({**raw_config, "resources": {"ingest": {"resources": {"data": 1}}}})
