"""TRL 1.16: the published dataset as it is, and with the loss of `examples/distill_student/distillation.py`."""

import importlib.util
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import MADE, NOISE, NUM_ROWS, ROOT, SHIFTED, published, reference, rows, teacher, tokenizer
from trl import SFTConfig, SFTTrainer

SPEC = importlib.util.spec_from_file_location("distillation", ROOT / "examples/distill_student/distillation.py")
assert SPEC is not None
assert SPEC.loader is not None
distillation = importlib.util.module_from_spec(SPEC)
sys.modules["distillation"] = distillation
SPEC.loader.exec_module(distillation)


class Distiller(distillation.DistillationLoss, SFTTrainer):
    pass


def settings(folder: Path, **options: Any) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to="none",
        use_cpu=True, bf16=False, fp16=False, learning_rate=0.0, save_strategy="no", logging_steps=1, **options,
    )  # fmt: skip


def native() -> datasets.Dataset:
    files = sorted(str(file) for file in (MADE / "run/dataset/data").glob("*.parquet"))
    return datasets.load_dataset("parquet", data_files=files, split="train").select(range(NUM_ROWS))


def distiller(model: Any, arguments: SFTConfig, data: Any) -> Distiller:
    numbers = datasets.Dataset.from_dict({"row": range(len(data))})
    return Distiller(
        model,
        arguments,
        train_dataset=numbers,
        data_collator=lambda batch: distillation.collate([data[item["row"]] for item in batch]),
        processing_class=tokenizer(),
    )


def first_loss(trainer: SFTTrainer) -> float:
    """Of the first step, before anything has been learned (and nothing is, at a learning rate of 0)."""
    trainer.train()
    return float(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))


@pytest.mark.parametrize("is_shifted", [False, True])
def test_the_published_columns_train_as_they_are(tmp_path: Path, is_shifted: bool) -> None:
    """The teacher's loss on its own text is what vLLM said of it, token by token; of all rows, one batch."""
    data = native()
    if is_shifted:
        data = data.map(lambda row: {"labels": [*row["labels"][1:], -100]})
    arguments = settings(tmp_path, max_steps=1, max_length=None, packing=False)
    arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = NUM_ROWS, 1
    trainer = SFTTrainer(teacher(), arguments, train_dataset=data, processing_class=tokenizer())
    batch = next(iter(trainer.get_train_dataloader()))
    assert int((batch["labels"] != -100).sum()) == sum(row["num_target_tokens"] for row in published())
    stored = [-value for row in published() for value in row["token_logprobs"]]
    expected = sum(stored) / len(stored)
    with torch.no_grad():
        value = float(trainer.compute_loss(teacher(), dict(batch), num_items_in_batch=None))
    if is_shifted:
        assert value > expected + SHIFTED
    else:
        assert value == pytest.approx(expected, abs=NOISE)


def test_messages_train_as_text(tmp_path: Path) -> None:
    """The JSONL of `--to openai`, by TRL's own template and tokenizer."""
    folder = MADE / "top_k/openai"
    data = datasets.load_dataset(str(folder), split="train").select(range(2))
    trainer = SFTTrainer(
        teacher(), settings(tmp_path, max_steps=1, max_length=None), train_dataset=data, processing_class=tokenizer()
    )
    assert first_loss(trainer) < 10.0
    assert next(row["input_ids"] for row in trainer.train_dataset)[:4] == published()[0]["input_ids"][:4]


def test_the_page_of_the_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code as it is written; only what it leaves to the defaults of a GPU is set for a CPU."""
    page = (ROOT / "examples/distill_student/README.md").read_text()
    (code,) = re.findall(r"^<!-- not run: needs TRL.*\n```python\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "runs/quickstart/dataset").mkdir(parents=True)
    (tmp_path / "runs/quickstart/dataset/data").symlink_to(MADE / "run/dataset/data")
    monkeypatch.chdir(tmp_path)
    of_cpu = partial(SFTConfig, output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1)
    names = {**vars(distillation), "SFTTrainer": SFTTrainer, "SFTConfig": of_cpu, "datasets": datasets}
    exec(code, names | {"model": teacher()})


@pytest.mark.parametrize(("kind", "column"), [("top_k", "target"), ("sampled", "draw")])
def test_the_teacher_loses_nothing_and_shifted_rows_much(tmp_path: Path, kind: str, column: Any) -> None:
    """Two batches of unequal numbers of tokens make a step, as one batch of both would."""
    files = [sorted((MADE / "run/dataset/data").glob("*.parquet"))[0]]
    data = torch.utils.data.Subset(distillation.DistillationDataset(files, column), range(4))
    arguments = settings(
        tmp_path, max_steps=1, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
        packing=False, max_length=None,
    )  # fmt: skip

    right = first_loss(distiller(teacher(), arguments, data))
    assert abs(right) < NOISE if kind == "top_k" else right == pytest.approx(reference(kind), abs=0.2)
    shifted = [
        {name: values if name in ("input_ids", "labels") else values[::-1].copy() for name, values in row.items()}
        for row in data
    ]
    assert first_loss(distiller(teacher(), arguments, shifted)) > right + SHIFTED


def test_a_step_learns(tmp_path: Path, tiny: Any) -> None:
    files = [sorted((MADE / "run/dataset/data").glob("*.parquet"))[0]]
    data = torch.utils.data.Subset(distillation.DistillationDataset(files), range(4))
    arguments = settings(
        tmp_path, max_steps=3, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
        packing=False, max_length=None,
    )  # fmt: skip
    arguments.learning_rate = 1e-2
    trainer = distiller(tiny, arguments, data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_rows_of_an_export_are_those_of_the_dataset() -> None:
    """So that the other tests' references, computed from the dataset, are of the same tokens."""
    assert [row["input_ids"] for row in rows("top_k", "axolotl")] == [row["input_ids"] for row in published()]
