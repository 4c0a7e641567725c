"""`stillhouse check --probe`: speed, lengths, bytes and memory measured, on an engine of the configuration that answers
the first prompts of the source on this machine."""

from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.pipeline.console import message
from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.look.probe.engine import FRACTIONS, Probed, facts, probe_engine
from stillhouse.pipeline.look.probe.lengths import lengths
from stillhouse.pipeline.look.probe.trial import as_screened, measured_bytes
from stillhouse.schemas.config import Config, num_parallel
from stillhouse.stages.teacher import TeacherError
from stillhouse.stages.teacher.gpus import visible_gpus

WORTH = 1.1
"""What is less than this times as fast is not proposed: the next measurement may say the opposite."""
STILL_RISING = 1.2
"""Times as fast with twice as many answers at once: more are tried, on an engine that has the room."""


def probe(config: Config, ingested: pa.Table, estimate: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    """Measures on the rows that `ingested` accepted. `estimate` of `check`, where there is one, gets `measured`.

    The configured engine gets about `seconds`, and each other one that is tried, of which one trial is made, as many at
    most; engines start besides. Raises `TeacherError` when the configured engine cannot start, `RunError` when it
    answers nothing.
    """
    prompts = as_screened(ingested, config)
    configured = probe_engine(config, prompts, seconds)
    result: dict[str, Any] = {"configured": facts(configured), "others": []}
    ended = [answer for trial in configured.trials for answer in trial.ended]
    if not ended:
        raise RunError(
            "--probe: the teacher refused every prompt; run with --verbose, or look at sampling and template"
        )
    tokens_N = np.array([answer.num_tokens for answer in ended], np.int64)
    is_cut_N = np.array([answer.is_cut for answer in ended], np.bool_)
    found = lengths(tokens_N, is_cut_N, config.sampling.max_tokens)
    result["answer_tokens"] = {
        "mean": round(found.mean, 1),
        "low": round(found.low, 1),
        "high": round(found.high, 1),
        "answers": len(ended),
        "prompts": min(prompts.num_rows, -(-len(ended) // config.sampling.n)),
        "ended_by_themselves": found.num_ended,
        "cut_by_probe": found.num_cut,
        "longest": int(tokens_N.max()),
        "share_longer": round(found.share_longer, 3),
    }
    size = measured_bytes([trial.table for trial in configured.trials])
    if size is not None:
        result["bytes"] = {
            "per_target_token": round(size.per_target_token, 1),
            "per_token": round(size.per_token, 2),
        }
    # The longest answers cost as they do in a run: of trials with as many at once, the last.
    speed = next(t for t in reversed(configured.trials) if t.num_seats == configured.best().num_seats)
    result["tokens_per_second"] = round(speed.tokens_per_second, 1)
    result["reached_max_num_seqs"] = any(t.num_seats == configured.num_seats for t in configured.trials)
    _try_others(config, prompts, configured, seconds, result)
    result["proposed"] = _proposed(config, configured, result)
    if estimate is not None and size is not None:
        turns = estimate["max_answer_tokens"] / max(1, estimate["prompts"] * config.sampling.max_tokens)
        prompt_tokens = float(np.mean(prompts.column("num_prompt_tokens").to_numpy()))
        estimate["measured"] = {
            key: _cost(config, estimate["prompts"], turns, getattr(found, key), prompt_tokens, size, result)
            for key in ("low", "mean", "high")
        }
    return result


def _cost(
    config: Config, prompts: int, answers: float, tokens: float, prompt_tokens: float, size: Any, result: dict[str, Any]
) -> dict[str, Any]:
    """Of all prompts, each with so many `answers` of so many `tokens`."""
    target_tokens = prompts * answers * tokens
    other = target_tokens + prompts * answers * prompt_tokens
    hours = target_tokens / max(result["tokens_per_second"], 1e-9) / 3600
    return {
        "answer_tokens": round(target_tokens),
        "bytes": round(target_tokens * size.per_target_token + other * size.per_token),
        "replica_hours": round(hours, 2),
        "gpu_hours": round(hours * num_parallel(config.teacher.engine), 2) if visible_gpus() else 0.0,
    }


def others(config: Config, probed: Probed, num_gpus: int) -> list[dict[str, Any]]:
    """Engine options worth a try after what was seen, each as what it changes."""
    engine, found = config.teacher.engine, list[dict[str, Any]]()
    short = [t for t in probed.trials if t.limit == probed.trials[0].limit]
    is_rising = len(short) > 1 and short[-1].tokens_per_second > STILL_RISING * short[-2].tokens_per_second
    if is_rising and short[-1].num_seats == probed.num_seats and probed.max_load.kv_cache_use < 0.5:
        found.append({"max_num_seqs": 2 * probed.num_seats})
    if num_gpus and probed.capacity.max_num_batched_tokens:
        found.append({"max_num_batched_tokens": 2 * probed.capacity.max_num_batched_tokens})
    mine = int(engine.get("tensor_parallel_size", 1))
    stages = int(engine.get("pipeline_parallel_size", 1))
    for size in (mine // 2, 2 * mine):
        if size >= 1 and size * stages <= num_gpus:
            found.append({"tensor_parallel_size": size})
    return found


def _try_others(config: Config, prompts: pa.Table, configured: Probed, seconds: float, result: dict[str, Any]) -> None:
    """Tries other engines, with as many answers at once as they write."""
    for options in others(config, configured, len(visible_gpus())):
        message(f"probe: tries {_spelled(options)}")
        teacher = config.teacher.model_copy(update={"engine": config.teacher.engine | options})
        tried: dict[str, Any] = {"options": options}
        try:
            probed = probe_engine(config.model_copy(update={"teacher": teacher}), prompts, seconds, FRACTIONS[-1:])
            tried |= facts(probed)
        except (TeacherError, RunError) as error:  # too little memory, say: that is an answer
            tried["problem"] = str(error)
        result["others"].append(tried)


def _proposed(config: Config, configured: Probed, result: dict[str, Any]) -> dict[str, Any]:
    """{"set": keys to change, "times_as_fast": by how much, for the same GPUs}; nothing to set where the configuration
    is as fast as anything that was tried."""
    short = [t for t in configured.trials if t.limit == configured.trials[0].limit]
    now = short[-1].tokens_per_second
    gpus = num_parallel(config.teacher.engine)
    tried: list[tuple[float, dict[str, Any]]] = []
    if short[-1].num_seats == configured.num_seats:
        tried += [
            (t.tokens_per_second / now, {"teacher.engine.max_num_seqs": t.num_seats}) for t in short[:-1] if now > 0
        ]
        for other in result["others"]:
            if "trials" in other and now > 0:
                engine = config.teacher.engine | other["options"]
                times = other["trials"][0]["tokens_per_second"] / now * gpus / num_parallel(engine)
                keys = {f"teacher.engine.{name}": value for name, value in other["options"].items()}
                if "tensor_parallel_size" in other["options"]:
                    replicas = config.resources.generate.max_workers * gpus // num_parallel(engine)
                    keys |= {
                        "resources.generate.num_gpus": num_parallel(engine),
                        "resources.generate.max_workers": max(1, replicas),
                    }
                tried.append((times, keys))
    times, best = max(tried, key=lambda pair: pair[0], default=(1.0, {}))
    return {"set": best if times >= WORTH else {}, "times_as_fast": round(times, 2) if times >= WORTH else 1.0}


def _spelled(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def show(result: dict[str, Any], estimate: dict[str, Any] | None) -> None:
    """`probe` for people, on standard error."""
    configured, answers = result["configured"], result["answer_tokens"]
    gpus = f", {max(configured['gpu_bytes']) / 1e9:.1f} GB of a GPU" if configured["gpu_bytes"] else ""
    message(
        f"probe: the engine started in {configured['start_seconds']:.0f} s; {configured['host_bytes'] / 1e9:.1f} GB of "
        f"memory{gpus}; at most {configured['max_cache_use']:.0%} of its cache taken"
    )
    for tried in [configured, *result["others"]]:
        name = _spelled(tried["options"]) + ": " if "options" in tried else ""
        if "problem" in tried:
            message(f"probe: {name}{tried['problem']}")
        for trial in tried.get("trials", []):
            message(
                f"probe: {name}{trial['answers_at_once']} answers at once, up to {trial['token_limit']} tokens: "
                f"{trial['tokens_per_second']:,.0f} tokens/s ({trial['answers']} answers, {trial['seconds']:.0f} s)"
            )
    message(
        f"probe: answers have {answers['mean']:,.0f} tokens ({answers['low']:,.0f} to {answers['high']:,.0f}); of "
        f"{answers['answers']:,}, {answers['ended_by_themselves']:,} ended by themselves and "
        f"{answers['cut_by_probe']:,} were cut by the probe"
    )
    if answers["share_longer"] > 0:
        message(
            f"probe: {answers['share_longer']:.0%} of answers are longer than the {answers['longest']:,} tokens it had "
            "time for; more --probe-seconds narrow the interval"
        )
    if "bytes" in result:
        message(
            f"probe: {result['bytes']['per_target_token']:.0f} bytes for each token written, and "
            f"{result['bytes']['per_token']:.1f} for each token of a conversation"
        )
    if estimate is not None and "measured" in estimate:
        low, mean, high = (estimate["measured"][key] for key in ("low", "mean", "high"))
        of_gpus = f", {mean['gpu_hours']:,} GPU hours" if mean["gpu_hours"] else ""
        message(
            f"estimate (measured; before dedupe and screen): {mean['answer_tokens']:,} answer tokens "
            f"({low['answer_tokens']:,} to {high['answer_tokens']:,}), {mean['bytes'] / 1e9:,.2f} GB "
            f"({low['bytes'] / 1e9:,.2f} to {high['bytes'] / 1e9:,.2f}), {mean['replica_hours']:,} hours of a replica "
            f"({low['replica_hours']:,} to {high['replica_hours']:,}){of_gpus}"
        )
    if result["proposed"]["set"]:
        message(
            f"proposed: {_spelled(result['proposed']['set'])}, {result['proposed']['times_as_fast']:.2f} times as fast "
            "for the same hardware"
        )
    elif not result["reached_max_num_seqs"]:
        most = max(trial["answers_at_once"] for trial in configured["trials"])
        message(
            f"proposed: nothing; there was time for {most} answers at once of {configured['max_num_seqs']} "
            "(max_num_seqs), and with more the engine may be faster: raise --probe-seconds"
        )
    else:
        message("proposed: nothing; of what was tried, nothing is faster than the configuration")
