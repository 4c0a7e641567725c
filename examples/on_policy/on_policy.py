"""The recipe's second step: a student learns from its own answers, scored by the teacher. Does a start on the teacher's
answers help, and is what follows better than more of them?

    python examples/on_policy/on_policy.py prepare        # the teacher's answers, by the pipeline; once
    OMP_NUM_THREADS=1 python examples/on_policy/on_policy.py train     # all seeds, resumed; a process for each core
    python examples/on_policy/on_policy.py results        # results.json and the tables of docs/training/on_policy.md
    python examples/on_policy/on_policy.py plot           # docs/training/on_policy.svg

`--setting gpu` is a larger setting for a GPU; it has not been tried.
"""

import argparse
import copy
import dataclasses
import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from examples.distill_student import distill  # noqa: E402
from examples.distill_student.distillation import (  # noqa: E402
    DistillationDataset,
    collate,
    distillation_loss,
    targets_of,
)
from examples.on_policy import in_process  # noqa: E402
from examples.on_policy.figures import METHODS, plot, results, tables  # noqa: E402
from stillhouse.schemas.config import load  # noqa: E402

HERE = ROOT / "examples/on_policy"
TORCH = "examples.on_policy.torch_teacher:TorchTeacher"


@dataclass(frozen=True)
class Plan:
    """Tokens are supervised ones."""

    setting: distill.Setting
    backend: str | None
    """Of teacher and student in the rounds: None is vLLM, in processes of its own; else in this process."""
    tokens: int
    """Budget of each method."""
    cold_tokens: int
    """Of it, what `cold` takes from the teacher's answers."""
    round_prompts: int
    """Prompts that the student answers with the same weights: then it learns from all of them once."""
    points: tuple[int, ...]
    """Tokens after which students are measured."""
    seeds: int
    overrides: tuple[str, ...] = ()
    """KEY=VALUE of the rounds' configuration."""


CPU = Plan(
    setting=dataclasses.replace(
        distill.CPU,
        name="on_policy",
        run=ROOT / "runs/on_policy/off_policy",
        batch_rows=4,
        heldout_percent=10,
    ),
    backend=TORCH,
    tokens=4800,
    cold_tokens=2400,
    round_prompts=16,
    points=(1200, 2400, 3600, 4800),
    seeds=6,
)
GPU = Plan(
    setting=dataclasses.replace(
        distill.GPU,
        name="on_policy_gpu",
        run=ROOT / "runs/on_policy_gpu/off_policy",
        heldout_percent=4,
    ),
    backend=None,
    tokens=1_000_000,
    cold_tokens=500_000,
    round_prompts=512,
    points=(250_000, 500_000, 750_000, 1_000_000),
    seeds=5,
    overrides=("teacher.max_model_len=640", "rollout.sampling.max_tokens=512"),
)
STARTS: dict[str, tuple[str, ...]] = {
    "cpu": (),
    "gpu": (
        "source.limit=17671",
        "teacher.max_model_len=640",
        "sampling.max_tokens=512",
        "ingest.max_prompt_tokens=128",
    ),
}
"""KEY=VALUE of the run that makes the teacher's answers."""


# --- roll-outs ---


class RollOut(NamedTuple):
    """What a student wrote, scored."""

    rows: DistillationDataset
    own_kl: float
    """One-sample estimate of KL(student || teacher) per token, in nats, on the student's own answers: the mean of
    `student_logprobs` less `token_logprobs`."""
    num_tokens: int


def run(plan: Plan, name: str, overrides: Sequence[str]) -> None:
    """One run of the pipeline, by its command or in this process."""
    file = HERE / f"{name}.yaml"
    if plan.backend is not None:
        in_process.run(load(str(file), [*overrides, f"teacher.backend={plan.backend}"]))
        return
    command = [sys.executable, "-m", "stillhouse", "run", str(file), "--local", "--no-report"]
    for override in overrides:
        command += ["--set", override]
    subprocess.run(command, check=True, cwd=ROOT)


def roll_out(
    plan: Plan, data: distill.Data, student: Any, prompts: list[dict[str, Any]], folder: Path, seed: int
) -> RollOut:
    """`student` answers `prompts`, and the teacher reads the answers. `folder` is made anew, and left with the scored
    dataset alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    student.save_pretrained(folder / "student")
    data.tokenizer.save_pretrained(folder / "student")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    where = [f"run_dir={folder}/run", f"source.path={folder}/prompts.jsonl", f"rollout.model={folder}/student"]
    backend = [] if plan.backend is None else [f"rollout.backend={plan.backend}"]
    seeds = [f"{key}={seed}" for key in ("sampling.seed", "rollout.sampling.seed")]
    run(plan, "rollouts", [*plan.overrides, *where, *backend, *seeds])
    shutil.rmtree(folder / "student")
    files = sorted((folder / "run/dataset/data").glob("*.parquet"))
    names = ["student_logprobs", "token_logprobs"]
    table = pa.concat_tables(pq.read_table(file, columns=names) for file in files)
    own_S, teacher_S = (np.array(table.column(name).combine_chunks().flatten()) for name in names)
    return RollOut(DistillationDataset(files, kind="draw"), float((own_S - teacher_S).mean()), len(own_S))


def asked(data: distill.Data) -> list[dict[str, Any]]:
    """The question of each row of the teacher's answers, as a source row."""
    names = ["prompt_id", "messages"]
    tables = [pq.read_table(file, columns=names) for file in sorted(data.files)]
    return [
        {"id": row["prompt_id"], "messages": [m for m in row["messages"] if m["role"] != "assistant"]}
        for row in pa.concat_tables(tables).to_pylist()
    ]


# --- students ---


class Student:
    """A student with its optimiser and what it has seen."""

    def __init__(self, plan: Plan, data: distill.Data, seed: int) -> None:
        self.plan = plan
        self.model = distill.make_student("pruned", plan.setting, data, seed)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.tokens = self.steps = 0

    def state(self) -> dict[str, Any]:
        weights = {name: tensor.clone() for name, tensor in distill.trained_weights(self.model).items()}
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        return {"weights": weights, "optimizer": optimizer, "tokens": self.tokens, "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.tokens, self.steps = state["tokens"], state["steps"]

    def learn(self, rows: Sequence[dict[str, np.ndarray]]) -> None:
        """One step on KL(teacher || student) at the places of `rows`, whoever wrote them."""
        setting = self.plan.setting
        rate = setting.learning_rates["pruned"]["sampled"]
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.tokens + 1) / (distill.WARMUP * self.plan.tokens) + 0.1)
        batch = {name: tensor.to(setting.device) for name, tensor in collate(rows).items()}
        with torch.autocast(setting.device, torch.bfloat16, enabled=setting.autocast):
            hidden_SD = distill.hidden_states(self.model, batch)
            loss_S = distillation_loss(hidden_SD, self.model.lm_head.weight, **targets_of(batch))
        loss_S.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tokens, self.steps = self.tokens + len(loss_S), self.steps + 1


class Experiment:
    """What all students of a setting share."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.data = plan, distill.Data(plan.setting)
        self.prompts = asked(self.data)
        self.heldout = distill.Heldout(plan.setting, self.data, distill.load_teacher(plan.setting, self.data))
        self.train_rows = self.data.indices(False, "sampled")
        self.heldout_rows = self.data.indices(True, "sampled")
        self.folder = plan.setting.run.parent

    def teachers_answers(self, seed: int) -> Iterator[list[dict[str, np.ndarray]]]:
        """Batches of the teacher's answers, each once before any twice."""
        shuffle, size = np.random.default_rng(seed), self.plan.setting.batch_rows
        while True:
            order = shuffle.permutation(self.train_rows).tolist()
            for start in range(0, len(order) - size + 1, size):
                yield [self.data.row("sampled", i) for i in order[start : start + size]]

    def own_answers(
        self, student: Student, seed: int, name: str, told: list[Any]
    ) -> Iterator[list[dict[str, np.ndarray]]]:
        """Batches of what `student` writes, as it is at the beginning of each round; each once."""
        size = self.plan.setting.batch_rows
        for number in range(1_000_000):
            random = np.random.default_rng([seed, number])
            chosen = random.choice(self.train_rows, min(self.plan.round_prompts, len(self.train_rows)), replace=False)
            fresh = self.roll_out(student, chosen.tolist(), f"{name}/{number}", seed * 1000 + number)
            told.append({"tokens": student.tokens, "own_kl": fresh.own_kl, "num_tokens": fresh.num_tokens})
            order = random.permutation(len(fresh.rows)).tolist()
            for start in range(0, len(order), size):
                yield [fresh.rows[i] for i in order[start : start + size]]

    def roll_out(self, student: Student, rows: list[int], name: str, seed: int) -> RollOut:
        folder = self.folder / "rounds" / name
        return roll_out(self.plan, self.data, student.model, [self.prompts[i] for i in rows], folder, seed)

    def measure(self, student: Student, seed: int, name: str) -> dict[str, float]:
        """Of `MEASURES`, and the cross-entropy of the teacher's answers; what needs answers of the student only where
        its budget ends."""
        found = {"tokens": student.tokens, **self.heldout.measure(student.model)}
        num_right = num_tokens = 0
        with torch.no_grad():
            for batch in self.heldout.source_batches:
                chosen_S = student.model.lm_head(distill.hidden_states(student.model, batch)).argmax(1)
                num_right += int((chosen_S == batch["target_ids"][:, 0]).sum())
                num_tokens += len(chosen_S)
        found["task"] = num_right / num_tokens
        if student.tokens == 0 or student.tokens >= self.plan.tokens:
            found["own_kl"] = self.roll_out(student, self.heldout_rows, f"{name}/measured", 900_000 + seed).own_kl
        return found

    def middle(self, seed: int) -> Path:
        """Where a student that learned from the teacher's answers is kept, for `cold` to go on with."""
        return self.folder / "results" / f"{seed}.pt"

    def train(self, seed: int, method: str) -> dict[str, Any]:
        """The seed decides which prompts come, in which order, and every sample."""
        began, began_cpu, load = time.perf_counter(), time.process_time(), os.getloadavg()[0]
        student, rounds, measured = Student(self.plan, self.data, seed), list[Any](), list[dict[str, float]]()
        points = [point for point in self.plan.points if method != "cold" or point > self.plan.cold_tokens]
        if method == "cold":
            student.load(torch.load(self.middle(seed)))
        name = f"{seed}-{method}"
        rows = self.teachers_answers(seed) if method == "off" else self.own_answers(student, seed, name, rounds)
        while points:
            student.learn(next(rows))
            if method == "off" and student.tokens >= self.plan.cold_tokens and not self.middle(seed).exists():
                torch.save(student.state(), self.middle(seed).with_suffix(".tmp"))
                self.middle(seed).with_suffix(".tmp").replace(self.middle(seed))
            if student.tokens >= points[0]:
                points.pop(0)
                measured.append(self.measure(student, seed, name))
                print(f"{name}: {measured[-1]}", file=sys.stderr, flush=True)
        shutil.rmtree(self.folder / "rounds" / name, ignore_errors=True)
        return {
            "points": measured,
            "rounds": rounds,
            "steps": student.steps,
            "wall_s": time.perf_counter() - began,
            "cpu_s": time.process_time() - began_cpu,
            "load": load,
        }

    def references(self) -> dict[str, Any]:
        """The data, and what students measure that learned nothing, and the teacher."""
        start = self.measure(Student(self.plan, self.data, 0), 0, "start")
        tokens = self.data.num_tokens
        return {
            "train_rows": len(self.train_rows),
            "train_tokens": int(tokens[self.train_rows].sum()),
            "heldout_rows": len(self.heldout_rows),
            "heldout_tokens": int(tokens[self.heldout_rows].sum()),
            "start": start,
        }


def train(plan: Plan) -> None:
    """What has no result yet and what no other process is at: start as many as there are cores."""
    experiment = Experiment(plan)
    folder = experiment.folder / "results"
    folder.mkdir(exist_ok=True)
    jobs: dict[str, Callable[[], dict[str, Any]]] = {"references": experiment.references}
    for seed in range(plan.seeds):
        jobs |= {f"{seed}-{method}": functools.partial(experiment.train, seed, method) for method in METHODS}
    for name, job in jobs.items():
        if name.endswith("-cold") and not experiment.middle(int(name.partition("-")[0])).exists():
            continue  # another process is about to make its start
        with (folder / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
            except BlockingIOError:
                continue
            if not (folder / f"{name}.json").exists():
                distill.write(folder / f"{name}.json", job())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["prepare", "train", "results", "plot"])
    parser.add_argument("--setting", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    plan = {"cpu": CPU, "gpu": GPU}[arguments.setting]
    if arguments.command == "prepare":
        run(plan, "off_policy", [f"run_dir={plan.setting.run}", *STARTS[arguments.setting]])
    elif arguments.command == "train":
        train(plan)
    elif arguments.command == "results":
        print(tables(results(plan, arguments.results)))
    else:
        plot(json.loads(arguments.results.read_text()), ROOT / "docs/training/on_policy.svg")


if __name__ == "__main__":
    main()
