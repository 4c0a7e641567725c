"""What `check --probe` measures, on a teacher whose speed, lengths and limits are known."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from stillhouse.pipeline import cli
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.look import check, probe
from stillhouse.pipeline.look.probe import trial
from stillhouse.pipeline.look.probe.engine import Probed, probe_engine
from stillhouse.pipeline.look.probe.lengths import lengths
from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Answer, Capacity, Load, TeacherError

LENGTH = 48
"""Tokens of the answers that end by themselves: two of three; the others never end."""
STEP_S = 0.008


class SteadyTeacher:
    """Writes a token per step to each of its answers; a step takes `STEP_S`, however many there are up to its seats."""

    broken = False
    last_token_at = 0.0
    vocab_size = 49152
    num_tokens = 0
    load = Load(0, 0.25)

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        self.capacity = Capacity(config.teacher.engine["max_num_seqs"], 2048, 10_000)
        if self.capacity.max_num_seqs == 32:
            raise TeacherError("teacher: too little memory")
        self._seats = asyncio.Semaphore(config.teacher.engine["max_num_seqs"])
        self._top_k, self._stop = config.targets.top_k, stop_token_ids[0]
        self._max_tokens = config.sampling.max_tokens

    async def answer(self, prompt_ids: Any, request_id: str, seed: int, max_tokens: int) -> Answer:
        S = min(LENGTH if seed % 3 else self._max_tokens, max_tokens)
        async with self._seats:
            for _ in range(S):
                await asyncio.sleep(STEP_S)
                self.num_tokens += 1
        ids_SK = np.tile(np.arange(self._top_k, dtype=np.int32), (S, 1))
        logprobs_SK = np.full((S, self._top_k), -20.0, dtype=np.float32)
        has_ended = S == LENGTH and seed % 3
        ids_S = np.full(S, 5, np.int32)
        ids_S[-1] = self._stop if has_ended else 5
        return Answer(ids_S, ids_SK, logprobs_SK, logprobs_SK[:, 0], "stop" if has_ended else "length")

    def shutdown(self) -> None:
        pass


class VirtualLoop(asyncio.SelectorEventLoop):
    """Nobody waits: its clock goes on to the next timer."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


@pytest.fixture
def raw(raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(asyncio.events, "new_event_loop", VirtualLoop)
    raw_config["teacher"] |= {"backend": f"{__name__}:SteadyTeacher", "engine": {"max_num_seqs": 16}}
    raw_config["sampling"]["max_tokens"] = 100
    return raw_config


def checked(raw: dict[str, Any], folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(raw))
    results = io.StringIO()
    code = cli.main(["check", str(file), "--json", *arguments], results)
    return code, json.loads(results.getvalue() or "{}")


def test_probe_measures_speed_lengths_and_bytes(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingested, asked = check.ingested, list[int]()

    def noted(config: Config, rows: int) -> pa.Table:
        asked.append(rows)
        return ingested(config, rows)

    monkeypatch.setattr(check, "ingested", noted)
    code, result = checked(raw, tmp_path, "--probe", "--probe-seconds", "5")
    assert (code, asked) == (0, [1000])
    found = result["probe"]
    trials = found["configured"]["trials"]
    assert [t["answers_at_once"] for t in trials[:4]] == [2, 4, 8, 16]
    assert [t["token_limit"] for t in trials] == [32] * 4 + [100]
    for t in trials:
        assert t["tokens_per_second"] == pytest.approx(t["answers_at_once"] / STEP_S, rel=0.15)
    assert found["tokens_per_second"] == trials[-1]["tokens_per_second"]
    answers = found["answer_tokens"]
    assert answers["cut_by_probe"] == sum(t["cut"] for t in trials) == 2 * (2 + 4 + 8 + 16)
    assert answers["ended_by_themselves"] == 32
    assert answers["low"] < LENGTH * 2 / 3 + 100 / 3 < answers["high"]
    assert found["configured"]["host_bytes"] > 50e6
    assert (found["configured"]["max_cache_use"], found["configured"]["cache_tokens"]) == (0.25, 10_000)
    # Twice the seats are worth a try, and this teacher has no room for them.
    assert found["others"] == [{"options": {"max_num_seqs": 32}, "problem": "teacher: too little memory"}]
    assert found["proposed"] == {"set": {}, "times_as_fast": 1.0}
    estimate = result["estimate"]
    measured = estimate["measured"]
    assert measured["low"]["answer_tokens"] < measured["mean"]["answer_tokens"] < measured["high"]["answer_tokens"]
    assert measured["high"]["answer_tokens"] <= estimate["max_answer_tokens"]
    hours = measured["mean"]["answer_tokens"] / found["tokens_per_second"] / 3600
    assert measured["mean"]["replica_hours"] == round(hours, 2)
    said = capsys.readouterr().err
    assert f"{answers['ended_by_themselves']} ended by themselves and {answers['cut_by_probe']} were cut" in said
    assert "estimate (measured; before dedupe and screen): " in said


def test_fewer_answers_at_once_are_proposed_where_they_are_faster(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["teacher"]["backend"] = f"{__name__}:CrowdedTeacher"
    _, result = checked(raw, tmp_path, "--probe", "--probe-seconds", "5")
    assert result["probe"]["proposed"]["set"] == {"teacher.engine.max_num_seqs": 8}
    assert result["probe"]["proposed"]["times_as_fast"] > 1.3


class CrowdedTeacher(SteadyTeacher):
    """Slower than with half as many, once there are more than 8."""

    num_under_way = 0

    async def answer(self, prompt_ids: Any, request_id: str, seed: int, max_tokens: int) -> Answer:
        self.num_under_way += 1
        if self.num_under_way > 8:
            await asyncio.sleep(10 * STEP_S * max_tokens)
        try:
            return await super().answer(prompt_ids, request_id, seed, max_tokens)
        finally:
            self.num_under_way -= 1


def test_faster_engine_is_proposed(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["teacher"]["engine"]["max_num_seqs"] = 8
    _, result = checked(raw, tmp_path, "--probe", "--probe-seconds", "3")
    (other,) = result["probe"]["others"]
    assert other["options"] == {"max_num_seqs": 16}
    assert result["probe"]["proposed"]["set"] == {"teacher.engine.max_num_seqs": 16}
    assert result["probe"]["proposed"]["times_as_fast"] == pytest.approx(2.0, rel=0.1)


def test_time_for_small_batches_alone_is_told(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, result = checked(raw, tmp_path, "--probe", "--probe-seconds", "1")
    assert not result["probe"]["reached_max_num_seqs"]
    assert result["probe"]["proposed"]["set"] == {}
    assert "answers at once of 16 (max_num_seqs)" in capsys.readouterr().err


def test_gpus_are_shared_otherwise(raw: dict[str, Any]) -> None:
    raw["teacher"]["engine"] |= {"tensor_parallel_size": 2}
    config = Config.model_validate(raw)
    at_once = [trial.Trial(seats, 32, 1.0, 100.0, [], pa.table({})) for seats in (8, 16)]
    found = Probed(1.0, Capacity(16, 2048), at_once, Load(), 0, [])
    assert probe.others(config, found, 4) == [
        {"max_num_batched_tokens": 4096},
        {"tensor_parallel_size": 1},
        {"tensor_parallel_size": 4},
    ]
    assert probe.others(config, found, 2)[1:] == [{"tensor_parallel_size": 1}]
    assert probe.others(config, found, 0) == []


def test_nothing_is_probed_where_a_run_would_fail(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["ingest"]["max_prompt_tokens"] = 1
    code, result = checked(raw, tmp_path, "--probe")
    assert code == 1
    assert "probe" not in result


def test_teacher_that_is_too_slow_says_so(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.STEP_S", 1.0)
    code, _ = checked(raw, tmp_path, "--probe", "--probe-seconds", "0.1")
    assert code == 1
    assert "--probe: no answer of 32 tokens in 0 s; raise --probe-seconds" in capsys.readouterr().err


def test_bytes_are_those_of_a_file(raw: dict[str, Any]) -> None:
    config = Config.model_validate(raw)
    prompts = trial.as_screened(check.ingested(config, 60), config)
    probed = probe_engine(config, prompts, 2.0, (1,))
    table = probed.trials[0].table
    size = trial.measured_bytes([table])
    assert size is not None
    whole = len(shards.encode(table.drop_columns(["drop_reason"])))
    num_targets = sum(len(row) for row in table.column("token_logprobs").to_pylist())
    num_tokens = sum(len(row) for row in table.column("input_ids").to_pylist())
    assert size.per_target_token * num_targets + size.per_token * num_tokens == pytest.approx(whole, abs=1)


def test_prompts_of_a_later_round_have_other_ids() -> None:
    table = pa.table({"prompt_id": ["a", "b", "c"], "x": [1, 2, 3]})
    assert trial.numbered_prompts(table, 2, 5).to_pydict() == {
        "prompt_id": ["c", "a~1", "b~1", "c~1", "a~2"],
        "x": [3, 1, 2, 3, 1],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Lengths


def test_lengths_of_answers_that_all_ended_are_the_mean() -> None:
    tokens = np.random.default_rng(1).integers(1, 200, 500)
    found = lengths(tokens, np.zeros(500, bool), 1000)
    assert found.mean == pytest.approx(tokens.mean())
    half = 1.96 * tokens.std() / np.sqrt(500)
    assert found.low == pytest.approx(tokens.mean() - half)
    assert found.high == pytest.approx(tokens.mean() + half)
    assert (found.num_ended, found.num_cut, found.share_longer) == (500, 0, 0.0)


def test_lengths_are_those_of_a_worked_example() -> None:
    """The 6-MP patients of Freireich et al. (1963), weeks of remission, + is still: 6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+
    19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+. R's survfit has a restricted mean of 23.3 to week 35 with a standard error of
    2.83, and 0.448 are left."""
    weeks = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
    still = [0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1]
    found = lengths(np.array(weeks), np.array(still, bool), 35)
    assert found.mean == pytest.approx(23.3, abs=0.05)
    assert (found.mean - found.low) / 1.96 == pytest.approx(2.83, abs=0.02)
    assert found.share_longer == pytest.approx(0.448, abs=0.001)
    assert found.num_ended == 9


def test_few_that_ended_do_not_say_that_none_is_longer() -> None:
    found = lengths(np.array([32] * 6 + [48] * 4), np.array([True] * 6 + [False] * 4), 100)
    assert found.low == 48
    # Of 4, none is longer: at most 1 - 0.05 ** (1 / 4) = 0.527 of them may be.
    assert found.high == pytest.approx(48 + 0.527 * 52, abs=0.1)


def test_answers_that_never_end_may_have_any_length() -> None:
    found = lengths(np.full(50, 32), np.ones(50, bool), 500)
    assert (found.low, found.mean, found.high, found.share_longer) == (32, 500, 500, 1.0)


def test_interval_holds_the_mean_however_answers_are_cut() -> None:
    """Lengths whose mean is known, cut at two limits as trials do: 95 of 100 intervals or more hold it."""
    max_tokens, rate = 400, 1 / 100
    true = (1 - (1 - rate) ** max_tokens) / rate  # of a geometric length that ends at max_tokens
    geometric = np.random.default_rng(7)
    held, middles = 0, []
    for _ in range(300):
        whole = np.minimum(geometric.geometric(rate, 200), max_tokens)
        limit = np.where(np.arange(200) < 120, 32, 150)
        found = lengths(np.minimum(whole, limit), whole > limit, max_tokens)
        held += found.low <= true <= found.high
        middles.append(found.mean)
    assert held >= 0.93 * 300
    assert np.mean(middles) == pytest.approx(true, rel=0.03)
