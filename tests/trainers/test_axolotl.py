"""axolotl 0.19.0, `axolotl.integrations.kd`: its collators and its fused loss."""

from typing import Any

import pytest
import torch
from axolotl.integrations.kd.collator import DataCollatorForKD, KDBatchSamplerDataCollatorForSeq2Seq
from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss
from axolotl.utils.tokenization import check_dataset_labels
from conftest import NOISE, NUM_ROWS, SHIFTED, mean_log_mass, reference, rows, step, teacher, tokenizer

COLUMNS = ("target_token_ids", "target_logprobs", "target_mask")


def collate(kind: str, shift: int = 0) -> dict[str, Any]:
    features = rows(kind, "axolotl")
    for row in features:
        for name in COLUMNS:
            row[name] = row[name][-shift:] + row[name][:-shift] if shift else row[name]
    return dict(DataCollatorForKD(tokenizer())(features))


def loss(model: Any, batch: dict[str, Any], normalize_topk: bool = False) -> torch.Tensor:
    """Per supervised token, as its trainer computes it."""
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        output_hidden_states=True,
        logits_to_keep=1,
    )
    function = LigerFusedLinearKLTopKLogprobLoss(
        0.0, 1.0, temperature=1.0, beta=0.0, compiled=False, compute_ce_loss=False, normalize_topk=normalize_topk
    )
    value = function(
        model.lm_head.weight,
        outputs.hidden_states[-1],
        batch["target_token_ids"],
        batch["target_logprobs"],
        batch["target_mask"],
        true_labels=batch["labels"],
    )
    return value / (batch["labels"] != -100).sum()


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_the_teacher_loses_nothing_and_shifted_rows_much(kind: str) -> None:
    with torch.no_grad():
        right = float(loss(teacher(), collate(kind)))
        assert right == pytest.approx(reference(kind), abs=1e-3)
        assert kind == "sampled" or abs(right) < NOISE
        for shift in (1, -1):
            assert float(loss(teacher(), collate(kind, shift))) > right + SHIFTED


def test_normalised_it_is_the_same_up_to_a_constant() -> None:
    """The targets are not normalised, the student is: what is left for the teacher itself is the mean of m log m, m
    the mass of a token's K, which no student changes."""
    with torch.no_grad():
        value = float(loss(teacher(), collate("top_k"), normalize_topk=True))
    assert mean_log_mass() - NOISE < value < 0.0


def test_packed_batches_are_the_same() -> None:
    features = rows("top_k", "axolotl", 3)
    for row in features:
        row["position_ids"] = list(range(len(row["input_ids"])))
    packed = dict(KDBatchSamplerDataCollatorForSeq2Seq(tokenizer())([features]))
    apart = dict(DataCollatorForKD(tokenizer())(rows("top_k", "axolotl", 3)))
    kept = packed["target_mask"].bool()
    assert packed["target_token_ids"][kept].tolist() == apart["target_token_ids"][apart["target_mask"].bool()].tolist()
    assert packed["input_ids"].shape[0] == 1


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_preprocess_reads_every_position(kind: str) -> None:
    """What `axolotl preprocess` does with the rows that it shows: the first mark of each position."""
    check_dataset_labels(rows(kind, "axolotl"), tokenizer(), num_examples=NUM_ROWS)


def test_a_step(tiny: Any) -> None:
    batch = collate("top_k")
    step(tiny, lambda: loss(tiny, batch))


def test_tokens_that_were_left_out_add_nothing(tiny: Any) -> None:
    """As `targets.keep` leaves them: labels, and one masked place. What is lost at the others does not change."""
    found = []
    for left_out in ((), (0,), (1,)):
        features = rows("top_k", "axolotl")
        for row in features:
            for j in range(len(row["input_ids"])):
                if j % 2 in left_out:
                    row["target_token_ids"][j], row["target_logprobs"][j], row["target_mask"][j] = [5], [-110.0], [0]
        check_dataset_labels([dict(row) for row in features], tokenizer(), num_examples=NUM_ROWS)
        with torch.no_grad():
            found.append(float(loss(tiny, dict(DataCollatorForKD(tokenizer())(features)))))
    whole, *halves = found
    assert sum(halves) == pytest.approx(whole, rel=1e-4)
    assert min(halves) > 0.3 * whole


def test_its_fused_loss_still_ignores_a_softcap() -> None:
    """Why an export of a Gemma 2 teacher carries a note: for the capped model itself the loss is not 0."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=128, num_key_value_heads=2, head_dim=16, final_logit_softcapping=2.0, **size)
    model = Gemma2ForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=1.0)
    input_ids = torch.randint(0, 128, (1, 12))
    with torch.no_grad():
        logprobs, ids = torch.log_softmax(model(input_ids).logits, dim=-1).topk(128)
        batch = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "labels": input_ids,
            "target_token_ids": ids,
            "target_logprobs": logprobs,
            "target_mask": torch.ones_like(ids),
        }
        assert float(loss(model, batch)) > 0.1, (
            "axolotl applies the softcap now: drop the note in stages/layouts/axolotl.py"
        )
