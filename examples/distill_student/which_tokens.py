"""Which tokens are worth their targets? Students trained on the distributions of some of the tokens, by the teacher's
entropy or at random, measured on held-out prompts.

    stillhouse run examples/distill_student/distill_student.yaml --set targets.entropy=true --set source.limit=400 \\
        --set run_dir=runs/which_tokens
    OMP_NUM_THREADS=1 python examples/distill_student/which_tokens.py train     # resumes; a process for each core
    python examples/distill_student/which_tokens.py results

Targets are 64 draws. A student sees the same conversations in the same order, whatever is kept of them; with `nothing`
the loss is the mean over the tokens kept, with `text` over all, the others by the token written. The pruned student of
`distill.py`.

Shape legend: S supervised tokens of a row.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from examples.distill_student.distill import (  # noqa: E402
    CPU,
    Data,
    Heldout,
    hidden_states,
    load_teacher,
    make_student,
)
from examples.distill_student.distillation import collate, distillation_loss, targets_of  # noqa: E402

SETTING = dataclasses.replace(CPU, run=ROOT / "runs/which_tokens", tokens=4000, heldout_percent=10)
RATE, WARMUP = 1e-3, 0.1
WAYS: dict[str, tuple[str, float, Literal["text", "nothing"]]] = {
    "all": ("entropy", 1.0, "nothing"),
    "half by entropy": ("entropy", 0.5, "nothing"),
    "fifth by entropy": ("entropy", 0.2, "nothing"),
    "fifth at random": ("random", 0.2, "nothing"),
    "fifth by entropy, else text": ("entropy", 0.2, "text"),
    "fifth at random, else text": ("random", 0.2, "text"),
    "text": ("random", 0.0, "text"),
}
"""What is kept, how much of each row, and what is learned elsewhere."""


def kept(entropies_S: np.ndarray, by: str, fraction: float, random: np.random.Generator) -> np.ndarray:
    """[S] which tokens keep their targets, as `targets.keep.fraction` would choose, or so many at random."""
    keys_S = -entropies_S if by == "entropy" else random.random(len(entropies_S))
    is_kept_S = np.zeros(len(entropies_S), dtype=np.bool_)
    is_kept_S[np.argsort(keys_S, kind="stable")[: int(np.ceil(round(fraction * len(keys_S), 6)))]] = True
    return is_kept_S


def train(way: str, seed: int, data: Data, entropies: list[np.ndarray], heldout: Heldout) -> dict[str, Any]:
    by, fraction, elsewhere = WAYS[way]
    student = make_student("pruned", SETTING, data, seed)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    indices = set(data.indices(False, "sampled"))
    order = [i for i in np.random.default_rng(seed).permutation(len(data.is_heldout)).tolist() if i in indices]
    chance = np.random.default_rng([seed, 1])
    tokens = with_targets = 0
    while tokens < SETTING.tokens:
        rows, order = order[:2], order[2:]
        if not rows:
            raise SystemExit(f"{SETTING.run} has {tokens} tokens to train on; make it with a larger source.limit")
        read = []
        for i in rows:
            row = dict(data.row("sampled", i))
            is_kept_S = kept(entropies[i], by, fraction, chance)
            row["target_logprobs"] = np.where(is_kept_S[:, None], row["target_logprobs"], -np.inf)
            with_targets += int(is_kept_S.sum())
            read.append(row)
        batch = collate(read)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (tokens + 1) / (WARMUP * SETTING.tokens) + 0.1)
        has_targets_S = (batch["target_logprobs"] > -torch.inf).any(1)
        loss_S = distillation_loss(
            hidden_states(student, batch), student.lm_head.weight, **targets_of(batch, elsewhere)
        )
        (loss_S.mean() if elsewhere == "text" else loss_S.sum() / has_targets_S.sum()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += len(loss_S)
    measured: dict[str, float] = heldout.measure(student)
    return {"way": way, "seed": seed, "tokens": tokens, "with_targets": with_targets, **measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "results"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    folder = SETTING.run / "students"
    if options.what == "train":
        folder.mkdir(exist_ok=True)
        data = Data(SETTING)
        files = sorted((SETTING.run / "dataset/data").glob("*.parquet"))
        columns = pa.concat_tables([pq.read_table(file, columns=["teacher_entropy"]) for file in files])
        entropies = [np.array(values, np.float32) for values in columns.column(0).to_pylist()]
        teacher = load_teacher(SETTING, data)
        heldout = Heldout(SETTING, data, teacher)
        del teacher
        for seed in range(options.seeds):
            for way in WAYS:
                file = folder / f"{way}-{seed}.json"
                if file.exists():
                    continue
                file.touch(exist_ok=False)  # another process takes the next one
                try:
                    found = train(way, seed, data, entropies, heldout)
                    file.write_text(json.dumps(found))
                    print(found, file=sys.stderr, flush=True)
                except BaseException:
                    file.unlink()
                    raise
        return
    runs = [json.loads(text) for text in (file.read_text() for file in folder.glob("*.json")) if text]
    kl = {(run["way"], run["seed"]): run["kl"] for run in runs}
    told: dict[str, Any] = {}
    for way in WAYS:
        seeds = sorted(seed for found, seed in kl if found == way and ("all", seed) in kl)
        if not seeds:
            continue
        less = [kl[way, seed] - kl["all", seed] for seed in seeds]
        told[way] = {
            "seeds": len(seeds),
            "kl": round(statistics.mean(kl[way, seed] for seed in seeds), 3),
            "kl_less_all": round(statistics.mean(less), 3),
            "by_seed": [round(value, 3) for value in less],
        }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
