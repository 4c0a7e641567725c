"""Messages against ids: nothing is found in what generate writes, whatever the teacher's template, and changes are."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.dataset.checks.findings import RowError
from stillhouse.pipeline.dataset.checks.text import Words, load
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.schemas.config import Config
from stillhouse.stages.generate import Generate
from stillhouse.stages.layouts.records import records
from stillhouse.stages.teacher.chat import Chat
from tests.support.damage import Folder
from tests.support.data import TEACHER
from tests.support.datasets import make_export, write_dataset
from tests.support.inline_pool import run_inline
from tests.support.prompts import prompts
from tests.support.reasoning import REASONERS, Reasoner, Says

THINKING_TOKENS = {"[THINK]": ["[THINK]", "[/THINK]"], "<|channel>": ["<|channel>", "<channel|>"]}


def generated(raw: dict[str, Any], chat: Chat, teacher: Any, turns: list[str]) -> tuple[Words, dict[str, Any]]:
    config = Config.model_validate(raw)
    table = asyncio.run(Generate(config, chat, teacher)(prompts([turns])))
    (row,), (arrays,) = table.to_pylist(), records(table.select(["input_ids", "labels"]))
    return Words(chat, config, config.sampling.stop_token_ids, None), row | arrays


@pytest.mark.parametrize("reasoner", REASONERS, ids=str)
@pytest.mark.parametrize("mode", ["supervise", "keep", "drop"])
def test_teachers_that_think(raw_config: dict[str, Any], reasoner: Reasoner, mode: str) -> None:
    raw_config["teacher"] |= {"max_model_len": 4096}
    raw_config["generate"] = {"thinking": mode}
    for mark, pair in THINKING_TOKENS.items():
        if mark in reasoner.writes:
            raw_config["generate"]["thinking_tokens"] = pair
    chat = Chat(reasoner.tokenizer, reasoner.template, drops_thinking=mode == "drop")
    teacher = Says(reasoner.tokenizer, [reasoner.writes], reasoner.finish_reason)
    words, row = generated(raw_config, chat, teacher, ["What is <|im_end|> 2 + 2?"])
    if row["drop_reason"] is not None:
        return
    words.check(row)
    row["messages"][0]["content"] += "?"
    with pytest.raises(RowError, match="the ids before answer 1 are not what the template makes of messages"):
        words.check(row)


def test_turns_whose_end_the_template_writes(raw_config: dict[str, Any]) -> None:
    """The teacher ends its turns with another token than the template, which takes its place in the middle."""
    reasoner = next(reasoner for reasoner in REASONERS if reasoner.name == "Hermes, a tool")
    raw_config["teacher"] |= {"max_model_len": 4096}
    tokenizer = reasoner.tokenizer
    teacher = Says(tokenizer, ["Four.<|endoftext|>", "Five.<|endoftext|>"])
    chat = Chat(tokenizer, reasoner.template)
    words, row = generated(raw_config, chat, teacher, ["What is 2 + 2?", "And 2 + 3?"])
    assert len(row["messages"]) == 4
    words.check(row)
    row["messages"][2]["content"] = "And 2 + 4?"
    with pytest.raises(RowError, match="the ids before answer 2 are not"):
        words.check(row)


OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "system prompts": {"generate": {"system_prompts": ["Be brief.", None]}},
    "precision and top-p": {"targets": {"top_k": 8, "top_p": 0.6, "precision": 1 / 64}},
    "draws alone": {"targets": {"method": "sampled", "num_draws": 64}, "sampling": {"max_tokens": 60}},
    "draws from the K": {"targets": {"top_k": 8, "method": "both", "draws_from": "top_k", "num_draws": 64}},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_is_found_in_runs(raw_config: dict[str, Any], tmp_path: Path, name: str) -> None:
    raw_config["source"]["limit"] = 14
    raw_config["ingest"]["turns"] = "all"
    for section, values in OPTIONS[name].items():
        raw_config[section] = {**raw_config.get(section, {}), **values}
    run_inline(Config.model_validate(raw_config))
    result = verify(raw_config["run_dir"], 1)
    assert (result["problems"], result["not_checked"]) == ([], [])
    for layout in ("axolotl", "tinker", "openai"):
        make_export(Path(raw_config["run_dir"]), layout)
        alone = (Path(raw_config["run_dir"]) / "exports" / layout).rename(tmp_path / layout)
        assert verify(str(alone), 1)["problems"] == []
        assert verify(str(alone), 1, dataset=raw_config["run_dir"])["problems"] == []


def test_a_tokenizer_that_is_not_there_is_said(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    (sentence,) = verify(str(run), 1)["not_checked"]
    assert sentence.startswith(
        "text against ids, control tokens and ends of turns were not checked: manifest.json names"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher.model": "/nowhere/at/all"}, "no tokenizer at /nowhere/at/all; give --teacher"),
        ({"teacher.chat_template": "{{ messages[0].content }}"}, "is not the run's"),
    ],
)
def test_a_tokenizer_that_is_gone_or_another(exported: Path, change: dict[str, Any], message: str) -> None:
    manifest = Folder(exported / "dataset").manifest
    manifest["config"] |= change
    words, (sentence,) = load(manifest)
    assert words == {}
    assert message in sentence
    if "teacher.model" in change:
        words, _ = load(manifest, str(TEACHER))
        assert list(words) == [None]


def test_code_of_a_model_is_not_run_because_a_manifest_says_so(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Folder(exported / "dataset").manifest
    manifest["config"] |= {"teacher.engine": {"trust_remote_code": True}, "teacher.model": "/nowhere/with/code"}
    asked = []

    def load_chat(config: Config, today: Any = None) -> Chat:
        asked.append(config.teacher.trust_remote_code)
        raise ValueError("no")

    monkeypatch.setattr("stillhouse.stages.teacher.chat.load_chat", load_chat)
    assert load(manifest)[0] == {}
    assert asked == [False]
