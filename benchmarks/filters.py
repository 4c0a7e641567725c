"""What every filter costs on the quick start's conversations: rows and seconds.

`run` makes a run with all filters on, to its end and with its report, without an engine: its teacher scores the answers
of the source with made-up probabilities, so that filters of answers have real ones to read. With `--write` it writes
answers of random words instead. The evaluation set and the jailbreak template are prompts of the source itself: what
they find is planted. The model of `dedupe.semantic` is made of the teacher's embeddings. Guard models and Detoxify need
weights that are not here; `--detoxify` adds a model of Detoxify's format and the smallest size, drawn at random, whose
scores mean nothing.

`speed` times each filter alone, on prompts and answers of the quick start, CPU seconds of one core.

    python -m benchmarks.filters run FOLDER [--rows 400] [--write] [--detoxify]
    python -m benchmarks.filters speed [--rows 4000]

`labelled` says how well the classifiers of a configuration (`screen.classifiers`: Detoxify, guard models,
profanity-check) tell prompts that people marked: those of `tests/stages/filters/labelled/unsafe.tsv`, or lines of your
own, each a language, a kind (`no` is a safe prompt) and a prompt, with tabs between them.

    python -m benchmarks.filters labelled CONFIG [--lines FILE]
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.verification import Quick
from stillhouse.stages.teacher import Answer
from tests.support.data import CONVERSATIONS, TEACHER
from tests.support.labelled import FOLDER, classified, lines
from tests.support.static_model import make_static_model
from tests.support.tiny_bert import make_tiny

PLANTED = 5
"""Prompts that are items of the evaluation set."""


class Scorer(Quick):
    """Scores answers that it is given: the token that is there is the most probable in nine of ten places."""

    async def score(
        self, token_ids: npt.NDArray[np.int32], supervised: npt.NDArray[np.bool_], request_id: str, seed: int,
        asked_ids: npt.NDArray[np.int32] | None = None,
    ) -> Answer:  # fmt: skip
        places = np.flatnonzero(supervised)
        made = await self.answer(token_ids[: places[0]], request_id, seed, len(places))
        is_there_S = np.random.default_rng(seed).random(len(places)) < 0.9
        ids_SK, logprobs_SK, written = made.target_ids.copy(), made.target_logprobs, token_ids[places]
        ids_SK[ids_SK == written[:, None]] = 98
        ids_SK[is_there_S, 0] = written[is_there_S]
        return Answer(
            written, ids_SK, logprobs_SK, np.where(is_there_S, logprobs_SK[:, 0], -9.0).astype(np.float32), "given"
        )


def first_turns(num_rows: int) -> list[str]:
    rows = pq.read_table(CONVERSATIONS, columns=["conversation"]).column(0)[:num_rows].to_pylist()
    return [messages[0]["content"] for messages in rows if messages and messages[0]["role"] == "user"]


def raw_config(folder: Path, num_rows: int, *, writes: bool, has_detoxify: bool) -> dict[str, Any]:
    """All filters, as YAML would have them."""
    folder.mkdir(parents=True, exist_ok=True)
    turns = [turn for turn in first_turns(num_rows) if 20 <= len(turn.split()) <= 200]
    for name, items in (("evaluation", turns[:PLANTED]), ("templates", turns[PLANTED : PLANTED + 1])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": item}) + "\n" for item in items))
    if not (folder / "static").exists():
        make_static_model(TEACHER, folder / "static")
    classifiers: list[dict[str, Any]] = [{"name": "profanity-check", "thresholds": {"profanity": 0.9}}]
    if has_detoxify:
        tiny = make_tiny(folder, turns)
        config = tiny.config().model_dump(mode="json", exclude={"thresholds"})
        classifiers.append(config | {"thresholds": {"toxicity": 0.9, "threat": 0.9}})

    def listed(name: str) -> list[dict[str, Any]]:
        return [{"name": name, "path": str(folder / f"{name}.jsonl"), "columns": ["text"]}]

    raw = {
        "run_dir": str(folder / ("written" if writes else "scored")),
        "source": {"path": str(CONVERSATIONS), "name": "sharegpt", "limit": num_rows},
        "ingest": {"rows_per_shard": 50, "max_dropped_fraction": 1.0, "max_prompt_tokens": 1024},
        "dedupe": {"semantic": {"model": str(folder / "static")}, "max_dropped_fraction": 1.0},
        "decontamination": {"evaluations": listed("evaluation")},
        "screen": {
            "classifiers": classifiers,
            "low_information": {"keep": 0.05},
            "jailbreaks": {"templates": listed("templates")},
            "language": {"keep": ["en"]},
            "max_dropped_fraction": 1.0,
        },
        "balance": {"quotas": [{"by": ["task"], "max_share": 0.5}, {"by": ["topic"], "max_share": 0.2}], "topics": 16},
        "personal": {"prompts": "mask", "answers": "drop", "placeholders": "keep"},
        "teacher": {
            "model": str(TEACHER),
            "max_model_len": 2048,
            "backend": f"benchmarks.{'verification:Quick' if writes else 'filters:Scorer'}",
        },
        "targets": {"top_k": 8},
        "review": {
            "identity": {"own": ["Gemma", "Google"]},
            "refusals": {"keep_refusals": 0.5, "keep_hedges": 0.5},
            "max_dropped_fraction": 1.0,
        },
    }
    return raw | (
        {"sampling": {"max_tokens": 64}} if writes else {"task": "score", "score": {"max_dropped_fraction": 1.0}}
    )


def run(folder: Path, num_rows: int, *, writes: bool, has_detoxify: bool) -> None:
    from stillhouse.pipeline import cli

    raw = raw_config(folder, num_rows, writes=writes, has_detoxify=has_detoxify)
    config = folder / "config.json"  # which is YAML too
    config.write_text(json.dumps(raw, indent=1))
    assert cli.main(["run", str(config), "--local"]) == 0
    assert cli.main(["inspect", raw["run_dir"], "--filters"]) == 0


def rate(function: Callable[[], object], num_rows: int) -> int:
    """Rows per second of CPU, after a first call of it."""
    function()
    started = time.process_time()
    function()
    return round(num_rows / (time.process_time() - started))


def speed(num_rows: int) -> dict[str, Any]:
    from stillhouse.schemas.config import DecontaminationConfig, IdentityConfig, PersonalConfig, ProfanityCheckConfig
    from stillhouse.stages.filters import load, refusals
    from stillhouse.stages.filters.contamination import Contamination
    from stillhouse.stages.filters.identity import Identity
    from stillhouse.stages.filters.low_information import is_low
    from stillhouse.stages.kinds.code import code_share
    from stillhouse.stages.kinds.language import Languages
    from stillhouse.stages.kinds.tasks import task
    from stillhouse.stages.personal import Finder
    from stillhouse.stages.teacher.pretrained import load_tokenizer
    from stillhouse.stages.text.loops import longest_loops

    rows = pq.read_table(CONVERSATIONS, columns=["conversation"]).column(0).to_pylist()
    rounds = [(a["content"], b["content"]) for m in rows for a, b in pairwise(m)
              if (a["role"], b["role"]) == ("user", "assistant") and len(a["content"]) <= 4000][:num_rows]  # fmt: skip
    asked, answers = [pair[0] for pair in rounds], [pair[1] for pair in rounds]
    items = [turn for turn in first_turns(17_671) if len(turn) > 400][:num_rows]
    sets = [{"name": "x", "path": "/x", "columns": ["text"]}]
    matches = DecontaminationConfig.model_validate({"evaluations": sets})
    index = Contamination(matches, ((f"x/{i}", item) for i, item in enumerate(items)))
    profanity = load(ProfanityCheckConfig(name="profanity-check"))
    languages, finder = Languages(0.5), Finder(PersonalConfig())
    identity = Identity(IdentityConfig(own=["Gemma"]))
    tokenizer = load_tokenizer(str(TEACHER), None, False)
    labels = pa.chunked_array([pa.array([tokenizer.encode(text)[:2048] for text in answers], pa.list_(pa.int32()))])

    def each(judge: Callable[[str], object], texts: Sequence[str]) -> Callable[[], object]:
        return lambda: [judge(text) for text in texts]

    every: dict[str, Callable[[], object]] = {
        "evaluation sets and jailbreak templates, prompts": each(index.find, asked),
        "evaluation sets, answers": each(index.find, answers),
        "profanity-check, prompts": lambda: profanity.score(asked),
        "profanity-check, answers": lambda: profanity.score(answers),
        "personal information, prompts": each(lambda text: finder.find(text, "English"), asked),
        "personal information, answers": each(lambda text: finder.find(text, "English"), answers),
        "low information, prompts": each(is_low, asked),
        "language, prompts": each(languages.find, asked),
        "code, prompts": each(code_share, asked),
        "task, prompts": each(task, asked),
        "mistaken identity, answers": lambda: [identity.is_mistaken(*reversed(pair)) for pair in rounds],
        "refusals and hedges, answers": each(refusals.kind, answers),
        "loops, answers": lambda: longest_loops(labels, 4),
    }
    return {
        "rows": len(rounds),
        "characters of a prompt": round(sum(map(len, asked)) / len(asked)),
        "characters of an answer": round(sum(map(len, answers)) / len(answers)),
        "runs in the index": index.num_runs,
        "rows/s of a core": {name: rate(function, len(rounds)) for name, function in every.items()},
    }


def labelled(config_path: Path, path: Path) -> dict[str, Any]:
    """What each classifier takes at its thresholds: by language found and right of all found, and of all there are; and
    how many of each kind."""
    from stillhouse.schemas.config import load
    from stillhouse.stages.filters import combined, read_by

    rows, told = lines(path), dict[str, Any]()
    kinds = list(dict.fromkeys(row[1] for row in rows))
    for config in read_by(load(config_path).screen.classifiers, "prompts"):
        classifier = combined([config])
        try:
            started = time.monotonic()
            by_language = classified(classifier, rows)
            seconds = time.monotonic() - started
            by_kind = classified(classifier, [[kind, kind, text] for _, kind, text in rows])
        finally:
            classifier.close()
        told[classifier.labels[0]] = {
            "thresholds": classifier.thresholds,
            "rows/s": round(len(rows) / seconds, 1),
            "by language": {name: f"{a}/{a + b}; {a}/{a + c}" for name, (a, b, c) in by_language.items()},
            "taken": {
                kind: f"{sum(by_kind.get(kind, (0, 0, 0))[:2])}/{sum(r[1] == kind for r in rows)}" for kind in kinds
            },
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    of_run = commands.add_parser("run")
    of_run.add_argument("folder", type=Path)
    of_run.add_argument("--rows", type=int, default=400)
    of_run.add_argument("--write", action="store_true")
    of_run.add_argument("--detoxify", action="store_true")
    of_speed = commands.add_parser("speed")
    of_speed.add_argument("--rows", type=int, default=4000)
    of_labelled = commands.add_parser("labelled")
    of_labelled.add_argument("config", type=Path)
    of_labelled.add_argument("--lines", type=Path, default=FOLDER / "unsafe.tsv")
    arguments = parser.parse_args()
    if arguments.what == "labelled":
        print(json.dumps(labelled(arguments.config, arguments.lines), indent=1))
    elif arguments.what == "run":
        run(arguments.folder.resolve(), arguments.rows, writes=arguments.write, has_detoxify=arguments.detoxify)
    else:
        print(json.dumps(speed(arguments.rows), indent=1))


if __name__ == "__main__":
    main()
