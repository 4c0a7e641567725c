"""Reading a dataset's targets into a training loop, and the loss. Copy this file into a training repo.

    rows = DistillationDataset("runs/quickstart/dataset/data")
    batches = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True, collate_fn=collate)
    for batch in batches:
        hidden_BTD = student.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        hidden_SD = predicting_states(hidden_BTD, batch["labels"])
        distillation_loss(hidden_SD, student.lm_head.weight, **targets_of(batch)).mean().backward()

Which loss it is, the columns decide: top-K with everything else as one event, top-K alone, or draws. Tokens that
`targets.keep` left out have no targets: `targets_of(batch, elsewhere="text")` has the token written learned there.

Shape legend: B rows, T tokens of the longest, S supervised tokens of all rows, K targets per token, V vocabulary,
D width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pyarrow.parquet as pq
import torch
from stillhouse_targets import decode
from torch.utils.checkpoint import checkpoint


class DistillationDataset(torch.utils.data.Dataset):
    """Rows of the Parquet files of a folder (or of those listed), decoded when asked for; Arrow in memory until then.

    `kind`: `target` for top-K, `draw` for draws. `tail`: with top-K, train the mass outside the K as one event.
    """

    def __init__(
        self, files: str | Path | Sequence[str | Path], kind: Literal["target", "draw"] = "target", tail: bool = True
    ) -> None:
        paths = sorted(Path(files).glob("*.parquet")) if isinstance(files, str | Path) else files
        self.kind, self.tail = kind, tail and kind == "target"
        self.tables = []
        for path in paths:
            names = pq.read_schema(path).names
            wanted = [name for name in names if name.startswith((kind, "input_ids", "labels", f"num_{kind}"))]
            self.tables.append(pq.read_table(path, columns=wanted))
        self.ends = np.cumsum([table.num_rows for table in self.tables])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`input_ids`, `labels` [T]; `target_ids`, `target_logprobs` [S, K]; `target_tail` [S] where it is trained."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        i = int(np.searchsorted(self.ends, index, side="right"))
        row = self.tables[i].slice(index - self.ends[i] + self.tables[i].num_rows, 1)
        (targets,) = decode(row, self.kind)
        arrays = {name: row.column(name).combine_chunks().flatten().to_numpy() for name in ("input_ids", "labels")}
        arrays |= {"target_ids": targets.ids, "target_logprobs": targets.logprobs}
        return arrays | ({"target_tail": targets.tail} if self.tail else {})


def collate(rows: Sequence[Mapping[str, np.ndarray]], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask`, `labels` [B, T], padded on the right; targets of supervised tokens in row-major
    order, never [B, T, K]: `target_ids` [S, K] int64, `target_logprobs` [S, K] and `target_tail` [S] float32 nats."""

    def padded(name: str, shape: tuple[int, int], value: float, dtype: torch.dtype) -> torch.Tensor:
        batch, start = torch.full(shape, value, dtype=dtype), 0
        for row in rows:
            array = torch.from_numpy(
                np.atleast_2d(row[name]).astype(np.float32 if dtype.is_floating_point else np.int64)
            )
            batch[start : start + len(array), : array.shape[1]] = array
            start += len(array)
        return batch

    BT = len(rows), max(len(row["input_ids"]) for row in rows)
    SK = sum(len(row["target_ids"]) for row in rows), max(row["target_ids"].shape[1] for row in rows)
    batch = {
        "input_ids": padded("input_ids", BT, pad_id, torch.int64),
        "labels": padded("labels", BT, -100, torch.int64),
        "target_ids": padded("target_ids", SK, 0, torch.int64),
        "target_logprobs": padded("target_logprobs", SK, -torch.inf, torch.float32),
    }
    lengths_B = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(BT[1]) < lengths_B[:, None]).long()
    if "target_tail" in rows[0]:
        batch["target_tail"] = torch.from_numpy(np.concatenate([row["target_tail"] for row in rows]).astype(np.float32))
    return batch


class LossTargets(TypedDict):
    ids_SK: torch.Tensor
    logprobs_SK: torch.Tensor
    tail_S: torch.Tensor | None
    written_S: torch.Tensor | None


def targets_of(batch: Mapping[str, torch.Tensor], elsewhere: Literal["text", "nothing"] = "text") -> LossTargets:
    """What `distillation_loss` takes from a batch of `collate`. `elsewhere`: what is learned of tokens without targets,
    the token written or nothing."""
    labels_BT = batch["labels"]
    return {
        "ids_SK": batch["target_ids"],
        "logprobs_SK": batch["target_logprobs"],
        "tail_S": batch.get("target_tail"),
        "written_S": labels_BT[labels_BT != -100] if elsewhere == "text" else None,
    }


def predicting_states(hidden_BTD: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """[S, D] for each supervised token the state that predicts it: the one at the position *before* it.

    Row s of the targets is the distribution that supervised token s was drawn from. Nothing else shifts by one.
    """
    return hidden_BTD[:, :-1][labels_BT[:, 1:] != -100]


def distillation_loss(
    hidden_SD: torch.Tensor,
    head_VD: torch.Tensor,
    ids_SK: torch.Tensor,
    logprobs_SK: torch.Tensor,
    tail_S: torch.Tensor | None = None,
    softcap: float | None = None,
    chunk: int = 512,
    written_S: torch.Tensor | None = None,
) -> torch.Tensor:
    """[S] KL(target || student) in nats. Entries of log-probability -inf are padding.

    A token without targets has minus the student's log-probability of the token written (`written_S`, ids), which is 1
    draw from the teacher at temperature 1; without `written_S` it has 0.

    With `tail_S` the target is top-K and one event for everything else; without, what is given, renormalised: the top K
    alone, or draws as frequencies (their KL is cross-entropy but for a constant). `head_VD`: weight of the student's
    output layer; `softcap`: `final_logit_softcapping` of Gemma 2. Students that scale their logits are not covered.

    Logits exist for `chunk` tokens at a time and are computed again in the backward pass.
    """
    tensors = (hidden_SD, ids_SK, logprobs_SK, tail_S, written_S)
    starts = range(0, max(len(hidden_SD), 1), chunk)
    parts = [[None if tensor is None else tensor[start : start + chunk] for tensor in tensors] for start in starts]
    chunks = [  # one chunk alone is not computed twice
        checkpoint(_chunk_loss, head_VD, softcap, *part, use_reentrant=False)
        if len(parts) > 1
        else _chunk_loss(head_VD, softcap, *part)
        for part in parts
    ]
    return torch.cat(chunks)


def _chunk_loss(
    head_VD: torch.Tensor,
    softcap: float | None,
    hidden_SD: torch.Tensor,
    ids_SK: torch.Tensor,
    logprobs_SK: torch.Tensor,
    tail_S: torch.Tensor | None,
    written_S: torch.Tensor | None,
) -> torch.Tensor:
    logits_SV = (hidden_SD.to(head_VD.dtype) @ head_VD.T).float()
    if softcap is not None:
        logits_SV = softcap * torch.tanh(logits_SV / softcap)
    total_S = logits_SV.logsumexp(1)
    ids_SK = ids_SK.where(logprobs_SK > -torch.inf, ids_SK[:, :1])  # padding's id may be no target of this token
    p_SK = logprobs_SK.float().exp()
    logq_SK = logits_SV.gather(1, ids_SK) - total_S[:, None]
    if tail_S is not None:
        # The student's mass outside the K: summed from what is left, since 1 - sum has no digits where it is small.
        outside_S = logits_SV.scatter(1, ids_SK, -torch.inf).logsumexp(1)
        p_SK = torch.cat([p_SK, tail_S.float().exp()[:, None]], 1)
        logq_SK = torch.cat([logq_SK, (outside_S - total_S)[:, None]], 1)
    p_SK = p_SK / p_SK.sum(1, keepdim=True).clamp_min(1e-30)  # 1e-30: a token that has no targets divides by no 0
    kl_S = (torch.xlogy(p_SK, p_SK) - p_SK * logq_SK).sum(1)  # xlogy(0, 0) = 0
    has_targets_S = (logprobs_SK > -torch.inf).any(1)
    if written_S is None:
        return kl_S.where(has_targets_S, 0.0)
    return kl_S.where(has_targets_S, total_S - logits_SV.gather(1, written_S[:, None])[:, 0])


class DistillationLoss:
    """For Hugging Face's `Trainer` and those made from it, such as TRL's (this file imports none of them):

        class Distiller(DistillationLoss, SFTTrainer): ...

        args = SFTConfig(remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, packing=False,
                         max_length=None, prediction_loss_only=True)
        rows = DistillationDataset(folder)
        numbers = datasets.Dataset.from_dict({"row": range(len(rows))})  # TRL takes no torch dataset
        Distiller(model, args, train_dataset=numbers,
                  data_collator=lambda batch: collate([rows[item["row"]] for item in batch])).train()

    One process per device; the output layer's weight must be whole there (DDP; not FSDP or ZeRO stage 3).
    """

    elsewhere: Literal["text", "nothing"] = "text"
    """As in `targets_of`."""

    def compute_loss(
        self: Any, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # Through the wrapper's own forward, or DDP would not add up gradients; logits of one position only.
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
        student = self.accelerator.unwrap_model(model)
        softcap = getattr(student.config.get_text_config(), "final_logit_softcapping", None)
        hidden_SD = predicting_states(outputs.hidden_states[-1], inputs["labels"])
        with self.accelerator.autocast():
            loss_S = distillation_loss(
                hidden_SD, student.get_output_embeddings().weight, **targets_of(inputs, self.elsewhere), softcap=softcap
            )
        if num_items_in_batch is None:
            loss = loss_S.mean()
        else:  # supervised tokens of all the batches of one step: over accumulation, and over processes where asked for
            loss = loss_S.sum() / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # DDP takes the mean of gradients
        return (loss, outputs) if return_outputs else loss
