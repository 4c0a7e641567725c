"""Which tokens are worth their targets? Students trained on the distributions of some of the tokens, by the teacher's
entropy or at random, measured on held-out answers. No test.

    python benchmarks/storage.py collect --answers 72     # once: answers at temperature 1, and whole distributions
    python benchmarks/which_tokens.py FOLDER              # results are files in FOLDER; goes on where it stopped
    python benchmarks/which_tokens.py FOLDER --results    # JSON on stdout; docs/targets.md reads it

The student is 6 of SmolLM2's 30 layers, with the teacher's embeddings; the loss is KL to the whole distribution. A
student of one seed sees the same answers in the same order, whatever is kept of them. Where nothing is learned of the
other tokens the loss is the mean over those kept; else over all.

Shape legend: S tokens of an answer, V vocabulary.
"""

import argparse
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
from stillhouse.schemas.config import KeepConfig
from stillhouse.stages.teacher.kept import is_kept

WAYS = {
    "all": ("entropy", 1.0, "nothing"),
    "fifth by entropy": ("entropy", 0.2, "nothing"),
    "fifth at random": ("random", 0.2, "nothing"),
    "half by entropy": ("entropy", 0.5, "nothing"),
    "fifth by entropy, else text": ("entropy", 0.2, "text"),
    "fifth at random, else text": ("random", 0.2, "text"),
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


def chosen(by: str, fraction: float, teacher_SV: torch.Tensor, random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """[S] which tokens keep their targets."""
    if not fraction:
        return np.zeros(len(teacher_SV), dtype=np.bool_)
    keys_S = random.random(len(teacher_SV))
    if by == "entropy":
        keys_S = torch.special.entr(teacher_SV.exp()).sum(1).numpy()
    return is_kept(keys_S.astype(np.float32), KeepConfig(fraction=fraction))


def train(data: Collected, way: str, seed: int, num_heldout: int, epochs: int) -> dict[str, Any]:
    by, fraction, elsewhere = WAYS[way]
    model = make_student(data.name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
    shuffle, chance = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    found: dict[str, Any] = {"way": way, "seed": seed, "kl": []}
    steps = 0
    for _ in range(epochs):
        order = shuffle.permutation(np.arange(num_heldout, len(data.lengths))).tolist()
        for start in range(0, len(order), ANSWERS_A_STEP):
            parts, num_tokens = [], 0
            for number in order[start : start + ANSWERS_A_STEP]:
                teacher_SV, states_SH = logprobs_of(data, number), states(model, data, number)
                kept_S = torch.tensor(chosen(by, fraction, teacher_SV, chance))
                if kept_S.any():
                    parts.append(kl(teacher_SV[kept_S], predictions(model, states_SH[kept_S])).sum())
                    num_tokens += int(kept_S.sum())
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
        with torch.no_grad():
            heldout = range(num_heldout)
            losses = [kl(logprobs_of(data, n), predictions(model, states(model, data, n))) for n in heldout]
        found["kl"].append(float(torch.cat(losses).mean()))
    return found


def results(folder: Path) -> dict[str, Any]:
    """By way: held-out KL after each epoch, and how much more than with all tokens it is, by seed, after the last."""
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    every = {run["seed"]: run["kl"] for run in runs if run["way"] == "all"}
    told = {}
    for way in WAYS:
        of_way = [run for run in runs if run["way"] == way and run["seed"] in every]
        if of_way:
            told[way] = {
                "seeds": [run["seed"] for run in of_way],
                "kl": [
                    round(statistics.mean(values), 3) for values in zip(*(run["kl"] for run in of_way), strict=True)
                ],
                "more_than_all": [round(run["kl"][-1] - every[run["seed"]][-1], 3) for run in of_way],
            }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", action="store_true")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--heldout", type=int, default=14, help="answers")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    if options.results:
        print(json.dumps(results(options.folder), indent=1))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    data = Collected("SmolLM2-135M-Instruct")
    for seed in range(options.seeds):
        for way in WAYS:
            file = options.folder / f"{way}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(train(data, way, seed, options.heldout, options.epochs)))
                print(file.read_text(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
