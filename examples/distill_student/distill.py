"""Does distillation pay? Students of one start, trained on the same tokens in six ways, measured on held-out prompts.

    stillhouse run examples/distill_student/distill_student.yaml     # the training data, by the real pipeline
    python examples/distill_student/distill.py tune                  # a run per learning rate and kind of method
    OMP_NUM_THREADS=1 python examples/distill_student/distill.py train    # all runs, resumed; a process for each core
    python examples/distill_student/distill.py results               # results.json
    python examples/distill_student/distill.py plot                  # docs/training/*.svg (pip install matplotlib)

`--setting gpu` is a larger setting for a GPU; it has not been tried.

Shape legend: B rows, T tokens of the longest, S supervised tokens, K targets per token, V vocabulary, D width.
"""

import argparse
import fcntl
import hashlib
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from examples.distill_student.distillation import (  # noqa: E402
    DistillationDataset,
    collate,
    distillation_loss,
    predicting_states,
    targets_of,
)

METHODS = {
    "scratch": "no teacher: the source's answers",
    "sft": "the teacher's text",
    "top_k": "top 64, renormalised",
    "top_k_tail": "top 64 and the tail",
    "sampled": "64 draws",
    "full": "whole distribution",
}


@dataclass(frozen=True)
class Setting:
    """What is trained, on how much. Tokens are supervised ones (written by the teacher)."""

    name: str
    run: Path
    """Run folder of the pipeline."""
    device: str
    autocast: bool
    """Arithmetic in bfloat16 (weights stay float32)."""
    num_layers: int
    """Of the teacher's layers, evenly spaced from the first to the last, that make the pruned student."""
    train_embeddings: bool
    """Whether the pruned student's embeddings, which are its output layer too, are trained or stay the teacher's."""
    random_student: dict[str, int]
    """Size of the student that starts from random weights."""
    batch_rows: int
    tokens: int
    """Budget of a run."""
    sft_budgets: dict[str, tuple[int, ...]]
    """How many times the budget plain training on the teacher's text gets, of each student and seed."""
    tuning_rates: dict[str, tuple[float, ...]]
    learning_rates: dict[str, dict[str, float]]
    """Of each student and method; `tune` measures them."""
    seeds: dict[str, int]
    """How many, of each student."""
    heldout_percent: int


CPU = Setting(
    name="cpu",
    run=ROOT / "runs/distill_student",
    device="cpu",
    autocast=False,
    num_layers=6,
    train_embeddings=False,
    random_student={"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4},
    batch_rows=2,
    tokens=12_000,
    sft_budgets={"pruned": (4, 2, 2), "random": (4, 2, 2)},
    tuning_rates={"pruned": (5e-4, 1e-3, 2e-3), "random": (1e-3, 2e-3, 4e-3)},
    learning_rates={
        "pruned": dict.fromkeys(METHODS, 1e-3),
        "random": dict.fromkeys(METHODS, 1e-3),
    },
    seeds={"pruned": 3, "random": 3},
    heldout_percent=4,
)
GPU = Setting(
    name="gpu",
    run=ROOT / "runs/distill_student_gpu",
    device="cuda",
    autocast=True,
    num_layers=15,
    train_embeddings=True,
    random_student={"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
    batch_rows=16,
    tokens=200_000,
    sft_budgets={"pruned": (4, 4, 4, 4, 4), "random": (4, 4, 4, 4, 4)},
    tuning_rates={"pruned": (1e-4, 3e-4, 1e-3), "random": (3e-4, 1e-3, 3e-3)},
    learning_rates={
        "pruned": dict.fromkeys(METHODS, 3e-4),
        "random": dict.fromkeys(METHODS, 1e-3),
    },
    seeds={"pruned": 5, "random": 5},
    heldout_percent=4,
)
WARMUP = 0.1  # of the budget; constant after it, so that any point of a run is the end of a shorter one
CHUNK = 512  # tokens whose logits exist at a time
POINTS = (0.25, 0.5, 1, 2, 4)  # of the budget: where students are measured


# --- data ---


class Data:
    """Rows for every method. A prompt is held out by a digest of its id; the pipeline left one prompt per cluster of
    near-duplicates, so no near-duplicate of a held-out prompt is trained on."""

    def __init__(self, setting: Setting) -> None:
        self.files = files = sorted((setting.run / "dataset/data").glob("*.parquet"))
        manifest = json.loads((setting.run / "dataset/manifest.json").read_text())
        names = ["prompt_id", "cluster_id", "source_row", "num_target_tokens"]
        table = pa.concat_tables(pq.read_table(file, columns=names) for file in files)
        clusters = table.column("cluster_id").to_pylist()
        assert len(set(clusters)) == len(clusters), "two prompts of one cluster: hold out by cluster_id"
        digests = [int(hashlib.sha256(name.encode()).hexdigest(), 16) for name in table.column("prompt_id").to_pylist()]
        self.is_heldout = [digest % 100 < setting.heldout_percent for digest in digests]
        self.num_tokens = np.array(table.column("num_target_tokens"))
        self.teacher = manifest["config"]["teacher.model"]
        self.max_tokens = manifest["config"]["sampling.max_tokens"]
        self.tokenizer = AutoTokenizer.from_pretrained(self.teacher)
        self.stored = {
            "top_k": DistillationDataset(files, tail=False),
            "top_k_tail": DistillationDataset(files),
            "sampled": DistillationDataset(files, kind="draw"),
        }
        source = pq.read_table(manifest["config"]["source.path"][0], columns=["conversation"]).column(0)
        self.answers = [source[i].as_py()[1:2] for i in table.column("source_row").to_pylist()]
        self.bytes_per_token = bytes_per_token(files)

    def indices(self, heldout: bool, method: str) -> list[int]:
        wanted = [i for i, held in enumerate(self.is_heldout) if held == heldout]
        return [i for i in wanted if method != "scratch" or (self.answers[i] and self.answers[i][0]["content"])]

    def row(self, method: str, i: int) -> dict[str, np.ndarray]:
        """What `collate` takes. Text is a target with one token of probability 1: the loss is its cross-entropy."""
        if method in self.stored:
            return self.stored[method][i]
        row = self.stored["top_k"][i]
        ids, labels = row["input_ids"], row["labels"]
        if method == "scratch":  # as long as the teacher could have written
            prompt = ids[: np.argmax(labels != -100)]
            answer = self.tokenizer(self.answers[i][0]["content"], add_special_tokens=False, split_special_tokens=True)
            written = [*answer["input_ids"], self.tokenizer.eos_token_id][: self.max_tokens]
            ids = np.concatenate([prompt, written])
            labels = np.concatenate([np.full(len(prompt), -100), written])
        own = labels[labels != -100][:, None]
        return {
            "input_ids": ids,
            "labels": labels,
            "target_ids": own,
            "target_logprobs": np.zeros(own.shape, dtype=np.float32),
        }


def bytes_per_token(files: Sequence[Path]) -> dict[str, float]:
    """Compressed bytes of the columns each method reads beside `input_ids` and `labels`, per supervised token."""
    columns = {
        "text": ("input_ids", "labels"),
        "top_k": ("target_ids", "target_logprobs", "target_lengths"),
        "top_k_tail": ("target_ids", "target_logprobs", "target_lengths", "target_tail"),
        "sampled": ("draw_ids", "draw_counts", "draw_lengths"),
    }
    sizes, tokens = dict.fromkeys(columns, 0), 0
    for file in files:
        metadata = pq.read_metadata(file)
        tokens += sum(pq.read_table(file, columns=["num_target_tokens"]).column(0).to_pylist())
        for group in range(metadata.num_row_groups):
            for i in range(metadata.num_columns):
                column = metadata.row_group(group).column(i)
                for method, names in columns.items():
                    if column.path_in_schema.split(".")[0] in names:
                        sizes[method] += column.total_compressed_size
    return {method: size / tokens for method, size in sizes.items()}


# --- students ---


def load_teacher(setting: Setting, data: Data) -> Any:
    return AutoModelForCausalLM.from_pretrained(data.teacher, dtype=torch.float32).eval().to(setting.device)


def make_student(kind: str, setting: Setting, data: Data, seed: int) -> Any:
    """`pruned`: some of the teacher's layers, the same for every seed. `random`: a small Llama, drawn by the seed."""
    torch.manual_seed(seed)
    if kind == "pruned":
        student = AutoModelForCausalLM.from_pretrained(data.teacher, dtype=torch.float32)
        layers, n = student.model.layers, setting.num_layers
        kept = [round(i * (len(layers) - 1) / (n - 1)) for i in range(n)]
        student.model.layers = torch.nn.ModuleList([layers[i] for i in kept])
        for i, layer in enumerate(student.model.layers):
            layer.self_attn.layer_idx = i
        student.config.num_hidden_layers = n
        student.get_input_embeddings().weight.requires_grad_(setting.train_embeddings)
    else:
        teacher = AutoModelForCausalLM.from_pretrained(data.teacher).config
        heads = setting.random_student["num_attention_heads"]
        config = LlamaConfig(
            **setting.random_student,
            num_key_value_heads=heads,
            vocab_size=teacher.vocab_size,
            max_position_embeddings=teacher.max_position_embeddings,
            rope_parameters=teacher.rope_parameters,
            tie_word_embeddings=True,
        )
        student = LlamaForCausalLM(config)
    return student.to(setting.device)


def trained_weights(student: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu() for name, p in student.named_parameters() if p.requires_grad}


def hidden_states(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[S, D] the states that predict the supervised tokens."""
    output = model.model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return predicting_states(output.last_hidden_state, batch["labels"])


# --- losses and measures ---


class Losses:
    """A batch's loss for each method; for `full` the teacher runs beside the student, once per row in a process."""

    def __init__(self, setting: Setting, data: Data, teacher: Any) -> None:
        self.setting, self.data, self.teacher = setting, data, teacher
        self.teacher_states: dict[int, torch.Tensor] = {}

    def __call__(self, student: Any, method: str, rows: list[int]) -> torch.Tensor:
        """[S] nats."""
        batch = collate([self.data.row("sft" if method == "full" else method, i) for i in rows])
        batch = {name: tensor.to(self.setting.device) for name, tensor in batch.items()}
        with torch.autocast(self.setting.device, torch.bfloat16, enabled=self.setting.autocast):
            hidden_SD, head_VD = hidden_states(student, batch), student.lm_head.weight
            if method != "full":
                return distillation_loss(hidden_SD, head_VD, **targets_of(batch))
            states_SD = torch.cat([self.states(i) for i in rows])
            parts = zip(hidden_SD.split(CHUNK), states_SD.split(CHUNK), strict=True)
            heads = head_VD, self.teacher.lm_head.weight
            return torch.cat(
                [
                    checkpoint(full_kl, *part, *heads, use_reentrant=False)
                    if len(hidden_SD) > CHUNK
                    else full_kl(*part, *heads)
                    for part in parts
                ]
            )

    @torch.no_grad()
    def states(self, i: int) -> torch.Tensor:
        """[S, D] of the teacher, for one row."""
        if i not in self.teacher_states:
            batch = {k: v.to(self.setting.device) for k, v in collate([self.data.row("sft", i)]).items()}
            self.teacher_states[i] = hidden_states(self.teacher, batch)
        return self.teacher_states[i]


def full_kl(
    hidden_SD: torch.Tensor, teacher_SD: torch.Tensor, head_VD: torch.Tensor, teacher_head_VD: torch.Tensor
) -> torch.Tensor:
    """[S] KL(teacher || student) over the whole vocabulary, in nats."""
    with torch.no_grad():
        logp_SV = (teacher_SD @ teacher_head_VD.T).float().log_softmax(1)
    logq_SV = (hidden_SD @ head_VD.T).float().log_softmax(1)
    return (logp_SV.exp() * (logp_SV - logq_SV)).sum(1)


class Heldout:
    """Measures on held-out prompts: the teacher's answers, with its distribution over the whole vocabulary kept in
    memory, and the source's answers."""

    def __init__(self, setting: Setting, data: Data, teacher: Any) -> None:
        self.setting = setting
        self.batches = list(self._batches(data, "sft"))
        self.source_batches = list(self._batches(data, "scratch"))
        with torch.no_grad():
            self.logprobs = [self._logprobs(teacher, batch) for batch in self.batches]

    def _batches(self, data: Data, method: str) -> Iterator[dict[str, torch.Tensor]]:
        rows = sorted(data.indices(True, method), key=lambda i: data.num_tokens[i])
        for start in range(0, len(rows), 4):
            batch = collate([data.row(method, i) for i in rows[start : start + 4]])
            yield {name: tensor.to(self.setting.device) for name, tensor in batch.items()}

    def _logprobs(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(self.setting.device, torch.bfloat16, enabled=self.setting.autocast):
            return model.lm_head(hidden_states(model, batch)).float().log_softmax(1)

    @torch.no_grad()
    def measure(self, model: Any, source: bool = False) -> dict[str, float]:
        """Means over tokens: `kl` of teacher to student and `cross_entropy` of the teacher's text in nats, `top_1`
        agreement; with `source` also the cross-entropy of the source's answers."""
        sums, tokens = np.zeros(3), 0
        for batch, logp_SV in zip(self.batches, self.logprobs, strict=True):
            logq_SV = self._logprobs(model, batch)
            text_S = logq_SV.gather(1, batch["target_ids"])
            same_S = logq_SV.argmax(1) == logp_SV.argmax(1)
            kl = (logp_SV.exp() * (logp_SV - logq_SV)).sum()
            sums += [kl.item(), -text_S.sum().item(), same_S.sum().item()]
            tokens += len(text_S)
        measures = dict(zip(("kl", "cross_entropy", "top_1"), (sums / tokens).tolist(), strict=True))
        if source:
            losses = [-self._logprobs(model, b).gather(1, b["target_ids"]).ravel() for b in self.source_batches]
            measures["source_cross_entropy"] = torch.cat(losses).mean().item()
        return measures


# --- runs ---


@dataclass(frozen=True)
class Run:
    student: str
    method: str
    seed: int
    learning_rate: float
    multiple: float = 1
    tuning: bool = False

    @property
    def name(self) -> str:
        tuned = f"-tune-{self.learning_rate:g}" if self.tuning else ""
        return f"{self.student}-{self.method}-{self.seed}{tuned}"


def planned(setting: Setting, tuning: bool) -> list[Run]:
    """In this order: a student's runs seed by seed, so that a part of them is a smaller experiment and no other one."""
    runs = []
    if tuning:
        for student, methods in {"pruned": ("sft", "sampled", "scratch"), "random": ("sft", "sampled")}.items():
            for method in methods:
                runs += [Run(student, method, 100, rate, 0.5, True) for rate in setting.tuning_rates[student]]
        return runs
    for student, seeds in setting.seeds.items():
        for seed in range(seeds):
            for method in METHODS:
                multiple = setting.sft_budgets[student][seed] if method == "sft" else 1
                runs.append(Run(student, method, seed, setting.learning_rates[student][method], multiple))
    return runs


def train(run: Run, setting: Setting, data: Data, losses: Losses, heldout: Heldout) -> dict[str, Any]:
    """Trains one student. The seed decides the order of rows, the same for all methods, and random weights."""
    began, began_cpu, load = time.perf_counter(), time.process_time(), os.getloadavg()[0]
    student = make_student(run.student, setting, data, run.seed)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    shuffle = np.random.default_rng(run.seed)
    points = [setting.tokens * point for point in POINTS if point <= run.multiple][-1 if run.tuning else 0 :]
    indices = data.indices(False, run.method)
    order: list[int] = []
    tokens = steps = epochs = 0
    measured = []
    while points:
        if len(order) < setting.batch_rows:
            order, epochs = shuffle.permutation(len(data.is_heldout)).tolist(), epochs + 1
            allowed = set(indices)  # all rows are shuffled: methods that lack some see the others in the same order
            order = [i for i in order if i in allowed]
        rows, order = order[: setting.batch_rows], order[setting.batch_rows :]
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * min(1.0, (tokens + 1) / (WARMUP * setting.tokens) + 0.1)
        loss_S = losses(student, run.method, rows)
        loss_S.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens, steps = tokens + len(loss_S), steps + 1
        if tokens >= points[0]:
            points.pop(0)
            at_budget = setting.tokens <= tokens < 1.5 * setting.tokens
            measures = heldout.measure(student, source=at_budget or not points)
            measured.append({"tokens": tokens, "steps": steps} | measures)
            print(f"{run.name}: {measured[-1]}", file=sys.stderr, flush=True)
            if at_budget:
                torch.save(trained_weights(student), weights_path(run, setting))  # for the average over seeds
    return vars(run) | {
        "points": measured,
        "epochs": epochs,
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - began_cpu,
        "load": load,
    }


def weights_path(run: Run, setting: Setting) -> Path:
    return setting.run / "students" / f"{run.name}.pt"


def do(runs: Sequence[Run], setting: Setting) -> None:
    """Those of `runs` that have no result yet and that no other process is at: start as many as there are cores."""
    folder = setting.run / "students"
    folder.mkdir(exist_ok=True)
    missing = [run for run in runs if not (folder / f"{run.name}.json").exists()]
    print(f"{len(runs)} runs, {len(missing)} to do", file=sys.stderr)
    if not missing and (folder / "references.json").exists():
        return
    data = Data(setting)
    teacher = load_teacher(setting, data)
    losses, heldout = Losses(setting, data, teacher), Heldout(setting, data, teacher)
    print(f"ready after {time.process_time():.0f} CPU seconds", file=sys.stderr, flush=True)
    if not (folder / "references.json").exists():
        write(folder / "references.json", references(setting, data, teacher, heldout))
    for run in missing:
        with (folder / f"{run.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
            except BlockingIOError:
                continue
            if not (folder / f"{run.name}.json").exists():
                write(folder / f"{run.name}.json", train(run, setting, data, losses, heldout))


def references(setting: Setting, data: Data, teacher: Any, heldout: Heldout) -> dict[str, Any]:
    """The data, and what the teacher and students that were not trained measure."""
    train_rows, held_rows = data.indices(False, "sft"), data.indices(True, "sft")
    sizes = {}
    for kind in setting.seeds:
        student = make_student(kind, setting, data, 0)
        sizes[kind] = {
            "parameters": sum(p.numel() for p in student.parameters()),
            "trained": sum(p.numel() for p in student.parameters() if p.requires_grad),
            "start": heldout.measure(student, source=True),
        }
    return {
        "data": {
            "rows": len(train_rows),
            "tokens": int(data.num_tokens[train_rows].sum()),
            "heldout_rows": len(held_rows),
            "heldout_tokens": int(data.num_tokens[held_rows].sum()),
            "bytes_per_token": data.bytes_per_token | {"full": 2.0 * teacher.config.vocab_size},
        },
        "teacher": heldout.measure(teacher, source=True),
        "students": sizes,
    }


def write(path: Path, value: Any) -> None:
    """Whole or not at all: a run that was interrupted is made again."""
    path.with_suffix(".tmp").write_text(json.dumps(value, indent=1) + "\n")
    path.with_suffix(".tmp").replace(path)


# --- results ---


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, and half the width of its 95 % t-interval."""
    from scipy import stats

    if len(values) < 2:
        return {"mean": values[0], "half": math.nan, "n": len(values)}
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "half": float(half), "n": len(values)}


def tokens_to_reach(points: list[dict[str, float]], measure: str, value: float) -> float:
    """Tokens after which a curve is down at `value`, interpolated in log tokens; inf where it does not get there."""
    for before, after in itertools.pairwise(points):
        if before[measure] >= value >= after[measure]:
            part = (before[measure] - value) / (before[measure] - after[measure])
            return math.exp(math.log(before["tokens"]) + part * math.log(after["tokens"] / before["tokens"]))
    return math.inf if points[-1][measure] > value else points[0]["tokens"]


def end_of_budget(run: dict[str, Any], setting: Setting) -> dict[str, float]:
    return next(point for point in run["points"] if point["tokens"] >= setting.tokens)


def summarise(runs: list[dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """Of each student: measures of each method at one budget, differences to `sft` and to `sampled` seed by seed, and
    how many times the tokens plain training needs."""
    summary: dict[str, Any] = {}
    for student in setting.seeds:
        by: dict[str, dict[int, dict[str, Any]]] = {}
        for run in runs:
            if run["student"] == student:
                by.setdefault(run["method"], {})[run["seed"]] = run
        for method, seeds in by.items():
            end = {seed: end_of_budget(run, setting) for seed, run in seeds.items()}
            row: dict[str, Any] = {
                m: interval([point[m] for point in end.values()]) for m in ("kl", "cross_entropy", "top_1")
            }
            if all("source_cross_entropy" in point for point in end.values()):
                row["source_cross_entropy"] = interval([point["source_cross_entropy"] for point in end.values()])
            for other in ("sft", "sampled"):
                common = [seed for seed in end if seed in by.get(other, {}) and method != other]
                for m in ("kl", "cross_entropy") if common else ():
                    differences = [end[seed][m] - end_of_budget(by[other][seed], setting)[m] for seed in common]
                    row.setdefault(f"minus_{other}", {})[m] = interval(differences)
            if method not in ("sft", "scratch"):
                for m in ("kl", "cross_entropy"):
                    pairs = [(end[s], by["sft"][s]) for s in end if s in by.get("sft", {})]
                    needs = [tokens_to_reach(sft["points"], m, point[m]) / point["tokens"] for point, sft in pairs]
                    row.setdefault("sft_needs", {})[m] = [round(value, 2) for value in needs]
                    level = [(seeds[s]["points"], end_of_budget(by["sft"][s], setting)) for s in end if s in by["sft"]]
                    row.setdefault("needs_for_sft", {})[m] = [
                        round(tokens_to_reach(points, m, sft[m]) / sft["tokens"], 3) for points, sft in level
                    ]
            summary.setdefault(student, {})[method] = row
    return summary


def averages(runs: list[dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """Measures of the pruned student whose weights are the mean of its seeds'."""
    data = Data(setting)
    heldout = Heldout(setting, data, load_teacher(setting, data))
    student, result = make_student("pruned", setting, data, 0), {}
    for method in METHODS:
        keys = [(r["student"], r["method"], r["seed"], r["learning_rate"]) for r in runs if r["method"] == method]
        weights = [torch.load(weights_path(Run(*key), setting)) for key in keys if key[0] == "pruned"]
        if len(weights) > 1:
            mean = {name: torch.stack([w[name] for w in weights]).mean(0) for name in weights[0]}
            student.load_state_dict(mean, strict=False)
            result[method] = heldout.measure(student, source=True)
    return result


def results(setting: Setting, out: Path) -> dict[str, Any]:
    folder = setting.run / "students"
    read: Callable[[Run], Any] = lambda run: json.loads((folder / f"{run.name}.json").read_text())  # noqa: E731
    runs, tuning = (
        [read(run) for run in planned(setting, tuned) if (folder / f"{run.name}.json").exists()]
        for tuned in (False, True)
    )
    value: dict[str, Any] = {
        "setting": {key: str(v) if isinstance(v, Path) else v for key, v in vars(setting).items() if key != "run"},
        "references": json.loads((folder / "references.json").read_text()),
        "summary": summarise(runs, setting),
        "averages": averages(runs, setting),
        "tuning": tuning,
        "runs": runs,
    }
    value = rounded(value)
    write(out, value)
    return value


def tables(result: dict[str, Any]) -> str:
    """Markdown of docs/training/proof.md."""

    def cell(value: dict[str, float] | None, digits: int = 3) -> str:
        if value is None:
            return ""
        return f"{value['mean']:.{digits}f}" + ("" if value["half"] is None else f" ± {value['half']:.{digits}f}")

    lines = []
    for student, summary in result["summary"].items():
        lines += [
            f"\n{student}",
            "| trained on | KL | cross-entropy | top-1 | cross-entropy of the source's answers | KL, less plain text's "
            "| cross-entropy, less plain text's | KL, less draws' |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for method in METHODS:
            if row := summary.get(method):
                sft, sampled = row.get("minus_sft", {}), row.get("minus_sampled", {})
                cells = [cell(row["kl"]), cell(row["cross_entropy"]), cell(row["top_1"])]
                cells += [cell(row.get("source_cross_entropy")), cell(sft.get("kl")), cell(sft.get("cross_entropy"))]
                lines.append(f"| {METHODS[method]} | " + " | ".join([*cells, cell(sampled.get("kl"))]) + " |")
        for key in ("sft_needs", "needs_for_sft"):
            lines += [f"\n{student}, {key}: by seed", "| trained on | KL | cross-entropy |", "|---|---|---|"]
            for method, row in summary.items():
                if key in row:
                    lines.append(f"| {METHODS[method]} | {row[key]['kl']} | {row[key]['cross_entropy']} |")
    lines += [
        "\n| trained on | KL, one seed | KL, averaged | cross-entropy, one seed | averaged |",
        "|---|---|---|---|---|",
    ]
    for method, average in result["averages"].items():
        row = result["summary"]["pruned"][method]
        cells = [f"{v:.3f}" for m in ("kl", "cross_entropy") for v in (row[m]["mean"], average[m])]
        lines.append(f"| {METHODS[method]} | " + " | ".join(cells) + " |")
    lines += ["\n| learning rate | student | method | KL | cross-entropy | source |", "|---|---|---|---|---|---|"]
    for run in result["tuning"]:
        point = run["points"][-1]
        values = [f"{point[m]:.3f}" for m in ("kl", "cross_entropy", "source_cross_entropy")]
        lines.append(f"| {run['learning_rate']:g} | {run['student']} | {run['method']} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float):  # JSON has no infinity
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


# --- plots ---

COLOURS = {
    "scratch": "#999999",
    "sft": "#000000",
    "top_k": "#d55e00",
    "top_k_tail": "#e69f00",
    "sampled": "#0072b2",
    "full": "#009e73",
}


def plot(result: dict[str, Any], folder: Path) -> None:
    """Learning curves of both students, and what a byte per token buys."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "distill", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    from matplotlib import pyplot

    budget = result["setting"]["tokens"]
    for student in result["summary"]:
        figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
        labels = {"kl": "KL(teacher || student), nats", "cross_entropy": "cross-entropy of the teacher's text, nats"}
        for axis, (measure, label) in zip(axes, labels.items(), strict=True):
            for method, words in METHODS.items():
                runs = [r for r in result["runs"] if (r["student"], r["method"]) == (student, method)]
                count = min((len(run["points"]) for run in runs), default=0)
                if not count:
                    continue
                ends = [interval([run["points"][n][measure] for run in runs]) for n in range(count)]
                tokens = [statistics.fmean(run["points"][n]["tokens"] for run in runs) for n in range(count)]
                means = [end["mean"] for end in ends]
                axis.plot(tokens, means, marker="o", ms=3, color=COLOURS[method], label=words)
                low, high = ([end["mean"] + sign * end["half"] for end in ends] for sign in (-1, 1))
                axis.fill_between(tokens, low, high, color=COLOURS[method], alpha=0.15, lw=0)
            axis.set_xscale("log")
            axis.set(xlabel="supervised tokens", ylabel=label)
        axes[0].legend(frameon=False, fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / f"curves_{student}.svg", metadata={"Date": None})
        pyplot.close(figure)
    figure, axis = pyplot.subplots(figsize=(5, 3.6))
    sizes = result["references"]["data"]["bytes_per_token"] | {"sft": 0.0}
    for method, row in result["summary"]["pruned"].items():
        if method in sizes:
            x = sizes[method] + sizes["text"]
            less = row.get("minus_sft", {}).get("kl", {"mean": 0.0, "half": 0.0})
            axis.errorbar(x, less["mean"], less["half"], fmt="o", color=COLOURS[method], capsize=3)
            axis.annotate(METHODS[method], (x, less["mean"]), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axis.set_xscale("log")
    axis.margins(x=0.35)
    axis.set(xlabel="bytes per supervised token", ylabel=f"KL after {budget:,} tokens, less plain text's, nats")
    figure.tight_layout()
    figure.savefig(folder / "kl_bytes.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["tune", "train", "results", "plot"])
    parser.add_argument("--setting", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    arguments = parser.parse_args()
    setting = {"cpu": CPU, "gpu": GPU}[arguments.setting]
    if arguments.command in ("tune", "train"):
        do(planned(setting, arguments.command == "tune"), setting)
    elif arguments.command == "results":
        print(tables(results(setting, arguments.results)))
    else:
        plot(json.loads(arguments.results.read_text()), ROOT / "docs/training")


if __name__ == "__main__":
    main()
