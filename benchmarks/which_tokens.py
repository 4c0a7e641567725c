"""Which tokens are worth their targets? Students trained on the distributions of some of the tokens, by the teacher's
entropy or at random (or by the student's own, as it learns, which nobody can store), measured on held-out answers. No
test.

    python benchmarks/storage.py collect --answers 72     # once: answers at temperature 1, and whole distributions
    OMP_NUM_THREADS=1 python benchmarks/which_tokens.py FOLDER     # files in FOLDER; resumes; one for each core
    python benchmarks/which_tokens.py FOLDER --results    # JSON on stdout; docs/targets.md reads it

The student is 6 of SmolLM2's 30 layers, with the teacher's embeddings; the loss is KL to the whole distribution. The
seed decides which answers are held out and the order of the others: students of one seed see the same, whatever is kept
of them. Where nothing is learned of the other tokens the loss is the mean over those kept; else over all.

Shape legend: S tokens of an answer, V vocabulary.
"""

import argparse
import fcntl
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.storage import TEACHERS, Collected
from examples.distill_student.distill import interval
from stillhouse.schemas.config import KeepConfig
from stillhouse.stages.teacher.kept import is_kept

WAYS = {
    "all": ("entropy", 1.0, "nothing"),
    "fifth by entropy": ("entropy", 0.2, "nothing"),
    "fifth at random": ("random", 0.2, "nothing"),
    "fifth by the student": ("student", 0.2, "nothing"),
    "half by entropy": ("entropy", 0.5, "nothing"),
    "fifth by entropy + text": ("entropy", 0.2, "text"),
    "fifth at random + text": ("random", 0.2, "text"),
    "text": ("random", 0.0, "text"),
}
"""How tokens are chosen, how many of each answer, and what is learned of the others."""
LAYERS, RATE, WARMUP_STEPS, ANSWERS_A_STEP = 6, 1e-3, 6, 2


def make_student(name: str) -> Any:
    """Some of the teacher's layers, evenly spaced: the same for every seed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TEACHERS[name], dtype=torch.float32)
    layers = model.model.layers
    kept = [round(i * (len(layers) - 1) / (LAYERS - 1)) for i in range(LAYERS)]
    model.model.layers = torch.nn.ModuleList([layers[i] for i in kept])
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = LAYERS
    model.get_input_embeddings().weight.requires_grad_(False)
    return model


def states(model: Any, data: Collected, number: int) -> torch.Tensor:
    """[S, width] the student's states that predict the tokens of answer `number`."""
    start, span = int(data.prompt_lengths[:number].sum()), data.answers()[number]
    prompt = data.prompts[start : start + data.prompt_lengths[number]]
    ids = torch.tensor(np.concatenate([prompt, data.tokens_S[span]])[None].astype(np.int64))
    hidden: torch.Tensor = model.model(ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
    return hidden


def predictions(model: Any, states_SH: torch.Tensor) -> torch.Tensor:
    """[S, V] log-probabilities."""
    logprobs_SV: torch.Tensor = model.lm_head(states_SH).log_softmax(1)
    return logprobs_SV


def logprobs_of(data: Collected, number: int) -> torch.Tensor:
    """[S, V] the teacher's, at the tokens of answer `number`."""
    return torch.tensor(data.full_SV[data.answers()[number]].astype(np.float32))


def kl(teacher_SV: torch.Tensor, student_SV: torch.Tensor) -> torch.Tensor:
    """[S] KL(teacher || student) in nats."""
    return (teacher_SV.exp() * (teacher_SV - student_SV)).sum(1)


def entropy(logprobs_SV: torch.Tensor) -> npt.NDArray[np.float32]:
    """[S] in nats."""
    found: npt.NDArray[np.float32] = torch.special.entr(logprobs_SV.exp()).sum(1).numpy()
    return found


def train(data: Collected, way: str, seed: int, num_heldout: int, epochs: int) -> dict[str, Any]:
    by, fraction, elsewhere = WAYS[way]
    model = make_student(data.name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
    shuffle, chance = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    numbers = shuffle.permutation(len(data.lengths))
    heldout, others = numbers[:num_heldout].tolist(), numbers[num_heldout:]
    found: dict[str, Any] = {"way": way, "seed": seed, "kl": [], "kept": []}
    found["heldout_tokens"], found["tokens"] = (int(data.lengths[rows].sum()) for rows in (heldout, others))
    steps = 0
    for _ in range(epochs):
        order, num_kept = shuffle.permutation(others).tolist(), 0
        for start in range(0, len(order), ANSWERS_A_STEP):
            parts, num_tokens = [], 0
            for number in order[start : start + ANSWERS_A_STEP]:
                teacher_SV, states_SH = logprobs_of(data, number), states(model, data, number)
                if by == "student":
                    with torch.no_grad():
                        keys_S = entropy(predictions(model, states_SH))
                else:
                    keys_S = entropy(teacher_SV) if by == "entropy" else chance.random(len(teacher_SV), np.float32)
                kept_S = torch.tensor(is_kept(keys_S, KeepConfig(fraction=fraction)) if fraction else keys_S < 0)
                if kept_S.any():
                    parts.append(kl(teacher_SV[kept_S], predictions(model, states_SH[kept_S])).sum())
                    num_tokens += int(kept_S.sum())
                    num_kept += int(kept_S.sum())
                if elsewhere == "text":
                    written_S = torch.tensor(data.tokens_S[data.answers()[number]].astype(np.int64))[~kept_S]
                    parts.append(-predictions(model, states_SH[~kept_S]).gather(1, written_S[:, None]).sum())
                    num_tokens += len(written_S)
            steps += 1
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, steps / WARMUP_STEPS)
            (torch.stack(parts).sum() / num_tokens).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        found["kept"].append(num_kept)
        with torch.no_grad():
            losses = [kl(logprobs_of(data, n), predictions(model, states(model, data, n))) for n in heldout]
        found["kl"].append(float(torch.cat(losses).mean()))
    return found


def results(folder: Path) -> dict[str, Any]:
    """By way: held-out KL after each epoch, and after the last one how much more than that of all tokens, and than of a
    fifth at random, it is: 95 % t-intervals of the differences, seed by seed."""
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    ends = {(run["way"], run["seed"]): run["kl"][-1] for run in runs}
    told: dict[str, Any] = {}
    for way in WAYS:
        of_way = [run for run in runs if run["way"] == way]
        if not of_way:
            continue
        epochs = zip(*(run["kl"] for run in of_way), strict=True)
        told[way] = {
            "seeds": [run["seed"] for run in of_way],
            "tokens": round(statistics.mean(run["tokens"] for run in of_way)),
            "kept": round(statistics.mean(run["kept"][-1] for run in of_way)),
            "kl": [round(statistics.mean(values), 3) for values in epochs],
        }
        for other in ("all", "fifth at random"):
            pairs = [(ends[way, seed], ends[other, seed]) for seed in told[way]["seeds"] if (other, seed) in ends]
            if pairs and way != other:
                told[way][f"more than {other}"] = interval([a - b for a, b in pairs])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", action="store_true")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--heldout", type=int, default=14, help="answers")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    if options.results:
        print(json.dumps(results(options.folder), indent=1))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    data = Collected("SmolLM2-135M-Instruct")
    for seed, way in itertools.product(range(options.seeds), options.ways.split(",")):
        file = options.folder / f"{way}-{seed}.json"
        with file.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
            except BlockingIOError:
                continue
            if not file.exists():
                told = json.dumps(train(data, way, seed, options.heldout, options.epochs))
                file.with_suffix(".tmp").write_text(told)
                file.with_suffix(".tmp").replace(file)
                print(told, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
